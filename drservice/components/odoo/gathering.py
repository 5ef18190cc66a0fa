"""What a running Odoo is asked when a recovery point is made, beside its watermarks, and how the answers are spelled.

Counts and newest times of the business tables, the highest numbers of documents, the versions of modules, and who
breaks an invariant in production already. It costs production little: each question has a few seconds, all together
have a minute, and tables that are too large are left out. What was left out is a *problem* of the baseline, with the
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import Clock
from drservice.components.odoo.invariants import INVARIANTS, Offenders, find_offenders
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking
from drservice.components.postgres.baseline import Gathered
from drservice.errors import DrError, PostgresUnreachableError, UnansweredError

_BUDGET_SECONDS = 60.0
_QUESTION_SECONDS = 15.0
_MOST_ROWS = 20_000_000
_MOST_PREFIXES = 500
MODULES, JOURNALS, NO_GAP = "modules", "journal-numbers", "no-gap-numbers"

COUNTED: Mapping[str, str | None] = {
    "account_move": "state",
    "account_move_line": "parent_state",
    "account_payment": None,
    "ir_attachment": None,
    "mail_mail": "state",
    "mrp_production": "state",
    "mrp_workorder": "state",
    "purchase_order": "state",
    "res_partner": None,
    "sale_order": "state",
    "sms_sms": "state",
    "stock_move": "state",
    "stock_move_line": "state",
    "stock_picking": "state",
    "stock_quant": None,
}
"""Tables whose rows are counted, with the column that tells their state."""


def odoo_key(database: str, name: str) -> str:
    """Return the name under which a baseline keeps an answer of Odoo's."""
    return f"odoo:{database}:{name}"


def count_name(table: str) -> str:
    """Return how the count of a table is called."""
    return f"count-{table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCount:
    """The rows of one table."""

    rows: Mapping[str, int]
    """By state; the state is empty where the table has none."""
    written: str | None
    """The newest ``write_date``, as PostgreSQL prints it, in UTC."""
    created: str | None

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.rows.values())

    def encode(self) -> str:
        """Return the text that a baseline keeps."""
        value: Json = {"rows": dict(self.rows), "written": self.written, "created": self.created}
        return canonical_bytes(value).decode()

    @classmethod
    def decode(cls, text: str) -> TableCount:
        """Read what :meth:`encode` wrote.

        Raises:
            ValueError: it is something else.
        """
        value = _object(text)
        rows, written, created = value.get("rows"), value.get("written"), value.get("created")
        if not isinstance(rows, Mapping):
            raise ValueError("a count has rows")  # noqa: TRY004 - one kind of error for the reader's caller
        return cls(
            rows={state: _number(count) for state, count in rows.items()},
            written=None if written is None else str(written),
            created=None if created is None else str(created),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """Where one kind of document numbers stands."""

    id: str
    """Identifies it in every copy of the database."""
    name: str
    """For people: the prefix of a journal's numbers, or the name of a sequence."""
    last: int
    """The highest that was given out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """An installed module."""

    state: str
    version: str


def count_rows(source: Asking, schema: OdooSchema, table: str) -> TableCount:
    """Count a table's rows by state; the session has to be pinned.

    Raises:
        PostgresError, UnansweredError: it cannot be told.
    """
    state = COUNTED[table]
    grouped = f"coalesce({state}, '')" if state is not None and schema.has(table, state) else "''::text"
    # Odoo's times have no zone and are UTC, as the session is.
    written, created = (
        f'to_char(max({column}), \'YYYY-MM-DD"T"HH24:MI:SS"Z"\')' if schema.has(table, column) else "null::text"
        for column in ("write_date", "create_date")
    )
    question = f"select {grouped}, count(*), {written}, {created} from public.{table} group by 1"  # noqa: S608 - from the table above
    rows = list(source.scan(question))
    return TableCount(
        rows={str(name): _counted(count) for name, count, _, _ in rows},
        written=max((row[2] for row in rows if row[2] is not None), default=None),
        created=max((row[3] for row in rows if row[3] is not None), default=None),
    )


def read_journals(source: Asking, schema: OdooSchema) -> list[Numbered]:
    """Return the highest number of posted entries by journal and prefix, the newest prefixes first.

    Odoo numbers the next entry by the highest one that is there, so these are at risk of being given out twice.

    Raises:
        PostgresError, UnansweredError: it cannot be told.
    """
    if not schema.has("account_move", "id", "state", "journal_id", "sequence_prefix", "sequence_number"):
        return []
    rows = source.scan(
        "select format('%s@%s', sequence_prefix, journal_id), format('%s of journal %s', sequence_prefix, journal_id),"  # noqa: S608 - a number
        " max(sequence_number) from public.account_move"
        " where state = 'posted' and sequence_prefix <> '' and name <> '/'"
        f" group by journal_id, sequence_prefix order by max(id) desc limit {_MOST_PREFIXES}"
    )
    return [_numbered(row) for row in rows]


def read_no_gap(source: Asking, schema: OdooSchema) -> list[Numbered]:
    """Return sequences whose next number is a row of a table, which goes back with the database.

    Raises:
        PostgresError, UnansweredError: it cannot be told.
    """
    found: list[Numbered] = []
    if schema.has("ir_sequence", "id", "name", "implementation", "number_next"):
        found += map(
            _numbered,
            source.scan(
                "select format('ir_sequence:%s', id), format('%s (%s)', name, id), number_next - 1"
                " from public.ir_sequence where implementation = 'no_gap' order by id limit 5000"
            ),
        )
        if schema.has("ir_sequence_date_range", "id", "sequence_id", "date_from", "number_next"):
            found += map(
                _numbered,
                source.scan(
                    "select format('ir_sequence_date_range:%s', r.id), format('%s from %s', s.name, r.date_from),"
                    " r.number_next - 1 from public.ir_sequence_date_range r"
                    " join public.ir_sequence s on s.id = r.sequence_id where s.implementation = 'no_gap'"
                    " order by r.id desc limit 5000"
                ),
            )
    return found


def read_modules(source: Asking) -> dict[str, Module]:
    """Return every module that is installed or on its way.

    Raises:
        PostgresError: it cannot be told.
    """
    rows = source.scan(
        "select name, state, latest_version from public.ir_module_module"
        " where state not in ('uninstalled', 'uninstallable') order by name"
    )
    return {str(name): Module(state=state or "", version=version or "") for name, state, version in rows}


def read_imported(source: Asking, schema: OdooSchema) -> frozenset[str]:
    """Return modules whose code is not in a folder: it was imported and lies among the attachments.

    Raises:
        PostgresError: it cannot be told.
    """
    if not schema.has("ir_module_module", "imported"):
        return frozenset()
    return frozenset(str(name) for (name,) in source.scan("select name from public.ir_module_module where imported"))


def encode_numbers(numbers: Iterable[Numbered]) -> str:
    """Return numbers as the text that a baseline keeps."""
    return canonical_bytes([[item.id, item.name, str(item.last)] for item in numbers]).decode()


def decode_numbers(text: str) -> list[Numbered]:
    """Read what :func:`encode_numbers` wrote.

    Raises:
        ValueError: it is something else.
    """
    data = parse_canonical(text.encode())
    if isinstance(data, str) or not isinstance(data, Sequence):
        raise ValueError("numbers are a list")  # noqa: TRY004 - one kind of error for the reader's caller
    found = []
    for item in data:
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != len(Numbered.__slots__):
            raise ValueError("a number has three fields")
        found.append(Numbered(id=str(item[0]), name=str(item[1]), last=_number(item[2])))
    return found


def encode_modules(modules: Mapping[str, Module]) -> str:
    """Return modules as the text that a baseline keeps."""
    return canonical_bytes({name: [item.state, item.version] for name, item in modules.items()}).decode()


def decode_modules(text: str) -> dict[str, Module]:
    """Read what :func:`encode_modules` wrote.

    Raises:
        ValueError: it is something else.
    """
    found = {}
    for name, item in _object(text).items():
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != len(Module.__slots__):
            raise ValueError("a module has a state and a version")
        found[name] = Module(state=str(item[0]), version=str(item[1]))
    return found


def encode_offenders(offenders: Offenders) -> str:
    """Return who breaks an invariant as the text that a baseline keeps: how many, and their keys."""
    return canonical_bytes({"count": offenders.count, "keys": sorted(offenders.what)}).decode()


def decode_offenders(text: str) -> tuple[int, frozenset[str]]:
    """Read what :func:`encode_offenders` wrote: how many, and the keys of the first ones.

    Raises:
        ValueError: it is something else.
    """
    value = _object(text)
    keys = value.get("keys")
    if isinstance(keys, str) or not isinstance(keys, Sequence):
        raise ValueError("offenders have keys")  # noqa: TRY004 - one kind of error for the reader's caller
    return _number(value.get("count")), frozenset(map(str, keys))


# --- production ----------------------------------------------------------------------------------------------


def gather_odoo(source: Asking, database: str, *, clock: Clock) -> Gathered:
    """Ask a database of Odoo's everything that a recovered copy is compared with; of another one nothing.

    Raises:
        PostgresUnreachableError: the connection broke.
        PostgresError: the server does not even tell its tables.
    """
    with pinned(source):
        schema = read_schema(source)
        if not schema.is_odoo:
            return Gathered()
        gatherer = _Gatherer(source=source, schema=schema, database=database, clock=clock)
        for name, tables, question in _questions(source, schema):
            gatherer.ask(name, tables, question)
        return Gathered(values=gatherer.values, problems=gatherer.problems)


_Asked: TypeAlias = tuple[str, Sequence[str], Callable[[], str]]
"""The name of a question, the tables that it reads, and what asks it."""


def _questions(source: Asking, schema: OdooSchema) -> Iterator[_Asked]:
    """Yield every question that can be asked of this database; what costs nothing comes first."""
    yield MODULES, ["ir_module_module"], lambda: encode_modules(read_modules(source))
    yield NO_GAP, ["ir_sequence"], lambda: encode_numbers(read_no_gap(source, schema))
    yield JOURNALS, ["account_move"], lambda: encode_numbers(read_journals(source, schema))
    for table in COUNTED:
        if schema.has(table):
            yield count_name(table), [table], lambda table=table: count_rows(source, schema, table).encode()  # type: ignore[misc]  # mypy infers no type for a lambda's default
    for invariant in INVARIANTS:
        variant = invariant.variant(schema)
        if variant is not None:
            yield (
                invariant.name,
                list(variant.needs),
                lambda variant=variant: encode_offenders(find_offenders(source, variant)),  # type: ignore[misc]  # as above
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gatherer:
    source: Asking
    schema: OdooSchema
    database: str
    clock: Clock
    values: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)

    def ask(self, name: str, tables: Sequence[str], question: Callable[[], str]) -> None:
        key = odoo_key(self.database, name)
        large = [table for table in tables if self.schema.estimated_rows.get(table, 0) > _MOST_ROWS]
        left = _BUDGET_SECONDS - sum(self.spent)
        if large:
            self.problems[key] = f"left out: {large[0]} has more than {_MOST_ROWS} rows"
            return
        if left <= 0:
            self.problems[key] = f"left out: production was asked for {_BUDGET_SECONDS:.0f} s already"
            return
        began = self.clock.monotonic()
        try:
            with self.source.hurried(min(_QUESTION_SECONDS, left)):
                self.values[key] = question()
        except PostgresUnreachableError:
            raise
        except DrError as error:
            self.problems[key] = f"production could not answer: {error.message}"
        finally:
            self.spent.append(self.clock.monotonic() - began)


def _object(text: str) -> Mapping[str, Json]:
    data = parse_canonical(text.encode())
    if not isinstance(data, Mapping):
        raise ValueError("an answer is an object")  # noqa: TRY004 - one kind of error for the reader's caller
    return data


def _number(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise ValueError("a number was expected")
    return int(text)


def _counted(text: str | None) -> int:
    if text is None or not (text.isascii() and text.removeprefix("-").isdigit()):
        raise UnansweredError("a number was expected")
    return int(text)


def _numbered(row: tuple[str | None, ...]) -> Numbered:
    identity, name, last = row
    return Numbered(id=str(identity), name=name or "", last=_counted(last))
