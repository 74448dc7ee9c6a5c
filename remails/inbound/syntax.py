"""Reading a command line, and the arguments of MAIL and RCPT.

A path is taken apart here, not judged: `mail.address.parse` does that. Where every client's intention is plain we are
tolerant (a space after the colon, no angle brackets); parameters are checked to the letter.
"""

import re
from collections.abc import Callable, Mapping

from remails.errors import Refused
from remails.inbound.intake import too_large
from remails.mail import dsn
from remails.mail.patterns import QUOTED, runs

# RFC 5321 §4.1.2. There is one way to match, so that the time taken grows with the length and no faster.
_ROUTE = r"@[^:<>\" ]++:"
_IN_BRACKETS, _BARE = r"[^<>\"]", r"[^<>\" ]"
_PATH = re.compile(
    rf" *+(?:<(?:{_ROUTE})?(?P<path>{runs(_IN_BRACKETS, QUOTED)})>|(?P<bare>(?:{_BARE}|{QUOTED}){runs(_BARE, QUOTED)}))"
    rf"(?: ++(?P<rest>.*+))?"
)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([^= \x00-\x1f\x7f]++))?")


_MAX_LINE = 512  # RFC 5321 §4.5.3.1.4
_MAX_LINES = {"AUTH": 12288, "MAIL": 2048, "RCPT": 2048}  # RFC 4954 §4, and room for parameters


def command(line: bytes) -> tuple[str, str]:
    """The verb in upper case (RFC 5321 §2.4) and its argument, of a line without its end.

    Raises:
        Refused: 500.
    """
    try:
        verb, _, argument = line.decode().partition(" ")
    except UnicodeDecodeError:
        raise unreadable("Not UTF-8") from None
    verb = verb.upper() if verb.isascii() else verb  # some other letters become ASCII in upper case
    if len(line) + len("\r\n") > _MAX_LINES.get(verb, _MAX_LINE):
        raise too_long()
    return verb, argument.strip(" ")


def too_long() -> Refused:
    """What to say to a line that is too long."""
    return unreadable("Line too long")


def unreadable(text: str) -> Refused:
    """What to say to a line that is no command line."""
    return Refused(500, "5.5.2", text, status=400)


def path_and_parameters(keyword: str, argument: str) -> tuple[str, dict[str, str | None]]:
    """Take apart `FROM:<path> parameters`. The path comes without brackets and without source route.

    Raises:
        Refused: 501 for what does not follow the syntax.
    """
    wanted = keyword + ":"
    if argument[: len(wanted)].upper() != wanted:
        raise _bad(f"Syntax: {keyword}:<address>")
    found = _PATH.fullmatch(argument, len(wanted))
    if found is None:
        raise _bad(f"Syntax: {keyword}:<address>")
    # RFC 5321 §4.1.1.3 and appendix C: a source route is taken off and never followed.
    path = found["path"] if found["path"] is not None else found["bare"]
    return path, _parameters(found["rest"] or "")


def _parameters(text: str) -> dict[str, str | None]:
    """Keywords in upper case and their values (RFC 5321 §4.1.2)."""
    parameters: dict[str, str | None] = {}
    for word in text.split():
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise _bad("Malformed parameter")
        keyword = found[1].upper()
        if keyword in parameters:
            raise _bad(f"{keyword} given twice")
        parameters[keyword] = found[2]
    return parameters


def mail_parameters(parameters: Mapping[str, str | None], max_size: int) -> dsn.Asked:
    """Refuse parameters of MAIL that are wrong, or that EHLO did not offer; returns what they ask of reports.

    Raises:
        Refused: 501, 552 or 555.
    """
    ret = envid = None
    for keyword, value in parameters.items():
        match keyword:
            case "SIZE":
                _check_size(value, max_size)
            case "BODY":  # RFC 6152 §3
                if (value or "").upper() not in ("7BIT", "8BITMIME"):
                    raise _bad("BODY is 7BIT or 8BITMIME")
            case "SMTPUTF8":  # RFC 6531 §3.4
                if value is not None:
                    raise _bad("SMTPUTF8 takes no value")
            case "AUTH":
                # RFC 4954 §5: whoever offers AUTH must take this parameter, and need not believe it.
                if value is None:
                    raise _bad("AUTH needs a value")
            case "RET":
                ret = _checked(dsn.ret, value)
            case "ENVID":
                envid = _checked(dsn.envid, value)
            case _:
                raise unknown_parameter(keyword)
    return dsn.Asked(ret, envid)


def rcpt_parameters(parameters: Mapping[str, str | None]) -> dsn.AskedOf:
    """The same for RCPT. Raises Refused: 501 or 555."""
    notify = orcpt = None
    for keyword, value in parameters.items():
        match keyword:
            case "NOTIFY":
                notify = _checked(dsn.notify, value)
            case "ORCPT":
                orcpt = _checked(dsn.orcpt, value)
            case _:
                raise unknown_parameter(keyword)
    return dsn.AskedOf(notify, orcpt)


def _checked(check: Callable[[str | None], str], value: str | None) -> str:
    try:
        return check(value)
    except dsn.BadParameter as error:
        raise _bad(str(error)) from None


def chunk(argument: str) -> tuple[int, bool]:
    """The size of a chunk and whether it is the last, of the argument of BDAT (RFC 3030 §2).

    Raises:
        Refused: 501.
    """
    found = re.fullmatch(r"([0-9]{1,20})(?: ++(LAST))?+", argument, re.IGNORECASE | re.ASCII)
    if found is None:
        raise _bad("Syntax: BDAT size [LAST]")
    return int(found[1]), found[2] is not None


def unknown_parameter(keyword: str) -> Refused:
    """What to say to a parameter that was not offered (RFC 5321 §4.1.1.11)."""
    return Refused(555, "5.5.4", f"Parameter {keyword[:40]} not recognized", status=400)


def _check_size(value: str | None, max_size: int) -> None:
    # RFC 1870 §3: up to 20 digits.
    if value is None or not re.fullmatch(r"[0-9]{1,20}", value):
        raise _bad("SIZE is a number of bytes")
    if int(value) > max_size:  # RFC 1870 §6.1
        raise too_large(max_size)


def _bad(text: str) -> Refused:
    return Refused(501, "5.5.4", text, status=400)
