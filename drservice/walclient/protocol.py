"""Messages between the client and the helper, and what they call a file. See the package for the protocol."""

from __future__ import annotations

TYPE_CHECKING = False  # ``import typing`` costs a third of the client's time
if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from typing import Protocol

    class Connection(Protocol):
        """The part of a socket that messages need."""

        def recv(self, size: int, /) -> bytes:
            """Receive some bytes."""
            ...

        def sendall(self, data: bytes, /) -> None:
            """Send all bytes."""
            ...


VERSION = "1"
MOST_BYTES = 8192
HEAD_BYTES = 40
"""How much of a WAL file's beginning says what it is: the long header of a segment's first page."""

PUSH, WAIT, DURABLE, OTHER, STATE = "push", "wait", "durable", "other", "state"


def encode(word: str, fields: Mapping[str, str]) -> bytes:
    """Return a message.

    Raises:
        ValueError: something in it cannot be sent.
    """
    lines = [word, *(f"{name}={value}" for name, value in fields.items())]
    if any("\n" in line for line in lines) or any("=" in name for name in fields):
        raise ValueError("a line feed or = in a message")
    text = "\n".join(lines).encode("utf-8")
    if len(text) > MOST_BYTES:
        raise ValueError(f"a message of {len(text)} bytes")
    return len(text).to_bytes(4, "big") + text


def decode(text: bytes) -> tuple[str, dict[str, str]]:
    """Return the word and the fields of a message's text.

    Raises:
        ValueError: it is none.
    """
    word, *lines = text.decode("utf-8").split("\n")
    fields = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or name in fields:
            raise ValueError("a line without = in a message, or a name twice")
        fields[name] = value
    return word, fields


def receive(connection: Connection) -> tuple[str, dict[str, str]]:
    """Read one message.

    Raises:
        ValueError: what comes is no message.
        OSError: the connection ended or its time is up.
    """
    length = int.from_bytes(_exactly(connection, 4), "big")
    if not 0 < length <= MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return decode(_exactly(connection, length))


def _exactly(connection: Connection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the other side hung up")
        data += piece
    return data


def identity(facts: os.stat_result) -> str:
    """Name the very content of a file: another file, a re-used one and a changed one have other names."""
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}"


def configuration(facts: os.stat_result) -> str:
    """Name the configuration file as it was read; a changed file has another name."""
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}"
