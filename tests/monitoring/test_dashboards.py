"""Grafana's dashboards: every query is PromQL and asks for what somebody shows, and nothing lies over something else."""

import json
import subprocess
from pathlib import Path
from typing import Any

import metricnames
import pytest
import yaml

FOLDER = metricnames.PROJECT / "roles/monitoring/files/dashboards"
PATHS = sorted(FOLDER.glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    """A dashboard."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def queries(path: Path) -> list[str]:
    """All that it asks."""
    return [target["expr"] for panel in read(path)["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_asks_for_what_somebody_shows(path: Path) -> None:
    for expression in queries(path):
        metricnames.check(expression, f"{path.stem}: {expression}")


@pytest.mark.needs("promtool")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query{number}:value", "expr": expression}
        for number, expression in enumerate(expression for path in PATHS for expression in queries(path))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_panels_have_titles_places_and_the_provisioned_source(path: Path) -> None:
    source = yaml.safe_load((FOLDER / "provisioning.yml").read_text(encoding="utf-8"))["datasources"][0]["uid"]
    board = read(path)
    assert board["uid"] == f"remails-{path.stem}"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len({panel["title"] for panel in board["panels"]}) == len(board["panels"])
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source}
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])
