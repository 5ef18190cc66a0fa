"""What a restore in place must not lose silently: what a review has made it lose, each on a real cluster."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drservice.components.postgres import existing
from drservice.environments.sandbox import Sandbox
from drservice.errors import RecoveryError, ServerRunningError
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Timeline, WalFileName
from drservice.operations import inplace
from drservice.operations import restore as restoring
from drservice.operations.salvage import salvage
from tests.doubles.cluster import hand_over
from tests.doubles.estate import Pusher, TempEstate, tree, wait_for
from tests.integration.test_in_place import Killed, crash_with_orders, estate, in_place, maker, names, started

__all__ = ["estate", "maker"]

pytestmark = pytest.mark.long
LAST = 900_000


def test_a_server_that_ran_after_the_salvage_loses_nothing(estate: TempEstate, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service manager's that starts it again: what it commits was not there when the WAL was archived."""
    cluster = estate.cluster
    acknowledged = crash_with_orders(estate, segments=1)

    def and_then_it_runs(*arguments: Any, **named: Any) -> Any:
        done = salvage(*arguments, **named)
        cluster.start()
        cluster.sql("insert into orders values (%s, 'after the salvage')", (LAST,))
        cluster.switch_wal()
        cluster.kill9()
        return done

    with monkeypatch.context() as patched:
        patched.setattr(inplace, "salvage", and_then_it_runs)
        with pytest.raises(ServerRunningError, match="a server ran on"):
            in_place(estate)
    assert LAST in started(estate), "the directory is as it was"
    cluster.kill9()
    in_place(estate)
    assert {*acknowledged, LAST} <= set(started(estate))


def test_a_server_that_is_heard_only_when_pg_control_is_away_gets_it_back(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in a container beside this one would end at its next checkpoint without it."""
    cluster = estate.cluster
    cluster.kill9()
    path = cluster.sock / ".s.PGSQL.5432"
    path.unlink(missing_ok=True)
    aside = existing.set_aside
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))

        def set_aside(directory: existing.Existing) -> None:
            aside(directory)
            listener.listen()
            pid_file = cluster.data / "postmaster.pid"
            pid_file.write_text(f"4194300\n{cluster.data}\n1\n5432\n{cluster.sock}\n\n  1 1\nready\n")

        monkeypatch.setattr(inplace, "set_aside", set_aside)
        with pytest.raises(ServerRunningError, match="somebody listens"):
            in_place(estate)
    (cluster.data / "postmaster.pid").unlink()
    path.unlink()
    assert 50 in started(estate)


def test_t16_a_timeline_whose_number_another_copy_took_is_not_mixed_with_it_and_latest_is_refused(
    estate: TempEstate,
) -> None:
    cluster = estate.cluster
    with estate.plane() as plane:
        scope = plane.repository.scope(*names(estate))
        system_id = plane.repository.snapshots(scope).records[-1].postgres.system_id
        plane.repository.wal(scope).put(
            WalFileName.parse("00000002.history"),
            b"1\t0/1000000\tanother copy\n",
            system_id=system_id,
            last_write=datetime.now(UTC),
        )
    promote(estate)
    cluster.sql("insert into orders values (%s, 'on our timeline 2')", (LAST,))
    cluster.switch_wal()
    cluster.kill9()
    before = tree(cluster.data)
    with pytest.raises(RecoveryError, match=r"could not be archived \(00000002.history, ") as failed:
        in_place(estate)
    assert "another" not in failed.value.hint
    assert "Two servers" in failed.value.hint
    assert tree(cluster.data) == before
    archived = [path.name for path in estate.repository.rglob("wal/*/00000002/*")]
    assert archived == ["00000002.history"], "our segments were put into the other copy's timeline"
    assert LAST in started(estate)


def test_production_is_not_taken_to_the_timeline_of_a_copy_that_somebody_promoted(estate: TempEstate) -> None:
    cluster = estate.cluster
    with Pusher(estate) as pusher:
        pusher.drain(cluster.switch_wal())
    switched = cluster.value("select pg_current_wal_lsn()")
    cluster.sql("insert into orders values (%s, 'after the copy was made')", (LAST,))
    cluster.switch_wal()
    cluster.kill9()
    copied(estate, switched)
    before = tree(cluster.data)
    with pytest.raises(RecoveryError, match=r"is on timeline 1, and .* on timeline 2, which left it") as failed:
        in_place(estate)
    assert "--timeline 1" in failed.value.hint
    assert tree(cluster.data) == before
    in_place(estate, Target(kind=TargetKind.LATEST, timeline=Timeline(1)))
    assert LAST in started(estate)


def test_what_is_in_the_directory_and_no_data_is_set_aside_whole(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = estate.cluster
    cluster.kill9()
    kept = {
        "log/postgresql.log": "what happened before the disaster",
        "conf.d/today.conf": "# of today",
        "server.key": "secret",
        "pg_wal/000000010000000000000001.moved": "by an administrator",
        "pg_wal/mine/note": "too",
    }
    for name, content in kept.items():
        path = cluster.data / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)  # by root, who runs the restore, too
    notes: list[str] = []
    monkeypatch.setattr("drservice.operations.progress.SilentProgress.note", lambda _, text: notes.append(text))
    aside = in_place(estate).in_place.aside
    assert {name: (aside / name).read_text() for name in kept} == kept
    assert [note for note in notes if "000000010000000000000001.moved, mine" in note]
    assert 50 in started(estate)


def test_one_who_interrupts_it_is_told_that_no_server_starts(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    estate.cluster.kill9()
    notes: list[str] = []
    monkeypatch.setattr("drservice.operations.progress.SilentProgress.note", lambda _, text: notes.append(text))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "finish_cluster", interrupt)
    with pytest.raises(KeyboardInterrupt):
        in_place(estate)
    assert "No server starts on the directory until the same command has completed it" in notes[-1]
    assert "data.before-" in notes[-1]


def test_one_that_was_killed_is_completed_although_the_snapshot_has_a_tablespace_that_is_gone(
    estate: TempEstate, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = estate.cluster
    location = cluster.root / "space"
    location.mkdir()
    hand_over(location)
    cluster.sql(f"create tablespace fast location '{location}'")
    cluster.sql("create table spaced tablespace fast as select 7 as number")
    with Pusher(estate) as pusher:
        estate.backup()
        instant = cluster.value("select clock_timestamp()")
        cluster.sql("select pg_sleep(0.05)")
        cluster.sql("drop table spaced")
        cluster.sql("drop tablespace fast")
        pusher.drain(cluster.switch_wal())
    cluster.kill9()
    target = Target(kind=TargetKind.TIME, time=instant)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "prove", die)
        patched.setattr(restoring, "unveil_control", lambda _: None)
        patched.setattr(Sandbox, "destroy", lambda _: None)
        with pytest.raises(Killed):
            in_place(estate, target)
    assert list((cluster.data / "pg_tblspc").iterdir()), "the attempt placed it"
    in_place(estate, target)
    cluster.start()
    assert cluster.value("select number from spaced") == 7


# --- helpers ------------------------------------------------------------------------------------------------


def promote(estate: TempEstate) -> None:
    """Have the cluster go on as timeline 2, as one does that was restored by hand."""
    cluster = estate.cluster
    cluster.stop()
    cluster.configure(restore_command="'false'")
    (cluster.data / "recovery.signal").touch()
    cluster.start()
    wait_for(lambda: not cluster.value("select pg_is_in_recovery()"), "the promotion")


def copied(estate: TempEstate, lsn: str) -> None:
    """Put into the archive what a copy archives that was restored to ``lsn`` and promoted: history and a segment."""
    with estate.plane() as plane:
        scope = plane.repository.scope(*names(estate))
        postgres = plane.repository.snapshots(scope).records[-1].postgres
        archive = plane.repository.wal(scope)
        history = f"1\t{lsn}\tat restore point\n".encode()
        archive.put(
            WalFileName.parse("00000002.history"),
            history,
            system_id=postgres.system_id,
            last_write=datetime.now(UTC),
        )
        high, low = (int(part, 16) for part in lsn.split("/"))
        number = low // postgres.segment_bytes
        source = Path(estate.cluster.data / "pg_wal" / f"00000001{high:08X}{number:08X}")
        archive.put(
            WalFileName.parse(f"00000002{high:08X}{number:08X}"),
            source.read_bytes(),
            system_id=postgres.system_id,
            last_write=datetime.now(UTC),
        )
