"""What Prometheus asks and whom, worked out of the inventory."""

from collections.abc import Mapping
from typing import Any

SERVICES = ("api", "inbound", "outbound", "bus", "periodic", "ipagent")

Groups = Mapping[str, list[str]]
Hosts = Mapping[str, Mapping[str, Any]]


def scrapes(groups: Groups, hostvars: Hosts, mode: str = "single") -> list[dict[str, Any]]:
    """The jobs: services of ours by their words, and the exporters. The instance of each target is the name of its host.

    Args:
        groups: which hosts are in which group.
        hostvars: the hosts' variables.
        mode: `postgresql_mode`; of a cluster, Patroni and etcd are asked too.
    """
    jobs = [
        *((name, name, 9470 + number) for number, name in enumerate(SERVICES)),
        ("node", "all", 9100),
        ("haproxy", "edge", 8405),
    ]
    if mode != "managed":
        jobs.append(("postgres", "database", 9187))
    if mode == "cluster":
        jobs += [("patroni", "database", 8008), ("etcd", "database", 2381)]
    return [
        {
            "name": name,
            "scheme": "https" if name == "patroni" else "http",
            "targets": [
                {
                    "address": at_port(_address(hostvars[host], host), port),
                    "instance": host,
                    "groups": f",{','.join(sorted(group for group in groups if host in groups[group] and group not in _NO))},",
                }
                for host in groups.get(group) or ()
            ],
        }
        for name, group, port in jobs
        if groups.get(group)
    ]


_NO = ("all", "ungrouped")


def probes(hostname: str, url: str) -> list[dict[str, str]]:
    """What is tried from outside, as a client would: each public port of mail, and the API where it has a public address.

    Args:
        hostname: the name that clients know.
        url: where the API is for clients; empty or on a loopback address: not tried.
    """
    tried = [
        {"target": f"{hostname}:465", "module": "smtps"},
        {"target": f"{hostname}:587", "module": "submission"},
        {"target": f"{hostname}:2525", "module": "submission"},
    ]
    if url.startswith("https://"):
        tried.append({"target": f"{url.rstrip('/')}/api/healthy", "module": "https"})
    return tried


def _address(host: Mapping[str, Any], name: str) -> str:
    return str(host.get("remails_address") or host.get("ansible_host") or name)


def at_port(address: str, port: int) -> str:
    """The address and a port of it, as a URL has them."""
    return f"{_in_url(address)}:{port}"


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"scrapes": scrapes, "probes": probes, "at_port": at_port}
