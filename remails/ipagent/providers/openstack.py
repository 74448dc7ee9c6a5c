"""OpenStack (Infomaniak, OVH Public Cloud, Cleura and others): floating addresses of Neutron, which are exclusive.

Such an address is translated to the port's own on the way, so nothing is put on the interface: `bind_ip` of an address is a
fixed address of this host's port, `provider_ref` the id of the floating IP, and the setting `port_ref` the id of the port.
Addresses shared through `allowed_address_pairs` are not supported: several hosts could have one at the same time.

The credential `provider_token` is an application credential, `id:secret`. Keystone changes it into a token that is
renewed when it is not accepted any more; `provider_url` is Keystone's, and Neutron's is read from its catalogue, where
`zone` chooses the region if there are several.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import requests

from remails.config import IpAgent, Settings
from remails.errors import ConfigError
from remails.ipagent.providers.http import Client, Clock, field
from remails.ipagent.providers.protocol import ProviderError
from remails.store.addresses import Address

_TOKEN_LIFE = 30 * 60.0  # seconds; shorter than any Keystone's


class OpenStack:
    """The provider `openstack`."""

    name: ClassVar[str] = "openstack"
    is_remote: ClassVar[bool] = True
    configures_interface: ClassVar[bool] = False

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        mine = settings.ipagent
        for key in ("provider_url", "server_ref", "port_ref"):
            if not getattr(mine, key):
                raise ConfigError(f"ipagent.{key}: needed for provider openstack")
        self._id, colon, self._secret = settings.provider_token().partition(":")
        if not colon:
            raise ConfigError("credential provider_token: expected id:secret of an application credential")
        self._settings, self._clock = mine, clock or Clock()
        self._neutron: Client | None = None
        self._expires = 0.0

    def owners(self, addresses: Sequence[Address]) -> dict[str, str | None]:
        """One request for all floating addresses of the project. Raises ProviderError."""
        listed = field(self._ask(lambda client: client.get("/v2.0/floatingips")), "floatingips")
        found = {field(one, "id"): self._owner(one) for one in listed}
        return {address.ip: found[address.provider_ref] for address in addresses if address.provider_ref in found}

    def attach(self, address: Address) -> str | None:
        """Point the floating address to this host's port. Raises ProviderError."""
        body = {"floatingip": {"port_id": self._settings.port_ref, "fixed_ip_address": address.bind_ip}}
        path = f"/v2.0/floatingips/{quote(address.provider_ref, safe='')}"
        return self._owner(field(self._ask(lambda client: client.put(path, body)), "floatingip"))

    def _owner(self, one: Any) -> str | None:
        port = one.get("port_id")
        return self._settings.server_ref if port == self._settings.port_ref else port or None

    def _ask(self, question: Callable[[Client], Any]) -> Any:
        if self._neutron is None or self._clock.now() >= self._expires:
            self._neutron = self._logged_in()
        try:
            return question(self._neutron)
        except ProviderError as error:
            if error.kind == "denied":  # the token may have been revoked: a new one, the next time
                self._expires = 0.0
            raise

    def _logged_in(self) -> Client:
        """The client for Neutron, with a fresh token. Raises ProviderError."""
        body = {
            "auth": {
                "identity": {
                    "methods": ["application_credential"],
                    "application_credential": {"id": self._id, "secret": self._secret},
                }
            }
        }
        token, catalogue = _token(self._settings, body)
        client = self._neutron or Client(
            self.name, _endpoint(catalogue, self._settings.zone), {}, self._settings, self._clock
        )
        client.headers["X-Auth-Token"] = token
        self._expires = self._clock.now() + _TOKEN_LIFE
        return client


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
        raise ProviderError("openstack: the identity service does not accept the application credential", "denied")
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
