#!/usr/bin/python3
"""Brings the relay's certificates to this host: fetches them from an api host, replaces files that differ, writes the metrics.

It runs on Debian's own Python and python3-cryptography, for an edge has nothing else of Remails. A certificate that cannot be
fetched leaves the files as they are.
"""

import argparse
import json
import os
import random
import re
import ssl
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC
from pathlib import Path

from cryptography import x509
from cryptography.fernet import Fernet, InvalidToken

TIMEOUT = 10  # seconds
PAUSE = 3  # seconds until those that did not answer are asked again
LARGEST = 4_000_000  # bytes of an answer
LIFETIME = 300  # seconds for which an answer is taken
REFERENCE = "relay.pem"

HELP = """\
# HELP remails_certificate_not_after_timestamp_seconds When the certificate on this host ends.
# TYPE remails_certificate_not_after_timestamp_seconds gauge
%s# HELP remails_certificate_renewal_failed 1 if the last renewal failed, or its outcome could not be fetched; else 0.
# TYPE remails_certificate_renewal_failed gauge
%s"""


class Failure(Exception):
    """The certificates could not be fetched."""


class Silence(Failure):
    """No api host could answer."""


def main() -> int:
    """Do it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="where the files are")
    parser.add_argument("--key", type=Path, help="file with the key of the exchange")
    parser.add_argument("--metrics", type=Path, help="folder for the metrics, if it is there")
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds for which those that do not answer are asked again"
    )
    parser.add_argument("url", nargs="*", help="api hosts, such as http://10.0.0.11:8000; none: only write the metrics")
    told = parser.parse_args()
    failed, trouble = set(), ""
    try:
        for one in patiently(told.url, told.key.read_bytes(), told.wait) if told.url else ():
            if replace(told.directory, one["name"], one["pem"].encode("ascii")):
                sys.stdout.write(f"{one['name']}: a new certificate\n")
            if one["failed"]:
                failed.add(one["name"])
    except (Failure, OSError, ValueError, KeyError) as error:
        trouble = str(error) or type(error).__name__
    if told.metrics and told.metrics.is_dir():
        write(
            told.metrics / "remails_certificates.prom",
            metrics(told.directory, failed, bool(trouble)).encode("ascii"),
            0o644,
        )
    if trouble:
        sys.stderr.write(f"{trouble}\n")
    return 1 if trouble else 0


def patiently(urls: list, key: bytes, patience: float) -> list:
    """The same as `fetch`; where nobody can answer, it asks again for so many seconds: a whole relay may just be starting."""
    end = time.monotonic() + patience
    while True:
        try:
            return fetch(urls, key)
        except Silence:
            if time.monotonic() + PAUSE > end:
                raise
        time.sleep(PAUSE)


def fetch(urls: list, key: bytes) -> list:
    """What the first of the api hosts says that answers; each is asked first now and then. Raises Failure, Silence."""
    sealer = Fernet(key.strip())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    troubles, kind = [], Silence
    for url in random.sample(urls, len(urls)):
        asked = urllib.request.Request(  # noqa: S310  # a URL of the inventory
            f"{url}/internal/certificates",
            headers={"Authorization": f"Remails {sealer.encrypt(b'certificates').decode()}"},
        )
        try:
            with opener.open(asked, timeout=TIMEOUT) as answer:
                return json.loads(sealer.decrypt(answer.read(LARGEST), LIFETIME))
        except urllib.error.HTTPError as error:
            with error:
                why = "it does not know our key" if error.code == 404 else f"status {error.code}"
            kind = Failure if error.code == 404 else kind
        except (OSError, ValueError) as error:
            why = str(error)
        except InvalidToken:
            why, kind = "its answer is not sealed by our key, or old", Failure
        troubles.append(f"{url}: {why}")
    raise kind("; ".join(troubles))


def replace(directory: Path, name: str, pem: bytes) -> bool:
    """Put a certificate in place, in one step; whether it is another one than before. Raises ValueError, OSError."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,200}", name):
        raise ValueError(f"{name!r} is no name of a file")
    path = directory / f"{name}.pem"
    if path.exists() and path.read_bytes() == pem:
        return False
    like = (path if path.exists() else directory / REFERENCE).stat()
    write(path, pem, stat.S_IMODE(like.st_mode), like)
    return True


def write(path: Path, content: bytes, mode: int, like: "os.stat_result | None" = None) -> None:
    """Replace a file as a whole. One of certificates has to be usable."""
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as new:
            new.write(content)
            if like:
                os.fchown(new.fileno(), like.st_uid, like.st_gid)
            os.fchmod(new.fileno(), mode)
            new.flush()
            os.fsync(new.fileno())
        if like:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(made)
        made.replace(path)
    except BaseException:
        made.unlink()
        raise


def metrics(directory: Path, failed: set, is_cut_off: bool) -> str:
    """What Prometheus is told of the files."""
    ends, fails = "", ""
    for path in sorted(directory.glob("*.pem")):
        try:
            found = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:
            continue
        # Debian 12 has a library that does not know of time zones here.
        end = getattr(found, "not_valid_after_utc", None) or found.not_valid_after.replace(tzinfo=UTC)
        ends += f'remails_certificate_not_after_timestamp_seconds{{name="{path.stem}"}} {end.timestamp():.0f}\n'
        fails += f'remails_certificate_renewal_failed{{name="{path.stem}"}} {int(is_cut_off or path.stem in failed)}\n'
    return HELP % (ends, fails)


if __name__ == "__main__":
    sys.exit(main())
