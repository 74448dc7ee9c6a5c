"""What Ansible wrote for a host."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

SETTINGS = Path("/etc/remails-backups/settings.toml")


@dataclass(frozen=True)
class Settings:
    """What Ansible wrote for this host.

    Attributes:
        programs: the folder of PostgreSQL's programs.
        folder: our own: state, metrics, scratch.
        data: the server's data on a host of the database; elsewhere empty.
        rpo: seconds of work that may be lost.
        standbys: whether a backup may be taken from another host than the one that writes.
        full_days: how often a backup is a full one.
        config: the file by which pgBackRest restores to `scratch`.
        place: restic's word for the independent place; empty: none.
        check_days: in how many days all of the independent place is read once.
        forget: whether old copies are removed from here; not where the credentials only let add.
    """

    programs: str
    folder: str
    data: str = ""
    rpo: int = 60
    standbys: bool = False
    full_days: int = 7
    config: str = ""
    place: str = ""
    check_days: int = 7
    forget: bool = True
    keep_daily: int = 10
    keep_monthly: int = 3

    def path(self, *names: str) -> Path:
        """Something of ours."""
        return Path(self.folder, *names)

    def program(self, name: str) -> str:
        """One of PostgreSQL's programs."""
        return str(Path(self.programs, name))

    @property
    def scratch(self) -> Path:
        """Where data is restored to for a look."""
        return self.path("scratch")


def load_settings(path: Path) -> Settings:
    """What Ansible wrote."""
    return Settings(**tomllib.loads(path.read_text(encoding="utf-8")))
