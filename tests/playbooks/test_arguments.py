"""What an operator says to the playbooks: a word that is missing or wrong is told in a sentence, before anything."""

import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml
from play import PROJECT, Ansible, program

FLEET = "app1, app2, edge1, edge2, out1, out2, out3"


def _said(ansible: Ansible, *words: str) -> str:
    """What a playbook that fails says, on one line."""
    done = ansible("ansible-playbook", *words)
    assert done.returncode == 2
    assert "unreachable=0    failed=1" in done.stdout
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("playbook", ["playbooks/drain.yml", "playbooks/undrain.yml"])
def test_a_host_has_to_be_named(ansible: Ansible, playbook: str) -> None:
    said = _said(ansible, "--inventory", "inventory/fleet", playbook)
    assert f"Say which host, for example: ansible-playbook {playbook} -e host=app1. There are {FLEET}." in said


@pytest.mark.parametrize("host", ["out4", "all", "data1"])
def test_it_has_to_be_one_of_ours(ansible: Ansible, host: str) -> None:
    said = _said(ansible, "--inventory", "inventory/fleet", "playbooks/drain.yml", "-e", f"host={host}")
    assert f"There is no host {host}. There are {FLEET}." in said


def test_the_only_host_of_a_group_is_not_emptied_unasked(ansible: Ansible) -> None:
    said = _said(ansible, "--inventory", "inventory/single", "playbooks/drain.yml", "-e", "host=relay")
    assert "relay is the only host of the group bus, so nobody would do its work." in said


@pytest.mark.parametrize(
    ("inventory", "limit", "why"),
    [
        ("single", "relay", "relay is the only host of the group bus, so nobody would do its work."),
        ("fleet", "!out1", "out1 is left out by --limit. Nothing was changed."),
    ],
)
def test_a_limit_lets_no_check_out(ansible: Ansible, inventory: str, limit: str, why: str) -> None:
    """Ansible's own localhost is in no limit, so what is looked at there would not be."""
    host = "relay" if inventory == "single" else "out1"
    words = ("playbooks/drain.yml", "--extra-vars", f"host={host}", "--limit", limit)
    assert why in _said(ansible, "--inventory", f"inventory/{inventory}", *words)


@pytest.mark.parametrize(
    ("playbook", "group"), [("backup", "backups"), ("switchover", "database"), ("upgrade-postgresql", "database")]
)
def test_nothing_to_do_is_no_success(ansible: Ansible, tmp_path: Path, playbook: str, group: str) -> None:
    there = tmp_path / "hosts.yml"
    there.write_text("all: {hosts: {app1: {}}}\n", encoding="utf-8")
    said = _said(ansible, "--inventory", there, f"playbooks/{playbook}.yml")
    assert f"The inventory has no host in the group {group}. Nothing was changed." in said
    said = _said(ansible, "--inventory", "inventory/fleet", f"playbooks/{playbook}.yml", "--limit", "app1")
    assert f"This run leaves out (--limit) every host of the group {group}. Nothing was changed." in said


def _restore(ansible: Ansible, folder: Path, stops: list[int], *words: str, **groups: list[str]) -> tuple[int, str]:
    """What restore.yml says, up to where it would look at the database, with a repository of backups that ended then."""
    plays = yaml.safe_load((PROJECT / "playbooks/restore.yml").read_text(encoding="utf-8"))
    names = [play["name"] for play in plays]
    (folder / "restore.yml").write_text(
        json.dumps(plays[names.index("What is wanted") : names.index("What is there")]), encoding="utf-8"
    )
    groups = {"database": ["data1"], "backups": ["watch"], "periodic": ["app1"]} | groups
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    local["backups_independent_repository"] = "none"
    hosts = {"hosts": dict.fromkeys(("data1", "watch", "app1"), local)}
    children = {"children": {group: {"hosts": dict.fromkeys(names)} for group, names in groups.items()}}
    (folder / "hosts.yml").write_text(json.dumps({"all": hosts | children}), encoding="utf-8")
    info = json.dumps([{"backup": [{"timestamp": {"stop": stop}} for stop in stops]}])
    programs = {"pgbackrest": f"echo '{info}'", "runuser": '[ "$1 $2 $3" = "-u postgres --" ] && shift 3 && exec "$@"'}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    done = ansible(
        *("ansible-playbook", "--inventory", folder / "hosts.yml", folder / "restore.yml", *words),
        PATH=f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    return done.returncode, " ".join(done.stdout.split())


@pytest.mark.parametrize("file", ["docs/backups.md", "playbooks/restore.yml"])
def test_a_restore_to_a_moment_is_said_as_the_page_says(ansible: Ansible, tmp_path: Path, file: str) -> None:
    """The words as the shell gives them on."""
    text = (PROJECT / file).read_text(encoding="utf-8")
    (line,) = re.findall(r"ansible-playbook -i inventory/fleet playbooks/restore.yml (.*restore_to=.*)", text)
    status, said = _restore(ansible, tmp_path, [1], *shlex.split(re.sub(r"\d{4}-", "2025-", line)))
    assert status == 0, said


TOMORROW = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))


@pytest.mark.parametrize(
    ("stops", "words", "groups", "why"),
    [
        ([], "", {}, "The repository of watch has no backup; there may be an independent copy: -e restore_from=independent"),
        ([2000000000], "restore_to=2026-11-25T17:03:12Z", {}, "its oldest backup ended at 2033-05-18T03:33:20+00:00"),
        ([1], f"restore_to={TOMORROW}", {}, "which is still to come. Nothing was changed."),
        ([1], "restore_to=2026-11-25", {}, "Say restore_to with its time zone, like -e restore_to=2026-11-25T17:03:12+00"),
        ([1], "restore_from=independent", {}, "There is no independent place (backups_independent_repository is none)."),
        ([1], "", {"backups": []}, "It takes the first host of the group backups, and there is none. Nothing was changed."),
        ([1], "", {"database": []}, "It takes the first host of the group database, and there is none."),
    ],
)  # fmt: skip
def test_what_cannot_be_restored_is_told_while_the_database_is_there(
    ansible: Ansible, tmp_path: Path, stops: list[int], words: str, groups: dict[str, list[str]], why: str
) -> None:
    status, said = _restore(ansible, tmp_path, stops, "--extra-vars", f"restore_over=yes {words}", **groups)
    assert status == 2
    assert why in said


def test_a_restore_does_not_leave_out_who_begins_it(ansible: Ansible, tmp_path: Path) -> None:
    status, said = _restore(ansible, tmp_path, [1], "--limit", "!data1")
    assert status == 2
    assert (
        "the first host of the group database, data1, which this run leaves out (--limit); put one that lives first."
        in said
    )


def test_a_table_is_as_wide_as_what_stands_in_it() -> None:
    table = program("filter_plugins/table.py").table
    rows = [{"ip": "192.0.2.1", "last_error": None}, {"ip": "2001:db8::1", "last_error": "gone"}]
    assert table(rows, ["ip", "last_error"]).split("\n") == [
        "IP           LAST ERROR",
        "192.0.2.1    -",
        "2001:db8::1  gone",
    ]
