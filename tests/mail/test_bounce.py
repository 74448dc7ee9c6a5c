"""What refusals are about: replies as real servers give them, with the names in them changed."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import bounce, reply
from remails.mail.bounce import Blame, Kind
from remails.mail.reply import Phase, Reply

USER = "b@example.net"

# kind, code and text of the reply; the server is named where it is known
REPLIES = [
    # Gmail, Google Workspace
    (Kind.UNKNOWN_USER, "550 5.1.1 The email account that you tried to reach does not exist. Please try double-checking the recipient's email address for typos or unnecessary spaces. For more information, go to https://support.google.com/mail/?p=NoSuchUser x-gsmtp"),
    (Kind.DISABLED, "550 5.2.1 The email account that you tried to reach is disabled. Learn more at https://support.google.com/mail/?p=DisabledUser x - gsmtp"),
    (Kind.DISABLED, "550 5.2.1 The email account that you tried to reach is inactive. For more information, go to https://support.google.com/mail/?p=DisabledUser"),
    (Kind.FULL, "552 5.2.2 The email account that you tried to reach is over quota and inactive. Please direct the recipient to https://support.google.com/mail/?p=OverQuotaPerm"),
    (Kind.FULL, "552 5.2.2 The recipient's inbox is out of storage space. Please direct the recipient to https://support.google.com/mail/?p=OverQuotaPerm"),
    (Kind.RATE, "550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered."),
    (Kind.SPAM, "550 5.7.1 [192.0.2.7 12] Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked."),
    (Kind.AUTHENTICATION, "550 5.7.26 This mail has been blocked because the sender is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM."),
    (Kind.AUTHENTICATION, "550 5.7.26 Unauthenticated email from example.com is not accepted due to domain's DMARC policy."),
    (Kind.AUTHENTICATION, "550 5.7.25 [192.0.2.7] The IP address sending this message does not have a PTR record setup"),
    (Kind.AUTHENTICATION, "550 5.7.1 [2001:db8::7] Our system has detected that this message does not meet IPv6 sending guidelines regarding PTR records and authentication."),
    (Kind.POLICY, "550 5.7.1 The user or domain that you are sending to (or from) has a policy that prohibited the mail that you sent."),
    (Kind.SIZE, "552 5.2.3 Your message exceeded Google's message size limits."),
    (Kind.CONTENT, "552 5.7.0 This message was blocked because its content presents a potential security issue."),
    (Kind.UNKNOWN_USER, "553 5.1.3 The recipient address <b@example.net> is not a valid RFC 5321 address. x - gsmtp"),
    (Kind.REPUTATION, "550 5.7.1 Our system has detected that this message is suspicious due to the very low reputation of the sending domain."),
    (Kind.UNKNOWN_DOMAIN, "550 5.1.2 We weren't able to find the recipient domain. Please check for any spelling errors."),
    # Outlook.com, Exchange Online, Exchange
    (Kind.UNKNOWN_USER, "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302)."),
    (Kind.UNKNOWN_USER, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"),
    (Kind.UNKNOWN_USER, "550 5.1.1 RESOLVER.ADR.ExRecipNotFound; not found"),
    (Kind.DOUBTFUL_USER, "550 5.4.1 Recipient address rejected: Access denied. AS(201806281) [XXX.prod.protection.outlook.com]"),
    (Kind.REPUTATION, "550 5.7.1 Unfortunately, messages from [192.0.2.7] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140)."),
    (Kind.REPUTATION, "550 5.7.606 Access denied, banned sending IP [192.0.2.7]. To request removal from this list please visit https://sender.office.com/"),
    (Kind.REPUTATION, "550 5.7.511 Access denied, banned sender[192.0.2.7]."),
    (Kind.REPUTATION, "550 5.7.1 Service unavailable, Client host [192.0.2.7] blocked using Spamhaus. To request removal from this list see https://www.spamhaus.org/query/ip/192.0.2.7"),
    (Kind.AUTHENTICATION, "550 5.7.515 Access denied, sending domain EXAMPLE.COM doesn't meet the required authentication level."),
    (Kind.AUTHENTICATION, "550 5.7.509 Access denied, sending domain example.com does not pass DMARC verification and has a DMARC policy of reject."),
    (Kind.RELAYING, "550 5.7.64 TenantAttribution; Relay Access Denied [ValidationStatus of '' is EmptyCertificate]"),
    (Kind.FULL, "554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded"),
    (Kind.AUTHENTICATION, "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required"),
    (Kind.POLICY, "550 5.7.129 RESOLVER.RST.RestrictedToRecipientsPermission; not authorized"),
    (Kind.LOOP, "554 5.4.14 Hop count exceeded - possible mail loop ATTR34"),
    (Kind.SENDER, "550 5.1.8 Access denied, bad outbound sender AS(42003)"),
    (Kind.UNKNOWN_DOMAIN, "550 5.4.310 DNS domain example.net does not exist"),
    (Kind.SIZE, "552 5.3.4 Message size exceeds fixed maximum message size"),
    (Kind.SPAM, "550 5.7.350 Remote server returned message detected as spam -> 554 5.7.1 spam"),
    # Yahoo, AOL
    (Kind.UNKNOWN_USER, "554 delivery error: dd This user doesn't have a yahoo.com account (b@yahoo.com) [0] - mta4.mail.example"),
    (Kind.UNKNOWN_USER, "554 delivery error: dd Not a valid recipient - atlas1.mail.example"),
    (Kind.UNKNOWN_USER, "552 1 Requested mail action aborted, mailbox not found"),
    (Kind.DISABLED, "554 30 Sorry, your message to b@aol.com cannot be delivered. This mailbox is disabled (554.30)."),
    (Kind.REPUTATION, "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.7, because the ip is in Spamhaus's list"),
    (Kind.POLICY, "554 5.7.9 Message not accepted for policy reasons. See https://postmaster.yahooinc.com/error-codes"),
    (Kind.RELAYING, "550 relaying denied for <b@example.net>"),
    # iCloud
    (Kind.UNKNOWN_USER, "550 5.1.1 <b@icloud.com>: user lookup success but no user record found"),
    (Kind.MOVED, "550 5.1.6 recipient no longer on server: b@me.com"),
    (Kind.FULL, "552 5.2.2 <b@icloud.com>: user is over quota"),
    (Kind.AUTHENTICATION, "550 5.7.1 Your message was rejected due to example.com's DMARC policy. See https://support.apple.com/"),
    (Kind.POLICY, "554 5.7.1 [HM08] Message rejected due to local policy. Please visit https://support.apple.com/"),
    # GMX, WEB.DE, T-Online, other German providers
    (Kind.UNKNOWN_USER, "550 Requested action not taken: mailbox unavailable For explanation visit https://postmaster.gmx.net/en/case?c=r0103"),
    (Kind.POLICY, "554 Transaction failed Reject due to policy restrictions. For explanation visit https://postmaster.gmx.net/en/case?c=r0601"),
    (Kind.FULL, "552 Requested mail action aborted: exceeded storage allocation Quota exceeded"),
    (Kind.UNKNOWN_USER, "550 Benutzer unbekannt"),
    (Kind.UNKNOWN_USER, "550 5.1.1 Empfaenger unbekannt"),
    (Kind.REPUTATION, "554 IP=192.0.2.7 - None/bad reputation. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.)"),
    (Kind.UNKNOWN_USER, "550 5.1.1 <b@posteo.de>: Recipient address rejected: User unknown in relay recipient table"),
    # Orange, La Poste, Free
    (Kind.UNKNOWN_USER, "550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]"),
    (Kind.FULL, "552 5.1.1 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]"),
    (Kind.SPAM, "550 5.2.0 Mail rejete. Mail rejected. SPAM OFR_506 [506]"),
    (Kind.POLICY, "550 5.2.0 Mail rejete. Mail rejected. OFR_506 [506]"),
    (Kind.REPUTATION, "550 mwinf5c04 ME Adresse IP source bloquee pour incident de spam. Client host blocked for spamming issues. OFR006_102 [102]"),
    (Kind.UNKNOWN_USER, "550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. LPN007_401"),
    (Kind.UNKNOWN_USER, "550 utilisateur inconnu"),
    # Postfix
    (Kind.UNKNOWN_USER, "550 5.1.1 <b@example.net>: Recipient address rejected: User unknown in virtual mailbox table"),
    (Kind.UNKNOWN_USER, "550 5.1.1 <policy@example.net>: Recipient address rejected: User unknown in local recipient table"),
    (Kind.RELAYING, "554 5.7.1 <b@example.net>: Relay access denied"),
    (Kind.SENDER, "550 5.1.8 <a@example.com>: Sender address rejected: Domain not found"),
    (Kind.SENDER, "550 5.1.0 <a@example.com>: Sender address rejected: User unknown in virtual alias table"),
    (Kind.REPUTATION, "554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.7"),
    (Kind.REPUTATION, "554 5.7.1 <relay.example[192.0.2.7]>: Client host rejected: Access denied"),
    (Kind.AUTHENTICATION, "550 5.7.23 <b@example.net>: Recipient address rejected: Message rejected due to: SPF fail - not authorized. Please see http://www.openspf.net/Why"),
    (Kind.FULL, "552 5.2.2 <b@example.net> Quota exceeded (mailbox for user is full)"),
    (Kind.CONTENT, "550 5.7.1 message content rejected"),
    (Kind.SIZE, "552 5.3.4 Error: message file too big"),
    (Kind.POLICY, "554 5.7.1 <b@example.net>: Recipient address rejected: Access denied"),
    (Kind.DOUBTFUL_USER, "550 5.1.0 <b@example.net>: Recipient address rejected: not here"),
    # Exim, cPanel
    (Kind.DOUBTFUL_USER, "550 Unrouteable address"),
    (Kind.UNKNOWN_USER, "550 No Such User Here"),
    (Kind.UNKNOWN_USER, "550 Unknown user"),
    (Kind.SENDER, "550 Verification failed for <a@example.com> No Such User Here Sender verify failed"),
    (Kind.RELAYING, "550 relay not permitted"),
    (Kind.POLICY, "550 Administrative prohibition"),
    (Kind.REPUTATION, "550 rejected because 192.0.2.7 is in a black list at dnsbl.example"),
    (Kind.SPAM, "550 This message was classified as SPAM and may not be delivered"),
    (Kind.AUTHENTICATION, "550 Reverse DNS lookup failed for host 192.0.2.7."),
    # sendmail, qmail, Courier, OpenSMTPD, MDaemon, Domino
    (Kind.UNKNOWN_USER, "550 5.1.1 <b@example.net>... User unknown"),
    (Kind.SENDER, "553 5.1.8 <a@example.com>... Domain of sender address a@example.com does not exist"),
    (Kind.RELAYING, "550 5.7.1 <b@example.net>... Relaying denied"),
    (Kind.UNKNOWN_USER, "550 sorry, no mailbox here by that name. (#5.1.1)"),
    (Kind.RELAYING, "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"),
    (Kind.UNKNOWN_USER, "550 User unknown."),
    (Kind.UNKNOWN_USER, "550 Invalid recipient: <b@example.net>"),
    (Kind.UNKNOWN_USER, "550 5.1.1 Recipient unknown <b@example.net>"),
    (Kind.UNKNOWN_USER, "550 b@example.net... No such user"),
    # filters in front: Proofpoint, Mimecast, IronPort, Barracuda, Rspamd, Amavis
    (Kind.UNKNOWN_USER, "550 5.1.1 User Unknown"),
    (Kind.REPUTATION, "554 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.7"),
    (Kind.UNKNOWN_USER, "550 Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550 [x.uk1]"),
    (Kind.POLICY, "554 Email rejected due to security policies - https://community.mimecast.com/docs/DOC-1369#554"),
    (Kind.SENDER, "550 Rejected by header based manually Blocked Senders: a@example.com"),
    (Kind.DOUBTFUL_USER, "550 #5.1.0 Address rejected b@example.net"),
    (Kind.REPUTATION, "554 Your access to this mail system has been rejected due to the sending MTA's poor reputation."),
    (Kind.POLICY, "550 permanent failure for one or more recipients (b@example.net:blocked)"),
    (Kind.SPAM, "554 5.7.1 Spam message rejected"),
    (Kind.SPAM, "554 5.7.0 Reject, id=12345-01 - spam"),
    (Kind.CONTENT, "554 5.7.0 id=12345-01 - VIRUS: Eicar-Signature"),
    # others
    (Kind.UNKNOWN_USER, "550 Message was not accepted -- invalid mailbox. Local mailbox b@mail.ru is unavailable: user not found"),
    (Kind.SPAM, "550 spam message rejected. Please visit https://help.mail.ru/notspam-support/id?c=x"),
    (Kind.POLICY, "550 5.7.1 No such user!"),  # Yandex; 5.7.x never counts
    (Kind.UNKNOWN_USER, "550 5.1.1 Not our Customer"),
    (Kind.UNKNOWN_USER, "550 User not found: b@163.com"),
    (Kind.UNKNOWN_USER, "550 5.1.1 User does not exist - <b@zoho.com>"),
    (Kind.DOUBTFUL_USER, "550 mailbox unavailable"),
    (Kind.DISABLED, "550 Account has been suspended"),
    (Kind.UNKNOWN_USER, "550 5.1.1 El usuario no existe"),
    (Kind.UNKNOWN_USER, "550 utente sconosciuto"),
    # O32, O34: what says little, or what contradicts itself
    (Kind.UNCLEAR, "550 "),
    (Kind.UNCLEAR, "550 no text"),
    (Kind.UNCLEAR, "554 Transaction failed"),
    (Kind.UNCLEAR, "550 5.0.0 No"),
    (Kind.FULL, "550 4.2.2 full"),
    (Kind.FULL, "552 5.2.2"),
    (Kind.POLICY, "554 5.7.1"),
    (Kind.REPUTATION, "554 5.7.1 [host] listed"),
    (Kind.SIZE, "552 5.3.4"),
    (Kind.SENDER, "550 5.1.1 sender domain does not exist"),
    (Kind.SENDER, "550 The sender's domain does not exist"),
    (Kind.SENDER, "550 5.1.7 Invalid address"),
    (Kind.SPAM, "550 5.1.1 rejected as spam"),
    (Kind.POLICY, "550 5.1.1 refused by policy"),
    (Kind.FULL, "550 5.1.1 mailbox is full"),
]  # fmt: skip

NEVER = {
    Kind.FULL, Kind.RATE, Kind.SIZE, Kind.SENDER, Kind.AUTHENTICATION, Kind.REPUTATION, Kind.SPAM, Kind.CONTENT,
    Kind.RELAYING, Kind.LOOP, Kind.POLICY, Kind.UNCLEAR,
}  # fmt: skip


def _reply(line: str, phase: Phase = Phase.RCPT) -> Reply:
    return reply.of(phase, int(line[:3]), line[4:])


@pytest.mark.parametrize(("kind", "line"), REPLIES)
def test_kind(kind: Kind, line: str) -> None:
    """O32: what the great providers and the common servers say."""
    assert bounce.classify(_reply(line)) is kind
    assert (bounce.blame(_reply(line), USER, is_alone=True) is Blame.NONE) == (kind in NEVER)


def test_no_text_takes_long() -> None:
    """A server that wants to hold us up chooses its words: the service does nothing else while it reads them."""
    starts = ("host ", "box ", "sender ", "user ", "message ", "not a valid ", "limit ", "unknown ", "size ", "ip ")
    fills = ("!", "! ", "a ", "aa! ", "a. ", "host ")
    # Short ones first, which end where long ones would not
    texts = [(start + fill * length)[:length] for length in (30, 100, 1000) for start in starts for fill in fills]
    for text in texts:
        began = time.process_time()
        bounce.classify(_reply(f"550 {text}"))
        assert time.process_time() - began < 0.5, text


def test_there_are_words_for_every_kind() -> None:
    assert all(kind.cause.endswith(".") for kind in Kind)
    assert {kind for kind in Kind if kind.blame is Blame.NONE} == NEVER
    seen = {kind for kind, _ in REPLIES}
    assert set(Kind) - seen == {Kind.NO_MAIL}


@pytest.mark.parametrize(
    "line", ["450 5.1.1 user unknown", "450 4.1.1 x", "451 4.1.8 domain not found", "250 5.1.1 x", "421 4.7.0 x"]
)
def test_what_is_not_for_good_blames_nobody(line: str) -> None:
    """O32: the basic code decides."""
    assert bounce.classify(_reply(line)) is Kind.UNCLEAR
    assert bounce.blame(_reply(line), USER, is_alone=True) is Blame.NONE


@pytest.mark.parametrize(
    ("phase", "blame"),
    [
        (Phase.RCPT, Blame.SURELY),
        (Phase.BODY, Blame.SURELY),
        (Phase.DNS, Blame.SURELY),
        (Phase.MAIL, Blame.NONE),
        (Phase.DATA, Blame.NONE),
        (Phase.BANNER, Blame.NONE),
        (Phase.EHLO, Blame.NONE),
        (Phase.CONNECT, Blame.NONE),
        (Phase.LOCAL, Blame.NONE),
    ],
)
def test_only_what_was_said_of_a_recipient_counts(phase: Phase, blame: Blame) -> None:
    """O11: whatever a banner says, it is not the recipient's fault."""
    assert bounce.blame(_reply("550 5.1.1 no such user", phase), USER, is_alone=True) is blame


def test_one_answer_for_several_blames_whom_it_names() -> None:
    """A refusal at the final dot is for all who were accepted: only one of them may be bad."""
    refusal = _reply("554 delivery error: dd This user doesn't have a yahoo.com account (b@Example.net)", Phase.BODY)
    assert bounce.blame(refusal, USER, is_alone=False) is Blame.SURELY
    assert bounce.blame(refusal, "c@example.net", is_alone=False) is Blame.NONE
    assert bounce.blame(_reply("550 5.1.1 no such user", Phase.RCPT), "c@example.net", is_alone=False) is Blame.SURELY


@pytest.mark.parametrize("role", ["postmaster", "Abuse", "hostmaster"])
def test_a_mailbox_that_must_exist_is_given_more_chances(role: str) -> None:
    refusal = _reply("550 5.1.1 no such user")
    assert bounce.blame(refusal, f"{role}@example.net", is_alone=True) is Blame.PERHAPS
    assert bounce.blame(_reply("550 5.7.1 no"), f"{role}@example.net", is_alone=True) is Blame.NONE


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "kind", "blame"),
    [
        (556, "5.1.10", "the domain example.net does not accept mail (null MX)", Kind.NO_MAIL, Blame.SURELY),  # O01
        (550, "5.1.2", "no such domain", Kind.UNKNOWN_DOMAIN, Blame.PERHAPS),  # O02
        (550, "5.4.4", "mx.example.net has no address", Kind.UNCLEAR, Blame.NONE),  # O05
        (550, "5.4.6", "the domain's server is this relay", Kind.LOOP, Blame.NONE),
    ],
)
def test_what_dns_says(code: int, enhanced: str, text: str, kind: Kind, blame: Blame) -> None:
    answer = Reply(Phase.DNS, code, enhanced, text)
    assert bounce.classify(answer) is kind
    assert bounce.blame(answer, USER, is_alone=True) is blame


@given(st.integers(500, 599), st.text(max_size=200))
def test_5_7_and_full_mailboxes_never_count(code: int, text: str) -> None:
    """O32: whatever the words are."""
    for enhanced in ("5.7.1", "5.7.26", "5.2.2", "5.3.4"):
        answer = reply.of(Phase.RCPT, code, f"{enhanced} {text}")
        assert answer.enhanced == enhanced
        assert bounce.blame(answer, USER, is_alone=True) is Blame.NONE
