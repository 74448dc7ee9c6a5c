"""Users, what they may do in which organization, their sessions, and the brake on guessing passwords.

A user is a person; the right to do something comes from a membership, whose role is one of three steps. An organization
that has an admin keeps one: the last cannot leave or step down. A session is a row keyed by the digest of the cookie's
secret, so ending it here ends it everywhere. Failed logins are rows too, counted per subject (an account, an address).
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg.rows import class_row, kwargs_row

from remails import db
from remails.errors import Refused
from remails.mail import address
from remails.store import constraints, ids
from remails.store.ids import OrganizationId, UserId

_REFUSALS = {
    "users_email_key": constraints.conflict("There is a user with this email address already.", "email"),
    "users_name_check": constraints.invalid("A name has 1 to 256 characters.", "name"),
    "memberships_pkey": constraints.conflict("This user is a member already.", "user_id"),
    "memberships_user_id_fkey": constraints.invalid("There is no such user.", "user_id"),
    "memberships_organization_id_fkey": constraints.invalid("There is no such organization.", "organization_id"),
}


# By name, so that a column more does not disturb a version that does not know it.
_USER = "u.id, u.email, u.name, u.password_hash, u.is_admin, u.is_blocked, u.created_at, u.updated_at"
_MEMBERSHIP = "m.user_id, m.organization_id, m.role, u.email, u.name, m.created_at, m.updated_at"


class Role(StrEnum):
    """What a member may do, each step including those before it."""

    read_only = "read_only"
    maintainer = "maintainer"
    admin = "admin"

    def allows(self, needed: "Role") -> bool:
        """Whether this role suffices where `needed` is asked for."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class User:
    """A person who may log in. `is_admin`: of the whole installation."""

    id: UserId
    email: str
    name: str
    password_hash: str | None = field(repr=False)
    is_admin: bool
    is_blocked: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's place in an organization."""

    user_id: UserId
    organization_id: OrganizationId
    role: Role
    email: str
    name: str
    created_at: datetime
    updated_at: datetime


def _membership(*, role: str, **columns: Any) -> Membership:
    return Membership(role=Role(role), **columns)


def create(conn: db.Connection, email: str, name: str, password_hash: str | None, *, is_admin: bool = False) -> User:
    """Make a user. Raises Refused: 409 when the email address is taken, 422 for a bad one or a bad name."""
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute(
            "INSERT INTO users AS u (id, email, name, password_hash, is_admin) VALUES (%s, %s, %s, %s, %s) RETURNING "
            + _USER,
            [ids.new(), _address(email), name.strip(), password_hash, is_admin],
        ).fetchall()[0]


def _address(email: str) -> str:
    """The one spelling under which a user is known."""
    try:
        return str(address.parse(email.strip())).lower()
    except address.BadAddress as error:
        raise constraints.invalid(f"This is not an email address: {error}.", "email") from None


def get(conn: db.Connection, user_id: UserId) -> User | None:
    """The user of this id."""
    with conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute("SELECT " + _USER + " FROM users u WHERE u.id = %s", [user_id]).fetchone()


def by_email(conn: db.Connection, email: str) -> User | None:
    """The user with this email address, in whatever case it is written."""
    try:
        email = _address(email)
    except Refused:
        return None
    with conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute("SELECT " + _USER + " FROM users u WHERE u.email = %s", [email]).fetchone()


def list_all(conn: db.Connection) -> list[User]:
    """Every user, by email address."""
    with conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute("SELECT " + _USER + " FROM users u ORDER BY u.email").fetchall()


def update(conn: db.Connection, user_id: UserId, *, email: str | None = None, name: str | None = None) -> User | None:
    """Change what is given. Raises Refused: 409 when the email address is taken, 422 for a bad one or a bad name."""
    values = {
        "id": user_id,
        "email": email if email is None else _address(email),
        "name": name if name is None else name.strip(),
    }
    with constraints.explained(conn, _REFUSALS), conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute(
            """UPDATE users u SET email = coalesce(%(email)s, u.email), name = coalesce(%(name)s, u.name),
                   updated_at = now()
               WHERE u.id = %(id)s RETURNING """
            + _USER,
            values,
        ).fetchone()


def set_password(conn: db.Connection, user_id: UserId, password_hash: str | None) -> bool:
    """Set the hash, None for a user who cannot log in by password; false when there is no such user."""
    done = conn.execute(
        "UPDATE users SET password_hash = %s, updated_at = now() WHERE id = %s", [password_hash, user_id]
    )
    return done.rowcount == 1


def set_admin(conn: db.Connection, user_id: UserId, is_admin: bool) -> bool:
    """Make the user an admin of the installation, or no longer; false when there is no such user."""
    return (
        conn.execute("UPDATE users SET is_admin = %s, updated_at = now() WHERE id = %s", [is_admin, user_id]).rowcount
        == 1
    )


def set_blocked(conn: db.Connection, user_id: UserId, is_blocked: bool) -> bool:
    """Block the user, which ends the sessions, or unblock; false when there is no such user."""
    if is_blocked:
        end_sessions_of(conn, user_id)
    done = conn.execute("UPDATE users SET is_blocked = %s, updated_at = now() WHERE id = %s", [is_blocked, user_id])
    return done.rowcount == 1


def remove(conn: db.Connection, user_id: UserId) -> bool:
    """Delete the user with memberships and sessions; false when there is no such user."""
    return conn.execute("DELETE FROM users WHERE id = %s", [user_id]).rowcount == 1


# Memberships


def add_member(conn: db.Connection, user_id: UserId, organization_id: OrganizationId, role: Role) -> None:
    """Take the user in. Raises Refused: 409 when a member already, 422 when either does not exist."""
    with constraints.explained(conn, _REFUSALS):
        conn.execute(
            "INSERT INTO memberships (user_id, organization_id, role) VALUES (%s, %s, %s)",
            [user_id, organization_id, role],
        )


def set_role(conn: db.Connection, user_id: UserId, organization_id: OrganizationId, role: Role) -> bool:
    """Change a member's role; false when not a member. Raises Refused (409) for the last admin."""
    if role != Role.admin:
        _keep_an_admin(conn, user_id, organization_id)
    done = conn.execute(
        "UPDATE memberships SET role = %s, updated_at = now() WHERE user_id = %s AND organization_id = %s",
        [role, user_id, organization_id],
    )
    return done.rowcount == 1


def remove_member(conn: db.Connection, user_id: UserId, organization_id: OrganizationId) -> bool:
    """End a membership; false when not a member. Raises Refused (409) for the last admin."""
    _keep_an_admin(conn, user_id, organization_id)
    done = conn.execute(
        "DELETE FROM memberships WHERE user_id = %s AND organization_id = %s", [user_id, organization_id]
    )
    return done.rowcount == 1


def _keep_an_admin(conn: db.Connection, user_id: UserId, organization_id: OrganizationId) -> None:
    """Refuse if the user is the only admin. The locks make two admins who leave at once do so one after the other."""
    admins = conn.execute(
        """SELECT user_id FROM memberships WHERE organization_id = %s AND role = 'admin'
           ORDER BY user_id FOR UPDATE""",
        [organization_id],
    ).fetchall()
    if admins == [(user_id,)]:
        raise constraints.conflict("The last admin of an organization cannot leave or step down.", "role")


def members(conn: db.Connection, organization_id: OrganizationId) -> list[Membership]:
    """The members of an organization, by email address."""
    with conn.cursor(row_factory=kwargs_row(_membership)) as cur:
        return cur.execute(
            "SELECT "
            + _MEMBERSHIP
            + """ FROM memberships m JOIN users u ON u.id = m.user_id
               WHERE m.organization_id = %s ORDER BY u.email""",
            [organization_id],
        ).fetchall()


def memberships_of(conn: db.Connection, user_id: UserId) -> list[Membership]:
    """The memberships of a user, oldest first."""
    with conn.cursor(row_factory=kwargs_row(_membership)) as cur:
        return cur.execute(
            "SELECT "
            + _MEMBERSHIP
            + """ FROM memberships m JOIN users u ON u.id = m.user_id
               WHERE m.user_id = %s ORDER BY m.created_at, m.organization_id""",
            [user_id],
        ).fetchall()


def role_in(conn: db.Connection, user_id: UserId, organization_id: OrganizationId) -> Role | None:
    """The user's role in an organization; None for an outsider."""
    row = conn.execute(
        "SELECT role FROM memberships WHERE user_id = %s AND organization_id = %s", [user_id, organization_id]
    ).fetchone()
    return None if row is None else Role(row[0])


# Sessions


def start_session(conn: db.Connection, user_id: UserId, digest: bytes, user_agent: str, lifetime: timedelta) -> None:
    """Remember a login under the digest of its cookie."""
    conn.execute(
        """INSERT INTO sessions (digest, user_id, user_agent, expires_at)
           VALUES (%s, %s, %s, now() + %s)""",
        [digest, user_id, user_agent.replace("\0", "")[:300], lifetime],
    )


def session_user(conn: db.Connection, digest: bytes) -> User | None:
    """Whose session it is; None when unknown or expired, or the user is blocked."""
    with conn.cursor(row_factory=class_row(User)) as cur:
        return cur.execute(
            "SELECT "
            + _USER
            + """ FROM sessions s JOIN users u ON u.id = s.user_id
               WHERE s.digest = %s AND s.expires_at > now() AND NOT u.is_blocked""",
            [digest],
        ).fetchone()


def end_session(conn: db.Connection, digest: bytes) -> None:
    """Log out."""
    conn.execute("DELETE FROM sessions WHERE digest = %s", [digest])


def end_sessions_of(conn: db.Connection, user_id: UserId) -> int:
    """Log the user out everywhere; returns how many sessions that were."""
    return conn.execute("DELETE FROM sessions WHERE user_id = %s", [user_id]).rowcount


# Failed logins


def record_failure(conn: db.Connection, subject: str) -> None:
    """Note a failed login of an account or from an address."""
    conn.execute("INSERT INTO login_failures (subject) VALUES (%s)", [subject])


def recent_failures(conn: db.Connection, subject: str, within: timedelta) -> int:
    """How many logins of the subject failed lately."""
    row = conn.execute(
        "SELECT count(*) FROM login_failures WHERE subject = %s AND at > now() - %s", [subject, within]
    ).fetchone()
    return int(row[0]) if row else 0


def clear_failures(conn: db.Connection, subject: str) -> None:
    """Forget the subject's failures, after a login that succeeded."""
    conn.execute("DELETE FROM login_failures WHERE subject = %s", [subject])


def purge(conn: db.Connection) -> int:
    """Delete expired sessions, and failed logins of more than a day ago; returns how many rows."""
    sessions = conn.execute("DELETE FROM sessions WHERE expires_at <= now()").rowcount
    return sessions + conn.execute("DELETE FROM login_failures WHERE at < now() - interval '1 day'").rowcount
