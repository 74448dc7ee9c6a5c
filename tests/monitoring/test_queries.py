"""What PostgreSQL is asked for Prometheus, asked of a real one: every question has an answer with the columns that are declared."""

import pytest
import yaml
from metricnames import PROJECT

from remails.db import Database

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
