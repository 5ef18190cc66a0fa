"""Questions asked of a recovered cluster over SQL: where it stands, and whether its objects are usable.

Names of databases and objects come from the recovered server and are hostile: they travel as connection parameters, are
quoted for SQL by the server that sent them, and are shown escaped.
"""

from __future__ import annotations

import re

from drservice.checks.business import ask_recovered, database_of
from drservice.checks.interface import Finding, RecoveredDatabase, RecoveredService, failed, listed, passed, unverified
from drservice.components.postgres.asking import Asking
from drservice.errors import PostgresError, PostgresUnreachableError, UnansweredError
from drservice.model.ids import ComponentName
from drservice.model.wal import Lsn

_WAL_FILE = re.compile(r"[0-9A-F]{24}")
_NEEDS_PRELOAD = "shared_preload_libraries"


def ask_target(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask the server itself whether it ended recovery at or behind the planned position."""
    recovered = database_of(service, component)
    if recovered.reached < recovered.stop_lsn:
        return failed(f"replay ended at {recovered.reached}, before the snapshot's end {recovered.stop_lsn}")
    with ask_recovered(recovered, seconds=seconds) as source:
        (in_recovery,) = source.answer("select pg_is_in_recovery()")
        if in_recovery != "f":
            return failed("the server is still in recovery")
        present, replayed = source.answer("select pg_current_wal_lsn(), pg_last_wal_replay_lsn()")
    if present is None:
        return unverified("the server does not tell its position")
    if Lsn.parse(present) < recovered.reached:
        return failed(f"the server stands at {present}, and {recovered.reached} was to be reached")
    # After a restart the server no longer knows where its replay ended.
    if replayed is not None and Lsn.parse(replayed) != recovered.reached:
        return failed(f"the server says that replay ended at {replayed}, and {recovered.reached} was to be reached")
    return passed(f"promoted at {recovered.reached}, now at {present}", value=present)


def ask_timeline(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask the server which timeline it writes."""
    recovered = database_of(service, component)
    with ask_recovered(recovered, seconds=seconds) as source:
        (name,) = source.answer("select pg_walfile_name(pg_current_wal_lsn())")
    if name is None or not _WAL_FILE.fullmatch(name):
        return unverified("the server does not tell its timeline")
    timeline = int(name[:8], 16)
    if timeline != recovered.expected_timeline:
        return failed(f"timeline {timeline}, expected {recovered.expected_timeline}", value=str(timeline))
    return passed(f"timeline {timeline}", value=str(timeline))


def ask_indexes(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Look for indexes that PostgreSQL does not use; a failed CREATE INDEX CONCURRENTLY leaves such in production."""
    recovered = database_of(service, component)
    found: list[str] = []
    for database in databases(recovered, seconds):
        with ask_recovered(recovered, seconds=seconds, database=database) as source:
            rows = source.scan(
                "select indexrelid::regclass::text from pg_index where not (indisvalid and indisready and indislive)"
            )
            found += [f"{database}: {name}" for (name,) in rows]
    if found:
        return failed(f"{len(found)} indexes are not usable: {listed(found)}")
    return passed("every index is usable")


def ask_extensions(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask whether every installed extension has its control file and script version here, and its libraries load."""
    recovered = database_of(service, component)
    problems: list[str] = []
    count = 0
    for database in databases(recovered, seconds):
        with ask_recovered(recovered, seconds=seconds, database=database) as source:
            extensions = list(
                source.scan(
                    "select e.extname, e.extversion, v.version is not null from pg_extension e"
                    " left join pg_available_extension_versions v on v.name = e.extname and v.version = e.extversion"
                )
            )
            count += len(extensions)
            problems += [
                f"{database}: {name} {version} has no control file or version here"
                for name, version, there in extensions
                if there != "t"
            ]
            problems += [f"{database}: {problem}" for problem in _libraries(source)]
    if problems:
        return failed(f"{len(problems)} problems: {listed(problems)}")
    return passed(f"{count} extensions are there and load")


def _libraries(source: Asking) -> list[str]:
    """Load the library of every C function that is not PostgreSQL's own; return what did not load."""
    problems: list[str] = []
    rows = list(
        source.scan(
            "select distinct p.probin, quote_literal(p.probin) from pg_proc p"
            " join pg_language l on l.oid = p.prolang where l.lanname = 'c' and p.probin is not null"
        )
    )
    for library, quoted in rows:
        try:
            source.load(str(quoted))
        except PostgresUnreachableError:
            raise
        except PostgresError as error:
            # Some refuse to be loaded by a session. Then they were found, and preloading is off on purpose.
            if _NEEDS_PRELOAD not in error.message:
                problems.append(f"{library} does not load: {error.message}")
    return problems


def ask_sequences(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask whether a sequence that feeds a column is behind the column: its next value would be taken already."""
    recovered = database_of(service, component)
    behind: list[str] = []
    count = 0
    for database in databases(recovered, seconds):
        with ask_recovered(recovered, seconds=seconds, database=database) as source:
            owned = list(
                source.scan(
                    "select s.oid::regclass::text, c.oid::regclass::text, quote_ident(a.attname) from pg_class s"
                    " join pg_sequence q on q.seqrelid = s.oid"
                    " join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = s.oid and d.objsubid = 0"
                    "  and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')"
                    " join pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p')"
                    " join pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid"
                    "  and a.atttypid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)"
                    " where s.relkind = 'S' and q.seqincrement > 0 and not q.seqcycle"
                    "  and not pg_is_other_temp_schema(s.relnamespace)"
                )
            )
            count += len(owned)
            for sequence, table, column in owned:
                following, greatest = _next_and_greatest(source, str(sequence), str(table), str(column))
                if following <= greatest:
                    behind.append(f"{database}: {sequence} goes on with {following}, {table} has {greatest}")
    if behind:
        return failed(f"{len(behind)} of {count} sequences are behind: {listed(behind)}")
    return passed(f"{count} sequences are ahead of the columns they feed")


def _next_and_greatest(source: Asking, sequence: str, table: str, column: str) -> tuple[int, int]:
    following, greatest = source.answer(
        f"select last_value + is_called::int, (select max({column}) from {table}) from {sequence}"  # noqa: S608 - quoted by the server that is asked
    )
    if following is None:
        raise UnansweredError(f"sequence {sequence!r} has no value")
    number = int(following)
    return number, number - 1 if greatest is None else int(greatest)


def databases(recovered: RecoveredDatabase, seconds: float) -> list[str]:
    """Return the names of all databases that take connections.

    Raises:
        UnansweredError: there is none; then nothing was asked of any.
    """
    with ask_recovered(recovered, seconds=seconds) as source:
        names = [name for (name,) in source.scan("select datname from pg_database where datallowconn order by 1")]
    found = [name for name in names if name is not None]
    if not found:
        raise UnansweredError("the server names no database")
    return found
