r"""The recorded cases of the protocol, replayed: `steps/<case>.steps`, each named by the case's id.

# comment           > bytes to send, with Python's escapes      @repeat N > the same, N times
< regex             found in what came since the last send      !< regex    not found in it
@hello              EHLO, STARTTLS, EHLO, AUTH                  @close      close at once
@noread             no banner before what is sent (PROXY)       ~ seconds   wait
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant

from remails.db import Database
from remails.store import domains
from remails.vault import Vault

STEPS = sorted((Path(__file__).parent / "steps").glob("*.steps"))
NEEDS_TLS = {"P20", "P22", "P23"}  # which log in without saying STARTTLS
QUIET = 0.1  # seconds after which no more is coming


class Replay:
    """One connection, and what came over it since the last send."""

    def __init__(self, dialogue: Dialogue, tenant: Tenant) -> None:
        self._dialogue, self._tenant = dialogue, tenant
        self._heard = b""
        self._unheard = self._ended = False

    def send(self, octets: bytes) -> None:
        while self._unheard and self._listen(QUIET):
            pass
        self._heard, self._unheard = b"", True
        try:
            self._dialogue.send(octets)
        except OSError:
            self._ended = True

    def expect(self, pattern: bytes) -> None:
        self._unheard = False
        deadline = time.monotonic() + 10
        while not re.search(pattern, self._heard, re.DOTALL) and not self._ended and time.monotonic() < deadline:
            self._listen(deadline - time.monotonic())
        assert re.search(pattern, self._heard, re.DOTALL), f"wanted {pattern!r}, got {self._heard[-300:]!r}"

    def exclude(self, pattern: bytes) -> None:
        while self._listen(QUIET):
            pass
        assert not re.search(pattern, self._heard, re.DOTALL), f"{pattern!r} in {self._heard[-300:]!r}"

    def _listen(self, seconds: float) -> bool:
        if self._ended:
            return False
        try:
            self._dialogue.sock.settimeout(seconds)
            got = self._dialogue.sock.recv(65536)
        except TimeoutError:
            return False
        except OSError:
            got = b""
        self._ended = not got
        self._heard += got or b"<EOF>"
        return True

    def hello(self) -> None:
        self._dialogue.log_in(self._tenant)


def unescaped(text: str) -> bytes:
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


def lines(file: Path) -> Iterator[str]:
    for line in file.read_text("latin-1").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def play(file: Path, dialogue: Dialogue, tenant: Tenant) -> None:
    replay = Replay(dialogue, tenant)
    steps = list(lines(file))
    if not {"@hello", "@noread"} & set(steps):
        dialogue.reply()
    for step in steps:
        word, _, rest = step.partition(" ")
        if word == "@hello":
            replay.hello()
        elif word == "@repeat":
            times, _, what = rest.partition(" > ")
            replay.send(unescaped(what) * int(times))
        elif word == "@close":
            dialogue.sock.close()
        elif word == "~":
            time.sleep(min(float(rest), QUIET))
        elif word == ">":
            replay.send(unescaped(rest))
        elif word == "<":
            replay.expect(rest.encode("latin-1"))
        elif word == "!<":
            replay.exclude(rest.encode("latin-1"))


@pytest.mark.parametrize("file", STEPS, ids=lambda file: file.stem)
def test_case(
    run: Callable[..., Running],
    acme: Tenant,
    db: Database,
    vault: Vault,
    stored: Callable[[], list[Stored]],
    file: Path,
) -> None:
    """And no case breaks the service or stores what was not accepted; `run` sees to it that no error is logged."""
    with db.transaction() as conn:
        domain = domains.create(
            conn, vault, acme.organization_id, "example.com", selector="remails", project_ids=[acme.project_id]
        )
        domains.save_verification(conn, domain.id, {}, verified=True)
    proxied = file.stem.startswith("P34")
    running = run(inbound={"proxy_trusted": ["127.0.0.0/8"]} if proxied else {})
    with running.connect("smtps" if file.stem in NEEDS_TLS else "submission") as dialogue:
        play(file, dialogue, acme)
    if not proxied:
        with running.connect() as dialogue:
            dialogue.log_in(acme)
    assert not [one for one in stored() if b"partial" in one.raw or "v@example.net" in one.recipients]
