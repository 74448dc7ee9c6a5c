"""What the DNS records of a sender domain say to us: pure judgement of answers that somebody else asked for.

    suggested --> the records a customer publishes
    answers (TXT records, each with its strings joined) --> ownership | dkim | spf | dmarc --> Verdict
    no answer to be had (SERVFAIL, REFUSED, a timeout) ------------------> unknown ----------> Verdict, not checked

Most faults are faults of copying, so each record is first looked at for what a word processor or a web form adds, and the
reason says what to change. `Error`: mail will suffer. `Warning`: it works today or for some. `Info`: fine, could be better.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from remails.mail.spf import Result

Status = Literal["Success", "Info", "Warning", "Error"]

OWNERSHIP_LABEL = "_remails"
_OWNERSHIP = "remails-verification="
_DOUBLED = "It stands at a name that ends in the domain twice; enter the name without the domain, the provider adds it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of one record: `value` is what was found, `reason` a sentence. Not `checked`: nothing is known."""

    status: Status
    reason: str
    value: str | None = None
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """A record to publish. `required`: without it the domain cannot send, or its mail is refused by many."""

    name: str
    type: str
    value: str
    purpose: str
    required: bool


def unknown(reason: str) -> Verdict:
    """DNS gave no answer, which says nothing about the record: the last good state stands (D12)."""
    return Verdict("Warning", f"Could not be checked just now: {reason}", checked=False)


def ownership_name(domain: str) -> str:
    """Where the proof of ownership is published."""
    return f"{OWNERSHIP_LABEL}.{domain}"


def dkim_name(selector: str, domain: str) -> str:
    """Where a DKIM key is published (RFC 6376 §3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


def dmarc_name(domain: str) -> str:
    """Where a DMARC policy is published."""
    return f"_dmarc.{domain}"


def suggested(domain: str, selector: str, dkim_record: str, spf_include: str, token: str) -> list[Record]:
    """The records for a domain, in the order to publish them."""
    return [
        Record(ownership_name(domain), "TXT", _OWNERSHIP + token, "Proves that the domain is yours", True),
        Record(
            dkim_name(selector, domain), "TXT", dkim_record, "DKIM: the key that receivers check signatures with", True
        ),
        Record(domain, "TXT", f"v=spf1 include:{spf_include} -all", "SPF: allows our servers to send for you", True),
        Record(
            dmarc_name(domain),
            "TXT",
            "v=DMARC1; p=reject",
            "DMARC: mail that only claims to be yours is refused",
            False,
        ),
    ]


# --- what all records share -----------------------------------------------------------------------------------------

_TYPOGRAPHIC = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


def paste_fault(text: str) -> str | None:
    """What copying did to a record, as a hint that says what to change; None when it looks clean (D13)."""
    text = text.rstrip(" ")
    faults = (
        ("\\" in text, "there is a backslash in it, write `;` and not `\\;`"),
        (bool(set(text) & set(_TYPOGRAPHIC)), "there are typographic quotation marks in it, remove them"),
        ('"' in text or text.startswith(("'", "`")), "there are quotation marks in it, remove them"),
        ("\u00a0" in text, "there is a no-break space (U+00A0) in it, type an ordinary space instead"),
        (text.startswith(" "), "it begins with a blank, remove that"),
    )
    for present, hint in faults:
        if present:
            return hint
    strange = next((character for character in text if not " " <= character <= "~"), None)
    if strange is None:
        return None
    name = unicodedata.name(strange, "a control character").lower()
    return f"there is a character in it that does not belong there: U+{ord(strange):04X}, {name}"


def _mended(text: str) -> str:
    """The text as it was probably meant, to tell what kind of record it should have been."""
    text = _INVISIBLE.sub("", text.replace("\u00a0", " ")).replace("\\", "")
    return text.strip(_TYPOGRAPHIC + "\"'` \t")


def _faulty(kind: str, value: str) -> Verdict | None:
    hint = paste_fault(value)
    return Verdict("Error", f"The {kind} record is damaged: {hint}", value) if hint else None


def _missing(kind: str, doubled: bool, *, status: Status = "Error") -> Verdict:
    return Verdict(status, f"There is no {kind} record" + (f". {_DOUBLED}" if doubled else ""))


def _tags(text: str) -> list[tuple[str, str]]:
    """`name=value; ...` (RFC 6376 §3.2); what is no tag has an empty value."""
    pairs = (tag.partition("=") for tag in text.split(";") if tag.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs]


# --- ownership ------------------------------------------------------------------------------------------------------


def ownership(answers: Sequence[str], token: str, *, doubled: Sequence[str] = ()) -> Verdict:
    """Whether the token is published at `ownership_name`; other tokens may stand beside it.

    Args:
        doubled: the answers at `<name>.<domain>`, where a record lands when a provider adds the domain itself.
    """
    wanted = _OWNERSHIP + token
    if wanted in answers:
        return Verdict("Success", "The domain is yours", wanted)
    for answer in answers:
        if token in answer:
            return _faulty("ownership", answer) or Verdict(
                "Error", f"The record must be {wanted} and nothing else", answer
            )
    for answer in answers:
        if _OWNERSHIP in answer:
            return Verdict("Error", f"The record has another token, publish {wanted}", answer)
    return _missing("ownership", wanted in map(_mended, doubled))


# --- DKIM -----------------------------------------------------------------------------------------------------------


def _is_dkim(text: str) -> bool:
    """RFC 6376 §3.6.1: v= may be left out, p= may not."""
    return bool(re.search(r"(?:^|;)\s*p\s*=", text)) or "dkim1" in text.lower()


def dkim(answers: Sequence[str], expected_record: str, *, doubled: Sequence[str] = ()) -> Verdict:
    """Whether our key is what receivers find at `dkim_name`. `doubled` as for `ownership`."""
    found = [answer for answer in answers if _is_dkim(answer)]
    if not found:
        return _missing("DKIM", any(map(_is_dkim, doubled)))
    if len(found) > 1:  # RFC 6376 §3.6.2.2: the result is undefined (D04)
        return Verdict("Error", "There is more than one DKIM record at this name, leave only ours", "\n".join(found))
    value = found[0]
    fault = _faulty("DKIM", value)
    if fault:
        return fault
    error = _dkim_error(_tags(value), dict(_tags(expected_record)))
    if error:
        return Verdict("Error", error, value)
    if "y" in dict(_tags(value)).get("t", "").split(":"):
        return Verdict("Warning", "The DKIM record says that it is only a test (t=y), remove that", value)
    if len(answers) > 1:
        return Verdict(
            "Warning", "Another TXT record stands at the name of the DKIM record, some receivers read that", value
        )
    return Verdict("Success", "The DKIM record is right", value)


def _dkim_error(tags: list[tuple[str, str]], expected: dict[str, str]) -> str | None:
    """Why receivers would not find our key in the record (RFC 6376 §3.6.1)."""
    found = dict(tags)
    key = re.sub(r"\s", "", found.get("p", ""))
    if len(found) < len(tags):
        return "The DKIM record has a tag twice"
    if "v" in found and tags[0] != ("v", "DKIM1"):
        return "The DKIM record must begin with v=DKIM1"
    if "p" not in found:
        return "The DKIM record has no key (p=)"
    if not key:
        return "The DKIM record says that the key is revoked (p= is empty)"
    if key != expected["p"]:
        return _other_key(key, expected["p"])
    kind = found.get("k", "rsa")
    if kind != expected.get("k", "rsa"):
        return f"The DKIM record says k={kind[:20]}, it must say k={expected.get('k', 'rsa')}"
    if not {"sha256", ""} & set(re.split(r"\s*:\s*", found.get("h", ""))):
        return "The DKIM record does not allow SHA-256 (h=), remove h="
    if not {"email", "*", ""} & set(re.split(r"\s*:\s*", found.get("s", ""))):
        return "The DKIM record is not for mail (s=), remove s="
    return None


def _other_key(key: str, expected: str) -> str:
    if expected.startswith(key):
        return (
            f"The key is cut off after {len(key)} of {len(expected)} characters; "
            "a text longer than 255 characters has to be entered in several strings"
        )
    if key.startswith(expected):
        return "There is something after the key in the DKIM record, is it entered twice?"
    return "The key in the DKIM record is not ours, publish the record as shown"


# --- SPF ------------------------------------------------------------------------------------------------------------

_SPF = re.compile(r"v=spf1(?: |\Z)", re.IGNORECASE)  # RFC 7208 §4.5: v=spf10 is something else
_SPF_TERM = re.compile(
    r"(?P<qualifier>[+?~-]?)(?P<name>all|include|a|mx|ptr|ip4|ip6|exists)(?:(?P<mark>[:/])(?P<value>\S+))?"
    r"|(?P<modifier>[a-z][a-z0-9._-]*)=(?P<argument>\S*)",
    re.IGNORECASE,
)
_SPF_LOOKUPS = 10  # RFC 7208 §4.6.4
_ASKING = {"include", "a", "mx", "ptr", "exists", "redirect"}


@dataclass(frozen=True, slots=True)
class _Term:
    """A mechanism or modifier of an SPF record; `qualifier` is empty for a modifier."""

    name: str
    qualifier: str
    value: str


def spf(answers: Sequence[str], include: str, *, lookup: Callable[[str], Sequence[str]] | None = None) -> Verdict:
    """Whether the domain's SPF record lets our servers send.

    Args:
        answers: the TXT records of the domain.
        include: the name whose record lists our servers.
        lookup: gives the TXT records of another name, to find ours behind another include or a redirect; what it raises
            is not caught. Without it only the record itself is looked at.
    """
    wanted = _name(include.removeprefix("include:"))
    found = [answer for answer in answers if _SPF.match(answer)]
    if len(found) > 1:  # RFC 7208 §4.5 (D06)
        text = "There is more than one SPF record, so receivers take none (permerror); join them into one"
        return Verdict("Error", text, "\n".join(found))
    if not found:
        damaged = next((answer for answer in answers if _SPF.match(_mended(answer))), None)
        return (damaged and _faulty("SPF", damaged)) or _missing("SPF", False)
    value = found[0]
    fault = _faulty("SPF", value)
    if fault:
        return fault
    terms = _spf_terms(value)
    if isinstance(terms, str):
        return Verdict("Error", terms, value)
    status, reason = _judge_spf(terms, wanted, lookup)
    return Verdict(status, reason, value)


def spf_records(answers: Sequence[str]) -> list[str]:
    """Those of the TXT records that are SPF."""
    return [answer for answer in answers if _SPF.match(answer)]


def spf_evaluated(verdict: Verdict, results: Sequence[tuple[str, Result, str]]) -> Verdict:
    """The verdict on a domain's SPF, held against what a receiver would find for our addresses.

    Args:
        verdict: what the record itself says.
        results: addresses of ours, what `mail.spf` came to for each, and why it is a permerror.
    """
    broken = next((reason for _, result, reason in results if result is Result.PERMERROR), None)
    refused = next(((ip, result) for ip, result, _ in results if result is not Result.PASS), None)
    if not results or (verdict.status == "Error" and (broken or refused)):
        return verdict
    if broken is not None:
        text = f"Receivers cannot evaluate the SPF record (permerror): {broken}"
        return Verdict("Error", text, verdict.value)
    if refused is None:
        if verdict.status != "Error":
            return verdict
        text = "Our servers are allowed by their addresses; the include we suggest would follow when these change"
        return Verdict("Info", text, verdict.value)
    if verdict.status == "Warning":
        return verdict
    ip, result = refused
    text = f"Something in the SPF record comes before our include: for our address {ip} it says {result}"
    return Verdict("Error" if result in (Result.FAIL, Result.SOFTFAIL) else "Warning", text, verdict.value)


def _name(text: str) -> str:
    return text.lower().rstrip(".")


def _spf_terms(record: str) -> list[_Term] | str:
    """The terms in order, or why receivers would ignore the whole record (permerror, RFC 7208 §4.6)."""
    terms: list[_Term] = []
    for word in record.split()[1:]:
        term = _SPF_TERM.fullmatch(word)
        if term is None or (
            (term["name"] or "").lower() in ("include", "ip4", "ip6", "exists") and term["mark"] != ":"
        ):
            return f"The SPF record is not valid at {word[:60]}, so receivers ignore all of it (permerror)"
        if term["modifier"]:
            terms.append(_Term(term["modifier"].lower(), "", _name(term["argument"])))
        else:
            terms.append(_Term(term["name"].lower(), term["qualifier"] or "+", _name(term["value"] or "")))
    if sum(term.name in _ASKING for term in terms) > _SPF_LOOKUPS:
        return f"The SPF record needs more than {_SPF_LOOKUPS} DNS lookups, so receivers ignore all of it (permerror)"
    return terms


def _reachable(terms: list[_Term]) -> list[_Term]:
    """The mechanisms up to `all`, or all of them and the redirect (RFC 7208 §5.1, §6.1)."""
    mechanisms = [term for term in terms if term.qualifier]
    for number, term in enumerate(mechanisms):
        if term.name == "all":
            return mechanisms[: number + 1]
    return mechanisms + [term for term in terms if term.name == "redirect"]


def _judge_spf(terms: list[_Term], wanted: str, lookup: Callable[[str], Sequence[str]] | None) -> tuple[Status, str]:
    """Are our servers allowed?"""
    reachable = _reachable(terms)
    ours = [term for term in terms if term.qualifier and (term.name, term.value) == ("include", wanted)]
    effective = [term for term in ours if term in reachable]
    if effective and effective[0].qualifier != "+":
        qualifier = effective[0].qualifier
        reason = f"{qualifier}include:{wanted} does not allow our servers to send, remove the {qualifier}"
        return "Error" if qualifier == "-" else "Warning", reason
    if not effective and not (lookup and _is_behind(reachable, wanted, lookup)):
        if ours:
            return "Warning", f"include:{wanted} is unreachable: nobody reads what stands after `all`, move it in front"
        return "Error", f"The SPF record does not have include:{wanted}, add it in front of the last term"
    return _judge_rest(terms, reachable, wanted)


def _judge_rest(terms: list[_Term], reachable: list[_Term], wanted: str) -> tuple[Status, str]:
    """Our servers are allowed; and everybody else?"""
    last = reachable[-1]
    dead = [term.name for term in terms if term.qualifier and term not in reachable]
    if last.name == "redirect":
        return "Info", f"Our servers are allowed; the record of {last.value[:100]} decides about all others"
    if last.name != "all" or last.qualifier == "?":
        return "Warning", "The SPF record forbids nobody to send for the domain, end it with -all"
    if last.qualifier == "+":
        return "Warning", "+all allows every server in the world to send for the domain, write -all"
    if dead:
        return "Warning", f"Nobody reads what stands after `all`: move {dead[0]} in front of it, or remove it"
    if terms == [_Term("include", "+", wanted), _Term("all", "-", "")]:
        return "Success", "The SPF record is right"
    return "Info", "Our servers are allowed; the record is not just the one we suggest"


def _is_behind(terms: list[_Term], wanted: str, lookup: Callable[[str], Sequence[str]]) -> bool:
    """Whether an include or redirect leads to the wanted name, within the lookups a receiver makes (D08)."""
    waiting = _targets(terms)
    asked: set[str] = set()
    while waiting and len(asked) < _SPF_LOOKUPS:
        name = waiting.pop(0)
        if name == wanted:
            return True
        if name in asked:
            continue
        asked.add(name)
        records = [answer for answer in lookup(name) if _SPF.match(answer)]
        further = _spf_terms(records[0]) if len(records) == 1 else ""
        if not isinstance(further, str):
            waiting += _targets(_reachable(further))
    return False


def _targets(terms: list[_Term]) -> list[str]:
    return [
        term.value for term in terms if term.name == "redirect" or (term.name == "include" and term.qualifier == "+")
    ]


# --- DMARC ----------------------------------------------------------------------------------------------------------

_DMARC = re.compile(r"v\s*=\s*DMARC1\s*(?:;|\Z)")  # RFC 7489 §6.3, RFC 9989: first, and in this case
_POLICIES = ("none", "quarantine", "reject")


_MOST_LABELS = 8


def dmarc_walk(domain: str) -> list[str]:
    """The domains above this one at which its policy is looked for, in order; 7 at most (RFC 9989 §4.10)."""
    labels = domain.split(".")
    first = len(labels) - _MOST_LABELS + 1 if len(labels) > _MOST_LABELS else 1
    return [".".join(labels[start:]) for start in range(first, len(labels))]


def dmarc_parent(walked: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, str] | None:
    """Of the TXT records found on the walk, the record that counts, and where: that of the organizational domain.

    More than one record at a name counts as none there. psd=n ends the walk; psd=y says that the organizational domain is below.
    """
    best: tuple[str, str] | None = None
    for name, answers in walked:
        found = [answer for answer in answers if _DMARC.match(answer)]
        if len(found) != 1:
            continue
        psd = dict(_tags(found[0].lower())).get("psd")
        if psd == "y":
            return best or (name, found[0])
        best = name, found[0]
        if psd == "n":
            break
    return best


def dmarc_reports(record: str, domain: str) -> list[str]:
    """Other domains to which the record asks for reports; each must say that it wants them (RFC 7489 §7.1, RFC 9990 §4)."""
    asked = ",".join(content for name, content in _tags(record.lower()) if name in ("rua", "ruf"))
    hosts = (uri.strip().partition("!")[0].rpartition("@")[2] for uri in asked.split(",") if "mailto:" in uri)
    return [host for host in dict.fromkeys(hosts) if host and not _related(host, domain)]


def _related(one: str, other: str) -> bool:
    return one == other or one.endswith("." + other) or other.endswith("." + one)


def dmarc(
    answers: Sequence[str],
    *,
    doubled: Sequence[str] = (),
    parent: tuple[str, str] | None = None,
    unwanted: Sequence[str] = (),
) -> Verdict:
    """What the domain asks receivers to do with mail that is not its own, by RFC 9989. Recommended, so never an Error.

    Args:
        doubled: as for `ownership`.
        parent: `dmarc_parent`, which counts where the domain has no record of its own.
        unwanted: domains that are to get reports and do not say that they want them.
    """
    verdict = _dmarc(answers, doubled, parent)
    if unwanted and verdict.status in ("Success", "Info"):
        text = f"No reports will come: {unwanted[0]} does not say that it takes them for this domain"
        return Verdict("Warning", text, verdict.value)
    return verdict


def _dmarc(answers: Sequence[str], doubled: Sequence[str], parent: tuple[str, str] | None) -> Verdict:
    found = [answer for answer in answers if _DMARC.match(answer)]
    if len(found) > 1:  # RFC 7489 §6.6.3 (5)
        text = "There is more than one DMARC record, so receivers take none; leave one"
        return Verdict("Warning", text, "\n".join(found))
    if not found:
        near = next((answer for answer in answers if "dmarc1" in answer.lower()), None)
        if near is None and parent is not None:
            return _inherited(*parent)
        if near is None:
            return _missing("DMARC", any("dmarc1" in answer.lower() for answer in doubled), status="Info")
        hint = paste_fault(near) or "it must begin with v=DMARC1, in capitals"
        return Verdict("Warning", f"Receivers do not take this for a DMARC record: {hint}", near)
    value = found[0]
    fault = paste_fault(value)
    if fault:
        return Verdict("Warning", f"The DMARC record is damaged: {fault}", value)
    tags = {name.lower(): content.lower() for name, content in reversed(_tags(value))}
    status, reason = _judge_dmarc(tags)
    return Verdict(status, reason, value)


def _inherited(name: str, value: str) -> Verdict:
    """The policy of the organizational domain: for what is below it sp= counts, else p= (RFC 9989 §4.7)."""
    tags = {tag.lower(): content.lower() for tag, content in reversed(_tags(value))}
    policy = tags.get("sp", tags.get("p"))
    if policy not in _POLICIES:
        return Verdict("Warning", f"The DMARC record of {name} counts, and has no policy that is valid", value)
    status: Status = "Success" if policy == "reject" else "Info"
    return Verdict(status, f"The DMARC record of {name} counts: {policy}", value)


def _judge_dmarc(tags: dict[str, str]) -> tuple[Status, str]:
    policy = tags.get("p")
    subdomains = tags.get("sp", policy)  # RFC 7489 §6.3: sp= is that of p= when absent
    if policy not in _POLICIES:
        what = "p= is missing" if policy is None else f"p={policy[:20]} is not valid"
        if "mailto:" not in tags.get("rua", ""):
            return "Warning", f"{what}, so receivers ignore the DMARC record"
        beside = f" (sp={subdomains[:20]} is only for subdomains)" if policy is None and subdomains else ""
        return "Warning", f"{what}, so receivers take it for p=none{beside}"  # RFC 7489 §6.6.3 (6) (D09)
    if subdomains not in _POLICIES:
        return "Warning", f"sp={(subdomains or '')[:20]} is not valid"
    if tags.get("t") == "y" or tags.get("pct", "100") != "100":
        return "Info", f"p={policy}, but only as a test or for a part of the mail (t=, pct=)"
    if policy != "reject":
        return "Info", f"p={policy}: receivers do not refuse mail that only claims to be yours, p=reject would"
    if subdomains != "reject":
        return "Info", f"p=reject, but sp={subdomains} for subdomains"
    return "Success", "The DMARC record is right"


# --- addresses ------------------------------------------------------------------------------------------------------


def return_path(servers: Sequence[str], addresses: Sequence[str]) -> Verdict:
    """Whether a bounce finds its way back to the domain, which is also what many receivers ask of a sender.

    Args:
        servers: the MX records as text.
        addresses: A and AAAA records, which count where there is no MX (RFC 5321 §5.1).
    """
    found = [server for server in servers if server.split()[-1] != "."]
    if servers and not found:  # RFC 7505 §4.2
        return Verdict(
            "Warning", "The domain says that it takes no mail (null MX), so receivers may refuse it as a sender"
        )
    if not found and not addresses:
        return Verdict(
            "Warning", "The domain has no mail server (MX), so bounces cannot come back and some receivers refuse it"
        )
    return Verdict("Success", "Bounces find their way back", "\n".join(found[:10]) or None)


def a(answers: Sequence[str]) -> Verdict:
    """Whether the domain has an address; some receivers want that of a sender's domain."""
    if answers:
        return Verdict("Success", "The domain has an address", ", ".join(answers[:10]))
    return Verdict("Info", "The domain has no A record; some receivers look for one")
