"""The certificates we show: which one for which name, and how new ones come into use.

All of them are loaded together into one set. A client that names a host in its TLS greeting (SNI, RFC 6066 §3) gets the
certificate with that name, every other client that of `tls_certificate`. `reload` looks whether a file has changed; if so,
it loads a whole new set for the handshakes to come. What is broken or half replaced changes nothing: the old set stays.
"""

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from remails.config import Inbound
from remails.errors import ConfigError
from remails.logs import Log

log = Log("remails.inbound")


@dataclass(frozen=True, slots=True)
class _Pair:
    """Files of a certificate and its key, and the settings that name them."""

    certificate: str
    key: str
    certificate_setting: str
    key_setting: str


class Certificates:
    """The certificates of this process. Raises ConfigError when one cannot be used."""

    def __init__(self, settings: Inbound) -> None:
        self._pairs = list(_pairs(settings))
        self._stamps, self.context = self._read()
        """For the next handshake, on the server's side."""

    def reload(self) -> None:
        """Use what the files hold now, if they have changed and are sound."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._stamps, self.context = self._read()
        except ConfigError as error:
            log.warning("new certificate cannot be used, the old one stays", reason=error)
        else:
            log.info("certificates loaded anew")

    def _read(self) -> tuple[list["_Stamp | None"], ssl.SSLContext]:
        """All of them, as they were at one moment; raises ConfigError. A file is opened twice, and may be replaced between."""
        while True:
            stamps = self._look()
            try:
                return stamps, _load(self._pairs)
            except ConfigError:
                if self._look() == stamps:
                    raise

    def _look(self) -> list["_Stamp | None"]:
        return [_stamp(path) for pair in self._pairs for path in (pair.certificate, pair.key)]


_Stamp = tuple[int, int, int]


def _stamp(path: str) -> _Stamp | None:
    """Changes with the file; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _pairs(settings: Inbound) -> Iterator[_Pair]:
    yield _Pair(settings.tls_certificate, settings.tls_key, "inbound.tls_certificate", "inbound.tls_key")
    for number, more in enumerate(settings.certificates):
        name = f"inbound.certificates[{number}]"
        yield _Pair(more.certificate, more.key, f"{name}.certificate", f"{name}.key")


def _load(pairs: list[_Pair]) -> ssl.SSLContext:
    """The context of the first pair, which hands over to that of another one by the name a client asks for."""
    default, *others = [_context(pair) for pair in pairs]
    by_name: dict[str, ssl.SSLContext] = {}
    for pair, context in zip(pairs, (default, *others), strict=True):
        for name in _names(pair):
            by_name.setdefault(name, context)

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = _find(by_name, name) or default

    default.sni_callback = choose
    return default


def _find(by_name: Mapping[str, ssl.SSLContext], name: str | None) -> ssl.SSLContext | None:
    wanted = (name or "").lower().rstrip(".")
    # RFC 9525 §6.3: the star stands for exactly one label, the first.
    return by_name.get(wanted) or by_name.get("*." + wanted.partition(".")[2])


def _context(pair: _Pair) -> ssl.SSLContext:
    for setting, path in ((pair.certificate_setting, pair.certificate), (pair.key_setting, pair.key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996, RFC 8314 §4.1
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # RFC 9325 §4.2, for TLS 1.2; 1.3 has no weak ones
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # Without a password given here, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(pair.certificate, pair.key, password="")
    except ssl.SSLError as error:
        raise ConfigError(_why_not(error, pair)) from None
    except OSError as error:
        raise ConfigError(f"{pair.certificate_setting}: cannot read it: {error.strerror}") from None
    return context


def _why_not(error: ssl.SSLError, pair: _Pair) -> str:
    """What is wrong with certificate or key, in one sentence."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{pair.key_setting}: {pair.key} is not the key of the certificate in {pair.certificate}"
    try:
        x509.load_pem_x509_certificates(Path(pair.certificate).read_bytes())
    except (OSError, ValueError):
        return f"{pair.certificate_setting}: {pair.certificate} does not begin with a certificate in PEM"
    return f"{pair.key_setting}: {pair.key} is not a private key in PEM without a passphrase"


def _names(pair: _Pair) -> list[str]:
    """The host names a certificate is for (RFC 9525 §6.1), in lower case."""
    try:
        certificate, *_ = x509.load_pem_x509_certificates(Path(pair.certificate).read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (OSError, ValueError):
        raise ConfigError(f"{pair.certificate_setting}: {pair.certificate} cannot be read as a certificate") from None
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]
