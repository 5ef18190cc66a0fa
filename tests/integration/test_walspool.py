"""What was fetched ahead is served whole, to the right server with the right settings, while somebody fetches."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.errors import BusyError
from drservice.model.ids import SystemId
from drservice.objectstore.interface import ObjectStore
from drservice.operations.walspool import Ahead, Prefetcher, own_spool
from drservice.walclient import spool
from tests.doubles.estate import wait_for
from tests.doubles.repositories import SYSTEM_ID, Site
from tests.doubles.stores import MissingStore, SlowStore
from tests.doubles.walhelpers import SEGMENT, name_of, segment_content


@dataclass(kw_only=True)
class World:
    site: Site
    root: Path
    config: Path
    folder: Path

    def take(self, number: int, *, system_id: SystemId = SYSTEM_ID, config: Path | None = None) -> str:
        return spool.take(
            spool=str(self.root),
            system_id=system_id,
            config=str(config or self.config),
            name=name_of(number),
            destination="RECOVERYXLOG",
        )

    @contextmanager
    def prefetching(self, after: int, *, count: int = 3, store: ObjectStore | None = None) -> Iterator[Prefetcher]:
        prefetcher = Prefetcher(
            archive=self.site.repository(store=store).wal(self.site.scope),
            system_id=SYSTEM_ID,
            folder=self.folder,
            ahead=Ahead(count=count, segment_bytes=SEGMENT),
            clock=SystemClock(),
        )
        stop = threading.Event()
        with own_spool(self.folder, spool.about(self.config.stat())):
            thread = threading.Thread(target=prefetcher.run, args=(name_of(after), stop))
            thread.start()
            try:
                yield prefetcher
            finally:
                stop.set()
                thread.join()

    def entries(self) -> list[str]:
        return sorted(path.name[:24] for path in self.folder.iterdir() if len(path.name) > 24)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Segments 1 to 6 are archived; the working directory is a server's data directory."""
    site = Site.create(tmp_path)
    for number in range(1, 7):
        site.put_wal(name_of(number), segment_content(number))
    data = tmp_path / "pgdata"
    data.mkdir()
    monkeypatch.chdir(data)
    config, root = tmp_path / "drservice.yaml", tmp_path / "spool"
    config.write_text("version: 1\n")
    folder = Path(spool.folder_of(str(root), SYSTEM_ID, data.stat()))
    return World(site=site, root=root, config=config, folder=folder)


def test_what_follows_is_ready_and_served_and_the_spool_follows_and_is_bounded(world: World) -> None:
    with world.prefetching(1):
        wait_for(lambda: world.entries() == [name_of(2), name_of(3), name_of(4)], "three segments")
        for number in (2, 3, 4, 5, 6):
            wait_for(lambda: world.take(number) == "", f"segment {number}")  # noqa: B023 - called at once
            assert Path("RECOVERYXLOG").read_bytes() == segment_content(number)
            assert len(world.entries()) <= 3
        assert "not fetched ahead" in world.take(7)
    assert not world.folder.exists()


def test_what_postgresql_is_past_is_removed_although_nobody_took_it(world: World) -> None:
    with world.prefetching(1):
        wait_for(lambda: world.entries() == [name_of(2), name_of(3), name_of(4)], "three segments")
        spool.note_asked(str(world.folder), name_of(4))
        wait_for(lambda: world.entries() == [name_of(5), name_of(6)], "those behind it, and no others")


def test_a_segment_on_its_way_is_waited_for(world: World) -> None:
    free = threading.Event()

    def wait(operation: str) -> None:
        if operation == "read_versions" and threading.current_thread().name.startswith("prefetch"):
            free.wait(10)

    with world.prefetching(1, count=1, store=SlowStore(world.site.store, wait=wait)):
        wait_for(lambda: world.entries() != [], "a segment on its way")
        threading.Timer(0.1, free.set).start()
        assert world.take(2) == ""


def test_a_process_that_hangs_is_waited_for_for_seconds_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.take, "__kwdefaults__", {"patience_seconds": 0.1})
    with own_spool(world.folder, spool.about(world.config.stat())):
        (world.folder / f"{name_of(2)}.part").touch()
        assert "not fetched ahead" in world.take(2)


def test_what_was_fetched_for_somebody_else_is_not_there(world: World, tmp_path: Path) -> None:
    """Another cluster, another configuration, another server on this host."""
    with world.prefetching(1):
        wait_for(lambda: len(world.entries()) == 3, "three segments")
        assert world.take(2, system_id=SystemId("7")) != ""
        other = tmp_path / "other.yaml"
        other.write_text("version: 1\n")
        assert "another configuration" in world.take(2, config=other)
        (tmp_path / "second").mkdir()
        os.chdir(tmp_path / "second")
        assert "FileNotFoundError" in world.take(2)


def test_what_a_process_left_that_is_gone_is_never_served_and_is_removed_by_the_next(world: World) -> None:
    with world.prefetching(1):
        wait_for(lambda: len(world.entries()) == 3, "three segments")
        left = {path.name: path.read_bytes() for path in world.folder.iterdir()}
    world.folder.mkdir()
    for name, content in left.items():  # as after kill -9
        (world.folder / name).write_bytes(content)
    assert "nobody fetches ahead" in world.take(2)
    missing = MissingStore(world.site.store, chooses=lambda key: "/wal/" in key)
    with world.prefetching(1, store=missing):
        assert "not fetched ahead" in world.take(2)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_t28_a_damaged_spool_is_noticed_and_nothing_is_placed(world: World, damage: str) -> None:
    with world.prefetching(1):
        wait_for(lambda: len(world.entries()) == 3, "three segments")
        [entry] = [path for path in world.folder.iterdir() if path.name.startswith(name_of(2))]
        content = bytearray(entry.read_bytes())
        content[7] ^= 1
        entry.write_bytes(content if damage == "flipped" else content[:-1])
        assert "damaged" in world.take(2)
    assert not Path("RECOVERYXLOG").exists()


def test_a_spool_on_another_file_system_is_copied_from(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is checked, too, and a damaged one leaves nothing behind."""
    with world.prefetching(1):
        wait_for(lambda: len(world.entries()) == 3, "three segments")
        entry = spool._wait_for(str(world.folder), name_of(2), 0.0)
        devices = iter((1, 2))
        monkeypatch.setattr(spool, "_device", lambda _: next(devices))
        spool._place(f"{world.folder}/{entry}", entry.rpartition(".")[2], "RECOVERYXLOG")
        entry, devices = spool._wait_for(str(world.folder), name_of(3), 0.0), iter((1, 2))
        with pytest.raises(ValueError, match="damaged"):
            spool._place(f"{world.folder}/{entry}", "0" * 64, "other")
    assert Path("RECOVERYXLOG").read_bytes() == segment_content(2)
    assert [path.name for path in Path().iterdir()] == ["RECOVERYXLOG"]


def test_one_process_fetches_into_a_spool(world: World) -> None:
    with world.prefetching(1), pytest.raises(BusyError), own_spool(world.folder, b""):
        pass


def test_a_full_disk_ends_it_and_leaves_no_half_segment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, data: bytes) -> int:
        del data
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    stop = threading.Event()
    prefetcher = Prefetcher(
        archive=world.site.repository().wal(world.site.scope),
        system_id=SYSTEM_ID,
        folder=world.folder,
        ahead=Ahead(count=2, segment_bytes=SEGMENT),
        clock=SystemClock(),
    )
    with own_spool(world.folder, b""), pytest.raises(OSError, match="No space left"):
        prefetcher.run(name_of(1), stop)
    assert not world.folder.exists()


def test_a_segment_of_another_size_is_left_to_the_slow_way_and_not_fetched_over_and_over(world: World) -> None:
    world.site.put_wal(name_of(8), segment_content(8)[: SEGMENT // 2])
    reads: list[str] = []

    def count(operation: str) -> None:
        if operation == "read_versions" and threading.current_thread().name.startswith("prefetch"):
            reads.append(operation)

    with world.prefetching(7, count=1, store=SlowStore(world.site.store, wait=count)):
        wait_for(lambda: reads != [], "an attempt")
        threading.Event().wait(0.3)  # a look at what is wanted takes 20 ms
        assert len(reads) == 1
        assert "not fetched ahead" in world.take(8)


def test_it_ends_when_nobody_asks(world: World) -> None:
    prefetcher = Prefetcher(
        archive=world.site.repository().wal(world.site.scope),
        system_id=SYSTEM_ID,
        folder=world.folder,
        ahead=Ahead(count=2, segment_bytes=SEGMENT),
        clock=SystemClock(),
        idle_seconds=0.1,
    )
    with own_spool(world.folder, b""):
        prefetcher.run(name_of(1), threading.Event())
    assert not world.folder.exists()
