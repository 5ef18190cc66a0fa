"""Names and texts of a baseline; what the server makes of them is in tests/integration/test_checks.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.components.postgres.baseline import (
    WATERMARKS,
    decode_sequences,
    encode_sequences,
    settle,
    watermark_key,
    watermark_names,
)


def test_only_the_token_is_replaced() -> None:
    sql = "select '{a}', 50 % 3 from t where {settled} and x like '%s' and {settled:t}"
    settled = settle(sql, 800)
    assert settled.startswith("select '{a}', 50 % 3 from t where (xmin::text::bigint in (1, 2) or ")
    assert "and x like '%s' and (t.xmin::text::bigint in (1, 2) or " in settled
    assert "{settled" not in settled


@pytest.mark.parametrize("token", ["{settled:1}", "{settled:a b}", "{settled:x); drop table t; --}", "{Settled}"])
def test_a_token_of_another_form_stays_and_fails_in_the_server(token: str) -> None:
    assert settle(token, 800) == token


@given(st.text(), st.sampled_from([item.name for item in WATERMARKS]))
def test_a_watermark_is_found_again_whatever_its_database_is_called(database: str, name: str) -> None:
    assert watermark_names([watermark_key(database, name), "a business check", "watermark"]) == [(database, name)]


@given(st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.integers()))
def test_sequences_are_read_as_they_were_written(sequences: dict[str, int]) -> None:
    assert decode_sequences(encode_sequences(sequences)) == sequences


@pytest.mark.parametrize("text", ["", "[]", "{} ", '{"a":"x"}', '{"a":1.5}'])
def test_what_are_no_sequences_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode_sequences(text)
