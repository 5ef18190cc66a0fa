"""A plant that is opened in this process, so that stores, progress, limits and times are the test's own.

What is not exchanged is what the command line uses: the same settings, repository, ledger and anchors.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drservice.environments import keeper, proc
from drservice.environments.sandbox import list_sandboxes
from drservice.model.estate import Estate, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ServiceName
from drservice.model.recovery import Target, TargetKind
from drservice.objectstore.interface import ObjectStore
from drservice.operations.backup import BackupContext
from drservice.operations.drill import run_drill
from drservice.operations.drillconclusion import DrillResult
from drservice.operations.drillrecord import DrillRequest
from drservice.operations.evidence import Evidence
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.servicebackup import ServiceBackup, run_service_backup
from drservice.operations.servicerestore import restore_service
from drservice.repository.hostkey import load_host_key
from drservice.repository.repository import Repository, open_repository
from drservice.settings.loading import load
from drservice.wiring.data_plane import DataPlane, open_data_plane
from drservice.wiring.evidence import open_anchored_evidence
from tests.doubles.cluster import ClusterMaker
from tests.doubles.plant import Plant

ERP = ServiceName("erp")


@dataclass(kw_only=True)
class Watcher:
    """A progress that remembers, and calls back at each step and each advance."""

    on_step: Callable[[str], None] = lambda _: None
    on_advance: Callable[[str], None] = lambda _: None
    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(self, name: str, *, total_bytes: int | None = None, total_items: int | None = None) -> None:
        del total_bytes, total_items
        self.steps.append(name)
        self.on_step(name)

    def advance(self, amount: int) -> None:
        del amount
        self.on_advance(self.steps[-1])

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One opened plant."""

    estate: Estate
    plane: DataPlane
    evidence: Evidence
    watcher: Watcher

    @property
    def service(self) -> Service:
        return self.estate.service(ERP)

    @property
    def context(self) -> RestoreContext:
        return RestoreContext(
            repository=self.plane.repository,
            state_dir=self.estate.state_dir,
            clock=self.plane.clock,
            progress=self.watcher,
        )

    def drill(self, plan: str = "latest", **wishes: Any) -> DrillResult:
        """Run a drill, with other limits or times if wished."""
        request = DrillRequest(
            service=self.service,
            component=self.service.database(),
            plan=self.estate.drill(self.service, plan),
            **wishes,
        )
        return run_drill(self.context, self.evidence, request)

    def restore(self, into: Path) -> RestoreResult:
        """Restore the service to its latest position."""
        request = RestoreRequest(
            service=self.service,
            component=self.service.database(),
            target=Target(kind=TargetKind.LATEST),
            into=into,
            afterwards=Afterwards.STOP,
            files=tuple(self.service.files()),
        )
        return restore_service(self.context, self.evidence, request)

    def backup(self) -> ServiceBackup:
        """Take a recovery point."""
        context = BackupContext(
            repository=self.plane.repository,
            state_dir=self.estate.state_dir,
            clock=self.plane.clock,
            progress=self.watcher,
        )
        return run_service_backup(context, self.evidence, self.service)


@contextmanager
def opened(
    config: Path, *, store: Callable[[ObjectStore], ObjectStore] | None = None, watcher: Watcher | None = None
) -> Iterator[Bench]:
    """Open a configuration; ``store`` puts a double around the store (not around those of worker processes)."""
    estate = load(config).estate
    with open_data_plane(estate) as plane:
        seen = plane if store is None else replace(plane, repository=_repository(plane, store(plane.repository.store)))
        with open_anchored_evidence(seen) as evidence:
            yield Bench(estate=estate, plane=seen, evidence=evidence, watcher=watcher or Watcher())


def _repository(plane: DataPlane, store: ObjectStore) -> Repository:
    return open_repository(
        store,
        open_store=plane.repository.open_store,
        signers=plane.estate.repository.signers,
        host_key=load_host_key(plane.estate.state_dir),
        identities=plane.repository.identities,
        recipients=plane.estate.repository.recipients,
        clock=plane.clock,
    )


def make_plant(maker: ClusterMaker) -> Plant:
    """Make a plant whose restores work in one process, with a recovery point and work behind it, all archived."""
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=20)
    plant.estate.config.write_text(json.dumps(document_of(plant)))
    plant.json("backup", "erp")
    for number in range(3):
        plant.sql("insert into stock_move (state, product_qty) values ('draft', %s)", (number,))
        plant.sql("select pg_sleep(0.02)")
    plant.archive()
    return plant


def document_of(plant: Plant, **service: Any) -> dict[str, Any]:
    """Return the configuration, with other values of the service; the cluster is placed without worker processes."""
    document = plant.document()
    document["services"]["erp"].update(service)
    document["services"]["erp"]["components"]["database"]["workers"] = 1
    return document


def config_with(plant: Plant, path: Path, **service: Any) -> Path:
    """Write a configuration whose service has other values."""
    path.write_text(json.dumps(document_of(plant, **service)))
    return path


def predicates(config: Path, kind: EvidenceKind, begin: int = 0) -> dict[int, dict[str, Any]]:
    """Return the records of a kind from an entry on, by their numbers; each one verified."""
    with opened(config) as bench:
        statements = {entry.number: entry.signed.statement for entry in bench.evidence.ledger.entries(begin)}
    return {number: dict(item.predicate) for number, item in statements.items() if item.kind is kind}


def ledger_size(config: Path) -> int:
    with opened(config) as bench:
        return bench.evidence.ledger.size()


def environments_dir(plant: Plant) -> Path:
    return plant.estate.state / "environments"


def kill_inside(environments: Path, who: str) -> None:
    """Kill the keeper or the server of the only environment."""
    (about,) = list_sandboxes(environments)
    noted = json.loads((about.path / "keeper" / keeper.STATE).read_text(encoding="utf-8"))
    assert proc.send_signal(proc.ProcessIdentity(**noted[who]), signal.SIGKILL)


def require_bundle(plant: Plant, path: Path) -> dict[str, Any]:
    """The invariant of evidence: everything on record can be exported, and the bundle verifies."""
    plant.json("evidence", "anchor")
    plant.json("evidence", "export", "--service", "erp", "--output", str(path))
    return plant.json("evidence", "verify", str(path))


def die(_: str = "") -> None:
    """End this process without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
