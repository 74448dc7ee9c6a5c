"""Any stream of commands, in any order and cut anywhere: one reply for each in its turn, and no transaction knows of another.

The session is held against a model of it: what each command is answered with, and what is stored in the end.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from inbound.dialogue import Dialogue
from inbound.running import Running, Stored
from seed import Tenant

MAX_ERRORS = 10
SMUGGLED = b"\n.\nMAIL FROM:<evil@x.example>\r\nRCPT TO:<v@example.net>\r\nDATA\r\n"

COMMANDS = (
    *("MAIL", "MAIL", "RCPT", "RCPT", "DATA", "BDAT", "BDAT LAST", "BDAT LAST", "RSET", "NOOP", "EHLO", "VRFY"),
    *("MAIL of another", "MAIL with rubbish", "RCPT of nobody", "rubbish", "DATA with bare CR", "BDAT with bare CR"),
)


@dataclass
class Model:
    """What the session should be like."""

    bytes_sent: list[bytes] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    stored: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    errors: int = 0
    is_closed: bool = False
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    chunks: bytes | None = None
    is_spoilt: bool = False

    def say(self, command: str, number: int) -> None:
        """One command, and what should come of it."""
        if self.is_closed:
            return
        name, _, how = command.partition(" ")
        getattr(self, f"_{name.lower()}")(how, number)
        if self.errors >= MAX_ERRORS:
            self.replies.append("421 4.7.0")
            self.is_closed = True

    def _line(self, line: str, reply: str) -> bool:
        self.bytes_sent.append(line.encode() + b"\r\n")
        return self._answer(reply)

    def _answer(self, reply: str) -> bool:
        self.replies.append(reply)
        if reply[0] == "5" and reply[4:7] == "5.5" and reply[:3] not in ("503", "554"):
            self.errors += 1
        return reply[0] in "23"

    def _reset(self) -> None:
        self.sender, self.recipients, self.chunks, self.is_spoilt = None, [], None, False

    def _mail(self, how: str, number: int) -> None:
        domain, rubbish = "x.example" if how == "of another" else "acme.example", " X=Y=Z" if "rubbish" in how else ""
        reply = "503 5.5.1" if self.sender else "501 5.5.4" if rubbish else "550 5.7.1" if how else "250 2.1.0"
        if self._line(f"MAIL FROM:<s{number}@{domain}>{rubbish}", reply):
            self.sender = f"s{number}@{domain}"

    def _rcpt(self, how: str, number: int) -> None:
        reply = "503 5.5.1" if not self.sender or self.chunks is not None else "553 5.1.3" if how else "250 2.1.5"
        if self._line(f"RCPT TO:<r{number}{'' if how else '@example.net'}>", reply):
            self.recipients.append(f"r{number}@example.net")

    def _no_message(self) -> str | None:
        return "503 5.5.1" if not self.sender else None if self.recipients else "554 5.5.1"

    def _data(self, how: str, number: int) -> None:
        refusal = "503 5.5.1" if self.chunks is not None else self._no_message()
        if not self._line("DATA", refusal or "354 End d"):
            return
        body = b"%d.\r\n" % number + (b"a\rb" if how else SMUGGLED) + b"\r\n"
        self.bytes_sent.append(b"From: a@acme.example\r\n\r\n" + body + b".\r\n")
        self._store(body)

    def _bdat(self, how: str, number: int) -> None:
        refusal = "503 5.5.1" if self.is_spoilt else self._no_message()
        chunk = b"%d." % number + (b"a\rb" if "bare" in how else SMUGGLED)
        if self.chunks is None:
            chunk = b"From: a@acme.example\r\n\r\n" + chunk
        is_last = how != ""
        self.bytes_sent.append(b"BDAT %d%s\r\n" % (len(chunk), b" LAST" if is_last else b"") + chunk)
        if refusal:
            self._answer(refusal)
            return
        self.chunks = (self.chunks or b"") + chunk
        if not is_last:
            self._answer("250 2.0.0")
            return
        body = self.chunks.partition(b"\r\n\r\n")[2]
        self._store(body if body.endswith(b"\n") else body + b"\r\n")

    def _store(self, body: bytes) -> None:
        assert self.sender
        if b"a\rb" in body:
            self._answer("550 5.6.11")
        else:
            self._answer("250 2.6.0")
            self.errors = 0
            normal = body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            self.stored.append((self.sender, self.recipients, normal))
        self._reset()

    def _rset(self, _: str, __: int) -> None:
        self._line("RSET", "250 2.0.0")
        self._reset()

    def _ehlo(self, _: str, __: int) -> None:
        self._line("EHLO again.example", "250-mail.")
        self._reset()

    def _noop(self, _: str, __: int) -> None:
        self._line("NOOP", "250 2.0.0")

    def _vrfy(self, _: str, __: int) -> None:
        self._line("VRFY b@example.net", "252 2.0.0")

    def _rubbish(self, _: str, __: int) -> None:
        self._line("RUBBISH", "500 5.5.1")


def test_any_stream_of_commands(inbound: Running, acme: Tenant, stored: Callable[[], list[Stored]]) -> None:
    known: set[str] = set()

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @example(commands=["RUBBISH"] * 11, cuts=None)
    @example(commands=["MAIL"] * 12, cuts=None)
    @given(
        commands=st.lists(st.sampled_from(COMMANDS), max_size=25),
        cuts=st.none() | st.lists(st.integers(0, 4000), max_size=8),
    )
    def hold(commands: list[str], cuts: list[int] | None) -> None:
        model = Model()
        for number, command in enumerate(commands):
            model.say(command, number)
        with inbound.connect() as session:
            session.log_in(acme)
            got = pipelined(session, model, cuts) if cuts is not None else step_by_step(session, model)
            if not model.is_closed:
                session.in_step()
        wanted = [reply[:9] for reply in model.replies]
        assert [reply[: len(expected)] for reply, expected in zip(got, wanted, strict=True)] == wanted
        new = [one for one in stored() if one.id not in known]
        known.update(one.id for one in new)
        assert [(one.mail_from, one.recipients, one.body) for one in new] == model.stored

    hold()


def pipelined(session: Dialogue, model: Model, cuts: list[int]) -> list[str]:
    """Everything at once, in pieces that the network made."""
    stream = b"".join(model.bytes_sent)
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(bounds):
        session.send(stream[start:end])
    return [session.reply() for _ in model.replies]


def step_by_step(session: Dialogue, model: Model) -> list[str]:
    """Each command after the reply to the one before; a message after 354."""
    waiting = iter(model.bytes_sent)
    replies: list[str] = []
    for number in range(len(model.replies)):
        if number < len(model.bytes_sent):
            session.send(next(waiting))
        replies.append(session.reply())
    return replies


WORDS = (
    *(
        b"MAIL FROM:<a@acme.example>\r\n",
        b"RCPT TO:<b@example.net>\r\n",
        b"DATA\r\n",
        b"BDAT 5\r\nabcde",
        b"BDAT 3 LAST\r\nabc",
    ),
    *(
        b"\r\n.\r\n",
        b".\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\xff\xfe",
        b"RSET\r\n",
        b"EHLO x\r\n",
        b"AUTH PLAIN AA\r\n",
        b"*\r\n",
    ),
    *(
        b"STARTTLS\r\n",
        b"BDAT 99999999999999999999\r\n",
        b"BDAT -1\r\n",
        b"NOOP " + b"x" * 600 + b"\r\n",
        b" ",
        b"<>",
        b'"',
    ),
    *(
        b"From: a@acme.example\r\n\r\n",
        b"SIZE=1 RET=HDRS NOTIFY=NEVER\r\n",
        b"x" * 3000,
        b"HELP\r\n",
        b"AUTH LOGIN\r\n",
    ),
)


def test_noise(inbound: Running, acme: Tenant, stored: Callable[[], list[Stored]]) -> None:
    """Words of the protocol and bytes that are none, in any order: replies or a close, no traceback, and others are served.

    The fixture behind `inbound` fails the test when an error is logged.
    """
    dice = random.Random(5321)
    for _ in range(40):
        noise = b"".join(
            dice.choice(WORDS) if dice.random() < 0.9 else dice.randbytes(dice.randint(1, 40))
            for _ in range(dice.randint(1, 40))
        )
        with inbound.connect(dice.choice(["submission", "smtps"])) as session:
            if dice.random() < 0.7:
                session.log_in(acme)
            else:
                session.reply()
            try:
                session.send(noise)
                session.sock.settimeout(0.05)
                while session.sock.recv(65536):
                    pass
            except OSError:  # also that nothing more came
                pass
    with inbound.connect() as session:
        session.log_in(acme).envelope("a@acme.example")
        session.send(b"From: a@acme.example\r\n\r\nstill here\r\n.\r\n")
        assert session.reply().startswith("250 2.6.0")
    assert stored()[-1].body == b"still here\r\n"
    assert all(one.mail_from == "a@acme.example" and set(one.recipients) == {"b@example.net"} for one in stored())
