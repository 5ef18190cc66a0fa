"""Notices of runs: what happened, who has to get up, what to type next."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from drservice.catalogue.runs import RunInfo
from drservice.model.calendar import UTC_CALENDAR
from drservice.model.estate import FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.runs import RunKind, RunState
from drservice.model.schedule import Cron
from drservice.model.timetable import Planned, host_of
from drservice.node.scheduler import Missed
from drservice.node.telling import notice_of_failure, notice_of_missed
from drservice.notify.interface import Severity

SLOT = datetime(2026, 10, 25, 1, 0, tzinfo=UTC)


def a_run(kind: RunKind, **changes: object) -> RunInfo:
    fields: dict[str, object] = {
        "id": "01M8CBE1QJPD3SPTMEFD0XFRVJ",
        "service": "erp",
        "kind": kind,
        "plan": "",
        "scheduled_for": SLOT,
        "state": RunState.FAILED,
        "host": None,
        "requested_by": "schedule",
        "requested_at": SLOT,
        "parameters": {},
        "epoch": 2,
        "claimed_by": "db1",
        "lease_until": None,
        "started_at": SLOT,
        "ended_at": SLOT,
        "cancel_requested_by": None,
        "progress": {},
        "result": None,
        "error": {"code": "DR214", "message": "no WAL came", "hint": "Look at the archiver.", "exit_status": 1},
        "caught_up_by": None,
    }
    return RunInfo(**(fields | changes))  # type: ignore[arg-type]  # by name


def test_a_failed_backup_names_its_reason_and_the_next_command() -> None:
    notice = notice_of_failure(a_run(RunKind.BACKUP))
    assert notice.severity is Severity.TECHNICAL
    assert "backup failed: no WAL came" in notice.subject()
    assert "Look at the archiver." in notice.text()
    assert notice.text().endswith("Next: drservice backup erp")


def test_a_failed_drill_is_business_critical() -> None:
    notice = notice_of_failure(a_run(RunKind.DRILL, plan="quarterly"))
    assert notice.severity is Severity.BUSINESS_CRITICAL
    assert "drill quarterly failed" in notice.title


def test_a_failure_is_one_event_however_often_it_is_looked_at() -> None:
    assert notice_of_failure(a_run(RunKind.BACKUP)).event == notice_of_failure(a_run(RunKind.BACKUP)).event


@pytest.mark.parametrize(("by", "words"), [("01X", "Run 01X makes up for it"), (None, "Nothing makes up for it")])
def test_missed_slots_are_one_notice_that_says_what_makes_up_for_them(by: str | None, words: str) -> None:
    planned = Planned(
        service=Service(name=ServiceName("erp")),
        kind=RunKind.BACKUP,
        plan="",
        cron=Cron.parse("0 1 * * *"),
        calendar=UTC_CALENDAR,
    )
    notice = notice_of_missed(Missed(planned=planned, slots=(SLOT, SLOT), caught_up_by=by, reason="dark"))
    assert "2 slots missed" in notice.title
    assert words in notice.body


def test_a_run_goes_to_the_host_whose_disks_it_needs() -> None:
    database = PostgresSettings(name=ComponentName("database"), dsn="", node="db1")
    folder = FilesSettings(name=ComponentName("docs"), kind=FilesKind.ODOO_FILESTORE, path=Path("/x"), node="app1")
    service = Service(name=ServiceName("erp"), components={database.name: database, folder.name: folder})
    assert host_of(service, RunKind.BACKUP) == "db1"
    assert host_of(service, RunKind.DOCUMENTS) == "app1"
    assert host_of(service, RunKind.DRILL) is None
    assert host_of(Service(name=ServiceName("crm")), RunKind.BACKUP) is None
