"""A cluster with a small database beside a large one, and a history of both for side restores and extracts.

The large one does after the snapshot whatever replay would have to read its old pages for: it is vacuumed (the cluster
has no checksums, so those records carry no page images), has a hash index with long chains, is truncated, rebuilt, and
is itself copied file by file into another database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import Pusher, TempEstate, as_user

SMALL = "plant"
LARGE = "warehouse"
BIG_ROWS = 60_000
HOSTILE = 'sales."x""\n\\! touch hostile\n\\copy"'
"""A table whose name would be commands if somebody wrote it down as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideHistory:
    """What happened, and when."""

    estate: TempEstate
    ballast: str
    """The file of a table of the large database that nothing touches."""
    whole: datetime
    """Both databases changed after the snapshot; ``orders`` and ``lines`` are as in the two fields below."""
    orders: list[tuple[Any, ...]]
    lines: list[tuple[Any, ...]]
    spoilt: datetime
    """All orders are gone, a database was copied from the large one, the third is called ``archive``."""
    dropped: datetime
    """The small database is gone, too, and a new one has its name."""

    @property
    def cluster(self) -> Cluster:
        return self.estate.cluster

    @classmethod
    def over(cls, maker: ClusterMaker, *, checksums: bool = False, full_page_writes: str = "on") -> Self:
        """Make it; the server has ended when this returns."""
        settings = {"autovacuum": "off", "full_page_writes": full_page_writes}
        cluster = maker.make(checksums=checksums, wal_segment_mb=1, settings=settings)
        estate = TempEstate.over(cluster)
        estate.json("init", account=as_user("postgres"))
        cluster.configure(archive_mode="on", archive_command="''")
        cluster.start()
        for name in (SMALL, LARGE, "third"):
            cluster.sql(f"create database {name}")
        _fill(cluster)
        with Pusher(estate) as pusher:
            estate.backup()
            _change(cluster)
            orders, lines = _rows(cluster, "orders"), _rows(cluster, '"Lines of orders"')
            whole = _instant(cluster)
            cluster.sql("delete from orders", database=SMALL)
            cluster.sql(f"create database copied template {LARGE} strategy file_copy")
            cluster.sql("insert into stock values (0, 'in the copy')", database="copied")
            cluster.sql(f"create database fresh template {SMALL} strategy wal_log")
            cluster.sql("alter database third rename to archive")
            spoilt = _instant(cluster)
            cluster.sql(f"drop database {SMALL}")
            cluster.sql(f"create database {SMALL} template {LARGE} strategy file_copy")
            dropped = _instant(cluster)
            pusher.drain(cluster.switch_wal())
            ((ballast,),) = cluster.sql("select pg_relation_filepath('ballast')", database=LARGE)
        cluster.stop()
        return cls(
            estate=estate,
            ballast=ballast,
            whole=whole,
            orders=orders,
            lines=lines,
            spoilt=spoilt,
            dropped=dropped,
        )

    def into(self, name: str) -> Path:
        """Name a folder for what is brought back."""
        return self.cluster.root / name


def _fill(cluster: Cluster) -> None:
    """Make what is there before the snapshot."""
    cluster.sql(
        "create type state as enum ('open', 'done');"
        " create function shout(text) returns text immutable language sql as 'select upper($1)';"
        " create table customers (id int primary key, name text not null);"
        " create table orders (id serial primary key, customer int references customers, state state default 'open',"
        " note text);"
        ' create table "Lines of orders" ("order" int, "Item ""A""" text);'
        " create table parts (id int, at date) partition by range (at);"
        " create table parts_2025 partition of parts for values from ('2025-01-01') to ('2026-01-01');"
        " create schema sales; create table sales.orders (id int);"
        f" create table {HOSTILE} (id int); insert into {HOSTILE} values (7);"
        " insert into customers select i, 'customer ' || i from generate_series(1, 20) i;"
        " insert into orders (customer, note) select 1 + i % 20, 'order ' || i from generate_series(1, 500) i;"
        " insert into parts values (1, '2025-06-01');"
        " insert into \"Lines of orders\" values (1, 'a')",
        database=SMALL,
    )
    cluster.sql(
        f"create table stock as select i as id, repeat(md5(i::text), 4) as note from generate_series(1, {BIG_ROWS}) i;"
        " create table bins as select i % 5 as bin, i as item from generate_series(1, 30000) i;"
        " create index on bins using hash (bin);"
        " create table scratch as select generate_series(1, 20000) i;"
        " create table ballast as select repeat('x', 100) from generate_series(1, 20000);"
        " create unlogged table counters as select generate_series(1, 1000) i",
        database=LARGE,
    )
    cluster.sql("create table notes as select 1 as id", database="third")
    cluster.sql("checkpoint")


def _change(cluster: Cluster) -> None:
    """Change both databases after the snapshot."""
    cluster.sql("vacuum stock", database=LARGE)  # all-visible: a record for each page, without an image of it
    cluster.sql("insert into bins select 1, i from generate_series(1, 3000) i", database=LARGE)
    cluster.sql("delete from bins where item % 3 = 0 and bin = 1", database=LARGE)
    cluster.sql("vacuum bins", database=LARGE)
    cluster.sql("update stock set note = 'new' where id % 50 = 0", database=LARGE)
    cluster.sql("truncate scratch; insert into scratch values (1)", database=LARGE)
    cluster.sql("create index on stock (id)", database=LARGE)
    cluster.sql("alter table bins set (fillfactor = 50)", database=LARGE)
    cluster.sql("vacuum full bins", database=LARGE)
    cluster.sql("drop table counters", database=LARGE)
    cluster.sql("update orders set state = 'done' where id % 7 = 0", database=SMALL)
    cluster.sql("insert into orders (customer, note) select 1, 'late' from generate_series(1, 50)", database=SMALL)
    cluster.sql('insert into "Lines of orders" values (2, \'b; drop table "x"\')', database=SMALL)
    cluster.sql("vacuum orders", database=SMALL)


def _rows(cluster: Cluster, table: str) -> list[tuple[Any, ...]]:
    return cluster.sql(f"select * from {table} t order by t::text", database=SMALL)


def _instant(cluster: Cluster) -> datetime:
    """Return an instant after what was done so far and before what is done next."""
    at: datetime = cluster.value("select clock_timestamp()")
    cluster.sql("select pg_sleep(0.01), pg_logical_emit_message(true, 'test', 'after')")
    return at
