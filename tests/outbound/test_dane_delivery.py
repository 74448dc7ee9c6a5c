"""DANE from end to end: zones signed by Knot, validated by unbound, mail to servers that fit their TLSA records or do not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import authority
import dnssec
import msgspec
import pytest
from authority import Authority, Issued, issue
from workbench import Bench, free_port

from remails.config import Settings, decode
from remails.dev.mailbox import Mailbox
from remails.dev.smtp import Script
from remails.errors import ConfigError
from remails.mail.sts import Mode, Policy
from remails.store import sts

pytestmark = pytest.mark.needs("knotd", "unbound")

CA = Authority()
GOOD = CA.issue("mx.example.net")
SELF = issue("mx.example.net")
EXPIRED = issue("mx.example.net", ends=-authority.DAY / 2)
OTHER = issue("other.example")
MX, SPARE = "127.0.0.41", "127.0.0.42"


@dataclass(frozen=True)
class Row:
    """A recipient's domain, `<label>.<zone>`; what its MX shows (None: no TLS); what becomes of a mail to it.

    Records stand in the zone of `zone`; `D` is the domain's label, `P` the labels of the port.
    """

    label: str
    records: str
    shown: Issued | None
    status: str = "delivered"
    rule: str | None = "dane"
    verified: bool | None = True
    said: str = ""
    zone: str = "secure.example"
    strict: bool = False


USUAL = "D MX 10 mx.D\nmx.D A 127.0.0.41\n"


def usual(*texts: str) -> str:
    return USUAL + "".join(f"P.mx.D TLSA {text}\n" for text in texts)


TA_BY_NAME = CA.issue("mx.ta.secure.example")
TA_BY_DOMAIN = CA.issue("domain.secure.example")
WAITS = {"status": "reattempt", "verified": None}
ROWS = [
    Row("ee", usual(SELF.tlsa(3)), SELF),
    Row("ee-certificate", usual(SELF.tlsa(3, 0, 1)), SELF),
    Row("ee-strong", usual(SELF.tlsa(3, 1, 2)), SELF),
    Row("ee-full", usual(SELF.tlsa(3, 1, 0)), SELF),
    Row("ee-expired", usual(EXPIRED.tlsa(3)), EXPIRED),
    Row("ee-rollover", usual(OTHER.tlsa(3), SELF.tlsa(3)), SELF),
    Row("ee-wrong", usual(OTHER.tlsa(3)), SELF, said="fits none of the TLSA records", **WAITS),
    Row("ee-wrong-though-valid", usual(OTHER.tlsa(3)), GOOD, said="fits none of the TLSA records", **WAITS),
    Row("ee-no-tls", usual(SELF.tlsa(3)), None, said="offers no TLS", **WAITS),
    Row("ta", usual(CA.below.tlsa(2)), TA_BY_NAME),
    Row("domain", usual(CA.below.tlsa(2, 0, 1)), TA_BY_DOMAIN),
    Row("ta-name", usual(CA.below.tlsa(2)), GOOD, said="other names", **WAITS),
    Row("unusable", usual(OTHER.tlsa(1)), SELF, verified=False),
    Row("unusable-no-tls", usual(OTHER.tlsa(1)), None, said="offers no TLS", **WAITS),
    Row("unusable-strict", usual(OTHER.tlsa(1)), SELF, rule="required", strict=True, said="self-signed", **WAITS),
    Row("fits-strict", usual(SELF.tlsa(3)), SELF, strict=True),
    Row("none", USUAL, SELF, rule="opportunistic", verified=False),
    Row("none-no-tls", USUAL, None, rule="opportunistic", verified=None),
    Row("implicit", "D A 127.0.0.41\nP.D TLSA " + SELF.tlsa(3), SELF),
    Row("implicit-wrong", "D A 127.0.0.41\nP.D TLSA " + OTHER.tlsa(3), SELF, said="fits none", **WAITS),
    Row("alias", "D MX 10 mx.D\nmx.D CNAME real.D\nreal.D A 127.0.0.41\nP.real.D TLSA " + SELF.tlsa(3), SELF),
    Row("alias-wrong", "D MX 10 mx.D\nmx.D CNAME real.D\nreal.D A 127.0.0.41\nP.real.D TLSA " + OTHER.tlsa(3) + "\nP.mx.D TLSA " + SELF.tlsa(3), SELF, said="fits none", **WAITS),
    Row("alias-own", "D MX 10 mx.D\nmx.D CNAME real.D\nreal.D A 127.0.0.41\nP.mx.D TLSA " + OTHER.tlsa(3), SELF, said="fits none", **WAITS),
    Row("alias-out", "D MX 10 mx.D\nmx.D CNAME host.insecure.example.\nP.mx.D TLSA " + OTHER.tlsa(3), SELF, said="fits none", **WAITS),
    Row("second", "D MX 10 a.D\nD MX 20 b.D\na.D A 127.0.0.41\nb.D A 127.0.0.42\nP.a.D TLSA " + OTHER.tlsa(3) + "\nP.b.D TLSA " + SELF.tlsa(3), SELF),
    Row("outside", "D MX 10 host.insecure.example.", SELF, rule="opportunistic", verified=False),
    # By plain DNS, records count for nothing: whoever could change the MX could change them.
    Row("from-outside", "D MX 10 mx.ee-wrong.secure.example.", SELF, rule="opportunistic", verified=False, zone="insecure.example"),
    Row("all-outside", usual(OTHER.tlsa(3)), SELF, rule="opportunistic", verified=False, zone="insecure.example"),
    Row("hidden", USUAL + "_tcp.mx.D NS ns\n_tcp.mx.D DS 1 13 2 " + "00" * 32, SELF, rule=None, said="cannot be looked up", **WAITS),
    Row("all", usual(SELF.tlsa(3)), SELF, rule=None, said="MX records", zone="bogus.example", **WAITS),
]  # fmt: skip


@dataclass(frozen=True)
class World:
    dns: dnssec.Dnssec
    port: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    port = free_port()
    zones = {
        "secure.example": "",
        "bogus.example": "",
        "insecure.example": "host A 127.0.0.41\nP.host TLSA " + OTHER.tlsa(3),
    }
    for row in ROWS:
        text = row.records.replace("D ", f"{row.label} ").replace(".D\n", f".{row.label}\n")
        zones[row.zone] += "\n" + text.replace(".D", f".{row.label}")
    zones = {zone: text.replace("P.", f"_{port}._tcp.") + "\n" for zone, text in zones.items()}
    zones["_tcp.mx.hidden.secure.example"] = ""
    with dnssec.serve(
        tmp_path_factory.mktemp("dnssec"),
        zones,
        unsigned=frozenset({"insecure.example", "_tcp.mx.hidden.secure.example"}),
        bogus=frozenset({"bogus.example"}),
    ) as served:
        yield World(served, port)


class SecureBench(Bench):
    """A bench whose resolver validates."""

    validating = True

    def settings(self) -> Settings:
        made = super().settings()
        return msgspec.structs.replace(
            made, dns=msgspec.structs.replace(made.dns, validating=self.validating, timeout=5)
        )


@pytest.fixture
def secure(bench: Bench, world: World, tmp_path: Path) -> SecureBench:
    (tmp_path / "roots.pem").write_text(CA.root.pem())
    made = SecureBench(bench.database, bench.db, bench.vault, bench.tenant, bench.directory)
    made.port, made.nameserver = world.port, ("127.0.0.1", world.dns.resolver)
    made.options["ca_file"] = str(tmp_path / "roots.pem")
    return made


@contextlib.asynccontextmanager
async def servers(bench: Bench, shown: Issued | None) -> AsyncIterator[tuple[Mailbox, Mailbox]]:
    script = Script(without=frozenset({"STARTTLS"})) if shown is None else None
    tls = True if shown is None else shown.context(bench.directory)
    async with bench.serve(MX, script, tls=tls) as one, bench.serve(SPARE, script, tls=tls) as two:
        yield one, two


def test_dane(secure: SecureBench) -> None:
    """RFC 7672: every row its own domain; those that show the same go at once."""

    async def main() -> None:
        groups: dict[tuple[int, bool], list[Row]] = {}
        for row in ROWS:
            groups.setdefault((id(row.shown), row.strict), []).append(row)
        wrong, arrived = [], 0
        for (_, strict), rows in groups.items():
            await secure.db.call(
                lambda conn, on=not strict: conn.execute("UPDATE projects SET plaintext_fallback = %s", [on])
            )
            async with servers(secure, rows[0].shown) as (one, two), secure.work():
                recipients = {f"a@{row.label}.{row.zone}": row for row in rows}
                message_id = await secure.submit(*recipients)
                found = await secure.deliveries(message_id)
                ids = {delivery.id: name for name, delivery in found.items()}
                entries = {
                    ids[entry.delivery_id]: entry for entry in await secure.timeline(message_id) if entry.delivery_id
                }
                for name, row in recipients.items():
                    got = found[name].status, entries[name].tls_policy, entries[name].tls_verified
                    if got != (row.status, row.rule, row.verified) or row.said not in (found[name].last_reply or ""):
                        wrong.append((row.label, got, found[name].last_reply, entries[name].tls_note))
                assert wrong == []
                arrived += sum(row.status == "delivered" for row in rows)
                async with asyncio.timeout(10):
                    while len(one.records) + len(two.records) < arrived:
                        await asyncio.sleep(0.02)
                assert len(one.records) + len(two.records) == arrived

    asyncio.run(main())


def test_dane_goes_before_mta_sts(secure: SecureBench) -> None:
    """RFC 8461 §2: a policy that names other servers changes nothing where DANE decides; elsewhere it does."""

    async def main() -> None:
        policy = Policy(Mode.ENFORCE, ("other.example",), 86400)
        for name in ("ee.secure.example", "none.secure.example", "ee-wrong.secure.example"):
            await secure.db.call(sts.save, name, "1", policy)
        await secure.db.call(
            sts.save, "unusable.secure.example", "1", Policy(Mode.ENFORCE, ("mx.unusable.secure.example",), 86400)
        )
        async with servers(secure, SELF), secure.work():
            message_id = await secure.submit(
                "a@ee.secure.example", "a@none.secure.example", "a@ee-wrong.secure.example", "a@unusable.secure.example"
            )
            rows = await secure.deliveries(message_id)
            assert {name.split("@")[1].split(".")[0]: row.status for name, row in rows.items()} == {
                "ee": "delivered",
                "none": "reattempt",
                "ee-wrong": "reattempt",
                "unusable": "reattempt",  # a certificate that is valid is more than any certificate
            }
            assert "self-signed" in (rows["a@unusable.secure.example"].last_reply or "")

    asyncio.run(main())


def test_a_resolver_that_is_not_trusted_proves_nothing(secure: SecureBench) -> None:
    """Its AD bit is not asked for and not believed: no DANE, but mail goes on."""

    async def main() -> None:
        secure.validating = False
        async with servers(secure, SELF), secure.work():
            message_id = await secure.submit("a@ee-wrong.secure.example")
            row = (await secure.deliveries(message_id))["a@ee-wrong.secure.example"]
            (entry,) = await secure.timeline(message_id)
            assert (row.status, entry.tls_policy) == ("delivered", "opportunistic")

    asyncio.run(main())


@pytest.mark.parametrize("nameservers", ["[]", '["192.0.2.1"]', '["127.0.0.1", "192.0.2.1:53"]'])
def test_only_a_resolver_on_this_host_can_be_trusted(nameservers: str) -> None:
    text = f'host = "x"\n[mail]\nhostname = "x"\n[database]\ndsn = ""\n[dns]\nvalidating = true\nnameservers = {nameservers}'
    with pytest.raises(ConfigError, match=r"dns\.validating"):
        decode(text.encode())
    assert decode(text.replace(nameservers, '["127.0.0.1:5353", "::1"]').encode()).dns.validating
