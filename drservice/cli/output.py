"""The only place that prints.

People get text on stdout; progress and diagnostics go to stderr. With ``--json`` stdout carries exactly one
JSON document, on one line, with its ``schema``. Whatever is printed for people is neutralised first: a name in
a backup cannot move the cursor, change colours or forge a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import PurePath
from typing import TextIO

from drservice.cli.formatting import format_time, neutralise
from drservice.errors import DrError


class Colour(Enum):
    """Colours with a meaning; never the only carrier of it."""

    GOOD = "\x1b[32m"
    WARNING = "\x1b[33m"
    BAD = "\x1b[31m"
    STRONG = "\x1b[1m"
    FAINT = "\x1b[2m"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line in a colour."""

    text: str
    colour: Colour


Line = str | tuple[str | Span, ...]
"""What a command hands over as one line: text, or pieces of which some are coloured."""

_RESET = "\x1b[0m"


class Output:
    """Writes results, notes and errors in the form that was asked for.

    Args:
        stdout: where results go.
        stderr: where notes and errors go.
        json_document: one JSON document instead of text.
        quiet: no notes and no progress; results, warnings and errors stay.
        colour: colours on stdout and stderr.
    """

    def __init__(self, *, stdout: TextIO, stderr: TextIO, json_document: bool, quiet: bool, colour: bool) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.json_document = json_document
        self.quiet = quiet
        self.colour = colour
        self._document_written = False

    def result(self, command: str, document: Mapping[str, object], lines: Iterable[Line]) -> None:
        """Print what a command found: ``lines`` for people, or ``document`` with ``--json``.

        Args:
            command: names the document's schema ``drservice/<command>/v1``.
            document: plain values; datetimes (aware), timedeltas (seconds), paths and enums are translated.
            lines: what a person reads, without line ends.

        Raises:
            RuntimeError: for a second document in one run, which no reader could parse.
        """
        if not self.json_document:
            for line in lines:
                self._print(line, self.stdout)
            return
        self._write_document({"schema": f"drservice/{command}/v1", **document})

    def raw(self, text: str) -> None:
        """Print a document that has a format of its own (a JSON Schema, a report), as it is."""
        _write(self.stdout, text if text.endswith("\n") else f"{text}\n")

    def note(self, line: Line) -> None:
        """Tell what is going on, on stderr; silent under ``--quiet``."""
        if not self.quiet:
            self._print(line, self.stderr)

    def tell(self, line: Line) -> None:
        """Tell a part of the result as it happens: on stdout, on stderr beside ``--json``; silent under ``--quiet``."""
        if not self.quiet:
            stream = self.stderr if self.json_document else self.stdout
            self._print(line, stream)
            with _telling_what_failed():
                stream.flush()

    def warn(self, text: str) -> None:
        """Tell something a person should look at, on stderr, also under ``--quiet``."""
        self._print((Span("warning", Colour.WARNING), f": {text}"), self.stderr)

    def error(self, error: DrError) -> None:
        """Tell why a run failed: a JSON document if it was asked for and none is out yet, else on stderr."""
        if self.json_document and not self._document_written:
            body = {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "exit_status": int(error.exit_status),
            }
            self._write_document({"schema": "drservice/error/v1", "error": body})
            return
        first, *more = error.message.splitlines() or [""]
        stop = "" if first.endswith((".", ":", "?", "!")) else "."
        self._print((Span(f"error[{error.code}]", Colour.BAD), f": {first}{stop}"), self.stderr)
        for line in more:
            self._print(f"  {line}", self.stderr)  # indented, so that no name in it can pose as a hint
        self._print((Span("hint", Colour.STRONG), f": {error.hint}"), self.stderr)

    def traceback(self, text: str) -> None:
        """Print a traceback on stderr (for ``--log-level debug``)."""
        for line in text.splitlines():
            self._print(line, self.stderr)

    def flush(self) -> None:
        """Hand everything to the system, so that a full disk or a closed pipe shows now.

        Raises:
            DrError: if it cannot be written.
            BrokenPipeError: if the reader has left.
        """
        for stream in (self.stdout, self.stderr):
            with _telling_what_failed():
                stream.flush()

    def _write_document(self, document: Mapping[str, object]) -> None:
        if self._document_written:
            raise RuntimeError("one run prints one JSON document")
        text = json.dumps(document, default=_plain, allow_nan=False)
        self._document_written = True
        _write(self.stdout, f"{text}\n")

    def _print(self, line: Line, stream: TextIO) -> None:
        parts = (line,) if isinstance(line, str) else line
        text = "".join(self._paint(part) for part in parts)
        encoding = stream.encoding or "utf-8"
        _write(stream, text.encode(encoding, "backslashreplace").decode(encoding) + "\n")

    def _paint(self, part: str | Span) -> str:
        if isinstance(part, str):
            return neutralise(part)
        text = neutralise(part.text)
        return f"{part.colour.value}{text}{_RESET}" if self.colour else text


def _write(stream: TextIO, text: str) -> None:
    with _telling_what_failed():
        stream.write(text)


@contextmanager
def _telling_what_failed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DrError(
            f"the output cannot be written: {error.strerror}",
            hint="What was done is done; free space, or send the output elsewhere.",
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a result cannot hold {type(value).__name__}")
