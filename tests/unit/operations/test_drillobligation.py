"""What a drill promises before it begins, and how a check that makes no sense for the service is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from drservice.checks.suite import SuiteOutcome, plan_suite
from drservice.model.checks import CheckState, Expectation, Severity
from drservice.model.estate import BusinessCheck, DrillPlan, DrillTarget, PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.outcomes import Criteria
from drservice.model.recovery import Target, TargetKind
from drservice.operations.drillplan import ChosenTarget, PreparedDrill
from drservice.operations.drillrecord import _excused
from tests.doubles import evidence as made

DATABASE = PostgresSettings(name=ComponentName("database"), dsn="dbname=erp")
BALANCE = BusinessCheck(
    name="balance",
    component=DATABASE.name,
    database="erp",
    sql="select sum(debit - credit) from account_move_line",
    expect=Expectation.parse("= 0"),
    severity=Severity.CRITICAL,
    owner="finance",
)


def prepared(check: BusinessCheck = BALANCE, *, documents: bool = False) -> PreparedDrill:
    service = Service(name=ServiceName("erp"), components={DATABASE.name: DATABASE}, checks=(check,))
    checks = plan_suite(service)
    return PreparedDrill(
        plan=DrillPlan(name="quarterly", service=service.name, target=DrillTarget.LATEST, time=None, within=None),
        service=service,
        component=DATABASE,
        chosen=ChosenTarget(target=Target(kind=TargetKind.LATEST), kind=DrillTarget.LATEST),
        checks=checks,
        criteria=Criteria(checks=tuple(each.name for each in checks), documents=documents),
        mutation=None,
    )


@pytest.mark.parametrize(
    "easier",
    [
        replace(BALANCE, severity=Severity.WARNING),
        replace(BALANCE, database="copy"),
        replace(BALANCE, sql="select 0"),
        replace(BALANCE, expect=Expectation.parse("!= 1")),
    ],
    ids=["severity", "database", "sql", "expect"],
)
def test_a_check_that_is_easier_to_pass_is_another_plan(easier: BusinessCheck) -> None:
    assert prepared(easier).plan_sha256() != prepared().plan_sha256()


def test_documents_that_do_not_count_are_another_plan() -> None:
    assert prepared(documents=True).plan_sha256() != prepared(documents=False).plan_sha256()
    assert prepared().plan_sha256() == prepared().plan_sha256()


def test_the_obligation_names_every_check_with_its_severity_and_whether_documents_count() -> None:
    criteria = prepared(documents=True).obligation_fields(made.ulid(1))["criteria"]
    assert isinstance(criteria, Mapping)
    assert criteria["documents"] is True
    planned = criteria["checks"]
    assert isinstance(planned, list)
    assert {"name": "business:balance", "severity": "critical"} in planned
    assert {"name": "database/sequences", "severity": "warning"} in planned
    assert len(planned) == len(prepared().checks)


def test_a_check_that_is_not_applicable_keeps_its_planned_severity_and_owner() -> None:
    (found,) = _excused(prepared(), SuiteOutcome(results=(), not_applicable={"business:balance": "no such table"}))
    assert (found.state, found.severity, found.owner) == (CheckState.UNVERIFIED, Severity.CRITICAL, "finance")
    assert found.detail == "no such table"
