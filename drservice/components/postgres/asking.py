"""Asking a server questions that other people wrote, without trusting server or question.

A session is one read-only transaction with one snapshot. Each question is a single SELECT, runs under the server's own
timeouts and, a little later, under ours: a server that stops answering, or never honours a timeout, cannot hold the
caller. Answers are text as PostgreSQL spells it under fixed settings, so that production and a recovered copy spell the
same value the same way.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeAlias

from drservice.components.postgres.connection import Session, connect
from drservice.errors import PostgresError, UnansweredError

Row: TypeAlias = tuple[str | None, ...]

_BATCH = 5000
_CUT_AFTER_SECONDS = 5.0
"""How much longer than the server's own timeout we wait before the connection is cut."""
_LOCK_SECONDS = 10.0
_SPELLING = (
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, YMD"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    # A policy that hides rows has to be an error, never a smaller number.
    ("row_security", "off"),
    # A cursor is read to its end here: plan for all rows.
    ("cursor_tuple_fraction", "1"),
)


class Asking:
    """One read-only transaction; made by :func:`asking`."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session = session
        self._seconds = seconds

    @property
    def session(self) -> Session:
        """The session, for statements of ours."""
        return self._session

    def answer(self, sql: str) -> Row:
        """Ask one question that has one row for an answer.

        Raises:
            UnansweredError: no row, or more than one.
            PostgresError: the server refused it, or did not answer in time; the transaction goes on.
        """
        with self._asked(sql):
            rows = self._fetch(2)
        if len(rows) != 1:
            raise UnansweredError("the question has no row for an answer" if not rows else "it has more than one row")
        return rows[0]

    @contextmanager
    def hurried(self, seconds: float) -> Iterator[None]:
        """Let the questions asked in the block have less time than the session's.

        Raises:
            PostgresError: the server refuses to be set.
        """
        before = self._seconds
        self._limit(min(before, seconds))
        try:
            yield
        finally:
            # Where the connection broke in the block there is nothing left to set, and its own error is told.
            with suppress(PostgresError):
                self._limit(before)

    def _limit(self, seconds: float) -> None:
        self._seconds = seconds
        milliseconds = str(max(1, int(seconds * 1000)))
        self._session.rows("select pg_catalog.set_config('statement_timeout', %s, false)", (milliseconds,))

    def scan(self, sql: str) -> Iterator[Row]:
        """Ask for a list, in bounded memory.

        Raises:
            PostgresError: as :meth:`answer`.
        """
        with self._asked(sql):
            while rows := self._fetch(_BATCH):
                yield from rows

    def load(self, quoted_library: str) -> None:
        """Load a library into the server's session; ``quoted_library`` is an SQL literal.

        Raises:
            PostgresError: it does not load; the transaction goes on.
        """
        self._run("savepoint question")
        try:
            self._run(f"load {quoted_library}")
        except PostgresError:
            self._run("rollback to savepoint question")
            raise
        self._run("release savepoint question")

    @contextmanager
    def _asked(self, sql: str) -> Iterator[None]:
        """Hold a cursor for a question of somebody else's; whatever it does, the transaction stays usable."""
        self._run("savepoint question")
        try:
            # A cursor takes a SELECT or VALUES and nothing else.
            self._run(f"declare question no scroll cursor for {sql.strip().rstrip(';')}")
            yield
        except PostgresError:
            self._run("rollback to savepoint question")
            raise
        else:
            self._run("close question")
        self._run("release savepoint question")

    def _fetch(self, count: int) -> list[Row]:
        return self._run(f"fetch {count} from question")

    def _run(self, sql: str) -> list[Row]:
        with cut_after(self._session, self._seconds + _CUT_AFTER_SECONDS):
            return self._session.texts(sql)


@contextmanager
def asking(dsn: str, *, seconds: float, database: str | None = None, application_name: str) -> Iterator[Asking]:
    """Open a session and its read-only transaction; ``seconds`` is the time each statement has.

    Args:
        dsn: where the server is.
        seconds: for each statement.
        database: replaces the dsn's.
        application_name: what the server shows.

    Raises:
        PostgresUnreachableError: no answer.
        PostgresError: refused.
    """
    with connect(dsn, application_name=application_name, database=database) as session:
        opened = Asking(session, seconds)
        with cut_after(session, seconds + _CUT_AFTER_SECONDS):
            for name, value in (*_SPELLING, *_timeouts(seconds)):
                session.rows("select pg_catalog.set_config(%s, %s, false)", (name, value))
            session.rows("begin transaction isolation level repeatable read, read only")
        yield opened


def _timeouts(seconds: float) -> Sequence[tuple[str, str]]:
    return (
        ("statement_timeout", str(int(seconds * 1000))),
        # A list may be read slowly while each of its documents is looked at.
        ("idle_in_transaction_session_timeout", "0"),
        ("lock_timeout", str(int(min(seconds, _LOCK_SECONDS) * 1000))),
        ("default_transaction_read_only", "on"),
    )


@contextmanager
def cut_after(session: Session, seconds: float) -> Iterator[None]:
    """Cut the connection from this side when the block takes longer; its statement then ends as if it broke.

    Raises:
        PostgresUnreachableError: it was closed before.
    """
    # A descriptor of its own: when the timer fires, libpq may have closed its own and another file may have that.
    with session.line() as line:
        timer = threading.Timer(seconds, _cut, (line,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _cut(line: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        line.shutdown(socket.SHUT_RDWR)
