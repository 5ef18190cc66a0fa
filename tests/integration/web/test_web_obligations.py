"""Drills that are owed, done, missed and overdue, on the page and in the API: exceptions first, in few queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert

from drservice.catalogue.ledgeroutbox import Waiting, put_event
from drservice.catalogue.runs import RunRequest, Runs
from drservice.catalogue.tables import Record, Run, Timetable
from drservice.clock import to_iso
from drservice.model.evidence import EvidenceKind
from drservice.model.runs import RunKind, RunState
from tests.doubles.website import Website, ulid

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def record(
    website: Website, entry: int, what: str, ago: timedelta, /, service: str | None = "erp", **said: Any
) -> None:
    """Put a row of a record into the catalogue, as the projection does."""
    outcome = said.get("outcome")
    with website.site.database.session() as session:
        session.execute(
            insert(Record).values(
                entry=entry, kind=what, service=service, host="db1", run=None, recorded_at=NOW - ago, outcome=outcome,
                sha256=f"{entry:064x}", predicate=said,
            )
        )  # fmt: skip


def failure(website: Website, entry: int, ago: timedelta, why: str, *, service: str = "erp") -> None:
    error = {"code": "DR300", "message": why}
    record(website, entry, "failure", ago, service=service, kind="verify", outcome="failed", error=error)


def drill(website: Website, entry: int, outcome: str, ago: timedelta, **said: Any) -> None:
    record(website, entry, "drill", ago, **{"outcome": outcome, "mutation": None, **said})


def obligations(website: Website, **query: str) -> list[dict[str, Any]]:
    answer = website.client(website.token("auditor")).get("/api/v1/evidence/obligations", params=query)
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert isinstance(items, list)
    return items


def of_erp(website: Website, **query: str) -> dict[str, Any]:
    (item,) = obligations(website, service="erp", **query)
    return item


def state(website: Website) -> str:
    return str(of_erp(website)["state"])


def test_a_service_that_was_never_drilled_says_so_and_its_next_slot_is_due(website: Website) -> None:
    item = of_erp(website)
    assert item["state"] == "never drilled"
    assert datetime.fromisoformat(item["due_at"]) > NOW
    assert [each["service"] for each in obligations(website, state="never drilled")] == ["erp", "archive", "reporting"]


def test_a_drill_that_passed_in_the_period_is_done_and_one_before_it_leaves_the_next_one_due(website: Website) -> None:
    drill(website, 1, "passed", 10 * DAY)
    item = of_erp(website)
    assert (item["state"], item["done"], item["last"]["entry"], item["passed"]["entry"]) == ("done", 1, 1, 1)
    begin = {"from": to_iso(NOW - 5 * DAY)}
    assert of_erp(website, **begin)["state"] == "due"
    assert of_erp(website, **begin)["done"] == 0


def test_a_newest_drill_that_failed_counts_for_more_than_one_that_passed_before(website: Website) -> None:
    drill(website, 1, "passed", 10 * DAY)
    drill(website, 2, "failed", 5 * DAY)
    drill(website, 3, "failed", 4 * DAY, mutation="row-deleted")
    item = of_erp(website)
    assert (item["state"], item["done"], item["failed"]) == ("failed", 1, 1)
    assert (item["last"]["entry"], item["passed"]["entry"]) == (2, 1), "one that is meant to fail is no drill of these"


def test_an_obligation_that_nothing_answered_is_open_then_overdue_then_done(website: Website) -> None:
    drill(website, 1, "passed", 10 * DAY)
    record(website, 2, "obligation", 2 * DAY, obligation="A", due_at=to_iso(NOW + DAY), plan={"name": "erp-quarterly"})
    assert (state(website), of_erp(website)["open"]) == ("done", 1)
    record(website, 3, "obligation", 2 * DAY, obligation="B", due_at=to_iso(NOW - DAY), plan={"name": "erp-quarterly"})
    item = of_erp(website)
    assert (item["state"], item["open"], item["overdue"]) == ("overdue", 1, 1)
    text = website.browser("auditor").get("/evidence").text
    assert text.index("Obligations that nothing has answered") < text.index("erp-quarterly") < text.index("<h2>Drills")
    drill(website, 4, "passed", DAY, obligation="B")
    assert (state(website), of_erp(website)["overdue"]) == ("done", 0)


def test_a_drill_that_its_schedule_asked_for_and_that_did_not_come_is_overdue(website: Website) -> None:
    drill(website, 1, "passed", 200 * DAY)
    item = of_erp(website)
    assert item["state"] == "overdue"
    assert datetime.fromisoformat(item["due_at"]) < NOW
    assert obligations(website)[0]["service"] == "erp", "the worst comes first"


def test_missed_slots_for_drills_are_counted_from_the_ledger_unless_a_run_made_up_for_them(website: Website) -> None:
    drill(website, 1, "passed", 10 * DAY)
    slots = [to_iso(NOW - 3 * DAY), to_iso(NOW - 2 * DAY)]
    record(website, 2, "missed", DAY, kind="backup", plan=None, slots=slots, reason="r", caught_up_by=None)
    record(website, 3, "missed", DAY, kind="drill", plan="p", slots=slots, reason="r", caught_up_by=ulid(NOW))
    assert (state(website), of_erp(website)["missed"]) == ("done", 0)
    record(website, 4, "missed", DAY, kind="drill", plan="p", slots=slots, reason="r", caught_up_by=None)
    assert (state(website), of_erp(website)["missed"]) == ("missed", 2)


def test_missed_slots_and_failed_runs_are_exceptions_with_their_reasons(website: Website) -> None:
    slots = [to_iso(NOW - 3 * DAY), to_iso(NOW - 2 * DAY)]
    record(website, 1, "missed", DAY, kind="backup", plan=None, slots=slots, reason="r", caught_up_by=None)
    record(
        website, 2, "failure", DAY, kind="verify", outcome="failed", error={"code": "DR300", "message": "<b>full</b>"}
    )
    record(website, 3, "backup", DAY, outcome="complete")
    record(website, 4, "retention", DAY, outcome="frozen", anomalies=["jumped to four times its size"])
    record(website, 5, "drill", DAY, outcome="failed", mutation="row-deleted")
    record(website, 6, "drill", DAY, outcome="passed", mutation="row-deleted")
    failure(website, 7, 100 * DAY, "old")
    text = website.browser("auditor").get("/evidence").text
    exceptions = text[text.index("<h2>Exceptions") : text.index("<h2>Take it home")]
    for words in (
        "backup: 2 slots missed; nothing makes up for it",
        "verify: &lt;b&gt;full&lt;/b&gt;",
        "jumped to four times its size",
        "row-deleted: damage that was built in was not noticed",
    ):
        assert words in exceptions
    shown = [
        number for number in range(1, 8) if f"records/{number}&#34;" in exceptions or f'records/{number}"' in exceptions
    ]
    assert shown == [1, 2, 4, 6]


def test_what_waits_for_the_ledger_is_said_on_the_page(website: Website) -> None:
    runs = Runs(website.site.database)
    slot = NOW - DAY
    run = runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="schedule", scheduled_for=slot))
    assert run is not None
    claim = runs.claim(run, host="db1", lease=DAY)
    assert claim is not None
    assert runs.finish(claim, RunState.FAILED, error={"code": "DR300", "message": "full"})
    browser = website.browser("auditor")
    assert "1 waiting" in browser.get("/evidence").text
    with website.site.database.session() as session:
        put_event(session, Waiting(event=ulid(NOW), kind=EvidenceKind.MISSED, service="erp", run=None, fields={}))
    assert "2 waiting" in browser.get("/evidence").text


def test_an_account_that_is_limited_to_a_service_sees_nothing_of_others(website: Website) -> None:
    record(
        website, 1, "failure", DAY, service="reporting", kind="verify", outcome="failed", error={"message": "secret"}
    )
    record(
        website,
        2,
        "obligation",
        DAY,
        service="reporting",
        obligation="A",
        due_at=to_iso(NOW - DAY),
        plan={"name": "hid"},
    )
    record(website, 3, "access", DAY, service=None, day="2026-01-01")
    limited = website.client(website.token("auditor", services=("erp",)))
    answer = limited.get("/api/v1/evidence/obligations").json()
    assert [item["service"] for item in answer["items"]] == ["erp"]
    assert limited.get("/api/v1/evidence/obligations", params={"service": "reporting"}).json()["items"] == []
    text = website.browser("somebody", "auditor", services=("erp",)).get("/evidence").text
    assert not [word for word in ("secret", "hidden-plan", "records/1", "records/3") if word in text]


def test_pages_of_services_follow_each_other_and_a_period_has_to_end_after_it_begins(website: Website) -> None:
    client = website.client(website.token("auditor"))
    first = client.get("/api/v1/evidence/obligations", params={"limit": 2}).json()
    second = client.get("/api/v1/evidence/obligations", params={"limit": 2, "after": first["next"]}).json()
    assert (len(first["items"]), len(second["items"]), second["next"]) == (2, 1, None)
    turned = {"from": to_iso(NOW), "to": to_iso(NOW - DAY)}
    refused = client.get("/api/v1/evidence/obligations", params=turned)
    assert (refused.status_code, refused.json()["code"]) == (422, "DR957")


@contextmanager
def counted(website: Website) -> Iterator[list[str]]:
    """Count what is asked of the database."""
    statements: list[str] = []

    def hear(*arguments: Any) -> None:
        statements.append(arguments[2])

    engine = website.site.database._engine
    event.listen(engine, "before_cursor_execute", hear)
    yield statements
    event.remove(engine, "before_cursor_execute", hear)


@pytest.mark.parametrize("path", ["/evidence", "/api/v1/evidence/obligations"])
def test_the_number_of_queries_does_not_grow_with_what_there_is(website: Website, path: str) -> None:
    client = website.client(website.token("auditor"))
    client.get(path)
    with counted(website) as few:
        assert client.get(path).status_code == 200
    for entry in range(200):
        drill(website, entry, ("passed", "failed")[entry % 2], timedelta(hours=entry))
        record(website, 1000 + entry, "obligation", DAY, obligation=str(entry), due_at=None, plan={"name": "p"})
    with website.site.database.session() as session:
        session.execute(insert(Timetable).values(service="erp", kind="drill", plan="erp-quarterly", settled_until=NOW))
        session.execute(
            insert(Run),
            [
                {
                    "id": ulid(NOW - number * DAY, number), "service": "erp", "kind": "drill", "plan": "erp-quarterly",
                    "scheduled_for": NOW - number * DAY, "state": "failed", "requested_by": "schedule",
                }
                for number in range(200)
            ],
        )  # fmt: skip
    with counted(website) as many:
        assert client.get(path).status_code == 200
    assert len(many) == len(few) <= 16, "\n".join(many)
