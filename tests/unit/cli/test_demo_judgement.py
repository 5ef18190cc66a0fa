"""The demo's judgement: whatever is lost, torn, late, invented, unproven or unverified is found and told."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from drservice.cli.demofacts import (
    BackupFacts,
    CloneFacts,
    ConsistentFacts,
    DocumentFacts,
    DocumentLossFacts,
    DrillFacts,
    EvidenceFacts,
    Facts,
    HostLossFacts,
    MutationFacts,
    NeutralFacts,
)
from drservice.cli.demoreport import document, problems_of, report
from drservice.cli.oracle import (
    Document,
    Exposure,
    Moment,
    Order,
    compare,
    compare_documents,
    document_exposure,
    exposure,
    outlived,
    picture,
)
from drservice.model.wal import Lsn

T0 = datetime(2026, 11, 23, 2, 9, 0, tzinfo=UTC)
TARGET = T0 + timedelta(seconds=10)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def order(number: str, begun: float, acknowledged: float | None, *, lines: int = 3, flushed: int = 100) -> Order:
    return Order(
        number=number,
        lines=lines,
        begun=at(begun),
        acknowledged=at(acknowledged) if acknowledged is not None else None,
        flushed=Lsn(flushed) if acknowledged is not None else None,
    )


ORDERS = (
    order("before", 1, 2),
    order("just before", 9, 10),
    order("in flight", 9.9, 10.1),
    order("unanswered", 9.5, None),
    order("after", 10.1, 10.2),
)


def test_a_true_recovery_has_nothing_lost_and_nothing_unwanted() -> None:
    for found in ({"before": 3, "just before": 3}, {"before": 3, "just before": 3, "in flight": 3, "unanswered": 3}):
        seen = compare(ORDERS, found, TARGET)
        assert (seen.lost, seen.unwanted) == ((), ())
        assert (seen.acknowledged, seen.recovered, seen.after_target, seen.in_flight) == (2, 2, 1, 2)


def test_a_lost_order_is_found() -> None:
    seen = compare(ORDERS, {"before": 3}, TARGET)
    assert seen.lost == ("just before",)
    assert seen.recovered == 1


def test_an_order_without_all_of_its_lines_counts_as_lost() -> None:
    assert compare(ORDERS, {"before": 2, "just before": 3}, TARGET).lost == ("before",)
    assert compare(ORDERS, {"before": 3, "just before": 3, "in flight": 1}, TARGET).unwanted == ("in flight",)


def test_an_order_of_after_the_target_and_an_invented_one_are_unwanted() -> None:
    seen = compare(ORDERS, {"before": 3, "just before": 3, "after": 3, "phantom": 3}, TARGET)
    assert seen.lost == ()
    assert seen.unwanted == ("after", "phantom")


def test_work_at_risk_is_counted_from_the_newest_order_that_is_safe() -> None:
    orders = [order("a", 0, 1, flushed=10), order("b", 2, 3, flushed=20), order("c", 4, 5, flushed=30)]
    assert exposure(orders, durable=Lsn(30), at=at(9)) == Exposure(at=at(9), count=0, seconds=0.0)
    assert exposure(orders, durable=Lsn(20), at=at(9)) == Exposure(at=at(9), count=1, seconds=6.0)
    assert exposure(orders, durable=Lsn(0), at=at(9)) == Exposure(at=at(9), count=3, seconds=8.0)
    assert exposure(orders, durable=Lsn(20), at=at(4)).count == 0, "not acknowledged by then"


def test_an_order_of_unknown_position_is_never_called_safe() -> None:
    unknown = dataclasses.replace(order("a", 0, 1), flushed=None)
    assert exposure([unknown], durable=Lsn(1 << 60), at=at(2)).count == 1


DOCUMENTS = (
    *(Document(entry=order(item.number, 0, 1, lines=1), sha1="a") for item in ORDERS[:2]),
    Document(entry=order("in flight", 9.9, 10.1, lines=1), sha1="b"),
    Document(entry=order("after", 10.1, 10.2, lines=1), sha1="c"),
)
WHOLE: dict[str, str | None] = {"before": "a", "just before": "a"}


def test_documents_that_are_there_with_their_content_are_recovered() -> None:
    for found in (WHOLE, {**WHOLE, "in flight": "b"}):
        seen = compare_documents(DOCUMENTS, found, TARGET)
        assert (seen.acknowledged, seen.lost, seen.unwanted, seen.after_target) == (2, (), (), 1)


@pytest.mark.parametrize("content", [None, "b"])
def test_a_row_without_its_file_and_a_file_with_other_content_are_lost_documents(content: str | None) -> None:
    assert compare_documents(DOCUMENTS, {**WHOLE, "before": content}, TARGET).lost == ("before",)
    assert compare_documents(DOCUMENTS, {**WHOLE, "in flight": content and "a"}, TARGET).unwanted == ("in flight",)


def test_a_document_without_a_row_is_lost_and_one_that_nobody_filed_or_filed_later_is_unwanted() -> None:
    assert compare_documents(DOCUMENTS, {"before": "a"}, TARGET).lost == ("just before",)
    seen = compare_documents(DOCUMENTS, {**WHOLE, "after": "c", "phantom": "a", "hole": None}, TARGET)
    assert (seen.lost, seen.unwanted) == ((), ("after", "hole", "phantom"))


def test_documents_at_risk_are_those_behind_the_newest_look_and_all_of_them_before_the_first() -> None:
    filed = [Document(entry=order(name, when, when + 1, lines=1), sha1=name) for name, when in (("a", 0), ("b", 4))]
    assert document_exposure(filed, durable=at(5), at=at(9)) == Exposure(at=at(9), count=0, seconds=0.0)
    assert document_exposure(filed, durable=at(4.9), at=at(9)) == Exposure(at=at(9), count=1, seconds=8.0)
    assert document_exposure(filed, durable=None, at=at(9)) == Exposure(at=at(9), count=2, seconds=8.0)
    unanswered = Document(entry=order("c", 8, None, lines=1), sha1="c")
    assert document_exposure([unanswered], durable=None, at=at(9)).count == 0


def test_a_document_that_was_acknowledged_before_the_machine_died_and_is_not_there_is_lost_with_its_age() -> None:
    seen = outlived(DOCUMENTS, {"before": "a", "just before": None}, at(10.05))
    assert (seen.acknowledged, seen.lost, seen.dangling, seen.unwanted) == (2, ("just before",), ("just before",), ())
    assert seen.lost_seconds == pytest.approx(9.05)
    assert outlived(DOCUMENTS, {"before": "a"}, at(10.05)).lost == ("just before",), "the row is gone, too"
    whole = outlived(DOCUMENTS, WHOLE, at(10.05))
    assert (whole.lost, whole.lost_seconds, whole.dangling) == ((), 0.0, ())


def test_what_nobody_had_acknowledged_may_come_back_without_its_document_and_nothing_that_nobody_filed() -> None:
    seen = outlived(DOCUMENTS, {**WHOLE, "in flight": None, "phantom": None}, at(10.05))
    assert (seen.lost, seen.dangling, seen.unwanted) == ((), ("in flight", "phantom"), ("phantom",))
    assert outlived(DOCUMENTS, {**WHOLE, "in flight": "a"}, at(10.05)).unwanted == ("in flight",), "other content"


def documents() -> DocumentFacts:
    return DocumentFacts(
        comparison=compare_documents(DOCUMENTS, WHOLE, TARGET),
        expected=2,
        missing=0,
        corrupt=0,
        rows=2,
        root="/r",
        exposures=(Exposure(at=at(5), count=3, seconds=4.0), Exposure(at=at(6), count=0, seconds=0.0)),
        rpo_promised_seconds=60.0,
    )


NEUTRAL = NeutralFacts(
    scripts=("plant_mes",),
    mails_held=5,
    mail_servers_off=1,
    scheduled_actions_off=3,
    questions=10,
    production_is_as_it_was=True,
)


def neutral(**change: object) -> dict[str, object]:
    changed = dataclasses.replace(NEUTRAL, **change)  # type: ignore[arg-type]  # the cases name their fields
    return {"drill": dataclasses.replace(drill(), neutral=changed)}


def drill() -> DrillFacts:
    return DrillFacts(
        passed=True,
        reasons=(),
        target="2026-11-23T02:09:05.000000Z",
        kind="random",
        checks=16,
        checks_passed=16,
        odoo_checks=9,
        neutral=NEUTRAL,
        not_tested=("people",),
        destroyed=True,
        rto_ms=2500,
        rpo_ms=None,
        record=6,
        seconds=3.0,
    )


MUTATION = MutationFacts(
    mutation="document-encrypted", detected=True, noticed=("FAILED documents/documents-hash",), record=8, seconds=3.0
)
DOCUMENT_LOSS = DocumentLossFacts(
    acknowledged=30,
    filed=9,
    lost=("d", "e"),
    lost_seconds=1.5,
    dangling=("d", "e", "in flight"),
    unwanted=(),
    told_missing=3,
    told_corrupt=0,
    behind_seconds=1.6,
)
CONSISTENT = ConsistentFacts(
    orders_lost=8, documents_lost=5, lost_seconds=1.7, dangling=(), unwanted=(), told_missing=0, seconds=3.5
)
HOST_LOSS = HostLossFacts(
    acknowledged=40,
    entered=20,
    lost=("a",),
    unwanted=(),
    lost_seconds=0.2,
    documents=DOCUMENT_LOSS,
    consistent=CONSISTENT,
    clone=CloneFacts(commit="5f3c", recovered="5f3c", has_edits=True),
    died_at=TARGET,
    seconds=3.0,
)


def host_loss(**change: object) -> dict[str, object]:
    return {"host_loss": dataclasses.replace(HOST_LOSS, **change)}  # type: ignore[arg-type]  # as above


def consistent(**change: object) -> dict[str, object]:
    return host_loss(consistent=dataclasses.replace(CONSISTENT, **change))  # type: ignore[arg-type]  # as above


def document_loss(**change: object) -> dict[str, object]:
    return host_loss(documents=dataclasses.replace(DOCUMENT_LOSS, **change))  # type: ignore[arg-type]  # as above


EVIDENCE = EvidenceFacts(
    records=9, anchored=9, verified=True, told="VERIFIED", bundle_bytes=400_000, report_bytes=200_000
)


def facts() -> Facts:
    backup = BackupFacts(
        point="P",
        snapshot="S",
        started_at=at(0),
        stopped_at=at(1),
        source_bytes=50,
        read_bytes=50,
        stored_bytes=9,
        seconds=1.0,
    )
    found = {"before": 3, "just before": 3}
    return Facts(
        backups=(backup, dataclasses.replace(backup, stored_bytes=1)),
        exposures=(Exposure(at=at(5), count=2, seconds=1.5), Exposure(at=at(6), count=0, seconds=0.0)),
        orders=ORDERS,
        found=frozenset(found),
        comparison=compare(ORDERS, found, TARGET),
        documents=documents(),
        history_rows=100,
        history_is_the_same=True,
        mistake_is_real=True,
        host_cannot_read=True,
        target=TARGET,
        dropped_at=at(11),
        decided_at=at(12),
        used_snapshot="S",
        used_from=at(0),
        reached=at(9.99),
        probes=17,
        phases={"wal": 1.0, "check": 1.0},
        rto_seconds=2.0,
        rpo_promised_seconds=30.0,
        rto_promised_seconds=120.0,
        drill=drill(),
        mutation=MUTATION,
        host_loss=HOST_LOSS,
        evidence=EVIDENCE,
        repository_bytes=10,
        environment="E",
        dsn="host=/x",
    )


def with_documents(found: dict[str, str | None], *, rows: int = 2, expected: int = 2) -> dict[str, object]:
    comparison = compare_documents(DOCUMENTS, found, TARGET)
    return {"documents": dataclasses.replace(documents(), comparison=comparison, rows=rows, expected=expected)}


def test_a_good_run_passes_and_reports_the_worst_look() -> None:
    seen = facts()
    assert problems_of(seen) == ()
    answer = document(seen, (), seconds=3.0, kept=None, evidence=None)
    assert (answer["state"], answer["rpo_seconds"], answer["commits_lost"]) == ("passed", 1.5, 0)
    assert (answer["documents_expected"], answer["documents_missing"]) == (2, 0)
    assert (answer["drill_verdict"], answer["evidence_verified"], answer["evidence_folder"]) == ("passed", True, None)
    assert document(seen, (), seconds=3.0, kept=None, evidence="/e")["evidence_folder"] == "/e"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparison": compare(ORDERS, {"before": 3}, TARGET)}, "1 acknowledged orders are lost: just before"),
        ({"comparison": compare(ORDERS, {"before": 3, "just before": 3, "x": 0}, TARGET)}, "must not be: x"),
        ({"comparison": compare((), {}, TARGET)}, "proves nothing"),
        ({"comparison": compare(ORDERS[:2], {"before": 3, "just before": 3}, TARGET)}, "proves nothing"),
        ({"history_is_the_same": False}, "from the beginning"),
        ({"mistake_is_real": False}, "still has the table"),
        ({"host_cannot_read": False}, "can read what it wrote"),
        ({"reached": None}, "last transaction"),
        ({"reached": at(10.5)}, "last transaction"),
        ({"backups": (facts().backups[0], facts().backups[0])}, "re-used nothing"),
        (with_documents({"before": "a"}, rows=1, expected=1), "1 acknowledged documents are missing"),
        (with_documents({**WHOLE, "before": "z"}), "not as they were: before"),
        (with_documents({**WHOLE, "after": "c"}, rows=3, expected=3), "1 documents are there that must not be: after"),
        ({"documents": dataclasses.replace(documents(), comparison=compare((), {}, TARGET))}, "about documents"),
        (
            {"documents": dataclasses.replace(documents(), comparison=compare_documents(DOCUMENTS[:2], WHOLE, TARGET))},
            "about documents",
        ),
        ({"documents": dataclasses.replace(documents(), missing=1)}, "counts 1 documents missing and 0 corrupt"),
        ({"documents": dataclasses.replace(documents(), corrupt=2)}, "counts 0 documents missing and 2 corrupt"),
        ({"documents": dataclasses.replace(documents(), expected=1)}, "looked for 1 documents, 2 rows"),
        ({"drill": dataclasses.replace(drill(), passed=False, reasons=("too slow",))}, "did not pass: too slow"),
        ({"drill": dataclasses.replace(drill(), destroyed=False)}, "not destroyed"),
        ({"mutation": dataclasses.replace(MUTATION, detected=False)}, "(document-encrypted) noticed nothing"),
        ({"drill": dataclasses.replace(drill(), odoo_checks=0)}, "nothing was asked of what Odoo"),
        ({"drill": dataclasses.replace(drill(), neutral=None)}, "it could have sent mail"),
        (neutral(scripts=()), "the script of no module was run"),
        (neutral(mails_held=0), "no queued mail was held"),
        (neutral(mail_servers_off=0), "no mail server was switched off"),
        (neutral(scheduled_actions_off=0), "no scheduled action was switched off"),
        (neutral(questions=0), "nobody asked"),
        (neutral(production_is_as_it_was=False), "has changed production"),
        (host_loss(unwanted=("x", "y")), "2 orders outlived the machine"),
        (host_loss(entered=0), "its loss proves nothing"),
        (consistent(dangling=("x",), told_missing=1), "1 rows of the consistent copy are without their document: x"),
        (consistent(told_missing=1), "to consistent counts 1 documents missing, 0 rows have none"),
        (consistent(unwanted=("x",)), "the consistent copy has what must not be: x"),
        (document_loss(filed=0), "its loss proves nothing"),
        (document_loss(unwanted=("x",)), "1 documents outlived the machine that must not be: x"),
        (document_loss(told_missing=2), "counts 2 documents missing and 0 corrupt, 3 rows have none"),
        (document_loss(dangling=("d",)), "counts 3 documents missing and 0 corrupt, 1 rows have none"),
        (document_loss(told_corrupt=1), "counts 3 documents missing and 1 corrupt"),
        (document_loss(behind_seconds=None), "nobody had looked at all documents"),
        (host_loss(clone=CloneFacts(commit="5f3c", recovered="77aa", has_edits=True)), "at 5f3c, and is at 77aa"),
        (host_loss(clone=CloneFacts(commit="5f3c", recovered=None, has_edits=True)), "is at None"),
        (host_loss(clone=CloneFacts(commit="5f3c", recovered="5f3c", has_edits=False)), "without what was edited"),
        ({"evidence": dataclasses.replace(EVIDENCE, verified=False, told="step 4: no")}, "does not verify: step 4: no"),
        ({"evidence": dataclasses.replace(EVIDENCE, anchored=7)}, "2 of 9 records are not anchored"),
        ({"evidence": dataclasses.replace(EVIDENCE, report_bytes=0)}, "empty report.pdf"),
    ],
)
def test_each_problem_fails_the_run(change: dict[str, object], words: str) -> None:
    seen = dataclasses.replace(facts(), **change)  # type: ignore[arg-type]  # the cases name their fields
    problems = problems_of(seen)
    assert len(problems) == 1
    assert words in problems[0]
    assert document(seen, problems, seconds=3.0, kept=None, evidence=None)["state"] == "failed"
    told = [
        "".join(p if isinstance(p, str) else p.text for p in line)
        for line in report(seen, problems, blocks=True, seconds=3)
    ]
    assert any(words in line for line in told)
    assert told[-1].startswith("FAILED")


@pytest.mark.parametrize(
    "change",
    [
        {"rto_promised_seconds": 1.9},
        {"rpo_promised_seconds": 1.4},
        {"documents": dataclasses.replace(documents(), rpo_promised_seconds=3.9)},
        host_loss(lost_seconds=1.1),
        document_loss(lost_seconds=5.1),
        document_loss(behind_seconds=5.1),
        consistent(lost_seconds=5.1),
    ],
)
def test_a_promise_that_is_not_kept_is_a_breach(change: dict[str, object]) -> None:
    seen = dataclasses.replace(facts(), **change)  # type: ignore[arg-type]  # the cases name their fields
    assert seen.breached()
    assert document(seen, (), seconds=3.0, kept=None, evidence=None)["state"] == "breached"


def test_the_effective_rpo_is_the_larger_loss_of_the_two_halves_of_the_service() -> None:
    answer = document(facts(), (), seconds=3.0, kept=None, evidence=None)["host_loss"]
    assert isinstance(answer, dict)
    assert (answer["lost_seconds"], answer["documents_lost_seconds"], answer["effective_rpo_seconds"]) == (
        0.2,
        1.5,
        1.5,
    )
    assert answer["clone"] == {"commit": "5f3c", "recovered": "5f3c", "edits_recovered": True}
    orders = dataclasses.replace(facts(), **host_loss(lost_seconds=1.9))  # type: ignore[arg-type]  # as above
    assert orders.host_loss.effective_rpo_seconds == 1.9


def test_without_git_no_clone_is_promised_and_none_is_missed() -> None:
    seen = dataclasses.replace(facts(), **host_loss(clone=None))  # type: ignore[arg-type]  # as above
    assert problems_of(seen) == ()
    assert "clone" not in "\n".join(str(line) for line in report(seen, (), blocks=False, seconds=3))
    answer = document(seen, (), seconds=3.0, kept=None, evidence=None)["host_loss"]
    assert isinstance(answer, dict)
    assert answer["clone"] is None


def test_what_is_wrong_with_the_proof_is_also_in_the_table_in_words() -> None:
    seen = dataclasses.replace(
        facts(),
        drill=dataclasses.replace(drill(), passed=False, checks_passed=15, neutral=None),
        mutation=dataclasses.replace(MUTATION, detected=False),
        evidence=dataclasses.replace(EVIDENCE, verified=False),
    )
    told = "\n".join(str(line) for line in report(seen, problems_of(seen), blocks=False, seconds=3))
    for words in ("15 of 16 checks", "FAILED", "NOT HELD", "NOT NOTICED", "NOT VERIFIED"):
        assert words in told


def test_the_picture_shows_where_the_recovered_orders_end() -> None:
    entered = [at(second) for second in range(20)]
    rows = picture(
        moments=[Moment(mark="T", at=at(9), text="target")],
        entered=entered,
        recovered=entered[:10],
        used=(at(2), at(9)),
        width=20,
        blocks=False,
    )
    assert rows == [
        "orders entered    ####################",
        "snapshot and WAL    =======|",
        "orders recovered  ##########",
        "                           T",
    ]
