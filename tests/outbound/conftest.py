"""Outbound at work between real servers."""

from pathlib import Path

import pytest
from seed import Tenant
from workbench import Bench

from remails.config import Database as DatabaseSettings
from remails.db import Database
from remails.vault import Vault


@pytest.fixture
def bench(database: DatabaseSettings, db: Database, vault: Vault, tenant: Tenant, tmp_path: Path) -> Bench:
    """A tenant, and the tools around it."""
    return Bench(database, db, vault, tenant, tmp_path)
