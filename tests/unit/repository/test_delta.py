"""Placing onto a folder that holds something: what is right stays, the rest becomes the snapshot, no link helps."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.errors import DamagedObjectError, RecoveryError
from drservice.model.snapshot import SnapshotRecord
from drservice.processes import account_named
from drservice.repository.placing import Onto, Placed
from drservice.repository.skeleton import remove_tree
from tests.doubles.repositories import CHUNK, Site, content_of, noise
from tests.doubles.stores import RecordingStore, bit_flipping_store

FILES = {
    "a": noise(5 * CHUNK),
    "d/b": noise(2 * CHUNK + 100, 1),
    "d/e/c": noise(300, 2),
    "empty": b"",
    "z": bytes(CHUNK),
}
PACKS = "s/erp/database/packs/"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="root does it on behalf of somebody else")


ONTO = Onto(left_alone=frozenset())


@pytest.fixture
def record(site: Site) -> SnapshotRecord:
    """A snapshot of ``FILES``."""
    site.write(FILES)
    return site.capture()


@pytest.fixture
def out(site: Site, record: SnapshotRecord, tmp_path: Path) -> Path:
    """A folder that holds just what the snapshot does."""
    site.place(record.id, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def again(site: Site, record: SnapshotRecord, out: Path) -> Callable[[], Placed]:
    """Place the snapshot onto the folder."""
    return lambda: site.place(record.id, out, onto=ONTO)


Again = Callable[[], Placed]


def folders_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def change(path: Path, at: int, content: bytes = b"#") -> None:
    """Write into a file and make it look as if nobody had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- what is right stays ------------------------------------------------------------------------------------


def test_what_is_right_is_neither_fetched_nor_written(out: Path, again: Again) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    placed = again()
    assert (placed.fetched_bytes, placed.written_bytes) == (0, 0)
    assert placed.kept_bytes == sum(map(len, FILES.values()))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert content_of(out) == FILES


def test_a_changed_byte_is_found_though_size_and_time_are_as_they_were(out: Path, again: Again) -> None:
    change(out / "a", 3 * CHUNK + 5)
    placed = again()
    assert content_of(out) == FILES
    assert placed.written_bytes == CHUNK
    assert CHUNK < placed.fetched_bytes < len(FILES["a"])  # from the head of the pack on: one request


def test_bytes_where_zeros_belong_become_a_hole(out: Path, again: Again) -> None:
    change(out / "z", 100)
    placed = again()
    assert content_of(out) == FILES
    assert (placed.fetched_bytes, placed.written_bytes) == (0, CHUNK)
    assert (out / "z").stat().st_blocks == 0


def test_longer_shorter_and_missing_files_become_the_snapshots(out: Path, again: Again) -> None:
    with (out / "d/b").open("ab") as file:
        file.write(b"appended" * 1000)
    os.truncate(out / "a", CHUNK)
    (out / "d/e/c").unlink()
    (out / "empty").write_bytes(b"not any more")
    assert again().written_bytes == 4 * CHUNK + 300
    assert content_of(out) == FILES


def test_what_the_snapshot_does_not_have_is_removed(out: Path, again: Again) -> None:
    (out / "new/deep/er").mkdir(parents=True)
    (out / "new/deep/er/file").write_bytes(b"x")
    (out / "new/deep").chmod(0)
    (out / os.fsdecode(b"d/\xff\n")).write_bytes(b"x")
    (out / "d/e/locked").write_bytes(b"x")
    (out / "d/e/locked").chmod(0)
    placed = again()
    assert content_of(out) == FILES
    assert folders_of(out) == {"d", "d/e"}
    assert (placed.removed, placed.replaced) == (3, ())


def test_modes_become_the_snapshots_also_those_that_keep_their_owner_from_writing(site: Site, tmp_path: Path) -> None:
    site.write(FILES)
    (site.source / "a").chmod(0o400)
    (site.source / "d/b").chmod(0o640)
    record = site.capture()
    out = tmp_path / "out"
    site.place(record.id, out)
    (out / "d/b").chmod(0o777)
    (out / "d").chmod(0o777)
    (out / "d/e").chmod(0o000)
    site.place(record.id, out, onto=ONTO)
    modes = {name: stat.S_IMODE((out / name).stat().st_mode) for name in ("a", "d", "d/b", "d/e")}
    assert modes == {"a": 0o400, "d": 0o700, "d/b": 0o640, "d/e": 0o700}
    assert content_of(out) == FILES


def test_kinds_are_exchanged_where_they_differ(out: Path, again: Again) -> None:
    (out / "a").unlink()
    (out / "a").mkdir()
    (out / "a/x").write_bytes(b"x")
    shutil.rmtree(out / "d")
    (out / "d").write_bytes(b"a file")
    assert again().replaced == (b"a", b"d")
    assert content_of(out) == FILES


def test_paths_that_are_left_alone_stay(site: Site, record: SnapshotRecord, out: Path) -> None:
    (out / "d/mine").write_bytes(b"precious")
    (out / "d/other").write_bytes(b"x")
    site.place(record.id, out, onto=Onto(left_alone=frozenset({b"d/mine"})))
    assert content_of(out) == {**FILES, "d/mine": b"precious"}


def test_what_is_held_back_is_removed_until_its_owner_writes_it(site: Site, record: SnapshotRecord, out: Path) -> None:
    placed = site.place(record.id, out, onto=ONTO, hold_back=frozenset({b"d/b"}))
    assert placed.held_back == {b"d/b": FILES["d/b"]}
    assert not (out / "d/b").exists()


# --- nothing before everything was checked, and interrupted ---------------------------------------------------


def test_a_refusal_before_the_first_change_changes_nothing(site: Site, record: SnapshotRecord, out: Path) -> None:
    change(out / "a", 5)
    (out / "extra").write_bytes(b"x")
    before = content_of(out)

    def refuse() -> None:
        assert content_of(out) == before
        raise RecoveryError("not now")

    with pytest.raises(RecoveryError, match="not now"):
        site.place(record.id, out, onto=ONTO, begin=refuse)
    assert content_of(out) == before


def test_too_little_space_is_told_before_the_first_change(
    site: Site, record: SnapshotRecord, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail = 1
        f_frsize = 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    site.place(record.id, out, onto=ONTO)  # what is there needs no space
    (out / "a").unlink()
    (out / "extra").write_bytes(noise(CHUNK, 9))
    before = content_of(out)
    with pytest.raises(RecoveryError, match="has 4,096 bytes free"):
        site.place(record.id, out, onto=ONTO)
    assert content_of(out) == before
    (out / "extra").write_bytes(noise(6 * CHUNK, 9))  # comes free before anything is written
    site.place(record.id, out, onto=ONTO)
    assert content_of(out) == FILES


def test_an_interrupted_one_is_completed_by_the_next(
    site: Site, record: SnapshotRecord, out: Path, again: Again
) -> None:
    for name in FILES:
        change(out / name, 0, b"?" * 50)
    (out / "extra").write_bytes(b"x")
    store = bit_flipping_store(site.store, chooses=lambda key: key.startswith(PACKS), position=5000)
    with pytest.raises(DamagedObjectError):
        site.place(record.id, out, store=store, onto=ONTO)
    again()
    assert content_of(out) == FILES


def test_with_content_left_out_it_is_refused(site: Site, record: SnapshotRecord, out: Path) -> None:
    from drservice.repository import placing  # noqa: PLC0415 - the double has no such argument

    repository = site.repository()
    with pytest.raises(ValueError, match="left out"):
        placing.place_files(
            repository.reader(site.scope, record.id),
            out,
            open_store=repository.open_store,
            scope=site.scope,
            secrets=(),
            hold_back=frozenset(),
            account=None,
            workers=1,
            progress=None,  # type: ignore[arg-type]  # never reached
            wanted=lambda _: True,
            onto=ONTO,
        )


# --- planted by a hostile account ---------------------------------------------------------------------------


def plant_link_for_file(out: Path, victim: Path) -> None:
    (out / "a").unlink()
    (out / "a").symlink_to(victim / "precious")


def plant_link_for_folder(out: Path, victim: Path) -> None:
    shutil.rmtree(out / "d")
    (out / "d").symlink_to(victim)


def plant_link_for_inner_folder(out: Path, victim: Path) -> None:
    shutil.rmtree(out / "d/e")
    (out / "d/e").symlink_to(victim)


def plant_hard_link(out: Path, victim: Path) -> None:
    (out / "a").unlink()
    os.link(victim / "precious", out / "a")


def plant_device_link(out: Path, _: Path) -> None:
    (out / "a").unlink()
    (out / "a").symlink_to("/dev/zero")


def plant_fifo(out: Path, _: Path) -> None:
    (out / "a").unlink()
    os.mkfifo(out / "a")


def plant_socket(out: Path, _: Path) -> None:
    (out / "a").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(out)  # the path of a socket is short
        try:
            listener.bind("a")
        finally:
            os.chdir(here)


def plant_new_links(out: Path, victim: Path) -> None:
    (out / "more").mkdir()
    (out / "more/link").symlink_to(victim)
    (out / "d/link").symlink_to(victim)
    os.link(victim / "precious", out / "more/hard")


PLANTED = [
    plant_link_for_file,
    plant_link_for_folder,
    plant_link_for_inner_folder,
    plant_hard_link,
    plant_device_link,
    plant_fifo,
    plant_socket,
    plant_new_links,
]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder outside that must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    (folder / "b").write_bytes(b"named like one of the snapshot's")
    (folder / "c").write_bytes(b"this one, too")
    before = {path: (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns) for path in folder.iterdir()}
    yield folder
    after = {path: (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert after == before


@pytest.mark.parametrize("plant", PLANTED)
def test_what_was_planted_is_replaced_and_leads_nowhere(
    out: Path, again: Again, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(out, victim)
    again()
    assert content_of(out) == FILES
    assert not [path for path in out.rglob("*") if path.is_symlink()]


EXCHANGED = [plant_link_for_file, plant_link_for_folder, plant_link_for_inner_folder, plant_hard_link]


@pytest.mark.parametrize("plant", EXCHANGED)
def test_what_is_exchanged_meanwhile_leads_nowhere(
    site: Site, record: SnapshotRecord, out: Path, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    for name in FILES:
        change(out / name, 0, b"?" * 50)
    planted: list[str] = []

    class Exchange(RecordingStore):
        def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            if key.startswith(PACKS) and not planted:
                planted.append(key)
                plant(out, victim)
            return super().read(key, offset=offset, length=length)

    with suppress(RecoveryError):  # it is told, or what was open already is written to where it is now
        site.place(record.id, out, store=Exchange(site.store), onto=ONTO)
    assert planted


@pytest.mark.parametrize("plant", EXCHANGED)
def test_what_is_exchanged_right_after_it_was_checked_leads_nowhere(
    site: Site, record: SnapshotRecord, out: Path, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    with pytest.raises(RecoveryError, match="cannot write"):
        site.place(record.id, out, onto=ONTO, begin=lambda: plant(out, victim))


def test_a_tree_deeper_than_any_path_is_removed_and_its_links_are_not_followed(
    out: Path, again: Again, victim: Path
) -> None:
    here = Path.cwd()
    try:
        os.chdir(out)
        for _ in range(1500):
            Path("deep").mkdir()
            os.chdir("deep")
        Path("link").symlink_to(victim)
        Path("file").write_bytes(b"x")
    finally:
        os.chdir(here)
    again()
    assert content_of(out) == FILES
    assert folders_of(out) == {"d", "d/e"}


def test_a_folder_that_is_exchanged_for_a_link_while_it_is_removed_is_not_followed(
    tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "gone").symlink_to(victim)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            remove_tree(descriptor, b"gone")
    finally:
        os.close(descriptor)


@root_only
def test_root_writes_no_file_of_another_user_and_makes_all_as_the_owner(
    site: Site, record: SnapshotRecord, tmp_path: Path
) -> None:
    account = account_named("nobody")
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, account.uid, account.gid)
    site.place(record.id, out, account=account)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in out.rglob("*")}
    assert owners == {(account.uid, account.gid)}
    (out / "a").rename(tmp_path / "kept")
    (out / "a").write_bytes(b"of root")
    root_file = (out / "a").open("rb")
    placed = site.place(record.id, out, account=account, onto=ONTO)
    assert placed.replaced == (b"a",)
    assert root_file.read() == b"of root"
    root_file.close()
    assert content_of(out) == FILES
    assert (out / "a").stat().st_uid == account.uid


@root_only
def test_root_may_do_in_the_folder_only_what_its_owner_may(site: Site, record: SnapshotRecord, tmp_path: Path) -> None:
    account = account_named("nobody")
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, account.uid, account.gid)
    (out / "d").mkdir()
    (out / "d/of root").write_bytes(b"x")
    with pytest.raises(RecoveryError, match="cannot remove d"):
        site.place(record.id, out, account=account, onto=ONTO)
    assert (out / "d/of root").read_bytes() == b"x"
    assert (out / "d/of root").stat().st_uid == os.geteuid() == 0
