"""What every administrative command has in common: settings, one transaction, the audit log.

A command that is decorated with `connected` gets an `Act`: it runs in a transaction which is committed when it returns, so
a change and its line in the audit log are there both or not at all. Errors become one sentence in `remails.cli`.
"""

import functools
import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import click

from remails import config, db
from remails.errors import ConfigError, Unavailable
from remails.store import audit, migrate
from remails.store.ids import OrganizationId

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Act:
    """An operator's command under way, inside its transaction."""

    settings: config.Settings
    conn: db.Connection

    def log(
        self,
        organization_id: OrganizationId | None,
        action: str,
        target_type: str,
        target_id: object,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the audit log."""
        audit.record(self.conn, actor(), organization_id, action, target_type, target_id, details)


def actor() -> audit.Actor:
    """Who acts: the name of the login that runs the command, also behind sudo."""
    name = os.environ.get("SUDO_USER", "")
    with suppress(OSError, KeyError):
        name = name or getpass.getuser()
    return audit.Actor("operator", name=name)


def settings() -> config.Settings:
    """The settings of this host, from `--config`. Raises ConfigError."""
    return config.load(click.get_current_context().obj)


@contextmanager
def database(settings: config.Settings) -> Iterator[db.Database]:
    """The open database. Raises Unavailable when it cannot be reached, ConfigError for a wrong setting or credential."""
    opened = db.Database(settings.database, settings.database_password(), "admin")
    try:
        try:
            opened.open(wait=True)
        except ConfigError as error:
            raise Unavailable(str(error)) from None
        yield opened
    finally:
        opened.close()


@contextmanager
def migrated(settings: config.Settings) -> Iterator[db.Database]:
    """The same, but raises ConfigError when migrations are missing."""
    with database(settings) as opened:
        if missing := opened.run(migrate.missing):
            raise ConfigError(f"database: {len(missing)} migrations are missing, run `remails migrate`")
        yield opened


def connected(command: Callable[Concatenate[Act, P], None]) -> Callable[P, None]:
    """Give a command its `Act` as first argument."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        here = settings()
        with migrated(here) as opened, opened.transaction() as conn:
            command(Act(here, conn), *args, **kwargs)

    return run
