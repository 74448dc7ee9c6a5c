"""What PostgreSQL is asked for Prometheus, asked of a real one: every question has an answer with the columns that are declared."""

import pytest
import yaml
from metricnames import PROJECT

from remails.db import Connection, Database

QUERIES = yaml.safe_load((PROJECT / "roles/exporters/files/queries.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("prefix", sorted(QUERIES))
def test_a_question_has_the_columns_that_are_declared(db: Database, prefix: str) -> None:
    question = QUERIES[prefix]["query"].replace("'remails'", "current_database()")
    with db.transaction() as conn:
        answer = conn.execute(question)
        columns = [column.name for column in answer.description or ()]
        rows = answer.fetchall()
    declared = [name for metric in QUERIES[prefix]["metrics"] for name in metric]
    assert set(declared) <= set(columns)
    if prefix == "remails_pg":
        assert dict(zip(columns, rows[0], strict=True))["primary"] == 1


def test_what_a_standby_could_not_archive_when_it_led_is_no_alarm(conn: Connection) -> None:
    """A server keeps its count when it is led away in good order, and archives nothing more."""
    conn.execute("CREATE SCHEMA said")
    conn.execute(
        "CREATE VIEW said.pg_stat_archiver AS SELECT 1 AS failed_count, now() AS last_failed_time, NULL::timestamptz AS last_archived_time"
    )
    question = QUERIES["remails_pg"]["query"].replace("'remails'", "current_database()")
    for recovers, failing in ((False, 1), (True, 0)):
        conn.execute(
            f"CREATE OR REPLACE FUNCTION said.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT {recovers}'"
        )
        conn.execute("SET LOCAL search_path = said, pg_catalog")
        answer = conn.execute(question)
        columns = [column.name for column in answer.description or ()]
        assert dict(zip(columns, answer.fetchall()[0], strict=True))["archive_failing"] == failing
