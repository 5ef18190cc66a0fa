"""What production says about itself when a recovery point is made, so that a recovered copy can be asked the same.

**Settled rows.** A question that is to have *exactly* the same answer later counts only rows that cannot differ: those
written by transactions that had ended when production was asked. Such a row has an ``xmin`` below
``pg_snapshot_xmin`` of the asking transaction. The token ``{settled}`` (``{settled:alias}`` in a join) in a question
becomes that condition, in production and in the copy alike, with the ``xmin`` recorded here.

**The position** is read *after* the answers and is the *insert* position. A transaction becomes visible after its
commit record was inserted into the WAL, but with ``synchronous_commit = off`` before that record is flushed, so the
flush position may lie before rows that were counted. Every counted row was committed before the insert position; a copy
that was replayed at least that far has all of them.

Sources: PostgreSQL's ``xact.c`` (RecordTransactionCommit, then ProcArrayEndTransaction), ``heapam.c``, ``sequence.c``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from drservice.canonical import canonical_bytes, parse_canonical
from drservice.clock import Clock
from drservice.components.postgres.asking import Asking, asking
from drservice.errors import DrError, PostgresUnreachableError, UnansweredError
from drservice.model.checks import Baseline, Expectation, join_columns
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn

_SETTLED = re.compile(r"\{settled(?::([A-Za-z_][A-Za-z0-9_]*))?\}")
_IDENTITY_SQL = (
    "select current_database(), pg_snapshot_xmin(pg_current_snapshot()),"
    " (select system_identifier from pg_control_system())"
)
_POSITION_SQL = (
    "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end"
)
_WRAP = 1 << 32
_STATEMENT_SECONDS = 300.0
_LONGEST_VALUE = 100_000


class Question(Protocol):
    """What is asked of a database; ``model.estate.BusinessCheck`` is one."""

    @property
    def name(self) -> str:
        """Unique among the questions."""
        ...

    @property
    def database(self) -> str | None:
        """``None`` = the one the dsn names."""
        ...

    @property
    def sql(self) -> str:
        """One SELECT."""
        ...

    @property
    def expect(self) -> Expectation:
        """What the answer has to be."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """A question about rows that do not change once they are settled, asked wherever its table exists.

    ``rows`` is a FROM clause with its WHERE; ``totals`` over it may not change. A row of these tables *can* be written
    again (a journal item when it is reconciled), which gives it a new ``xmin``; :meth:`rewritten_sql` counts those.
    """

    name: str
    table: str
    needs: tuple[str, ...]
    """Columns without which the table is another one of the same name."""
    rows: str
    totals: str
    final: bool
    """Whether the application refuses to delete such rows: then none may be gone at any later position either."""

    @property
    def sql(self) -> str:
        """Count and totals of the settled rows."""
        return f"select count(*), {self.totals}, coalesce(max(id), 0) from {self.rows} and {{settled}}"  # noqa: S608 - from the table below

    def delete_sql(self, xmin: int) -> str:
        """Delete the settled row with the greatest id and return that id: for drills that must fail."""
        newest = settle(f"select max(id) from {self.rows} and {{settled}}", xmin)  # noqa: S608 - from the table below
        return f"delete from {self.table} where id = ({newest}) returning id"  # noqa: S608 - from the table below

    def rewritten_sql(self, greatest_id: int) -> str:
        """Count the rows up to an id that were written again after they had been counted."""
        return f"select count(*) from {self.rows} and not {{settled}} and id <= {greatest_id}"  # noqa: S608 - from the table below


WATERMARKS: Sequence[Watermark] = (
    Watermark(
        name="posted-journal-items",
        table="account_move_line",
        needs=("id", "parent_state", "debit"),
        rows="account_move_line where parent_state = 'posted'",
        totals="coalesce(sum(debit), 0)",
        final=True,
    ),
    Watermark(
        name="done-stock-moves",
        table="stock_move",
        needs=("id", "state", "product_qty"),
        rows="stock_move where state = 'done'",
        totals="coalesce(sum(product_qty), 0)",
        final=True,
    ),
    Watermark(
        name="documents",
        table="ir_attachment",
        needs=("id", "store_fname", "file_size"),
        rows="ir_attachment where store_fname is not null",
        totals="coalesce(sum(file_size::bigint), 0)",
        final=False,
    ),
)
"""Tables in the shape of Odoo's. A database without them has no watermarks but its sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What one database said about the application that lives in it."""

    values: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


Gather: TypeAlias = Callable[[Asking, str], Gathered]
"""Asks a database by its name; what cannot be answered is among the problems."""


def _gather_nothing(_source: Asking, _database: str) -> Gathered:
    return Gathered()


SEQUENCES = "sequences"
_SEQUENCES_SQL = (
    "select format('%I.%I', schemaname, sequencename), last_value,"
    " has_sequence_privilege(format('%I.%I', schemaname, sequencename), 'select, usage') from pg_sequences"
    " where increment_by > 0 and not cycle and schemaname !~ '^pg_' order by 1"
)
"""Only those that go one way. A sequence has no value if nobody used it, or if the role may not see it."""


def watermark_key(database: str, name: str) -> str:
    """Return the name under which a baseline keeps a watermark."""
    return f"watermark:{database}:{name}"


def watermark_names(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return database and name of the watermarks among a baseline's keys."""
    found = []
    for key in keys:
        kind, _, rest = key.partition(":")
        database, colon, name = rest.rpartition(":")
        if kind == "watermark" and colon:
            found.append((database, name))
    return sorted(found)


def settle(sql: str, xmin: int) -> str:
    """Replace ``{settled}`` by the condition that a row was written by a transaction before ``xmin`` (64 bits).

    A row's own ``xmin`` has 32 bits, and a frozen row keeps the number it had: no comparison modulo 2^32 with ``xmin``
    alone is right for rows that are older than 2^31 transactions. But every row that can be seen was written before the
    reading snapshot's xmax, so exactly the numbers from ``xmin`` up to that are *not* settled, a narrow window. Ids 1
    and 2 (bootstrap, and rows frozen by old versions) are always settled. One thing cannot be told apart: a frozen row
    that is exactly a multiple of 2^32 transactions older than one in the window. It is taken as not settled, which can
    make a check fail, not pass.
    """

    def condition(match: re.Match[str]) -> str:
        column = f"{match[1]}.xmin" if match[1] else "xmin"
        number = f"{column}::text::bigint"
        return (
            f"({number} in (1, 2) or mod({number} - {xmin % _WRAP} + {_WRAP}, {_WRAP})"
            f" >= (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - {xmin})"
        )

    return _SETTLED.sub(condition, sql)


def measure_baseline(
    dsn: str,
    checks: Sequence[Question],
    clock: Clock,
    *,
    databases: Sequence[str] = (),
    gather: Gather = _gather_nothing,
    seconds: float = _STATEMENT_SECONDS,
) -> Baseline:
    """Ask production what a recovered copy will be asked: the checks that compare with it, and the watermarks.

    Read-only; takes no lock but those of reading. Call it *before* the snapshot of the cluster begins: then every
    position that can be recovered from that snapshot lies behind the baseline's, and has all of its rows.

    Each database is read in a transaction of its own; the first one's ``xmin`` serves all: what had ended then has
    ended for the later ones too. A question that fails is recorded with its reason and does not stop the others.

    Args:
        dsn: production, primary or standby.
        checks: the business checks of this component; the others are passed over.
        clock: for the instant.
        databases: further ones that are asked for watermarks, beside the dsn's and those of the checks.
        gather: asks these databases about their application.
        seconds: for each statement.

    Raises:
        PostgresUnreachableError: no connection, or it broke.
        PostgresError: the server refused the session itself.
    """
    asked = [check for check in checks if check.expect.needs_baseline]
    measured_at = clock.now()
    with asking(dsn, seconds=seconds, application_name="drservice baseline") as first:
        database, xmin, system = first.answer(_IDENTITY_SQL)
        if database is None or xmin is None or system is None:
            raise UnansweredError("the server does not tell its database, snapshot and system id")
        recorder = _Recorder(xmin=int(xmin))
        recorder.record(first, database, [check for check in asked if check.database in {None, database}])
        if database in databases:
            recorder.gather(first, database, gather)
        others = dict.fromkeys([*(check.database for check in asked), *databases])
        for other in others:
            if other is None or other == database:
                continue
            with asking(dsn, seconds=seconds, database=other, application_name="drservice baseline") as further:
                recorder.record(further, other, [check for check in asked if check.database == other])
                if other in databases:
                    recorder.gather(further, other, gather)
        (lsn,) = first.answer(_POSITION_SQL)
    if lsn is None:
        raise UnansweredError("the server does not tell its position")
    return Baseline(
        measured_at=measured_at,
        lsn=Lsn.parse(lsn),
        snapshot_xmin=recorder.xmin,
        # system_identifier is a bigint in SQL but an unsigned number everywhere else.
        system_id=SystemId(str(int(system) % (1 << 64))),
        values=recorder.values,
        problems=recorder.problems,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder:
    xmin: int
    values: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def record(self, source: Asking, database: str, checks: Sequence[Question]) -> None:
        for check in checks:
            self._keep(check.name, source, check.sql)
        for watermark in WATERMARKS:
            if has_table(source, watermark):
                self._keep(watermark_key(database, watermark.name), source, watermark.sql)
        key = watermark_key(database, SEQUENCES)
        try:
            self.values[key] = encode_sequences(read_sequences(source))
        except PostgresUnreachableError:
            raise
        except DrError as error:
            self.problems[key] = error.message

    def gather(self, source: Asking, database: str, gather: Gather) -> None:
        try:
            found = gather(source, database)
        except PostgresUnreachableError:
            raise
        except DrError as error:
            self.problems[f"odoo:{database}"] = f"production could not be asked: {error.message}"
            return
        self.problems.update(found.problems)
        for name, value in found.values.items():
            self._take(name, value)

    def _keep(self, name: str, source: Asking, sql: str) -> None:
        try:
            value = join_columns(source.answer(settle(sql, self.xmin)))
        except PostgresUnreachableError:
            raise
        except DrError as error:
            self.problems[name] = f"production could not answer: {error.message}"
            return
        if value is None:
            self.problems[name] = "production answered NULL"
        else:
            self._take(name, value)

    def _take(self, name: str, value: str) -> None:
        if len(value) > _LONGEST_VALUE:
            self.problems[name] = f"production's answer has {len(value)} letters; {_LONGEST_VALUE} can be kept"
        else:
            self.values[name] = value


def has_table(source: Asking, watermark: Watermark) -> bool:
    """Tell whether the table is there with the columns that make it the one meant."""
    columns = ", ".join(f"'{column}'" for column in watermark.needs)
    (count,) = source.answer(
        f"select count(*) from pg_attribute where attrelid = to_regclass('{watermark.table}')"  # noqa: S608 - from the table above
        f" and not attisdropped and attname in ({columns})"
    )
    return count == str(len(watermark.needs))


def read_sequences(source: Asking) -> dict[str, int]:
    """Return the last value of every sequence that only goes up and was used.

    Raises:
        PostgresError: the server refused.
        UnansweredError: its answer makes no sense.
    """
    found: dict[str, int] = {}
    hidden = 0
    for name, value, visible in source.scan(_SEQUENCES_SQL):
        if value is None:
            hidden += visible != "t"
        elif name is None or not value.removeprefix("-").isdigit():
            raise UnansweredError("the list of sequences makes no sense")
        else:
            found[name] = int(value)
    if hidden:
        raise UnansweredError(f"the role may not read {hidden} sequences", hint="GRANT pg_read_all_data TO the role.")
    return found


def encode_sequences(sequences: Mapping[str, int]) -> str:
    """Return sequences as the text that a baseline keeps."""
    return canonical_bytes({name: str(value) for name, value in sequences.items()}).decode()


def decode_sequences(text: str) -> dict[str, int]:
    """Read what :func:`encode_sequences` wrote.

    Raises:
        ValueError: it is something else.
    """
    data = parse_canonical(text.encode())
    if not isinstance(data, Mapping):
        raise ValueError("sequences are an object")  # noqa: TRY004 - one kind of error for the reader's caller
    return {name: int(str(value)) for name, value in data.items()}
