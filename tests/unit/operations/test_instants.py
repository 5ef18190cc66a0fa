"""Up to which instant a drill may choose: that of a look which found every document."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

from drservice.model.documents import StoredSet
from drservice.model.estate import Service
from drservice.model.ids import ServiceName, SnapshotId, SystemId
from drservice.model.snapshot import FilesFacts, SnapshotRecord, SnapshotState
from drservice.operations.instants import _covered_until
from drservice.operations.restorerequest import RestoreContext
from tests.doubles.repositories import SYSTEM_ID
from tests.unit.operations.test_sharedinstant import Held, filestore, held, walked


def covered(*passes: SnapshotRecord, sets: tuple[StoredSet, ...] = ()) -> object:
    component = filestore()
    service = Service(name=ServiceName("erp"), components={component.name: component})
    context = SimpleNamespace(repository=Held(passes=passes, sets=sets))
    return _covered_until(cast("RestoreContext", context), service, SYSTEM_ID)


def a_day_later(record: SnapshotRecord) -> FilesFacts:
    """Return what a pass tells that began a day later."""
    return replace(record.documents, walk_began_at=record.documents.walk_began_at + timedelta(days=1))


def test_the_newest_look_that_found_everything_covers_instants_and_no_partial_pass_does() -> None:
    whole = walked()
    later = replace(whole, id=SnapshotId("LATER"), facts=a_day_later(whole), state=SnapshotState.PARTIAL)
    assert covered(whole, later) == whole.documents.walk_began_at
    assert covered(later) is None
    proven = held(900)
    assert covered(whole, later, sets=(proven,)) == max(whole.documents.walk_began_at, proven.looked_at)


def test_a_set_about_the_rows_of_another_cluster_covers_nothing_of_this_one() -> None:
    whole, foreign = walked(), held(900, system=SystemId("7"))
    assert foreign.looked_at > whole.documents.walk_began_at
    assert covered(whole, sets=(foreign,)) == whole.documents.walk_began_at
