"""Remails on the fleet: which host is what, how the playbooks are told, and what an operator and a customer then do.

    edge1  edge2          edge
    app1   app2           api inbound bus periodic
    out1   out2   out3    outbound ipagent, an address of the operator's block each
    data1  data2  data3   database
    watch1                monitoring backups
    place1                no host of ours: an SFTP server for independent copies

One customer has a pool of its own, the other sends from the shared one.
"""

import json
import secrets
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import image
import yaml
from click.testing import CliRunner
from controller import Controller, Run
from hosts import BYOIP, CLOUD, CONTROL, MX, NETWORK, RESOLVER, Fleet, Host, until
from issuer import Issuer
from load import Load, Rest, Smtp
from world import World

from remails import cli
from remails.dev.archive import Record

GROUPS = {
    "api": ["app1", "app2"],
    "inbound": ["app1", "app2"],
    "bus": ["app1", "app2"],
    "periodic": ["app1", "app2"],
    "outbound": ["out1", "out2", "out3"],
    "ipagent": ["out1", "out2", "out3"],
    "database": ["data1", "data2", "data3"],
    "edge": ["edge1", "edge2"],
    "monitoring": ["watch1"],
    "backups": ["watch1"],
}
SERVICES = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")
POOLS = {"shared": [f"{BYOIP}.11", f"{BYOIP}.12", f"{BYOIP}.13"], "acme": [f"{BYOIP}.21"]}
PREFERRED = {f"{BYOIP}.11": "out1", f"{BYOIP}.12": "out2", f"{BYOIP}.13": "out3", f"{BYOIP}.21": "out1"}
REMAILS = "/opt/remails/current/bin/remails"
PATRONICTL = "patronictl -c /etc/patroni/config.yml"
API_PORT = 8000
NAME = "relay.test"
"""The relay's, to which its certificate is made out."""
FRONT = [f"{NETWORK}.101", f"{NETWORK}.102"]
"""The edges' virtual addresses, where clients come."""

UNSIGNED = ["test", "com", "net", *(f"{'.'.join(reversed(net.split('.')))}.in-addr.arpa" for net in (NETWORK, BYOIP))]

FAKE = Path(__file__).parents[1] / "fakes/upcloud.py"
CLOUD_PORT, ZONE, TOKEN = 8080, "nl-ams1", "ucat_of_the_fleet"

COPIES = "/srv/copies"
PLACE = f"""
id keeper 2>/dev/null || useradd --create-home keeper
install -d -o keeper {COPIES} ~keeper/.ssh
echo 'restrict KEY' >~keeper/.ssh/authorized_keys
printf 'Match User keeper\nForceCommand internal-sftp\n' >/etc/ssh/sshd_config.d/copies.conf
systemctl reload ssh
"""


def ptr_name(ip: str) -> str:
    """The reverse name of an address of ours."""
    return f"out{ip.rpartition('.')[2]}.relay.test"


@dataclass(frozen=True)
class Customer:
    """An organization that may send, and the keys of its two doors."""

    organization: str
    domain: str
    pool: str
    smtp: Smtp
    rest: Rest


class Deployment:
    """An installation on the fleet.

    Attributes:
        secrets: the inventory's file of them, as for ansible-vault.
        issuer: who issues the relay's certificate.
        took: seconds from bare hosts to ready addresses; None on a fleet that was kept.
    """

    took: float | None = None

    def __init__(self, fleet: Fleet, world: World) -> None:
        self.fleet, self.world = fleet, world
        for address in FRONT:
            fleet.share(address, *(fleet.hosts[name] for name in GROUPS["edge"]))
        self.secrets, self.issuer = fleet.directory / "vault.yml", Issuer(fleet, world)
        self.controller = Controller(fleet, GROUPS, self.variables())
        for ip in PREFERRED:
            world.publish_address(ip, ptr_name(ip))
        world.publish((NAME, "A", FRONT[0]))
        fleet.hosts["place1"].run(PLACE.replace("KEY", image.key().with_suffix(".pub").read_text(encoding="utf-8")))
        self._serve_cloud(fleet.directory / "cloud.json")

    def _serve_cloud(self, file: Path) -> None:
        """The provider, which the agents ask and which the switch obeys; it ends with the fleet."""
        if file.exists():
            return
        servers = [
            {"uuid": name, "hostname": name, "mac": self.fleet.hosts[name].mac, "ip": self.fleet.hosts[name].ip}
            for name in GROUPS["ipagent"]
        ]
        told = {"tokens": [TOKEN], "zone": ZONE, "servers": servers, "addresses": [*PREFERRED]}
        file.write_text(json.dumps(told), encoding="utf-8")
        self.fleet.serve("world", [sys.executable, str(FAKE), f"{CLOUD}:{CLOUD_PORT}", self.fleet.name, str(file)])

    def keys(self, *words: str) -> None:
        """Have `remails keys` write the file of secrets or change it."""
        done = CliRunner().invoke(cli.main, ["keys", *words, str(self.secrets)], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def variables(self) -> dict[str, Any]:
        """What the inventory says beside who is what, and its secrets, which are the same as long as the fleet lives."""
        if not self.secrets.exists():
            self.keys("vault")
        place = self.fleet.hosts["place1"]
        return {
            "firewall_control": [CONTROL],
            "postgresql_memory": 1024,
            "postgresql_reserve": 512,  # of a disk that is not theirs alone
            "postgresql_ballast": 16,
            "resolver_forward": [RESOLVER],  # the fleet has a DNS of its own, which nobody signs
            "resolver_unsigned": UNSIGNED,
            "remails_hostname": NAME,
            **yaml.safe_load(self.secrets.read_text(encoding="utf-8")),
            "remails_provider_token": TOKEN,
            "edge_addresses": FRONT,
            "certificates_authorities": self.issuer.authorities(),
            # Alerts go straight to the mailbox of the world.
            "monitoring_mail_smarthost": f"{MX}:587",
            "monitoring_mail_from": "alerts@watch.test",
            "monitoring_mail_to": ["oncall@example.test"],
            "monitoring_mail_tls": False,
            "monitoring_verify": False,
            "remails_settings": {
                "api": {"url": f"https://{NAME}"},
                **self.issuer.settings(),
                "ipagent": {
                    "provider": "upcloud",
                    "provider_url": f"http://{CLOUD}:{CLOUD_PORT}/1.3",
                    "zone": ZONE,
                    "server_ref": "{{ inventory_hostname }}",
                },
            },
            "backups_independent_repository": f"sftp:keeper@{place.ip}:{COPIES}/remails",
            "backups_independent_ssh_key": image.key().read_text(encoding="utf-8"),
            "backups_independent_host_keys": f"{place.ip} {place.run('cat /etc/ssh/ssh_host_ed25519_key.pub')}",
            "ipagent_pools": [{"name": pool, "default": pool == "shared"} for pool in POOLS],
            "ipagent_addresses": [
                {
                    "ip": ip,
                    "pool": pool,
                    "ptr_name": ptr_name(ip),
                    "provider": "upcloud",
                    "zone": ZONE,
                    "preferred_host": PREFERRED[ip],
                }
                for pool, addresses in POOLS.items()
                for ip in addresses
            ],
        }

    def site(self) -> Run:
        """Everything, by `playbooks/site.yml`."""
        return self.controller.playbook("playbooks/site.yml")

    def is_there(self) -> bool:
        """Whether an earlier run, of a fleet that was kept, got as far as the addresses."""
        return bool(self.fleet.hosts["app1"].run(f"ls {REMAILS} 2>/dev/null", check=False)) and bool(self.addresses())

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts of the installation, by name: those of the fleet that are in a group."""
        ours = {name for names in GROUPS.values() for name in names}
        return {name: host for name, host in self.fleet.hosts.items() if name in ours}

    def ips(self, group: str) -> list[str]:
        """The addresses of a group's hosts."""
        return [self.fleet.hosts[name].ip for name in GROUPS[group]]

    # The operator

    def remails(self, *words: str, host: str = "app1") -> str:
        """Run an operator's command on a host. Raises RuntimeError."""
        return self.fleet.hosts[host].run(shlex.join([REMAILS, *words])).strip()

    def table(self, *words: str) -> Any:
        """What an operator's command says, as values."""
        return json.loads(self.remails(*words, "--json"))

    def addresses(self) -> dict[str, Any]:
        """All outbound addresses, by address."""
        return {row["ip"]: row for row in self.table("address", "list")}

    def sql(self, statement: str) -> list[list[str]]:
        """Rows of a query, as text, from the host that leads the database."""
        said = self.fleet.hosts[self.leader()].run(
            f"runuser -u postgres -- psql -XAtq -d remails -c {shlex.quote(statement)}"
        )
        return [line.split("|") for line in said.splitlines()]

    def members(self) -> dict[str, dict[str, Any]]:
        """The members of the database cluster as Patroni sees them, by host; nothing if no member can be asked."""
        for name in GROUPS["database"]:
            host = self.fleet.hosts[name]
            said = host.leader() and host.run(f"timeout 10 {PATRONICTL} list --format json", check=False)
            if said and said.startswith("["):
                return {member["Member"]: member for member in json.loads(said)}
        return {}

    def leader(self, limit: float = 60) -> str:
        """The host that leads the database; waits until there is one."""

        def ask() -> list[str]:
            members = self.members().values()
            return [one["Member"] for one in members if (one["Role"], one["State"]) == ("Leader", "running")]

        return until(ask, limit, "the database to be led")[0]

    def member(self, role: str, limit: float = 60) -> str:
        """The host with this role in the database cluster; waits until Patroni has given it to one."""

        def ask() -> str:
            return next((name for name, one in self.members().items() if one["Role"] == role), "")

        return until(ask, limit, f"a {role}")

    def cluster_whole(self, limit: float = 120) -> None:
        """Wait until every member of the database cluster does its part, one of them as the synchronous standby."""

        def whole() -> bool:
            members = self.members().values()
            up = [one for one in members if one["State"] in ("running", "streaming")]
            roles = {one["Role"] for one in up}
            return len(up) == len(GROUPS["database"]) and {"Leader", "Sync Standby"} <= roles

        until(whole, limit, "the cluster to be whole")

    def holders(self) -> dict[str, str]:
        """The host of each address that is ready."""
        return {ip: row["host"] for ip, row in self.addresses().items() if row["state"] == "ready"}

    def configured(self) -> dict[str, list[str]]:
        """The hosts that have each address on their interface, cut off or not."""
        here = {name: self.fleet.hosts[name] for name in GROUPS["ipagent"]}
        said = {name: host.run("ip -4 addr", check=False) for name, host in here.items() if host.leader()}
        return {ip: [name for name, text in said.items() if f" {ip}/" in text] for ip in PREFERRED}

    def waiting(self) -> int:
        """How many deliveries have no final state."""
        ((number,),) = self.sql("SELECT count(*) FROM deliveries WHERE status IN ('accepted', 'reattempt')")
        return int(number)

    def sources(self, subject: str) -> dict[str, set[str]]:
        """The addresses that messages were given whose subjects begin so, by subject."""
        found: dict[str, set[str]] = {}
        for text, ip in self.sql(
            f"SELECT m.subject, host(d.source) FROM messages m JOIN deliveries d ON d.message_id = m.id "
            f"WHERE m.subject LIKE '{subject}%'"
        ):
            found.setdefault(text, set()).add(ip)
        return found

    def ambiguous(self, subject: str) -> set[str]:
        """The subjects, of those that begin so, of messages whose timeline says that they may arrive twice."""
        return {
            text
            for (text,) in self.sql(
                f"SELECT DISTINCT m.subject FROM messages m JOIN timeline t ON t.message_id = m.id "
                f"WHERE m.subject LIKE '{subject}%' AND t.kind = 'ambiguous'"
            )
        }

    def active(self) -> str:
        """The host whose `periodic` is the active one; nothing where there is none."""
        found = self.sql(
            "SELECT DISTINCT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND granted AND application_name LIKE 'remails-periodic%'"
        )
        by_ip = {host.ip: name for name, host in self.fleet.hosts.items()}
        return next((by_ip[ip] for (ip,) in found), "")

    def last_event(self) -> int:
        """The number of the last event of any address."""
        ((number,),) = self.sql("SELECT coalesce(max(id), 0) FROM address_events")
        return int(number)

    def claims(self, since: int) -> dict[str, list[str]]:
        """Who has claimed each address after that event, in order."""
        found: dict[str, list[str]] = {}
        for ip, name in self.sql(
            f"SELECT host(e.ip), h.name FROM address_events e JOIN hosts h ON h.id = e.host_id "
            f"WHERE e.id > {since} AND e.kind = 'claimed' ORDER BY e.id"
        ):
            found.setdefault(ip, []).append(name)
        return found

    def ready(self, limit: float = 90) -> None:
        """Wait until every address is ready."""
        until(
            lambda: all(row["state"] == "ready" for row in self.addresses().values()),
            limit,
            "every address to be ready",
        )

    def customer(self, name: str, pool: str = "") -> Customer:
        """A new organization with one project and one verified domain."""
        domain = f"{name.lower()}.test"
        organization = self.remails("organization", "create", name)
        project = self.remails("project", "create", name, "mail")
        self.remails("domain", "add", name, domain, "--project", "mail")
        self.world.publish(
            *((row["name"], row["type"], row["value"]) for row in self.table("domain", "records", name, domain))
        )
        self.remails("domain", "check", name, domain)
        if pool:
            self.remails("pool", "assign", pool, name)
        login = self.table("credential", "create", name, "mail", name.lower())
        key = self.table("key", "create", name)
        path = f"/api/organizations/{organization}/projects/{project}/emails"
        return Customer(
            organization=organization,
            domain=domain,
            pool=pool or "shared",
            smtp=Smtp(login["username"], login["password"], f"me@{domain}"),
            rest=Rest(path, key["id"], key["password"], f"me@{domain}"),
        )

    def arrived(self, subject: str) -> list[str]:
        """The subjects that begin so of what the receivers have got."""
        return [record.subject for record in self.world.mails(subject)]

    def paged(self, alert: str, since: datetime, limit: float = 300) -> list[Record]:
        """The mails since then by which whoever is on call is told of an alert, like "HostDead out3"; waits for one."""
        return until(lambda: self.world.mails(f"page: {alert}", since), limit, f"a mail that tells of {alert}")

    def doubled(self, stream: Load, limit: float = 300) -> set[str]:
        """What has arrived more than once of a stream, when all that waited has."""
        until(lambda: self.waiting() == 0, limit, "the queue to be empty")
        until(self.world.settled, limit, "the receivers to look at what they got")
        return stream.doubled(self.arrived(stream.name))

    def wait_for(self, subjects: list[str], name: str, limit: float) -> None:
        """Wait until all of these have arrived, whose subjects begin with `name`."""
        missing = partial(self._missing, set(subjects), name)
        until(lambda: not missing(), limit, f"{len(subjects)} mails {name!r}")

    def _missing(self, subjects: set[str], name: str) -> set[str]:
        return subjects - set(self.arrived(name))


def load(deployment: Deployment, customer: Customer, door: str, name: str, **options: float) -> Load:
    """A stream of mails by one door, through the edges."""
    client = customer.smtp if door == "inbound" else customer.rest
    return Load(deployment.fleet, f"{name} {secrets.token_hex(4)}", client, FRONT, **options)


def check(deployment: Deployment, stream: Load, limit: float) -> None:
    """Every mail was taken by some host, and what was taken arrived, once."""
    assert stream.given_up == set(), stream.reasons()
    deployment.wait_for(stream.subjects("accepted"), stream.name, limit)
    assert deployment.doubled(stream, limit) == set()
