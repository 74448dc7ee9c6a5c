"""One demo installation for all tests of the journey; a test that kills something leaves it running again."""

from collections.abc import Iterator

import pytest
from installation import Installation, free_base


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Everything runs, as real processes."""
    running = Installation(tmp_path_factory.mktemp("journey"), free_base())
    running.start()
    yield running
    running.stop()
