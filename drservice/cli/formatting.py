"""How sizes, durations, times, tables and hostile text look to people. Pure: text in, text out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

_SIZES = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def neutralise(text: str) -> str:
    r"""Return ``text`` with every character that could act on a terminal written as an escape.

    Control characters (with newline, ESC and the C1 range), direction overrides, other invisible characters
    and lone surrogates become ``\xNN`` or ``\uNNNN``; a file name can then neither move the cursor nor forge a line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if unicodedata.category(c) not in _HIDDEN else ascii(c)[1:-1] for c in text)


def format_bytes(count: int) -> str:
    """Write a size with binary units: ``512 B``, ``1.5 KiB``, ``23 MiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _SIZES:
        value /= 1024
        if value < 1023.95 or unit == _SIZES[-1]:
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def format_seconds(value: float | timedelta) -> str:
    """Write a duration with its two largest units: ``53 ms``, ``4.2 s``, ``6 min 12 s``, ``3 d 4 h``."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for large, small, big_name, small_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {big_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError(f"{seconds} has no unit")


def format_time(instant: datetime) -> str:
    """Write an instant as ISO 8601 in UTC, with fractions only where there are any.

    Raises:
        ValueError: for a naive datetime.
    """
    if instant.tzinfo is None:
        raise ValueError("a naive datetime has no place here")
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def width(text: str) -> int:
    """Return how many columns a terminal uses for ``text``."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in {"Mn", "Me"} for c in text)


def connect_line(dsn: str, database: str | None) -> str:
    """Return the line that reaches a recovered cluster, in the database that is named: libpq takes the last word."""
    if database is None:
        return f'connect: psql "{dsn}"'
    quoted = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"connect: psql \"{dsn} dbname='{quoted}'\""


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells are neutralised, columns are as wide as their widest cell."""
    cells = [[neutralise(cell) for cell in row] for row in (header, *rows)]
    widths = [max(width(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join(cell + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
