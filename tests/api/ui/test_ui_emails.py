"""The list of emails and the page of one: what they say, what they hide, when they refresh themselves."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
import seed
from api.ui.browser import Browser, Element
from api.ui.conftest import Send, Settle

from remails import submission
from remails.bus.client import Publisher
from remails.config import Bus, Mail
from remails.db import Database
from remails.mail import address, dsn
from remails.store import audit, messages, queue, suppressions

REGION = {"HX_Request": "true", "HX_Request_Type": "partial"}


def rows(page: Element) -> list[list[str]]:
    """The cells of the list, without the last one, which is a time."""
    return [[cell.text for cell in row.all("td")][:-1] for row in page.one("tbody").all("tr")]


def subjects(page: Element) -> list[str]:
    return [row[1] for row in rows(page)]


def test_the_list_tells_each_mail_in_a_line(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    one = send("to@example.net", "b@example.net", "c@example.net", subject="First")
    settle(one, "to@example.net", "reattempt", 451, "Greylisted", enhanced="4.7.1")
    two = send(subject="Second")
    settle(two, "to@example.net", "delivered", 250, "Ok: queued as 1234")
    page = boss.get(f"{home}/emails")
    assert rows(page) == [
        ["delivered", "Second", "sender@acme.example", "to@example.net", "250 Ok: queued as 1234"],
        ["reattempt", "First", "sender@acme.example", "to@example.net +2", "451 4.7.1 Greylisted"],
    ]
    assert page.one("a", href=f"{home}/emails/{two}").text == "Second"
    statuses = [span["data-status"] for span in page.one("tbody").all("span") if span.has("data-status")]
    assert statuses == ["delivered", "reattempt"]


def test_what_strangers_wrote_is_shown_and_not_obeyed(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    subject, text = "<script>alert(1)</script>", "<img src=x onerror=alert(2)>"
    one = send(subject=subject)
    settle(one, "to@example.net", "failed", 550, text, mx_host='"><script>alert(3)</script>')
    for path in (f"{home}/emails", f"{home}/emails/{one}"):
        page = boss.get(path)
        assert not [script for script in page.all("script") if not script["src"].startswith("/static/")]
        assert not [image for image in page.all("img") if not image["src"].startswith("/static/")]
        assert subject in page.text
        assert text in page.text


def test_a_script_in_an_html_part_is_only_source(boss: Browser, home: str, send: Send) -> None:
    raw = (
        b"From: sender@acme.example\r\nTo: to@example.net\r\nSubject: Both\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/alternative; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nna\xc3\xafve text\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script><p>loud</p>\r\n"
        b'--b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename="<b>.pdf"\r\n\r\nxx\r\n--b--\r\n'
    )
    one = send(raw=raw)
    path = f"{home}/emails/{one}"
    assert boss.get(path).one("pre", class_="source").text == "naïve text"
    assert boss.get(f"{path}?view=html").one("pre", class_="source").text == "<script>alert(1)</script><p>loud</p>"
    assert "Subject: Both" in boss.get(f"{path}?view=raw").one("pre", class_="source").source
    assert boss.get(path).one("ul", aria_label="Attachments").text == "<b>.pdf , application/pdf, 2 B"
    assert boss.get(f"{path}?view=nonsense").one("pre", class_="source").text == "naïve text"


def test_the_raw_message_is_a_file_and_no_page(boss: Browser, home: str, send: Send) -> None:
    one = send(raw=b"From: sender@acme.example\r\nSubject: <script>\r\n\r\n<script>alert(1)</script>\r\n")
    response = boss.client.get(f"{home}/emails/{one}/raw")
    assert response.mimetype == "message/rfc822"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{one}.eml"'
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.data.endswith(b"\r\n\r\n<script>alert(1)</script>\r\n")


def test_a_long_raw_message_is_cut_with_a_note(boss: Browser, home: str, send: Send) -> None:
    text = b"0123456789\r\n" * 10_000
    one = send(raw=b"From: sender@acme.example\r\nSubject: Long\r\n\r\n" + text)
    page = boss.get(f"{home}/emails/{one}?view=raw")
    assert "Only the beginning is shown" in page.one("p", role="note").text
    assert 50_000 < len(page.one("pre", class_="source").source) <= 64_000


@pytest.mark.parametrize(
    "subject",
    ["x" * 300, "word " * 60, "שלום עולם", "\u202egnirts dedrib", "Füße & <Zehen>", "'\"`"],
)
def test_any_subject_stands_alone(boss: Browser, home: str, send: Send, subject: str) -> None:
    """Long ones do not widen the page, right-to-left ones do not turn their neighbours round."""
    raw = f"From: sender@acme.example\r\nSubject: {subject}\r\n\r\nHi\r\n".encode()
    one = send(raw=raw)
    shown = boss.get(f"{home}/emails").one("tbody").all("a")[0]
    heading = boss.get(f"{home}/emails/{one}").one("h1")
    for place in (shown, heading):
        assert place.one("bdi").text == place.text
    assert shown.text == subject.strip().strip("\u202e")


def test_an_international_recipient_is_shown_in_a_labels(boss: Browser, home: str, send: Send) -> None:
    one = send("zoë@bücher.example")
    assert rows(boss.get(f"{home}/emails"))[0][3] == "zoë@xn--bcher-kva.example"
    assert "zoë@xn--bcher-kva.example" in boss.get(f"{home}/emails/{one}").one("table").text


def test_the_filters_leave_what_was_asked_for(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, send: Send, settle: Settle
) -> None:
    raw = b"From: sender@acme.example\r\nSubject: Labelled\r\nX-Remails-Label: orders\r\n\r\nHi\r\n"
    settle(send(subject="Arrived"), "to@example.net", "delivered", 250, "Ok")
    settle(send("nobody@example.net", subject="Bounced"), "nobody@example.net", "failed", 550, "No")
    send(raw=raw)
    everything = f"{home}/emails"
    assert subjects(boss.get(f"{everything}?status=delivered")) == ["Arrived"]
    assert subjects(boss.get(f"{everything}?status=failed,rejected")) == ["Bounced"]
    assert subjects(boss.get(f"{everything}?search=NOBODY%40")) == ["Bounced"]
    assert subjects(boss.get(f"{everything}?search=arriv")) == ["Arrived"]
    assert subjects(boss.get(f"{everything}?project={tenant.project_id}")) == ["Labelled orders", "Bounced", "Arrived"]
    assert subjects(boss.get(f"{everything}?label=orders")) == ["Labelled orders"]
    nothing = boss.get(f"{everything}?search=%25&until=2020-01-01T00:00")
    assert "No email matches." in nothing.text
    assert nothing.one("input", name="until")["value"] == "2020-01-01T00:00"


def test_nonsense_in_the_address_is_passed_over(boss: Browser, home: str, send: Send) -> None:
    send(subject="One")
    page = boss.get(f"{home}/emails?before=x&project=y&until=z&label=&search=&status=")
    assert subjects(page) == ["One"]


def test_older_mail_is_a_page_away(boss: Browser, home: str, send: Send) -> None:
    ids = [send(subject=f"No {number}") for number in range(27)]
    first = boss.get(f"{home}/emails?search=No")
    assert subjects(first) == [f"No {number}" for number in range(26, 1, -1)]
    older = first.one("a", rel="next")["href"]
    assert older == f"{home}/emails?search=No&before={ids[2]}"
    second = boss.get(older)
    assert subjects(second) == ["No 1", "No 0"]
    assert not second.all("a", rel="next")
    newest, newer = second.one("nav", aria_label="Pages").all("a")
    assert (newest["href"], newer["rel"]) == (f"{home}/emails?search=No", "prev")
    assert newer["href"] == f"{home}/emails?search=No&after={ids[1]}"


def test_newer_mail_is_a_page_back(boss: Browser, home: str, send: Send) -> None:
    ids = [send(subject=f"No {number}") for number in range(60)]
    third = boss.get(f"{home}/emails?before={ids[10]}")
    second = boss.get(third.one("a", rel="prev")["href"])
    assert subjects(second) == [f"No {number}" for number in range(34, 9, -1)]
    assert second.one("a", rel="next")["href"] == f"{home}/emails?before={ids[10]}"
    assert subjects(boss.get(second.one("a", rel="next")["href"])) == subjects(third)
    first = boss.get(second.one("a", rel="prev")["href"])
    assert subjects(first) == [f"No {number}" for number in range(59, 34, -1)]
    assert not first.all("a", rel="prev"), "there is nothing newer"
    assert subjects(boss.get(f"{home}/emails?after={ids[59]}")) == subjects(first)


def test_the_list_refreshes_itself_until_all_is_final(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    one = send(subject="One")
    region = boss.get(f"{home}/emails").one("section", id="list")
    assert (region["hx-get"], region["hx-trigger"]) == (f"{home}/emails", "every 2s")
    assert region.one("p", role="status").text == "1 on this page still on the way; the list refreshes itself."
    settle(one, "to@example.net", "delivered", 250, "Ok")
    again = boss.get(f"{home}/emails", **REGION)
    assert [child for child in again.children if isinstance(child, Element)] == [again.one("section", id="list")]
    assert not again.one("section", id="list").has("hx-trigger")
    assert not again.one("section", id="list").has("hx-get")


def test_filtering_puts_a_tidy_address_into_the_history(boss: Browser, home: str, send: Send) -> None:
    send(subject="One")
    headers = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Source": "form"}
    response = boss.client.get(f"{home}/emails?search=One&status=&label=&until=", headers=headers)
    assert response.headers["HX-Push-Url"] == f"{home}/emails?search=One"


def test_without_any_mail_the_page_says_how_to_send_one(
    boss: Browser, home: str, tenant: seed.Tenant, send: Send
) -> None:
    page = boss.get(f"{home}/emails")
    swaks, curl = (block.source for block in page.all("pre"))
    assert swaks == (
        f"swaks --server relay.example:587 --tls --auth-user {tenant.smtp_username} \\\n"
        "  --from hello@acme.example --to you@example.org --header 'Subject: Hello'"
    )
    url = f"http://127.0.0.1:8000/api/organizations/{tenant.organization_id}/projects/{tenant.project_id}/emails"
    assert curl.startswith(f"curl --user {tenant.api_key} {url} \\\n  --json '{{")
    assert tenant.smtp_password not in page.source
    assert page.one("section", id="list")["hx-trigger"] == "every 2s"
    send(subject="The first")
    assert subjects(boss.get(f"{home}/emails", **REGION)) == ["The first"]


def test_the_figures_tell_today_and_the_last_month(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    settle(send(), "to@example.net", "delivered", 250, "Ok")
    settle(send(), "to@example.net", "failed", 550, "No")
    send()
    page = boss.get(f"{home}/emails")
    figures = page.one("dl", class_="figures")
    assert [pair.text for pair in figures.all("div")] == ["Sent today 3", "Delivered 1", "Waiting 1", "Failed 1"]
    today = page.one("svg", class_="bars").all("g")[-1]
    assert today.one("title").text == f"{datetime.now(UTC).date()}: 3 sent, 1 failed"
    assert len(page.one("svg", class_="bars").all("g")) == 30


def test_the_page_of_a_mail_tells_what_became_of_each_recipient(
    boss: Browser, home: str, send: Send, settle: Settle
) -> None:
    one = send("a@example.net", "b@example.net", "c@example.net", subject="Three")
    settle(one, "a@example.net", "delivered", 250, "Ok: queued as 1234", enhanced="2.0.0")
    settle(one, "b@example.net", "failed", 550, "No such user", enhanced="5.1.1", tls=None)
    page = boss.get(f"{home}/emails/{one}")
    assert page.one("p", class_="summary").text == (
        "accepted Delivered to 1 of 3 recipients. Failed for 1: mx.example.net said 550 5.1.1 No such user. On its way."
    )
    table = [[cell.text for cell in row.all("td")] for row in page.one("table").one("tbody").all("tr")]
    assert table[0] == [
        "a@example.net",
        "delivered",
        "250 2.0.0 Ok: queued as 1234",
        "mx.example.net 192.0.2.25, TLSv1.3 from 127.0.0.11",
        "1",
    ]
    assert table[1][1:4] == ["failed", "550 5.1.1 No such user", "mx.example.net 192.0.2.25, no TLS from 127.0.0.11"]
    assert table[2][1:] == ["accepted", "", "from 127.0.0.11", "0"]
    timeline = [entry.one("p").text for entry in page.one("ol", class_="timeline").all("li")]
    assert timeline[0].endswith("B for 3 recipients")
    assert timeline[1].startswith("Delivered a@example.net 250 2.0.0 Ok: queued as 1234 mx.example.net [192.0.2.25]")
    assert timeline[1].endswith("TLSv1.3 TLS_AES_256_GCM_SHA384, 412 ms")
    assert re.fullmatch(r"\+\d\.\d s", page.one("ol", class_="timeline").all("time")[1].text)
    assert timeline[2].startswith("Failed b@example.net 550 5.1.1 No such user")


def test_the_page_of_a_mail_refreshes_itself_until_it_is_final(
    boss: Browser, home: str, send: Send, settle: Settle
) -> None:
    one = send()
    path = f"{home}/emails/{one}"
    region = boss.get(path).one("section", id="progress")
    assert (region["hx-get"], region["hx-trigger"]) == (path, "every 2s")
    settle(one, "to@example.net", "reattempt", 451, "Later")
    waiting = boss.get(path, **REGION).one("section", id="progress")
    assert waiting["hx-trigger"] == "every 2s"
    assert "mx.example.net said 451 Later; next attempt in 4 min, attempt 2." in waiting.text
    settle(one, "to@example.net", "delivered", 250, "Ok")
    final = boss.get(path, **REGION)
    assert not final.one("section", id="progress").has("hx-get")
    assert not final.all("pre"), "the region has no content in it"


def test_the_timeline_shows_the_dialogue_with_each_server(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    id_ = send("a@example.net")
    away = {"mx_host": "away.example.net", "mx_ip": "192.0.2.24", "reply": "no answer", "milliseconds": 9, "steps": []}
    said = {"command": "RCPT TO:<a@example.net>", "reply": "250 2.1.5 <b>Ok</b>\nreally", "milliseconds": 1234}
    mx = {"mx_host": "mx.example.net", "mx_ip": "192.0.2.25", "reply": "250 Ok", "milliseconds": 1300, "steps": [said]}
    settle(id_, "a@example.net", "delivered", 250, "Ok", servers=json.dumps([away, mx]))
    details = boss.get(f"{home}/emails/{id_}").one("ol", class_="timeline").one("details")
    assert details.one("summary").text == "2 servers tried"
    first, second = (table.text for table in details.all("table"))
    assert first == "away.example.net [192.0.2.24], 9 ms Time Command and reply 9 ms no answer"
    assert "1 234 ms" in second and "RCPT TO:<a@example.net> 250 2.1.5 <b>Ok</b> really" in second


def test_a_suppressed_recipient_is_told(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, send: Send
) -> None:
    db.run(suppressions.add, tenant.organization_id, address.parse("to@example.net").key, "asked")
    page = boss.get(f"{home}/emails/{send()}")
    assert page.one("p", class_="summary").text == "rejected Not sent: the recipient is suppressed."


def test_what_its_sender_asked_for_is_told(boss: Browser, home: str, db: Database, tenant: seed.Tenant) -> None:
    recipient = address.parse("to@example.net")
    given = replace(
        tenant.submission(str(recipient)),
        asked=dsn.Asked("HDRS", "job+2B1"),
        asked_of={recipient: dsn.AskedOf("SUCCESS,DELAY", "rfc822;list+2Bx@example.net")},
    )
    submission.submit(db, Publisher(Bus(), ""), Mail(hostname="relay.example"), [given])
    page = boss.get(f"{home}/emails/{given.id}")
    assert "job+1" in page.text
    assert "first to list+x@example.net" in page.text
    assert "report: success, delay" in page.text


def test_retry_makes_it_due_now(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, send: Send, settle: Settle
) -> None:
    one = send()
    settle(one, "to@example.net", "failed", 550, "No")
    path = f"{home}/emails/{one}"
    assert "It is being tried again." in boss.do(f"{path}/retry", at=path).text
    (delivery,) = db.run(messages.deliveries, tenant.organization_id, [one])
    assert (delivery.status, delivery.is_claimed) == ("reattempt", False)
    claimed = db.run(queue.claim_messages, tenant.host_id, tenant.sources, [one], lease=60)
    assert [claim.id for claim in claimed] == [delivery.id]
    assert [entry.action for entry in db.run(audit.list_, tenant.organization_id)] == ["retried"]


def test_retry_of_what_is_delivered_is_off(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    one = send()
    settle(one, "to@example.net", "delivered", 250, "Ok")
    path = f"{home}/emails/{one}"
    button = next(button for button in boss.get(path).all("button") if button.text == "Retry")
    assert (button.has("disabled"), button["title"]) == (True, "All is delivered.")
    assert "Nothing of it can be tried again" in boss.do(f"{path}/retry", at=path).text


def test_deleted_content_is_gone_and_its_history_stays(
    boss: Browser, home: str, db: Database, tenant: seed.Tenant, send: Send
) -> None:
    one = send(subject="Secret", raw=b"From: sender@acme.example\r\nSubject: Kept\r\n\r\nburn after reading\r\n")
    path = f"{home}/emails/{one}"
    assert "burn after reading" in boss.get(path).text
    page = boss.do(f"{path}/content/delete", at=path)
    assert "The content is deleted." in page.text
    assert "burn after reading" not in page.text
    assert page.one("p", class_="summary").text == "failed Failed: content deleted."
    assert boss.client.get(f"{path}/raw").status_code == 404
    assert subjects(boss.get(f"{home}/emails")) == ["Kept"]
    assert [entry.action for entry in db.run(audit.list_, tenant.organization_id)] == ["deleted"]


def test_a_mail_with_a_thousand_recipients_has_a_page(boss: Browser, home: str, send: Send, settle: Settle) -> None:
    recipients = [f"r{number}@example.net" for number in range(1000)]
    one = send(*recipients)
    settle(one, "r999@example.net", "failed", 550, "No")
    page = boss.get(f"{home}/emails/{one}")
    assert len(page.one("table").one("tbody").all("tr")) == 200
    assert "And 800 more, of 1000." in page.text
    assert rows(boss.get(f"{home}/emails?search={quote('r999@')}"))[0][3] == "r0@example.net +999"
