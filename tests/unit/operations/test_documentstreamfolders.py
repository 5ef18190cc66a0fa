"""Which folders are listed: those that may have changed, by times that are only compared with each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice.errors import DocumentsUnreadableError
from drservice.operations.documentstreamfolders import FolderWatch, WrongContentError
from tests.doubles.clock import ManualClock
from tests.doubles.filestores import name_of


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.watch = FolderWatch(os.fspath(folder), clock=self.clock)

    def add(self, content: bytes) -> str:
        name = name_of(content)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return name

    def listed(self) -> set[str]:
        with self.watch.opened() as filestore:
            return {f"{folder}/{name}" for folder, names in filestore.changed() for name in names}

    def fail_after(self, expected: set[str]) -> None:
        with self.watch.opened() as filestore:
            assert {folder for folder, _ in filestore.changed()} == expected
            raise RuntimeError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_file_that_comes_within_the_same_tick_of_the_folders_time_is_listed(bench: Bench) -> None:
    first = bench.add(b"first")
    assert bench.listed() == {first}
    folder = bench.folder / first[:2]
    before = folder.stat()
    second = f"{first[:2]}/{first[3:5]}{'0' * 38}"
    (bench.folder / second).write_bytes(b"x")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    bench.clock.pass_seconds(2.2)
    assert bench.listed() == {first, second}
    assert bench.listed() == set(), "settled"


def test_only_what_changed_is_listed_and_a_round_that_failed_has_listed_nothing(bench: Bench) -> None:
    first, second = bench.add(b"first"), bench.add(b"second")
    assert bench.listed() == {first, second}
    bench.clock.pass_seconds(2.2)
    bench.listed()
    bench.add(b"first")  # the same name: the folder is as it was
    assert bench.listed() == set()
    (bench.folder / first).unlink()
    bench.add(b"first")
    with pytest.raises(RuntimeError):
        bench.fail_after({first[:2]})
    assert bench.listed() == {first}


def test_a_filestore_that_is_not_there_or_lost_all_its_folders_is_an_error(bench: Bench) -> None:
    name = bench.add(b"one")
    bench.listed()
    (bench.folder / name).unlink()
    (bench.folder / name).parent.rmdir()
    with pytest.raises(DocumentsUnreadableError, match="no documents any more"):
        bench.listed()
    bench.folder.rmdir()
    with pytest.raises(DocumentsUnreadableError, match="cannot open"):
        bench.listed()


def test_content_that_is_not_its_names_is_never_yielded(bench: Bench) -> None:
    name = bench.add(b"right")
    (bench.folder / name).write_bytes(b"wrong")
    with bench.watch.opened() as filestore, pytest.raises(WrongContentError):
        list(filestore.parts(name))
    with bench.watch.opened() as filestore, pytest.raises(FileNotFoundError):
        list(filestore.parts(name_of(b"gone")))
