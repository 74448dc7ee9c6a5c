"""Which metrics there are: ours, those of our PostgreSQL queries and of the jobs without a port, and those of exporters that we use.

`check` holds an expression to them. PromQL is only read as far as names and labels go.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import click
import yaml

from remails import cli
from remails.metrics import Metric

PROJECT = Path(__file__).parents[2]

EXPORTERS = {
    "": ("up", "ALERTS", "process_resident_memory_bytes", "process_cpu_seconds_total"),
    "node": (
        *("node_systemd_unit_state", "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_time_seconds"),
        *("node_timex_sync_status", "node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes", "node_load1"),
        *("node_vmstat_oom_kill", "node_vmstat_pswpin", "node_cpu_seconds_total", "node_disk_io_time_seconds_total"),
        *("node_network_receive_bytes_total", "node_network_transmit_bytes_total"),
    ),
    "postgres": ("pg_up",),
    "etcd": ("etcd_server_has_leader", "etcd_disk_wal_fsync_duration_seconds_bucket"),
    "haproxy": (
        *("haproxy_server_status", "haproxy_backend_active_servers", "haproxy_frontend_current_sessions"),
        *("haproxy_backend_http_responses_total", "haproxy_frontend_connections_total"),
    ),
    "probe": ("probe_success", "probe_ssl_earliest_cert_expiry", "probe_duration_seconds"),
    "alertmanager": ("alertmanager_notifications_failed_total", "alertmanager_config_last_reload_successful"),
    "prometheus": ("prometheus_config_last_reload_successful",),
}
BACKUPS = tuple(f"remails_backup_last_{what}_timestamp_seconds" for what in ("success", "failure"))
CERTIFICATES = ("remails_certificate_not_after_timestamp_seconds", "remails_certificate_renewal_failed")
PASSING = {"remails_host_planned_until_timestamp_seconds", "node_timex_sync_status"}
"""Shown since a host was emptied for the first time, and where a host may ask for its clock, as a container may not."""
HOST = re.compile(r"# TYPE (remails_host_\w+) gauge")

_NAME = re.compile(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?![\w:])(?!\s*\()\s*(\{[^}]*\})?")
_WORDS = {"and", "or", "unless", "bool"}
_TARGET = {"job", "instance", "groups", "module", "le"}


@cache
def known() -> dict[str, set[str] | None]:
    """Every metric, and its labels where we know them."""
    found: dict[str, set[str] | None] = {}
    for name, metric in Metric.all.items():
        for suffix in ("_bucket", "_sum", "_count") if metric.kind == "Histogram" else ("",):
            found[name + suffix] = set(metric.labels) | _TARGET
    queries = yaml.safe_load((PROJECT / "roles/exporters/files/queries.yml").read_text(encoding="utf-8"))
    for prefix, query in queries.items():
        usages = {name: said["usage"] for column in query["metrics"] for name, said in column.items()}
        labels = {name for name, usage in usages.items() if usage == "LABEL"}
        found |= {f"{prefix}_{name}": labels | _TARGET for name, usage in usages.items() if usage != "LABEL"}
    for file in ("files/host-metrics", "tasks/planned.yml"):
        text = (PROJECT / "roles/exporters" / file).read_text(encoding="utf-8")
        found |= dict.fromkeys(HOST.findall(text), _TARGET)
    found |= dict.fromkeys(BACKUPS, _TARGET | {"kind"}) | dict.fromkeys(CERTIFICATES, _TARGET | {"name"})
    for names in EXPORTERS.values():
        found |= dict.fromkeys(names)
    return found


def asked(expression: str) -> list[tuple[str, str]]:
    """The metrics that an expression asks for, each with how its labels are asked for.

    Text in quotes, what is grouped by and times are no metrics.
    """
    text = re.sub(r"#.*", "", expression)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    text = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", text)
    return [(name, labels) for name, labels in _NAME.findall(text) if name not in _WORDS]


def check(expression: str, where: str) -> None:
    """Every metric in it is known, with the labels it is asked by."""
    found = asked(expression)
    assert found or "vector(1)" in expression, f"{where}: asks for nothing"
    for name, labels in found:
        assert name in known(), f"{where}: nobody shows {name}"
        its = known()[name]
        wrong = set() if its is None else set(re.findall(r"(\w+)\s*[=!]", labels)) - its
        assert not wrong, f"{where}: {name} has no label {wrong}"


def always_shown(expressions: Iterable[str]) -> set[str]:
    """Those of the metrics that these ask for which somebody shows all the time: a counter with labels begins with what it counts."""
    counters = {name for name, metric in Metric.all.items() if metric.kind == "Counter" and metric.labels}
    return {name for text in expressions for name, _ in asked(text)} - counters - PASSING


@cache
def commands() -> dict[str, tuple[str, ...]]:
    """The commands of `remails`, and of each its own."""
    assert isinstance(cli.main, click.Group)
    context = click.Context(cli.main)
    found = {}
    for name in cli.main.list_commands(context):
        command = cli.main.get_command(context, name)
        found[name] = tuple(command.list_commands(context)) if isinstance(command, click.Group) else ()
    return found
