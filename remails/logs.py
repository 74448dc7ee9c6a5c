"""Logging: one line per event, `message key=value ...`, to standard error.

Under systemd the line carries journald's priority prefix. Fields are given by `extra={"fields": {...}}` through
`Log.info("stored", message=..., ...)`. Values are quoted where needed and cut, so that nothing a client sends can
forge a line or flood the journal. No secret is ever passed here.
"""

import logging
import os
import sys
from typing import Any

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Log:
    """A named logger that takes fields as keyword arguments."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        """Something only a developer wants to see."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something that happened as it should."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something an operator may have to look at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something an operator has to look at."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            # The logger's own way here looks for the caller in the stack, whom no line of ours names: half the cost of a line.
            record = logging.LogRecord(self._logger.name, level, "", 0, event, (), sys.exc_info() if exc_info else None)
            vars(record)["fields"] = fields
            self._logger.handle(record)


def value(item: object, limit: int = 300) -> str:
    """One field's value as it stands in a line: bounded, without control characters, quoted where needed."""
    text = str(item)
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable() and text and " " not in text and '"' not in text and "=" not in text:
        return text
    return (
        '"' + "".join(c if c.isprintable() and c != '"' else ascii(c)[1:-1] if c != '"' else '\\"' for c in text) + '"'
    )


class _Formatter(logging.Formatter):
    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = " ".join([record.getMessage(), *(f"{k}={value(v)}" for k, v in fields.items() if v is not None)])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if not self._journal:
            return f"{self.formatTime(record)} {record.levelname} {record.name} {line}"
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        if "\n" not in line:
            return prefix + line
        return "\n".join(f"{prefix}{part}" for part in line.splitlines())


def setup(level: str) -> None:
    """Send this process's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(journal="JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Nothing of these is shown, and finding it out costs something with each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # aiosmtpd warns at every connection of what its settings mean, and logs every line a client sends.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
