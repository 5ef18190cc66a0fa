"""Programs of the wrong version are refused before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drservice.errors import ExitStatus, ProgramMissingError
from drservice.model.ids import SnapshotId
from drservice.model.snapshot import POSTGRES_KIND, PostgresFacts
from drservice.operations.backup import choose_method
from drservice.repository.writer import CommitFacts
from tests.faults.world import Site, World, end_of


def commit_as_of(site: Site, world: World, major: int) -> SnapshotId:
    """Commit a snapshot like the newest one that says it is of another major version."""
    repository, newest = site.repository(), world.newer
    assert isinstance(newest.facts, PostgresFacts)
    secret = repository.reader(site.scope(), newest.id).secret
    with repository.writer(site.scope(), state_dir=site.state_dir, workers=1, level=1) as writer:
        return writer.commit(
            CommitFacts(
                kind=POSTGRES_KIND,
                method=choose_method(site.component).value,
                started_at=newest.started_at,
                stopped_at=newest.stopped_at,
                facts=replace(newest.facts, server_version=major),
                attachments=secret.attachments,
                bad_pages=[],
            )
        ).id


@pytest.mark.parametrize("major", [14, 16])
def test_a_snapshot_of_another_major_version_is_refused_before_anything_is_placed(
    site: Site, world: World, major: int
) -> None:
    snapshot = commit_as_of(site, world, major)
    record = next(item for item in site.snapshots() if item.id == snapshot)
    with pytest.raises(ProgramMissingError, match=f"postgres of PostgreSQL {major}") as caught:
        site.restore(end_of(record))
    assert caught.value.exit_status is ExitStatus.USAGE
    assert f"apt-get install postgresql-{major} " in caught.value.hint
    assert not site.target_dir.exists() or list(site.target_dir.iterdir()) == []
    site.require_no_environment()
