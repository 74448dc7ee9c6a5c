"""The few errors that cross folders.

`Refused` carries both faces of a refusal and becomes a reply in exactly two places: `inbound.handler` (SMTP)
and `api.problems` (HTTP). `Unavailable` is a trouble of ours that passes: 451 or 503, never a permanent
error; `Full` is the one that has a reply of its own, 452. `ConfigError` ends a process at its start with one sentence and exit status 78.
"""


class Refused(Exception):
    """The sender asked for something we will not do.

    Args:
        code: SMTP reply code (RFC 5321 section 4.2).
        enhanced: enhanced status code such as "5.7.1" (RFC 3463).
        text: one sentence for a human, in ASCII: what is wrong and what to do.
        status: HTTP status with the same meaning.
        field: the JSON field at fault, where there is one.
        retry_after: seconds after which the same may be taken, where that is known.
    """

    def __init__(
        self,
        code: int,
        enhanced: str,
        text: str,
        *,
        status: int,
        field: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.status = status
        self.field = field
        self.retry_after = retry_after

    @property
    def reply(self) -> str:
        """The SMTP reply line, without its line end."""
        return f"{self.code} {self.enhanced} {self.text}"


class Unavailable(Exception):
    """Something of ours cannot be reached just now; the same request may succeed later."""


class Full(Unavailable):
    """There is no room left to store anything; there will be, once what is old has gone or somebody has made some."""


class ConfigError(Exception):
    """A setting or credential is missing or wrong. The text names it and says what to do."""
