"""`remails organization`, `project`, `user` and `member`."""

from datetime import timedelta
from uuid import UUID

import pytest
from seed import use
from terminal import Terminal

from remails import vault
from remails.db import Database
from remails.store import audit, organizations, users
from remails.store.ids import OrganizationId, ProjectId, UserId


def _organization(terminal: Terminal, name: str = "Acme") -> str:
    return terminal.do("organization", "create", name)


def test_organization(terminal: Terminal, db: Database) -> None:
    made = terminal.do("organization", "create", "Acme", "--quota", "1000", "--plan", "large")
    project = terminal.do("project", "create", "Acme", "Shop")
    db.run(use, OrganizationId(made), ProjectId(project), 3, 4)  # type: ignore[arg-type]  # text will do

    (row,) = terminal.json("organization", "list")
    assert {name: row[name] for name in ("id", "name", "plan", "used", "quota", "block_status")} == {
        "id": made,
        "name": "Acme",
        "plan": "large",
        "used": 3,
        "quota": 1000,
        "block_status": "not_blocked",
    }

    terminal.do("organization", "block", "Acme", "no_sending")
    terminal.do("organization", "quota", made, "none")
    (row,) = terminal.json("organization", "list")
    assert (row["block_status"], row["quota"]) == ("no_sending", None)


def test_plan_and_rate(terminal: Terminal) -> None:
    def shown() -> tuple[str, str | None, int | None]:
        (row,) = terminal.json("organization", "list")
        return row["plan"], row["rate"], row["quota"]

    made = _organization(terminal)
    assert shown() == ("unlimited", None, None)
    terminal.do("organization", "plan", "Acme", "small")
    assert shown() == ("small", "3600 messages per hour, 60 at once", 300_000)
    terminal.do("organization", "rate", made, "--burst", "500", "--per-hour", "90000")
    assert shown() == ("small", "90000 messages per hour, 500 at once", 300_000)
    terminal.do("organization", "rate", "Acme")
    assert shown() == ("small", "3600 messages per hour, 60 at once", 300_000)
    assert terminal.run("organization", "rate", "Acme", "--burst", "5").exit_code == 2
    assert terminal.run("organization", "plan", "Acme", "gigantic").exit_code == 2


def test_table_is_aligned(terminal: Terminal) -> None:
    short, long = _organization(terminal, "A"), _organization(terminal, "A much longer name")

    heading, first, second = terminal.do("organization", "list").splitlines()
    assert heading.split()[:4] == ["ID", "NAME", "PLAN", "USED"]
    assert first.startswith(short) and second.startswith(long)
    assert heading.index("PLAN") == first.index("unlimited") == second.index("unlimited")


def test_a_name_cannot_drive_the_terminal(terminal: Terminal) -> None:
    _organization(terminal, "\x1b[2Jx\x9b0m\ny")

    listed = terminal.do("organization", "list")
    assert "\\x1b[2Jx\\x9b0m\\ny" in listed
    assert len(listed.splitlines()) == 2


def test_a_name_that_several_have_needs_the_id(terminal: Terminal) -> None:
    first, second = _organization(terminal), _organization(terminal)

    sentence = terminal.refused("organization", "block", "Acme", "full_freeze")
    assert first in sentence and second in sentence
    terminal.do("organization", "block", second, "full_freeze")
    assert {row["id"]: row["block_status"] for row in terminal.json("organization", "list")} == {
        first: "not_blocked",
        second: "full_freeze",
    }


def test_what_is_not_there(terminal: Terminal) -> None:
    assert terminal.refused("organization", "block", "Nobody", "no_sending") == "There is no organization 'Nobody'."
    _organization(terminal)
    assert "project" in terminal.refused("credential", "list", "Acme", "Shop")
    assert "domain" in terminal.refused("domain", "remove", "Acme", "example.com")
    assert "user" in terminal.refused("member", "add", "Acme", "ann@example.com", "admin")


def test_refusal_of_the_store_is_a_sentence_and_changes_nothing(terminal: Terminal) -> None:
    assert terminal.refused("organization", "create", "") == "A name has 1 to 100 characters."
    _organization(terminal)
    terminal.do("project", "create", "Acme", "Shop")
    assert "already" in terminal.refused("project", "create", "Acme", "Shop")
    assert len(terminal.json("project", "list", "Acme")) == 1


@pytest.mark.parametrize("quota", ["-1", "many", "1.5"])
def test_bad_quota(terminal: Terminal, quota: str) -> None:
    _organization(terminal)

    result = terminal.run("organization", "quota", "--", "Acme", quota)
    assert result.exit_code == 2 and "neither a number of messages nor `none`" in result.stderr
    assert terminal.json("organization", "list")[0]["quota"] is None


def test_projects(terminal: Terminal) -> None:
    _organization(terminal)
    made = terminal.do(
        "project", "create", "Acme", "Shop", "--retention-days", "30", "--require-tls", "--expires-in", "600"
    )

    assert terminal.json("project", "list", "Acme") == [
        {"id": made, "name": "Shop", "retention_period_days": 30, "plaintext_fallback": False, "expires_in": 600}
    ]


# Users


def test_password_comes_from_standard_input(terminal: Terminal, db: Database) -> None:
    made = terminal.do("user", "create", "Ann@example.com", "--password-stdin", stdin="correct horse\n")

    user = db.run(users.by_email, "ann@example.com")
    assert user is not None and str(user.id) == made and user.name == "Ann@example.com"
    assert vault.check_password("correct horse", user.password_hash)


def test_password_is_asked_for_twice_and_not_shown(terminal: Terminal, db: Database) -> None:
    result = terminal.run("user", "create", "ann@example.com", "--admin", stdin="correct horse\ncorrect horse\n")

    assert result.exit_code == 0
    assert "correct horse" not in result.output
    user = db.run(users.by_email, "ann@example.com")
    assert user is not None and user.is_admin and vault.check_password("correct horse", user.password_hash)


def test_short_password_is_refused(terminal: Terminal) -> None:
    assert "10 to 256" in terminal.refused("user", "create", "ann@example.com", "--password-stdin", stdin="short\n")
    assert terminal.json("user", "list") == []


def test_there_is_no_option_for_a_password(terminal: Terminal) -> None:
    assert terminal.run("user", "create", "ann@example.com", "--password", "correct horse").exit_code == 2


def test_new_password_ends_sessions(terminal: Terminal, db: Database) -> None:
    made = UserId(UUID(terminal.do("user", "create", "ann@example.com", "--no-password")))
    db.run(users.start_session, made, b"digest", "", timedelta(hours=1))

    terminal.do("user", "password", "ann@example.com", "--password-stdin", stdin="battery staple\n")

    assert db.run(users.session_user, b"digest") is None
    user = db.run(users.get, made)
    assert user is not None and vault.check_password("battery staple", user.password_hash)


def test_user_rights(terminal: Terminal) -> None:
    terminal.do("user", "create", "ann@example.com", "--name", "Ann", "--no-password")
    terminal.do("user", "admin", "ann@example.com")
    terminal.do("user", "block", "ann@example.com")
    (row,) = terminal.json("user", "list")
    assert (row["name"], row["admin"], row["blocked"], row["password"]) == ("Ann", True, True, False)

    terminal.do("user", "admin", "ann@example.com", "--revoke")
    terminal.do("user", "block", "ann@example.com", "--undo")
    (row,) = terminal.json("user", "list")
    assert (row["admin"], row["blocked"]) == (False, False)


def test_members(terminal: Terminal) -> None:
    _organization(terminal)
    for name in ("ann", "bob"):
        terminal.do("user", "create", f"{name}@example.com", "--no-password")
    terminal.do("member", "add", "Acme", "ann@example.com", "admin")
    terminal.do("member", "add", "Acme", "bob@example.com", "read_only")
    terminal.do("member", "add", "Acme", "bob@example.com", "maintainer")

    assert [(row["email"], row["role"]) for row in terminal.json("member", "list", "Acme")] == [
        ("ann@example.com", "admin"),
        ("bob@example.com", "maintainer"),
    ]
    assert "last admin" in terminal.refused("member", "remove", "Acme", "ann@example.com")
    terminal.do("member", "remove", "Acme", "bob@example.com")
    assert "not a member" in terminal.refused("member", "remove", "Acme", "bob@example.com")


# The audit log


def test_every_change_is_written_down_without_secrets(
    terminal: Terminal, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    _organization(terminal)
    terminal.do("organization", "quota", "Acme", "5")
    terminal.do("project", "create", "Acme", "Shop")
    terminal.do("user", "create", "ann@example.com", "--password-stdin", stdin="correct horse\n")
    terminal.do("member", "add", "Acme", "ann@example.com", "admin")
    terminal.do("project", "list", "Acme")

    (acme,) = db.run(organizations.list_all)
    entries = db.run(audit.list_, acme.id) + db.run(audit.list_, None)
    assert [(entry.action, entry.target_type) for entry in entries] == [
        ("created", "member"),
        ("created", "project"),
        ("updated", "organization"),
        ("created", "organization"),
        ("created", "user"),
    ]
    assert {(entry.actor_type, entry.actor_name) for entry in entries} == {("operator", "alice")}
    assert entries[2].details == {"message_quota": 5}
    assert "correct" not in str(entries) and "argon2" not in str(entries)


def test_a_refused_change_is_not_written_down(terminal: Terminal, db: Database) -> None:
    _organization(terminal)
    terminal.do("project", "create", "Acme", "Shop")
    terminal.refused("project", "create", "Acme", "Shop")

    (acme,) = db.run(organizations.list_all)
    assert len(db.run(audit.list_, acme.id)) == 2
