"""Programs of the wrong version are refused before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import cluster_facts
from drservice.components.postgres.server import require_tool
from drservice.errors import ExitStatus, ProgramMissingError
from drservice.model.estate import CaptureMethod
from drservice.model.ids import SnapshotId
from drservice.model.snapshot import POSTGRES_KIND, PostgresFacts
from drservice.operations.backup import choose_method
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.healthsource import check_tools
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


@pytest.mark.parametrize("method", [CaptureMethod.LOCAL, CaptureMethod.PG_BASEBACKUP])
def test_check_names_programs_that_are_too_old_or_have_known_problems(
    site: Site, world: World, method: CaptureMethod
) -> None:
    site.method = method
    with connect(world.cluster.dsn()) as session:
        facts = cluster_facts(session)
    programs = ["pg_dump", "pg_restore"]
    needed = [*programs, "pg_basebackup"] if method is CaptureMethod.PG_BASEBACKUP else programs
    checklist = Checklist()
    check_tools(site.component, facts, "erp/database", checklist)
    answers = {result.name.removeprefix("erp/database: "): result for result in checklist.results}
    assert sorted(answers) == sorted(needed)
    for program in needed:
        found = require_tool(program, server=facts.major)
        problems = found.problems(program)
        assert answers[program].state is (CheckState.WARNING if problems else CheckState.OK)
        assert all(problem.name in answers[program].detail for problem in problems)
        assert f"{found.major}.{found.minor}" in answers[program].detail

    checklist = Checklist()
    check_tools(site.component, replace(facts, server_version=180000), "erp/database", checklist)
    for result in checklist.results:
        blocking = "pg_basebackup" in result.name
        assert result.state is (CheckState.FAILED if blocking else CheckState.WARNING)
        assert "of PostgreSQL 18 or newer is needed here, but installed is" in result.detail
        assert "postgresql-client-18" in result.remedy


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
