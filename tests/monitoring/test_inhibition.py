"""Which alerts keep others silent, by a real Alertmanager with the settings that the role writes."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge.proxy import free_port
from installation import eventually
from rendering import render


class Alertmanager:
    """A running one."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v2"

    def asked(self, path: str, body: Any = None) -> Any:
        """What it answers; None while it does not."""
        given = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", given, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read() or "{}")
        except urllib.error.URLError:
            return None

    def silent(self, *alerts: dict[str, str]) -> set[str]:
        """The names of those that the others keep silent, when all of these fire."""
        self.asked("/alerts", [{"labels": labels} for labels in alerts])
        found = self.asked("/alerts?active=true&inhibited=true")
        assert {one["labels"]["alertname"] for one in found} >= {labels["alertname"] for labels in alerts}
        return {one["labels"]["alertname"] for one in found if one["status"]["inhibitedBy"]}


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    """One that nobody hears."""
    port = free_port()
    settings = render(tmp_path, "alertmanager.yml", monitoring_mail_enabled=False)
    command = [
        "prometheus-alertmanager",
        f"--config.file={settings}",
        f"--storage.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        made = Alertmanager(port)
        eventually(lambda: made.asked("/status"), bool)
        yield made
    finally:
        process.terminate()
        process.wait(30)


MAIL = [{"alertname": name, "severity": "page"} for name in ("MailRefusedByUs", "SlowToTakeMail", "NoLeader")]


@pytest.mark.needs("prometheus-alertmanager")
def test_what_mail_suffers_is_told_of_unless_no_database_takes_it(alertmanager: Alertmanager) -> None:
    """A standby that has been down since yesterday does not hide that mail is refused today."""
    standby = {"alertname": "DatabaseDown", "instance": "data2", "severity": "page"}
    assert alertmanager.silent(standby, *MAIL) == set()
    assert alertmanager.silent({"alertname": "NoPrimary", "severity": "page"}, *MAIL) == {
        labels["alertname"] for labels in MAIL
    }


@pytest.mark.needs("prometheus-alertmanager")
def test_a_dead_host_keeps_only_what_is_on_it_silent(alertmanager: Alertmanager) -> None:
    """Some of the alerts are about services of it, others about what the edges find of it."""
    dead = {"alertname": "HostDead", "instance": "app1", "severity": "page"}
    for name in ("ServiceDown", "BackendDown"):
        alerts = [
            {"alertname": name, "job": "inbound", "severity": "page", "instance": one} for one in ("app1", "app2")
        ]
        assert name not in alertmanager.silent(dead, alerts[1])
        assert name in alertmanager.silent(dead, alerts[0])
