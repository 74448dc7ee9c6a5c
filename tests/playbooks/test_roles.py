"""What single roles do, where one can see it without a host: the rules of the firewall, and a database of somebody else."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from play import PROJECT, Ansible, program
from variables import ORDER, specs

from remails.db import Connection

RENDER = f"""
- name: Render
  hosts: all
  gather_facts: false
  roles:
    - {{role: firewall, tags: [never]}}  # only its variables
  tasks:
    - name: Rules
      ansible.builtin.template:
        src: {PROJECT}/roles/firewall/templates/nftables.conf.j2
        dest: "{{{{ folder }}}}/{{{{ inventory_hostname }}}}.nft"
        mode: "0600"
"""
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


def inventory(path: Path, hosts: dict[str, dict[str, Any]], groups: dict[str, list[str]]) -> Path:
    """An inventory of hosts that are this machine."""
    children = {group: {"hosts": dict.fromkeys(names)} for group, names in groups.items()}
    known = {name: LOCAL | variables for name, variables in hosts.items()}
    path.write_text(json.dumps({"all": {"hosts": known, "children": children}}), encoding="utf-8")
    return path


def written(
    ansible: Ansible, folder: Path, hosts: dict[str, dict[str, Any]], groups: dict[str, list[str]]
) -> dict[str, str]:
    """The rules of each host of an inventory."""
    there, playbook = inventory(folder / "hosts.yml", hosts, groups), folder / "render.yml"
    playbook.write_text(RENDER, encoding="utf-8")
    done = ansible("ansible-playbook", "--inventory", there, playbook, "--extra-vars", f"folder={folder}")
    assert done.returncode == 0, done.stdout
    return {name: (folder / f"{name}.nft").read_text(encoding="utf-8") for name in hosts}


@pytest.fixture
def rules(ansible: Ansible, tmp_path: Path) -> dict[str, str]:
    """The rules of two hosts that have IPv4 and IPv6."""
    hosts = {
        "app": {"ansible_host": "192.0.2.11", "remails_more_addresses": ["2001:db8::11"]},
        "out": {"ansible_host": "192.0.2.21", "remails_address": "2001:db8::21"},
    }
    every = {"firewall_control": ["198.51.100.1", "2001:db8:1::/64"], "api_listen": "[::]:8000"}
    groups = {
        **{word: ["app"] for word in ("api", "inbound", "bus", "periodic", "database")},
        **{word: ["out"] for word in ("outbound", "ipagent")},
    }
    return written(ansible, tmp_path, {name: every | own for name, own in hosts.items()}, groups)


def test_firewall_lets_in_who_is_in_the_process_table(rules: dict[str, str]) -> None:
    """By IPv4 and by IPv6, each from the addresses it has."""
    for line in (
        'ip saddr { 198.51.100.1 } tcp dport { 22 } accept comment "control to all"',
        'ip6 saddr { 2001:db8:1::/64 } tcp dport { 22 } accept comment "control to all"',
        'ip saddr { 0.0.0.0/0 } tcp dport { 465, 587, 2525 } accept comment "clients to inbound"',
        'ip6 saddr { ::/0 } tcp dport { 8000 } accept comment "clients to api"',
        'ip6 saddr { 2001:db8::21 } tcp dport { 5561, 5562 } accept comment "outbound to bus"',
        'ip saddr { 192.0.2.11 } tcp dport { 5432 } accept comment "api to database"',
        'ip6 saddr { 2001:db8::11 } tcp dport { 5432 } accept comment "api to database"',
        'oif != lo tcp dport 25 reject with tcp reset comment "only outbound delivers"',
    ):
        assert f"    {line}\n" in rules["app"]
    assert [line.split("comment")[1] for line in rules["out"].splitlines() if "dport {" in line] == [
        ' "control to all"',
        ' "control to all"',
    ]
    assert "dport 25" not in rules["out"]


@pytest.fixture
def fronted(ansible: Ansible, tmp_path: Path) -> dict[str, str]:
    """The rules of two edges and of what is behind them."""
    hosts: dict[str, dict[str, Any]] = {
        name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("edge1", "edge2", "app"), 1)
    }
    hosts["edge2"]["remails_more_addresses"] = ["2001:db8::2"]
    every = {"firewall_control": ["198.51.100.1"], "firewall_monitoring": ["198.51.100.9"]}
    groups = {"edge": ["edge1", "edge2"], "api": ["app"], "inbound": ["app"]}
    return written(ansible, tmp_path, {name: every | own for name, own in hosts.items()}, groups)


def test_with_edges_in_front_nobody_else_comes_to_what_is_behind(fronted: dict[str, str]) -> None:
    doors = [line.strip() for line in fronted["app"].splitlines() if re.search(r"to (api|inbound)\"", line)]
    assert doors == [
        'ip saddr { 192.0.2.1, 192.0.2.2 } tcp dport { 465, 587, 2525 } accept comment "edge to inbound"',
        'ip6 saddr { 2001:db8::2 } tcp dport { 465, 587, 2525 } accept comment "edge to inbound"',
        'ip saddr { 192.0.2.1, 192.0.2.2 } tcp dport { 8000 } accept comment "edge to api"',
        'ip6 saddr { 2001:db8::2 } tcp dport { 8000 } accept comment "edge to api"',
    ]
    for line in (
        'ip saddr { 0.0.0.0/0 } tcp dport { 80, 443, 465, 587, 2525 } accept comment "clients to edge"',
        'ip saddr { 198.51.100.9 } tcp dport { 8405 } accept comment "monitoring to edge"',
        'ip saddr { 192.0.2.2 } meta l4proto 112 accept comment "edge to edge"',
        'ip6 saddr { 2001:db8::2 } meta l4proto 112 accept comment "edge to edge"',
    ):
        assert f"    {line}\n" in fronted["edge1"]
    assert "clients" not in fronted["app"]


@pytest.mark.needs("nft")
def test_nftables_takes_the_rules(rules: dict[str, str], fronted: dict[str, str]) -> None:
    for text in (*rules.values(), *fronted.values()):
        command = ["unshare", "--user", "--map-root-user", "--net", "nft", "--check", "--file", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def managed(ansible: Ansible, folder: Path, ports: list[int]) -> "subprocess.CompletedProcess[str]":
    """Run the role postgresql for a database on these ports of the loopback interface."""
    hosts = ",".join("127.0.0.1" for _ in ports)
    dsn = f"host={hosts} port={','.join(map(str, ports))} dbname=remails target_session_attrs=read-write"
    there = inventory(folder / "hosts.yml", {"app": {"remails_dsn": dsn, "postgresql_memory": 1}}, {"api": ["app"]})
    playbook = folder / "database.yml"
    playbook.write_text(
        "- name: Database\n  hosts: all\n  gather_facts: false\n  roles: [postgresql]\n", encoding="utf-8"
    )
    return ansible("ansible-playbook", "--inventory", there, playbook, "--extra-vars", "postgresql_patience=1")


def test_database_of_somebody_else_is_reached_by_one_of_its_hosts(ansible: Ansible, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and does not listen
        ports = [dead.getsockname()[1], alive.getsockname()[1]]
        assert (done := managed(ansible, tmp_path, ports)).returncode == 0, done.stdout
        failed = managed(ansible, tmp_path, ports[:1])
    assert failed.returncode != 0
    assert "app reaches no host of remails_dsn; let its firewall accept this host." in " ".join(failed.stdout.split())


@pytest.mark.parametrize(
    ("example", "host", "listens", "clients"),
    [
        ("single", "relay", "'localhost'", ["127.0.0.1"]),
        ("fleet", "data1", "'localhost,10.0.0.31'", [f"10.0.0.{number}" for number in (11, 12, 21, 22, 23)]),
    ],
)
def test_postgresql_listens_to_the_hosts_of_the_process_table(
    ansible: Ansible, tmp_path: Path, example: str, host: str, listens: str, clients: list[str]
) -> None:
    template = f"{PROJECT}/roles/postgresql/templates"
    playbook = tmp_path / "render.yml"
    playbook.write_text(
        f"""
- name: Render
  hosts: {host}
  gather_facts: false
  connection: local
  roles:
    - {{role: postgresql, tags: [never]}}  # only its variables
  tasks:
    - name: Files
      ansible.builtin.template:
        src: "{template}/{{{{ item }}}}.j2"
        dest: "{tmp_path}/{{{{ item }}}}"
        mode: "0600"
      loop: [remails.conf, pg_hba.conf]
      vars:
        ansible_python_interpreter: {sys.executable}
""",
        encoding="utf-8",
    )
    said = ("--extra-vars", "postgresql_memory=1024")
    done = ansible("ansible-playbook", "--inventory", f"inventory/{example}", playbook, *said)
    assert done.returncode == 0, done.stdout
    assert f"listen_addresses = {listens}\n" in (tmp_path / "remails.conf").read_text(encoding="utf-8")
    lines = (tmp_path / "pg_hba.conf").read_text(encoding="utf-8").splitlines()
    remote = [line.split() for line in lines if line.startswith("hostssl")]
    assert [words[3].removesuffix("/32") for words in remote if words[2] == "remails"] == clients
    assert {words[4] for words in remote} == {"scram-sha-256"}
    peers = [words[3].removesuffix("/32") for words in remote if words[2] == "replicator"]
    assert peers == ([] if example == "single" else ["10.0.0.31", "10.0.0.32", "10.0.0.33"])
    assert not any("trust" in line or " all " in line.replace("local   all      postgres", "") for line in lines[2:])


def test_no_log_has_what_a_statement_was_given(conn: Connection) -> None:
    """A slow one is logged, and without this its content is mail. LOG is said to the client here, as the log has it."""
    text = (PROJECT / "roles/postgresql/templates/remails.conf.j2").read_text(encoding="utf-8")
    for name, value in re.findall(r"(?m)^(log_\w+) = (\S+)$", text):
        if name != "log_line_prefix":
            conn.execute(f"SET LOCAL {name} = {value}")
    said: list[str] = []
    conn.add_notice_handler(lambda notice: said.append(f"{notice.message_primary} {notice.message_detail}"))
    conn.execute("SET LOCAL client_min_messages = 'log'")
    conn.execute("SET LOCAL log_min_duration_statement = 0")
    conn.execute("SELECT length(%s)", ["the words of a mail"])
    assert any("SELECT length($1)" in line for line in said)
    assert "the words of a mail" not in " ".join(said)


@pytest.mark.parametrize("word", ["certificates_renew", "certificates_revoke"])
def test_a_certificate_that_nobody_issues_is_not_revoked_in_silence(
    ansible: Ansible, tmp_path: Path, word: str
) -> None:
    role = {"ansible.builtin.include_role": {"name": "certificates", "tasks_from": "issue"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [role]}
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    there = inventory(tmp_path / "hosts.yml", {"app": {}}, {"periodic": ["app"], "api": ["app"]})
    words = ("ansible-playbook", "--inventory", there, tmp_path / "play.yml")
    assert (done := ansible(*words)).returncode == 0, done.stdout
    done = ansible(*words, "--extra-vars", f"{word}=true")
    assert done.returncode == 2
    assert "No authority issues the certificate" in " ".join(done.stdout.split())


@pytest.mark.needs("apt-config")
@pytest.mark.parametrize("named", [[], ["^postgresql", "^haproxy$"]])
def test_what_is_left_to_a_person_is_what_is_named(ansible: Ansible, tmp_path: Path, named: list[str]) -> None:
    """An empty word would be a pattern that fits every package."""
    tasks = yaml.safe_load((PROJECT / "roles/base/tasks/main.yml").read_text(encoding="utf-8"))
    (content,) = [task["ansible.builtin.copy"]["content"] for task in tasks if "52remails" in str(task)]
    task = {"ansible.builtin.copy": {"dest": f"{tmp_path}/apt.conf", "content": content, "mode": "0600"}}
    play = {"hosts": "all", "gather_facts": False, "vars": {"base_upgrades_by_hand": named}, "tasks": [task]}
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    there = inventory(tmp_path / "hosts.yml", {"app": {}}, {"api": ["app"]})
    assert (done := ansible("ansible-playbook", "--inventory", there, tmp_path / "play.yml")).returncode == 0, (
        done.stdout
    )
    done = subprocess.run(
        ["apt-config", "dump", "--format", "%f %v%n", "Unattended-Upgrade::Package-Blacklist"],
        env=os.environ | {"APT_CONFIG": f"{tmp_path}/apt.conf"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"(?m)^Unattended-Upgrade::Package-Blacklist:: (.*)$", done.stdout) == named


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ("", ["data1", "data2", "data3"]),
        ("a1, started, data1, https://10.0.0.31:2380\nb2, unstarted, , https://10.0.0.32:2380", ["data1", "data2"]),
    ],
)
def test_who_joins_etcd_names_its_members_and_no_other(
    ansible: Ansible, tmp_path: Path, listed: str, named: list[str]
) -> None:
    """etcd refuses a member that counts more than there are, as when two of three are replaced, one after the other."""
    task = {
        "ansible.builtin.template": {
            "src": f"{PROJECT}/roles/postgresql/templates/etcd.j2",
            "dest": f"{tmp_path}/etcd",
            "mode": "0600",
        }
    }
    roles = [{"role": "postgresql", "tags": ["never"]}]  # only its variables
    said = LOCAL | {"etcd_state": "existing", "etcd_listed": listed, "postgresql_memory": 1024}
    play = {"hosts": "data2", "gather_facts": False, "vars": said, "roles": roles, "tasks": [task]}
    (tmp_path / "render.yml").write_text(json.dumps([play]), encoding="utf-8")
    done = ansible("ansible-playbook", "--inventory", "inventory/fleet", tmp_path / "render.yml")
    assert done.returncode == 0, done.stdout
    (line,) = re.findall(r"(?m)^ETCD_INITIAL_CLUSTER=(.*)$", (tmp_path / "etcd").read_text(encoding="utf-8"))
    assert line.split(",") == [f"{name}=https://10.0.0.3{name[-1]}:2380" for name in named]


@pytest.mark.needs("unbound-checkconf")
def test_unbound_takes_its_settings(ansible: Ansible, tmp_path: Path) -> None:
    there = inventory(tmp_path / "hosts.yml", {"out": {}}, {"outbound": ["out"]})
    playbook, written = tmp_path / "render.yml", tmp_path / "unbound.conf"
    template = f"{PROJECT}/roles/resolver/templates/unbound.conf.j2"
    task = {"ansible.builtin.template": {"src": template, "dest": str(written), "mode": "0600"}}
    roles = [{"role": "resolver", "tags": ["never"]}]  # only its variables
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": roles, "tasks": [task]}]))
    for more in (
        {},
        {"resolver_forward": ["192.0.2.53", "2001:db8::53"], "resolver_unsigned": ["test", "113.0.203.in-addr.arpa"]},
    ):
        done = ansible("ansible-playbook", "--inventory", there, playbook, "--extra-vars", json.dumps(more))
        assert done.returncode == 0, done.stdout
        done = subprocess.run(["unbound-checkconf", str(written)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("forward-addr: 2001:db8::53" in written.read_text(encoding="utf-8")) == bool(more)


def known_peers(ansible: Ansible, folder: Path, *arguments: str) -> dict[str, str]:
    """Run what makes and exchanges the certificates of the backups; which of them each host knows, with its own."""
    hosts = {name: {"ansible_host": f"192.0.2.{number}"} for number, name in enumerate(("data1", "data2", "watch"), 1)}
    groups = {"database": ["data1", "data2"], "backups": ["watch"]}
    (folder / "systemctl").write_text("#!/bin/sh\necho LoadState=loaded\necho ActiveState=active\n", encoding="utf-8")
    (folder / "systemctl").chmod(0o755)
    role = {"ansible.builtin.include_role": {"name": "backups", "tasks_from": "certificate"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [role]}
    (folder / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    done = ansible(
        *("ansible-playbook", "--inventory", inventory(folder / "hosts.yml", hosts, groups), folder / "play.yml"),
        *("--extra-vars", json.dumps({"__backups_keys": f"{folder}/{{{{ inventory_hostname }}}}"}), *arguments),
        PATH=f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stdout
    return {name: (folder / name / "peers.crt").read_text(encoding="ascii") for name in hosts}


@pytest.mark.needs("openssl")
@pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners need root")
def test_a_host_that_is_not_reached_stays_known_to_those_that_are(ansible: Ansible, tmp_path: Path) -> None:
    """With a dead host, site.yml goes on for the others (--limit), also when another's certificate has changed."""
    own = {
        name: tmp_path / name / f"192.0.2.{number}.crt" for number, name in enumerate(("data1", "data2", "watch"), 1)
    }
    before = known_peers(ansible, tmp_path)
    dead = own["data2"].read_text(encoding="ascii")
    assert before["watch"] == own["data1"].read_text(encoding="ascii") + dead
    own["data1"].unlink()
    (tmp_path / "watch/peers/data9.crt").write_text("of one that is gone", encoding="ascii")
    after = known_peers(ansible, tmp_path, "--limit", "!data2")
    renewed = own["data1"].read_text(encoding="ascii")
    assert after == {**before, "watch": renewed + dead}
    assert renewed + dead != before["watch"]


def test_of_another_host_only_the_inventory_is_asked() -> None:
    """What a run has found out about a host is not there when the run leaves the host out, a dead one for example."""
    inventory_says = {name for role in ORDER for name in specs(role)["main"]["options"]} | {"inventory_hostname"}
    read = re.compile(
        r"hostvars\[(?!inventory_hostname)[^\]]+\]\.(\w+)([^}\n]*)|extract', hostvars\) \| map\(attribute='(\w+)([^}\n]*)"
    )
    found = 0
    for path in [*PROJECT.glob("roles/*/*/*"), *PROJECT.glob("playbooks/**/*")]:
        if path.suffix not in (".yml", ".j2"):
            continue
        for task in re.split(r"(?m)^ *- name: ", path.read_text(encoding="utf-8")):
            for match in read.finditer(task):
                found += 1
                name, rest = match[1] or match[3], match[2] or match[4] or ""
                assert name in inventory_says or "default" in rest or f".{name} is defined" in task, (
                    f"{path.relative_to(PROJECT)}: {match[0]}"
                )
    assert found > 5


def test_what_belongs_to_no_group_of_a_host_ends_in_order() -> None:
    """What starts a service before it, and who sends before who has its addresses."""
    former_units = program("filter_plugins/fleet.py").former_units
    enabled = [
        *("remails-api.service", "remails-api.socket", "remails-certificates.timer", "remails-challenges.socket"),
        *("remails-ipagent.service", "remails-outbound.service", "remails-backup-full.timer", "remails-bus.service"),
    ]
    former = ["remails-api.socket", "remails-challenges.socket", "remails-api.service", "remails-certificates.timer"]
    assert former_units(enabled, ["bus", "outbound", "ipagent"]) == former
    assert former_units(enabled, ["bus", "api", "edge"]) == ["remails-outbound.service", "remails-ipagent.service"]
    assert former_units(enabled, ["bus", "api", "inbound", "outbound", "ipagent"]) == []
    assert former_units(["remails-bus.service", "remails-inbound-smtps.socket", "remails-backup-wal.timer"], []) == [
        "remails-inbound-smtps.socket",
        "remails-bus.service",
    ]
