"""Values in words: times, sizes, replies, and what became of a message.

Pure functions of what the store returns and of `now`, so that a page shows one moment throughout. Templates reach them as
filters (`pages.py`); nothing here makes HTML, so nothing here has to escape.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import idna

from remails.store.messages import FINAL, Delivery, Message

STATUSES = {
    "accepted": "Stored, on its way",
    "reattempt": "Put off by a remote server, will be tried again",
    "held": "Kept back: the page of the mail says why",
    "delivered": "Taken by the recipient's server",
    "failed": "Given up",
    "suppressed": "Not sent: the address is on the suppression list",
    "rejected": "Not sent: every recipient is on the suppression list",
}
"""What the status words of messages and deliveries mean."""

BLOCKS = {
    "not_blocked": "Not blocked",
    "no_sending": "Takes mail, does not send it",
    "no_sending_or_receiving": "Takes no mail and sends none",
    "full_freeze": "Frozen: nothing may be changed either",
}

ROLES = {
    "read_only": "Sees everything, changes nothing",
    "maintainer": "Also manages projects, domains, credentials and mail",
    "admin": "Also manages members and the organization",
}

HAPPENINGS = {
    "accepted": "Accepted",
    "attempted": "Attempted",
    "delivered": "Delivered",
    "deferred": "Put off",
    "delayed": "Delayed for long",
    "failed": "Failed",
    "ambiguous": "Connection lost at the end, may arrive twice",
    "suppressed": "Suppressed",
    "held": "Held",
    "released": "Let go",
    "expired": "Expired",
    "retried": "Retry asked for",
    "moved": "Moved to another address",
}
"""What the kinds of timeline entries mean."""

_STEPS = ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (86400.0, 3600.0, "h"), (float("inf"), 86400.0, "d"))


def span(seconds: float) -> str:
    """A length of time, in its largest unit: "0.8 s", "4 min"."""
    if 0 <= seconds < 9.95:
        return f"{seconds:.1f} s"
    for below, unit, name in _STEPS:
        if round(seconds / unit) * unit < below:
            return f"{round(seconds / unit)} {name}"
    raise AssertionError("the last step is endless")


def moment(at: datetime, now: datetime) -> str:
    """How long ago, or how far ahead: "3 s ago", "in 4 min"; after a month the date."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    if abs(seconds) > 30 * 86400:
        return f"{at.astimezone(UTC):%Y-%m-%d}"
    text = span(abs(seconds)) if abs(seconds) >= 10 else f"{abs(seconds):.0f} s"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def absolute(at: datetime) -> str:
    """The same instant to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(octets: int) -> str:
    """Octets in decimal units: "512 B", "1.4 kB"."""
    amount, unit = float(octets), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"


def number(count: int) -> str:
    """A count with thin spaces between thousands."""
    return f"{count:,}".replace(",", "\u2009")


def domain(name: str) -> str:
    """A domain for people: U-labels where it has any, and then the A-labels too, which cannot deceive."""
    if "xn--" not in name:
        return name
    try:
        return f"{idna.decode(name)} ({name})"
    except (idna.IDNAError, UnicodeError):
        return name


def reply(code: int | None, enhanced: str | None, text: str | None) -> str:
    """A reply as a server gave it: code, enhanced status code, text; words of ours may quote one and have the codes."""
    line = text or ""
    return line if code and str(code) in line else " ".join(str(part) for part in (code, enhanced, line) if part)


def recipients(addresses: Sequence[str]) -> str:
    """The first address, and how many more there are."""
    more = len(addresses) - 1
    return f"{addresses[0]} +{more}" if more > 0 else "".join(addresses)


def is_final(message: Message) -> bool:
    """Whether nothing more will happen to the message by itself."""
    return message.status in FINAL


def refresh(shown: Sequence[Message], now: datetime) -> str | None:
    """The trigger by which a region with these messages refreshes itself; None when all are final."""
    waiting = [message for message in shown if not is_final(message)]
    if not waiting:
        return None
    soon = any(m.retry_after is not None and (m.retry_after - now).total_seconds() < 60 for m in waiting)
    return "every 2s" if soon else "every 10s"


def summary(message: Message, deliveries: Sequence[Delivery], now: datetime) -> str:
    """What became of a message, in one or two sentences."""
    count = Counter(delivery.status for delivery in deliveries)
    done = _done(message, deliveries, count)
    if message.status in ("accepted", "reattempt"):
        return f"{done} {_waiting(deliveries, now)}".strip()
    if message.status == "held":
        held = next((d.cause for d in deliveries if d.status == "held" and d.cause), "")
        return f"{done} Held: {held[:1].lower()}{held[1:]}".strip() if held else f"{done} Held.".strip()
    if message.status == "rejected":
        return "Not sent: " + _all(len(deliveries), "the recipient is", "all {} recipients are") + " suppressed."
    return done


def _all(count: int, one: str, many: str) -> str:
    return one if count == 1 else many.format(count)


def _done(message: Message, deliveries: Sequence[Delivery], count: Counter[str]) -> str:
    """The sentences about recipients that are settled."""
    total, sentences = len(deliveries), []
    if count["delivered"] == total:
        last = max(d.finished_at or message.created_at for d in deliveries)
        who = _all(total, f"to {deliveries[0].recipient}", "to all {} recipients")
        return f"Delivered {who} in {span(max(0.0, (last - message.created_at).total_seconds()))}."
    if count["delivered"]:
        sentences.append(f"Delivered to {count['delivered']} of {total} recipients.")
    if count["failed"]:
        first = next(d for d in deliveries if d.status == "failed")
        who = "Failed" if total == 1 else f"Failed for {count['failed']}"
        sentences.append(f"{who}: {_said(first)}.")
    if count["suppressed"] and count["suppressed"] < total:
        sentences.append(f"Not sent to {count['suppressed']}, suppressed.")
    return " ".join(sentences)


def _said(delivery: Delivery) -> str:
    line = reply(delivery.last_code, delivery.last_enhanced, delivery.last_reply).rstrip(".") or "no reply"
    is_theirs = delivery.mx_host and delivery.last_code and line.startswith(str(delivery.last_code))
    return f"{delivery.mx_host} said {line}" if is_theirs else line


def _waiting(deliveries: Sequence[Delivery], now: datetime) -> str:
    pending = [d for d in deliveries if d.status in ("accepted", "reattempt")]
    if any(d.is_claimed for d in pending):
        return "Being delivered now."
    if all(d.source is None for d in pending):
        return "Waiting: there is no outbound address to send it from."
    tried = [d for d in pending if d.attempts]
    if not tried:
        return "On its way."
    following = min(tried, key=lambda d: d.next_attempt_at or now)
    when = moment(following.next_attempt_at, now) if following.next_attempt_at else "now"
    if following.next_attempt_at and following.next_attempt_at <= now:
        when = "now"
    return f"Waiting: {_said(following)}; next attempt {when}, attempt {following.attempts + 1}."
