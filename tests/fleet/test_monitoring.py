"""The monitoring of the fleet: it asks everybody, is silent while all is well, and tells somebody, not by the relay, when a host dies."""

import contextlib
import json
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from deployment import GROUPS, Deployment
from hosts import Fleet, until
from monitoring.metricnames import always_shown

pytestmark = [pytest.mark.fleet, pytest.mark.long, pytest.mark.timeout(900)]
WATCH = "watch1"
LOOKS_BACK = {"ErrorsLogged", "LeaseFlapping", "ServiceRestarts", "WorkerRestarted", "MailRefusedByUs", "ManyDeferred"}
"""Alerts that are about the last minutes or the last hour: they remember what tests before this one have broken."""


class Prometheus:
    """What Prometheus and Alertmanager on a host say."""

    def __init__(self, fleet: Fleet, host: str = WATCH) -> None:
        self._fleet, self._host = fleet, host

    def get(self, url: str) -> Any:
        """What it answers."""
        with self._fleet.network(self._host), urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def query(self, expression: str) -> list[dict[str, str]]:
        """The labels of each series that the expression has now."""
        asked = urllib.parse.urlencode({"query": expression})
        found = self.get(f"http://127.0.0.1:9090/api/v1/query?{asked}")
        return [one["metric"] for one in found["data"]["result"]]

    def firing(self) -> set[str]:
        """The alerts that fire, but for the one that always does."""
        found = self.query('ALERTS{alertstate="firing", alertname!="Watchdog"}')
        return {f"{one['alertname']} {one.get('instance', '')}".strip() for one in found}


@pytest.fixture
def prometheus(deployment: Deployment) -> Prometheus:
    """That of the fleet."""
    return Prometheus(deployment.fleet)


def expected(deployment: Deployment) -> set[tuple[str, str]]:
    """Who has to be asked for what, at least: every service, every host, every database."""
    words = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")
    found = {(word, host) for word in words for host in GROUPS[word]}
    found |= {("postgres", host) for host in GROUPS["database"]}
    return found | {("node", host) for host in deployment.hosts}


@pytest.mark.usefixtures("whole")
def test_everybody_is_asked_and_answers(deployment: Deployment, prometheus: Prometheus) -> None:
    def silent() -> set[tuple[str, str]]:
        return expected(deployment) - {(one["job"], one["instance"]) for one in prometheus.query("up == 1")}

    until(lambda: not silent(), 60, "every target to answer")
    assert prometheus.query("remails_host_security_updates") and prometheus.query("remails_pg_primary == 1")
    assert prometheus.query("remails_balance_missing == 0")


@pytest.mark.usefixtures("whole")
def test_what_alerts_ask_for_is_there(deployment: Deployment, prometheus: Prometheus) -> None:
    """An alert about what nobody shows could never fire."""
    rules = yaml.safe_load(deployment.fleet.hosts[WATCH].run("cat /etc/prometheus/remails-alerts.yml"))
    wanted = always_shown(rule["expr"] for group in rules["groups"] for rule in group["rules"])

    def missing() -> set[str]:
        return {name for name in wanted if not prometheus.query(name)}

    with contextlib.suppress(TimeoutError):
        until(lambda: not missing(), 60, "every metric to be shown")
    assert missing() == set()


@pytest.mark.usefixtures("whole")
def test_nothing_fires_while_all_is_well(prometheus: Prometheus) -> None:
    """At the end of whatever tests before this one have broken; what lies in the past may still be spoken of."""
    until(
        lambda: prometheus.query('ALERTS{alertname="Watchdog", alertstate="firing"}'), 60, "the rules to be looked at"
    )
    until(
        lambda: not {one for one in prometheus.firing() if one.split()[0] not in LOOKS_BACK},
        300,
        "alerts to be over",
    )


@pytest.mark.usefixtures("whole")
def test_a_dead_host_is_told_once_by_mail_that_does_not_pass_the_relay(
    deployment: Deployment, prometheus: Prometheus
) -> None:
    host = deployment.fleet.hosts["out3"]
    watch = deployment.fleet.hosts[WATCH].ip
    since = datetime.now(UTC)
    host.kill()
    assert {record.peer_ip for record in deployment.paged("HostDead out3", since)} == {watch}
    assert "HostDead out3" in prometheus.firing()
    until(lambda: "ServiceDown out3" in prometheus.firing(), 120, "its services to be noticed too")
    assert not deployment.world.mails("page: ServiceDown out3", since), "what is on a dead host goes without saying"
    host.start()
    host.wait()
    until(lambda: "HostDead out3" not in prometheus.firing(), 90, "the alert to be over")
    until(lambda: deployment.world.mails("over: HostDead out3", since), 300, "a mail that tells of the end")
    assert len(deployment.world.mails("page: HostDead out3", since)) == 1
