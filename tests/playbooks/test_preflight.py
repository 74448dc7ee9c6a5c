"""Mistakes in an inventory, and the sentence that each gets before anything is touched."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Issued
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from play import Ansible, program

preflight = program("filter_plugins/preflight.py")

KEY = "k" * 40
COMMON: dict[str, Any] = {
    "remails_hostname": "relay.example.com",
    "firewall_control": ["192.0.2.1"],
    "remails_settings": {},
    **{f"remails_{name}": "secret" for name in ("database_password", "encryption_keys", "pepper")},
    **{f"remails_{name}": KEY for name in ("bus_server_key", "bus_client_key", "bus_server_public_key")},
    "remails_bus_client_public_keys": [KEY],
    "postgresql_cluster_secret": KEY,
    "ipagent_pools": [{"name": "shared", "default": True}, {"name": "acme"}],
    "ipagent_addresses": [
        {"ip": "203.0.113.11", "pool": "shared", "ptr_name": "out11.example.com", "preferred_host": "out1"},
        {"ip": "203.0.113.21", "pool": "acme", "ptr_name": "out21.example.com"},
    ],
}


GOOD = Authority().issue("relay.example.com")


def key_of(one: Issued) -> str:
    """The key of a certificate, in PEM."""
    return one.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


class Inventory:
    """An inventory without a mistake, to make one in."""

    def __init__(self) -> None:
        app, out = ["app1", "app2"], ["out1", "out2"]
        self.groups = {
            "all": [*app, *out, "data1"],
            **{word: [*app] for word in ("api", "inbound", "bus", "periodic")},
            "outbound": [*out],
            "ipagent": [*out],
            "database": ["data1"],
        }
        self.hosts = {
            name: copy.deepcopy(COMMON) | {"ansible_host": f"10.0.0.{number}"}
            for number, name in enumerate(self.groups["all"], 1)
        }

    def set(self, **variables: Any) -> None:
        """Give every host a variable."""
        for host in self.hosts.values():
            host.update(copy.deepcopy(variables))

    def each(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change every host."""
        for host in self.hosts.values():
            change(host)

    def cluster(self) -> None:
        """Let three hosts be the database."""
        self.groups["database"] += ["out1", "out2"]

    def edge(self, **variables: Any) -> None:
        """Put two edges in front."""
        for name in ("edge1", "edge2"):
            self.groups["all"].append(name)
            self.hosts[name] = copy.deepcopy(COMMON) | {"ansible_host": f"10.0.1.{name[-1]}"}
        self.groups["edge"] = ["edge1", "edge2"]
        self.set(**{"remails_settings": {"api": {"url": "https://relay.example.com"}}, **variables})

    def watch(self, **variables: Any) -> None:
        """Have a host watch over all, with these variables."""
        self.groups["monitoring"] = ["data1"]
        self.set(**variables)

    def managed(self, dsn: str) -> None:
        """Take the database of somebody else."""
        self.groups["database"] = []
        self.set(remails_dsn=dsn)


def test_inventory_without_a_mistake() -> None:
    inventory = Inventory()
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []
    inventory.cluster()
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []
    inventory.edge(edge_addresses=["192.0.2.10", "2001:db8::10/64"], edge_proxy_trusted=["192.0.2.0/24"])
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []
    inventory.managed("host=a,b port=5432 dbname=remails user=remails target_session_attrs=read-write")
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []
    inventory.managed("postgresql://remails@db.example.com/remails?sslmode=verify-full")
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []


def kept(**change: Any) -> Callable[[Inventory], object]:
    """Backups at a host of their own and by SFTP, but for a change."""
    said = {
        "backups_cipher_pass": "secret",
        "backups_independent_repository": "sftp:me@192.0.2.99:/copies",
        "backups_independent_password": "secret",
        "backups_independent_ssh_key": "key",
        "backups_independent_host_keys": "key",
    }

    def keep(inventory: Inventory) -> None:
        inventory.groups["backups"] = ["out1"]
        inventory.set(**said | change)

    return keep


def test_backups_without_a_mistake() -> None:
    for change in ({}, {"backups_independent_repository": "none", "backups_independent_password": ""}):
        inventory = Inventory()
        kept(**change)(inventory)
        assert preflight.mistakes(inventory.groups, inventory.hosts) == []


Mistake = tuple[Callable[[Inventory], object], str]
MISTAKES: dict[str, Mistake] = {
    "alerts without a mail server": (
        lambda i: i.watch(),
        "monitoring_mail_smarthost is ''; set it to host:port of a mail server of somebody else, "
        "or monitoring_mail_enabled to false.",
    ),
    "alerts through the relay itself": (
        lambda i: i.watch(monitoring_mail_smarthost="relay.example.com:587", monitoring_mail_to=["a@b.example"]),
        "monitoring_mail_smarthost is relay.example.com:587, which is this relay; alerts must not depend on it, "
        "so name another server.",
    ),
    "alerts through the relay itself in other letters": (
        lambda i: i.watch(monitoring_mail_smarthost="Relay.example.com.:587", monitoring_mail_to=["a@b.example"]),
        "monitoring_mail_smarthost is Relay.example.com.:587, which is this relay; alerts must not depend on it, "
        "so name another server.",
    ),
    "alerts through the address of the edges": (
        lambda i: i.watch(
            monitoring_mail_smarthost="192.0.2.61:587",
            monitoring_mail_to=["a@b.example"],
            edge_addresses=["192.0.2.61/24"],
        ),
        "monitoring_mail_smarthost is 192.0.2.61:587, which is this relay; alerts must not depend on it, "
        "so name another server.",
    ),
    "alerts by the port for mail between servers": (
        lambda i: i.watch(monitoring_mail_smarthost="mail.example.net:25", monitoring_mail_to=["a@b.example"]),
        "monitoring_mail_smarthost is mail.example.net:25, and only hosts that send may speak to port 25; "
        "name its port 587 or 465.",
    ),
    "alerts for nobody": (
        lambda i: i.watch(monitoring_mail_smarthost="mail.example.net:587"),
        "monitoring_mail_to is empty; list who is told of alerts.",
    ),
    "alerts by an account without its password": (
        lambda i: i.watch(
            monitoring_mail_smarthost="mail.example.net:587",
            monitoring_mail_to=["a@b.example"],
            monitoring_mail_username="remails",
        ),
        "The secret monitoring_mail_password is missing for data1; put that of mail.example.net into its vault.yml.",
    ),
    "alerts for each letter of an address": (
        lambda i: i.watch(monitoring_mail_smarthost="mail.example.net:587", monitoring_mail_to="a@b.example"),
        "monitoring_mail_to is 'a@b.example', which is no list; write it like [a@b.example].",
    ),
    "alerts by no way": (
        lambda i: i.watch(monitoring_mail_enabled=False),
        "monitoring_mail_enabled is false and there is no monitoring_webhook; nobody would hear of alerts, so set one.",
    ),
    "Prometheus for everybody": (
        lambda i: i.watch(
            monitoring_mail_enabled=False, monitoring_webhook="https://a.example", monitoring_listen="0.0.0.0:9090"
        ),
        "monitoring_listen is 0.0.0.0:9090, which others reach, without a password; set monitoring_password_hash.",
    ),
    "two hosts of backups": (
        lambda i: (kept()(i), i.groups.update(backups=["out1", "out2"])),
        "The group backups has the hosts out1, out2; leave one in it.",
    ),
    "backups of a cluster on one of its hosts": (
        lambda i: (kept()(i), i.cluster()),
        "out1 is in the groups backups and database; the backups of a cluster want a host that is none of its members.",
    ),
    "backups of somebody else's database": (
        lambda i: (kept()(i), i.managed("host=db.example.com dbname=remails user=remails")),
        "The group backups has a host, but the group database has none; who runs the database keeps its backups.",
    ),
    "backups that are not encrypted": (
        kept(backups_cipher_pass=""),
        "The secret backups_cipher_pass is missing for out1; put one of remails keys vault into its vault.yml.",
    ),
    "no independent place": (
        kept(backups_independent_repository=""),
        "backups_independent_repository is missing; name a place out of reach of this fleet, or none if you have another way.",
    ),
    "independent copy that is not encrypted": (
        kept(backups_independent_password=""),
        "The secret backups_independent_password is missing for data1; put one of remails keys vault into its vault.yml.",
    ),
    "SFTP server that could be anybody's": (
        kept(backups_independent_host_keys=""),
        "backups_independent_host_keys is missing for out1; the SFTP server of the independent copies needs it.",
    ),
    "S3 without credentials": (
        kept(backups_independent_repository="s3:https://s3.example.com/copies"),
        "The secret backups_independent_s3_credentials is missing for data1; the independent place needs it.",
    ),
    "group that is nearly one of ours": (
        lambda i: i.groups.update(outbuond=i.groups["outbound"]),
        "The group outbuond means nothing here; did you mean outbound?",
    ),
    "group without hosts": (
        lambda i: i.groups.update(inbound=[]),
        "No host is in the group inbound; put one there.",
    ),
    "group that is missing": (lambda i: i.groups.pop("bus"), "No host is in the group bus; put one there."),
    "sends without an agent": (
        lambda i: i.groups["ipagent"].remove("out2"),
        "out2 is in the group outbound and not in ipagent; a host that sends needs both.",
    ),
    "unknown variable": (
        lambda i: i.set(remails_host_name="x"),
        "The variable remails_host_name is unknown; did you mean remails_hostname?",
    ),
    "no address": (
        lambda i: i.hosts["out1"].update(ansible_host="out1.example.com"),
        "out1 has the address 'out1.example.com', which is no IP address; set remails_address to one.",
    ),
    "loopback": (
        lambda i: i.hosts["out1"].update(remails_address="127.0.0.1"),
        "out1 has the address 127.0.0.1, which no other host can reach; set remails_address to another.",
    ),
    "addresses of two versions": (
        lambda i: (
            i.each(
                lambda host: host.update(remails_more_addresses=["2001:db8::" + host["ansible_host"].replace(".", ":")])
            ),
            i.hosts["out1"].update(ansible_host="2001:db8::21", remails_more_addresses=[]),
        ),
        "app1 has the address 10.0.0.1 and out1 has 2001:db8::21, and out1 only one version of IP; set remails_address to the same "
        "version everywhere, or add the other to remails_more_addresses.",
    ),
    "same address": (
        lambda i: i.hosts["out1"].update(ansible_host="10.0.0.1"),
        "The hosts app1, out1 have the same address 10.0.0.1; give each its own remails_address.",
    ),
    "nobody may log in": (
        lambda i: i.each(lambda host: host.pop("firewall_control")),
        "app1 has no firewall_control; list the addresses from which Ansible comes, or nobody could log in.",
    ),
    "no network": (
        lambda i: i.set(firewall_clients=["10.0.0.0/33"]),
        "firewall_clients has '10.0.0.0/33', which is no network; write it like 192.0.2.0/24 or 2001:db8::/32.",
    ),
    "no name": (
        lambda i: i.set(remails_hostname="relay"),
        "remails_hostname is 'relay'; set it to the full name of the relay, like relay.example.com.",
    ),
    "missing secret": (
        lambda i: i.hosts["app2"].pop("remails_pepper"),
        "The secret remails_pepper is missing for app2; put one of remails keys vault into its vault.yml.",
    ),
    "missing token": (
        lambda i: i.set(remails_settings={"ipagent": {"provider": "upcloud"}}),
        "The secret remails_provider_token is missing for out1; put one of upcloud into its vault.yml.",
    ),
    "half a key": (
        lambda i: i.set(remails_bus_client_public_keys=[KEY, KEY[1:]]),
        "remails_bus_client_public_keys is missing or not 40 characters long; remails keys vault writes it beside the secrets.",
    ),
    "two databases": (
        lambda i: i.groups["database"].append("app1"),
        "The group database has the hosts data1, app1; one is a database, three are a cluster (postgresql_mode: cluster).",
    ),
    "three hosts that are to be one": (
        lambda i: (i.cluster(), i.set(postgresql_mode="single")),
        "The group database has the hosts data1, out1, out2; one is a database, three are a cluster (postgresql_mode: cluster).",
    ),
    "cluster of one": (
        lambda i: i.set(postgresql_mode="cluster"),
        "postgresql_mode is cluster, but only data1 is in the group database; a cluster needs three hosts.",
    ),
    "cluster without its secret": (
        lambda i: (i.cluster(), i.hosts["out1"].pop("postgresql_cluster_secret")),
        "The secret postgresql_cluster_secret is missing for out1; put one of remails keys vault into its vault.yml.",
    ),
    "no database": (
        lambda i: i.groups["database"].clear(),
        "There is no database; put a host into the group database, or set remails_dsn.",
    ),
    "two places": (
        lambda i: i.set(remails_dsn="host=a dbname=remails"),
        "Both remails_dsn and the group database (data1) say where the database is; take one out.",
    ),
    "mode without database": (
        lambda i: (i.groups["database"].clear(), i.set(postgresql_mode="single")),
        "postgresql_mode is single, but no host is in the group database; put one there.",
    ),
    "bad DSN": (
        lambda i: i.managed("db.example.com"),
        "remails_dsn is no connection string; write it like host=db.example.com dbname=remails user=remails.",
    ),
    "DSN without host": (lambda i: i.managed("dbname=remails"), "remails_dsn names no host; add host=."),
    "DSN with password": (
        lambda i: i.managed("postgresql://remails:secret@db/remails"),
        "remails_dsn has a password in it; take it out and set remails_database_password in the vault.",
    ),
    "DSN that may find a standby": (
        lambda i: i.managed("host=a,b dbname=remails"),
        "remails_dsn names several hosts; add target_session_attrs=read-write, so that the one that writes is found.",
    ),
    "pool twice": (
        lambda i: i.each(lambda host: host["ipagent_pools"].append({"name": "acme"})),
        "The pool acme is declared twice in ipagent_pools; take one out.",
    ),
    "no default pool": (
        lambda i: i.each(lambda host: host["ipagent_pools"][0].pop("default")),
        "ipagent_pools has 0 default pools; give default: true to one.",
    ),
    "unknown pool": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][1].update(pool="acne")),
        "The address 203.0.113.21 is in the pool acne, which is unknown; declare it in ipagent_pools (shared, acme).",
    ),
    "address twice": (
        lambda i: i.each(lambda host: host["ipagent_addresses"].append(host["ipagent_addresses"][0])),
        "The address 203.0.113.11 is twice in ipagent_addresses; take one out.",
    ),
    "outbound address that is none": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][0].update(ip="203.0.113.256")),
        "ipagent_addresses has '203.0.113.256', which is no IP address; write one like 203.0.113.11.",
    ),
    "outbound address that a second run would not know": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][0].update(ip="2001:DB8:0::11")),
        "ipagent_addresses has 2001:DB8:0::11, which the database calls 2001:db8::11; write it like that.",
    ),
    "host that cannot hold it": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][0].update(preferred_host="app1")),
        "The address 203.0.113.11 prefers the host app1, which is not in the group ipagent (out1, out2).",
    ),
    "no reverse name": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][0].pop("ptr_name")),
        "The address 203.0.113.11 has no ptr_name; set it to its reverse name.",
    ),
    "nobody moves it": (
        lambda i: i.each(lambda host: host["ipagent_addresses"][0].update(provider="hetzner")),
        "The address 203.0.113.11 is moved by hetzner, but no host of ipagent is; set ipagent.provider in remails_settings.",
    ),
    "edge in its own way": (
        lambda i: (i.edge(), i.groups["inbound"].append("edge1")),
        "edge1 is in the groups edge and inbound, which both listen on 465, 587 and 2525; take it out of one.",
    ),
    "virtual address that is none": (
        lambda i: i.edge(edge_addresses=["relay.example.com"]),
        "edge_addresses has 'relay.example.com', which is no address; write it like 192.0.2.10 or 192.0.2.10/24.",
    ),
    "virtual addresses that the edges have no words for": (
        lambda i: i.edge(edge_addresses=["2001:db8::10"]),
        "edge_addresses has none of the IP version of 10.0.1.1, by which edge1 speaks with the other edges; add one.",
    ),
    "virtual address of a host": (
        lambda i: i.edge(edge_addresses=["10.0.1.1/24"]),
        "edge_addresses has 10.0.1.1/24, which is the own address of edge1; take one that is nobody's.",
    ),
    "virtual address twice": (
        lambda i: i.edge(edge_addresses=["192.0.2.10", "192.0.2.10"]),
        "The address 192.0.2.10 is twice in edge_addresses; take one out.",
    ),
    "load balancer that is none": (
        lambda i: i.edge(edge_proxy_trusted=["192.0.2.1/24"]),
        "edge_proxy_trusted has '192.0.2.1/24', which is no network; write it like 192.0.2.0/24.",
    ),
    "virtual address of a single edge": (
        lambda i: (i.edge(edge_addresses=["192.0.2.10"]), i.groups["edge"].remove("edge2")),
        "edge_addresses are shared by edges, and edge1 is the only one; take them out: clients come to its own address.",
    ),
    "pages by HTTP behind an edge": (
        lambda i: i.edge(remails_settings={}),
        "api.url is nothing, but the edges speak HTTPS; set it in remails_settings to how people come to the pages.",
    ),
    "API where no edge reaches it": (
        lambda i: i.edge(api_listen="127.0.0.1:8000"),
        "api_listen of app1 is 127.0.0.1:8000, where no edge can reach it; take api_listen out.",
    ),
    "key without its certificate": (
        lambda i: i.set(certificates_key="x"),
        "Of certificates_chain and certificates_key only one is given; give both, or neither.",
    ),
    "certificate that is none": (
        lambda i: i.set(certificates_chain="x", certificates_key="y"),
        "certificates_chain with certificates_key is of no use: there is no certificate in PEM in it.",
    ),
    "key of another certificate": (
        lambda i: i.set(certificates_chain=GOOD.pem(), certificates_key=key_of(Authority().issue("relay.example.com"))),
        "certificates_chain with certificates_key is of no use: the key is not that of the certificate.",
    ),
    "certificate without its chain": (
        lambda i: i.set(certificates_chain=GOOD.pem().partition("\n-----BEGIN")[0], certificates_key=key_of(GOOD)),
        "certificates_chain with certificates_key is of no use: the certificate of its issuer is missing; put the whole "
        "chain into it.",
    ),
    "certificate for another name": (
        lambda i: i.set(
            certificates_chain=GOOD.pem(),
            certificates_key=key_of(GOOD),
            remails_settings={"api": {"url": "https://pages.example.com"}},
        ),
        "certificates_chain with certificates_key is of no use: it is for relay.example.com, and not for pages.example.com.",
    ),
    "certificate from two places": (
        lambda i: i.set(
            certificates_chain=GOOD.pem(),
            certificates_key=key_of(GOOD),
            remails_settings={"certificates": {"directory": "https://acme.example/dir"}},
        ),
        "Both certificates_chain and certificates.directory say where the certificate comes from; take one out.",
    ),
    "certificate that cannot be fetched": (
        lambda i: (
            i.groups["inbound"].append("out1"),
            i.set(remails_settings={"certificates": {"directory": "https://acme.example/dir"}}),
        ),
        "out1 cannot fetch the certificate: every api listens for itself only; set api_listen to 0.0.0.0:8000.",
    ),
    "no key of the name server": (
        lambda i: i.set(
            remails_settings={
                "certificates": {
                    "directory": "https://acme.example/dir",
                    "challenge": "dns-01",
                    "dns_server": "192.0.2.53",
                    "dns_key_name": "relay-key",
                }
            }
        ),
        "The secret remails_acme_dns_key is missing for app1; put one of the name server into its vault.yml.",
    ),
    "unknown setting": (
        lambda i: i.set(remails_settings={"api": {"wrokers": 2}}),
        "remails_settings: api.wrokers: unknown key; the words are those of remails/config.py.",
    ),
    "setting of a wrong kind": (
        lambda i: i.set(remails_host_settings={"outbound": {"port": "25"}}),
        "remails_host_settings: outbound.port: expected `int`, got `str`; the words are those of remails/config.py.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_sentence(name: str) -> None:
    make, sentence = MISTAKES[name]
    inventory = Inventory()
    make(inventory)
    assert sentence in preflight.mistakes(inventory.groups, inventory.hosts)


FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "architecture": "x86_64",
    "env": {"SSH_CONNECTION": "192.0.2.1 50000 10.0.0.1 22"},
}


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"distribution_major_version": "11"}, "out1 has Debian 11; install Debian 12 or 13."),
        (
            {"distribution": "Ubuntu", "distribution_major_version": "13"},
            "out1 has Ubuntu 13; install Debian 12 or 13.",
        ),
        ({"architecture": "aarch64"}, "out1 is a machine of aarch64; take one of x86_64."),
        (
            {"env": {"SSH_CONNECTION": "198.51.100.7 50000 10.0.0.1 22"}},
            "Ansible comes to out1 from 198.51.100.7, which firewall_control would lock out; add it there.",
        ),
    ],
)
def test_a_host_that_will_not_do(facts: dict[str, Any], sentence: str) -> None:
    assert preflight.host_mistakes("out1", FACTS, ["192.0.2.0/24", "2001:db8::/32"]) == []
    assert preflight.host_mistakes("out1", FACTS | facts, ["192.0.2.0/24", "2001:db8::/32"]) == [sentence]


def test_what_cannot_be_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller may have Ansible alone."""
    inventory = Inventory()
    assert preflight.unseen(inventory.groups, inventory.hosts) == []
    for name in ("remails.config", "remails.certificate"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import of it then raises is ImportError
    where = "that needs Remails beside Ansible on the controller (docs/install.md)."
    assert preflight.unseen(inventory.groups, inventory.hosts) == [
        f"Nobody has looked at the words and values in remails_settings: {where}"
    ]
    inventory.hosts["app1"] |= {"certificates_chain": "x", "certificates_key": "y"}
    assert preflight.unseen(inventory.groups, inventory.hosts) == [
        "Nobody has looked at the words and values in remails_settings and the certificate in certificates_chain: "
        + where
    ]
    assert preflight.mistakes(inventory.groups, inventory.hosts) == []


def write(folder: Path, inventory: Inventory) -> Path:
    """The inventory as a file, of hosts whose connection would do nothing."""
    quiet = {"ansible_connection": "local", "ansible_python_interpreter": "/bin/false"}
    path = folder / "hosts.yml"
    children = {group: {"hosts": dict.fromkeys(names)} for group, names in inventory.groups.items() if group != "all"}
    hosts = {name: variables | quiet for name, variables in inventory.hosts.items()}
    path.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}), encoding="utf-8")
    return path


def test_site_ends_with_every_sentence_before_it_comes_to_a_host(ansible: Ansible, tmp_path: Path) -> None:
    names = ("unknown pool", "address twice", "missing secret", "group that is nearly one of ours", "unknown variable")
    inventory = Inventory()
    for name in names:
        MISTAKES[name][0](inventory)
    done = ansible("ansible-playbook", "--inventory", write(tmp_path, inventory), "playbooks/site.yml")
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert [MISTAKES[name][1] for name in names if MISTAKES[name][1] not in said] == []
    assert done.stdout.count("\nTASK") == 1


def test_site_ends_at_an_unsupported_debian(ansible: Ansible, tmp_path: Path) -> None:
    """The facts are those that an earlier run has kept."""
    inventory = Inventory()
    facts = tmp_path / "facts"
    facts.mkdir()
    for name in inventory.hosts:
        version = "11" if name == "out2" else "12"
        kept = {f"ansible_{key}": value for key, value in (FACTS | {"distribution_major_version": version}).items()}
        kept["_ansible_facts_gathered"] = True
        (facts / f"s1_{name}").write_text(json.dumps({"__payload__": json.dumps(kept)}), encoding="utf-8")
    done = ansible(
        *("ansible-playbook", "--inventory", write(tmp_path, inventory), "playbooks/site.yml"),
        ANSIBLE_CACHE_PLUGIN="jsonfile",
        ANSIBLE_CACHE_PLUGIN_CONNECTION=str(facts),
    )
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "out2 has Debian 11; install Debian 12 or 13." in said
    assert "out1 has" not in said
    assert "TASK [base" not in done.stdout


@pytest.mark.parametrize("example", ["single", "fleet"])
def test_examples_have_no_mistake(ansible: Ansible, secrets: Path, example: str) -> None:
    said = ("--module-name", "debug", "--args", "msg={{ groups | mistakes(hostvars) }}", "--extra-vars", f"@{secrets}")
    done = ansible("ansible", "all[0]", "--inventory", f"inventory/{example}", *said)
    assert done.returncode == 0, done.stdout
    assert "msg: []" in done.stdout or '"msg": []' in done.stdout, done.stdout
