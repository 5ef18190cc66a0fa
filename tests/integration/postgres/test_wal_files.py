"""WAL files of a real server: headers, odd names, and what pg_waldump tells (T17, T19)."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice import processes
from drservice.components.postgres import controlfile, waldump, walfile
from drservice.components.postgres.server import find_programs
from drservice.errors import ForeignSegmentError, ProgramVersionError, WalError
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn, WalFileKind
from tests.doubles.cluster import Cluster, ClusterMaker


def check(path: Path, expected: SystemId | None = None, name: str | None = None) -> walfile.WalFileFacts:
    content = path.read_bytes()
    return walfile.check_wal_file(name or path.name, content, len(content), expected_system_id=expected)


def test_t17_a_real_segment_agrees_with_its_name_and_cluster(server: Cluster) -> None:
    control = controlfile.read_control_file(server.data)
    path = server.wait_archived(server.switch_wal(), server.root / "archive")
    facts = check(path, control.system_id)
    assert isinstance(facts, walfile.SegmentFacts)
    assert facts.major == control.major
    assert facts.segment_bytes == control.wal_segment_bytes
    assert facts.wal_block_bytes == control.wal_block_bytes
    assert facts.header_timeline == facts.timeline == 1
    with pytest.raises(ForeignSegmentError, match=f"identifier {control.system_id}, expected is 42"):
        check(path, SystemId("42"))
    with pytest.raises(ForeignSegmentError, match="the name says 0/F900000"):
        check(path, name="0000000100000000000000F9")
    content = path.read_bytes()
    with pytest.raises(ForeignSegmentError, match="has 1048575 bytes"):
        walfile.check_wal_file(path.name, content, len(content) - 1)


def test_t17_a_recycled_segment_lies_and_is_found_out(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"min_wal_size": "8MB", "max_wal_size": "8MB"})
    cluster.start()
    for _ in range(6):
        cluster.switch_wal()
    cluster.sql("checkpoint")
    present = cluster.value("select pg_walfile_name(pg_current_wal_lsn())")
    ahead = sorted(path for path in (cluster.data / "pg_wal").glob("0*") if path.name > present)
    assert ahead, "the server recycled nothing: the test shows nothing"
    for path in ahead:
        with pytest.raises(ForeignSegmentError, match=r"first page is of position|magic is 0x0000"):
            check(path)
    assert any("position" in str(_error(path)) for path in ahead)


def _error(path: Path) -> ForeignSegmentError | None:
    try:
        check(path)
    except ForeignSegmentError as error:
        return error
    return None


def test_t19_partial_history_and_backup_files_of_a_promotion(clusters: ClusterMaker) -> None:
    primary = clusters.make(wal_segment_mb=1)
    archive = primary.archive_to(primary.root / "archive")
    primary.start()
    copy = clusters.folder("standby")
    done = primary.run("pg_basebackup", "-h", primary.sock, "-U", "postgres", "-D", copy, "-c", "fast", "-R")
    assert done.status == 0, done.stderr.decode()
    backup = next(archive.glob("*.backup"))
    facts = check(backup)
    assert isinstance(facts, walfile.BackupFacts)
    with pytest.raises(ForeignSegmentError, match="a backup that began in"):
        check(backup, name=f"0000000100000000000000FF{backup.name[24:]}")

    standby = clusters.over(copy)
    archive2 = standby.archive_to(standby.root / "archive2")
    standby.start()
    primary.sql("create table t as select generate_series(1, 100)")
    standby_lsn = primary.value("select pg_current_wal_lsn()")
    while not standby.value("select pg_last_wal_replay_lsn() >= %s", (standby_lsn,)):
        pass
    primary.stop("immediate")
    standby.sql("select pg_promote()")
    standby.sql("create table u(i int)")
    first = standby.wait_archived(standby.switch_wal(), archive2)
    history = standby.wait_archived("00000002.history", archive2)
    partial = next(archive2.glob("*.partial"))

    told = check(history)
    assert isinstance(told, walfile.HistoryFacts)
    assert told.entries[0].timeline == 1
    piece = check(partial)
    assert isinstance(piece, walfile.SegmentFacts)
    assert piece.name.kind is WalFileKind.PARTIAL
    # The first segment of timeline 2 begins with the pages of timeline 1.
    segment = check(first)
    assert isinstance(segment, walfile.SegmentFacts)
    assert (segment.timeline, segment.header_timeline) == (2, 1)
    walfile.require_ancestry(segment, told.entries)
    with pytest.raises(ForeignSegmentError, match="does not place there"):
        walfile.require_ancestry(segment, ())
    later = check(standby.wait_archived(standby.switch_wal(), archive2))
    assert isinstance(later, walfile.SegmentFacts)
    assert later.header_timeline == 2
    walfile.require_ancestry(later, told.entries)
    with pytest.raises(ForeignSegmentError, match="as an ancestor of 1"):
        check(history, name="00000001.history")


def test_pg_waldump_tells_commits_restore_points_and_the_end(clusters: ClusterMaker) -> None:
    cluster = clusters.make(
        wal_segment_mb=1, settings={"max_prepared_transactions": "3", "track_commit_timestamp": "on"}
    )
    cluster.start()
    cluster.switch_wal()
    cluster.sql("create table t(i int)")
    xids = []
    with cluster.connect() as session:
        for number in range(400):  # enough to cross pages, so that record ends count headers
            session.execute("begin")
            row = session.execute(
                "insert into t values (%s) returning pg_current_xact_id()::text", (number,)
            ).fetchone()
            assert row is not None
            xids.append(int(row[0]))
            session.execute("rollback" if number % 10 == 0 else "commit")
        session.execute("begin")
        session.execute("insert into t values (-1)")
        row = session.execute("select pg_current_xact_id()::text").fetchone()
        assert row is not None
        prepared = int(row[0])
        session.execute("prepare transaction 'p'")
        session.execute("commit prepared 'p'")
        session.execute("checkpoint")
    before = datetime.now(UTC)
    named = Lsn.parse(cluster.value("select pg_create_restore_point('payday; before the run')"))
    cluster.sql("select pg_logical_emit_message(true, 'test', 'flushed with everything before it')")
    flushed = Lsn.parse(cluster.value("select pg_current_wal_flush_lsn()"))
    name = cluster.value("select pg_walfile_name(pg_current_wal_lsn())")
    folder = clusters.folder("wal")
    shutil.copy(cluster.data / "pg_wal" / name, folder / name)
    after = Lsn.parse(cluster.value("select pg_current_wal_insert_lsn()"))
    facts = check(folder / name)
    assert isinstance(facts, walfile.SegmentFacts)
    programs = find_programs(facts.major, program="pg_waldump")

    dump = waldump.dump_segment(
        processes.run,
        program=str(programs.path("pg_waldump")),
        segment=str(folder / name),
        local=folder / name,
        geometry=waldump.Geometry(segment_bytes=facts.segment_bytes, wal_block_bytes=facts.wal_block_bytes),
    )

    ends = {event.xid: event for event in dump.events if isinstance(event, waldump.TransactionEnd)}
    for index, xid in enumerate(xids):
        assert ends[xid].outcome is (waldump.Outcome.ABORT if index % 10 == 0 else waldump.Outcome.COMMIT)
    assert ends[prepared].outcome is waldump.Outcome.COMMIT_PREPARED
    assert ends[prepared].outcome.committed
    stamps = cluster.sql("select xmin::text::int, pg_xact_commit_timestamp(xmin) from t")
    assert len(stamps) == 361
    assert {ends[xid].at == at for xid, at in stamps} == {True}
    points = [event for event in dump.events if isinstance(event, waldump.RestorePoint)]
    assert [(point.name, point.end) for point in points] == [("payday; before the run", named)]
    assert points[0].at is not None
    assert abs(points[0].at - before) < timedelta(seconds=5)
    marks = [event for event in dump.events if isinstance(event, waldump.Checkpoint)]
    control = controlfile.read_control_file(cluster.data)
    assert marks[-1].lsn == control.checkpoint
    assert marks[-1].redo == control.redo
    assert marks[-1].at == control.checkpoint_at
    assert dump.end.kind is waldump.EndKind.STOPPED
    assert dump.end.position is not None
    assert flushed <= dump.end.position <= after
    assert max(event.end for event in dump.events) <= dump.end.position


def test_a_segment_of_zeros_is_an_error_and_not_an_empty_list(clusters: ClusterMaker) -> None:
    path = clusters.folder() / "000000010000000000000001"
    path.write_bytes(bytes(1 << 20))
    programs = find_programs(15, program="pg_waldump")
    with pytest.raises(WalError, match="status 1"):
        waldump.dump_segment(
            processes.run,
            program=str(programs.path("pg_waldump")),
            segment=str(path),
            local=path,
            geometry=waldump.Geometry(segment_bytes=1 << 20, wal_block_bytes=8192),
        )


def test_programs_of_another_major_version_are_never_taken() -> None:
    directory = find_programs(15).directory
    with pytest.raises(ProgramVersionError, match=r"PostgreSQL 14 is needed here, but installed is 15\."):
        find_programs(14, directory=directory)
