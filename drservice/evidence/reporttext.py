r"""How times, durations, numbers and hostile text look in a report. Pure: values in, text out.

Everything that came from a ledger passes :func:`neutralise` before a reader sees it: the name of a check cannot hide,
forge a line, turn the direction of reading or fill a page. HTML and PDF both get their text from here, so they agree.
"""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

MAX_TEXT = 600
"""Characters of one text that a report shows; the entry holds all of it."""

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_MARKS = {"Mn", "Me"}
_MAX_MARKS = 2
_BLANK = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Letters by their category, blank by their looks."""


def neutralise(text: str, *, limit: int = MAX_TEXT) -> str:
    r"""Return ``text`` with everything that does not show itself written as an escape, cut to ``limit`` characters.

    Control characters (newline and ESC included), direction overrides, invisible characters and lone surrogates become
    ``\xNN`` or ``\uNNNN``; so do combining marks beyond two in a row, which would grow over the lines above. What is
    cut off is counted in words, so that nobody takes a beginning for the whole.
    """
    shown = text[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(_visible(unicodedata.normalize("NFC", shown)))
    return shown if len(text) <= limit else f"{shown}... [{len(text) - limit:,} more characters]"


def _visible(text: str) -> list[str]:
    out, marks = [], 0
    for letter in text:
        category = unicodedata.category(letter)
        marks = marks + 1 if category in _MARKS else 0
        hidden = category in _HIDDEN or letter in _BLANK or marks > _MAX_MARKS
        out.append(ascii(letter)[1:-1] if hidden else letter)
    return out


def format_ms(value: int | None) -> str:
    """Write a duration: ``53 ms``, ``4.2 s``, ``6 min 12 s``, ``3 d 4 h``; a dash where it is not known."""
    if value is None:
        return "-"
    if value < 0:
        return f"-{format_ms(-value)}"
    if value < 1000:
        return f"{value} ms"
    if value < 59_950:
        tenths = (value + 50) // 100
        return f"{tenths // 10} s" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10} s"
    whole = (value + 500) // 1000
    for large, small, big_name, small_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {big_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError(f"{value} ms has no unit")


def format_instant(instant: datetime | None, *, exact: bool = False) -> str:
    """Write an instant in UTC to the second (``exact``: with milliseconds); a dash where it is not known."""
    if instant is None:
        return "-"
    moment = instant.astimezone(UTC)
    text = f"{moment:%Y-%m-%d %H:%M:%S}"
    return f"{text}.{moment.microsecond // 1000:03d} UTC" if exact else f"{text} UTC"


def format_day(instant: datetime) -> str:
    """Write the day of an instant, in UTC."""
    return f"{instant.astimezone(UTC):%Y-%m-%d}"


def format_count(value: int | None) -> str:
    """Write a number with separators; a dash where it is not known."""
    return "-" if value is None else f"{value:,}"


def count_of(value: int, noun: str, plural: str | None = None) -> str:
    """Write ``1 drill`` or ``2 drills``."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"
