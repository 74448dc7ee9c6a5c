"""DKIM: keys, their DNS records, signing and verifying (RFC 6376, RFC 8301, RFC 8463).

    message --> header fields --> those of _SIGNED, relaxed --\\
            `-> body --> relaxed_body --> bh=                  >-- hash --> Key.sign --> DKIM-Signature
                                          domain, selector, t= /

dkimpy does all of verifying, and its canonical forms are what ours are tested against. It does not sign: its RSA is written in
Python and takes 8 ms a message, so `Key.sign` uses cryptography (0.2 to 0.7 ms, and the GIL is free meanwhile). It takes whole
messages and cuts them into lines, and looks through all fields for each name, where ours are passes at memory speed. And it
reads the clock and cuts a long domain in two when it folds, so the tags are written here. No module state is touched:
every function may run in any thread, and one Key may sign in several.
"""

import base64
import enum
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import dkim
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from remails.mail import headers

RSA_BITS = 2048  # RFC 8301 §3.2
MAX_SIGNATURES = 10
_MAX_FOLDED = 76

# Oversigned even where absent: an added one would change what people see or where an answer goes (RFC 6376 §8.15, M18).
_GUARDED = (
    b"from",
    b"sender",
    b"reply-to",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"message-id",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
)
# Oversigned where present.
_PROTECTED = (
    b"content-id",
    b"content-description",
    b"in-reply-to",
    b"references",
    b"list-id",
    b"list-help",
    b"list-subscribe",
    b"list-post",
    b"list-owner",
    b"list-archive",
    b"feedback-id",
)
# Signed only as often as present: who resends puts a new block of them on top (RFC 5322 §3.6.6).
_REPEATABLE = (
    b"resent-date",
    b"resent-from",
    b"resent-sender",
    b"resent-to",
    b"resent-cc",
    b"resent-message-id",
)
_SIGNED = frozenset((*_GUARDED, *_PROTECTED, *_REPEATABLE))


class Algorithm(enum.StrEnum):
    """What a key signs with; the words of the API and the database."""

    RSA = "rsa_sha256"
    ED25519 = "ed25519"


_TAGS = {Algorithm.RSA: "rsa-sha256", Algorithm.ED25519: "ed25519-sha256"}


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, ready to sign. Loading takes far longer than signing, so keep it."""

    private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

    @property
    def algorithm(self) -> Algorithm:
        """Which of the two it is."""
        return Algorithm.RSA if isinstance(self.private, rsa.RSAPrivateKey) else Algorithm.ED25519

    def sign(self, digest: bytes) -> bytes:
        """Sign the SHA-256 digest of the canonical header (RFC 6376 §3.7; RFC 8463 §3)."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(digest, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
        return self.private.sign(digest)


def generate(algorithm: Algorithm) -> bytes:
    """A new private key as PKCS#8 DER."""
    private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    if algorithm is Algorithm.RSA:
        private = rsa.generate_private_key(65537, RSA_BITS)
    else:
        private = ed25519.Ed25519PrivateKey.generate()
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def load(der: bytes) -> Key:
    """Read a private key from PKCS#8 DER.

    Raises:
        ValueError: it is none, or of a kind that DKIM does not know, or too short to be believed by anyone.
    """
    # The key is one we made, kept sealed and authenticated; checking its primes again would take 40 ms.
    private = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise ValueError("a DKIM key must be RSA or Ed25519")
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < 1024:
        raise ValueError("an RSA key for DKIM must have at least 1024 bits")  # RFC 8301 §3.2
    return Key(private)


def public_key(der: bytes) -> str:
    """The public half of a private key as it stands in p=: base64 of SPKI for RSA, of the 32 bytes for Ed25519."""
    public = load(der).private.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # RFC 6376 §3.6.1
    else:
        octets = public.public_bytes(Encoding.Raw, PublicFormat.Raw)  # RFC 8463 §4.2
    return base64.b64encode(octets).decode("ascii")


def record(der: bytes) -> str:
    """The text of the TXT record that publishes the key."""
    kind = "rsa" if load(der).algorithm is Algorithm.RSA else "ed25519"
    return f"v=DKIM1; k={kind}; p={public_key(der)}"


def sign(raw: bytes, *, domain: str, selector: str, key: Key, now: int) -> bytes:
    """The DKIM-Signature field of a message, folded and with its CRLF, to be put in front of it.

    Relaxed/relaxed, without l= (RFC 6376 §8.2).

    Args:
        domain: d=, in A-labels.
        selector: s=.
        now: t=, Unix time in seconds.
    """
    header, body = headers.split(raw)
    present: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for field in headers.fields(header):
        if field.name in _SIGNED:
            present[field.name].append(_relaxed(field.raw))
    names, listed = _signed_names(tuple((name, len(found)) for name, found in present.items()))
    body_hash = base64.b64encode(hashlib.sha256(relaxed_body(body)).digest()).decode("ascii")
    unsigned = (
        f"DKIM-Signature: v=1; a={_TAGS[key.algorithm]}; c=relaxed/relaxed; d={domain};\r\n\ts={selector}; t={now};\r\n"
        f"\th={listed};\r\n\tbh={body_hash};\r\n\tb="
    )
    # RFC 6376 §5.4.2: of several with one name the lowest first; a name beyond them stands for none.
    signed = [found.pop() for found in map(present.__getitem__, names) if found]
    digest = hashlib.sha256(b"".join([*signed, _relaxed(unsigned.encode()).removesuffix(b"\r\n")])).digest()
    signature = base64.b64encode(key.sign(digest)).decode("ascii")
    lines = (signature[start : start + 72] for start in range(0, len(signature), 72))
    return f"{unsigned}{_folded(lines)}\r\n".encode()


@lru_cache(maxsize=1000)
def _signed_names(present: tuple[tuple[bytes, int], ...]) -> tuple[list[bytes], str]:
    """h=: each name as often as present, and the guarded once more, so that none can be added (RFC 6376 §5.4.2).

    Args:
        present: the names in a header and how often each; most senders' mails have the same.

    Returns:
        The names, and the text of the tag.
    """
    times = dict(present)
    names: list[bytes] = []
    for name in _GUARDED:
        names += [name] * (times.get(name, 0) + 1)
    for name in _PROTECTED:
        names += [name] * (times[name] + 1 if name in times else 0)
    for name in _REPEATABLE:
        names += [name] * times.get(name, 0)
    return names, _folded(f"{name.decode('ascii')}:" for name in names)[:-1]


_BLANKS = re.compile(rb"[ \t]+")


def _relaxed(field: bytes) -> bytes:
    """The canonical form of a field, with its CRLF (RFC 6376 §3.4.2)."""
    name, _, value = field.partition(b":")
    value = value.replace(b"\r\n", b"")
    if b"\t" in value or b"  " in value:
        value = _BLANKS.sub(b" ", value)
    return b"%b:%b\r\n" % (name.lower().rstrip(b" \t"), value.strip(b" \t"))


def _folded(words: Iterable[str]) -> str:
    """The words one after the other, in lines of bounded length (RFC 5322 §2.2.3)."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > _MAX_FOLDED - 4:  # room for a tab and a tag such as `bh=`
            lines.append("")
        lines[-1] += word
    return "\r\n\t".join(lines)


def _pair(field: headers.Field) -> tuple[bytes, bytes]:
    """A field as dkimpy takes it."""
    name, _, value = field.raw.partition(b":")
    return name, value


_CRLFS_REVERSED = re.compile(rb"(?:\n\r)*+")


def relaxed_body(body: bytes) -> bytes:
    """The canonical form of a body (RFC 6376 §3.4.4); what lacks a last CRLF is given one, as SMTP will do."""
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    body = body.replace(b"\t", b" ")
    while b"  " in body:
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \r\n", b"\r\n")
    kept = body.rstrip(b"\r\n")
    ending = body[len(kept) :]
    empty_lines = _CRLFS_REVERSED.match(ending[::-1])
    assert empty_lines is not None  # it matches nothing, too
    kept += ending[: len(ending) - empty_lines.end()]
    return kept + b"\r\n" if kept else b""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one signature. `algorithm` is its a= tag; `reason` is empty when `ok`."""

    domain: str
    selector: str
    algorithm: str
    ok: bool
    reason: str


def verify(raw: bytes, txt: Callable[[str], list[bytes]]) -> list[Verdict]:
    """Check every signature of a message, the topmost first; at most MAX_SIGNATURES of them.

    Args:
        raw: the message with CRLF line ends.
        txt: the TXT records at a name, each in one piece; what it raises is not caught.
    """
    header, body = headers.split(raw)
    found = headers.fields(header)
    message = dkim.DKIM()
    message.headers = [_pair(field) for field in found if field.name]
    message.body = body if not body or body.endswith(b"\r\n") else body + b"\r\n"
    count = sum(field.name == b"dkim-signature" for field in found)
    return [_verdict(message, number, txt) for number in range(min(count, MAX_SIGNATURES))]


def _verdict(message: dkim.DKIM, number: int, txt: Callable[[str], list[bytes]]) -> Verdict:
    message.signature_fields = {}
    try:
        ok = message.verify(number, dnsfunc=lambda name, **_: _key_record(name, txt))
        reason = "" if ok else "the signature does not fit the header"
    # dkimpy's own errors, and those of the parsers below it when tags are odd.
    except (dkim.DKIMException, ValueError, LookupError, TypeError, AttributeError) as error:
        ok, reason = False, headers.clean(str(error))[:300]
    tags = message.signature_fields
    domain, selector, algorithm = (headers.decode(tags.get(tag, b"")) for tag in (b"d", b"s", b"a"))
    return Verdict(domain, selector, algorithm, bool(ok), reason)


def _key_record(name: bytes, txt: Callable[[str], list[bytes]]) -> bytes:
    """The one key record at a name. dkimpy would pass over a bad key in silence, so it is checked here."""
    place = name.decode("ascii").rstrip(".")
    records = txt(place)
    if len(records) != 1:  # RFC 6376 §3.6.2.2
        raise dkim.ValidationError(f"{len(records)} key records at {place}, there must be one")
    try:
        dkim.evaluate_pk(name, records[0])
    except (dkim.KeyFormatError, ValueError, LookupError) as error:
        raise dkim.ValidationError(f"the key record at {place} is not valid: {error}") from None
    return records[0]
