"""Retention of documents on a store: passes and sets go when no instant needs them, judged by what is left then."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from drservice.errors import StoreDeniedError
from drservice.model.documents import StoredSet
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName
from drservice.model.points import instant_of, member_of, state_of
from drservice.model.retention import Kept, Period, RetentionPolicy
from drservice.model.snapshot import SnapshotRecord
from drservice.objectstore.interface import ObjectStore
from drservice.operations.retention import RetentionState
from drservice.operations.retentionresult import retention_document
from tests.doubles.filestores import Filestore
from tests.doubles.retained import DAY_SECONDS, RetainedService
from tests.integration.filestore.test_placing_sets import put

HOUR_SECONDS = 3600
NIGHTS = 12


@dataclass(kw_only=True)
class Documented(RetainedService):
    """A service with a filestore beside the cluster: every night a point of both, at noon a set."""

    clusters: list[SnapshotRecord] = field(default_factory=list)
    passes: list[SnapshotRecord] = field(default_factory=list)
    sets: list[StoredSet] = field(default_factory=list)

    @property
    def service(self) -> Service:
        base = super().service
        documents = FilesSettings(
            name=ComponentName("documents"),
            kind=FilesKind.ODOO_FILESTORE,
            path=self.site.source,
            database="erp",
            follows=ComponentName("database"),
        )
        return replace(base, components={**base.components, documents.name: documents})

    def both(self, number: int) -> None:
        """Take a set, half a day later a cluster's snapshot and a pass, publish their point; half a day passes."""
        filestore = Filestore(site=self.site)
        self.sets.append(put(filestore, [b"document %d" % number]))
        self.clock.pass_seconds(DAY_SECONDS / 2)
        self.wal(number + 10)
        with self.begun() as writer:
            self.clusters.append(self.commit(writer, segment=number + 10))
        self.clock.pass_seconds(HOUR_SECONDS)
        record, _ = filestore.capture(referred={})
        self.passes.append(record)
        members = [member_of(self.clusters[-1]), member_of(record)]
        repository = self.site.repository()
        repository.points(self.service.name).publish(
            members,
            at=instant_of(members),
            state=state_of(members),
            secret={},
            signer=repository.host_key,
            now=self.clock.now(),
        )
        self.clock.pass_seconds(DAY_SECONDS / 2 - HOUR_SECONDS)

    def left(self) -> tuple[list[int], list[int], list[int]]:
        """Return which nights' cluster snapshots, passes and sets are left."""
        keys = set(self.site.sizes())
        return (
            [n for n, item in enumerate(self.clusters) if f"s/erp/database/snapshots/{item.id}" in keys],
            [n for n, item in enumerate(self.passes) if f"s/erp/documents/snapshots/{item.id}" in keys],
            [n for n, item in enumerate(self.sets) if item.key in keys],
        )


class Clinging:
    """A store that does not let go of one object."""

    def __init__(self, inner: ObjectStore, key: str) -> None:
        self._inner, self._key = inner, key

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def delete(self, key: str) -> None:
        if key == self._key:
            raise StoreDeniedError(f"{key} is locked")
        self._inner.delete(key)


@pytest.fixture
def service(tmp_path: Path) -> Documented:
    """Twelve nights; the policy keeps what is younger than four days: nights 8 to 11."""
    made = Documented.create(tmp_path)
    assert isinstance(made, Documented)
    made.policy = RetentionPolicy(within=Period.parse("4d"))
    for number in range(NIGHTS):
        made.both(number)
    return made


def test_passes_and_sets_go_once_two_complete_passes_lie_before_the_first_instant(service: Documented) -> None:
    planned = service.inspect()
    assert [item.reason for item in planned.documents] == [planned.documents[0].reason]
    outcome = service.apply()
    assert outcome.state is RetentionState.APPLIED
    clusters, passes, sets = service.left()
    # B is the newest pass stored a day before night 8, W one stored a day before B began: nights 6 and 4.
    assert clusters == list(range(8, NIGHTS))
    assert passes == sets == list(range(4, NIGHTS))
    assert outcome.removed is not None
    assert (len(outcome.removed.sets), outcome.removed.set_bytes > 0) == (4, True)
    told = retention_document(outcome)["documents"]
    assert isinstance(told, list)
    assert told[0]["expired_sets"] == [item.id for item in service.sets[:4]]
    assert service.passes[6].id in told[0]["reason"]
    reasons = {v.reason for s, v in outcome.plan.snapshots if v.kept is Kept.DOCUMENTS}
    assert len(reasons) == 1
    assert service.apply().removed is not None
    assert service.left() == (clusters, passes, sets), "and nothing more a second time"


def test_a_snapshot_that_the_store_does_not_let_go_of_keeps_its_documents(service: Documented) -> None:
    oldest = f"s/erp/database/snapshots/{service.clusters[0].id}"
    clinging = Clinging(service.site.store, oldest)
    assert service.apply(clinging).state is RetentionState.REFUSED  # type: ignore[arg-type]  # the rest by __getattr__
    clusters, passes, sets = service.left()
    assert clusters == [0, *range(8, NIGHTS)]
    assert passes == sets == list(range(NIGHTS))


def test_a_cluster_snapshot_that_cannot_be_read_keeps_the_documents_of_its_instants(service: Documented) -> None:
    service.apply()
    key = f"s/erp/database/snapshots/{service.clusters[8].id}"
    service.site.store.delete(key)
    service.site.store.create(key, b"nonsense")
    assert service.apply().state is RetentionState.BLOCKED
    _, passes, sets = service.left()
    assert passes == sets == list(range(4, NIGHTS))
