"""What the roles ask about the inventory, and how the settings are written."""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

UNITS = Path(__file__).parents[1] / "systemd"


def address(host: Mapping[str, Any]) -> str:
    """Where the other hosts reach one: `remails_address`, or else what Ansible reaches."""
    return str(host.get("remails_address") or host.get("ansible_host") or host["inventory_hostname"])


def addresses(names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """All addresses that these hosts may speak from, each once, in order."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys([address(hostvars[name]), *hostvars[name].get("remails_more_addresses", ())])
    return list(found)


def of_family(networks: Iterable[str], version: int) -> list[str]:
    """Those of the addresses and networks that are IPv4 (4) or IPv6 (6)."""
    return [str(network) for network in networks if (":" in network) == (version == 6)]


def in_url(ip: str) -> str:
    """An address as it stands before a port (RFC 3986, section 3.2.2)."""
    return f"[{ip}]" if ":" in ip else ip


def networks(ips: Iterable[str]) -> list[str]:
    """Each address as a network of its own."""
    return [str(ipaddress.ip_network(ip)) for ip in ips]


def interface_of(facts: Mapping[str, Any], ip: str) -> str:
    """The network interface that has an address, by the facts of its host; empty if none has."""
    for name in facts.get("interfaces", ()):
        seen = facts.get(name.replace("-", "_"), {})
        there = [seen.get("ipv4", {}), *seen.get("ipv4_secondaries", ()), *seen.get("ipv6", ())]
        if ipaddress.ip_address(ip) in [ipaddress.ip_address(one["address"]) for one in there if "address" in one]:
            return str(seen["device"])
    return ""


def endpoint(ip: str) -> dict[str, str]:
    """Where the bus of the host with this address is, for publishers and for subscribers."""
    host = in_url(ip)
    return {"publish": f"tcp://{host}:5561", "subscribe": f"tcp://{host}:5562"}


def etcd_members(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], listed: str = "") -> str:
    """The hosts as etcd is told of its members; who joins has to name those that `etcdctl member list` has, and no other."""
    urls = {host: f"https://{in_url(address(hostvars[host]))}:2380" for host in hosts}
    return ",".join(f"{host}={url}" for host, url in urls.items() if not listed or url in listed)


def unit_credentials(unit: str) -> list[str]:
    """The names of the credentials that a unit file loads."""
    return re.findall(r"^LoadCredential=(\w+):", Path(unit).read_text(encoding="utf-8"), re.MULTILINE)


def former_units(enabled: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Those of the enabled units that belong to services of no such group, in the order in which they end.

    Sockets first, which would start their service again; and `outbound` before `ipagent`, which has its addresses.
    """
    services = (path.stem.removeprefix("remails-") for path in UNITS.glob("remails-*.service"))
    owners = {service: {service} for service in services} | {"challenges": {"api"}, "certificates": {"inbound", "edge"}}
    words = {unit: unit.removeprefix("remails-").partition(".")[0].partition("-")[0] for unit in enabled}
    found = [unit for unit, word in words.items() if word in owners and owners[word].isdisjoint(groups)]
    return sorted(found, key=lambda unit: (not unit.endswith(".socket"), "ipagent" in unit, unit))


def address_option(item: Mapping[str, Any]) -> list[str]:
    """One property of an address as `remails address add` takes it."""
    return [f"--{item['key'].replace('_', '-')}", str(item["value"])]


def dsn_hosts(dsn: str) -> list[dict[str, Any]]:
    """The hosts and ports that a connection string of libpq (key=value, or a URL) names, in order."""
    if "://" in dsn:
        places = urllib.parse.urlsplit(dsn).netloc.rpartition("@")[2].split(",")
        pairs = [re.fullmatch(r"\[?(.*?)]?(?::(\d+))?", place) for place in places]
        return [{"host": pair[1], "port": int(pair[2] or 5432)} for pair in pairs if pair]
    words = dict(re.findall(r"(\w+)\s*=\s*('[^']*'|\S+)", dsn))
    hosts = words.get("hostaddr", words.get("host", "")).strip("'").split(",")
    ports = words.get("port", "5432").strip("'").split(",")
    return [{"host": host, "port": int(ports[min(number, len(ports) - 1)])} for number, host in enumerate(hosts)]


def backup_place(repository: str) -> dict[str, Any]:
    """The host and port of restic's word for a place: SFTP, S3 or REST; nothing for one without a host."""
    kind, _, rest = repository.partition(":")
    if kind not in ("sftp", "s3", "rest"):
        return {}
    found = re.match(r"(?:(https?):)?(?://)?(?:[^@/]*@)?(?:\[([^]]+)\]|([^:/]+))(?::(\d+))?", rest)
    if not found:
        return {}
    port = {"sftp": 22}.get(kind, 80 if found[1] == "http" else 443)
    return {"host": found[2] or found[3], "port": int(found[4] or port)}


def restore_trouble(info: str, to: str) -> str:
    """Why the database cannot be brought back as it was at that moment (or the newest), by what `pgbackrest info` says; or nothing."""
    stanzas = json.loads(info) if info.startswith("[") else []  # without pgBackRest it says nothing
    ends = [backup["timestamp"]["stop"] for stanza in stanzas for backup in stanza["backup"]]
    if not ends:
        return "has no backup; there may be an independent copy: -e restore_from=independent"
    moment = datetime.fromisoformat(to) if to else None
    if moment and moment.timestamp() < min(ends):
        oldest = datetime.fromtimestamp(min(ends), UTC).isoformat()
        return f"has nothing of {to}; its oldest backup ended at {oldest}: choose that moment or a later one"
    if moment and moment > datetime.now(UTC):
        return f"has nothing of {to}, which is still to come"
    return ""


def former_jobs(paths: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """Of timers and metrics of backup jobs, those of kinds that are wanted no longer."""
    wanted = {name for kind in kinds for name in (f"remails-backup-{kind}.timer", f"backup-{kind}.prom")}
    return [path for path in paths if path.rpartition("/")[2] not in wanted]


def scram_verifier(password: str) -> str:
    """What PostgreSQL stores for a password (RFC 5803); the same each time, since its salt is made of the password too."""
    salt = hmac.digest(password.encode(), b"remails postgresql", "sha256")[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256$4096:{encoded[0]}${encoded[1]}:{encoded[2]}"


def certificate_sources(
    name: str, names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], edges: Sequence[str] = ()
) -> list[str]:
    """Where the host `name` reaches the api hosts `names`, which have its certificates. One may listen for itself only."""
    found = []
    for one in names:
        usual = "0.0.0.0:8000" if edges else "127.0.0.1:8000"
        where, _, port = str(hostvars[one].get("api_listen", usual)).rpartition(":")
        if re.match(r"127\.|\[::1\]|localhost", where):
            if one == name:
                found.append(f"http://{where}:{port}")
        else:
            ip = address(hostvars[one])
            found.append(f"http://{f'[{ip}]' if ':' in ip else ip}:{port}")
    return found


def certificates_key(pepper: str, number: int) -> str:
    """The key by which hosts fetch certificates; as `Pepper.fernet_key` of remails/vault.py makes it."""
    digest = hashlib.sha256(pepper.strip().encode() + f"\0certificates:{number}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()


def toml(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(inner) for inner in value)}]"
    return json.dumps(value)  # of text, numbers and truth values TOML and JSON think alike


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "address": address,
            "address_option": address_option,
            "addresses": addresses,
            "backup_place": backup_place,
            "certificate_sources": certificate_sources,
            "certificates_key": certificates_key,
            "endpoint": endpoint,
            "etcd_members": etcd_members,
            "former_jobs": former_jobs,
            "former_units": former_units,
            "in_url": in_url,
            "interface_of": interface_of,
            "unit_credentials": unit_credentials,
            "dsn_hosts": dsn_hosts,
            "networks": networks,
            "restore_trouble": restore_trouble,
            "of_family": of_family,
            "scram_verifier": scram_verifier,
            "toml": toml,
        }
