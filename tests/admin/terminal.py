"""The command line, as an operator has it in front of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from remails import cli


def settings(credentials: Path, dsn: str, more: str = "") -> str:
    """The settings of a host with little in them."""
    return f"""\
host = "test"
credentials_directory = "{credentials}"
[mail]
hostname = "relay.example"
[database]
dsn = "{dsn}"
wait_timeout = 2
{more}
"""


@dataclass(frozen=True)
class Terminal:
    """Runs `remails --config <path> ...`."""

    path: Path

    def run(self, *words: str, stdin: str | None = None) -> Result:
        """Run a command, whatever becomes of it; an exception that nobody made a sentence of is a failure."""
        result = CliRunner().invoke(cli.main, ["--config", str(self.path), *words], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def do(self, *words: str, stdin: str | None = None) -> str:
        """Run a command that has to succeed; what it printed."""
        result = self.run(*words, stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return result.stdout.strip()

    def json(self, *words: str) -> Any:
        """Run a command with `--json`."""
        return json.loads(self.do(*words, "--json"))

    def refused(self, *words: str, stdin: str | None = None) -> str:
        """Run a command that has to be refused; its sentence."""
        result = self.run(*words, stdin=stdin)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("remails: ") and result.stderr.count("\n") == 1
        return result.stderr.removeprefix("remails: ").strip()
