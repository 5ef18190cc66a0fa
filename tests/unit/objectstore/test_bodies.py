"""Bodies are compared with what is stored piece by piece, however either is cut."""

from __future__ import annotations

import pytest

from drservice.objectstore.bodies import same_pieces

BODY = (b"head", b"", bytearray(b"the middle"), memoryview(b"end"))
WHOLE = b"headthe middleend"


@pytest.mark.parametrize("cut", [1, 3, 5, 17, 100])
def test_the_same_bytes_are_the_same_however_they_are_cut(cut: int) -> None:
    assert same_pieces(BODY, [WHOLE[at : at + cut] for at in range(0, len(WHOLE), cut)])


@pytest.mark.parametrize("stored", [WHOLE[:-1], WHOLE + b"!", b"H" + WHOLE[1:], WHOLE[:-1] + b"D", b""])
def test_less_more_and_other_bytes_are_not_the_same(stored: bytes) -> None:
    assert not same_pieces(BODY, [stored[at : at + 4] for at in range(0, len(stored), 4)])
