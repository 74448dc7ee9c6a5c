"""A fake of Hetzner Cloud's API v1: servers, floating IPs, and the actions that move them, which take a while."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fakes.cloud import Answer, Cloud, Request, Route, drift

CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    423: "locked",
    429: "rate_limit_exceeded",
    503: "unavailable",
}


@dataclass
class FloatingIp:
    """A floating IPv4 address, or a /64 of IPv6."""

    id: int
    ip: str
    server: int | None = None
    ptr: dict[str, str] = field(default_factory=dict)
    location: str = "fsn1"
    blocked: bool = False

    @property
    def type(self) -> str:
        """As in the API."""
        return "ipv6" if ":" in self.ip else "ipv4"


@dataclass
class Action:
    """Something under way; it is done when it was looked at so often."""

    id: int
    floating_ip: int
    server: int
    looks: int
    status: str = "running"
    error: str = ""


@dataclass
class World:
    """All there is."""

    tokens: list[str] = field(default_factory=list)
    servers: dict[int, str] = field(default_factory=dict)
    floating_ips: dict[int, FloatingIp] = field(default_factory=dict)
    actions: dict[int, Action] = field(default_factory=dict)


class Hetzner(Cloud):
    """The provider."""

    prefix = "/v1"
    world: World

    def __init__(self, **options: Any) -> None:
        super().__init__(World(), **options)
        self.looks = 1
        """How often an action says `running` before it is done."""
        self.action_error = ""
        """With this, actions end in an error."""

    def add_server(self, number: int, name: str) -> None:
        """A running server."""
        self.world.servers[number] = name
        self.changed()

    def add_address(self, number: int, ip: str, server: int | None = None) -> FloatingIp:
        """A floating IP."""
        self.world.floating_ips[number] = FloatingIp(number, ip, server)
        self.changed()
        return self.world.floating_ips[number]

    @drift
    def attach_elsewhere(self, number: int, server: int | None) -> None:
        """Somebody moves an address."""
        self.world.floating_ips[number].server = server

    @drift
    def delete_ip(self, number: int) -> None:
        """Somebody deletes an address."""
        del self.world.floating_ips[number]

    def owners(self, world: World) -> dict[str, str | None]:
        """The name of the server that has each address."""
        return {one.ip: world.servers.get(one.server or 0) for one in world.floating_ips.values()}

    def error(self, status: int, code: str = "", text: str = "") -> Answer:
        """See `Cloud.error`."""
        code = code or CODES.get(status, "service_error")
        headers = {"RateLimit-Limit": "3600", "RateLimit-Remaining": "0", "RateLimit-Reset": "1"}
        return Answer(status, {"error": {"code": code, "message": text or code}}, headers if status == 429 else {})

    def refuses(self, world: World, request: Request) -> Answer | None:
        """Bearer tokens."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if world.tokens and given not in world.tokens:
            return self.error(401, "unauthorized", "unable to authenticate")
        return None

    def routes(self) -> list[Route]:
        """See `Cloud.routes`."""
        table: list[tuple[str, str, Callable[..., Answer]]] = [
            ("GET", "/floating_ips", self.floating_ips),
            ("GET", r"/floating_ips/(\d+)", self.floating_ip),
            ("POST", r"/floating_ips/(\d+)/actions/assign", self.assign),
            ("POST", r"/floating_ips/(\d+)/actions/change_dns_ptr", self.change_dns_ptr),
            ("GET", r"/actions/(\d+)", self.action),
            ("GET", "/servers", self.servers),
        ]
        return [(method, re.compile(pattern), handler) for method, pattern, handler in table]

    def floating_ips(self, world: World, request: Request) -> Answer:
        asked = dict(request.query)
        page, size = int(asked.get("page", 1)), min(int(asked.get("per_page", 25)), 50)
        found = list(world.floating_ips.values())
        last = max(1, -(-len(found) // size))
        pagination = {
            "page": page,
            "per_page": size,
            "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None,
            "last_page": last,
            "total_entries": len(found),
        }
        shown = [self._object(one) for one in found[(page - 1) * size : page * size]]
        return Answer(200, {"floating_ips": shown, "meta": {"pagination": pagination}})

    def floating_ip(self, world: World, request: Request, number: str) -> Answer:
        found = world.floating_ips.get(int(number))
        return Answer(200, {"floating_ip": self._object(found)}) if found else self.error(404)

    def assign(self, world: World, request: Request, number: str) -> Answer:
        found, server = world.floating_ips.get(int(number)), (request.body or {}).get("server")
        if found is None or server not in world.servers:
            return self.error(404)
        if any(one.floating_ip == found.id and one.status == "running" for one in world.actions.values()):
            return self.error(423, "locked")
        action = Action(len(world.actions) + 1, found.id, server, self.looks)
        world.actions[action.id] = action
        self._go_on(world, action)
        return Answer(201, {"action": self._action(action)})

    def change_dns_ptr(self, world: World, request: Request, number: str) -> Answer:
        found = world.floating_ips.get(int(number))
        if found is None:
            return self.error(404)
        found.ptr[request.body["ip"]] = request.body["dns_ptr"]
        done = Action(len(world.actions) + 1, found.id, 0, 0, "success")
        world.actions[done.id] = done
        return Answer(201, {"action": self._action(done)})

    def action(self, world: World, request: Request, number: str) -> Answer:
        found = world.actions.get(int(number))
        if found is None:
            return self.error(404)
        self._go_on(world, found)
        self.changed()
        return Answer(200, {"action": self._action(found)})

    def servers(self, world: World, request: Request) -> Answer:
        found = [{"id": number, "name": name, "status": "running"} for number, name in world.servers.items()]
        return Answer(200, {"servers": found})

    def _go_on(self, world: World, action: Action) -> None:
        if action.status != "running":
            return
        if action.looks > 0:
            action.looks -= 1
            return
        if self.action_error:
            action.status, action.error = "error", self.action_error
        else:
            action.status = "success"
            world.floating_ips[action.floating_ip].server = action.server

    def _action(self, action: Action) -> dict[str, Any]:
        error = {"code": "action_failed", "message": action.error} if action.error else None
        return {"id": action.id, "command": "assign_floating_ip", "status": action.status, "error": error}

    def _object(self, one: FloatingIp) -> dict[str, Any]:
        return {
            "id": one.id,
            "name": f"floating-{one.id}",
            "ip": one.ip,
            "type": one.type,
            "server": one.server,
            "dns_ptr": [{"ip": ip, "dns_ptr": name} for ip, name in one.ptr.items()],
            "home_location": {"name": one.location},
            "blocked": one.blocked,
            "labels": {},
        }
