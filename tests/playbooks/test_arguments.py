"""What an operator says to the playbooks for one host: a name that is missing or wrong is told in a sentence, before anything."""

import importlib.util

import pytest
from play import PROJECT, Ansible

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


def test_a_table_is_as_wide_as_what_stands_in_it() -> None:
    spec = importlib.util.spec_from_file_location("table", PROJECT / "filter_plugins/table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [{"ip": "192.0.2.1", "last_error": None}, {"ip": "2001:db8::1", "last_error": "gone"}]
    assert module.table(rows, ["ip", "last_error"]).split("\n") == [
        "IP           LAST ERROR",
        "192.0.2.1    -",
        "2001:db8::1  gone",
    ]
