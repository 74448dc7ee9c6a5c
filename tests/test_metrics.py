"""What Prometheus is shown: by every service, summed over the processes of one, and all of it explained."""

import asyncio
import re
import socket
from pathlib import Path

import pytest
import seed
from prometheus_client import REGISTRY
from scraping import free_port, scrape

import remails
from remails import metrics
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.config import Metrics as MetricsSettings
from remails.db import Database
from remails.metrics import Metric
from remails.periodic import watch
from remails.store import addresses
from remails.submission import submit

DOCS = Path(__file__).parents[1] / "docs"


def value(metric: Metric, **labels: str) -> float:
    """What a metric shows in this process; 0 before the first."""
    suffix = "_sum" if metric.kind == "Histogram" else "_total" if metric.kind == "Counter" else ""
    return REGISTRY.get_sample_value(metric.name + suffix, labels) or 0.0


def test_every_metric_is_explained_once_with_its_labels_and_no_other_is() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(remails_\w+)`((?: `\w+`)*) \|", text, re.MULTILINE)
    explained = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert len(rows) == len(explained)
    assert explained == {name: metric.labels for name, metric in Metric.all.items()}


def test_no_label_names_a_tenant_or_a_person() -> None:
    labels = {label for metric in Metric.all.values() for label in metric.labels}
    assert labels == {
        *("service", "version", "level", "task", "door", "reason", "outcome", "command", "code"),
        *("method", "status", "state", "policy", "tls", "mailbox_provider", "reply", "name"),
    }


def test_what_waits_is_shown_by_who_leads_and_by_nobody_else(db: Database, tenant: seed.Tenant) -> None:
    submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [tenant.submission("a@b.example", "c@d.example")])
    db.run(
        lambda conn: conn.execute("UPDATE deliveries SET next_attempt_at = now() - interval '90 s' WHERE id % 2 = 0")
    )
    db.run(addresses.add, "192.0.2.99", tenant.pool_id, "static", "x.relay.example")
    asyncio.run(watch.run(db, 30.0))
    assert value(metrics.QUEUE_DELIVERIES, status="accepted") == 2
    assert value(metrics.QUEUE_DELIVERIES, status="held") == 0
    assert value(metrics.QUEUE_OVERDUE) == pytest.approx(90, abs=5)
    assert value(metrics.QUEUE_OLDEST) == pytest.approx(2, abs=3)
    assert (value(metrics.ADDRESSES, state="ready"), value(metrics.ADDRESSES, state="none")) == (1, 1)
    assert value(metrics.HOSTS_DEAD) == 0
    assert (value(metrics.STORAGE_SHORT), str(value(metrics.STORAGE_SEEN))) == (0, "nan")
    db.run(lambda conn: conn.execute("SELECT storage_seen(999, 1000)"))
    asyncio.run(watch.run(db, 30.0))
    assert (value(metrics.STORAGE_SHORT), value(metrics.STORAGE_SEEN)) == (1, pytest.approx(2, abs=3))
    # Mail is not refused for what nobody looks at.
    db.run(lambda conn: conn.execute("UPDATE storage SET seen_at = now() - interval '5 minutes'"))
    asyncio.run(watch.run(db, 30.0))
    assert (value(metrics.STORAGE_SHORT), value(metrics.STORAGE_SEEN)) == (0, pytest.approx(300, abs=5))
    watch.forget()
    assert REGISTRY.get_sample_value("remails_queue_deliveries", {"status": "accepted"}) is None
    assert str(value(metrics.QUEUE_OVERDUE)) == "nan"


def test_a_listener_of_one_process_shows_the_process_too() -> None:
    port = free_port(0)
    metrics.LOG_RECORDS.clear()
    metrics.begin(MetricsSettings(host="127.0.0.1", port=port), "api").serve()
    shown = scrape(port)
    assert shown[f"remails_info service=api version={remails.__version__}"] == 1
    assert shown["remails_notes_missed_total"] >= 0  # also what was never counted
    assert shown["remails_log_records_total level=error"] == 0  # a counter that comes into being with 1 has not grown
    assert shown["process_resident_memory_bytes"] > 0


def test_a_taken_port_costs_the_metrics_and_not_the_service(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] - metrics.PORTS["bus"]
        metrics.begin(MetricsSettings(host="127.0.0.1", port=port), "bus").serve()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["no metrics"]
