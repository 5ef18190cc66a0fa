"""How the neutralization of a copy is told on the command line."""

from __future__ import annotations

from collections.abc import Iterator

from drservice.operations.restorerequest import RestoreResult

_SHOWN = 10


def neutralized_lines(result: RestoreResult) -> Iterator[str]:
    """Tell what was done to each database, loudly that it is no production any more, and what was not done."""
    for item in result.neutralized:
        yield (
            f"  NEUTRALIZED: {item.database} is a copy that must never become production:"
            f" scripts of {len(item.scripts)} modules, then what they left"
        )
        yield from (f"    {name}: {rows} rows" for name, rows in item.changes if rows)
        yield from (
            f"    calls out, held by the environment only: action {text}" for text in item.http_actions[:_SHOWN]
        )
        if len(item.http_actions) > _SHOWN:
            yield f"    and {len(item.http_actions) - _SHOWN} more actions (--json has all)"
    for text in dict.fromkeys(text for item in result.neutralized for text in item.problems()):
        yield f"  WARNING: {text}"
