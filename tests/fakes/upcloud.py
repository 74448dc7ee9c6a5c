"""A fake of UpCloud's API 1.3: servers, their networking, and addresses that move by the MAC address of an interface.

Shapes are those of the API as recorded: booleans are "yes" and "no", an address that is not floating has no `floating`, a
detached one neither `mac` nor `server`, lists are wrapped twice. Codes that we could not find recorded are marked `unverified`:
what we write must not depend on them.

As a program it serves a fleet's hosts, for which it drives the provider's switch (tests/fleet/hosts.py):

    upcloud.py LISTEN:PORT FLEET WORLD.json

WORLD.json: {"tokens": ["ucat_..."], "zone": "nl-ams1", "servers": [{"uuid": ..., "hostname": ..., "mac": ...}],
             "addresses": ["203.0.113.7", ...]}
"""

import base64
import ipaddress
import json
import re
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes.cloud import Answer, Cloud, Request, Route, drift

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
ZONE = "nl-ams1"
PUBLIC_NETWORK = "03000000-0000-4000-8095-000000000000"

# Documented statuses and the codes that the SDKs know; which belongs to which is partly unverified.
CODES = {
    400: "REQUEST_INVALID",
    401: "AUTHENTICATION_FAILED",
    402: "INSUFFICIENT_CREDITS",
    403: "ACTION_FORBIDDEN",
    404: "NOT_FOUND",
    409: "SERVER_STATE_ILLEGAL",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
}


@dataclass
class Server:
    """A virtual machine with one public IPv4 interface."""

    uuid: str
    hostname: str
    mac: str
    zone: str = ZONE
    state: str = "started"
    labels: dict[str, str] = field(default_factory=dict)
    primary: str = ""
    most_addresses: int = 5


@dataclass
class Address:
    """A public address."""

    ip: str
    zone: str = ZONE
    mac: str | None = None
    floating: bool = True
    ptr: str = ""
    release_policy: str = "keep"
    delegated: bool = False


@dataclass
class World:
    """All there is."""

    tokens: list[str] = field(default_factory=list)
    servers: dict[str, Server] = field(default_factory=dict)
    addresses: dict[str, Address] = field(default_factory=dict)

    def by_mac(self, mac: str | None) -> Server | None:
        """The server with this interface."""
        return next((server for server in self.servers.values() if server.mac == mac), None)

    def of(self, server: Server) -> list[Address]:
        """The addresses attached to a server."""
        return [address for address in self.addresses.values() if address.mac == server.mac]


class UpCloud(Cloud):
    """The provider."""

    prefix = "/1.3"
    server_header = "Apache"
    content_type = "application/json; charset=UTF-8"
    world: World

    def __init__(self, **options: Any) -> None:
        super().__init__(World(), **options)

    # Setting up

    def add_server(self, hostname: str, mac: str, *, ip: str = "", **more: Any) -> Server:
        """A running server; `ip` is its ordinary, primary address."""
        server = Server(more.pop("uuid", str(uuid.UUID(int=len(self.world.servers) + 1))), hostname, mac, **more)
        self.world.servers[server.uuid] = server
        if ip:
            server.primary = ip
            self.world.addresses[ip] = Address(ip, server.zone, mac, floating=False, ptr=_default_ptr(ip, server.zone))
        self.changed()
        return server

    def add_address(self, ip: str, **more: Any) -> Address:
        """An address; detached and floating if nothing else is said."""
        address = Address(ip, **more)
        address.ptr = address.ptr or _default_ptr(ip, address.zone)
        self.world.addresses[ip] = address
        self.changed()
        return address

    # What others do

    @drift
    def attach_elsewhere(self, ip: str, server: str) -> None:
        """Somebody moves an address to a server, by uuid."""
        self.world.addresses[ip].mac = self.world.servers[server].mac

    @drift
    def drop_attachment(self, ip: str) -> None:
        """Somebody detaches an address."""
        self.world.addresses[ip].mac = None

    @drift
    def delete_ip(self, ip: str) -> None:
        """Somebody deletes an address."""
        del self.world.addresses[ip]

    @drift
    def restore_ip(self, ip: str) -> None:
        """An address is there again, detached."""
        self.world.addresses.setdefault(ip, Address(ip, ptr=_default_ptr(ip, ZONE)))

    @drift
    def set_policy(self, ip: str, policy: str) -> None:
        """Somebody changes what becomes of an address when its server goes."""
        self.world.addresses[ip].release_policy = policy

    @drift
    def mac_change(self, server: str, mac: str) -> None:
        """A server has another interface; its addresses go with it."""
        found = self.world.servers[server]
        for address in self.world.of(found):
            address.mac = mac
        found.mac = mac

    @drift
    def stop_server(self, server: str) -> None:
        """Somebody stops a server; its addresses stay attached."""
        self.world.servers[server].state = "stopped"

    # Cloud

    def owners(self, world: World) -> dict[str, str | None]:
        """The hostname of the server that has each address."""
        found = {ip: world.by_mac(address.mac) for ip, address in world.addresses.items()}
        return {ip: server.hostname if server else None for ip, server in found.items()}

    def error(self, status: int, code: str = "", text: str = "") -> Answer:
        """The shape of the older endpoints, which are all of these."""
        code = code or CODES.get(status, "ERROR")
        return Answer(status, {"error": {"error_code": code, "error_message": text or code.capitalize()}})

    def refuses(self, world: World, request: Request) -> Answer | None:
        """Basic and Bearer; without any token in the world everybody is let in."""
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        given = base64.b64decode(text).decode() if kind == "Basic" else text
        if world.tokens and given not in world.tokens:
            said = "Authentication failed using the given username and password."
            return self.error(401, "AUTHENTICATION_FAILED", said)
        return None

    def routes(self) -> list[Route]:
        """See `Cloud.routes`."""
        return _ROUTES(self)

    # Servers

    def account(self, world: World, request: Request) -> Answer:
        return Answer(200, {"account": {"username": "remails", "credits": 10000}})

    def zones(self, world: World, request: Request) -> Answer:
        zone = {"id": ZONE, "description": "Amsterdam #1", "public": "yes"}
        return Answer(200, {"zones": {"zone": [zone]}})

    def servers(self, world: World, request: Request) -> Answer:
        wanted = [label.partition("=") for key, label in request.query if key == "label"]
        found = [
            _summary(server)
            for server in world.servers.values()
            if all(key in server.labels and (not sign or server.labels[key] == value) for key, sign, value in wanted)
        ]
        return Answer(200, {"servers": {"server": found}})

    def server(self, world: World, request: Request, ref: str) -> Answer:
        return self._with_server(world, ref, lambda found: Answer(200, {"server": self._details(world, found)}))

    def networking(self, world: World, request: Request, ref: str) -> Answer:
        return self._with_server(
            world, ref, lambda found: Answer(200, {"networking": {"interfaces": self._interfaces(world, found)}})
        )

    def create_server(self, world: World, request: Request) -> Answer:
        body = (request.body or {}).get("server") or {}
        if body.get("zone") != ZONE:
            return self.error(400, "ZONE_INVALID")
        number = len(world.servers) + 1
        server = self.add_server(
            body.get("hostname", ""),
            f"de:ad:00:00:00:{number:02x}",
            ip=f"192.0.2.{number}",
            labels={label["key"]: label["value"] for label in (body.get("labels") or {}).get("label", ())},
        )
        return Answer(202, {"server": {**self._details(world, server), "state": "maintenance"}})

    def modify_server(self, world: World, request: Request, ref: str) -> Answer:
        def change(server: Server) -> Answer:
            for label in ((request.body or {}).get("server", {}).get("labels") or {}).get("label", ()):
                server.labels[label["key"]] = label["value"]
            return Answer(202, {"server": self._details(world, server)})

        return self._with_server(world, ref, change)

    def power(self, world: World, request: Request, ref: str, verb: str) -> Answer:
        def change(server: Server) -> Answer:
            if (verb == "start") == (server.state == "started"):
                return self.error(409, "SERVER_STATE_ILLEGAL")
            server.state = "stopped" if verb == "stop" else "started"
            return Answer(200, {"server": self._details(world, server)})

        return self._with_server(world, ref, change)

    def delete_server(self, world: World, request: Request, ref: str) -> Answer:
        def delete(server: Server) -> Answer:
            if server.state != "stopped":
                return self.error(409, "SERVER_STATE_ILLEGAL")
            for address in world.of(server):
                if address.release_policy == "keep" and address.floating:
                    address.mac = None
                else:
                    del world.addresses[address.ip]
            del world.servers[server.uuid]
            return Answer(204)

        return self._with_server(world, ref, delete)

    def _with_server(self, world: World, ref: str, act: Callable[[Server], Answer]) -> Answer:
        server = world.servers.get(ref)
        return act(server) if server else self.error(404, "SERVER_NOT_FOUND")

    def _details(self, world: World, server: Server) -> dict[str, Any]:
        own = [_object(world, address) for address in world.of(server)]
        return _summary(server) | {
            "metadata": "yes",
            "ip_addresses": {"ip_address": own},
            "networking": {"interfaces": self._interfaces(world, server)},
        }

    def _interfaces(self, world: World, server: Server) -> dict[str, Any]:
        own = [
            {"address": address.ip, "family": _family(address.ip), "floating": "yes" if address.floating else "no"}
            for address in world.of(server)
        ]
        self.chance.shuffle(own)  # the order is not to be relied on
        interface = {
            "index": 2,
            "type": "public",
            "mac": server.mac,
            "network": PUBLIC_NETWORK,
            "bootable": "no",
            "source_ip_filtering": "yes",
            "ip_addresses": {"ip_address": own},
        }
        return {"interface": [interface]}

    # Addresses

    def addresses(self, world: World, request: Request) -> Answer:
        found = [_object(world, address) for address in world.addresses.values()]
        return Answer(200, {"ip_addresses": {"ip_address": found}})

    def address(self, world: World, request: Request, ip: str) -> Answer:
        found = world.addresses.get(_canonical(ip))
        if found is None:
            return self.error(404, "IP_ADDRESS_NOT_FOUND")
        return Answer(200, {"ip_address": _object(world, found)})

    def create_address(self, world: World, request: Request) -> Answer:
        body = (request.body or {}).get("ip_address") or {}
        if body.get("floating") != "yes" or "zone" not in body:
            return self.error(400, "ZONE_MISSING", "The fake knows only detached floating addresses.")
        made = self.add_address(f"203.0.113.{200 + len(world.addresses)}", zone=body["zone"])
        return Answer(201, {"ip_address": _object(world, made)})

    def modify_address(self, world: World, request: Request, ip: str) -> Answer:
        found = world.addresses.get(_canonical(ip))
        body = (request.body or {}).get("ip_address")
        if found is None:
            return self.error(404, "IP_ADDRESS_NOT_FOUND")
        if not isinstance(body, dict) or not body:
            return self.error(400, "REQUEST_INVALID")
        if unknown := body.keys() - {"mac", "ptr_record", "release_policy"}:
            return self.error(400, "UNKNOWN_ATTRIBUTE", f"Unknown attribute {min(unknown)}.")
        if "mac" in body and (refused := self._moved(world, found, body["mac"])):
            return refused
        if "ptr_record" in body:
            if "." not in body["ptr_record"]:
                return self.error(400, "PTR_RECORD_INVALID")
            found.ptr = body["ptr_record"]
        found.release_policy = body.get("release_policy", found.release_policy)
        return Answer(202, {"ip_address": _object(world, found)})

    def _moved(self, world: World, address: Address, mac: str | None) -> Answer | None:
        """Move it, taking it from whoever has it; or say why not."""
        if not mac:
            address.mac = None
            return None
        if not MAC.fullmatch(mac):
            return self.error(400, "MAC_INVALID")
        server = world.by_mac(mac)
        if server is None:
            return self.error(404, "INTERFACE_NOT_FOUND")  # unverified
        if not address.floating:
            text = "Only floating IP addresses can be assigned to MAC addresses."
            return self.error(409, "FLOATING_IP_NOT_AVAILABLE", text)
        if address.delegated:
            return self.error(403, "IP_ADDRESS_FORBIDDEN")  # unverified
        if server.zone != address.zone:
            return self.error(409, "ZONE_MISMATCH")  # unverified
        if address.mac != mac and len(world.of(server)) >= server.most_addresses:
            return self.error(409, "IP_ADDRESS_LIMIT_REACHED")  # unverified
        address.mac = mac
        return None

    def delete_address(self, world: World, request: Request, ip: str) -> Answer:
        if world.addresses.pop(_canonical(ip), None) is None:
            return self.error(404, "IP_ADDRESS_NOT_FOUND")
        return Answer(204)


def _ROUTES(cloud: UpCloud) -> list[Route]:  # a table, once for each cloud
    table: list[tuple[str, str, Callable[..., Answer]]] = [
        ("GET", "/account/?", cloud.account),
        ("GET", "/zone/?", cloud.zones),
        ("GET", "/server/?", cloud.servers),
        ("POST", "/server/?", cloud.create_server),
        ("GET", "/server/([^/]+)/?", cloud.server),
        ("PUT", "/server/([^/]+)/?", cloud.modify_server),
        ("DELETE", "/server/([^/]+)/?", cloud.delete_server),
        ("GET", "/server/([^/]+)/networking/?", cloud.networking),
        ("POST", "/server/([^/]+)/(start|stop|restart)/?", cloud.power),
        ("GET", "/ip_address/?", cloud.addresses),
        ("POST", "/ip_address/?", cloud.create_address),
        ("GET", "/ip_address/([^/]+)/?", cloud.address),
        ("PATCH", "/ip_address/([^/]+)/?", cloud.modify_address),
        ("PUT", "/ip_address/([^/]+)/?", cloud.modify_address),
        ("DELETE", "/ip_address/([^/]+)/?", cloud.delete_address),
    ]
    return [(method, re.compile(pattern), handler) for method, pattern, handler in table]


def _summary(server: Server) -> dict[str, Any]:
    return {
        "uuid": server.uuid,
        "hostname": server.hostname,
        "title": server.hostname,
        "zone": server.zone,
        "plan": "2xCPU-4GB",
        "core_number": "2",
        "memory_amount": "4096",
        "state": server.state,
        "tags": {"tag": []},
        "labels": {"label": [{"key": key, "value": value} for key, value in server.labels.items()]},
    }


def _object(world: World, address: Address) -> dict[str, Any]:
    server = world.by_mac(address.mac)
    said: dict[str, Any] = {
        "access": "public",
        "address": address.ip,
        "family": _family(address.ip),
        "ptr_record": address.ptr,
        "zone": address.zone,
        "release_policy": address.release_policy,
    }
    if address.floating:
        said["floating"] = "yes"
    if server:
        said |= {"mac": server.mac, "server": server.uuid}
    return said


def _family(ip: str) -> str:
    return "IPv6" if ":" in ip else "IPv4"


def _canonical(ip: str) -> str:
    try:
        return ipaddress.ip_address(ip).compressed
    except ValueError:
        return ip


def _default_ptr(ip: str, zone: str) -> str:
    return f"{ip.replace('.', '-').replace(':', '-')}.{'v6.' if ':' in ip else ''}{zone}.upcloud.host"


def main(listen: str, fleet_name: str, path: str) -> None:
    """See the module's text."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "fleet"))
    import hosts

    fleet = hosts.Fleet(fleet_name)
    cloud = UpCloud()
    told = json.loads(Path(path).read_bytes())
    cloud.world.tokens = told.get("tokens", [])
    for server in told["servers"]:
        cloud.add_server(**{"zone": told.get("zone", ZONE), **server})
    for ip in told["addresses"]:
        cloud.add_address(ip, zone=told.get("zone", ZONE))
    cloud.own = lambda ip, name: fleet.own(ip, fleet.hosts[name] if name else None)
    for ip in told["addresses"]:
        cloud.own(ip, None)
    host, _, port = listen.rpartition(":")
    with cloud.serving(host, int(port)) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
