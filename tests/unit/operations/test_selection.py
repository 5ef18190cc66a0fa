"""What a server says that replays over left-out files: complaints about them are counted, others end the restore."""

from __future__ import annotations

from typing import Any, cast

import pytest

from drservice.components.postgres.databases import Selection
from drservice.errors import ReplayError
from drservice.operations.selection import SideServer

SELECTION = Selection(
    name="plant", kept=frozenset({1, 5, 16384}), candidates=frozenset({16384}), holders=frozenset({16384}), left_out=()
)


class Saying:
    """An environment whose server says what it is told to."""

    def __init__(self) -> None:
        self.said = b""

    def read_server_log(self, offset: int, length: int) -> bytes:
        return self.said[offset : offset + length]


def line(text: str, level: str = "WARNING") -> bytes:
    return f"2026-11-26 22:05:28.463 UTC [5] {level}:  {text}\n".encode()


REFERENCES = line("WAL contains references to invalid pages")


@pytest.fixture
def saying() -> Saying:
    return Saying()


@pytest.fixture
def server(saying: Saying) -> SideServer:
    return SideServer(cast("Any", saying), SELECTION)


def test_complaints_about_left_out_pages_are_taken_out(saying: Saying, server: SideServer) -> None:
    for relation in ("base/16385/9", "pg_tblspc/7/PG_15_1/16385/9_vm", "base/99999/1"):
        saying.said += line(f"page 3 of relation {relation} is uninitialized") + REFERENCES
        saying.said += line(f"page 4 of relation {relation} does not exist") + REFERENCES
    saying.said += line("redo done at 0/1", "LOG") + line("something else")
    assert server.read().splitlines() == [
        "2026-11-26 22:05:28.463 UTC [5] LOG:  redo done at 0/1",
        "2026-11-26 22:05:28.463 UTC [5] WARNING:  something else",
    ]
    assert server.passed_over == 6


@pytest.mark.parametrize("relation", ["base/16384/9", "base/1/1259", "global/1262", "base/5/2_fsm", "nonsense"])
def test_a_missing_page_of_what_was_placed_ends_the_restore(saying: Saying, server: SideServer, relation: str) -> None:
    saying.said = line(f"page 0 of relation {relation} is uninitialized")
    with pytest.raises(ReplayError, match="page 0 of"):
        server.read()


def test_a_complaint_that_comes_in_two_pieces_is_understood(saying: Saying, server: SideServer) -> None:
    whole = line("page 0 of relation base/16384/9 does not exist")
    saying.said = whole[:60]
    server.read()
    saying.said = whole
    with pytest.raises(ReplayError):
        server.read()


def test_what_is_kept_of_a_long_log_is_its_end(saying: Saying, server: SideServer) -> None:
    saying.said = b"".join(line(f"entry {number}", "LOG") for number in range(30_000))
    kept = server.read()
    assert len(kept) == 1 << 20
    assert kept.endswith("entry 29999\n")
