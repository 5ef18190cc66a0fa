"""The backup session and what is asked of a server (T1, T2, T4, T7)."""

from __future__ import annotations

import time

import pytest

from drservice.components.postgres import backupsession, connection, controlfile, recovery, replication
from drservice.components.postgres.facts import (
    archiver_status,
    cluster_facts,
    create_restore_point,
    current_snapshot_xmax,
    switch_wal,
)
from drservice.errors import CaptureError, PostgresError, PostgresUnreachableError
from drservice.model.wal import Lsn
from tests.doubles.cluster import Cluster, ClusterMaker


def test_t1_the_backup_session_survives_every_timeout_of_its_role(server: Cluster) -> None:
    server.sql(
        "drop role if exists impatient; create role impatient superuser login;"
        "alter role impatient set statement_timeout = '300ms';"
        "alter role impatient set idle_session_timeout = '300ms';"
        "alter role impatient set lock_timeout = '300ms'"
    )
    with backupsession.open_backup_session(server.dsn(user="impatient")) as session:
        session.start("t1")
        time.sleep(0.8)
        session.check_alive()
        assert session.stop().label_file
    # The guard is what keeps it: without it the server ends an idle session.
    with connection.connect(server.dsn(user="impatient")) as plain:
        plain.row("select 1")
        time.sleep(0.8)
        with pytest.raises(PostgresUnreachableError):
            plain.row("select 1")


def test_t1_a_dropped_session_fails_the_run_and_never_comes_back(server: Cluster) -> None:
    with backupsession.open_backup_session(server.dsn()) as session:
        session.start("t1")
        server.sql("select pg_terminate_backend(%s, 5000)", (session.backend_pid,))
        with pytest.raises(CaptureError, match="session is lost"):
            session.check_alive()
        with pytest.raises(CaptureError, match="session is lost"):
            session.stop()


def test_t1_a_session_runs_no_parallel_worker(server: Cluster) -> None:
    with backupsession.open_backup_session(server.dsn()) as session:
        session.start("t1")
        assert session._session.row("show max_parallel_workers_per_gather") == ("0",)


def test_t1_leaving_without_stop_ends_the_backup_on_the_server(server: Cluster) -> None:
    with backupsession.open_backup_session(server.dsn()) as session:
        session.start("abandoned")
    deadline = time.monotonic() + 10
    while "aborting backup due to backend exiting" not in server.log_text():
        assert time.monotonic() < deadline, "the server still holds the backup"
        time.sleep(0.05)
    with backupsession.open_backup_session(server.dsn()) as session, pytest.raises(CaptureError, match="no backup"):
        session.stop()


def test_t2_label_and_map_are_the_servers_own_bytes_in_any_encoding(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"allow_in_place_tablespaces": "on"})
    cluster.start()
    cluster.sql("create database narrow encoding latin1 template template0 locale 'C'")
    cluster.sql("create tablespace inplace location ''")
    spot = clusters.folder("ts")
    cluster.sql(f"create tablespace \"far\" location '{spot}'")
    with backupsession.open_backup_session(cluster.dsn("narrow")) as session:
        start = session.start("Gruß aus Köln")
        stop = session.stop()
    label = recovery.parse_backup_label(stop.label_file)
    assert "LABEL: Gruß aus Köln\n".encode("latin-1") in stop.label_file
    assert label.start == start.lsn
    assert label.timeline == start.timeline == 1
    assert label.method == "streamed"
    assert not label.from_standby
    assert label.checkpoint >= start.lsn
    assert stop.label_file.endswith(b"START TIMELINE: 1\n")
    assert f"{spot}\n".encode() in stop.tablespace_map
    assert stop.lsn > start.lsn


def test_t4_stop_does_not_wait_for_a_broken_archive(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"archive_mode": "on", "archive_command": "'/bin/false'"})
    cluster.start()
    with backupsession.open_backup_session(cluster.dsn()) as session:
        session.start("t4")
        began = time.monotonic()
        session.stop()
        assert time.monotonic() - began < 5
    with connection.connect(cluster.dsn()) as session:
        switch_wal(session)
        deadline = time.monotonic() + 20
        while not archiver_status(session).failing:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_t7_a_fast_checkpoint_begins_a_backup_at_once_and_a_spread_one_takes_its_time(
    clusters: ClusterMaker,
) -> None:
    cluster = clusters.make(
        wal_segment_mb=1, settings={"checkpoint_timeout": "30s", "checkpoint_completion_target": "0.2"}
    )
    cluster.start()
    seconds = {}
    for speed in (backupsession.CheckpointSpeed.FAST, backupsession.CheckpointSpeed.SPREAD):
        cluster.sql("drop table if exists t; create table t as select generate_series(1, 20000) i")
        with backupsession.open_backup_session(cluster.dsn()) as session:
            began = time.monotonic()
            start = session.start("t7", checkpoint=speed)
            seconds[speed] = time.monotonic() - began
            control = controlfile.read_control_file(cluster.data)
            controlfile.require_checkpoint_of_start(control, start=start.lsn, timeline=start.timeline)
            session.stop()
    assert seconds[backupsession.CheckpointSpeed.FAST] < 2
    assert seconds[backupsession.CheckpointSpeed.SPREAD] > 2


def test_facts_are_the_servers(server: Cluster) -> None:
    with connection.connect(server.dsn()) as session:
        facts = cluster_facts(session)
        control = controlfile.read_control_file(server.data)
        assert facts.system_id == control.system_id
        assert facts.major == control.major
        assert facts.timeline == 1
        assert facts.data_directory == str(server.data)
        assert facts.wal_segment_bytes == control.wal_segment_bytes == 1 << 20
        assert facts.block_bytes == control.block_bytes
        assert facts.data_checksums
        assert facts.full_page_writes
        assert facts.archive_mode == "on"
        assert facts.archive_command is not None
        assert "cp %p" in facts.archive_command
        assert facts.tablespaces == ()
        assert facts.privileges.superuser
        assert facts.privileges.missing_for_local_backup(facts.major) == ()
        assert facts.current_lsn > Lsn(0)
        xmax = current_snapshot_xmax(session)
        server.sql("select pg_current_xact_id()")
        assert current_snapshot_xmax(session) == xmax + 1
        point = create_restore_point(session, "before release")
        assert switch_wal(session) >= point


def test_a_role_without_rights_learns_which_grants_it_lacks_and_they_suffice(server: Cluster) -> None:
    server.sql("drop role if exists modest; create role modest login")
    with connection.connect(server.dsn(user="modest")) as session:
        facts = cluster_facts(session)
    assert facts.data_directory is None
    assert not facts.privileges.backup
    missing = facts.privileges.missing_for_local_backup(facts.major)
    assert len(missing) == 5
    with backupsession.open_backup_session(server.dsn(user="modest")) as backup:
        with pytest.raises(PostgresError, match="privilege") as caught:
            backup.start("no")
        assert "GRANT" in caught.value.hint
    for line in missing:
        server.sql(line)
    with connection.connect(server.dsn(user="modest")) as session:
        facts = cluster_facts(session)
        assert facts.privileges.missing_for_local_backup(facts.major) == ()
        assert facts.data_directory == str(server.data)
    with backupsession.open_backup_session(server.dsn(user="modest")) as backup:
        backup.start("yes")
        assert backup.stop().label_file
    for line in missing:
        server.sql(line.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))


def test_a_replication_role_alone_can_identify_the_system(server: Cluster) -> None:
    server.sql("drop role if exists copier; create role copier login replication")
    seen = replication.identify_system(server.dsn(user="copier"))
    assert seen.system_id == controlfile.read_control_file(server.data).system_id
    assert seen.timeline == 1
    assert seen.wal_segment_bytes == 1 << 20
    assert seen.server_version // 10000 == int(server.bin.parts[-2])
    server.sql("drop role if exists nobody; create role nobody login")
    with pytest.raises(PostgresError) as caught:
        replication.identify_system(server.dsn(user="nobody"))
    assert "REPLICATION" in caught.value.hint


def test_a_refused_connection_names_its_cause(server: Cluster, clusters: ClusterMaker) -> None:
    with pytest.raises(PostgresError, match="does not exist") as caught:
        connection.connect(server.dsn("nowhere"))
    assert "dbname" in caught.value.hint
    with pytest.raises(PostgresError, match="does not exist"):
        connection.connect(server.dsn(user="ghost"))
    with pytest.raises(PostgresUnreachableError, match="No such file"):
        connection.connect(f"host={server.root}/nothing dbname=postgres")
    with pytest.raises(PostgresError, match="cannot be read"):
        connection.connect("hots=db1")
    strict = clusters.make(wal_segment_mb=1)
    (strict.data / "pg_hba.conf").write_text("local all postgres trust\nlocal postgres locked scram-sha-256\n")
    strict.start()
    strict.sql("create role locked login password 'x'; create role other login")
    with pytest.raises(PostgresError, match="pg_hba") as caught:
        connection.connect(strict.dsn(user="other"))
    assert "pg_hba.conf" in caught.value.hint
    with pytest.raises(PostgresError, match="password") as caught:
        connection.connect(strict.dsn(user="locked") + " password=wrong")
    assert "passfile" in caught.value.hint
    assert "wrong" not in caught.value.message


def test_a_standby_says_so(clusters: ClusterMaker) -> None:
    primary = clusters.make(wal_segment_mb=1)
    primary.start()
    primary.sql("create table t(i int)")
    copy = clusters.folder("standby")
    done = primary.run("pg_basebackup", "-h", primary.sock, "-U", "postgres", "-D", copy, "-c", "fast", "-R")
    assert done.status == 0, done.stderr.decode()
    standby = clusters.over(copy)
    standby.start()
    with connection.connect(standby.dsn()) as session:
        facts = cluster_facts(session)
    assert facts.in_recovery
    assert facts.timeline == 1
    assert facts.current_lsn > Lsn(0)
    with connection.connect(primary.dsn()) as session:
        assert not cluster_facts(session).in_recovery
        assert archiver_status(session).last_archived_at is None
