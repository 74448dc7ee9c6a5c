"""The command line as a whole: what it offers, what it loads, how errors end."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from terminal import Terminal, settings

import remails
from remails import cli


def _remails(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remails", *words], capture_output=True, text=True, timeout=60, env=environment
    )


def test_version() -> None:
    assert _remails("--version").stdout == f"remails {remails.__version__}\n"


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(cli.main, ["--help"])

    assert shown.exit_code == 0
    listed = {line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert {*cli.SERVICES, *cli.MODULES, "dev", "demo"} <= listed


@pytest.mark.parametrize("word", list(cli.SERVICES))
def test_service_explains_itself(word: str) -> None:
    shown = CliRunner().invoke(cli.main, [word, "--help"])

    assert shown.exit_code == 0
    assert f"NAME\n    {word} - " in shown.stdout


@pytest.mark.parametrize("word", list(cli.MODULES))
def test_command_and_its_subcommands_explain_themselves(word: str) -> None:
    command = cli.main.get_command(None, word)  # type: ignore[arg-type]  # no context is needed
    assert command is not None and command.name == word
    for name, subcommand in getattr(command, "commands", {word: command}).items():
        assert subcommand.help, name


def test_a_service_loads_none_of_the_others(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from remails import cli\n"
        "CliRunner().invoke(cli.main, ['bus', '--help'])\n"
        "print(*sorted(name for name in sys.modules if name.startswith('remails.')))\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert "remails.bus.service" in loaded.stdout
    folders = {name.split(".")[1] for name in loaded.stdout.split()}
    assert not folders & {"admin", "api", "inbound", "outbound", "periodic", "ipagent", "dev", "store", "db"}


def test_unknown_command() -> None:
    result = CliRunner().invoke(cli.main, ["frobnicate"])
    assert result.exit_code == 2 and "frobnicate" in result.stderr


# How errors end


def test_settings_that_are_not_there(tmp_path: Path) -> None:
    for words in (["bus"], ["organization", "list"], ["migrate"]):
        result = _remails("--config", str(tmp_path / "none.toml"), *words)
        assert result.returncode == 78
        assert result.stderr.startswith(f"remails: cannot read settings {tmp_path}") and result.stderr.count("\n") == 1


def test_settings_by_the_environment(tmp_path: Path) -> None:
    result = _remails("bus", REMAILS_CONFIG=str(tmp_path / "other.toml"))
    assert result.returncode == 78 and "other.toml" in result.stderr


def test_a_key_that_is_wrong_is_named(terminal: Terminal) -> None:
    terminal.path.write_text(terminal.path.read_text() + '[bus]\nendpoint = "x"\n')

    result = terminal.run("organization", "list")
    assert (result.exit_code, result.stderr) == (78, f"remails: {terminal.path}: bus.endpoint: unknown key\n")


def test_a_credential_that_is_missing_is_named(terminal: Terminal, tmp_path: Path) -> None:
    terminal.do("organization", "create", "Acme")
    terminal.path.write_text(
        terminal.path.read_text().replace('credentials_directory = "', f'credentials_directory = "{tmp_path}')
    )

    result = terminal.run("key", "create", "Acme")
    assert result.exit_code == 78
    assert result.stderr.startswith("remails: credential pepper: cannot read ")
    assert terminal.json("key", "list", "Acme") == []


def test_a_database_that_is_away_is_temporary(tmp_path: Path, credentials: Path) -> None:
    path = tmp_path / "remails.toml"
    path.write_text(settings(credentials, "host=127.0.0.1 port=1 dbname=x user=x"))

    result = _remails("--config", str(path), "organization", "list")
    assert result.returncode == 75
    assert "refused" in result.stderr and result.stderr.count("\n") == 1


def test_a_dsn_that_is_none_is_a_setting(tmp_path: Path, credentials: Path) -> None:
    path = tmp_path / "remails.toml"
    path.write_text(settings(credentials, "nonsense"))

    result = _remails("--config", str(path), "organization", "list")
    assert result.returncode == 78
    assert result.stderr.startswith("remails: database.dsn: ") and result.stderr.count("\n") == 1
