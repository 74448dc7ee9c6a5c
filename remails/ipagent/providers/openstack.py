"""OpenStack (Infomaniak, OVH Public Cloud, Cleura and others): floating addresses of Neutron, which are exclusive.

Such an address is translated on the way to a fixed address of a port, one to one, so nothing is put on the interface. A host has
as many fixed addresses on its port and its interface as it may hold floating ones, and names them in `fixed_addresses`; which
one an address gets is chosen when it is attached and becomes its `bind_ip`. `provider_ref` of an address is the id of the
floating IP, the setting `port_ref` that of the port. Addresses shared through `allowed_address_pairs` are not supported: several
hosts could have one at the same time.

The credential `provider_token` is an application credential, `id:secret`. Keystone changes it into a token that is
renewed when it is not accepted any more; `provider_url` is Keystone's, and Neutron's is read from its catalogue, where
`zone` chooses the region if there are several. Reverse names are set in the provider's own way: `remails` only checks them.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import requests

from remails.config import IpAgent, Settings
from remails.errors import ConfigError
from remails.ipagent.providers.http import Client, Clock, field, rows
from remails.ipagent.providers.protocol import ProviderError, Seen
from remails.store.addresses import Address

_TOKEN_LIFE = 30 * 60.0  # seconds; shorter than any Keystone's
_AFTER_DENIED = 60.0
_DENIED = "openstack: the identity service does not accept the application credential"


class OpenStack:
    """The provider `openstack`."""

    name: ClassVar[str] = "openstack"
    is_remote: ClassVar[bool] = True
    configures_interface: ClassVar[bool] = False

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        mine = settings.ipagent
        for key in ("provider_url", "server_ref", "port_ref", "fixed_addresses"):
            if not getattr(mine, key):
                raise ConfigError(f"ipagent.{key}: needed for provider openstack")
        if len(mine.fixed_addresses) < mine.max_addresses:
            raise ConfigError("ipagent.fixed_addresses: fewer than ipagent.max_addresses")
        self._id, colon, self._secret = settings.provider_token().partition(":")
        if not colon:
            raise ConfigError("credential provider_token: expected id:secret of an application credential")
        self._settings, self._clock = mine, clock or Clock()
        self._neutron: Client | None = None
        self._expires = self._denied_until = float("-inf")

    def look(self, addresses: Sequence[Address]) -> dict[str, Seen]:
        """One request for all floating addresses of the project."""
        found = {field(one, "id"): self._seen(one) for one in self._floating()}
        return {address.ip: found[address.provider_ref] for address in addresses if address.provider_ref in found}

    def attach(self, address: Address) -> Seen:
        """Point the floating address to one of this host's fixed addresses that no other one points to."""
        listed = self._floating()
        taken = {one.get("fixed_ip_address") for one in listed if one.get("id") != address.provider_ref}
        free = [fixed for fixed in self._settings.fixed_addresses if fixed not in taken]
        if not free:
            raise ProviderError("openstack: every one of ipagent.fixed_addresses is in use", "conflict")
        chosen = address.bind_ip if address.bind_ip in free else free[0]
        body = {"floatingip": {"port_id": self._settings.port_ref, "fixed_ip_address": chosen}}
        path = f"/v2.0/floatingips/{quote(address.provider_ref, safe='')}"
        return self._seen(field(self._ask(lambda client: client.put(path, body)), "floatingip"))

    def set_name(self, address: Address) -> None:
        """Not by this API."""

    def _floating(self) -> list[dict[str, Any]]:
        return rows(self._ask(lambda client: client.get("/v2.0/floatingips")), "floatingips")

    def _seen(self, one: Any) -> Seen:
        port = one.get("port_id")
        if port != self._settings.port_ref:
            return Seen(port or None)
        return Seen(self._settings.server_ref, source=one.get("fixed_ip_address"))

    def _ask(self, question: Callable[[Client], Any]) -> Any:
        if self._neutron is None or self._clock.now() >= self._expires:
            self._log_in()
        assert self._neutron is not None
        try:
            return question(self._neutron)
        except ProviderError as error:
            if error.kind == "denied":  # the token may have been revoked: a new one, the next time
                self._expires = float("-inf")
            raise

    def _log_in(self) -> None:
        """Have a client for Neutron with a fresh token; tried once a minute. Raises ProviderError."""
        if self._clock.now() < self._denied_until:
            raise ProviderError(_DENIED, "denied")
        self._denied_until = self._clock.now() + _AFTER_DENIED
        credential = {"id": self._id, "secret": self._secret}
        identity = {"methods": ["application_credential"], "application_credential": credential}
        token, catalogue = _token(self._settings, {"auth": {"identity": identity}})
        if self._neutron is None:
            url = _endpoint(catalogue, self._settings.zone)
            self._neutron = Client(self.name, url, {}, self._settings, self._clock)
        self._neutron.authorize({"X-Auth-Token": token})
        self._expires, self._denied_until = self._clock.now() + _TOKEN_LIFE, float("-inf")


def _token(settings: IpAgent, body: object) -> tuple[str, Any]:
    """The token stands in a header, so this request is not one of `Client`."""
    url = settings.provider_url.rstrip("/") + "/auth/tokens"
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.post(url, json=body, timeout=settings.provider_timeout / 2, allow_redirects=False)
            said = answer.json() if answer.status_code == 201 else None
        except requests.RequestException:
            raise ProviderError("openstack: the identity service does not answer", "unavailable") from None
    if answer.status_code in (401, 403):
        raise ProviderError(_DENIED, "denied")
    if said is None or "X-Subject-Token" not in answer.headers:
        raise ProviderError(f"openstack: the identity service answers with {answer.status_code}", "unavailable")
    return answer.headers["X-Subject-Token"], field(said, "token", "catalog")


def _endpoint(catalogue: Any, region: str) -> str:
    found = [
        endpoint
        for service in catalogue
        if service.get("type") == "network"
        for endpoint in service.get("endpoints", ())
        if endpoint.get("interface") == "public"
    ]
    chosen = [endpoint for endpoint in found if endpoint.get("region") == region] or found
    if not chosen:
        raise ProviderError("openstack: the catalogue names no public network service")
    return str(chosen[0]["url"]).rstrip("/").removesuffix("/v2.0")
