"""The networks from which a credential may be used. None at all means from anywhere."""

import ipaddress
from collections.abc import Collection, Iterable, Sequence

from remails.db import Connection
from remails.store import constraints
from remails.store.ids import ApiKeyId, SmtpCredentialId

MOST = 50

_MAPPED = 96  # bits before an IPv4 address in IPv6, RFC 4291 §2.5.5.2


def read(texts: Iterable[str]) -> list[str]:
    """Networks as PostgreSQL writes them, each once; a single address is a network of one. Raises Refused (422)."""
    found: dict[str, None] = {}
    for text in texts:
        try:
            found[str(_plain(ipaddress.ip_network(text.strip())))] = None
        except ValueError as error:
            said = str(error).encode("ascii", "replace").decode()[:200]
            raise constraints.invalid(f"A network is written like 198.51.100.0/24: {said}.", "networks") from None
    if len(found) > MOST:
        raise constraints.invalid(f"At most {MOST} networks.", "networks")
    return list(found)


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network as clients' addresses are compared with it: one of IPv4 mapped into IPv6 is IPv4. Raises ValueError."""
    if isinstance(network, ipaddress.IPv4Network):
        return network
    if network.network_address.scope_id is not None:
        raise ValueError(f"{network} has a zone, which means nothing to other hosts")
    mapped = network.network_address.ipv4_mapped
    if mapped is None or network.prefixlen < _MAPPED:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED))


def admit(networks: Sequence[str], client: str) -> bool:
    """Whether a credential with these networks may be used by a client of this address."""
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network) for network in networks)


def of_smtp_credential(conn: Connection, credential_id: SmtpCredentialId, networks: Collection[str]) -> None:
    """Let an SMTP credential be used from these networks only; the caller has made sure that it is the tenant's."""
    conn.execute("DELETE FROM credential_networks WHERE smtp_credential_id = %s", [credential_id])
    conn.execute(
        "INSERT INTO credential_networks (smtp_credential_id, network) SELECT %s, unnest(%s::cidr[])",
        [credential_id, list(networks)],
    )


def of_api_key(conn: Connection, key_id: ApiKeyId, networks: Collection[str]) -> None:
    """The same of an API key."""
    conn.execute("DELETE FROM credential_networks WHERE api_key_id = %s", [key_id])
    conn.execute(
        "INSERT INTO credential_networks (api_key_id, network) SELECT %s, unnest(%s::cidr[])", [key_id, list(networks)]
    )
