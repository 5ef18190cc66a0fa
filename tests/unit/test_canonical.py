"""One way to write JSON: two writers never disagree about a byte, two readers never about a value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.canonical import Json, canonical_bytes, parse_canonical

values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80)
@given(values)
def test_whatever_is_written_is_read_back(value: Json) -> None:
    raw = canonical_bytes(value)
    assert parse_canonical(raw) == value
    assert canonical_bytes(parse_canonical(raw)) == raw


def test_the_order_of_keys_and_the_kind_of_list_do_not_matter() -> None:
    assert canonical_bytes({"b": 1, "a": (2, "\u00e4")}) == b'{"a":[2,"\xc3\xa4"],"b":1}'
    assert canonical_bytes({"a": [2, "\u00e4"], "b": 1}) == canonical_bytes({"b": 1, "a": (2, "\u00e4")})


@pytest.mark.parametrize("value", [1.0, float("nan"), {"a": 0.5}, [b"x"], {1: "x"}, {"a": {None: 1}}, {"a", "b"}])
def test_what_has_more_than_one_spelling_is_refused(value: Json) -> None:
    with pytest.raises(TypeError, match="canonical JSON"):
        canonical_bytes(value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.5}',
        b'{"a":1e3}',
        b"[NaN]",
        b'"\\u00e4"',
        b"{}\n",
        b" {}",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b"[01]",
        b"[-0]",
        b'["\\ud800"]',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_another_spelling_is_not_read(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_canonical(raw)


def test_a_view_is_read_like_bytes() -> None:
    assert parse_canonical(memoryview(b"[1]")) == json.loads("[1]")
