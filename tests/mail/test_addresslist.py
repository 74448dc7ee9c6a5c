"""Lists of addresses: what is read, what is wrong with a line, and that what we write is read again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remails.mail import addresslist
from remails.mail.addresslist import Entry

DAY = datetime(2027, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("", []),
        ("a@example.net", [Entry("a@example.net")]),
        ("\ufeffA@Example.NET\r\n\r\n# a comment\r\n <b@example.net> \r\n", [Entry("a@example.net"), Entry("b@example.net")]),
        ("a@example.net,asked us", [Entry("a@example.net", "asked us")]),
        ('a@example.net,"asked, twice"', [Entry("a@example.net", "asked, twice")]),
        ("a@example.net;asked us", [Entry("a@example.net", "asked us")]),
        ("User@Bücher.example", [Entry("user@xn--bcher-kva.example")]),  # A11: as submission compares them
        ("email,created,reason\na@example.net,1700000000,550 no", [Entry("a@example.net", "550 no")]),
        ("Reason\tEmail\nno\ta@example.net", [Entry("a@example.net", "no")]),
        ("email_address,kind,reason,retry_after\na@example.net,complaint,spam,2027-01-31", [Entry("a@example.net", "spam", "complaint", DAY)]),
        ("email,until\na@example.net,2027-01-31T01:00:00+01:00", [Entry("a@example.net", until=DAY)]),
        ("email\n'=x@example.net", [Entry("=x@example.net")]),
    ],
)  # fmt: skip
def test_read(text: str, entries: list[Entry]) -> None:
    found = addresslist.read(text)
    assert (found.entries, found.faults, found.failed) == (entries, [], 0)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nobody", "has no @"),
        ("a@example", "only one label"),
        (",reason", "has no @"),
        ('"a@example.net', "no line of CSV"),
        ("a@example.net,x,spam-trap,", "the kind is one of bounce, complaint, manual"),
        ("a@example.net,x,,tomorrow", "is no date"),
        ("a\0@example.net", "U+0000"),
    ],
)
def test_a_line_that_is_none_is_named_and_the_others_count(line: str, error: str) -> None:
    found = addresslist.read(f"email,reason,kind,until\n{line}\nb@example.net")
    assert [entry.address for entry in found.entries] == ["b@example.net"]
    ((number, text, said),) = ((fault.line, fault.text, fault.error) for fault in found.faults)
    assert (number, found.failed) == (2, 1) and error in said and text.isprintable()


def test_faults_and_lines_are_bounded() -> None:
    found = addresslist.read("x\n" * 1000)
    assert (len(found.faults), found.failed) == (addresslist.MOST_FAULTS, 1000)
    with pytest.raises(addresslist.TooLong, match="at most 100,000"):
        addresslist.read("\n" * (addresslist.MOST_LINES + 1))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["a@example.net", "=cmd|x@example.net", "+a@example.net", '"a,b"@example.net', "ü@example.net"]
            ),
            st.sampled_from([*addresslist.KINDS]),
            st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=40),
            st.sampled_from([None, DAY]),
            st.just(DAY),
        ),
        unique_by=lambda row: row[0],
    )
)
def test_what_is_written_is_read_again(rows: list[tuple[str, str, str, datetime | None, datetime]]) -> None:
    text = addresslist.write(rows)
    assert not any(cell.startswith(("=", "+", "@")) for line in text.splitlines() for cell in line.split(","))
    found = addresslist.read(text)
    assert [(entry.address, entry.kind, entry.until) for entry in found.entries] == [(r[0], r[1], r[3]) for r in rows]


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    found = addresslist.read(text)
    assert len(found.entries) + found.failed <= len(text.splitlines())
