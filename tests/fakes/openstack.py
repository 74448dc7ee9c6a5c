"""A small fake of OpenStack: Keystone v3 with application credentials, and Neutron's floating IPs. One server for both."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.cloud import Answer, Cloud, Request, Route, drift


@dataclass
class Port:
    """A server's network port and its own addresses."""

    id: str
    host: str
    fixed_ips: list[str]


@dataclass
class FloatingIp:
    """A public address, translated to one fixed address of a port."""

    id: str
    ip: str
    port: str | None = None
    fixed_ip: str | None = None


@dataclass
class World:
    """All there is."""

    credentials: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    ports: dict[str, Port] = field(default_factory=dict)
    floating_ips: dict[str, FloatingIp] = field(default_factory=dict)


class OpenStack(Cloud):
    """The provider. `url` is where it is reached, for the catalogue."""

    world: World

    def __init__(self, **options: Any) -> None:
        super().__init__(World(), **options)
        self.url = "http://127.0.0.1"

    @drift
    def revoke_tokens(self) -> None:
        """Every token is void."""
        self.world.tokens.clear()

    @drift
    def attach_elsewhere(self, ref: str, port: str | None, fixed_ip: str | None) -> None:
        """Somebody moves an address."""
        self.world.floating_ips[ref].port, self.world.floating_ips[ref].fixed_ip = port, fixed_ip

    def owners(self, world: World) -> dict[str, str | None]:
        """The host whose port has each address."""
        return {one.ip: world.ports[one.port].host if one.port else None for one in world.floating_ips.values()}

    def error(self, status: int, code: str = "", text: str = "") -> Answer:
        """Neutron's shape."""
        return Answer(status, {"NeutronError": {"type": code or "Error", "message": text or code, "detail": ""}})

    def refuses(self, world: World, request: Request) -> Answer | None:
        """Neutron wants a token that Keystone has given."""
        if request.path.startswith("/v3/") or request.headers.get("x-auth-token") in world.tokens:
            return None
        return Answer(401, {"error": {"code": 401, "message": "The request you have made requires authentication."}})

    def routes(self) -> list[Route]:
        """See `Cloud.routes`."""
        table: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", "/v3/auth/tokens", self.log_in),
            ("GET", "/network/v2.0/floatingips", self.floating_ips),
            ("PUT", "/network/v2.0/floatingips/([^/]+)", self.associate),
        ]
        return [(method, re.compile(pattern), handler) for method, pattern, handler in table]

    def log_in(self, world: World, request: Request) -> Answer:
        given = request.body["auth"]["identity"]["application_credential"]
        if world.credentials.get(given["id"]) != given["secret"]:
            return Answer(
                401, {"error": {"code": 401, "message": "The request you have made requires authentication."}}
            )
        world.tokens.append(f"token-{len(self.calls)}")
        regions = [
            {"interface": interface, "region": region, "url": f"{self.url}/{interface}/{region}"}
            for interface in ("internal", "admin")
            for region in ("dc1", "dc2")
        ]
        public = [{"interface": "public", "region": region, "url": f"{self.url}/network/"} for region in ("dc1", "dc2")]
        catalog = [
            {"type": "identity", "endpoints": [{"interface": "public", "region": "dc1", "url": f"{self.url}/v3"}]},
            {"type": "network", "endpoints": [*regions, *public]},
        ]
        return Answer(201, {"token": {"catalog": catalog}}, {"X-Subject-Token": world.tokens[-1]})

    def floating_ips(self, world: World, request: Request) -> Answer:
        return Answer(200, {"floatingips": [self._object(one) for one in world.floating_ips.values()]})

    def associate(self, world: World, request: Request, ref: str) -> Answer:
        found, body = world.floating_ips.get(ref), request.body["floatingip"]
        if found is None:
            return self.error(404, "FloatingIPNotFound", f"Floating IP {ref} could not be found")
        port = world.ports.get(body["port_id"])
        if port is None:
            return self.error(404, "PortNotFound", f"Port {body['port_id']} could not be found.")
        fixed = body.get("fixed_ip_address") or port.fixed_ips[0]
        if fixed not in port.fixed_ips:
            return self.error(400, "BadRequest", f"Port {port.id} does not have fixed ip {fixed}.")
        if any(one.fixed_ip == fixed and one.id != ref for one in world.floating_ips.values()):
            return self.error(409, "FloatingIPPortAlreadyAssociated", f"Cannot associate floating IP {found.ip}.")
        found.port, found.fixed_ip = port.id, fixed
        return Answer(200, {"floatingip": self._object(found)})

    def _object(self, one: FloatingIp) -> dict[str, Any]:
        return {
            "id": one.id,
            "floating_ip_address": one.ip,
            "fixed_ip_address": one.fixed_ip,
            "port_id": one.port,
            "status": "ACTIVE" if one.port else "DOWN",
        }
