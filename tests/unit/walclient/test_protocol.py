"""Messages are small, and what is no message is refused."""

from __future__ import annotations

import pytest

from drservice.walclient import protocol


class Bytes:
    """A connection that has received something already, a few bytes at a time."""

    def __init__(self, data: bytes, piece: int = 3) -> None:
        self._data = data
        self._piece = piece

    def recv(self, size: int, /) -> bytes:
        taken, self._data = self._data[: min(size, self._piece)], self._data[min(size, self._piece) :]
        return taken

    def sendall(self, data: bytes, /) -> None:
        raise AssertionError(data)


def test_a_message_comes_as_it_was_sent() -> None:
    fields = {"version": "1", "name": "0" * 24, "reason": "a = b", "empty": ""}
    assert protocol.receive(Bytes(protocol.encode(protocol.OTHER, fields))) == (protocol.OTHER, fields)


@pytest.mark.parametrize("fields", [{"name": "a\nb"}, {"a=b": "c"}, {"a\nb": "c"}, {"name": "x" * protocol.MOST_BYTES}])
def test_what_cannot_be_sent_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="message"):
        protocol.encode(protocol.PUSH, fields)


@pytest.mark.parametrize(
    "data",
    [
        (protocol.MOST_BYTES + 1).to_bytes(4, "big") + b"x",
        bytes(4),
        b"\x00\x00\x00\x06push\na",
        b"\x00\x00\x00\x0cpush\na=b\na=c",
        b"\x00\x00\x00\x02\xff\xfe",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|codec"):
        protocol.receive(Bytes(data))


def test_a_connection_that_ends_in_a_message_is_no_message() -> None:
    with pytest.raises(ConnectionResetError):
        protocol.receive(Bytes(protocol.encode(protocol.WAIT, {"version": "1"})[:-1]))
