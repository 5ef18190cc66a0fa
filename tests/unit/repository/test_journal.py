"""The journal of a killed run: whole frames are re-used, a torn one is ignored, losing it costs uploads only."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from drservice.model.ids import KeyId
from drservice.repository.journal import JournalFolder, ResumeIndex
from drservice.repository.pack import TABLE_ROW, ClosedPack

KEY = KeyId("01ARZ3NDEKTSV4RRFFQ69G5FAK")


def pack(number: int, chunks: int = 3) -> ClosedPack:
    rows = [TABLE_ROW.pack(bytes([number, chunk]) * 16, 104 + 50 * chunk, 50, 34, 0) for chunk in range(chunks)]
    return ClosedPack(token=number, name=bytes([number]) * 32, stored_bytes=1000 + number, table=b"".join(rows))


@pytest.fixture
def folder(tmp_path: Path) -> JournalFolder:
    made = JournalFolder(tmp_path / "journal")
    assert made.begin() is None
    return made


def written(folder: JournalFolder, *numbers: int, name: str = "run-worker-0") -> Path:
    writer = folder.writer(name, KEY)
    for number in numbers:
        writer.append(pack(number))
    writer.close()
    return folder.folder / f"{name}.journal"


def found(folder: JournalFolder) -> list[int]:
    path = folder.begin()
    assert path is not None
    index = ResumeIndex(path)
    try:
        packs = list(index.packs())
        for name, key_id, stored in packs:
            assert (key_id, stored) == (KEY, 1000 + name[0])
            for chunk in range(3):
                hit = index.find(bytes([name[0], chunk]) * 16)
                assert hit is not None
                assert hit[0] == name
                assert hit[1].ordinal == chunk
                assert hit[1].offset == 104 + 50 * chunk
        assert index.find(b"?" * 32) is None
        return sorted(name[0] for name, _, _ in packs)
    finally:
        index.close()


def test_acknowledged_packs_of_all_workers_are_found_again(folder: JournalFolder) -> None:
    written(folder, 1, 2)
    written(folder, 3, name="run-worker-1")
    assert found(folder) == [1, 2, 3]


def test_journals_stay_until_the_run_is_committed(folder: JournalFolder) -> None:
    written(folder, 1)
    assert found(folder) == [1]
    written(folder, 2, name="second-run-worker-0")
    assert found(folder) == [1, 2]
    folder.clear()
    assert folder.begin() is None


@pytest.mark.parametrize("lost", range(1, 260, 11))
def test_a_torn_last_frame_is_ignored_and_the_ones_before_count(folder: JournalFolder, lost: int) -> None:
    path = written(folder, 1, 2)
    frame = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:-lost])
    assert found(folder) == ([1] if lost <= frame else [])


def test_nothing_behind_a_damaged_frame_is_believed(folder: JournalFolder) -> None:
    path = written(folder, 1, 2, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert found(folder) == [1]


def test_an_empty_journal_is_no_problem(folder: JournalFolder) -> None:
    written(folder)
    assert found(folder) == []


def test_a_frame_that_claims_more_than_memory_is_not_read(folder: JournalFolder) -> None:
    path = written(folder, 1)
    with path.open("ab") as stream:
        stream.write(b"DRJ1" + bytes(4) + (0xFFFFFFF0).to_bytes(4, "big"))
        stream.truncate(1 << 33)  # sparse: the claim is true, and still nothing of it is read
    tracemalloc.start()
    try:
        assert found(folder) == [1]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_long_journal_is_read_frame_by_frame(folder: JournalFolder) -> None:
    writer = folder.writer("run-worker-0", KEY)
    for number in range(100):
        writer.append(pack(number, chunks=250))
    writer.close()
    size = (folder.folder / "run-worker-0.journal").stat().st_size
    tracemalloc.start()
    try:
        assert folder.begin() is not None
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_regular_file_is_no_journal(folder: JournalFolder, kind: str, tmp_path: Path) -> None:
    written(folder, 1)
    odd = folder.folder / "odd.journal"
    if kind == "link":
        elsewhere = JournalFolder(tmp_path / "elsewhere")
        elsewhere.begin()
        odd.symlink_to(written(elsewhere, 2))
    elif kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.mkdir()
    assert found(folder) == [1]
