"""pg_control and page checksums against a real cluster (T3, T12, T13, T14)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from drservice.components.postgres import backupsession, controlfile, pagechecksum, recovery
from drservice.errors import CaptureError
from drservice.model.wal import Lsn, Timeline
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over


def controldata(cluster: Cluster) -> dict[str, str]:
    done = cluster.run("pg_controldata", cluster.data)
    assert done.status == 0
    pairs = (line.partition(":") for line in done.stdout.decode().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_every_field_of_pg_control_agrees_with_pg_controldata(clusters: ClusterMaker) -> None:
    cluster = clusters.make(
        wal_segment_mb=2,
        settings={
            "max_connections": "41",
            "max_prepared_transactions": "7",
            "track_commit_timestamp": "on",
            "wal_level": "logical",
            "max_locks_per_transaction": "99",
        },
    )
    cluster.start()
    cluster.sql("create table t as select generate_series(1, 100)")
    cluster.stop()
    control = controlfile.read_control_file(cluster.data)
    said = controldata(cluster)
    assert control.system_id == said["Database system identifier"]
    assert str(control.pg_control_version) == said["pg_control version number"]
    assert str(control.catalog_version) == said["Catalog version number"]
    assert control.state is controlfile.ClusterState.SHUT_DOWN
    assert said["Database cluster state"] == "shut down"
    assert control.checkpoint == Lsn.parse(said["Latest checkpoint location"])
    assert control.redo == Lsn.parse(said["Latest checkpoint's REDO location"])
    assert str(control.timeline) == said["Latest checkpoint's TimeLineID"]
    assert f"0:{control.next_xid}" == said["Latest checkpoint's NextXID"]
    assert control.wal_level.name.lower() == said["wal_level setting"] == "logical"
    assert control.max_connections == 41
    assert control.max_prepared_transactions == 7
    assert control.max_locks_per_transaction == 99
    assert str(control.max_worker_processes) == said["max_worker_processes setting"]
    assert str(control.max_wal_senders) == said["max_wal_senders setting"]
    assert control.track_commit_timestamp
    assert control.wal_segment_bytes == 2 << 20
    assert control.major == int(cluster.bin.parts[-2])
    assert control.has_checksums
    assert control.full_page_writes


def test_t13_sizes_come_from_pg_control(clusters: ClusterMaker) -> None:
    cluster = clusters.make(checksums=False, wal_segment_mb=1)
    control = controlfile.read_control_file(cluster.data)
    said = controldata(cluster)
    assert str(control.block_bytes) == said["Database block size"]
    assert str(control.relation_segment_blocks) == said["Blocks per segment of large relation"]
    assert str(control.wal_block_bytes) == said["WAL block size"]
    assert control.wal_segment_bytes == 1 << 20
    assert not control.has_checksums


def test_t3_pg_control_shows_the_checkpoint_of_the_backup_start(server: Cluster) -> None:
    before = controlfile.read_control_file(server.data)
    server.sql("create table if not exists t3(i int)")
    with backupsession.open_backup_session(server.dsn()) as session:
        start = session.start("t3")
        control = controlfile.read_control_file(server.data)
        controlfile.require_checkpoint_of_start(control, start=start.lsn, timeline=start.timeline)
        with pytest.raises(CaptureError, match="last checkpoint"):
            controlfile.require_checkpoint_of_start(before, start=start.lsn, timeline=start.timeline)
        with pytest.raises(CaptureError, match="timeline 2"):
            controlfile.require_checkpoint_of_start(control, start=start.lsn, timeline=Timeline(2))


def backup_by_hand(cluster: Cluster, destination: Path, *, poison: bool) -> bytes:
    """Copy a running cluster as a base backup does and return its backup_label (not written)."""
    with backupsession.open_backup_session(cluster.dsn()) as session:
        session.start("by hand")
        cluster.copy_data(destination)
        _, raw = controlfile.read_control((cluster.data / controlfile.CONTROL_PATH).read_bytes)
        stop = session.stop()
    (destination / controlfile.CONTROL_PATH).write_bytes(controlfile.poisoned_copy(raw) if poison else raw)
    shutil.rmtree(destination / "pg_wal")
    (destination / "pg_wal").mkdir()
    cluster.switch_wal()
    return stop.label_file


def with_wal(copy: Path, archive: Path) -> None:
    """Put the archived WAL into the copy, as a file-level copy of everything would have."""
    for segment in archive.glob("0*"):
        shutil.copy(segment, copy / "pg_wal" / segment.name)


def test_t12_a_lost_backup_label_cannot_start_a_corrupt_cluster(clusters: ClusterMaker) -> None:
    source = clusters.make(wal_segment_mb=1)
    archive = source.archive_to(source.root / "archive")
    source.start()
    source.sql("create table t as select generate_series(1, 1000) i")
    copy = clusters.folder("copy")
    label = backup_by_hand(source, copy, poison=True)
    unpoisoned = clusters.folder("unpoisoned")
    backup_by_hand(source, unpoisoned, poison=False)
    source.wait_archived(source.switch_wal(), archive)
    source.stop()

    # The danger is real: with the WAL at hand and the plain pg_control nothing stops the server.
    with_wal(unpoisoned, archive)
    dangerous = clusters.over(unpoisoned)
    dangerous.configure(archive_mode="off")
    dangerous.start()
    dangerous.stop()

    with_wal(copy, archive)
    restored = clusters.over(copy)
    restored.configure(restore_command=f"'cp {archive}/%f %p'", archive_mode="off")
    restored.start(wait=False)
    assert restored.wait_ended(20) != 0, "a server without backup_label must not come up"
    said = recovery.interpret_log(restored.log_text())
    assert any("checkpoint record" in line for line in said.fatal), said.fatal
    assert not said.ready

    (copy / "backup_label").write_bytes(label)
    (copy / "recovery.signal").touch()
    hand_over(copy)
    restored.start()
    assert restored.value("select count(*) from t") == 1000


def test_t12_pg_control_of_a_busy_server_is_read_whole_every_time(server: Cluster) -> None:
    path = server.data / controlfile.CONTROL_PATH
    with server.connect() as busy:
        for _ in range(20):
            busy.execute("checkpoint")
            control, raw = controlfile.read_control(path.read_bytes)
            assert controlfile.parse_control(raw) == control


def relation_files(cluster: Cluster) -> list[Path]:
    return [
        path
        for pattern in ("base/*/*", "global/*")
        for path in cluster.data.glob(pattern)
        if re.fullmatch(r"\d+(_(fsm|vm|init))?(\.\d+)?", path.name)
    ]


def test_t14_all_pages_of_a_real_cluster_are_right_and_one_flipped_byte_names_its_block(
    clusters: ClusterMaker,
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    cluster.pgbench_init(1)
    path = cluster.data / cluster.value("select pg_relation_filepath('pgbench_accounts')")
    cluster.stop()
    control = controlfile.read_control_file(cluster.data)
    pages = 0
    for file in relation_files(cluster):
        check = pagechecksum.verify_pages(file.read_bytes(), first_block=0, block_bytes=control.block_bytes)
        assert check.bad_blocks == (), file
        assert check.trailing_bytes == 0
        pages += check.pages
    said = cluster.run("pg_checksums", "--check", "-D", cluster.data)
    assert said.status == 0
    assert f"Blocks scanned:  {pages}" in said.stdout.decode()

    content = bytearray(path.read_bytes())
    content[37 * control.block_bytes + 5000] ^= 0x01
    path.write_bytes(content)
    check = pagechecksum.verify_pages(content, first_block=0, block_bytes=control.block_bytes)
    assert check.bad_blocks == (37,)
    said = cluster.run("pg_checksums", "--check", "-D", cluster.data)
    assert said.status == 1
    assert "block 37" in said.stderr.decode()


def test_t14_a_zeroed_page_is_valid_for_us_and_for_the_server(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    cluster.sql("create table t as select generate_series(1, 1000) i")
    path = cluster.data / cluster.value("select pg_relation_filepath('t')")
    cluster.stop()
    content = bytearray(path.read_bytes())
    content[8192:16384] = bytes(8192)
    path.write_bytes(content)
    assert pagechecksum.verify_pages(content, first_block=0, block_bytes=8192).bad_blocks == ()
    # pd_upper = 0 in a page that is not empty: the server refuses it, so do we.
    content[8192 + 100] = 1
    path.write_bytes(content)
    assert pagechecksum.verify_pages(content, first_block=0, block_bytes=8192).bad_blocks == (1,)
    cluster.start()
    with pytest.raises(Exception, match="invalid page in block 1"):
        cluster.sql("select count(*) from t")
