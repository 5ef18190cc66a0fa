"""How answers of Odoo's are spelled in a baseline, and read again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drservice.components.odoo.gathering import (
    Module,
    Numbered,
    TableCount,
    decode_modules,
    decode_numbers,
    decode_offenders,
    encode_modules,
    encode_numbers,
    encode_offenders,
)
from drservice.components.odoo.invariants import MOST_KEYS, Offenders


def test_every_answer_is_read_as_it_was_written() -> None:
    count = TableCount(rows={"done": 3, "": 1}, written="2026-11-27T01:02:03Z", created=None)
    assert TableCount.decode(count.encode()) == count
    assert count.total == 4
    numbers = [
        Numbered(id="INV/2026/@1", name="INV/2026/ of journal 1", last=1 << 60),
        Numbered(id="x", name="", last=-1),
    ]
    assert decode_numbers(encode_numbers(numbers)) == numbers
    modules = {"sale": Module(state="installed", version="19.0.1.0"), "x": Module(state="to upgrade", version="")}
    assert decode_modules(encode_modules(modules)) == modules
    offenders = Offenders(count=2, what={"b": "this one", "a": "that one"})
    assert decode_offenders(encode_offenders(offenders)) == (2, frozenset("ab"))


def test_as_many_offenders_as_are_kept_fit_into_a_baseline() -> None:
    keys = {f"{'9' * 19}@{number:019}": "" for number in range(MOST_KEYS)}
    assert len(encode_offenders(Offenders(count=MOST_KEYS, what=keys))) < 100_000


@pytest.mark.parametrize("decode", [TableCount.decode, decode_numbers, decode_modules, decode_offenders])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        '"text"',
        "[1]",
        '["text"]',
        '[["a","b"]]',
        '[["a","b","c"]]',
        '{"rows":[]}',
        '{"rows":{"done":"many"}}',
        '{"a":["one"]}',
        '{"a":"two"}',
        '{"count":1,"keys":"ab"}',
        '{"count":"²","keys":[]}',
        '{"keys":[]}',
        '{ "count": 1, "keys": [] }',
    ],
)
def test_what_nobody_wrote_so_is_refused(decode: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text)
