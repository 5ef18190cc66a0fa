"""One way to write JSON for hashing and signing: sorted keys, no spaces, UTF-8, no floats.

The rules are the subset of RFC 8785 that this project needs: integers, strings, booleans, null, lists and
objects with string keys. Numbers with fractions are refused, so no two writers can disagree about a digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "str | int | bool | Sequence[Json] | Mapping[str, Json] | None"


def canonical_bytes(value: Json) -> bytes:
    """Return the one byte string for ``value``.

    Raises:
        TypeError: for a float, a non-string key or another type.
    """
    _require_plain(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def parse_canonical(data: bytes | memoryview) -> Json:
    """Read JSON that must be spelled the one way: two readers can never understand it differently.

    Raises:
        ValueError: it is not canonical JSON (a key twice, a float, other spacing, nested beyond reason).
    """
    raw = bytes(data)
    try:
        value: Json = json.loads(raw)
        spelled = canonical_bytes(value)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error
    if spelled != raw:
        raise ValueError("not canonical JSON: another spelling, or a key twice")
    return value


def _require_plain(value: Json) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has string keys only, not {type(key).__name__}")
            _require_plain(item)
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            _require_plain(item)
        return
    raise TypeError(f"canonical JSON cannot hold {type(value).__name__}")
