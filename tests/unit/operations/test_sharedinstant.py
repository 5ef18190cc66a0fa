"""The newest instant that rows and documents share: what counts as a look, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from drservice.errors import DocumentsUnprovenError
from drservice.model.documents import Look, StoredSet
from drservice.model.estate import ComponentSettings, FilesKind, FilesSettings, PostgresSettings, Service
from drservice.model.ids import ComponentName, PointId, ServiceName, SnapshotId, SystemId
from drservice.model.points import PointState, RecoveryPoint, member_of
from drservice.model.snapshot import FilesFacts, SnapshotRecord, SnapshotState
from drservice.model.wal import Timeline, timeline_path
from drservice.operations.sharedinstant import Ends, Proven, Shared, followers, shared_along
from drservice.repository.repository import Repository
from tests.doubles.repositories import SYSTEM_ID
from tests.unit.model.test_documents import NOON, taken
from tests.unit.model.test_recovery import at, snapshot

CLUSTER = snapshot("CLUSTER", 2.5, 3.5)
OTHER = SystemId("8")
PATH = timeline_path(Timeline(1), ())


def filestore(name: str = "documents", *, database: str = "erp", follows: str = "database") -> FilesSettings:
    return FilesSettings(
        name=ComponentName(name),
        kind=FilesKind.ODOO_FILESTORE,
        path=Path("/f"),
        database=database,
        follows=ComponentName(follows),
    )


def held(segment: float, *, whole: bool = True, system: SystemId = SYSTEM_ID, timeline: int = 1) -> StoredSet:
    made = taken(seconds=segment, lsn=at(segment).value, whole=whole, timeline=timeline)
    return replace(made, position=replace(made.position, system_id=system), stored_at=NOON + timedelta(minutes=1))


def walked(state: SnapshotState = SnapshotState.COMPLETE) -> SnapshotRecord:
    facts = FilesFacts(
        walk_began_at=CLUSTER.stopped_at + timedelta(seconds=3),
        referred=None,
        missing=0,
        corrupt=0,
        foreign=0,
        vanished=0,
        unreadable=0,
        left_out=0,
    )
    name, kind = ComponentName("documents"), FilesKind.ODOO_FILESTORE.value
    return replace(CLUSTER, id=SnapshotId("PASS"), component=name, kind=kind, state=state, facts=facts)


@dataclass(kw_only=True)
class Held:
    """What a repository has; counts how often points are listed."""

    sets: Sequence[StoredSet] = ()
    passes: Sequence[SnapshotRecord] = ()
    bound: Sequence[SnapshotRecord] = ()
    listed: int = 0

    def proven(self, *components: FilesSettings) -> Shared | None:
        service = Service(name=ServiceName("erp"))
        repository = cast("Repository", self)
        return shared_along(repository, service, components, [CLUSTER], system_id=SystemId(SYSTEM_ID), path=PATH)

    def look(self) -> Look | None:
        shared = self.proven(filestore())
        assert shared is not None
        return shared.look

    # --- as a repository ------------------------------------------------------------------------------------

    def scope(self, service: str, component: str) -> tuple[str, str]:
        return (service, component)

    def document_sets(self, scope: tuple[str, str]) -> object:
        own = [item for item in self.sets if scope[1] == "documents" or item.documents == 2]

        def newest(*, fits: Callable[[StoredSet], bool]) -> StoredSet | None:
            return next((item for item in own if item.is_whole and fits(item)), None)

        return SimpleNamespace(newest=newest)

    def points(self, _: str) -> object:
        self.listed += 1
        members = tuple(member_of(record) for record in self.bound)
        point = RecoveryPoint(
            id=PointId("POINT"), service=ServiceName("erp"), host="db1", at=NOON, state=PointState.COMPLETE,
            members=members,
        )  # fmt: skip
        return SimpleNamespace(listing=lambda: SimpleNamespace(points=(point,) if members else ()))

    def snapshots(self, _: tuple[str, str]) -> object:
        return SimpleNamespace(records=tuple(self.passes))


def test_a_whole_set_proves_its_position_and_no_point_is_asked_that_could_not_lead_further() -> None:
    repository = Held(sets=[held(4.5), held(4)], passes=[walked()], bound=[CLUSTER, walked()])
    assert repository.look() == Look(
        timeline=Timeline(1), lsn=at(4.5), at=NOON + timedelta(seconds=4.5), by=held(4.5).id
    )
    assert repository.listed == 0


@pytest.mark.parametrize(
    "other", [held(5, whole=False), held(5, system=OTHER), held(5, timeline=2)], ids=["partly", "cluster", "branch"]
)
def test_a_set_that_compared_nothing_or_belongs_elsewhere_is_passed_over(other: StoredSet) -> None:
    found = Held(sets=[other, held(4.5)]).look()
    assert found is not None
    assert found.lsn == at(4.5)


def test_a_pass_proves_the_end_of_the_snapshot_that_its_point_binds_it_to() -> None:
    repository = Held(sets=[held(3)], passes=[walked()], bound=[CLUSTER, walked()])
    assert repository.look() == Look(timeline=Timeline(1), lsn=at(3.5), at=CLUSTER.stopped_at, by="PASS")


@pytest.mark.parametrize("passes", [(), (walked(SnapshotState.PARTIAL),)], ids=["gone", "partial"])
def test_a_pass_that_is_gone_or_could_not_read_everything_proves_nothing(passes: Sequence[SnapshotRecord]) -> None:
    assert Held(passes=passes, bound=[CLUSTER, walked()]).look() is None
    unbound = Held(passes=[walked()], bound=[walked()])
    assert unbound.look() is None, "of which position, nobody says"


def test_of_several_filestores_the_least_counts_and_one_without_a_look_is_named() -> None:
    second = filestore("archive")
    both = Held(sets=[held(5), replace(held(4), documents=2)]).proven(filestore(), second)
    assert both is not None
    assert both.required().lsn == at(4)
    lacking = Held(sets=[held(5)]).proven(filestore(), second)
    assert lacking is not None
    with pytest.raises(DocumentsUnprovenError, match="documents of archive"):
        lacking.required()


def test_filestores_that_follow_another_cluster_or_database_are_not_asked() -> None:
    clusters = [PostgresSettings(name=ComponentName(name), dsn="host=x") for name in ("database", "b")]
    own, other, away = filestore(), filestore("second", database="crm"), filestore("away", follows="b")
    components: list[ComponentSettings] = [*clusters, own, other, away]
    service = Service(name=ServiceName("erp"), components={item.name: item for item in components})
    assert followers(service, clusters[0]) == [own, other]
    assert followers(service, clusters[0], "crm") == [other]
    assert Held().proven() is None


# --- what is said -----------------------------------------------------------------------------------------------


def ends(segment: float | None, *, seconds: float = 2.0) -> Ends:
    """Documents proven so many seconds before the end of the WAL at 5."""
    proven = Look(timeline=Timeline(1), lsn=at(segment), at=NOON, by="SET") if segment is not None else None
    shared = Shared(proven=(Proven(component=ComponentName("documents"), look=proven),))
    return Ends(shared=shared, wal_end=at(5), written_at=NOON + timedelta(seconds=seconds))


def test_what_the_latest_position_may_lack_is_told_with_the_target_that_lacks_nothing() -> None:
    told = ends(4.5).describe_latest()
    assert told is not None
    assert "2026-03-01T12:00:00.000000Z, 2.00 s before the end of the WAL" in told
    assert told.endswith("--to consistent")
    unknown = ends(None).describe_latest()
    assert unknown is not None
    assert "any of them may be missing" in unknown
    assert "consistent" not in unknown


@pytest.mark.parametrize("found", [ends(5), ends(6), ends(4.9, seconds=-3)])
def test_where_documents_reach_the_end_of_the_wal_nothing_is_told(found: Ends) -> None:
    assert found.describe_latest() is None
    assert found.behind_seconds == 0


def test_what_both_share_never_lies_behind_the_wal() -> None:
    ahead = ends(6, seconds=-0.5).as_document()
    assert (ahead["lsn"], ahead["at"]) == (str(at(5)), "2026-03-01T11:59:59.500000Z"), "documents are ahead of it"
    assert ends(4.5).as_document() == {
        "lsn": str(at(4.5)),
        "timeline": 1,
        "at": "2026-03-01T12:00:00.000000Z",
        "wal_end_lsn": str(at(5)),
        "wal_end_at": "2026-03-01T12:00:02.000000Z",
        "behind_seconds": 2.0,
        "documents": [
            {"component": "documents", "lsn": str(at(4.5)), "at": "2026-03-01T12:00:00.000000Z", "by": "SET"}
        ],
    }
    assert ends(None).as_document()["behind_seconds"] is None
