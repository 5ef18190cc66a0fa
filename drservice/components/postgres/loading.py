"""Loading a plain dump into an empty database, statement by statement, as a role that owns it and may do nothing else.

The first statement that the server refuses ends it: what Odoo's own restore passes over in silence. Left out are only
statements that change no row and no structure, by kind and counted; each other one counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drservice.components.postgres.connection import Session
from drservice.components.postgres.plaindump import PlainDump, Statement
from drservice.errors import ImportRefusedError, PostgresError, PostgresUnreachableError

_STATEMENT_SECONDS = 24 * 3600.0
"""An index over a large table takes its time; a server that is gone is noticed by the connection."""
_LONGEST_MESSAGE = 2000
"""Of an error: what the dump's own functions raise may be of any length."""
_ROLE = rb'(?:[a-z_][a-z0-9_$]*|"(?:[^"]|"")++")'
_LEFT_OUT: Mapping[str, re.Pattern[bytes]] = {
    "privileges": re.compile(rb"(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES)\s.*", re.DOTALL),
    "owners": re.compile(rb"ALTER [A-Z ]{1,40} [^;]+ OWNER TO " + _ROLE, re.DOTALL),
    # Old servers said what PostgreSQL itself says of its language; only its owner may.
    "comments on plpgsql": re.compile(rb"COMMENT ON EXTENSION plpgsql IS .*", re.DOTALL),
}
_NEWER_SETTINGS: Mapping[int, re.Pattern[bytes]] = {
    # A pg_dump of version 17 writes it whatever the server; it is the absence of a limit.
    17: re.compile(rb"SET transaction_timeout = 0"),
}
_EXTENSION = re.compile(rb"CREATE EXTENSION (?:IF NOT EXISTS )?unaccent WITH SCHEMA ([a-z_][a-z0-9_]*)")
_NEEDS_MORE = re.compile(r"permission denied|must be (?:superuser|owner|a member)|does not exist|not available")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load brought."""

    statements: int
    rows: int
    left_out: Mapping[str, int]
    """How many statements of each kind were not run."""


def load_plain(session: Session, dump: PlainDump, *, made_immutable: Callable[[str], None]) -> Loaded:
    """Run a whole dump; on return its last line was seen and every statement had succeeded.

    Args:
        session: of the role that owns the database, connected to it, and used for nothing else afterwards.
        dump: from its beginning.
        made_immutable: told of the schema in which the dump makes ``unaccent``, right after it was made. Odoo marks its
            function as immutable in each database it makes, which no dump says and indexes in the dump need.

    Raises:
        ImportRefusedError: the dump is none, or cut, or the server refuses a statement.
        PostgresUnreachableError: the server is gone.
    """
    statements = rows = 0
    left_out: dict[str, int] = {}
    for statement in dump.statements():
        kind = _kind_left_out(statement, session.major)
        if kind is not None:
            left_out[kind] = left_out.get(kind, 0) + 1
            continue
        rows += _run(session, statement, dump)
        statements += 1
        found = _EXTENSION.fullmatch(statement.text)
        if found is not None:
            made_immutable(found[1].decode())
    if session.is_in_transaction:
        raise ImportRefusedError(
            "dump.sql cannot be loaded: it ends within a transaction that it began, of which no row is kept",
            hint="It has to be a plain dump as pg_dump writes it (Odoo's own backup is one), and whole.",
        )
    return Loaded(statements=statements, rows=rows, left_out=left_out)


def _kind_left_out(statement: Statement, major: int) -> str | None:
    for kind, pattern in _LEFT_OUT.items():
        if pattern.fullmatch(statement.text):
            return kind
    for since, pattern in _NEWER_SETTINGS.items():
        if major < since and pattern.fullmatch(statement.text):
            return f"settings of PostgreSQL {since}"
    return None


def _run(session: Session, statement: Statement, dump: PlainDump) -> int:
    try:
        if statement.has_rows:
            return session.copy_in(statement.text, dump.rows())
        session.script(statement.text, seconds=_STATEMENT_SECONDS)
    except PostgresUnreachableError:
        raise
    except PostgresError as error:
        hint, told = None, error.message[:_LONGEST_MESSAGE]
        if _NEEDS_MORE.search(told):
            hint = (
                "The dump is loaded by a role that owns the database and may do nothing else, into a server with the"
                " extensions of this host. Install the extension it names, or have the zip made without what it names."
            )
        raise ImportRefusedError(
            f"dump.sql cannot be loaded: line {statement.line}: {told} ({statement.shown!r})", hint=hint
        ) from error
    return 0
