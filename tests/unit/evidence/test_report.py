"""What a report says about a period: each rule of reading is broken once."""

from __future__ import annotations

import pytest

from drservice.canonical import Json
from drservice.errors import EvidenceIncompleteError
from drservice.evidence.report import (
    AnchorFacts,
    BackedUp,
    Deviation,
    DeviationKind,
    DrillVerdict,
    GapKind,
    Keeping,
    LedgerFacts,
    ObligationState,
    Report,
    ReportInputs,
    ServiceFacts,
    ServicePosture,
    Standing,
    Verified,
)
from drservice.evidence.reportbuilding import build_report
from drservice.evidence.reportentries import Gravity, Promise
from drservice.evidence.reportsections import view_of
from drservice.evidence.statements import Statement
from tests.doubles import evidence as made
from tests.doubles.evidencestory import (
    MINUTE,
    PERIOD,
    REPOSITORY,
    SCENARIOS,
    SECOND,
    Story,
    at,
    check,
    estate,
    good_quarter,
    inputs,
    sha,
    ulid,
    whole_quarter,
)


def report_of(
    story: Story, *, only_service: str | None = None, services: tuple[ServiceFacts, ...] | None = None
) -> Report:
    return build_report(
        story.entries(), inputs=inputs(len(story.statements), only_service=only_service, services=services)
    )


def erp(report: Report) -> ServicePosture:
    return next(posture for posture in report.posture if posture.facts.name == "erp")


def only_erp(story: Story) -> Report:
    return report_of(story, services=estate()[:1])


def kinds(report: Report, service: str = "erp") -> list[DeviationKind]:
    return [deviation.kind for deviation in report.deviations if deviation.service == service]


def contradictions(report: Report) -> list[str]:
    return [deviation.text for deviation in report.deviations if deviation.kind is DeviationKind.CONTRADICTION]


def one_drill(drilled: str = "erp", /, **replaced: Json) -> Story:
    """A backup, an obligation, and a drill of which ``replaced`` came out otherwise."""
    story = Story()
    story.backup(at(9), "erp")
    entry = story.obligation(at(10), "erp", 60)
    story.drill(at(10, hour=3), drilled, 60, entry, **replaced)
    return story


# --- posture ------------------------------------------------------------------------------------------------


def test_a_good_quarter_is_proved_and_has_no_exception() -> None:
    report = only_erp(good_quarter())
    posture = erp(report)
    assert report.deviations == ()
    assert posture.standing is Standing.PROVED
    assert (posture.backed_up, posture.verified) == (BackedUp.COMPLETE, Verified.IN_PERIOD)
    assert (posture.rpo.keeping, posture.rto.keeping) == (Keeping.KEPT, Keeping.KEPT)
    assert (posture.rto.last_ms, posture.rto.promised_ms, posture.rto.samples) == (372_000, 30 * MINUTE, 2)
    assert posture.drills == 2


def test_backed_up_is_not_verified() -> None:
    story = Story()
    story.backup(at(9), "erp")
    posture = erp(only_erp(story))
    assert (posture.backed_up, posture.verified) == (BackedUp.COMPLETE, Verified.NEVER)
    assert posture.standing is Standing.NOT_PROVED


def test_a_drill_before_the_period_proves_nothing_for_it() -> None:
    story = Story()
    entry = story.obligation(at(-20), "erp", 60)
    story.drill(at(-20, hour=3), "erp", 60, entry)
    story.backup(at(9), "erp")
    posture = erp(only_erp(story))
    assert posture.verified is Verified.BEFORE
    assert posture.standing is Standing.NOT_PROVED
    assert posture.rto.keeping is Keeping.NOT_MEASURED


def test_what_happens_after_the_period_is_not_in_the_report() -> None:
    story = one_drill()
    before = only_erp(story)
    story.backup(at(95), "erp", outcome="failed", point=None)
    entry = story.obligation(at(96), "erp", 61)
    story.drill(at(96, hour=3), "erp", 61, entry, outcome="failed")
    after = only_erp(story)
    assert erp(after) == erp(before)
    assert after.drills == before.drills
    assert after.newest_at != before.newest_at


def test_a_later_failed_drill_outweighs_an_earlier_passed_one() -> None:
    story = one_drill()
    entry = story.obligation(at(20), "erp", 61)
    story.drill(at(20, hour=3), "erp", 61, entry, outcome="aborted", reasons=["killed"])
    posture = erp(only_erp(story))
    assert posture.verified is Verified.FAILED
    assert posture.standing is Standing.BREACHED
    assert posture.last_passed is not None


def test_a_mutation_drill_neither_measures_nor_verifies() -> None:
    story = Story()
    story.backup(at(9), "erp")
    entry = story.obligation(at(10), "erp", 60, mutation="wal-segment-dropped")
    story.drill(at(10, hour=3), "erp", 60, entry, mutation="wal-segment-dropped", outcome="failed")
    posture = erp(only_erp(story))
    assert (posture.drills, posture.rto.samples, posture.verified) == (0, 0, Verified.NEVER)


def test_the_worst_of_the_period_breaks_a_promise_also_if_the_last_kept_it() -> None:
    story = one_drill(rto_ms=31 * MINUTE)
    entry = story.obligation(at(20), "erp", 61)
    story.drill(at(20, hour=3), "erp", 61, entry)
    report = only_erp(story)
    assert erp(report).rto.keeping is Keeping.BREACHED
    assert erp(report).standing is Standing.ATTENTION
    assert DeviationKind.OBJECTIVE in kinds(report)


def test_a_promise_that_is_met_to_the_millisecond_is_kept() -> None:
    assert erp(only_erp(one_drill(rto_ms=30 * MINUTE, rpo_ms=5 * SECOND))).rto.keeping is Keeping.KEPT
    assert erp(only_erp(one_drill(rto_ms=30 * MINUTE + 1))).rto.keeping is Keeping.BREACHED


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("degraded", BackedUp.DEGRADED), ("partial", BackedUp.PARTIAL), ("failed", BackedUp.FAILED)],
)
def test_the_last_backup_decides_whether_a_service_is_backed_up(outcome: str, state: BackedUp) -> None:
    story = one_drill()
    story.backup(at(30), "erp", outcome=outcome)
    report = only_erp(story)
    assert erp(report).backed_up is state
    assert kinds(report) == [DeviationKind.BACKUP]


def test_a_service_that_nobody_declares_any_more_is_shown() -> None:
    story = one_drill()
    story.backup(at(11), "old-shop")
    report = report_of(story, services=estate()[:1])
    posture = report.posture[-1]
    assert (posture.facts.name, posture.is_declared) == ("old-shop", False)


def test_a_report_about_one_service_says_nothing_about_others() -> None:
    report = report_of(whole_quarter(), only_service="erp")
    assert [posture.facts.name for posture in report.posture] == ["erp"]
    assert {deviation.service for deviation in report.deviations} <= {"erp", None}
    assert {obligation.entry.stamp.service for obligation in report.obligations} == {"erp"}
    assert sum(total for _, total, _ in report.populations) == len(whole_quarter().statements)


# --- drills against their obligations -----------------------------------------------------------------------


def test_a_drill_that_must_fail_and_did_is_no_exception() -> None:
    report = only_erp(good_quarter())
    verdicts = [drill.verdict for drill in report.drills]
    assert verdicts == [DrillVerdict.PASSED, DrillVerdict.DETECTED, DrillVerdict.DETECTED, DrillVerdict.PASSED]


def test_a_drill_that_must_fail_but_passed_is_the_gravest_exception() -> None:
    story = one_drill()
    entry = story.obligation(at(20), "erp", 61, mutation="document-encrypted")
    story.drill(at(20, hour=3), "erp", 61, entry, mutation="document-encrypted")
    report = only_erp(story)
    assert report.deviations[0].kind is DeviationKind.UNDETECTED
    assert erp(report).standing is Standing.BREACHED


def test_a_failed_drill_cannot_be_renamed_into_one_that_had_to_fail() -> None:
    report = only_erp(one_drill(outcome="failed", mutation="wal-segment-dropped"))
    assert report.drills[0].verdict is DrillVerdict.FAILED
    assert any("announced mutation None" in text for text in contradictions(report))


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"obligation": ulid(999)}, "no obligation was recorded before"),
        ({"obligation_entry": 0}, "names entry 0"),
        ({"promised": {"rto_ms": 60 * MINUTE, "rpo_ms": 5 * SECOND}}, "other objectives"),
        ({"seed": sha("another")}, "seed is not the one committed"),
        ({"seed": None}, "seed is not the one committed"),
        ({"seed": "zz"}, "seed is not the one committed"),
    ],
)
def test_a_drill_that_contradicts_its_obligation_is_not_believed(replaced: dict[str, Json], words: str) -> None:
    report = report_of(one_drill(**replaced), services=estate()[:2])
    assert any(words in text for text in contradictions(report)), contradictions(report)
    assert all(posture.last_passed is None for posture in report.posture)


def test_a_drill_of_another_service_answers_nothing() -> None:
    report = report_of(one_drill("reporting"), services=estate()[:2])
    assert contradictions(report) == ["the obligation is for service erp"]
    assert all(posture.last_passed is None for posture in report.posture)


def test_a_target_that_the_seed_does_not_choose_is_told() -> None:
    target: Json = {
        "requested": "2026-01-10T00:00:00.000000Z",
        "kind": "random",
        "reached_time": None,
        "reached_lsn": None,
        "timeline": 1,
    }
    assert any(
        "not the one that the seed chooses" in text for text in contradictions(only_erp(one_drill(target=target)))
    )


def test_an_obligation_written_after_its_drill_is_none() -> None:
    story = Story()
    story.drill(at(10), "erp", 60, 1)
    story.obligation(at(11), "erp", 60)
    assert any("no obligation was recorded before" in text for text in contradictions(only_erp(story)))


def test_trying_again_until_it_passes_is_shown() -> None:
    story = one_drill(outcome="failed", reasons=["no"])
    story.drill(at(10, hour=5), "erp", 60, 1)
    report = only_erp(story)
    assert any("had been answered before, by entry 2" in text for text in contradictions(report))
    assert report.obligations[0].verdict is DrillVerdict.FAILED
    assert erp(report).verified is Verified.FAILED


def test_an_aborted_drill_need_not_show_its_seed() -> None:
    report = only_erp(one_drill(outcome="aborted", seed=None, target={
        "requested": None, "kind": None, "reached_time": None, "reached_lsn": None, "timeline": None}))  # fmt: skip
    assert contradictions(report) == []
    assert DeviationKind.DRILL_ABORTED in kinds(report)


def test_a_promised_check_that_was_not_run_is_an_exception_and_a_gap() -> None:
    report = only_erp(one_drill(checks=[check("target", "reached")]))
    assert [deviation.text for deviation in report.deviations if deviation.kind is DeviationKind.CHECK] == [
        "amcheck was promised beforehand and not run",
        "moves-balance was promised beforehand and not run",
    ]
    assert {gap.subject for gap in report.gaps if gap.kind is GapKind.CHECK} == {
        "amcheck with erp",
        "moves-balance with erp",
    }


def test_a_check_that_could_not_run_is_an_exception_although_the_drill_says_passed() -> None:
    checks: list[Json] = [
        check("target", "reached"),
        check("amcheck", "no answer", state="unverified", owner="dba"),
        check("moves-balance", "3", state="failed", severity="warning"),
    ]
    report = only_erp(one_drill(checks=checks))
    found = [(d.gravity, d.text) for d in report.deviations if d.kind is DeviationKind.CHECK]
    assert found == [
        (Gravity.CRITICAL, "amcheck unverified (owner: dba): no answer"),
        (Gravity.WARNING, "moves-balance failed: 3"),
    ]


def test_a_way_out_of_the_environment_is_grave() -> None:
    probe: Json = {"name": "network", "isolated": False, "detail": "10.0.0.1:5432 answered"}
    report = only_erp(one_drill(isolation=[probe]))
    assert kinds(report) == [DeviationKind.ISOLATION]
    assert erp(report).standing is Standing.BREACHED


@pytest.mark.parametrize(("is_kept", "gravity"), [(True, Gravity.WARNING), (False, Gravity.CRITICAL)])
def test_an_environment_that_stays_is_told(*, is_kept: bool, gravity: Gravity) -> None:
    report = only_erp(one_drill(destroyed=False, kept=is_kept))
    assert [(d.kind, d.gravity) for d in report.deviations] == [(DeviationKind.LEFT_BEHIND, gravity)]


def test_where_no_environment_was_made_none_is_left_behind() -> None:
    report = only_erp(one_drill(destroyed=False, environment=None))
    assert report.deviations == ()


@pytest.mark.parametrize("field", ["missing", "corrupt"])
def test_documents_that_did_not_come_back_are_told(field: str) -> None:
    documents = {"expected": 9, "missing": 0, "corrupt": 0, "extra": 0, "missing_in_production": 0, field: 2}
    assert kinds(only_erp(one_drill(documents=documents))) == [DeviationKind.DOCUMENTS]


# --- obligations, findings, other exceptions ----------------------------------------------------------------


def test_an_obligation_without_an_outcome_is_missed_once_it_is_due() -> None:
    story = one_drill()
    story.obligation(at(50), "erp", 61)
    story.obligation(at(51), "erp", 62, due_at=None)
    story.obligation(at(88), "erp", 63, due_at="2026-05-01T00:00:00.000000Z")
    report = only_erp(story)
    assert [obligation.state for obligation in report.obligations] == [
        ObligationState.ANSWERED,
        ObligationState.MISSED,
        ObligationState.MISSED,
        ObligationState.OPEN,
    ]
    assert kinds(report) == [DeviationKind.OBLIGATION_MISSED] * 2
    assert (erp(report).overdue, erp(report).open_obligations) == (2, 1)


def test_an_answer_after_the_period_does_not_heal_a_missed_obligation() -> None:
    story = one_drill()
    entry = story.obligation(at(50), "erp", 61)
    later = story.drill(at(99), "erp", 61, entry)
    obligation = only_erp(story).obligations[1]
    assert (obligation.state, obligation.answered_after) == (ObligationState.MISSED, later)


def test_a_late_answer_is_told() -> None:
    story = Story()
    story.backup(at(9), "erp")
    entry = story.obligation(at(10), "erp", 60)
    story.drill(at(13), "erp", 60, entry)
    report = only_erp(story)
    assert report.obligations[0].state is ObligationState.LATE
    assert [(d.kind, d.text) for d in report.deviations] == [
        (DeviationKind.LATE, "erp-quarterly: 2 d after it was due")
    ]


def test_obligations_settled_before_the_period_are_not_in_its_population() -> None:
    story = Story()
    entry = story.obligation(at(-40), "erp", 60)
    story.drill(at(-40, hour=3), "erp", 60, entry)
    story.obligation(at(-39), "erp", 61)
    assert [obligation.entry.obligation for obligation in only_erp(story).obligations] == [ulid(61)]


def test_a_finding_counts_until_it_is_closed() -> None:
    story = one_drill()
    story.finding(at(11), "erp", 70)
    story.finding(at(12), "erp", 71)
    story.finding(at(20), "erp", 71, state="closed")
    report = only_erp(story)
    assert [(finding.finding, finding.is_open) for finding in report.findings] == [(ulid(70), True), (ulid(71), False)]
    assert erp(report).open_findings == 1
    assert kinds(report) == [DeviationKind.FINDING]


@pytest.mark.parametrize(("outcome", "gravity"), [("partial", Gravity.WARNING), ("failed", Gravity.CRITICAL)])
def test_a_restore_that_did_not_bring_everything_is_told(outcome: str, gravity: Gravity) -> None:
    story = one_drill()
    story.restore(at(20), "erp", outcome=outcome)
    assert [(d.kind, d.gravity) for d in only_erp(story).deviations] == [(DeviationKind.RESTORE, gravity)]


def test_a_restore_of_one_database_is_told_with_what_was_asked_for() -> None:
    story = one_drill()
    target: dict[str, Json] = {
        "requested": "latest (only database plant)",
        "kind": "latest",
        "reached_time": None,
        "reached_lsn": "0/1",
        "timeline": 2,
    }
    story.restore(at(20), "erp", outcome="partial", documents=None, target=target)
    (told,) = only_erp(story).deviations
    assert told.text == "partial: as asked for: latest (only database plant)"


def test_failed_probes_and_rejections_are_told() -> None:
    story = one_drill()
    results: list[Json] = [{"name": "delete refused", "passed": False, "detail": "deleted"}]
    story.add("probe", at(20), None, {"probe": "lock", "outcome": "failed", "results": results})
    story.add("approval", at(21), "erp", {"entry": 2, "approver": "cio", "decision": "rejected", "comment": "why"})
    assert [d.kind for d in only_erp(story).deviations] == [DeviationKind.PROBE, DeviationKind.REJECTED]


def test_an_entry_that_was_kept_aside_is_told() -> None:
    story = one_drill()
    story.restore(at(20), "erp", kept_aside=True)
    assert kinds(only_erp(story)) == [DeviationKind.KEPT_ASIDE]


def test_an_entry_that_cannot_be_understood_is_an_exception_and_counted() -> None:
    story = one_drill()
    story.backup(at(20), "erp", outcome="splendid")
    report = only_erp(story)
    assert [(d.kind, d.entries) for d in report.deviations] == [(DeviationKind.UNREADABLE, (3,))]
    assert ("not understood", 1, 0) in report.populations


def test_an_unprotected_component_is_an_exception_and_a_gap() -> None:
    report = report_of(whole_quarter())
    assert DeviationKind.UNPROTECTED in kinds(report, "reporting")
    assert "reporting/cubes" in [gap.subject for gap in report.gaps if gap.kind is GapKind.COMPONENT]


def anchored(story: Story, *anchors: AnchorFacts) -> list[Deviation]:
    size = len(story.statements)
    facts = LedgerFacts(repository=REPOSITORY, origin="o", tree_size=size, root_hash=sha("root"), anchors=anchors)
    given = ReportInputs(ledger=facts, period=PERIOD, services=estate()[:1], scenarios=SCENARIOS)
    found = build_report(story.entries(), inputs=given).deviations
    return [deviation for deviation in found if deviation.kind is DeviationKind.NOT_ANCHORED]


def test_a_ledger_that_is_anchored_nowhere_or_long_ago_is_told() -> None:
    story = one_drill()
    size = len(story.statements)
    assert len(anchored(story)) == 1
    assert len(anchored(story, AnchorFacts(name="a", tree_size=size - 1, anchored_at=at(10)))) == 1
    assert anchored(story, AnchorFacts(name="a", tree_size=size - 1, anchored_at=at(88))) == []
    assert anchored(story, AnchorFacts(name="a", tree_size=size, anchored_at=at(10))) == []


# --- coverage, gaps, populations ----------------------------------------------------------------------------


def test_scenarios_that_were_not_exercised_are_gaps() -> None:
    report = report_of(whole_quarter())
    subjects = [gap.subject for gap in report.gaps if gap.kind is GapKind.SCENARIO]
    assert "mutation wal-segment-dropped with reporting" in subjects
    assert "mutation wal-segment-dropped with erp" not in subjects
    assert "plan erp-quarterly with erp" not in subjects


def test_a_plan_exercised_only_before_the_period_says_when() -> None:
    story = Story()
    entry = story.obligation(at(-20), "erp", 60)
    story.drill(at(-20, hour=3), "erp", 60, entry)
    text = next(gap.text for gap in only_erp(story).gaps if gap.subject == "plan erp-quarterly with erp")
    assert text == "not since 2025-12-12, before 2026-01-01"


def test_a_service_without_a_drill_is_a_gap() -> None:
    report = report_of(whole_quarter())
    assert "integrations" in [gap.subject for gap in report.gaps if gap.kind is GapKind.SERVICE]


def test_what_no_drill_shows_is_said_in_every_report() -> None:
    assert len([gap for gap in only_erp(good_quarter()).gaps if gap.kind is GapKind.SCOPE]) == 2


def test_what_drills_say_they_did_not_test_is_listed_once_with_all_entries() -> None:
    said = [gap for gap in only_erp(good_quarter()).gaps if gap.kind is GapKind.SAID]
    assert [len(gap.entries) for gap in said] == [4]


def test_the_longest_time_without_a_recovery_point_is_measured_to_the_ends_of_the_period() -> None:
    story = Story()
    story.backup(at(10, hour=0), "erp")
    story.backup(at(20, hour=0), "erp", outcome="failed", point=None)
    tally = only_erp(story).backups[0]
    assert (tally.total, tally.complete, tally.failed) == (2, 1, 1)
    assert tally.longest_gap_ms is not None
    assert tally.longest_gap_ms // 86_400_000 == 79


def test_keys_are_listed_with_the_entry_that_ended_them() -> None:
    story = Story()
    story.key(at(0), "drservice", "log")
    story.key(at(1), "dr1", "executor")
    story.key(at(2), "dr1", "executor", action="rotated", previous="0" * 16)
    story.key(at(3), "dr1", "executor", action="revoked")
    spans = [(span.entry.stamp.number, span.ended_by) for span in only_erp(story).keys]
    assert spans == [(0, None), (1, 2), (2, 3)]


def test_a_report_over_a_part_of_the_log_is_refused() -> None:
    story = good_quarter()
    given = inputs(len(story.statements))
    with pytest.raises(EvidenceIncompleteError):
        build_report(story.entries()[:-1], inputs=given)
    with pytest.raises(EvidenceIncompleteError):
        build_report([*story.entries()[1:], story.entries()[0]], inputs=given)


def test_an_empty_ledger_has_a_report() -> None:
    report = build_report([], inputs=inputs(0))
    assert [posture.standing for posture in report.posture] == [Standing.BREACHED] * 3
    assert report.newest_at is None


def test_a_service_without_promises_is_never_called_kept() -> None:
    services = (ServiceFacts(name="erp", promise=Promise()),)
    posture = report_of(one_drill(), services=services).posture[0]
    assert posture.rto.keeping is Keeping.NOT_PROMISED


# --- what was not done, let go, and asked over HTTP -------------------------------------------------------------


_COMMON = {"repository", "service", "host", "run", "recorded_at", "tool"}


def told(story: Story, statement: Statement) -> int:
    """Add a statement as a host writes it."""
    said = {name: value for name, value in statement.predicate.items() if name not in _COMMON}
    return story.add(statement.kind.value, statement.recorded_at, statement.service, said)


def test_missed_slots_and_failed_runs_are_exceptions_and_what_nothing_makes_up_for_weighs_more() -> None:
    story = one_drill()
    lost = told(story, made.missed(at(20), 70, caught_up=False))
    caught_up = told(story, made.missed(at(21), 72))
    failed = told(story, made.failure(at(22), 74))
    cancelled = told(story, made.failure(at(23), 75, outcome="cancelled"))
    told(story, made.missed(at(-20), 76, caught_up=False))
    report = only_erp(story)
    found = {item.entries[0]: item for item in report.deviations if item.kind.value in {"slot missed", "run failed"}}
    assert found.keys() == {lost, caught_up, failed, cancelled}
    assert [found[number].gravity for number in (lost, failed)] == [Gravity.CRITICAL] * 2
    assert [found[number].gravity for number in (caught_up, cancelled)] == [Gravity.WARNING] * 2
    assert "backup: 2 slots up to" in found[lost].text
    assert "nothing makes up for it" in found[lost].text
    assert "after 3 claims: DR905 its process died" in found[failed].text


def test_retention_that_was_stopped_or_accepted_by_a_person_is_an_exception_and_a_quiet_night_is_none() -> None:
    story = one_drill()
    told(story, made.retention(at(20), 70))
    frozen = told(story, made.retention(at(21), 71, outcome="frozen", changes={"anomalies": ["sizes jumped"]}))
    accepted = told(story, made.retention(at(22), 72, changes={"anomalies": ["sizes jumped"], "accepted": True}))
    found = [item for item in only_erp(story).deviations if item.kind is DeviationKind.RETENTION]
    assert [item.entries for item in found] == [(frozen,), (accepted,)]
    assert "accepted: sizes jumped" in found[1].text


def test_populations_show_slots_retention_and_days_of_the_access_log() -> None:
    story = one_drill()
    told(story, made.missed(at(20), 70))
    told(story, made.failure(at(21), 72))
    told(story, made.retention(at(22), 73))
    told(story, made.access(at(23), 74, day="2026-01-22"))
    (populations,) = [section for section in view_of(only_erp(story)).sections if section.name == "populations"]
    rows = {table.title: table.rows for table in populations.tables}
    assert len(rows["Slots missed and runs without a result in the period"]) == 2
    assert len(rows["Retention in the period"]) == 1
    assert len(rows["Days of the access log in the period"]) == 1
