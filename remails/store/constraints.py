"""What the database forbids, said in a sentence.

A store function that writes what a person typed does so inside `explained`: the broken constraint becomes a `Refused`,
and the savepoint keeps the caller's transaction usable. Constraints that only a defect of ours can break are not listed
and rise as they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg

from remails import db
from remails.errors import Refused


def conflict(text: str, field: str | None = None) -> Refused:
    """What is asked for clashes with what is there (HTTP 409)."""
    return Refused(554, "5.3.0", text, status=409, field=field)


def invalid(text: str, field: str | None = None) -> Refused:
    """A value is not one we can store (HTTP 422)."""
    return Refused(554, "5.3.0", text, status=422, field=field)


@contextmanager
def explained(conn: db.Connection, refusals: Mapping[str, Refused]) -> Iterator[None]:
    """Run the block in a savepoint; raise the refusal that belongs to the constraint it breaks."""
    try:
        with conn.transaction():
            yield
    except psycopg.IntegrityError as error:
        refusal = refusals.get(error.diag.constraint_name or "")
        if refusal is None:
            raise
        raise refusal from None
    except (psycopg.DataError, UnicodeEncodeError):
        # A NUL or a lone surrogate: neither can be stored as text.
        raise invalid("A value is out of range or contains characters that cannot be stored.") from None
