"""Recovery settings and log lines on real servers, restored by hand (T29, T30, T31)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.components.postgres import backupsession, controlfile, recovery
from drservice.components.postgres.recovery import ReplayTarget, StopKind, TargetAction
from drservice.model.wal import Lsn
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over


@dataclass(kw_only=True)
class Story:
    """A primary with a backup and commits after it: row n was committed at ``times[n]``, by ``xids[n]``."""

    clusters: ClusterMaker
    primary: Cluster
    archive: Path
    copy: Path
    stop_lsn: Lsn
    times: list[datetime] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    lsns: list[Lsn] = field(default_factory=list)

    def add(self) -> None:
        xid = self.primary.value("insert into t values (%s) returning pg_current_xact_id()::text", (len(self.xids),))
        self.xids.append(int(xid))
        self.lsns.append(Lsn.parse(self.primary.value("select pg_current_wal_insert_lsn()")))
        self.times.append(self.primary.value("select pg_xact_commit_timestamp(%s::xid)", (xid,)))

    def finish(self) -> None:
        self.primary.wait_archived(self.primary.switch_wal(), self.archive)

    def restored(self) -> Cluster:
        folder = self.clusters.folder("restored")
        shutil.copytree(self.copy, folder, dirs_exist_ok=True)
        (folder / "recovery.signal").touch()
        return self.clusters.over(folder)

    def options(self, cluster: Cluster, target: ReplayTarget, action: TargetAction) -> recovery.Options:
        control = controlfile.read_control_file(cluster.data)
        assert control.major is not None
        return (
            *recovery.isolation_options(control, major=control.major),
            *recovery.recovery_options(target, restore_command=f"cp {self.archive}/%f %p", action=action),
        )

    def replay(self, target: ReplayTarget) -> tuple[Cluster, recovery.RecoveryLog]:
        """Restore, replay, promote; the server runs."""
        cluster = self.restored()
        cluster.start(self.options(cluster, target, TargetAction.PROMOTE))
        return cluster, recovery.interpret_log(cluster.log_text())


def begin(clusters: ClusterMaker) -> Story:
    primary = clusters.make(wal_segment_mb=1, settings={"track_commit_timestamp": "on"})
    archive = primary.archive_to(primary.root / "archive")
    primary.start()
    primary.sql("create table t(i int)")
    copy = clusters.folder("backup")
    with backupsession.open_backup_session(primary.dsn()) as session:
        session.start("story")
        primary.copy_data(copy)
        _, raw = controlfile.read_control((primary.data / controlfile.CONTROL_PATH).read_bytes)
        stop = session.stop()
    (copy / controlfile.CONTROL_PATH).write_bytes(controlfile.poisoned_copy(raw))
    (copy / "backup_label").write_bytes(stop.label_file)
    shutil.rmtree(copy / "pg_wal")
    (copy / "pg_wal").mkdir()
    hand_over(copy)
    return Story(clusters=clusters, primary=primary, archive=archive, copy=copy, stop_lsn=stop.lsn)


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    told = begin(maker)
    for number in range(6):
        told.add()
        if number == 3:
            told.primary.sql("select pg_create_restore_point('milestone')")
    told.finish()
    told.primary.stop()
    yield told
    maker.close()


def rows(cluster: Cluster) -> list[int]:
    return [row[0] for row in cluster.sql("select i from t order by i")]


def test_t29_latest_replays_everything_on_a_new_timeline(story: Story) -> None:
    cluster, log = story.replay(ReplayTarget.latest())
    assert rows(cluster) == [0, 1, 2, 3, 4, 5]
    assert log.stop is None
    assert log.new_timeline == 2
    assert log.ready
    assert log.consistent_at is not None
    assert log.consistent_at >= story.stop_lsn
    assert log.redo_done_at is not None
    assert log.redo_done_at >= story.lsns[4]
    assert log.last_transaction_at is not None
    assert log.last_transaction_at >= story.times[5]
    assert log.restored_files
    assert log.fatal == ()
    assert cluster.value("show archive_mode") == "off"
    assert cluster.value("show listen_addresses") == ""


def test_t29_a_time_with_its_zone_is_exact_to_the_commit(story: Story) -> None:
    cluster, log = story.replay(ReplayTarget.at_time(story.times[2]))
    assert rows(cluster) == [0, 1, 2]
    assert log.stop is not None
    assert log.stop.kind is StopKind.BEFORE_COMMIT
    assert log.stop.xid == story.xids[3]
    assert log.stop.at == story.times[3]
    cluster, _ = story.replay(ReplayTarget.at_time(story.times[2], inclusive=False))
    assert rows(cluster) == [0, 1]


def test_t29_xid_lsn_and_name_stop_where_they_say(story: Story) -> None:
    cluster, log = story.replay(ReplayTarget.at_xid(story.xids[1]))
    assert rows(cluster) == [0, 1]
    assert log.stop is not None
    assert (log.stop.kind, log.stop.xid) == (StopKind.AFTER_COMMIT, story.xids[1])
    cluster, log = story.replay(ReplayTarget.at_lsn(story.lsns[4], inclusive=False))
    assert rows(cluster) == [0, 1, 2, 3, 4]
    assert log.stop is not None
    assert log.stop.kind is StopKind.BEFORE_LSN
    cluster, log = story.replay(ReplayTarget.at_name("milestone"))
    assert rows(cluster) == [0, 1, 2, 3]
    assert log.stop is not None
    assert (log.stop.kind, log.stop.name) == (StopKind.AT_NAME, "milestone")
    assert log.stop.at is not None


def test_t29_immediate_stops_at_consistency(story: Story) -> None:
    cluster, log = story.replay(ReplayTarget.immediate())
    assert rows(cluster) == []
    assert log.stop is not None
    assert log.stop.kind is StopKind.AT_CONSISTENCY


def test_t29_a_target_that_is_not_in_the_wal_ends_the_server(story: Story) -> None:
    cluster = story.restored()
    target = ReplayTarget.at_time(datetime.now(UTC) + timedelta(days=1))
    cluster.start(story.options(cluster, target, TargetAction.PROMOTE), wait=False)
    assert cluster.wait_ended() != 0
    log = recovery.interpret_log(cluster.log_text())
    assert log.target_missed
    assert not log.ready
    assert log.fatal


def test_t29_pause_holds_a_readable_server_at_the_target(story: Story) -> None:
    cluster = story.restored()
    cluster.start(story.options(cluster, ReplayTarget.at_xid(story.xids[2]), TargetAction.PAUSE))
    assert rows(cluster) == [0, 1, 2]
    assert cluster.value("select pg_is_in_recovery()")
    assert recovery.interpret_log(cluster.log_text()).paused


def test_t30_settings_of_earlier_lives_neither_win_nor_stay(story: Story) -> None:
    cluster = story.restored()
    auto = cluster.data / "postgresql.auto.conf"
    auto.write_text(
        "# Do not edit\n"
        "work_mem = '5MB'\n"
        f"recovery_target_lsn = '{story.lsns[0]}'\n"
        "recovery_target_action = 'shutdown'\n"
        "restore_command = '/bin/false'\n"
        "archive_mode = 'on'\n"
        "archive_command = '/bin/false'\n"
        "primary_conninfo = 'host=/nonexistent'\n"
        "shared_preload_libraries = 'no_such_library'\n"
        "synchronous_standby_names = '*'\n"
    )
    hand_over(cluster.data)
    # The command line beats the file even before anything is stripped.
    cluster.start(story.options(cluster, ReplayTarget.at_xid(story.xids[2]), TargetAction.PROMOTE))
    assert rows(cluster) == [0, 1, 2]
    cluster.sql("create table written_without_waiting_for_a_standby(i int)")
    cluster.stop()
    stripped = recovery.strip_stale_settings(auto.read_text())
    assert "work_mem = '5MB'" in stripped.text
    assert "recovery_target" not in stripped.text
    assert "primary_conninfo" in stripped.removed
    assert len(stripped.removed) == 7


def test_t30_without_the_overrides_a_stale_target_ends_the_server(story: Story) -> None:
    cluster = story.restored()
    with (cluster.data / "postgresql.auto.conf").open("a") as auto:
        auto.write(f"recovery_target_lsn = '{story.lsns[0]}'\n")
    options = [("restore_command", f"cp {story.archive}/%f %p"), ("recovery_target_xid", str(story.xids[2]))]
    cluster.start(options, wait=False)
    assert cluster.wait_ended() != 0
    assert "multiple recovery targets specified" in cluster.log_text()


@pytest.fixture
def raised(clusters: ClusterMaker) -> Story:
    """A primary whose max_connections was raised after the backup, so that the WAL carries the change."""
    told = begin(clusters)
    told.add()
    told.primary.stop()
    told.primary.configure(max_connections="90")
    told.primary.start()
    told.add()
    told.finish()
    told.primary.stop()
    return told


def test_t31_a_parameter_raised_after_the_backup_does_not_stop_recovery(raised: Story) -> None:
    assert controlfile.read_control_file(raised.copy).max_connections == 30
    cluster, log = raised.replay(ReplayTarget.latest())
    assert rows(cluster) == [0, 1]
    assert log.insufficient_parameters == ()
    assert controlfile.read_control_file(cluster.data).max_connections == 30


def test_t31_with_hot_standby_on_the_same_wal_pauses_recovery_and_the_log_says_why(raised: Story) -> None:
    cluster = raised.restored()
    options = [*raised.options(cluster, ReplayTarget.latest(), TargetAction.PROMOTE), ("hot_standby", "on")]
    cluster.start(options)
    for _ in range(200):
        log = recovery.interpret_log(cluster.log_text())
        if log.paused:
            break
        cluster.value("select pg_sleep(0.05)")
    assert log.paused
    assert "max_connections = 30 is a lower setting" in log.insufficient_parameters[0]
    assert cluster.value("select pg_is_in_recovery()")


def test_t31_lower_settings_than_the_primarys_are_named(raised: Story) -> None:
    cluster = raised.restored()
    options = [
        *raised.options(cluster, ReplayTarget.latest(), TargetAction.PROMOTE),
        ("hot_standby", "on"),
        ("max_connections", "15"),
    ]
    cluster.start(options, wait=False)
    assert cluster.wait_ended() != 0
    log = recovery.interpret_log(cluster.log_text())
    assert any("insufficient parameter settings" in line for line in log.fatal)
    assert "max_connections = 15" in log.insufficient_parameters[0]
