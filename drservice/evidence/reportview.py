"""What a rendered report is made of: cells, tables, bars and cards of finished text. Values only.

Every text in here has been neutralised and every number has its unit: a renderer places, it does not judge. A status is
always a word with a symbol; its tone only colours what is said already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from drservice.evidence.reporttext import neutralise

SCALE = 1000
"""Lengths of bars are in thousandths of their place."""


class Tone(Enum):
    """The colour of a status; never its only carrier."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    QUIET = "quiet"


class Style(Enum):
    """How a cell is set."""

    TEXT = "text"
    NUMBER = "number"
    CODE = "code"
    TIME = "time"
    STATUS = "status"


_SYMBOLS = {Tone.GOOD: "\u2713", Tone.WARN: "\u25b2", Tone.BAD: "\u2717", Tone.QUIET: "\u25cb"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One field of a table."""

    text: str
    style: Style = Style.TEXT
    symbol: str = ""
    tone: Tone = Tone.QUIET


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's title and its share of the width."""

    title: str
    share: int = 1
    style: Style = Style.TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under titles; ``empty`` is said where there are none."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One objective: promised against measured, as numbers and as lengths in thousandths (-1: there is none)."""

    name: str
    promised: str
    last: str
    worst: str
    samples: str
    status: Cell
    promised_at: int
    last_to: int
    worst_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A label and what stands beside it."""

    label: str
    value: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCard:
    """A service on the first page."""

    name: str
    about: str
    standing: Cell
    sentence: str
    bars: tuple[Bar, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase of a restore: its time and its place on the line, in thousandths."""

    name: str
    time: str
    begin: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillCard:
    """One drill in full."""

    entry: int
    title: str
    verdict: Cell
    subtitle: str
    notes: tuple[Fact, ...]
    facts: tuple[Fact, ...]
    phases: tuple[Phase, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A chapter: an introduction, tables, cards."""

    name: str
    title: str
    intro: str
    tables: tuple[Table, ...] = ()
    drills: tuple[DrillCard, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    """(what it shows, the command)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A report, ready to be set."""

    title: str
    subject: str
    period: str
    as_of: str
    as_of_iso: str
    repository: str
    origin: str
    tree_size: str
    root_hash: str
    anchor: Cell
    headline: Cell
    summary: str
    counts: tuple[Fact, ...]
    services: tuple[ServiceCard, ...]
    sections: tuple[Section, ...]


def text(value: str) -> Cell:
    """Return a cell with text from anywhere, neutralised."""
    return Cell(text=neutralise(value))


def code(value: str | None) -> Cell:
    """Return a cell with an identifier, neutralised; a dash where there is none."""
    return Cell(text=neutralise(value or "-"), style=Style.CODE)


def number(value: str) -> Cell:
    """Return a cell with a formatted number."""
    return Cell(text=value, style=Style.NUMBER)


def moment(value: str) -> Cell:
    """Return a cell with a formatted instant or day, which is not broken over lines; its column says UTC."""
    return Cell(text=value.removesuffix(" UTC"), style=Style.TIME)


def status(word: str, tone: Tone) -> Cell:
    """Return a word with the symbol and colour of its tone."""
    return Cell(text=neutralise(word), style=Style.STATUS, symbol=_SYMBOLS[tone], tone=tone)


def entries(numbers: Sequence[int]) -> Cell:
    """Return the numbers of ledger entries, the first ones where there are many."""
    shown = ", ".join(str(n) for n in numbers[:8])
    return number(f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown or "-")


def fact(label: str, value: Cell | str) -> Fact:
    """Return a labelled value; a string is text from anywhere."""
    return Fact(label=label, value=text(value) if isinstance(value, str) else value)


def columns(*titles: tuple[str, int] | tuple[str, int, Style]) -> tuple[Column, ...]:
    """Return columns from (title, share) or (title, share, style)."""
    made = []
    for given in titles:
        style = given[2] if len(given) == 3 else Style.TEXT
        made.append(Column(title=given[0], share=given[1], style=style))
    return tuple(made)


def share_of(value: int | None, whole: int) -> int:
    """Return a length in thousandths, at least 4 where there is something, -1 where nothing is known."""
    if value is None:
        return -1
    return 0 if value <= 0 or whole <= 0 else max(4, min(SCALE, value * SCALE // whole))
