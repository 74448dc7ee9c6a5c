"""Sending through the API, and what it shows of an email."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Any
from uuid import UUID

import flask
import pytest
from api.caller import Caller, by_key
from msgspec import structs
from seed import Tenant

from remails import submission
from remails.api.app import create_app
from remails.api.rest import emails
from remails.bus.client import Publisher
from remails.config import Bus, Mail, Settings
from remails.db import Database
from remails.mail import address, dsn
from remails.store import addresses, audit, messages, organizations, plans, queue, suppressions
from remails.store.ids import MessageId
from remails.store.rates import Rate
from remails.vault import Pepper, Vault

MAIL = {"from": "app@acme.example", "to": "b@example.net", "subject": "Hello", "text_body": "Hi\n"}


def path(tenant: Tenant, rest: str = "") -> str:
    return f"/organizations/{tenant.organization_id}/emails{rest}"


def send_path(tenant: Tenant) -> str:
    return f"/organizations/{tenant.organization_id}/projects/{tenant.project_id}/emails"


@pytest.fixture
def send(key: Caller, tenant: Tenant) -> Any:
    """Send a mail with some fields changed; returns the answer."""

    def send(**changed: object) -> Any:
        return key("POST", send_path(tenant), {**MAIL, **changed})

    return send


def wire(db: Database, tenant: Tenant, id_: str) -> EmailMessage:
    """The message as it will leave."""
    raw = db.run(messages.body, tenant.organization_id, MessageId(UUID(id_)))
    assert raw is not None
    parsed = message_from_bytes(raw, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def stored(db: Database, tenant: Tenant) -> int:
    return len(db.run(messages.list_, tenant.organization_id, limit=100))


# Sending


def test_201_means_stored_with_what_the_original_answers(send: Any, db: Database, tenant: Tenant) -> None:
    response = send(label="Welcome mail")
    assert response.status_code == 201
    answer = response.get_json()
    assert answer["status"] == "accepted"
    assert answer["delivery_details"] == {"b@example.net": {"status": {"type": "None"}, "log": {"lines": []}}}
    assert answer["recipients"] == ["b@example.net"]
    assert answer["from_email"] == "app@acme.example"
    assert answer["api_key_id"] == str(tenant.api_key)
    assert answer["smtp_credential_id"] is None
    assert answer["project_id"] == str(tenant.project_id)
    assert answer["label"] == "welcome-mail"
    assert answer["message_id_header"] == f"<{answer['id']}@acme.example>"
    assert (answer["attempts"], answer["reason"]) == (0, None)
    assert answer["raw_size"].endswith("B")
    assert datetime.fromisoformat(answer["created_at"]).utcoffset() == timedelta(0)
    mail = wire(db, tenant, answer["id"])
    assert mail["subject"] == "Hello"
    assert mail["from"] == "app@acme.example"
    assert mail["message-id"] == answer["message_id_header"]
    assert "with HTTP" in mail["received"]
    assert "[127.0.0.1]" in mail["received"]
    assert mail.get_content() == "Hi\r\n"


def test_names_replies_threads_and_both_bodies(send: Any, db: Database, tenant: Tenant) -> None:
    answer = send(
        **{"from": {"name": "Acme Crew", "address": "app@acme.example"}},
        to=[{"name": "Bee", "address": "b@example.net"}, "c@example.net"],
        reply_to="help@acme.example",
        in_reply_to="<one@acme.example>",
        references=["<zero@acme.example>", "<one@acme.example>"],
        html_body="<p>Hi</p>",
    ).get_json()
    mail = wire(db, tenant, answer["id"])
    assert mail["from"] == "Acme Crew <app@acme.example>"
    assert mail["to"] == "Bee <b@example.net>, c@example.net"
    assert mail["reply-to"] == "help@acme.example"
    assert mail["in-reply-to"] == "<one@acme.example>"
    assert mail["references"] == "<zero@acme.example> <one@acme.example>"
    assert [part.get_content_type() for part in mail.walk()] == ["multipart/alternative", "text/plain", "text/html"]
    assert answer["recipients"] == ["b@example.net", "c@example.net"]


@pytest.mark.parametrize("subject", ["hello\n\nHello there", "x\r\nBcc: v@evil.example", "x\ry", "x\n"])
def test_a_line_break_in_the_subject_starts_no_header__A01(
    send: Any, db: Database, tenant: Tenant, subject: str
) -> None:
    response = send(subject=subject)
    assert response.status_code == 422
    assert response.get_json()["field"] == "subject"
    assert stored(db, tenant) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reply_to", "a@acme.example\r\nBcc: v@evil.example"),
        ("in_reply_to", "<a@b>\r\nBcc: v@evil.example"),
        ("references", ["<ok@b>", "<a@b>\r\nBcc: v@evil.example"]),
        ("from", {"name": "x\r\nBcc: v@evil.example", "address": "app@acme.example"}),
        ("to", [{"name": "x\nBcc: v@evil.example", "address": "b@example.net"}]),
        ("to", "b@example.net\r\nRCPT TO:<v@evil.example>"),
    ],
)
def test_no_field_starts_another_header__A01(
    send: Any, db: Database, tenant: Tenant, field: str, value: object
) -> None:
    response = send(**{field: value})
    assert response.status_code == 422
    assert response.get_json()["field"].startswith(field)
    assert stored(db, tenant) == 0


@pytest.mark.parametrize(
    "name",
    ['Müller, "X" <ceo@victim.example>', "a@b", "ceo@victim.example", "x, y", "  padded  ", "=?utf-8?q?ceo?=", "\\"],
)
def test_a_display_name_stays_a_name__A07(send: Any, db: Database, tenant: Tenant, name: str) -> None:
    response = send(**{"from": {"name": name, "address": "app@acme.example"}})
    assert response.status_code == 201
    raw = db.run(messages.body, tenant.organization_id, MessageId(UUID(response.get_json()["id"])))
    assert raw is not None
    header = message_from_bytes(raw, policy=policy.compat32)["from"]
    assert parseaddr(str(header).replace("\r\n", ""))[1] == "app@acme.example"
    assert wire(db, tenant, response.get_json()["id"])["from"].addresses[0].display_name == name.strip()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"from": "Name <app@acme.example>"}, "from"),
        ({"from": {"name": "x" * 300, "address": "app@acme.example"}}, "from.name"),
        ({"from": {"address": "nobody"}}, "from.address"),
        ({"from": {"email": "app@acme.example"}}, "from.email"),
        ({"from": 1}, "from"),
        ({"to": ["b@example.net", {"address": "c@localhost"}]}, "to[1].address"),
        ({"to": ["b@example.net", "c@"]}, "to[1]"),
        ({"to": []}, "to"),
        ({"to": None}, "to"),
        ({"to": [f"u{n}@example.net" for n in range(11)]}, "to"),
        ({"to": [f"u{n}@example.net" for n in range(1001)]}, "to"),
        ({"to": 'b@example.net, "foo@evil.example> ORCPT=x"@example.net'}, "to"),
        ({"subject": "x" * 501}, "subject"),
        ({"subject": 5}, "subject"),
        ({"text_body": "x" * 500_001}, "text_body"),
        ({"html_body": "é" * 250_001}, "html_body"),
        ({"text_body": None}, "text_body"),
        ({"text_body": "a\0b"}, "text_body"),
        ({"to": [{"address": "b@example.net", "name": "a\0"}]}, "to[0].name"),
        ({"label": "x" * 31}, "label"),
        ({"label": ""}, "label"),
        ({"references": ["<a@b>"] * 51}, "references"),
        ({"references": ["not an id"]}, "references[0]"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": "1"}, "expires_in"),
        ({"bcc": "v@example.net"}, "bcc"),
        ({"text": "x"}, "text"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_sent(
    send: Any, db: Database, tenant: Tenant, changed: dict[str, object], field: str
) -> None:
    response = send(**changed)
    assert response.status_code == 422, response.get_json()
    assert response.mimetype == "application/problem+json"
    answer = response.get_json()
    assert answer["field"] == field
    assert field.split(".")[-1].split("[")[0] in answer["detail"]
    assert stored(db, tenant) == 0


@pytest.mark.parametrize("missing", ["from", "to", "subject"])
def test_what_is_missing_is_named(key: Caller, tenant: Tenant, missing: str) -> None:
    mail = {name: value for name, value in MAIL.items() if name != missing}
    answer = key("POST", send_path(tenant), mail).get_json()
    assert (answer["status"], answer["field"], answer["detail"]) == (422, missing, f"{missing}: missing")


def test_one_delivery_for_each_recipient__A08(send: Any, db: Database, tenant: Tenant) -> None:
    answer = send(to=["b@example.net", "b@EXAMPLE.NET", "c@example.net"]).get_json()
    assert answer["recipients"] == ["b@example.net", "c@example.net"]


def test_one_bad_recipient_stops_all__A08(send: Any, db: Database, tenant: Tenant) -> None:
    recipients = [f"u{n}@example.net" for n in range(9)] + ["bad"]
    answer = send(to=recipients).get_json()
    assert (answer["status"], answer["field"]) == (422, "to[9]")
    assert stored(db, tenant) == 0


def test_a_quoted_local_part_is_one_recipient__A08(send: Any, db: Database, tenant: Tenant) -> None:
    address = '"foo@evil.example> ORCPT=x"@example.net'
    assert send(to=address).get_json()["recipients"] == [address]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"[" * 20_000, (400, 422)),
        (b'{"to":' + b"[" * 20_000, (400, 422)),
        (b'{"to":NaN}', (400,)),
        (b'{"subject":"\\ud800"}', (400, 422)),
        (b'{"subject":"\xff"}', (400,)),
        (b'{"subject":"a\x00b"}', (400,)),
        (b"", (400,)),
        (b"null", (422,)),
        (b"{} {}", (400, 422)),
        (b'{"from":1e999}', (400, 422)),
        (b'{"expires_in":' + b"9" * 5000 + b"}", (400, 422)),
    ],
)
def test_nonsense_is_a_problem_and_no_accident__A09(
    key: Caller, tenant: Tenant, data: bytes, status: tuple[int, ...]
) -> None:
    response = key("POST", send_path(tenant), data=data, content_type="application/json")
    assert response.status_code in status
    assert response.mimetype == "application/problem+json"


def test_a_body_that_is_too_large_is_413__A09(key: Caller, tenant: Tenant) -> None:
    response = key("POST", send_path(tenant), data=b" " * (emails.SEND_LIMIT + 1), content_type="application/json")
    assert response.status_code == 413
    small = key(
        "POST",
        f"/organizations/{tenant.organization_id}/projects",
        data=b" " * 12_001,
        content_type="application/json",
    )
    assert small.status_code == 413
    assert small.get_json()["title"] == "Request Entity Too Large"


def test_the_largest_bodies_fit_however_they_are_written(key: Caller, tenant: Tenant) -> None:
    mail = {**MAIL, "text_body": "é" * 250_000, "html_body": "ж" * 250_000}
    response = key("POST", send_path(tenant), data=json.dumps(mail), content_type="application/json")
    assert response.status_code == 201


@pytest.mark.parametrize("mimetype", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(key: Caller, tenant: Tenant, mimetype: str) -> None:
    response = key("POST", send_path(tenant), data=json.dumps(MAIL), content_type=mimetype)
    assert response.status_code == 415


def test_a_session_does_not_send(admin: Caller, tenant: Tenant) -> None:
    assert admin("POST", send_path(tenant), MAIL).status_code == 403


def test_a_domain_that_is_not_ours_is_refused(send: Any, db: Database, tenant: Tenant) -> None:
    for sender in ("a@other.example", "a@evilacme.example", "a@acme.example.evil.example"):
        answer = send(**{"from": sender}).get_json()
        assert (answer["status"], answer["field"]) == (422, "from")
    assert send(**{"from": "a@sub.acme.example"}).status_code == 201
    assert stored(db, tenant) == 1


def test_who_is_too_fast_is_429_and_told_when_to_come_back(send: Any, db: Database, tenant: Tenant) -> None:
    db.run(plans.set_rate, tenant.organization_id, Rate(1, 60))
    assert send().status_code == 201
    response = send()
    seconds = response.headers["Retry-After"]
    assert (response.status_code, 40 < int(seconds) <= 60) == (429, True)
    assert f"60 messages per hour, 1 at once; try again in {seconds} seconds" in response.get_json()["detail"]


def test_a_used_up_quota_is_429(send: Any, db: Database, tenant: Tenant) -> None:
    db.run(organizations.set_quota, tenant.organization_id, 1)
    assert send().status_code == 201
    assert send().status_code == 429


def test_a_blocked_organization_is_403(send: Any, db: Database, tenant: Tenant) -> None:
    db.run(organizations.set_block_status, tenant.organization_id, "no_sending_or_receiving")
    assert send().status_code == 403
    db.run(organizations.set_block_status, tenant.organization_id, "no_sending")
    answer = send().get_json()
    assert (answer["status"], answer["reason"]) == ("held", "The organization may not send at present.")


def test_a_suppressed_recipient_shows__A11(key: Caller, send: Any, tenant: Tenant) -> None:
    key.ok("POST", path(tenant, "/suppressed"), {"email_address": "User+tag@Bücher.example"})
    for spelling in ("user+tag@xn--bcher-kva.example", '"User+tag"@bücher.example'):
        answer = send(to=spelling).get_json()
        assert answer["status"] == "rejected"
        assert [found["status"] for found in answer["delivery_details"].values()] == [{"type": "Suppressed"}]
    assert send(to="user@bücher.example").get_json()["status"] == "accepted"


def test_expires_in_shortens_what_the_relay_would_try(send: Any, db: Database, tenant: Tenant) -> None:
    short = send(expires_in=600).get_json()
    created, expires = (datetime.fromisoformat(short[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(minutes=10)
    far = send(expires_in=1e12).get_json()
    assert datetime.fromisoformat(far["expires_at"]) - datetime.fromisoformat(far["created_at"]) == timedelta(days=4)


def test_what_is_stored_is_201_even_if_it_cannot_be_read_back(
    app: flask.Flask, key: Caller, db: Database, settings: Settings, vault: Vault, pepper: Pepper, tenant: Tenant
) -> None:
    # The lists are made unreadable within the time a statement may take; storing goes on.
    with db.transaction() as conn:
        conn.execute("ALTER TABLE messages RENAME TO stored")
        conn.execute("CREATE VIEW messages AS SELECT * FROM stored WHERE pg_sleep(60 + size) IS NOT NULL")
    hurried = structs.replace(settings.database, statement_timeout=0.5)
    quick = Database(hurried, None, "test")
    quick.open()
    caller = by_key(create_app(settings, quick, Publisher(settings.bus, ""), vault, pepper).test_client(), tenant)
    response = caller("POST", send_path(tenant), {**MAIL, "label": "A b", "expires_in": 60})
    quick.close()
    assert response.status_code == 201
    with db.transaction() as conn:
        conn.execute("DROP VIEW messages")
        conn.execute("ALTER TABLE stored RENAME TO messages")
    shown = key.ok("GET", path(tenant))[0]
    answer = response.get_json()
    assert answer.pop("status") == "processing"
    assert shown.pop("status") == "accepted"
    for differs in ("size", "raw_size", "retry_after", "updated_at"):  # known once it is looked at
        answer.pop(differs)
        shown.pop(differs)
    assert answer == shown


# Looking


def delivered(db: Database, tenant: Tenant, id_: str, *results: tuple[str, str, str]) -> None:
    """Record status, kind and text for the message's deliveries, in order."""
    with db.transaction() as conn:
        claims = queue.claim_messages(conn, tenant.host_id, tenant.sources, [MessageId(UUID(id_))], lease=60)
        queue.record_many(
            conn,
            [
                queue.Result(
                    claim.id,
                    claim.message_id,
                    claim.claim_epoch,
                    status,
                    kind,
                    text,
                    next_attempt_at=datetime.now(UTC) + timedelta(hours=1) if status == "reattempt" else None,
                    code=int(text[:3]),
                    mx_host="mx.example.net",
                    mx_ip="192.0.2.1",
                    tls="TLSv1.3",
                    milliseconds=12,
                    tls_policy="dane" if status == "delivered" else "opportunistic",
                    tls_verified=status == "delivered",
                    tls_note="" if status == "delivered" else "its certificate is for other names",
                )
                for claim, (status, kind, text) in zip(sorted(claims, key=lambda c: c.id), results, strict=True)
            ],
        )


def test_details_show_each_recipient_and_all_that_happened(
    key: Caller, send: Any, db: Database, tenant: Tenant
) -> None:
    id_ = send(to=["b@example.net", "c@example.net", "d@example.net"]).get_json()["id"]
    delivered(
        db,
        tenant,
        id_,
        ("delivered", "delivered", "250 ok"),
        ("reattempt", "deferred", "451 later"),
        ("failed", "failed", "550 no"),
    )
    answer = key.ok("GET", path(tenant, f"/{id_}"))
    assert answer["status"] == "reattempt"
    details = answer["delivery_details"]
    assert details["b@example.net"]["status"]["type"] == "Success"
    assert datetime.fromisoformat(details["b@example.net"]["status"]["delivered"]).tzinfo is not None
    assert details["c@example.net"]["status"] == {"type": "Reattempt"}
    assert details["d@example.net"]["status"] == {"type": "Failed"}
    levels = {name: [(line["level"], line["msg"]) for line in one["log"]["lines"]] for name, one in details.items()}
    assert levels == {
        "b@example.net": [("INFO", "delivered by mx.example.net [192.0.2.1] over TLSv1.3 (verified): 250 ok")],
        "c@example.net": [("WARN", "deferred by mx.example.net [192.0.2.1] over TLSv1.3 (not verified): 451 later")],
        "d@example.net": [("ERROR", "failed by mx.example.net [192.0.2.1] over TLSv1.3 (not verified): 550 no")],
    }
    assert [(one["recipient"], one["status"], one["last_code"]) for one in answer["deliveries"]] == [
        ("b@example.net", "delivered", 250),
        ("c@example.net", "reattempt", 451),
        ("d@example.net", "failed", 550),
    ]
    assert [entry["kind"] for entry in answer["timeline"]] == ["delivered", "deferred", "failed"]
    assert [(entry["tls_policy"], entry["tls_verified"], entry["tls_note"]) for entry in answer["timeline"][:2]] == [
        ("dane", True, ""),
        ("opportunistic", False, "its certificate is for other names"),
    ]
    assert answer["retry_after"] is not None
    assert answer["message_data"]["subject"] == "Hello"
    assert answer["message_data"]["text_body"].strip() == "Hi"
    assert answer["message_data"]["attachments"] == []
    assert datetime.fromisoformat(answer["message_data"]["date"])
    assert answer["truncated_raw_data"].startswith("Received: ")
    assert answer["is_truncated"] is False


def test_a_long_message_is_shown_in_part_and_downloaded_whole(
    key: Caller, send: Any, db: Database, tenant: Tenant
) -> None:
    id_ = send(text_body="é" * 20_000).get_json()["id"]
    answer = key.ok("GET", path(tenant, f"/{id_}"))
    assert answer["is_truncated"] is True
    assert 9_000 < len(answer["truncated_raw_data"]) <= emails.SHOWN_RAW
    response = key("GET", path(tenant, f"/{id_}/raw"))
    assert response.data == db.run(messages.body, tenant.organization_id, MessageId(UUID(id_)))
    assert response.mimetype == "message/rfc822"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{id_}.eml"'
    assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response.headers["Cache-Control"] == "no-store"


def test_lists_filter_and_page(key: Caller, send: Any, db: Database, tenant: Tenant) -> None:
    sent = [send(subject=f"Number {n}", to=f"user{n}@example.net", label=f"l{n % 2}").get_json() for n in range(5)]
    ids = [one["id"] for one in reversed(sent)]
    delivered(db, tenant, sent[0]["id"], ("delivered", "delivered", "250 ok"))

    def listed(query: str) -> list[str]:
        return [one["id"] for one in key.ok("GET", path(tenant, query))]

    assert listed("") == ids
    assert listed("?status=delivered") == ids[4:]
    assert listed("?status=delivered,accepted") == ids
    assert listed("?status=failed,held") == []
    assert listed("?labels=l1") == [ids[1], ids[3]]
    assert listed("?labels=l1,l0") == ids
    assert listed("?search=number%203") == [ids[1]]
    assert listed("?search=USER2@") == [ids[2]]
    assert listed("?search=%25") == []
    assert listed(f"?project={tenant.project_id}") == ids
    assert listed(f"?before={sent[2]['created_at']}") == ids[2:]
    assert [one["id"] for one in key.ok("GET", send_path(tenant) + "?limit=100")] == ids
    assert key.ok("GET", path(tenant, "/labels")) == ["l0", "l1"]


def test_pages_follow_each_other_without_gap_or_repetition(key: Caller, send: Any, tenant: Tenant) -> None:
    ids = [send().get_json()["id"] for _ in range(5)][::-1]
    url, pages = path(tenant, "?limit=2&labels="), []
    while url:
        response = key("GET", url)
        pages.append([one["id"] for one in response.get_json()])
        link = response.headers.get("Link", "")
        url = link[1 : link.index(">")].removeprefix("/api") if link else ""
    # One more than asked for says that there are more, as in the first version of this API.
    assert pages == [ids[0:3], ids[2:5], ids[4:5]]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=gone", "status[0]"),
        ("before=yesterday", "before"),
        ("before=2026-01-01T00:00:00", "before"),
        ("project=x", "project"),
        ("cursor=x", "cursor"),
        ("labels=" + ",".join("x" * 21), "labels"),
        ("search=" + "x" * 201, "search"),
        ("statsu=held", "statsu"),
    ],
)
def test_a_query_that_does_not_fit_is_named(key: Caller, tenant: Tenant, query: str, field: str) -> None:
    answer = key("GET", path(tenant, "?" + query)).get_json()
    assert (answer["status"], answer["field"]) == (422, field)


@pytest.mark.parametrize(
    ("query", "status"), [("search=%00", 400), ("labels=a%00b", 400), ("%00=1", 422), ("search=%ff%fe", 200)]
)
def test_odd_octets_in_a_query_are_no_accident(key: Caller, tenant: Tenant, query: str, status: int) -> None:
    assert key("GET", path(tenant, "?" + query)).status_code == status


def test_an_id_that_is_none_is_404(key: Caller, tenant: Tenant) -> None:
    assert key("GET", path(tenant, "/nonsense")).status_code == 404
    assert key("GET", path(tenant, "/00000000-0000-0000-0000-000000000000")).status_code == 404


# Changing


def test_deleting_takes_the_content_and_leaves_the_history(
    key: Caller, send: Any, db: Database, tenant: Tenant
) -> None:
    id_ = send().get_json()["id"]
    assert key.ok("DELETE", path(tenant, f"/{id_}")) == id_
    answer = key.ok("GET", path(tenant, f"/{id_}"))
    assert (answer["status"], answer["has_content"]) == ("failed", False)
    assert (answer["truncated_raw_data"], answer["message_data"]) == ("", None)
    assert key("GET", path(tenant, f"/{id_}/raw")).status_code == 404
    assert key("PUT", path(tenant, f"/{id_}/retry")).status_code == 409
    entry = key.ok("GET", f"/organizations/{tenant.organization_id}/audit-log")[0]
    assert (entry["action"], entry["target_type"], entry["target_id"]) == ("deleted", "message", id_)
    assert (entry["actor_type"], entry["actor_id"]) == ("api_key", str(tenant.api_key))


def test_retry_makes_what_failed_due_again(key: Caller, send: Any, db: Database, tenant: Tenant) -> None:
    id_ = send().get_json()["id"]
    delivered(db, tenant, id_, ("failed", "failed", "550 no"))
    answer = key.ok("PUT", path(tenant, f"/{id_}/retry"))
    assert answer["status"] == "reattempt"
    assert datetime.fromisoformat(answer["retry_after"]) <= datetime.now(UTC)
    delivered(db, tenant, id_, ("delivered", "delivered", "250 ok"))
    assert key("PUT", path(tenant, f"/{id_}/retry")).status_code == 400


def test_the_suppression_list(key: Caller, tenant: Tenant, db: Database) -> None:
    added = key.ok("POST", path(tenant, "/suppressed"), {"email_address": "A/b@Example.NET", "reason": "asked us"})
    assert added == {"email_address": "a/b@example.net", "reason": "asked us", "retry_after": None}
    db.run(
        suppressions.record_bounces,
        [suppressions.Bounced(tenant.organization_id, "dead@example.net", True, "550 5.1.1 no such user")],
    )
    listed = key.ok("GET", path(tenant, "/suppressed"))
    assert [(one["email_address"], one["retry_after"] is None) for one in listed] == [
        ("a/b@example.net", True),
        ("dead@example.net", False),
    ]
    response = key("GET", path(tenant, "/suppressed?limit=1"))
    assert "after=a%2Fb%40example.net" in response.headers["Link"]
    assert key.ok("DELETE", path(tenant, "/suppressed/a%2Fb@example.net")) == "a/b@example.net"
    assert key("DELETE", path(tenant, "/suppressed/a%2Fb@example.net")).status_code == 404
    assert key("DELETE", path(tenant, "/suppressed/nonsense")).status_code == 404
    bad = key("POST", path(tenant, "/suppressed"), {"email_address": "nonsense"}).get_json()
    assert (bad["status"], bad["field"]) == (422, "email_address")


def test_a_suppression_has_a_kind_and_an_end(key: Caller, tenant: Tenant) -> None:
    until = "2031-01-31T00:00:00Z"
    key.ok("POST", path(tenant, "/suppressed"), {"email_address": "a@example.net", "retry_after": until})
    (row,) = key.ok("GET", path(tenant, "/suppressed?search=A@ex"))
    assert (row["kind"], row["retry_after"]) == ("manual", until)
    assert key.ok("GET", path(tenant, "/suppressed?search=b@")) == []


def test_a_list_is_imported_and_exported(key: Caller, tenant: Tenant, db: Database) -> None:
    """The lines that are wrong are told; what is exported can be imported elsewhere."""
    text = "\ufeffemail,reason,kind\nA@example.net,550 no,bounce\nnobody,x,\nb@example.net,=SUM(1),complaint\n"
    headers = {"Content-Type": "text/csv; charset=utf-8"}
    answer = key("POST", path(tenant, "/suppressed/import"), data=text.encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.get_json() == {
        "imported": 2,
        "failed": 1,
        "errors": [{"line": 3, "text": "nobody,x,", "error": "nobody has no @"}],
    }
    exported = key("GET", path(tenant, "/suppressed/export"))
    assert exported.mimetype == "text/csv"
    heading, first, second = exported.text.splitlines()
    assert heading == "email_address,kind,reason,retry_after,created_at"
    assert first.startswith("a@example.net,bounce,550 no,,2")
    assert second.startswith("b@example.net,complaint,'=SUM(1),,2")
    db.run(suppressions.remove, tenant.organization_id, "a@example.net")
    again = key("POST", path(tenant, "/suppressed/import"), data=exported.text.encode(), headers=headers).get_json()
    assert (again["imported"], again["failed"]) == (2, 0)
    entries = db.run(audit.list_, tenant.organization_id)
    assert [(entry.action, entry.details) for entry in entries] == [
        ("imported", {"imported": 2, "failed": 0}),
        ("exported", {}),
        ("imported", {"imported": 2, "failed": 1}),
    ]


@pytest.mark.parametrize(
    ("data", "media", "status"),
    [
        (b"a@example.net", "application/json", 415),
        (b"\xff", "text/plain", 400),
        (b"\n" * 100_001, "text/plain", 413),
        (b"a" * 8_000_001, "text/plain", 413),
        (b"", "text/plain", 200),
    ],
)
def test_a_list_is_bounded_text(key: Caller, tenant: Tenant, data: bytes, media: str, status: int) -> None:
    answer = key("POST", path(tenant, "/suppressed/import"), data=data, headers={"Content-Type": media})
    assert answer.status_code == status


def test_mail_waits_where_no_address_is_ready(send: Any, db: Database, tenant: Tenant) -> None:
    with db.transaction() as conn:
        for one in addresses.list_(conn):
            addresses.disable(conn, one.ip)
    assert send().get_json()["status"] == "accepted"


def test_what_a_sender_asked_to_be_told(key: Caller, db: Database, tenant: Tenant) -> None:
    recipient = address.parse("b@example.net")
    given = replace(
        tenant.submission(str(recipient)),
        asked=dsn.Asked("HDRS", "job+2B1"),
        asked_of={recipient: dsn.AskedOf("NEVER", "rfc822;b@example.net")},
    )
    submission.submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [given])
    shown = key("GET", path(tenant, f"/{given.id}")).json
    assert (shown["dsn_ret"], shown["dsn_envid"]) == ("HDRS", "job+2B1")
    (delivery,) = shown["deliveries"]
    assert (delivery["dsn_notify"], delivery["dsn_orcpt"]) == ("NEVER", "rfc822;b@example.net")


def test_the_same_request_with_the_same_key(key: Caller, db: Database, tenant: Tenant) -> None:
    def send(**changed: object) -> Any:
        return key("POST", send_path(tenant), {**MAIL, **changed}, headers={"Idempotency-Key": "order-1"})

    first, second, other = send(), send(), send(subject="Other")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json["id"] == second.json["id"]
    assert ("Idempotent-Replayed" in first.headers, second.headers["Idempotent-Replayed"]) == (False, "true")
    assert (other.status_code, other.json["field"]) == (422, "Idempotency-Key")
    assert stored(db, tenant) == 1
    assert "dempotency" not in str(wire(db, tenant, first.json["id"]))


def test_a_bad_idempotency_key(key: Caller, tenant: Tenant) -> None:
    answer = key("POST", send_path(tenant), MAIL, headers={"Idempotency-Key": "x" * 256})
    assert (answer.status_code, answer.json["field"]) == (422, "Idempotency-Key")
