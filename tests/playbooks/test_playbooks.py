"""The playbooks and roles, as Ansible and ansible-lint read them."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from play import PROJECT, Ansible

PLAYBOOKS = sorted(path.name for path in (PROJECT / "playbooks").glob("*.yml"))
PASSING = {"database_answers", "database_before", "major_leads", "upgrade_leads", "upgrade_follows"}
"""Groups that are made while a playbook runs, or only for one."""
INVENTORIES = ("single", "fleet")


def test_ansible_lint_has_nothing_to_say(ansible: Ansible) -> None:
    done = ansible(
        "ansible-lint", "--offline", "--profile", "production", "--strict", "playbooks", "roles", "inventory"
    )
    assert done.returncode == 0, done.stdout


def test_ansible_reads_every_playbook(ansible: Ansible) -> None:
    paths = [f"playbooks/{name}" for name in PLAYBOOKS]
    done = ansible("ansible-playbook", "--inventory", "inventory/fleet", "--syntax-check", *paths)
    assert done.returncode == 0, done.stdout
    assert "site.yml" in PLAYBOOKS
    unknown = re.findall(r"\[WARNING]: Could not match supplied host pattern, ignoring: (\S+)", done.stdout)
    assert set(unknown) <= PASSING
    assert done.stdout.count("WARNING") == len(unknown)


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_example_has_the_layout_of_a_vault_and_no_secret(inventory: str) -> None:
    folder = PROJECT / "inventory" / inventory / "group_vars/all"
    assert sorted(path.name for path in folder.iterdir()) == ["main.yml", "vault.yml.example"]
    example = (folder / "vault.yml.example").read_text(encoding="utf-8")
    values = re.findall(r"^\w+: (.*)$", example, re.MULTILINE)
    assert all("…" in value or value == "|" for value in values)


def test_secrets_are_never_shown() -> None:
    """A task that has a secret in it says no_log."""
    secret = re.compile(
        r"remails_(?:database_password|pepper|encryption_keys|provider_token|bus_\w+_key)\b|postgresql_cluster_secret|_tls_key\b|vars', "
        r"|backups_(?:cipher_pass|independent_(?:password|ssh_key|s3_credentials))\b|__backups_credentials"
    )
    tasks = 0
    for path in [*PROJECT.glob("roles/*/tasks/*.yml"), *PROJECT.glob("playbooks/*.yml")]:
        for task in re.split(r"(?m)^ *- name: ", path.read_text(encoding="utf-8")):
            if secret.search(re.sub(r"is (?:not )?defined|#.*", "", task)):
                tasks += 1
                assert "no_log: true" in task, f"{path.relative_to(PROJECT)}: {task.splitlines()[0]}"
    assert tasks >= 3


def test_no_word_of_a_secret_is_a_command_s_argument() -> None:
    for path in PROJECT.glob("roles/*/tasks/*.yml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"argv:|command:|cmd:", line):
                assert not re.search(r"password|pepper|encryption_keys|token", line), f"{path}: {line}"


def test_service_roles_are_short() -> None:
    for word in ("bus", "outbound", "periodic", "ipagent", "api", "inbound"):
        tasks = Path(PROJECT, "roles", word, "tasks/main.yml").read_text(encoding="utf-8")
        assert "tasks_from: service" in tasks
        assert f"remails_service: {word}\n" in tasks
        assert len(tasks.splitlines()) < 60


def test_a_database_that_moves_is_moved_before_anything_else(ansible: Ansible, secrets: Path, tmp_path: Path) -> None:
    """site.yml would let services go to the new hosts, which have no mail yet."""
    more = tmp_path / "more.yml"
    more.write_text("database_before: {hosts: {data9: {ansible_host: 192.0.2.39}}}\n", encoding="utf-8")
    done = ansible(
        *("ansible-playbook", "--inventory", "inventory/fleet", "--inventory", more, "playbooks/site.yml"),
        *("--extra-vars", f"@{secrets}"),
    )
    assert done.returncode != 0
    assert "Move the database by playbooks/upgrade-postgresql-major.yml first" in " ".join(done.stdout.split())
    assert "unreachable=1" not in done.stdout


ETCDCTL = """#!{python}
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[sys.argv.index("member") + 1:]) + "\\n")
if "list" in sys.argv:
    print("a1, started, data1, https://10.0.0.31:2380, https://10.0.0.31:2379, false")
    print("a3, started, data3, https://10.0.0.33:2380, https://10.0.0.33:2379, false")
    print({line!r})
"""


@pytest.mark.parametrize(
    "line",
    [
        "b2, started, data2, https://10.0.0.99:2380, https://10.0.0.99:2379, false",  # the dead one, which had another address
        "b2, unstarted, , https://10.0.0.32:2380, , false",  # of a run before, which ended too soon
    ],
)
def test_a_new_member_is_announced_as_often_as_it_takes(ansible: Ansible, tmp_path: Path, line: str) -> None:
    log, program, playbook = tmp_path / "log", tmp_path / "etcdctl", tmp_path / "announce.yml"
    program.write_text(ETCDCTL.format(python=sys.executable, log=str(log), line=line), encoding="utf-8")
    program.chmod(0o755)
    play = {
        "hosts": "data1",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.include_role": {"name": "postgresql", "tasks_from": "announce"}}],
        "vars": {"postgresql_announced": "data2", "ansible_connection": "local", "postgresql_cluster_secret": "s" * 48},
    }
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    done = ansible(
        *("ansible-playbook", "--inventory", "inventory/fleet", playbook),
        PATH=f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout
    assert log.read_text(encoding="utf-8").splitlines() == [
        "list",
        "remove b2",
        "add data2 --peer-urls=https://10.0.0.32:2380",
    ]


def test_a_playbook_asks_for_nothing_that_only_a_role_knows() -> None:
    """A role's default is not there outside of the role: what an inventory leaves out would be taken for something else."""
    known = {
        name
        for path in PROJECT.glob("roles/*/defaults/main.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if (name := line.partition(":")[0]).isidentifier()
    }
    also = {"resolver_enabled", "exporters_enabled", "firewall_monitoring", "remails_settings"}  # with the same default
    for path in [*PROJECT.glob("playbooks/*.yml"), *PROJECT.glob("playbooks/tasks/*.yml")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            said = re.sub(r"#.*|^\s*\w+:", "", line)
            assert not {*re.findall(r"\w+", said)} & {*known} - also, f"{path.name}: {line}"
    assert "postgresql_mode" in known


@pytest.mark.parametrize(
    ("recovers", "third", "why"),
    [
        ("f", "streaming", "data2 leads the database; switch over to another member first"),
        ("t", "stopped", "Not every member of the database is well"),
    ],
)
def test_a_database_host_is_rebooted_only_as_one_of_three_that_are_well(
    ansible: Ansible, tmp_path: Path, recovers: str, third: str, why: str
) -> None:
    members = [
        {"Member": "data1", "Role": "Leader", "State": "running"},
        {"Member": "data2", "Role": "Sync Standby", "State": "streaming"},
        {"Member": "data3", "Role": "Replica", "State": third},
    ]
    for name, answer in {"psql": recovers, "patronictl": json.dumps(members)}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    done = ansible(
        *("ansible-playbook", "--inventory", "inventory/fleet", "playbooks/reboot.yml", "--extra-vars", "host=data2"),
        *("--extra-vars", "ansible_connection=local ansible_become=false"),
        PATH=f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert why in said
    assert "Nothing was changed" in said
    assert "Reboot it" not in said


PATRONICTL = """#!{python}
import json, pathlib, sys
file = pathlib.Path({file!r})
said = json.loads(file.read_text())
if "switchover" in sys.argv:
    new = sys.argv[sys.argv.index("--candidate") + 1]
    for member in said["members"]:
        member["Role"] = "Leader" if member["Member"] == new else "Sync Standby"
    said["switched"] = sys.argv[1:]
    file.write_text(json.dumps(said))
print(json.dumps(said["members"]))
"""


def cluster(folder: Path, roles: dict[str, str]) -> Path:
    """A `patronictl` in a folder that knows these members, all of them well; the file in which it keeps them."""
    members = [{"Member": name, "Role": role, "State": "streaming"} for name, role in roles.items()]
    file, program = folder / "members.json", folder / "patronictl"
    file.write_text(json.dumps({"members": members}), encoding="utf-8")
    program.write_text(PATRONICTL.format(python=sys.executable, file=str(file)), encoding="utf-8")
    program.chmod(0o755)
    return file


def without(dead: str, folder: Path) -> tuple[object, ...]:
    """Arguments for the example fleet, on this machine, with one host that does not answer."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = dict.fromkeys(("data1", "data2", "data3"), local)
    hosts[dead] = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": "1"}
    more = folder / "more.yml"
    more.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    return "--inventory", "inventory/fleet", "--inventory", more, "--extra-vars", "ansible_become=false"


@pytest.mark.needs("ssh")
@pytest.mark.parametrize("dead", ["data1", "data3"])
def test_another_host_leads_though_one_is_down(ansible: Ansible, tmp_path: Path, dead: str) -> None:
    alive = "data3" if dead == "data1" else "data1"
    file = cluster(tmp_path, {"data2": "Leader", alive: "Sync Standby"})
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = ansible("ansible-playbook", *without(dead, tmp_path), "playbooks/switchover.yml", PATH=path)
    assert done.returncode == 0, done.stdout
    switched = json.loads(file.read_text(encoding="utf-8"))["switched"]
    assert switched[switched.index("--candidate") + 1] == alive
    assert switched[switched.index("--leader") + 1] == "data2"


@pytest.mark.needs("ssh")
def test_nobody_switches_over_what_does_not_answer(ansible: Ansible, tmp_path: Path) -> None:
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    (tmp_path / "patronictl").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "patronictl").chmod(0o755)
    done = ansible("ansible-playbook", *without("data1", tmp_path), "playbooks/switchover.yml", PATH=path)
    assert done.returncode != 0
    assert "No host of the database answers. Nothing was changed." in " ".join(done.stdout.split())


@pytest.mark.parametrize("limit", [(), ("--limit", "!data1")])
@pytest.mark.needs("ssh")
def test_no_upgrade_begins_with_a_member_down(ansible: Ansible, tmp_path: Path, limit: tuple[str, ...]) -> None:
    """Each member restarts in it, and two of three have to see each other."""
    cluster(tmp_path, {"data2": "Leader", "data3": "Sync Standby"})
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = ansible(
        "ansible-playbook", *without("data1", tmp_path), "playbooks/upgrade-postgresql.yml", *limit, PATH=path
    )
    assert done.returncode != 0
    assert "Lists of packages" not in done.stdout
    assert ("Not every member of the database is well" in " ".join(done.stdout.split())) == bool(limit)
