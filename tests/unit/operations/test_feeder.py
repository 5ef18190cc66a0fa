"""The feeder: what comes next lies ready before it is asked for, within bounds, and errors wait until they matter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drservice.environments.exchange import Exchange
from drservice.errors import SegmentAbsentError, StoreUnreachableError
from drservice.model.ids import SystemId
from drservice.model.wal import WalFileName
from drservice.operations import feeder as module
from drservice.operations.feeder import Feeder
from drservice.operations.progress import SilentProgress

NAMES = [f"0000000100000000000000{number:02X}" for number in range(1, 31)]
MIB = 1 << 20


class Archive:
    """Serves every segment with its own name as content, but for what a test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.problems: dict[str, Exception] = {}

    def fetch_into(
        self, take: Callable[[Iterator[bytes | memoryview]], None], name: WalFileName, *, system_id: SystemId
    ) -> None:
        assert system_id == "1"
        self.asked.append(name.name)
        take(self._pieces(name.name))

    def _pieces(self, name: str) -> Iterator[bytes | memoryview]:
        yield name.encode()
        if name in self.problems:
            raise self.problems[name]  # behind the last piece, where the hash of the whole is compared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wal").mkdir()
    return tmp_path / "wal"


@pytest.fixture
def archive() -> Archive:
    return Archive()


Begin = Callable[..., Feeder]


@pytest.fixture
def begin(folder: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Start a feeder of 30 segments."""
    monkeypatch.setattr(module, "plan_segments", lambda *_: NAMES)
    made: list[tuple[Feeder, Exchange]] = []

    def start(*, segment_bytes: int = 16 * MIB) -> Feeder:
        exchange = Exchange(folder)
        plan: Any = SimpleNamespace(reach=SimpleNamespace(partial=None), timeline=1)
        inventory: Any = SimpleNamespace(system_id=SystemId("1"), segment_bytes=segment_bytes, histories={})
        source: Any = archive
        feeder = Feeder(exchange, source, plan=plan, inventory=inventory, progress=SilentProgress())
        made.append((feeder, exchange))
        feeder.start()
        return feeder

    yield start
    for feeder, exchange in made:
        feeder.stop()
        exchange.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def problem(feeder: Feeder) -> Exception | None:
    return feeder.state.problem


def served(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name in NAMES)


def test_the_next_segments_lie_ready_before_they_are_asked_for(folder: Path, archive: Archive, begin: Begin) -> None:
    feeder = begin()
    eventually(lambda: served(folder) == NAMES[:8])
    assert feeder.state.served == 0
    (folder / f"{NAMES[2]}.want").touch()
    eventually(lambda: served(folder) == NAMES[:10])
    assert (feeder.state.served, feeder.state.names) == (1, [NAMES[2]])
    assert (folder / NAMES[9]).read_text() == NAMES[9]
    assert sorted(archive.asked) == NAMES[:10]  # each once


def test_large_segments_are_not_heaped_up(folder: Path, begin: Begin) -> None:
    begin(segment_bytes=128 * MIB)
    eventually(lambda: served(folder) == NAMES[:2])
    time.sleep(0.05)
    assert served(folder) == NAMES[:2]


def test_a_segment_that_is_asked_for_again_is_still_there_or_comes_again(
    folder: Path, archive: Archive, begin: Begin
) -> None:
    feeder = begin()
    eventually(lambda: served(folder) == NAMES[:8])
    for _ in range(2):
        before = feeder.state.served
        (folder / NAMES[0]).unlink(missing_ok=True)
        (folder / f"{NAMES[0]}.want").touch()
        eventually(lambda before=before: feeder.state.served == before + 1)  # type: ignore[misc]  # a default binds it
        assert (folder / NAMES[0]).read_text() == NAMES[0]
    assert archive.asked.count(NAMES[0]) == 3


def test_what_cannot_be_fetched_ahead_is_refused_when_it_is_asked_for(
    folder: Path, archive: Archive, begin: Begin
) -> None:
    archive.problems = {NAMES[3]: StoreUnreachableError("away"), NAMES[5]: SegmentAbsentError("gone")}
    feeder = begin()
    eventually(lambda: served(folder) == [*NAMES[:3], NAMES[4], *NAMES[6:8]])
    assert problem(feeder) is None
    (folder / f"{NAMES[3]}.want").touch()
    eventually((folder / f"{NAMES[3]}.refused").exists)
    assert isinstance(problem(feeder), StoreUnreachableError)
    (folder / f"{NAMES[5]}.want").touch()  # listed when the plan was made: never the end of the WAL
    eventually((folder / f"{NAMES[5]}.refused").exists)
    assert "vanished" in (folder / f"{NAMES[5]}.refused").read_text()
    assert not (folder / f"{NAMES[5]}.absent").exists()
