"""A small estate with a short, known history, made with the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from drservice.clock import to_iso
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import TempEstate, as_user, wait_for


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Orders 1-100, first snapshot, 101, a rolled-back order, restore point ``monday``, second snapshot, 102, drop.

    A segment of its own (``middle``) lies between order 102 and the drop.
    """

    estate: TempEstate
    init: dict[str, Any]
    first: dict[str, Any]
    second: dict[str, Any]
    before_first: datetime
    after_101: datetime
    xid_101: int
    xid_rolled_back: int
    after_102: datetime
    lsn_102: str
    middle: str
    in_middle: datetime
    lsn_drop: str

    @property
    def cluster(self) -> Cluster:
        return self.estate.cluster

    @property
    def signer(self) -> dict[str, str]:
        """The line that `init` prints for other machines."""
        return {self.init["signer"]["name"]: self.init["signer"]["key"]}

    def another_machine(self, name: str, **changes: Any) -> Path:
        """Write the configuration of a machine that has settings, store and identity, and nothing else."""
        folder = self.cluster.root / name
        folder.mkdir(exist_ok=True)
        given = {"state": folder / "state", "signers": self.signer, **changes}
        return self.estate.write_configuration(folder / "drservice.yaml", **given)


def archived(cluster: Cluster, segment: str) -> None:
    """Wait until the server calls a segment archived."""
    status = cluster.data / "pg_wal" / "archive_status" / f"{segment}.done"
    wait_for(status.exists, f"{segment} to be archived; log:\n{cluster.log_text()[-2000:]}")


@pytest.fixture(scope="session")
def world(template_cache: Path) -> Iterator[World]:
    """The estate; its server has ended, its repository is never changed by a test (they copy it)."""
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    estate = TempEstate.over(cluster)
    try:
        yield tell(estate)
    finally:
        estate.close()
        maker.close()


def tell(estate: TempEstate) -> World:
    """Make the history with the program, as the server's user and as root in turn."""
    cluster, owner = estate.cluster, as_user("postgres")
    init = estate.json("init", account=owner)
    estate.archive_with_the_program()
    cluster.start()
    cluster.sql("create table orders (id int primary key, note text)")
    cluster.sql("insert into orders select i, 'order ' || i from generate_series(1, 100) i")
    before_first = cluster.value("select clock_timestamp()")
    first = estate.json("backup", "erp", account=owner)
    xid_101 = order(cluster, 101, "commit")
    after_101 = cluster.value("select clock_timestamp()")
    xid_rolled_back = order(cluster, 999, "rollback")
    cluster.sql("select pg_create_restore_point('monday')")
    second = estate.json("backup", "erp")
    lsn_102 = cluster.value("select pg_current_wal_insert_lsn()::text")
    order(cluster, 102, "commit")
    after_102 = cluster.value("select clock_timestamp()")
    cluster.switch_wal()
    in_middle = cluster.value("select clock_timestamp()")
    middle = cluster.switch_wal()
    cluster.sql("drop table orders")
    lsn_drop = cluster.value("select pg_current_wal_insert_lsn()::text")
    archived(cluster, cluster.switch_wal())
    cluster.stop()
    return World(
        estate=estate,
        init=init,
        first=first["snapshots"][0],
        second=second["snapshots"][0],
        before_first=before_first,
        after_101=after_101,
        xid_101=xid_101,
        xid_rolled_back=xid_rolled_back,
        after_102=after_102,
        lsn_102=lsn_102,
        middle=middle,
        in_middle=in_middle,
        lsn_drop=lsn_drop,
    )


def order(cluster: Cluster, number: int, end: str) -> int:
    """Insert an order and end its transaction; return the xid."""
    with cluster.connect() as connection:
        connection.execute("begin")
        connection.execute("insert into orders values (%s, 'late')", (number,))
        row = connection.execute("select pg_current_xact_id()::text").fetchone()
        assert row is not None
        connection.execute(end.encode())
        return int(row[0])


def iso(instant: datetime) -> str:
    """Write an instant as the command line takes it."""
    return to_iso(instant)
