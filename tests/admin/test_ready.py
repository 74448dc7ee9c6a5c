"""`remails ready`: what services say of themselves, as systemd tells it."""

import json
from pathlib import Path

import pytest
from terminal import Terminal

UNIT = "Id=remails-{}.service\nActiveState={}\nSubState={}\nStatusText={}\n"
GOOD = UNIT.format(
    "outbound", "active", "running", "ready (0.1.0+aa): delivering from 2 addresses, 0 deliveries in hand"
)
OUTAGE = UNIT.format("inbound", "active", "running", "not ready (0.1.0+aa): database: connection refused (10.0.0.5)")
SILENT = UNIT.format("api", "active", "running", "")
FAILED = UNIT.format("bus", "failed", "failed", "credential bus_server_key: cannot read it")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd that says what stands in this file, which is all that matters of it here."""
    says = tmp_path / "says"
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in "show --property="*) cat {says};; *) exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return says


@pytest.fixture
def anyone(tmp_path: Path) -> Terminal:
    """No settings are needed to ask."""
    return Terminal(tmp_path / "none.toml")


def test_a_service_that_is_ready(anyone: Terminal, systemctl: Path) -> None:
    systemctl.write_text(GOOD)
    assert anyone.json("ready", "outbound") == [
        {
            "service": "outbound",
            "ready": True,
            "release": "0.1.0+aa",
            "text": "delivering from 2 addresses, 0 deliveries in hand",
        }
    ]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (OUTAGE, "database: connection refused (10.0.0.5)"),
        (SILENT, "has not said yet how it is"),
        (FAILED, "the unit is failed (failed): credential bus_server_key: cannot read it"),
    ],
)
def test_one_that_is_not_fails_the_command(anyone: Terminal, systemctl: Path, unit: str, text: str) -> None:
    systemctl.write_text(f"{GOOD}\n{unit}")
    result = anyone.run("ready", "outbound", "inbound", "--json")
    assert result.exit_code == 1
    answers = json.loads(result.stdout)
    assert [answer["ready"] for answer in answers] == [True, False]
    assert answers[1]["text"] == text


def test_a_process_of_another_release_is_not_ready(anyone: Terminal, systemctl: Path) -> None:
    systemctl.write_text(GOOD)
    assert anyone.run("ready", "outbound", "--release", "0.1.0+aa").exit_code == 0
    result = anyone.run("ready", "outbound", "--release", "0.1.0+bb")
    assert result.exit_code == 1
    assert "is not of release 0.1.0+bb" in result.stdout


def test_waiting_ends_when_all_are_ready(anyone: Terminal, systemctl: Path, tmp_path: Path) -> None:
    systemctl.write_text(GOOD)
    (tmp_path / "bin/systemctl").write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/asked ]; then cat {systemctl}; else touch {tmp_path}/asked; printf %s '{SILENT}'; fi\n"
    )
    assert anyone.run("ready", "outbound", "--wait", "30").exit_code == 0


def test_without_systemd_it_says_so(anyone: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = anyone.run("ready", "outbound")
    assert result.exit_code == 75
    assert result.stderr.startswith("remails: systemctl: ")
