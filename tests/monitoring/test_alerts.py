"""Every alert fires when it should, and no other with it, and all are silent on a healthy fleet: tried by promtool.

And they ask only for what somebody shows, and each has a page that says what to do.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import metricnames
import pytest
import yaml

PROJECT = Path(__file__).parents[2]
RULES = PROJECT / "roles/monitoring/files/alerts.yml"
CASES = yaml.safe_load((Path(__file__).parent / "alerts.yml").read_text(encoding="utf-8"))
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
SEVERITIES = ("page", "ticket", "none")


LINE = re.compile(r"(-?[\d.e]+)([+-])([\d.e]+)xN")


def series(replaced: dict[str, Any], minutes: int, every: int = 1) -> list[dict[str, str]]:
    """The healthy series with some replaced, for so many minutes with a value every few; None leaves one out."""
    both = {**CASES["healthy"], **replaced}
    count = str(minutes // every + 1)

    def values(said: str) -> str:
        if re.fullmatch(r"[\d.e]+", said):
            return f"{said}x{count}"
        if line := LINE.fullmatch(said):
            said = f"{line[1]}{line[2]}{float(line[3]) * every:.0f}xN"
        return said.replace("N", count)

    return [{"series": name, "values": values(str(value))} for name, value in both.items() if value is not None]


def firing(at: str, *names: str) -> dict[str, Any]:
    """These alerts fire at that time, and the one that always does; no other."""
    return {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": at,
        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted({*names, "Watchdog"})],
    }


def group(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """The case of one alert as promtool takes it."""
    labels = {"severity": ALERTS[name]["labels"]["severity"], **case.get("labels", {})}
    text = ", ".join(
        f"{key}={json.dumps(value)}" for key, value in {"alertname": name, "alertstate": "firing", **labels}.items()
    )
    expressions = [firing(case["at"], name, *case.get("also", []))]
    expressions += [firing(case["before"])] if "before" in case else []
    if "also" not in case or "labels" in case:
        expressions.append(
            {
                "expr": f'ALERTS{{alertname="{name}", alertstate="firing"}}',
                "eval_time": case["at"],
                "exp_samples": [{"labels": f"ALERTS{{{text}}}", "value": 1}],
            }
        )
    said = {"summary": case.get("says"), "runbook": f"docs/runbooks/{name}.md"}
    alerts = [
        {"eval_time": case["at"], "alertname": name, "exp_alerts": [{"exp_labels": labels, "exp_annotations": said}]}
    ]
    every = minutes(case.get("every", "1m"))
    return {
        "name": name,
        "interval": f"{every}m",
        "input_series": series(case["with"], minutes(case["at"]), every),
        "promql_expr_test": expressions,
        **({"alert_rule_test": alerts} if "says" in case else {}),
    }


def minutes(text: str) -> int:
    """A time of the cases."""
    return int(text.removesuffix("m"))


def promtool(folder: Path, tried: dict[str, Any]) -> None:
    """Have promtool try it; the rules are looked at as often as there are values."""
    path = folder / "test.yml"
    said = {"rule_files": [str(RULES)], "evaluation_interval": tried["interval"], "tests": [tried]}
    path.write_text(json.dumps(said), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def cases(name: str) -> list[dict[str, Any]]:
    """One or several of an alert."""
    said = CASES["alerts"][name]
    return said if isinstance(said, list) else [said]


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(("name", "case"), [(name, case) for name in sorted(CASES["alerts"]) for case in cases(name)])
def test_an_alert_fires_when_it_should_and_no_other_with_it(tmp_path: Path, name: str, case: dict[str, Any]) -> None:
    promtool(tmp_path, group(name, case))


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(("every", "hours"), [(1, 3), (5, 48)])
def test_all_are_silent_on_a_healthy_fleet(tmp_path: Path, every: int, hours: int) -> None:
    """Looked at all along, also where an alert has to last before it fires."""
    expressions = [firing(f"{at}m") for at in range(0, hours * 60, 15)]
    healthy = series({}, hours * 60, every)
    promtool(tmp_path, {"interval": f"{every}m", "input_series": healthy, "promql_expr_test": expressions})


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("name", sorted(CASES["planned"]))
def test_what_people_stopped_is_silent_for_as_long_as_they_said(tmp_path: Path, name: str) -> None:
    case = CASES["planned"][name]
    expressions = [firing(f"{at}m") for at in range(minutes(case["silent"]) + 1)]
    expressions.append(firing(case["at"], *case["fires"]))
    tried = series(case["with"], minutes(case["at"]))
    promtool(tmp_path, {"interval": "1m", "input_series": tried, "promql_expr_test": expressions})


def test_every_alert_has_a_test_a_page_and_a_severity() -> None:
    assert set(CASES["alerts"]) == set(ALERTS)
    pages = {path.stem for path in (PROJECT / "docs/runbooks").glob("*.md")} - {"README"}
    assert pages == set(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["labels"]["severity"] in SEVERITIES
        assert alert["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert alert["annotations"]["summary"]
        text = (PROJECT / f"docs/runbooks/{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n")
        assert re.findall(r"^\*\*(.*?)\*\*", text, re.MULTILINE) == ["What it means.", "How to look.", "What to do."]


def test_the_index_of_the_pages_names_each_with_its_severity() -> None:
    text = (PROJECT / "docs/runbooks/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\w+)]\(\1\.md\) \| (\w+) \|", text, re.MULTILINE))
    assert rows == {name: alert["labels"]["severity"] for name, alert in ALERTS.items()}


def test_alerts_ask_for_metrics_and_labels_that_somebody_shows() -> None:
    for name, alert in ALERTS.items():
        metricnames.check(alert["expr"], f"alert {name}")


def test_an_alert_tells_of_every_unit_that_a_role_runs() -> None:
    """What the node exporter is not told to watch could fail and nobody would hear of it."""
    tasks = yaml.safe_load((PROJECT / "roles/exporters/tasks/node.yml").read_text(encoding="utf-8"))
    (watched,) = (
        task["vars"]["__exporters_watched"] for task in tasks if "__exporters_watched" in task.get("vars", {})
    )
    run = {
        name
        for path in PROJECT.glob("roles/*/*/*.yml")
        for name in re.findall(
            r"^ +name: ([\w@.-]+)\.(?:service|timer)$", path.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {"patroni", "pgbackrest", "postgresql-storage"} <= run
    assert {name for name in run if not re.fullmatch("|".join(watched), name)} == {"systemd-journald"}


COMMAND = re.compile(r"`remails ([a-z-]+)(?: ([a-z-]+))?|playbooks/([a-z_]+\.yml)|\]\(([^)#]+)[)#]")


@pytest.mark.parametrize("page", sorted(path.name for path in (PROJECT / "docs/runbooks").glob("*.md")))
def test_a_page_names_commands_playbooks_and_pages_that_there_are(page: str) -> None:
    text = (PROJECT / "docs/runbooks" / page).read_text(encoding="utf-8")
    commands = metricnames.commands()
    for group_, command, playbook, link in COMMAND.findall(text):
        if group_:
            assert group_ in commands, f"{page}: remails {group_}"
            assert not (command and commands[group_]) or command in commands[group_], f"{page}: {group_} {command}"
        if playbook:
            assert (PROJECT / "playbooks" / playbook).exists(), f"{page}: {playbook}"
        if link and "://" not in link:
            assert (PROJECT / "docs/runbooks" / link).exists(), f"{page}: {link}"
