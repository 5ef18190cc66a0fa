"""A history of writes on a real server, and the oracle that knows what each instant of it must look like.

Writers on several connections make transactions of every kind and remember what each wrote, under its xid. The WAL
itself, read by ``pg_waldump`` over plain copies of the segments and parsed here (not by the code under test), tells
which of them were committed, in which order and when. Together they say for every target which rows must be there.

The seed fixes what is written and which targets are asked for; how the writers interleave is the server's affair.
"""

from __future__ import annotations

import random
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psycopg

from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn
from tests.doubles.cluster import Cluster

ACCOUNTS = 12
_LINE = re.compile(r"rmgr: (\S+)\s+len .*?, tx:\s*(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev \S+, desc: (.*)")
_END = re.compile(r"(COMMIT|ABORT)(_PREPARED)?(?: (\d+):)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")
_POINT = re.compile(r"RESTORE_POINT (\S+)")

SCHEMA = f"""
create table history (xid bigint primary key, rows int not null, digest text not null);
create table bulk (xid bigint not null, n int not null, filler text not null);
create index on bulk (xid);
create table accounts (id int primary key, balance bigint not null);
insert into accounts select i, 0 from generate_series(0, {ACCOUNTS - 1}) i;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one transaction leaves if it is committed."""

    transfer: tuple[int, int, int] | None = None
    """From, to, amount."""
    table: str | None = None
    """A table it creates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a transaction, as the WAL has it."""

    lsn: Lsn
    xid: int
    at: datetime
    committed: bool


@dataclass(slots=True)
class Log:
    """What the writers did, by xid; filled by all of them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    written: dict[int, Written] = field(default_factory=dict)
    failure: BaseException | None = None

    def note(self, xid: int, written: Written) -> None:
        with self.lock:
            self.written[xid] = written


class Writer(threading.Thread):
    """One connection that makes transactions until it is told to stop."""

    def __init__(self, cluster: Cluster, log: Log, *, seed: int, number: int) -> None:
        super().__init__(daemon=True, name=f"writer-{number}")
        self._cluster = cluster
        self._log = log
        self._random = random.Random(f"{seed}-{number}")
        self._number = number
        self._halt = threading.Event()
        self._made = 0

    def halt(self) -> None:
        self._halt.set()

    def run(self) -> None:
        try:
            with psycopg.connect(self._cluster.dsn(), autocommit=True) as connection:
                while not self._halt.wait(self._random.uniform(0.002, 0.03)):
                    self._transaction(connection)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is raised by whoever joins it
            self._log.failure = error

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        choose = self._random
        kind = choose.choices(
            ["tiny", "medium", "large", "abort", "savepoint", "ddl", "prepared", "prepared-abort"],
            [30, 25, 2, 10, 15, 6, 8, 4],
        )[0]
        self._made += 1
        connection.execute("begin")
        xid = int(connection.execute("select pg_current_xact_id()::text").fetchone()[0])  # type: ignore[index] # one row
        rows = {"tiny": 0, "large": 1500, "medium": choose.randint(1, 25)}.get(kind, choose.randint(0, 6))
        transfer = self._transfer(connection) if choose.random() < 0.4 else None
        self._bulk(connection, xid, range(rows))
        if kind == "savepoint":
            connection.execute("savepoint a")
            self._bulk(connection, xid, range(1000, 1005))
            connection.execute("rollback to savepoint a")
            connection.execute("savepoint b")
            self._bulk(connection, xid, range(rows, rows + 3))
            connection.execute("release savepoint b")
        table = f"made_{xid}" if kind == "ddl" else None
        if table is not None:
            connection.execute(f"create table {table} as select {xid}::bigint as xid")
        connection.execute(
            "insert into history select %s::bigint, count(n), md5(coalesce(string_agg(n || filler, '' order by n), ''))"
            " from bulk where xid = %s::bigint",
            (xid, xid),
        )
        # Noted before the end is asked for: whether it was committed is the WAL's to say.
        self._log.note(xid, Written(transfer=transfer, table=table))
        if kind.startswith("prepared"):
            name = f"w{self._number}-{self._made}"
            connection.execute(f"prepare transaction '{name}'")
            self._halt.wait(choose.uniform(0, 0.02))
            verb = "rollback" if kind.endswith("abort") else "commit"
            connection.execute(f"{verb} prepared '{name}'")
        else:
            connection.execute("rollback" if kind == "abort" else "commit")

    def _bulk(self, connection: psycopg.Connection[Any], xid: int, numbers: range) -> None:
        connection.execute(
            "insert into bulk select %s::bigint, n, md5(%s || n::text) || repeat('x', %s::int)"
            " from generate_series(%s::int, %s::int) n",
            (xid, str(xid), self._random.randint(0, 120), numbers.start, numbers.stop - 1),
        )

    def _transfer(self, connection: psycopg.Connection[Any]) -> tuple[int, int, int]:
        giver, taker = sorted(self._random.sample(range(ACCOUNTS), 2))  # in one order: no deadlocks
        amount = self._random.randint(1, 1000)
        connection.execute("update accounts set balance = balance - %s where id = %s", (amount, giver))
        connection.execute("update accounts set balance = balance + %s where id = %s", (amount, taker))
        return giver, taker, amount


class Load:
    """Several writers; use as a context manager."""

    def __init__(self, cluster: Cluster, log: Log, *, seed: int, connections: int = 3) -> None:
        self._log = log
        self._writers = [Writer(cluster, log, seed=seed, number=number) for number in range(connections)]

    def __enter__(self) -> Self:
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers:
            writer.halt()
        for writer in self._writers:
            writer.join()
        if self._log.failure is not None:
            raise self._log.failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """What the WAL says, and what each transaction wrote."""

    records: Sequence[Lsn]
    """Where each record begins, of any kind, in order."""
    ends: Sequence[End]
    points: Mapping[str, Lsn]
    written: Mapping[int, Written]

    @classmethod
    def read(cls, cluster: Cluster, segments: Path, log: Log) -> Oracle:
        """Read the plain copies of all archived segments."""
        names = sorted(path.name for path in segments.iterdir() if re.fullmatch("[0-9A-F]{24}", path.name))
        # It ends with an error where the archived WAL ends; what it read until then is checked below.
        done = cluster.run("pg_waldump", "--path", segments, names[0], names[-1])
        records: list[Lsn] = []
        ends: list[End] = []
        points: dict[str, Lsn] = {}
        for line in done.stdout.decode("utf-8", "replace").splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            manager, xid, position, text = found.groups()
            lsn = Lsn.parse(position)
            records.append(lsn)
            if manager == "Transaction" and (end := _END.match(text)):
                at = datetime.strptime(end[4], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
                ends.append(End(lsn=lsn, xid=int(end[3] or xid), at=at, committed=end[1] == "COMMIT"))
            elif manager == "XLOG" and (point := _POINT.match(text)):
                points[point[1]] = lsn
        segment_bytes = (segments / names[0]).stat().st_size
        last = int(names[-1][8:16], 16) * ((1 << 32) // segment_bytes) + int(names[-1][16:], 16)
        assert records[-1].value // segment_bytes == last, "pg_waldump stopped before the last segment"
        assert records == sorted(records)
        return cls(records=records, ends=ends, points=points, written=dict(log.written))

    def committed(self, target: Target) -> set[int]:
        """Return the transactions of the writers that are there at a target."""
        if target.kind is TargetKind.TIME:
            return self._own(self._until(target.time))
        if target.kind is TargetKind.LATEST:
            return self._own(self.ends)
        position = self.position(target)
        return self._own(end for end in self.ends if end.lsn <= position)

    def position(self, target: Target) -> Lsn:
        """Return where the last record begins that is replayed for a target other than a time."""
        if target.kind is TargetKind.LSN:
            # PostgreSQL stops after the first record that begins at or behind the target (recovery_target_inclusive).
            assert target.lsn is not None
            return self.records[min(bisect_left(self.records, target.lsn), len(self.records) - 1)]
        if target.kind is TargetKind.NAME:
            return self.points[str(target.name)]
        return next(end.lsn for end in self.ends if end.xid == target.xid)

    def _until(self, instant: datetime | None) -> Iterable[End]:
        assert instant is not None
        for end in self.ends:
            if end.at > instant:  # an abort stops recovery as a commit does
                return
            yield end

    def _own(self, ends: Iterable[End]) -> set[int]:
        return {end.xid for end in ends if end.committed and end.xid in self.written}

    def state(self, xids: set[int]) -> State:
        """Return what the tables must hold after these transactions."""
        balances = dict.fromkeys(range(ACCOUNTS), 0)
        for xid in xids:
            moved = self.written[xid].transfer
            if moved is not None:
                balances[moved[0]] -= moved[2]
                balances[moved[1]] += moved[2]
        tables = {self.written[xid].table for xid in xids}
        return State(xids=frozenset(xids), balances=balances, tables=frozenset(t for t in tables if t))


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the tables hold."""

    xids: frozenset[int]
    balances: Mapping[int, int]
    tables: frozenset[str]

    @classmethod
    def read(cls, connection: psycopg.Connection[Any]) -> State:
        """Read a recovered server, every page of every row, and check each transaction's own digest."""
        spoilt = connection.execute(
            "select h.xid from history h left join bulk b using (xid) group by h.xid, h.rows, h.digest"
            " having count(b.n) <> h.rows"
            " or md5(coalesce(string_agg(b.n || b.filler, '' order by b.n), '')) <> h.digest"
        ).fetchall()
        assert not spoilt, f"transactions whose rows are not as they were written: {spoilt}"
        orphans = connection.execute("select distinct xid from bulk except select xid from history").fetchall()
        assert not orphans, f"rows of transactions that are not there: {orphans}"
        xids = [int(row[0]) for row in connection.execute("select xid from history").fetchall()]
        through_index = connection.execute(
            "select count(*) from history h where exists (select from bulk b where b.xid = h.xid) = (h.rows > 0)"
        ).fetchone()
        assert through_index == (len(xids),)
        tables = [row[0] for row in connection.execute("select relname from pg_class where relname ~ '^made_'")]
        for table in tables:
            assert connection.execute(f"select xid from {table}").fetchall() == [(int(table.removeprefix("made_")),)]
        balances = connection.execute("select id, balance from accounts").fetchall()
        return cls(
            xids=frozenset(xids),
            balances={int(account): int(balance) for account, balance in balances},
            tables=frozenset(tables),
        )


def random_targets(
    oracle: Oracle, *, after: Lsn, after_time: datetime, end_time: datetime, count: int, seed: int
) -> list[Target]:
    """Choose targets behind a position (the end of the first snapshot): times, LSNs, xids and names in turn.

    Of the times, some are the very instant of a commit, some a microsecond before it, some lie in idle stretches.
    """
    choose = random.Random(f"targets-{seed}")
    ends = [end for end in oracle.ends if end.lsn >= after and end.at >= after_time]
    commits = [end for end in ends if end.committed]
    # A position inside the archived WAL that has records behind it: the last record is the end of the archive.
    records = [lsn for lsn in oracle.records[:-1] if lsn >= after]
    points = [name for name, lsn in oracle.points.items() if lsn >= after]
    made: list[Target] = []
    for number in range(count):
        match number % 5:
            case 0:
                made.append(Target(kind=TargetKind.TIME, time=_between(choose, after_time, end_time)))
            case 1:
                shift = choose.choice([timedelta(0), timedelta(microseconds=-1)])
                made.append(Target(kind=TargetKind.TIME, time=max(after_time, choose.choice(ends).at + shift)))
            case 2:
                lsn = choose.choice(records) + choose.choice([0, 0, 1, 8, 100])
                made.append(Target(kind=TargetKind.LSN, lsn=min(lsn, records[-1])))
            case 3:
                made.append(Target(kind=TargetKind.XID, xid=choose.choice(commits).xid))
            case _:
                made.append(Target(kind=TargetKind.NAME, name=choose.choice(points)))
    return made


def _between(choose: random.Random, begin: datetime, end: datetime) -> datetime:
    return begin + timedelta(microseconds=int(choose.random() * ((end - begin) / timedelta(microseconds=1))))
