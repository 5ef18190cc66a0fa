"""Retention on a store: what it deletes, in which order, beside backups and restores, and killed at any call."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.errors import (
    LogKeyError,
    PacksUnknownError,
    ProofUnknownError,
    StoreDeniedError,
    StoreUnreachableError,
)
from drservice.evidence.statements import Statement
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import make_ulid
from drservice.model.retention import Kept
from drservice.model.wal import Timeline, segment_name
from drservice.objectstore.interface import ObjectStore
from drservice.operations.holding import held
from drservice.operations.progress import SilentProgress
from drservice.operations.proofs import proofs_of
from drservice.operations.prune import mark_packs
from drservice.operations.retention import RetentionState
from drservice.operations.retentionrecord import apply_retention, run_prune
from drservice.repository.holds import place_hold
from tests.doubles.repositories import flipped, new_host
from tests.doubles.retained import SEGMENT, RetainedService
from tests.doubles.stores import Fault, FaultyStore, RecordingStore, When
from tests.faults.triggers import TriggerStore


@pytest.fixture
def service(tmp_path: Path) -> RetainedService:
    """Four snapshots: forty, thirty and twenty days old, and one of an hour ago; WAL from segment 5 on."""
    made = RetainedService.create(tmp_path)
    made.wal(*range(5, 10))
    for segment in (10, 20, 30):
        made.night(segment=segment, pause_days=10)
        made.wal(segment + 5)
    made.clock.pass_seconds(10 * 86400)
    made.night(segment=40, pause_days=1 / 24)
    return made


@contextmanager
def restoring(service: RetainedService) -> Iterator[None]:
    """A restore that runs."""
    site = service.site
    with held(site.repository(), site.scope, clock=service.clock, progress=SilentProgress()):
        yield


class Meddling:
    """A store on which something happens at the first deletion of a key that contains a part."""

    def __init__(self, inner: ObjectStore, part: str, happens: object) -> None:
        self._inner, self._part, self._happens = inner, part, happens

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def delete(self, key: str) -> None:
        if self._part in key and callable(self._happens):
            happens, self._happens = self._happens, None
            happens()
        self._inner.delete(key)


class Locked:
    """A store that does not let go of keys that contain a part."""

    def __init__(self, inner: ObjectStore, part: str) -> None:
        self._inner, self._part = inner, part

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def delete(self, key: str) -> None:
        if self._part in key:
            raise StoreDeniedError(f"{key} is locked")
        self._inner.delete(key)


def test_a_plan_changes_nothing_and_gives_a_reason_for_everything(service: RetainedService) -> None:
    before = service.site.sizes()
    outcome = service.inspect()
    assert service.site.sizes() == before
    assert [verdict.kept for _, verdict in outcome.plan.snapshots] == [None, None, None, Kept.WITHIN]
    assert all(verdict.reason for _, verdict in (*outcome.plan.snapshots, *outcome.plan.points))
    assert len(outcome.plan.expired_points) == 3
    (wal,) = outcome.wal
    assert [int(file.name.name[-8:], 16) for file in wal.plan.expired] == [*range(5, 11), 15, 20, 25, 30, 35]


def test_points_snapshots_and_wal_go_and_packs_keys_and_the_ledger_stay(service: RetainedService) -> None:
    others = [key for key in service.listing() if not any(part in key for part in ("/points/", "/snapshots/", "/wal/"))]
    outcome = service.apply()
    assert outcome.state is RetentionState.APPLIED
    assert outcome.removed is not None
    assert (len(outcome.removed.points), len(outcome.removed.snapshots), len(outcome.removed.wal)) == (3, 3, 11)
    assert service.segments() == [40]
    assert [len(service.listing(part)) for part in ("/points/", "/snapshots/")] == [1, 1]
    assert [key for key in service.listing() if key in others] == others
    assert service.apply().removed == type(outcome.removed)()


def test_the_snapshot_that_was_proved_last_survives_with_its_wal(service: RetainedService, tmp_path: Path) -> None:
    proved = service.site.repository().snapshots(service.site.scope).records[1]
    service.proved(service.site.repository().snapshots(service.site.scope).records[0])
    service.proved(proved)
    outcome = service.apply()
    left = service.site.repository().snapshots(service.site.scope).records
    assert [record.id for record in left] == [proved.id, left[-1].id]
    assert outcome.plan.snapshots[1][1].kept is Kept.VERIFIED
    assert service.segments() == [20, 25, 30, 35, 40]
    assert service.site.restore(proved.id, tmp_path / "restored")


def test_what_failed_or_was_meant_to_fail_proves_nothing(service: RetainedService) -> None:
    records = service.site.repository().snapshots(service.site.scope).records
    service.proved(records[0])
    service.proved(records[1], outcome="failed")
    service.drilled(records[2], outcome="failed")
    service.drilled(records[2], mutation="drop-rows")
    outcome = service.inspect()
    assert outcome.proofs.last == {records[0].id}
    service.drilled(records[1])
    assert service.inspect().proofs.last == {records[0].id, records[1].id}, "the last drill, and the last restore"


@pytest.mark.parametrize("spoil", ["keep", "remove", "garbage", "of another ledger", "of a longer ledger"])
def test_proofs_are_read_once_and_a_spoilt_memory_of_them_loses_none(service: RetainedService, spoil: str) -> None:
    records = service.site.repository().snapshots(service.site.scope).records
    service.proved(records[0])
    service.drilled(records[1])
    assert service.inspect().proofs.last == {records[0].id, records[1].id}
    memory = service.evidence().ledger.memory("notes")
    content = json.loads(memory.read_text())
    assert content["size"] == service.evidence().ledger.size()
    match spoil:
        case "remove":
            memory.unlink()
        case "garbage":
            memory.write_text('{"size": ')
        case "of another ledger":
            memory.write_text(json.dumps({**content, "tail": "0" * 64, "services": {}}))
        case "of a longer ledger":
            memory.write_text(json.dumps({**content, "size": 1000, "services": {}}))
    asked = RecordingStore(service.site.store)
    found = proofs_of(
        service.site.repository(), service.evidence(asked), service.service, state_dir=service.site.state_dir
    )
    assert found.last == {records[0].id, records[1].id}
    entries = [key for name, key in asked.calls if name == "read_versions" and key.startswith("ledger/0")]
    assert len(entries) == (1 if spoil == "keep" else content["size"] + (spoil == "of another ledger"))


def test_a_ledger_that_cannot_be_read_stops_everything(service: RetainedService) -> None:
    service.proved(service.site.repository().snapshots(service.site.scope).records[0])
    entry = max(service.listing("ledger/"))
    service.site.replace(entry, flipped(40))
    before = service.listing()
    with pytest.raises(ProofUnknownError):
        service.apply()
    assert service.listing() == before


@pytest.mark.parametrize("damage", [flipped(200), lambda data: data[:50], lambda _: b"nothing"])
def test_an_unreadable_snapshot_keeps_everything_it_may_need(service: RetainedService, damage: object) -> None:
    assert callable(damage)
    service.site.replace(service.listing("/snapshots/")[1], damage)
    before = service.listing()
    outcome = service.apply()
    assert outcome.state is RetentionState.BLOCKED
    assert service.listing() == before
    assert len(outcome.unreadable) == 1


def test_a_point_by_a_stranger_keeps_everything_it_may_need(service: RetainedService) -> None:
    archive = service.site.repository().points(service.service.name)
    newest = archive.listing().points[-1]
    archive.publish(
        newest.members,
        at=newest.at,
        state=newest.state,
        secret={},
        signer=new_host("stranger"),
        now=service.clock.now(),
    )
    before = service.listing("/snapshots/") + service.listing("/points/")
    outcome = service.apply()
    assert outcome.state is RetentionState.BLOCKED
    assert {verdict.kept for _, verdict in outcome.plan.snapshots} == {Kept.UNREADABLE}
    assert service.listing("/snapshots/") + service.listing("/points/") == before
    assert service.segments()[0] == 10, "whatever point it is, none of its snapshots needs older WAL"


# --- beside other work -------------------------------------------------------------------------------------------


def test_nothing_goes_while_a_restore_runs_and_everything_after_it(service: RetainedService) -> None:
    with restoring(service):
        before = service.listing()
        assert service.apply().state is RetentionState.HELD
        assert service.listing() == before
    assert service.listing("hold/") == [key for key in before if key.startswith("hold/")][:-1]
    assert service.apply().state is RetentionState.APPLIED


def test_a_restore_that_begins_while_snapshots_go_keeps_all_wal(service: RetainedService) -> None:
    site = service.site

    def begin() -> None:
        now = service.clock.now()
        place_hold(site.store, site.host, site.scope, purpose="restore", now=now, until=now + timedelta(hours=24))

    segments = service.segments()
    outcome = service.apply(Meddling(site.store, "/snapshots/", begin))  # type: ignore[arg-type]  # by __getattr__
    assert outcome.state is RetentionState.HELD
    assert service.segments() == segments
    assert len(service.listing("/snapshots/")) == 1
    service.clock.pass_seconds(25 * 3600)
    assert service.apply().state is RetentionState.APPLIED
    assert service.segments() == [40]


def test_a_restore_that_begins_while_retention_plans_keeps_everything(service: RetainedService) -> None:
    site = service.site

    def begin(_: str) -> None:
        now = service.clock.now()
        place_hold(site.store, site.host, site.scope, purpose="restore", now=now, until=now + timedelta(hours=24))

    before = [key for key in service.listing() if not key.startswith("hold/")]
    with TriggerStore(site.store, begin, operations=["list"], part="/wal/") as store:
        assert service.apply(store).state is RetentionState.HELD
    assert [key for key in service.listing() if not key.startswith("hold/")] == before


def test_a_hold_that_cannot_be_read_holds_for_two_days_and_no_longer(service: RetainedService) -> None:
    service.site.store.create(f"hold/{make_ulid(service.clock.now(), bytes(10))}", b"nobody signed this")
    assert service.apply().state is RetentionState.HELD
    service.clock.pass_seconds(49 * 3600)
    assert service.apply().state is RetentionState.APPLIED


def test_a_restore_without_the_right_to_write_is_told_and_goes_on(service: RetainedService) -> None:
    notes: list[str] = []

    class Noting(SilentProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    denied = FaultyStore(
        service.site.store, Fault(operations=frozenset({"create"}), at=1, when=When.BEFORE, error=StoreDeniedError)
    )
    with (
        denied,
        held(service.site.repository(store=denied), service.site.scope, clock=service.clock, progress=Noting()),
    ):
        assert service.apply().state is RetentionState.APPLIED, "nobody told retention"
    assert len(notes) == 1


def test_a_backup_that_runs_while_retention_does_is_whole(service: RetainedService, tmp_path: Path) -> None:
    service.wal(50)
    with service.begun() as writer:
        assert service.apply().state is RetentionState.APPLIED
        record = service.commit(writer, segment=50)
    assert service.segments() == [40, 50]
    restored = service.site.restore(record.id, tmp_path / "restored")
    assert restored == {
        str(path.relative_to(service.site.source)): path.read_bytes()
        for path in service.site.source.rglob("*")
        if path.is_file()
    }


def test_wal_that_a_snapshot_needs_which_is_committed_meanwhile_stays(service: RetainedService) -> None:
    """An older snapshot that appears (from a copy, say) while retention runs is seen before any WAL goes."""
    site = service.site
    (oldest, *_) = service.listing("/snapshots/")
    body = site.store.read(oldest)
    appearing = Meddling(site.store, service.listing("/snapshots/")[2], lambda: site.store.create(oldest, body))
    service.apply(appearing)  # type: ignore[arg-type]  # the rest by __getattr__
    assert oldest in service.listing("/snapshots/")
    assert service.segments()[0] == 10


# --- interrupted, refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", list(When))
def test_cut_off_at_any_deletion_it_leaves_nothing_broken_and_the_next_run_does_the_rest(
    tmp_path: Path, when: When
) -> None:
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        service = RetainedService.create(folder)
        service.wal(1, 2)
        service.night(segment=3, pause_days=30)
        service.night(segment=4)
        cut = FaultyStore(
            service.site.store,
            Fault(operations=frozenset({"delete"}), at=at, when=when, error=StoreUnreachableError),
        )
        try:
            service.apply(cut)
        except StoreUnreachableError:
            pass
        else:
            assert at == 6, "a point, a snapshot, and segments 1 to 3"
            break
        listing = service.site.repository().snapshots(service.site.scope)
        assert not listing.unreadable
        known = {record.id for record in listing.records}
        points = service.site.repository().points(service.service.name).listing().points
        assert {member.snapshot for point in points for member in point.members} <= known
        assert (
            min(record.postgres.start_lsn.segment_number(SEGMENT) for record in listing.records) in service.segments()
        )
        assert service.apply().state is RetentionState.APPLIED
        assert service.segments() == [4]
        assert len(service.listing("/snapshots/")) == len(service.listing("/points/")) == 1


def test_a_locked_point_keeps_its_snapshot_and_a_locked_snapshot_its_wal(service: RetainedService) -> None:
    point, snapshot = service.listing("/points/")[0], service.listing("/snapshots/")[1]
    outcome = service.apply(Locked(service.site.store, point))  # type: ignore[arg-type]  # the rest by __getattr__
    assert outcome.state is RetentionState.REFUSED
    assert outcome.removed is not None
    assert list(outcome.removed.refused) == [point]
    assert len(service.listing("/snapshots/")) == 2, "the one it binds and the newest"
    assert service.segments()[0] == 10
    assert snapshot not in service.listing()


def test_anomalies_stop_the_deletion_until_a_person_has_looked(service: RetainedService) -> None:
    service.wal(60)
    with service.begun() as writer:
        record = service.commit(writer, segment=60, ahead_days=400)
    before = service.listing()
    outcome = service.apply()
    assert outcome.state is RetentionState.FROZEN
    assert service.listing() == before
    assert service.apply(accepted=True).state is RetentionState.APPLIED
    assert any(record.id in key for key in service.listing("/snapshots/")), "young: it expires in its time"


# --- packs -------------------------------------------------------------------------------------------------------


def test_prune_marks_packs_of_expired_snapshots_once_they_are_old_and_deletes_none(service: RetainedService) -> None:
    (before,) = mark_packs(service.site.repository(), service.service, progress=SilentProgress())
    assert (before.unused, before.waiting, before.snapshots) == ((), 0, 4)
    service.apply()
    keys = service.listing()
    (after,) = mark_packs(service.site.repository(), service.service, progress=SilentProgress())
    assert service.listing() == keys
    assert after.snapshots == 1
    assert {info.key for info in after.unused} < set(service.listing("/packs/") + service.listing("/nodes/"))
    assert len(after.unused) == 3, "the trees of three snapshots; their files are in the newest one too"
    assert after.unused_bytes == sum(service.site.sizes()[info.key] for info in after.unused)


def test_prune_waits_a_week_for_packs_of_a_run_that_did_not_commit(service: RetainedService) -> None:
    killed = FaultyStore(service.site.store, Fault(operations=frozenset({"create"}), at=5))
    with pytest.raises(StoreUnreachableError), killed, service.begun(killed) as writer:
        service.commit(writer, segment=50)
    (young,) = mark_packs(service.site.repository(), service.service, progress=SilentProgress())
    assert (young.unused, young.waiting) == ((), 2)
    service.clock.pass_seconds(8 * 86400)
    (old,) = mark_packs(service.site.repository(), service.service, progress=SilentProgress())
    assert (len(old.unused), old.waiting) == (2, 0)


def test_prune_says_nothing_while_a_snapshot_cannot_be_read(service: RetainedService) -> None:
    service.site.replace(service.listing("/snapshots/")[0], flipped(200))
    with pytest.raises(PacksUnknownError):
        mark_packs(service.site.repository(), service.service, progress=SilentProgress())


def test_repaired_copies_and_other_timelines_are_judged_by_position(service: RetainedService) -> None:
    name = segment_name(Timeline(1), 7, SEGMENT)
    (key,) = service.listing(name)
    service.site.store.create(f"{key}.r{make_ulid(service.clock.now() - timedelta(days=30), bytes(10))}", b"copy")
    service.clock.pass_seconds(8 * 86400)
    service.wal(3, timeline=2)
    service.clock.pass_seconds(3 * 86400)
    service.apply()
    assert not service.listing(name)
    assert service.segments() == [40, 3], "what arrived three days ago stays, wherever it lies"


# --- what is put on record ----------------------------------------------------------------------------------


def records(service: RetainedService) -> list[Statement]:
    """Return what retention has put on record, oldest first."""
    statements = (entry.signed.statement for entry in service.evidence().ledger.entries())
    return [statement for statement in statements if statement.kind is EvidenceKind.RETENTION]


def test_what_went_and_what_stayed_is_on_record_with_its_plan(service: RetainedService) -> None:
    old = service.night(segment=10, pause_days=20)
    service.proved(old)
    service.night(segment=11, pause_days=20)
    service.night(segment=12)
    outcome = service.apply()
    (statement,) = records(service)
    said = statement.predicate
    assert (said["outcome"], said["action"], said["refused"], said["error"]) == ("applied", "retention", 0, None)
    assert outcome.removed is not None
    assert said["removed"] == {
        "points": len(outcome.removed.points),
        "snapshots": len(outcome.removed.snapshots),
        "wal_files": len(outcome.removed.wal),
        "wal_bytes": outcome.removed.wal_bytes,
    }
    assert outcome.removed.snapshots
    assert said["last_verified"] == [{"component": "database", "snapshot": old.id}]
    assert {"by": "last verified", "snapshots": 1} in said["kept"]  # type: ignore[operator]  # a list, by its schema
    plan, artefact = statement.subject
    assert (plan.name, plan.sha256) == ("plan/retention", said["plan"]) == ("plan/retention", artefact.sha256)
    enclosed = json.loads(service.evidence().ledger.artefact(artefact.sha256))
    assert [item["id"] for item in enclosed["snapshots"] if item["kept"] is None] == [
        key.rsplit("/", 1)[-1] for key in outcome.removed.snapshots
    ]
    assert outcome.record is not None
    assert service.evidence().ledger.entry(outcome.record).signed.statement == statement


def test_a_run_that_the_store_cut_off_is_on_record_with_what_had_gone(service: RetainedService) -> None:
    for segment in (10, 11, 12):
        service.night(segment=segment, pause_days=20)
    cut_off = FaultyStore(service.site.store, Fault(at=2, operations=["delete"]))
    with pytest.raises(StoreUnreachableError):
        service.apply(cut_off)
    (statement,) = records(service)
    said = statement.predicate
    assert (said["outcome"], said["error"]["code"]) == ("failed", StoreUnreachableError.code)  # type: ignore[index,call-overload]  # an object, by its schema
    assert said["removed"]["points"] == 1  # type: ignore[index,call-overload]  # as above


def test_a_host_that_can_sign_nothing_deletes_nothing(service: RetainedService) -> None:
    for segment in (10, 11, 12):
        service.night(segment=segment, pause_days=20)
    before = service.listing()
    context = service.context()
    mute = replace(context, evidence=replace(context.evidence, problem="nobody knows its key"))
    with pytest.raises(LogKeyError, match="nobody knows its key"):
        apply_retention(mute, service.service)
    assert service.listing() == before


def test_a_record_that_the_ledger_does_not_take_is_kept_aside_and_appended_later(service: RetainedService) -> None:
    for segment in (10, 11, 12):
        service.night(segment=segment, pause_days=20)
    context = service.context()
    away = FaultyStore(service.site.store, Fault(at=1, operations=["create"], times=100))
    evidence = replace(service.evidence(away), problem=None)
    outcome = apply_retention(replace(context, evidence=evidence), service.service)
    assert (outcome.state, outcome.record) == (RetentionState.APPLIED, None)
    assert not records(service)
    service.evidence().ledger.flush_pending()
    (statement,) = records(service)
    assert statement.is_kept_aside


def test_marked_packs_are_on_record_and_nothing_else(service: RetainedService) -> None:
    service.night(segment=10, pause_days=20)
    service.night(segment=11, pause_days=20)
    service.apply()
    service.clock.pass_seconds(8 * 86400)
    found = run_prune(service.site.repository(), service.evidence(), service.service, progress=SilentProgress())
    said = records(service)[-1].predicate
    assert (said["action"], said["outcome"]) == ("prune", "marked")
    assert said["planned"]["packs"] == sum(len(item.unused) for item in found) > 0  # type: ignore[index,call-overload]  # an object, by its schema
    assert not any(said["removed"].values())  # type: ignore[union-attr]  # as above
