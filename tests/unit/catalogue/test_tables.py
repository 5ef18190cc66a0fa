"""What is stored of hostile texts."""

from __future__ import annotations

import json

import pytest

from drservice.catalogue.tables import storable


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("plain", "plain"),
        ("Łódź \U0001f600", "Łódź \U0001f600"),
        ("a\0b", "a\ufffdb"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("other half \udc00", "other half \ufffd"),
        ({"a\0": ["b\0", 1, None, True, {"c": "\0"}]}, {"a\ufffd": ["b\ufffd", 1, None, True, {"c": "\ufffd"}]}),
        (("x", "\0"), ["x", "\ufffd"]),
        (7, 7),
        (None, None),
    ],
)
def test_only_what_postgresql_has_no_place_for_is_replaced(given: object, stored: object) -> None:
    assert storable(given) == stored
    assert "\\u0000" not in json.dumps(storable(given))
