"""``--tablespace OLD=NEW`` of ``restore``, and where tablespaces lie afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from drservice.errors import UsageError
from drservice.operations.tablespaces import RestoredTablespace


def parse_tablespaces(texts: Sequence[str]) -> dict[str, Path]:
    """Read the mappings; the last ``=`` that a ``/`` follows divides them, because a location may hold one.

    Raises:
        UsageError: not of the form, or one tablespace twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        old, divider, new = text.rpartition("=/")
        if not old or not divider:
            raise UsageError(
                f"--tablespace {text!r} is not OLD=NEW",
                hint="OLD is its OID or production's path, NEW an absolute path: --tablespace 16385=/disk2/new",
            )
        if old in found:
            raise UsageError(f"tablespace {old} is given two places")
        found[old] = Path("/" + new)
    return found


def tablespace_lines(tablespaces: Sequence[RestoredTablespace]) -> Iterator[str]:
    """Tell where the extra tablespaces lie now."""
    for item in tablespaces:
        before = f"production: {item.location}" if item.location else "in place in production, too"
        yield f"  tablespace {item.oid}: {item.path} ({before})"
    if any(item.in_place for item in tablespaces):
        yield "  (tablespaces in pg_tblspc itself: --tablespace OLD=NEW gives one a folder of its own)"
