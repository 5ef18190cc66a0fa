"""What a directory promises beyond the contract: crashes, full disks, two users, hostile links."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.errors import (
    DrError,
    InvalidKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from drservice.objectstore.directory import TEMPORARY_PREFIX, DirectoryStore, make_directory
from drservice.processes import account_named

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners or mounts, which only root may do")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY_PREFIX}*"))


def compete(root: Path, number: int, keys: int, outcomes: multiprocessing.Queue[tuple[int, list[int]]]) -> None:
    store = DirectoryStore(root)
    won = []
    for key in range(keys):
        try:
            store.create(f"race/{key // 10}/{key}", b"process %d" % number * 500)
        except ObjectExistsError:
            continue
        won.append(key)
    outcomes.put((number, won))


def test_of_racing_processes_exactly_one_wins_each_key(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcomes = context.Queue()
    racers = [context.Process(target=compete, args=(root, number, 60, outcomes)) for number in range(3)]
    for racer in racers:
        racer.start()
    results = dict(outcomes.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(30)
    outcomes.close()
    outcomes.join_thread()
    assert sorted(key for won in results.values() for key in won) == list(range(60))
    store = DirectoryStore(root)
    for number, won in results.items():
        for key in won:
            assert store.read(f"race/{key // 10}/{key}") == b"process %d" % number * 500
    assert temporaries(root) == []


ENDLESS_WRITER = """
import sys
from pathlib import Path
from drservice.objectstore.directory import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
number = 0
print("ready", flush=True)
while True:
    store.create(f"k/{number:06d}", [bytes([number % 256]) * 65536] * 64)
    number += 1
"""


def test_kill_9_in_the_middle_of_a_create_leaves_nothing_partial_visible(root: Path) -> None:
    was_caught_writing = False
    for attempt in range(12):
        folder = root / str(attempt)
        folder.mkdir()
        writer = subprocess.Popen(
            [sys.executable, "-c", ENDLESS_WRITER, str(folder)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + 0.017 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = DirectoryStore(folder)
        listed = list(store.list(""))
        assert [info.key for info in listed] == [f"k/{number:06d}" for number in range(len(listed))]
        for number, info in enumerate(listed):
            assert store.read(info.key) == bytes([number % 256]) * 65536 * 64
        store.create(f"k/{len(listed):06d}", b"the key was not taken")
        if temporaries(folder):
            was_caught_writing = True
            break
    assert was_caught_writing, "no kill hit a create; the test proved nothing"


def test_a_stale_temporary_file_is_neither_listed_nor_readable(root: Path) -> None:
    store = DirectoryStore(root)
    store.create("a/b", b"x")
    (root / "a" / f"{TEMPORARY_PREFIX}1-abc").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a/b"]
    with pytest.raises(InvalidKeyError):
        store.read(f"a/{TEMPORARY_PREFIX}1-abc")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@needs_root
def test_a_full_disk_is_told_with_the_bytes_needed_and_leaves_nothing(tiny_disk: Path) -> None:
    store = DirectoryStore(tiny_disk)
    store.create("a/small", b"x" * 1000)
    with pytest.raises(StoreFullError, match="3000000 bytes were needed"):
        store.create("a/big", [b"x" * 1_500_000] * 2)
    assert temporaries(tiny_disk) == []
    assert [info.key for info in store.list("")] == ["a/small"]
    store.create("a/after", b"y" * 1000)


@needs_root
def test_a_read_only_file_system_opens_for_reading(tiny_disk: Path) -> None:
    DirectoryStore(tiny_disk).create("a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    store = DirectoryStore(tiny_disk)
    assert not store.capabilities.writable
    assert store.capabilities.warnings
    assert store.read("a") == b"x"
    for refused in (lambda: store.create("b", b"x"), lambda: store.delete("a"), store.server_time):
        with pytest.raises(StoreDeniedError):
            refused()


AS_USER = """
import sys
from pathlib import Path
from drservice.errors import DrError
from drservice.objectstore.directory import DirectoryStore
try:
    store = DirectoryStore(Path(sys.argv[1]))
    store.create(sys.argv[2], sys.argv[2].encode())
    print(store.read(sys.argv[3]).decode(), end="")
except DrError as error:
    print(error.code, end="")
"""


def as_postgres(*arguments: str) -> str:
    postgres = account_named("postgres")
    source = Path(__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "-c", AS_USER, *arguments],
        user=postgres.uid,
        group=postgres.gid,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": str(source), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return finished.stdout.decode()


@pytest.fixture
def shared_place(tmp_path: Path) -> Path:
    """A folder that the user ``postgres`` can reach, unlike pytest's own."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
        if folder.name.startswith("pytest-of"):
            break
    return tmp_path


@needs_root
@pytest.mark.parametrize("mode", [0o750, 0o2770])
def test_root_and_postgres_write_to_one_directory(shared_place: Path, mode: int) -> None:
    postgres = account_named("postgres")
    root = shared_place / "repository"
    root.mkdir()
    os.chown(root, postgres.uid if mode == 0o750 else 0, postgres.gid)
    root.chmod(mode)
    store = DirectoryStore(root)
    previous = os.umask(0o077 if mode == 0o2770 else 0o022)
    try:
        store.create("s/erp/by-root", b"root's")
    finally:
        os.umask(previous)
    assert as_postgres(str(root), "s/erp/by-postgres", "s/erp/by-root") == "root's"
    assert as_postgres(str(root), "s/new/by-postgres", "s/new/by-postgres") == "s/new/by-postgres"
    store.create("s/new/by-root", b"root's")
    assert as_postgres(str(root), "s/new/again", "s/new/by-root") == "root's"
    for path in root.rglob("*"):
        assert path.stat().st_gid == postgres.gid
        assert path.stat().st_mode & 0o007 == 0


@needs_root
def test_a_directory_of_another_user_is_denied(shared_place: Path) -> None:
    root = shared_place / "repository"
    root.mkdir(mode=0o755)
    assert as_postgres(str(root), "a/b", "a/b") == StoreDeniedError.code


def test_a_symbolic_link_is_never_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = DirectoryStore(root)
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    for key in ("folder/secret", "file"):
        with pytest.raises(ObjectStoreError) as caught:
            store.read(key)
        assert not isinstance(caught.value, ObjectNotFoundError)
    with pytest.raises(DrError):
        store.create("folder/planted", b"x")
    with pytest.raises(DrError):
        store.delete("folder/secret")
    with pytest.raises(ObjectStoreError, match="symbolic link"):
        list(store.list(""))
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_fifo_does_not_hold_the_reader(root: Path) -> None:
    os.mkfifo(root / "fifo")
    with pytest.raises(ObjectStoreError, match="special file"):
        DirectoryStore(root).read("fifo")


def test_an_object_in_the_way_of_a_folder_is_told(root: Path) -> None:
    store = DirectoryStore(root)
    store.create("a", b"x")
    with pytest.raises(InvalidKeyError):
        store.create("a/b", b"x")
    with pytest.raises(ObjectNotFoundError):
        store.read("a/b")
    store.create("d/e", b"x")
    with pytest.raises(ObjectExistsError):
        store.create("d", b"x")
    store.delete("d")
    assert store.read("d/e") == b"x"


def test_a_missing_root_is_unreachable_not_empty(root: Path) -> None:
    store = DirectoryStore(root)
    aside = root.rename(root.with_name("aside"))  # not removed: a new folder might get its inode, or not
    for ask in (
        lambda: list(store.list("")),
        lambda: store.read("a"),
        lambda: store.create("a", b"x"),
        lambda: DirectoryStore(root),
    ):
        with pytest.raises(StoreUnreachableError, match="no directory"):
            ask()
    make_directory(root)
    with pytest.raises(StoreUnreachableError, match="another directory"):
        list(store.list(""))
    root.rmdir()
    aside.rename(root)
    assert list(store.list("")) == []
