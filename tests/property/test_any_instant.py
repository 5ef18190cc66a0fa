"""The claim the product stands on: any instant of a history comes back exactly as it was.

One history of concurrent transactions per configuration, snapshots taken while it is written, then random targets;
each is restored in isolation and its rows are compared with the oracle's. A failure prints the seed; with
``DRSERVICE_SEED`` it is used again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import pytest

from drservice.errors import DrError
from drservice.model.recovery import Target, TargetKind
from drservice.model.snapshot import SnapshotRecord
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import Pusher, TempEstate
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, S3Server, moto_server, rclone_server
from tests.property.history import SCHEMA, Load, Log, Oracle, State, random_targets

METHODS = ("local", "pg_basebackup")
STORES = ("directory", "rclone", "moto")
CHECKSUMS = ("checksums", "no-checksums")
SAMPLED = (
    ("local", "rclone", "checksums"),
    ("pg_basebackup", "directory", "checksums"),
    ("local", "moto", "no-checksums"),
    ("pg_basebackup", "directory", "no-checksums"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A history that was written, backed up and archived."""

    estate: TempEstate
    oracle: Oracle
    snapshots: tuple[SnapshotRecord, ...]
    quiet_since: datetime
    """The writers had ended; after it, the WAL tells of nothing but checkpoints and restore points."""
    ended: datetime
    """The last record with a time is younger."""


@contextlib.contextmanager
def store(kind: str, folder: Path) -> Iterator[S3Server | None]:
    """Run the server that a kind of store needs."""
    with contextlib.ExitStack() as stack:
        server: S3Server | None = None
        if kind == "rclone":
            server = stack.enter_context(rclone_server(folder / "buckets"))
        elif kind == "moto":
            server = stack.enter_context(moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN))
        if server is not None:
            stack.enter_context(server.credentials())
        yield server


def write_history(
    clusters: ClusterMaker, server: S3Server | None, *, method: str, checksums: bool, seed: int, spaces: bool = False
) -> Story:
    """Write a history with snapshots in the middle of the load, and archive all of its WAL.

    With ``spaces`` the rows live in tablespaces, which are made, moved to and dropped between the snapshots.
    """
    cluster = clusters.make(
        checksums=checksums, wal_segment_mb=1, settings={"max_prepared_transactions": "10", "archive_mode": "on"}
    )
    url = server.url_for(f"b-{secrets.token_hex(6)}", "prefix") if server is not None else None
    estate = TempEstate.over(cluster, url=url, method=method)
    estate.initialise()
    cluster.start()
    if spaces:
        make_space(clusters, cluster, "first")
        cluster.sql("alter database postgres set default_tablespace = first")
    cluster.sql(SCHEMA)
    keep = cluster.root / "plain-wal"
    keep.mkdir()
    log = Log()
    snapshots: list[SnapshotRecord] = []
    with Pusher(estate, keep=keep) as pusher:
        with Load(cluster, log, seed=seed):
            time.sleep(0.3)
            for turn in range(3):
                snapshots.append(estate.backup().record)
                if spaces:
                    make_space(clusters, cluster, f"turn_{turn}")
                    cluster.sql(f"alter index bulk_xid_idx set tablespace turn_{turn}")
                    cluster.sql(f"create table in_{turn} tablespace turn_{turn} as select generate_series(1, 2000) i")
                    if turn:
                        cluster.sql(f"drop table in_{turn - 1}")
                        cluster.sql(f"drop tablespace turn_{turn - 1}")
                time.sleep(0.4)
                cluster.sql(f"select pg_create_restore_point('point-{turn}a')")
                cluster.sql("checkpoint" if turn % 2 else "select pg_switch_wal()")
                time.sleep(0.3)
                cluster.sql(f"select pg_create_restore_point('point-{turn}b')")
                time.sleep(0.1)
        quiet_since = datetime.now(UTC)
        cluster.switch_wal()
        time.sleep(0.2)
        ended = datetime.now(UTC)
        cluster.sql("checkpoint")
        cluster.sql("select pg_create_restore_point('the-end')")
        pusher.drain(str(cluster.value("select pg_walfile_name(pg_switch_wal())")))
    cluster.stop()
    return Story(
        estate=estate,
        oracle=Oracle.read(cluster, keep, log),
        snapshots=tuple(snapshots),
        quiet_since=quiet_since,
        ended=ended,
    )


def make_space(clusters: ClusterMaker, cluster: Cluster, name: str) -> None:
    cluster.sql(f"create tablespace {name} location '{clusters.folder(name)}'")


def check(story: Story, targets: list[Target]) -> None:
    """Restore to each target and compare."""
    with story.estate.plane() as plane:
        for target in targets:
            expected = story.oracle.state(story.oracle.committed(target))
            try:
                with story.estate.restored(target, plane) as (result, connection):
                    found = State.read(connection)
            except DrError as error:
                raise AssertionError(f"{target.describe()}: {error.code} {error.message}") from error
            where = f"{target.describe()} from {result.planned.resolved.plan.snapshot.id} reached {result.reached.lsn}"
            assert sorted(found.xids ^ expected.xids) == [], where
            assert found == expected, where


def run(
    clusters: ClusterMaker, folder: Path, *, method: str, kind: str, checksums: str, count: int, spaces: bool = False
) -> None:
    seed = int(os.environ.get("DRSERVICE_SEED") or secrets.randbits(32))
    print(f"to repeat: DRSERVICE_SEED={seed}")  # noqa: T201 - shown with a failure
    with store(kind, folder) as server:
        with_checksums = checksums == "checksums"
        story = write_history(clusters, server, method=method, checksums=with_checksums, seed=seed, spaces=spaces)
        try:
            first = story.snapshots[0]
            chosen = random_targets(
                story.oracle,
                after=first.postgres.stop_lsn,
                after_time=first.stopped_at,
                end_time=story.quiet_since,
                count=count - 2,
                seed=seed,
            )
            print("\n".join(target.describe() for target in chosen))  # noqa: T201 - shown with a failure
            # The quiet end, where only a checkpoint in a segment of its own proves the archive complete; and the end.
            quiet = story.quiet_since + (story.ended - story.quiet_since) / 2
            check(story, [*chosen, Target(kind=TargetKind.TIME, time=quiet), Target(kind=TargetKind.LATEST)])
            used = {record.method for record in story.snapshots}
            assert used == {method}
            assert {record.postgres.data_checksums for record in story.snapshots} == {with_checksums}
        finally:
            story.estate.close()


@pytest.mark.parametrize(
    ("method", "kind", "checksums"),
    [SAMPLED[0], *(pytest.param(*sample, marks=pytest.mark.long) for sample in SAMPLED[1:])],
)
def test_random_instants_come_back_as_the_oracle_says(
    clusters: ClusterMaker, tmp_path: Path, method: str, kind: str, checksums: str
) -> None:
    run(clusters, tmp_path, method=method, kind=kind, checksums=checksums, count=8)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("method", "kind", "checksums"), list(product(METHODS, STORES, CHECKSUMS)))
def test_forty_random_instants_of_every_configuration_come_back(
    clusters: ClusterMaker, tmp_path: Path, method: str, kind: str, checksums: str
) -> None:
    run(clusters, tmp_path, method=method, kind=kind, checksums=checksums, count=42)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_t10_random_instants_of_a_history_in_tablespaces_that_come_and_go_come_back(
    clusters: ClusterMaker, tmp_path: Path, method: str
) -> None:
    run(clusters, tmp_path, method=method, kind="directory", checksums="checksums", count=12, spaces=True)
