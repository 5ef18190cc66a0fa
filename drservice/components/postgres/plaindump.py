"""Reading a plain dump of ``pg_dump`` as it comes: statements, the rows between them, and whether it is whole.

The dump is somebody else's. It is cut into statements here and each is sent to the server by itself, so nothing in it
is ever read by ``psql``: what ``psql`` takes for a command to it (a backslash outside of quotes) is refused here, and
what slipped through would be a syntax error of SQL. Cutting it in the wrong place could only make the server refuse it.
Of a dump without its last line everything may be missing behind any statement: it is cut, however well it loads.

Rules of the lexer: PostgreSQL documentation 4.1; rows in text format end with a line of backslash and dot (COPY).
Memory is bounded by the longest statement; rows pass by in pieces of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from drservice.errors import ImportRefusedError

_MOST_STATEMENT_BYTES = 64 << 20
_LONGEST_TAG = 80
"""Of a string in dollars: a name has at most 63 bytes."""
_END_OF_ROWS = b"\\.\n"
_COMPLETE = re.compile(rb"-- PostgreSQL database dump complete\s*")
_VERSION = re.compile(rb"-- Dumped (from database|by pg_dump) version (\d{1,4})")
_RESTRICT = re.compile(rb"\\(restrict|unrestrict) ([A-Za-z0-9]+)\s*")
_COPY = re.compile(rb'COPY (?:[^\s();"]|"(?:[^"]|"")++")++(?: \(.*\))? FROM stdin', re.DOTALL)
_ROUTINE = re.compile(rb"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\s", re.IGNORECASE)
_ATOMIC = re.compile(rb"\sBEGIN ATOMIC\s")
_TOKEN = re.compile(rb"--|/\*|['\"\\;()]|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$")
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff$]")
_SPACE = re.compile(rb"\s+")
_COMMENT_EDGE = re.compile(rb"/\*|\*/")


class Place(Enum):
    """Where a reader of a dump stands."""

    STATEMENTS = "statements"
    ROWS = "rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement without its semicolon; ``line`` is where it begins in the dump."""

    text: bytes
    line: int

    @property
    def has_rows(self) -> bool:
        """Whether rows follow it; they have to be taken with :meth:`PlainDump.rows` before the next statement."""
        return _COPY.fullmatch(self.text) is not None

    @property
    def shown(self) -> str:
        """Its beginning, for people."""
        return " ".join(self.text[:160].decode("utf-8", "backslashreplace").split())[:120]


class PlainDump:
    """A dump on its way through; :meth:`statements` once, to its end."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""
        self._at = 0
        self._line = 1
        self._place = Place.STATEMENTS
        self._key: bytes | None = None
        self.versions: dict[str, int] = {}
        """Major versions its head tells: ``from database`` and ``by pg_dump``; known with the first statement."""
        self.is_complete = False

    def statements(self) -> Iterator[Statement]:
        """Yield every statement, in order.

        Raises:
            ImportRefusedError: it has a command for psql, or is no dump, or is cut.
        """
        while True:
            self._skip_between()
            if self._at == len(self._buffer):
                break
            if self.is_complete:
                raise self._refused("something follows the end of the dump")
            line, end = self._line, self._end_of_statement()
            text = self._buffer[self._at : end]
            if b"\0" in text:
                raise self._refused("a statement has a zero byte, behind which no server would read it")
            self._consume(end + 1)
            statement = Statement(text=text, line=line)
            if statement.has_rows:
                self._begin_rows()
            yield statement
            if self._place is Place.ROWS:
                raise AssertionError("the rows have to be taken before the next statement")
        if not self.is_complete:
            raise ImportRefusedError(
                f"dump.sql is cut: it ends after line {self._line - 1} without the line that pg_dump writes last",
                hint="pg_dump did not come to its end when the zip was made (a full disk, a timeout). Make it again.",
            )

    def rows(self) -> Iterator[bytes]:
        """Yield the rows that follow the statement, in pieces as they come, without the line that ends them.

        Raises:
            ImportRefusedError: the dump ends in the middle of them.
        """
        assert self._place is Place.ROWS
        begins_line = True
        while True:
            if begins_line and self._buffer.startswith(_END_OF_ROWS, self._at):
                self._consume(self._at + len(_END_OF_ROWS))
                self._place = Place.STATEMENTS
                return
            end = self._buffer.find(b"\n" + _END_OF_ROWS, self._at)
            if end >= 0:
                yield self._take(end + 1)
                begins_line = True
                continue
            # The end may be cut between two pieces: as much of it as may be here already waits for the next one.
            ready = len(self._buffer) - len(_END_OF_ROWS)
            if ready > self._at:
                begins_line = self._buffer[ready - 1 : ready] == b"\n"
                yield self._take(ready)
            if not self._more():
                raise ImportRefusedError(
                    f"dump.sql is cut: it ends within the rows of a table, after line {self._line}",
                    hint="pg_dump did not come to its end when the zip was made. Make it again.",
                )

    def _begin_rows(self) -> None:
        while self._buffer.find(b"\n", self._at) < 0:
            if not self._more():
                break
        end = self._buffer.find(b"\n", self._at)
        if end < 0 or self._buffer[self._at : end].strip():
            raise self._refused("rows do not begin on a line of their own")
        self._consume(end + 1)
        self._place = Place.ROWS

    def _skip_between(self) -> None:
        """Pass over spaces, comments and what pg_dump itself tells psql, up to the next statement or the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            if space is not None:
                self._consume(space.end())
            if len(self._buffer) - self._at < 2 and self._more():
                continue
            if self._buffer.startswith(b"--", self._at) or self._buffer.startswith(b"\\", self._at):
                self._take_line()
            elif self._buffer.startswith(b"/*", self._at):
                self._consume(self._end_of_comment(self._at))
            elif self._at < len(self._buffer) or not self._more():
                return

    def _take_line(self) -> None:
        while (end := self._buffer.find(b"\n", self._at)) < 0 and self._more():
            pass
        line = self._buffer[self._at : end if end >= 0 else len(self._buffer)]
        if line.startswith(b"\\"):
            self._take_command(line)
        elif _COMPLETE.fullmatch(line):
            self.is_complete = True
        elif found := _VERSION.match(line):
            self.versions.setdefault(found[1].decode(), int(found[2]))
        self._consume(end + 1 if end >= 0 else len(self._buffer))

    def _take_command(self, line: bytes) -> None:
        """Pass over the two lines with which a newer pg_dump has psql take no commands in between (CVE-2025-8714)."""
        found = _RESTRICT.fullmatch(line)
        if found is not None:
            opens, key = found[1] == b"restrict", found[2]
            if opens and self._key is None:
                self._key = key
                return
            if not opens and self._key == key:
                return
        raise self._refused(f"it has a command for psql, {line[:40].decode('ascii', 'backslashreplace')!r}")

    def _end_of_statement(self) -> int:
        """Return where the semicolon stands that ends the statement."""
        at, depth = self._at, 0
        while True:
            found = self._next_token(at)
            match found[0]:
                case b";":
                    if depth <= 0 and not self._is_within_body(found.start()):
                        return found.start()
                    at = found.end()
                case b"(":
                    depth, at = depth + 1, found.end()
                case b")":
                    depth, at = depth - 1, found.end()
                case _:
                    at = self._after(found)

    def _next_token(self, at: int) -> re.Match[bytes]:
        """Return the next place from ``at`` on where something begins that may hide a semicolon, or one stands."""
        while True:
            found = _TOKEN.search(self._buffer, at)
            if found is not None and found.end() < len(self._buffer):
                return found
            # A token may go on in the next piece.
            at = found.start() if found is not None else max(at, len(self._buffer) - _LONGEST_TAG)
            if not self._more():
                if found is None:
                    raise self._refused("a statement has no end: the dump is cut")
                return found

    def _after(self, found: re.Match[bytes]) -> int:
        """Return where a comment, a string or a quoted name ends that begins here."""
        token, at = found[0], found.end()
        match token:
            case b"\\":
                raise self._refused("a statement has a backslash outside of quotes, which is a command for psql")
            case b"--":
                return self._find(b"\n", at) + 1
            case b"/*":
                return self._end_of_comment(found.start())
            case b"'":
                return self._end_of_string(found.start())
            case b'"':
                return self._find(b'"', at) + 1
            case _:
                if found.start() > self._at and _WORD.match(self._buffer, found.start() - 1):
                    return found.start() + 1  # a name may have dollars in it
                return self._find(token, at) + len(token)

    def _is_within_body(self, end: int) -> bool:
        """Tell whether a semicolon stands between BEGIN ATOMIC and END of a routine in standard SQL."""
        if not _ROUTINE.match(self._buffer, self._at) or not _ATOMIC.search(self._buffer, self._at, end):
            return False
        return not self._buffer[self._at : end].endswith(b"\nEND")

    def _end_of_string(self, start: int) -> int:
        """Return what follows a string in single quotes; a backslash counts in one that begins with E."""
        before = self._buffer[max(self._at, start - 2) : start]
        escapes = before[-1:] in {b"E", b"e"} and not (len(before) == 2 and _WORD.match(before))
        at = start + 1
        while True:
            at = self._find(b"'", at)
            if escapes:
                run = at
                while run - 1 > start and self._buffer[run - 1 : run] == b"\\":
                    run -= 1
                doubled = self._byte_at(at + 1) == b"'"
                if (at - run) % 2 or doubled:
                    at += 1 if (at - run) % 2 else 2
                    continue
            return at + 1  # elsewhere a doubled quote begins a string that follows at once: the same end

    def _byte_at(self, at: int) -> bytes:
        while at >= len(self._buffer) and self._more():
            pass
        return self._buffer[at : at + 1]

    def _end_of_comment(self, start: int) -> int:
        """Return what follows a comment that may hold others."""
        depth, at = 0, start
        while True:
            found = _COMMENT_EDGE.search(self._buffer, at)
            if found is None:
                at = max(at, len(self._buffer) - 1)
                if not self._more():
                    raise self._refused("a comment has no end: the dump is cut")
                continue
            depth += 1 if found[0] == b"/*" else -1
            at = found.end()
            if depth == 0:
                return at

    def _find(self, what: bytes, at: int) -> int:
        """Return where the next ``what`` stands, reading on as far as it takes."""
        while (found := self._buffer.find(what, at)) < 0:
            at = max(at, len(self._buffer) - len(what) + 1)
            if not self._more():
                raise self._refused("a statement has no end: the dump is cut")
        return found

    def _more(self) -> bool:
        """Read a piece more; what was passed is dropped first only where nothing points into it."""
        if len(self._buffer) - self._at > _MOST_STATEMENT_BYTES:
            raise self._refused(f"a statement is longer than {_MOST_STATEMENT_BYTES >> 20} MiB")
        piece = next(self._pieces, b"")
        self._buffer += piece
        return bool(piece)

    def _take(self, end: int) -> bytes:
        piece = self._buffer[self._at : end]
        self._consume(end)
        return piece

    def _consume(self, end: int) -> None:
        """Pass on to ``end``, and forget what lies before it when it is most of what is held."""
        self._line += self._buffer.count(b"\n", self._at, end)
        self._at = end
        if self._at > 1 << 20 or self._at == len(self._buffer):
            self._buffer = self._buffer[self._at :]
            self._at = 0

    def _refused(self, what: str) -> ImportRefusedError:
        return ImportRefusedError(
            f"dump.sql cannot be loaded: line {self._line}: {what}",
            hint="It has to be a plain dump as pg_dump writes it (Odoo's own backup is one), and whole.",
        )
