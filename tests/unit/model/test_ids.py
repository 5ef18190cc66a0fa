"""Names and ULIDs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.model.ids import is_name, is_ulid, make_ulid, ulid_time
from drservice.objectstore.keys import is_key

INSTANTS = st.integers(0, 2**47).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms % 10**13))


@given(INSTANTS, st.binary(min_size=10, max_size=10))
def test_a_ulid_tells_when_it_was_made(instant: datetime, entropy: bytes) -> None:
    made = make_ulid(instant, entropy)
    assert is_ulid(made)
    assert is_key(made)
    assert abs(ulid_time(made) - instant) <= timedelta(milliseconds=1)


@given(INSTANTS, INSTANTS)
def test_ulids_sort_by_time(one: datetime, other: datetime) -> None:
    first, second = sorted([one, other])
    if second - first > timedelta(milliseconds=1):
        assert make_ulid(first, b"\xff" * 10) < make_ulid(second, bytes(10))


def test_the_example_of_the_specification_holds() -> None:
    assert make_ulid(datetime.fromtimestamp(1469918176.385, tz=UTC), bytes(10)).startswith("01ARYZ6S41")


@pytest.mark.parametrize("entropy", [b"", bytes(9), bytes(11)])
def test_entropy_is_ten_bytes(entropy: bytes) -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        make_ulid(datetime(2026, 1, 1, tzinfo=UTC), entropy)


@pytest.mark.parametrize(
    "text",
    ["", "01ARZ3NDEKTSV4RRFFQ69G5FA", "01ARZ3NDEKTSV4RRFFQ69G5FAVX", "81ARZ3NDEKTSV4RRFFQ69G5FAV",
     "01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FAI", "01ARZ3NDEKTSV4RRFFQ69G5FAV\n"],
)  # fmt: skip
def test_what_is_no_ulid_is_none(text: str) -> None:
    assert not is_ulid(text)


@pytest.mark.parametrize("text", ["erp", "a", "9", "db-1", "a_b", "a" * 63])
def test_names_are_small_words(text: str) -> None:
    assert is_name(text)
    assert is_key(f"s/{text}/x")


@pytest.mark.parametrize("text", ["", "ERP", "-a", "a-", "_a", "a b", "a/b", "..", "a.b", "a" * 64, "ä", "a\n"])
def test_what_could_spoil_a_key_is_no_name(text: str) -> None:
    assert not is_name(text)
