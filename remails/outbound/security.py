"""How secure a connection must be, how secure it was, and what certificates are worth.

opportunistic   any certificate, old protocols too; plain text where TLS fails: each is better than the next (RFC 7435 §3)
sts-testing     the same; what `sts` would have refused is noted (RFC 8461 §5)
required        a certificate valid for the MX host's name, or no delivery: the project wants it
sts             the same, and the host is one the domain's policy names (RFC 8461 §4)
dane            what the domain's TLSA records say, by DNSSEC (RFC 7672)
"""

import functools
import ssl
import sys
from dataclasses import dataclass, field, replace
from enum import StrEnum

from remails.errors import ConfigError
from remails.mail.chain import Roots
from remails.mail.dane import Tlsa

_MOST_CERTIFICATES = 16  # of a chain; servers send three or four


class Policy(StrEnum):
    """Which rule a connection is under."""

    OPPORTUNISTIC = "opportunistic"
    TESTING = "sts-testing"
    REQUIRED = "required"
    STS = "sts"
    DANE = "dane"


@dataclass(frozen=True, slots=True)
class Security:
    """What is asked of a connection's TLS."""

    policy: Policy = Policy.OPPORTUNISTIC
    because: str = field(default="", compare=False)
    """Who asks for it, for people."""
    note: str = ""
    """What is known beforehand not to be as it should."""
    tlsa: tuple[Tlsa, ...] = ()
    """For DANE: the usable records. None: encryption is a must, by any certificate (RFC 7672 §2.2)."""
    server_name: str = ""
    """The name to ask for (SNI), where it is not that of the MX host."""
    names: tuple[str, ...] = ()
    """For DANE-TA: the names of which the certificate must have one."""

    @property
    def is_required(self) -> bool:
        """Whether nothing is sent without TLS that fulfils this."""
        return self.policy not in (Policy.OPPORTUNISTIC, Policy.TESTING)

    @property
    def is_verified_by_authority(self) -> bool:
        """Whether the certificate must be valid by an authority that is believed."""
        return self.policy in (Policy.REQUIRED, Policy.STS)


@dataclass(frozen=True, slots=True)
class Secured:
    """How a connection was secured."""

    policy: Policy
    tls: str | None = None
    """TLS version and cipher; None for plain text."""
    verified: bool | None = None
    """Whether the server has proved its name: by a valid certificate, or by DANE; None for plain text."""
    note: str = ""
    """What was not as it should be, for people."""

    def but(self, note: str) -> "Secured":
        """The same with one more thing to say."""
        return replace(self, note="; ".join(filter(None, (self.note, note))))


class Trust:
    """The TLS contexts of connections, and the certificate authorities that are believed.

    Args:
        ca_file: their certificates in PEM; empty for those of the system.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, ca_file: str) -> None:
        try:
            self.verified = ssl.create_default_context(cafile=ca_file or None)
        except ssl.SSLError:
            raise ConfigError(f"outbound.ca_file: {ca_file} holds no certificates in PEM") from None
        except OSError as error:
            raise ConfigError(f"outbound.ca_file: cannot read {ca_file}: {error.strerror}") from None
        self.verified.hostname_checks_common_name = False  # RFC 9525 §6.3
        self.roots = Roots(self.verified.get_ca_certs(binary_form=True))
        self._any = _unverified()
        self._weak = _unverified()
        # RFC 7435 §3: old encryption is better than none, where none would be the other choice.
        self._weak.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        self._weak.set_ciphers("DEFAULT:!PSK:!SRP:@SECLEVEL=0")

    def context(self, security: Security) -> ssl.SSLContext:
        """For a connection that must be so secure."""
        if security.is_verified_by_authority:
            return self.verified
        return self._any if security.is_required else self._weak


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@functools.cache
def trust(ca_file: str) -> Trust:
    """What is believed; the same for the whole process. Raises ConfigError."""
    return Trust(ca_file)


def server_name(host: str) -> str | None:
    """What to ask for in the handshake (RFC 6066 §3); None where the DNS holds what cannot be a host's name."""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return None


def presented(tls: ssl.SSLObject) -> list[bytes]:
    """The certificates a server has shown, its own first, as DER; empty when there are none.

    Until Python 3.13 the ssl module has this only below its surface.
    """
    if sys.version_info >= (3, 13):
        return list(tls.get_unverified_chain())[:_MOST_CERTIFICATES]
    found = tls._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
    return [one.public_bytes(_DER) for one in found][:_MOST_CERTIFICATES]


_DER = 2  # _ssl.ENCODING_DER
