"""The rules of dumping one database or some of its tables with ``pg_dump``, and what such a dump lacks.

The database may be hostile: its names are quoted so that a pattern of ``pg_dump`` matches exactly one relation, what
the programs print is compared with what the catalogue said before, and whether a version of ``pg_dump`` may write plain
SQL at all is decided from the table of known problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from drservice.components.postgres.connection import Session
from drservice.components.postgres.versions import KnownProblem, known_problems
from drservice.errors import UnknownNameError, UsageError

_SHOWN = 20
_PLAIN_PROBLEMS = frozenset({"CVE-2025-8714", "CVE-2025-8715", "CVE-2026-18408"})
"""What whoever loads a plain dump is exposed to."""
_SOCKET = ("--host=/env/sock", "--port=5432", "--username=postgres", "--no-password")
_NAME_PART = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')
_DUMPING = re.compile(r'pg_dump: dumping contents of table "(.*)\Z')
_DATA_ENTRY = re.compile(r"\d+; 0 (\d+) TABLE DATA ")
_ENTRY = re.compile(r"\d+; \d+ \d+ ")
_COMPLETE = b"-- PostgreSQL database dump complete"


class DumpFormat(Enum):
    """What a dump is written as."""

    CUSTOM = "custom"
    SQL = "sql"
    ODOO_ZIP = "odoo-zip"
    """Plain SQL in a zip, with the documents that the rows refer to, as Odoo's own restore takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableName:
    """A table as somebody named it."""

    schema: str
    name: str

    @property
    def text(self) -> str:
        """The two parts as people read them."""
        return f"{self.schema}.{self.name}"

    @property
    def told(self) -> str:
        """What is left of it in a line of ``pg_dump``, in quotes: a name may have line breaks, and end in a quote."""
        return self.text.partition("\n")[0].rstrip('"')

    @property
    def pattern(self) -> str:
        """The pattern of ``pg_dump`` that matches this table and no other: inside quotes nothing has a meaning."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in (self.schema, self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpedTable:
    """A table whose rows have to be in the dump."""

    oid: int
    table: TableName
    bytes_on_disk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a dump has to hold."""

    patterns: tuple[TableName, ...]
    """The tables to name to ``pg_dump``; none: the whole database."""
    tables: tuple[DumpedTable, ...]
    lacks: tuple[str, ...] = ()
    """What the tables need and the dump does not have: it has to be there where they are loaded. And rows that no
    backup has: recovery empties unlogged tables, and those of foreign tables lie elsewhere."""

    @property
    def total_bytes(self) -> int:
        """How much of the tables there is to read."""
        return sum(item.bytes_on_disk for item in self.tables)


def parse_table(text: str) -> TableName:
    """Read ``schema.table``; parts are taken letter by letter, quoted ones (``"Odd.Name"``) without their quotes.

    Raises:
        UsageError: it does not have exactly two parts.
    """
    parts: list[str] = []
    at = 0
    while match := _NAME_PART.match(text, at):
        parts.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        at = match.end()
        if at == len(text) or text[at] != ".":
            break
        at += 1
    if at != len(text) or len(parts) != 2:
        raise UsageError(
            f"{text!r} is no table with its schema",
            hint='Write schema.table as in the catalogue, case included; quote odd names: "My Schema"."T".',
        )
    return TableName(schema=parts[0], name=parts[1])


def plain_problems(major: int, minor: int) -> tuple[KnownProblem, ...]:
    """Return the known problems of a ``pg_dump`` that make its plain dumps dangerous to load."""
    return tuple(item for item in known_problems("pg_dump", major, minor) if item.name in _PLAIN_PROBLEMS)


def dump_arguments(database: str, form: DumpFormat, contents: Contents) -> list[str]:
    """Return the arguments of ``pg_dump`` inside an environment; it writes to standard output."""
    quoted = database.replace("\\", "\\\\").replace("'", "\\'")
    return [
        f"--dbname=dbname='{quoted}'",  # as a connection string, so that the name itself cannot be one
        *_SOCKET,
        f"--format={'custom' if form is DumpFormat.CUSTOM else 'plain'}",
        # Somebody waits for it. psql, unlike pg_restore, cannot leave out owners and grants when it loads.
        *(["--compress=1"] if form is DumpFormat.CUSTOM else ["--no-owner", "--no-privileges"]),
        "--verbose",
        "--strict-names",
        *(f"--table={table.pattern}" for table in contents.patterns),
    ]


# --- what belongs into it -----------------------------------------------------------------------------------


def whole_database(session: Session) -> Contents:
    """Return what a dump of the connected database has to hold: every table but the system's and extensions' own.

    Raises:
        PostgresError: the server cannot be asked.
    """
    rows = session.rows(
        "select c.oid::bigint, n.nspname::text, c.relname::text, pg_table_size(c.oid), c.relpersistence::text"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"
        " and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid"
        " and d.deptype = 'e') order by 2, 3"
    )
    tables = tuple(_table(row[:4]) for row in rows)
    return Contents(patterns=(), tables=tables, lacks=_emptied(tables, [row[4] for row in rows]))


def only_tables(session: Session, names: Sequence[TableName]) -> Contents:
    """Return what a dump of some tables has to hold: they, and the partitions and children that hold their rows.

    Raises:
        UnknownNameError: there is no such table; the hint names tables there are.
        UsageError: it is a view, a sequence, or something else without rows of its own.
        PostgresError: the server cannot be asked.
    """
    roots = [_resolve(session, name) for name in names]
    rows = session.rows(
        "with recursive family as (select unnest(%s::oid[]) as oid"
        " union select i.inhrelid from pg_inherits i join family f on f.oid = i.inhparent)"
        " select c.oid::bigint, n.nspname::text, c.relname::text, pg_table_size(c.oid), c.relkind::text,"
        " c.relpersistence::text from family f join pg_class c on c.oid = f.oid"
        " join pg_namespace n on n.oid = c.relnamespace order by 2, 3",
        (roots,),
    )
    family = [TableName(schema=str(schema), name=str(name)) for _, schema, name, *_ in rows]
    plain = [row for row in rows if row[4] == "r"]
    tables = tuple(_table(row[:4]) for row in plain)
    emptied = _emptied(tables, [row[5] for row in plain])
    foreign = [table.text for table, row in zip(family, rows, strict=True) if row[4] == "f"]
    lacks = [f"rows of the foreign table {name}" for name in foreign]
    return Contents(
        patterns=tuple(family), tables=tables, lacks=(*emptied, *lacks, *_lacks(session, [int(row[0]) for row in rows]))
    )


def _emptied(tables: Sequence[DumpedTable], persistence: Sequence[object]) -> tuple[str, ...]:
    """Name the unlogged tables: no WAL has their rows, and recovery empties them."""
    return tuple(
        f"rows of the unlogged table {item.table.text}"
        for item, kind in zip(tables, persistence, strict=True)
        if kind == "u"
    )


def _table(row: Sequence[object]) -> DumpedTable:
    oid, schema, name, size = row
    return DumpedTable(
        oid=int(str(oid)), table=TableName(schema=str(schema), name=str(name)), bytes_on_disk=int(str(size))
    )


def _resolve(session: Session, wanted: TableName) -> int:
    found = session.rows(
        "select c.oid::bigint, c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s",
        (wanted.schema, wanted.name),
    )
    if not found:
        like = session.rows(
            "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'"
            " order by lower(c.relname) <> lower(%s), 1, 2 limit %s",
            (wanted.name, _SHOWN + 1),
        )
        names = [TableName(schema=str(schema), name=str(name)).text for schema, name in like]
        more = ", ..." if len(names) > _SHOWN else ""
        raise UnknownNameError(
            f"there is no table {wanted.text} at the target",
            hint=f"There are: {', '.join(names[:_SHOWN]) or 'none'}{more}",
        )
    ((oid, kind),) = found
    if kind not in {"r", "p"}:
        raise UsageError(f"{wanted.text} is no table with rows of its own", hint="Name the tables it is made from.")
    return int(oid)


def _lacks(session: Session, tables: Sequence[int]) -> list[str]:
    """Return what tables depend on that is not dumped with them: types, functions, other tables, sequences, schemas."""
    rows = session.rows(
        "with dumped as (select unnest(%s::oid[]) as oid),"
        " parts as ("
        " select 'pg_class'::regclass::oid as classid, oid as objid from dumped"
        " union select 'pg_class'::regclass, i.indexrelid from pg_index i join dumped d on d.oid = i.indrelid"
        " union select 'pg_class'::regclass, s.objid from pg_depend s join dumped d on d.oid = s.refobjid"
        "  where s.classid = 'pg_class'::regclass and s.refclassid = 'pg_class'::regclass and s.deptype in ('a', 'i')"
        " union select 'pg_attrdef'::regclass, a.oid from pg_attrdef a join dumped d on d.oid = a.adrelid"
        " union select 'pg_constraint'::regclass, c.oid from pg_constraint c join dumped d on d.oid = c.conrelid"
        " union select 'pg_trigger'::regclass, t.oid from pg_trigger t join dumped d on d.oid = t.tgrelid"
        "  where not t.tgisinternal"
        " union select 'pg_policy'::regclass, p.oid from pg_policy p join dumped d on d.oid = p.polrelid)"
        " select distinct o.type, o.identity"
        " from pg_depend d join parts p on p.classid = d.classid and p.objid = d.objid,"
        " pg_identify_object(d.refclassid, d.refobjid, 0) o"
        " where d.refobjid >= 16384 and o.type not in ('index', 'schema')"
        " and not exists (select from parts q where q.classid = d.refclassid and q.objid = d.refobjid)"
        " union select 'schema', quote_ident(n.nspname) from pg_namespace n join pg_class c on c.relnamespace = n.oid"
        "  join dumped d on d.oid = c.oid where n.nspname <> 'public'"
        " order by 1, 2",
        (list(tables),),
    )
    return [f"{kind} {identity}" for kind, identity in rows]


# --- what the programs say ----------------------------------------------------------------------------------


def table_begun(line: str) -> str | None:
    """Return which table a line of ``pg_dump --verbose`` says it now reads, if it says so (:attr:`TableName.told`)."""
    match = _DUMPING.match(line)
    return match[1].rstrip('"') if match else None


def entries_of(listing: str) -> tuple[int, frozenset[int]]:
    """Return from ``pg_restore --list`` how many entries an archive has, and the OIDs of the tables with rows in it."""
    lines = [line for line in listing.splitlines() if _ENTRY.match(line)]
    return len(lines), frozenset(int(match[1]) for line in lines if (match := _DATA_ENTRY.match(line)))


def missing_tables(contents: Contents, there: Iterable[int]) -> tuple[str, ...]:
    """Return the tables that should be in a dump and are not."""
    found = frozenset(there)
    return tuple(item.table.text for item in contents.tables if item.oid not in found)


def begun_tables(contents: Contents, begun: Iterable[str]) -> frozenset[int]:
    """Return the OIDs of the tables that ``pg_dump`` said it read."""
    names = frozenset(begun)
    return frozenset(item.oid for item in contents.tables if item.table.told in names)


def is_complete_sql(tail: bytes) -> bool:
    """Tell whether the end of a plain dump is the end that ``pg_dump`` writes last."""
    return _COMPLETE in tail
