"""Whatever a check does, the suite ends, and only an answer counts."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from drservice.checks.interface import Ask, Check, Finding, NotApplicable, RecoveredService, failed, listed, passed
from drservice.checks.suite import SuiteOutcome, plan_suite, run_suite
from drservice.clock import SystemClock
from drservice.errors import PostgresError
from drservice.model.checks import CheckResult, CheckState, Expectation, Severity
from drservice.model.estate import (
    BusinessCheck,
    FilesKind,
    FilesSettings,
    GitSettings,
    OdooProgram,
    PostgresSettings,
    RedisSettings,
    Service,
)
from drservice.model.ids import ComponentName, ServiceName

DB, OTHER, DOCS, FOLDER = (ComponentName(name) for name in ("db", "other", "docs", "folder"))
SERVICE = Service(
    name=ServiceName("erp"),
    components={
        DB: PostgresSettings(name=DB, dsn=""),
        OTHER: PostgresSettings(name=OTHER, dsn=""),
        DOCS: FilesSettings(name=DOCS, kind=FilesKind.ODOO_FILESTORE, path=Path("/x"), database="plant", follows=DB),
        FOLDER: FilesSettings(name=FOLDER, kind=FilesKind.DIRECTORY, path=Path("/y")),
    },
    checks=(
        BusinessCheck(
            name="balanced",
            component=DB,
            database=None,
            sql="select 0",
            expect=Expectation.parse("= 0"),
            severity=Severity.WARNING,
            owner="accounting",
        ),
    ),
)
NOTHING = RecoveredService(service=SERVICE, databases={})


def check(name: str, ask: Ask, *, seconds: float = 5) -> Check:
    return Check(name=name, severity=Severity.CRITICAL, seconds=seconds, ask=ask)


def run(*checks: Check, grace_seconds: float = 0.1) -> SuiteOutcome:
    return run_suite(NOTHING, checks, clock=SystemClock(), grace_seconds=grace_seconds)


def fine(_service: RecoveredService, _seconds: float) -> Finding:
    return passed("fine", value="0")


def test_the_plan_is_known_from_the_configuration_alone_and_its_names_differ() -> None:
    names = [item.name for item in plan_suite(SERVICE)]
    assert len(set(names)) == len(names)
    assert names[:7] == [
        "db/target-reached",
        "db/timeline",
        "db/watermarks",
        "db/deletable-rows",
        "db/extensions",
        "db/sequences",
        "db/invalid-indexes",
    ]
    assert [name for name in names if name.startswith("folder/")] == ["folder/files-present", "folder/files-content"]
    assert [name for name in names if name.startswith("docs/") and "/odoo-" not in name] == [
        "docs/documents-present",
        "docs/documents-hash",
        "docs/documents-missing-in-production",
        "docs/documents-not-covered",
    ]


def test_what_stops_a_server_comes_last() -> None:
    names = [item.name for item in plan_suite(SERVICE)]
    assert names[-5:] == [
        "business:balanced",
        "db/pg_amcheck",
        "other/pg_amcheck",
        "db/pg_checksums",
        "other/pg_checksums",
    ]


def test_severity_and_owner_of_a_business_check_come_from_the_configuration() -> None:
    (planned,) = (item for item in plan_suite(SERVICE) if item.name == "business:balanced")
    assert (planned.severity, planned.owner) == (Severity.WARNING, "accounting")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PostgresError("the server is gone"), "DR700: the server is gone"),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect"),
        (SystemExit(0), "SystemExit"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_check_that_raises_is_unverified_and_stops_no_other(error: BaseException, words: str) -> None:
    def raises(_service: RecoveredService, _seconds: float) -> Finding:
        raise error

    first, second = run(check("one", raises), check("two", fine)).results
    assert first.state is CheckState.UNVERIFIED
    assert words in first.detail
    assert second.state is CheckState.PASSED


def test_a_check_that_hangs_is_left_behind_unverified() -> None:
    gate = threading.Event()

    def hangs(_service: RecoveredService, _seconds: float) -> Finding:
        gate.wait()
        return passed("too late")

    began = time.monotonic()
    first, second = run(check("one", hangs, seconds=0.1), check("two", fine)).results
    gate.set()
    assert time.monotonic() - began < 5
    assert (first.state, first.detail) == (CheckState.UNVERIFIED, "it did not end within 0 s")
    assert second.state is CheckState.PASSED


@pytest.mark.parametrize("answer", [None, True, "passed", Finding(state=cast("CheckState", "passed"), detail="")])
def test_an_answer_of_another_kind_is_unverified(answer: object) -> None:
    (result,) = run(check("one", cast("Ask", lambda *_: answer))).results
    assert result.state is CheckState.UNVERIFIED


def test_what_is_not_applicable_is_told_apart_with_its_reason() -> None:
    outcome = run(check("one", lambda *_: NotApplicable(reason="no such thing here")), check("two", fine))
    assert outcome.not_applicable == {"one": "no such thing here"}
    assert [result.name for result in outcome.results] == ["two"]


def test_a_listener_hears_every_check_begin_and_end() -> None:
    heard: list[tuple[str, CheckState | None]] = []

    def listen(name: str, result: CheckResult | None) -> None:
        heard.append((name, result.state if result else None))

    run_suite(
        NOTHING, (check("one", fine), check("two", lambda *_: failed("no"))), clock=SystemClock(), progress=listen
    )
    assert heard == [("one", None), ("one", CheckState.PASSED), ("two", None), ("two", CheckState.FAILED)]


def test_results_carry_what_the_plan_and_the_answer_say() -> None:
    (result,) = run(check("one", fine)).results
    assert (result.name, result.severity, result.value, result.detail) == ("one", Severity.CRITICAL, "0", "fine")
    assert 0 <= result.duration_ms < 1000


def test_foreign_names_are_shown_few_and_escaped() -> None:
    shown = listed(["\x1b[2J", *[f"name-{number}" for number in range(10)]])
    assert "\x1b" not in shown
    assert shown.endswith("and 6 more")


def test_what_a_hostile_server_says_is_recorded_short_and_escaped() -> None:
    (result,) = run(check("one", lambda *_: failed("\x1b[2J\n" + "x" * 10_000_000, value="y" * 10_000_000))).results
    assert result.detail.startswith("\\x1b[2J\\x0ax")
    assert len(result.detail) < 600
    assert len(result.value or "") < 300


OF_EVERY_KIND = replace(
    SERVICE,
    components={
        **SERVICE.components,
        DOCS: FilesSettings(
            name=DOCS,
            kind=FilesKind.ODOO_FILESTORE,
            path=Path("/x"),
            database="plant",
            follows=DB,
            odoo=OdooProgram(program=Path("/opt/odoo/odoo-bin")),
        ),
        ComponentName("code"): GitSettings(name=ComponentName("code"), clones=(Path("/z"),)),
        ComponentName("queue"): RedisSettings(name=ComponentName("queue"), url="redis://localhost:6379/0"),
    },
)


def test_every_built_in_check_is_described_with_its_severity() -> None:
    page = (Path(__file__).parents[3] / "docs" / "checks.md").read_text(encoding="utf-8")
    described = dict(re.findall(r"^\| `([a-z_-]+)` \| (critical|warning) \|", page, re.MULTILINE))
    planned = {
        item.name.partition("/")[2]: item.severity.value
        for item in plan_suite(OF_EVERY_KIND, neutralized=True)
        if "/" in item.name
    }
    assert described == planned
