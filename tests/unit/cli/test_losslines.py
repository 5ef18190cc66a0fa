"""The loss report in lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drservice.canonical import canonical_bytes
from drservice.cli.losslines import loss_lines, number_statements
from drservice.model.ids import ComponentName, PointId
from drservice.model.losses import (
    Effect,
    KnownBehind,
    LossReport,
    LostWindow,
    NumberAtRisk,
    NumberKind,
    Overdue,
    TableLoss,
    Waiting,
)
from drservice.model.wal import Lsn

BEGIN = datetime(2026, 11, 27, 10, tzinfo=UTC)
NEVER = "\x1b[2J\n; drop table x; --"


def report(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "component": ComponentName("database"),
        "database": "plant",
        "reached": Lsn.parse("0/5000028"),
        "is_lossy": True,
        "window": LostWindow(begin=BEGIN, end=BEGIN + timedelta(hours=2), heard_by="recovery point X"),
        "known": None,
    }
    return LossReport(**{**values, **changes}).as_json()


def lines(**changes: Any) -> list[str]:
    return list(loss_lines([report(**changes)]))


def number(name: str, here: int, there: int | None, *, sql: str | None = None) -> NumberAtRisk:
    return NumberAtRisk(kind=NumberKind.SEQUENCE, name=name, here=here, there=there, proposed=99, sql=sql)


def test_the_headline_says_from_when_to_when_and_how_that_is_known() -> None:
    assert lines() == [
        (
            "loss report of database/plant: LOST is what was committed from 2026-11-27T10:00:00Z"
            " to 2026-11-27T12:00:00Z"
            " at least (2 h; production was last heard of by recovery point X)"
        )
    ]
    (without_end,) = lines(window=LostWindow(begin=BEGIN, end=None, heard_by=None))
    assert without_end.endswith("committed after 2026-11-27T10:00:00Z; the repository knows of nothing later")
    (harmless,) = lines(is_lossy=False)
    assert "nothing is known to be lost" in harmless
    assert "LOST" not in harmless


def test_only_what_production_had_given_out_is_certain() -> None:
    told = lines(numbers=(number("S", 9, 12, sql="select 1;"), number("P", 3, 3), number("Q", 4, None)))
    assert told[1:] == [
        "  NUMBERS GIVEN OUT TWICE: S 10 to 12 are outside already; go on with 99",
        "    offered, not done: select 1;",
        "  next numbers: P 4, Q 5: compare each with the newest document outside",
    ]


def test_rows_are_lost_by_table_and_a_table_with_more_rows_here_hides_no_loss() -> None:
    known = KnownBehind(point=PointId("01JX"), measured_at=BEGIN, lsn=Lsn.parse("0/6000028"))
    tables = (
        TableLoss(table="sale_order", here=3, there=5, states={"sale": (1, 3)}),
        TableLoss(table="mail_mail", here=9, there=2),
    )
    told = lines(known=known, tables=tables)
    assert told[1].startswith("  2 rows are missing against recovery point 01JX of 2026-11-27T10:00:00Z")
    assert told[2:] == [
        "    sale_order: 3 rows, 5 in production: sale 1 (was 3)",
        "    mail_mail: 9 rows, 2 in production",
    ]


def test_what_waits_is_counted_with_its_first_ids() -> None:
    told = lines(
        queues=(Waiting(table="mail_mail", what="mails", count=300, ids=tuple(range(200))),),
        overdue_count=1,
        overdue=(Overdue(id=7, name="Send", due_at="2026-01-01T00:00:00Z"),),
        effects=(Effect(subject="payment provider x", effect="compare"),),
        other_sequences=3,
        problems=("documents: not asked",),
    )
    assert "  WAITING TO BE SENT, AGAIN PERHAPS: 300 mails (mail_mail 0, 1, 2, 3, 4, 5, 6, 7 ...)" in told
    assert "  RUN AS SOON AS ODOO STARTS: 1 scheduled actions: Send (7)" in told
    assert "  OUTSIDE: payment provider x: compare" in told
    assert "  3 sequences of row ids are behind production's: ids are used again" in told
    assert "  not known: documents: not asked" in told


def test_a_hostile_name_stays_in_its_line_and_its_comment() -> None:
    hostile = report(database=NEVER, numbers=(number(NEVER, 1, 2, sql="select 2;"),))
    for text in (*loss_lines([hostile]), *number_statements([hostile])):
        assert "\x1b" not in text
        assert "\n" not in text
    statements = [text for text in number_statements([hostile]) if not text.startswith("--")]
    assert statements == ["select 2;"]


def test_what_is_not_certain_is_offered_as_a_comment() -> None:
    script = list(number_statements([report(numbers=(number("S", 9, 9, sql="select 1;"), number("J", 1, 2)))]))
    assert script[2] == "-- select 1;"
    assert script[4].startswith("--   by hand, in Odoo: give the first new document the number 99")
    assert all(text.startswith("--") for text in script)


def test_the_report_can_be_stored_as_it_is() -> None:
    assert canonical_bytes(report(numbers=(number("S", 9, 12),), tables=(TableLoss(table="x", here=0, there=1),)))


@pytest.mark.parametrize("spoilt", [{"window": None}, {"tables": "x"}, {"numbers": ["x"]}, {"overdue_actions": []}])
def test_what_is_no_report_is_refused(spoilt: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError)):
        list(loss_lines([{**report(), **spoilt}]))
    with pytest.raises((KeyError, ValueError)):
        list(loss_lines([{}]))
