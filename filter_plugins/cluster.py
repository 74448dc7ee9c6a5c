"""What the hosts of a database cluster prove to each other, all of it made from the one secret of the inventory.

The keys and certificates are functions of the secret, of the host's name and address, and of nothing else: Ed25519 signs the same
text the same way each time (RFC 8032, section 5.1.6). So nothing has to be kept on the controller, a second run changes nothing,
and a host that comes in another's place gets its certificate like any other file. They do not end: an end would only be one more
way for the database to stop; what ends them is another secret.
"""

import datetime
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_FROM, _UNTIL = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2024, 2124))


def cluster_password(secret: str, role: str) -> str:
    """The password of one of the cluster's own roles."""
    return _derived(secret, f"password of {role}").hex()


def cluster_authority(secret: str) -> str:
    """The certificate that those of all hosts are checked against, as PEM."""
    key = _key(secret, "authority")
    name = _name("Remails database cluster")
    unsigned = (
        _certificate(name, name, key, _derived(secret, "serial of the authority"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _pem(unsigned.sign(key, None))


def cluster_certificate(secret: str, host: str, addresses: Iterable[str]) -> dict[str, str]:
    """The private key and the certificate of a host, as PEM; it serves and it asks with the same one."""
    authority, key = _key(secret, "authority"), _key(secret, f"host {host}")
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    serial = _derived(secret, f"serial of {host} {names}")
    unsigned = (
        _certificate(_name(host), _name("Remails database cluster"), key, serial)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {"key": private, "certificate": _pem(unsigned.sign(authority, None))}


def cluster_is_whole(members: Iterable[Mapping[str, Any]], hosts: Iterable[str]) -> bool:
    """Whether these hosts are members that run, one leads, and one follows it synchronously; from `patronictl list`."""
    there = {member["Member"]: member for member in members if member.get("State") in ("running", "streaming")}
    roles = [member["Role"] for member in there.values()]
    return {*hosts} <= {*there} and roles.count("Leader") == 1 and roles.count("Sync Standby") == 1


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PrivateKey, serial: bytes
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    # RFC 5280, section 4.1.2.2: positive, and not longer than 20 octets.
    builder = builder.serial_number(int.from_bytes(serial[:16], "big") or 1)
    return (
        builder.not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key(secret: str, purpose: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_derived(secret, f"key of {purpose}"))


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _derived(secret: str, purpose: str) -> bytes:
    return hmac.digest(secret.strip().encode(), f"remails cluster: {purpose}".encode(), "sha256")


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "cluster_authority": cluster_authority,
            "cluster_certificate": cluster_certificate,
            "cluster_is_whole": cluster_is_whole,
            "cluster_password": cluster_password,
        }
