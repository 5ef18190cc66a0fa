"""The claim of ``consistent``: lost at any moment, a service comes back without a missing document, and loses little.

One writer files and deletes documents on a real server while WAL and documents are captured as they come. What the
repository held at a random moment, told by its objects' own times, is what a loss at that moment would have left. Each
such repository is restored to ``consistent``. The writer knows the rows after each of its commits and the position that
the next one lies behind: the copy must show the rows of the proven position, no commit more and none less, with every
document; and every commit that was acknowledged before the instant that the plan names.
"""

from __future__ import annotations

import os
import random
import secrets
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from drservice.environments.sandbox import open_sandbox
from drservice.model.recovery import Target, TargetKind
from drservice.operations.backup import BackupContext
from drservice.operations.progress import SilentProgress
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import RestoreResult
from drservice.operations.servicebackup import backup_service
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.estate import TempEstate
from tests.doubles.plant import placed
from tests.integration.test_consistent_restore import receiving
from tests.property.test_documents_any_instant import SCHEMA, Odoo, captured, live, service_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A history, and when its objects were stored."""

    estate: TempEstate
    odoo: Odoo
    begin: float
    """From here on a loss leaves something to restore from; by this host's clock, like all of these times."""
    end: float

    def lost_at(self, moment: float, number: int) -> Path:
        """Return a configuration over what the repository held at a moment."""
        held = self.estate.root / f"loss-{number}"
        for path in self.estate.repository.rglob("*"):
            if path.is_file() and path.stat().st_mtime <= moment:
                copy = held / path.relative_to(self.estate.repository)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.hardlink_to(path)
        return self.estate.write_configuration(self.estate.root / f"loss-{number}.yaml", url=f"file://{held}")


def tell(clusters: ClusterMaker, *, seed: int, seconds: float, backups: int) -> Story:
    """Write a history of so many seconds, with backups in the middle of it, and end the server without a warning."""
    cluster = clusters.make(wal_segment_mb=1, settings={"archive_mode": "off"})
    estate = TempEstate.over(cluster)
    estate.wal_settings = {"mode": "stream", "interval": "100ms"}
    estate.write_configuration(estate.config)
    estate.initialise()
    (estate.state / "run").mkdir(exist_ok=True)
    cluster.start()
    cluster.sql(SCHEMA)
    filestore = cluster.root / "filestore"
    (filestore / "checklist").mkdir(parents=True)
    hand_over(filestore)
    odoo = Odoo(cluster=cluster, filestore=filestore, chance=random.Random(seed))
    service, _, _ = service_of(estate, filestore)
    begin: float | None = None
    with estate.plane() as plane, receiving(estate, plane), captured(plane, estate, odoo):
        context = BackupContext(
            repository=plane.repository, state_dir=estate.state, clock=plane.clock, progress=SilentProgress()
        )
        odoo.start()
        for _ in range(backups):
            live(odoo, seconds / (backups + 1))
            backup_service(context, service, None, taken=lambda _: None)
            begin = begin or plane.clock.now().timestamp()
        live(odoo, seconds / (backups + 1))
        odoo.end()
        end = plane.clock.now().timestamp()
        cluster.kill9()
    assert begin is not None
    return Story(estate=estate, odoo=odoo, begin=begin, end=end)


@contextmanager
def restored(story: Story, config: Path, kind: TargetKind) -> Iterator[RestoreResult]:
    service, _, documents = service_of(story.estate, story.odoo.filestore)
    request = replace(story.estate.request(Target(kind=kind)), service=service, files=(documents,))
    with story.estate.plane(config) as plane:
        result = run_restore(story.estate.restore_context(plane), request)
    try:
        yield result
    finally:
        open_sandbox(story.estate.state / "environments" / result.environment.id).destroy()


def recovered(story: Story, config: Path, where: str) -> float:
    """Restore to ``consistent`` and compare with what the writer knows; return how long before the loss that is."""
    odoo = story.odoo
    with restored(story, config, TargetKind.CONSISTENT) as result:
        [files] = result.files
        documents, covered, ends = files.documents, files.covered, result.planned.ends
        assert documents is not None
        assert covered is not None
        assert ends is not None
        look = ends.shared.required()
        assert documents.missing == documents.corrupt == documents.missing_in_production == (), where
        assert covered.behind_seconds == 0, where
        target = result.planned.resolved.plan.target.lsn
        shown = placed(files.root)
        count = bisect_right(odoo.positions, target if target is not None else result.reached.lsn)
        # Between the end of a commit and the position that was read after it, both is right.
        possible = [_after(odoo, count), _after(odoo, count + 1)]
        assert set(shown) in possible, where
        assert shown == {name: odoo.contents[name] for name in shown}, where
        if target is None:  # documents were ahead of the WAL, all of which is there
            return result.reached.time.timestamp() if result.reached.time is not None else story.begin
        acknowledged = bisect_right([at for at, _ in odoo.history], look.at)
        assert count + 1 >= acknowledged, f"{where}: {acknowledged - count} commits from before {look.at} are gone"
        assert set(shown) in possible[max(0, acknowledged - count) :], where
        return look.at.timestamp()


def _after(odoo: Odoo, count: int) -> set[str]:
    """Return to which documents rows referred after so many commits."""
    return set(odoo.history[min(count, len(odoo.history)) - 1][1]) if count else set()


def run(clusters: ClusterMaker, *, seconds: float, backups: int, losses: int) -> None:
    seed = int(os.environ.get("DRSERVICE_SEED") or secrets.randbits(32))
    print(f"to repeat: DRSERVICE_SEED={seed}")  # noqa: T201 - shown with a failure
    story = tell(clusters, seed=seed, seconds=seconds, backups=backups)
    chance = random.Random(seed)
    moments = [*(chance.uniform(story.begin, story.end) for _ in range(losses - 1)), story.end]
    lags: list[float] = []
    lacking = 0
    try:
        for number, moment in enumerate(moments):
            where = f"lost at {datetime.fromtimestamp(moment).astimezone()}"
            config = story.lost_at(moment, number)
            lags.append(moment - recovered(story, config, where))
            if number % 5 == 0:
                with restored(story, config, TargetKind.LATEST) as result:
                    lacking += sum(len(item.documents.missing) for item in result.files if item.documents is not None)
    finally:
        story.estate.close()
    print(f"{len(story.odoo.history)} commits, {losses} losses, lag {sorted(lags)}, {lacking} missing at the latest")  # noqa: T201 - shown with a failure
    assert lacking > 0, "the latest position would have done as well"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fifty_losses_at_random_moments_are_recovered_without_a_missing_document(clusters: ClusterMaker) -> None:
    run(clusters, seconds=40, backups=2, losses=50)
