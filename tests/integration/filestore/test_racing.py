"""Root places files for a user that races it: this user owns the folder around the target and may exchange any name."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeAlias

import pytest

from drservice.components.odoo_filestore.placing import place_documents, place_folder
from drservice.components.odoo_filestore.staging import Staging, staging
from drservice.errors import RecoveryError, TargetDirectoryError
from drservice.processes import Account, account_named
from tests.doubles.filestores import Filestore, tree
from tests.doubles.repositories import Heard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray by another user")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@pytest.fixture
def postgres() -> Account:
    return account_named("postgres")


@pytest.fixture
def around(tmp_path: Path, postgres: Account) -> Path:
    """The folder that the target will stand in: it belongs to the racer."""
    path = tmp_path / "around"
    path.mkdir()
    os.chown(path, postgres.uid, postgres.gid)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of root's that the racer cannot write to."""
    path = tmp_path / "victim"
    path.mkdir(mode=0o755)
    (path / "precious").write_text("precious")
    (path / "precious").chmod(0o600)
    return path


def look(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return owner, group and mode of a folder and everything in it."""
    paths = [folder, *folder.rglob("*")]
    facts = {str(path): path.lstat() for path in paths}
    return {name: (fact.st_uid, fact.st_gid, fact.st_mode) for name, fact in facts.items()}


def exchange_inside(around: int, victim: Path) -> None:
    """Exchange every folder inside the one that is filled for a link to the victim."""
    for name in os.listdir(around):
        if ".drservice-" not in name:
            continue
        with suppress(OSError):
            inside = os.open(name, _OPEN, dir_fd=around)
            try:
                for folder in os.listdir(inside):  # noqa: PTH208  # a descriptor has no path
                    with suppress(OSError):
                        os.rename(folder, f"{folder}.moved", src_dir_fd=inside, dst_dir_fd=inside)
                        os.symlink(victim, folder, dir_fd=inside)
            finally:
                os.close(inside)


def exchange_itself(around: int, victim: Path) -> None:
    """Exchange the folder that is filled for a link to the victim."""
    for name in os.listdir(around):
        if ".drservice-" in name and not name.startswith("moved"):
            with suppress(OSError):
                os.rename(name, f"moved{name}", src_dir_fd=around, dst_dir_fd=around)
                os.symlink(victim, name, dir_fd=around)


Strike: TypeAlias = Callable[[int, Path], None]


def fork_racer(around: Path, victim: Path, strike: Strike, *, times: int | None) -> int:
    """Start a process of the user postgres that strikes, as fast as it can; ``None`` = for ever."""
    child = os.fork()
    if child:
        return child
    try:
        folder = os.open(around, _OPEN)  # folders above are closed to this user
        account = account_named("postgres")
        os.setgroups([])
        os.setgid(account.gid)
        os.setuid(account.uid)
        for _ in range(times) if times is not None else count():
            strike(folder, victim)
        os._exit(0)
    finally:
        os._exit(1)


@contextmanager
def racer(around: Path, victim: Path, strike: Strike) -> Iterator[None]:
    """Let another user strike all the time."""
    child = fork_racer(around, victim, strike, times=None)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the racer gave up"


class Striking(Heard):
    """Strikes once more in the middle of the restore, as the user postgres: a race that is always won."""

    def __init__(self, around: Path, victim: Path, strike: Strike) -> None:
        super().__init__()
        self._around, self._victim, self._strike = around, victim, strike

    def advance(self, amount: int, /) -> None:
        super().advance(amount)
        _, status = os.waitpid(fork_racer(self._around, self._victim, self._strike, times=1), 0)
        assert status == 0, "the racer could not strike"


def test_a_user_who_owns_the_folder_around_leads_root_nowhere(
    filestore: Filestore, around: Path, victim: Path, postgres: Account
) -> None:
    early = filestore.fill(700, seed=1, largest=2_000)
    old, _ = filestore.capture()
    for number, name in enumerate(early):
        if number % 2:
            (filestore.folder / name).unlink()
    new, _ = filestore.capture()
    before = look(victim)
    progress = Striking(around, victim, exchange_inside)
    context = replace(filestore.context(progress=progress), account=postgres)
    with racer(around, victim, exchange_inside):
        placed = place_documents(context, [new.id, old.id], around / "out", wanted=list(early))
    assert look(victim) == before
    assert (placed.placed, placed.from_older) == (700, 350)
    files = {name: content for name, content in tree(around / "out").items() if content != "folder"}
    assert files == {name.encode(): content for name, content in early.items()}
    assert {(uid, gid) for uid, gid, _ in look(around / "out").values()} == {(postgres.uid, postgres.gid)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (around / "out").iterdir()} == {0o755}
    assert stat.S_IMODE((around / "out").stat().st_mode) == 0o700


def test_a_plain_folder_is_placed_past_a_racer_with_its_modes_and_links(
    folder: Filestore, around: Path, victim: Path, postgres: Account
) -> None:
    for number in range(40):
        below = folder.folder / f"d{number}" / "deep"
        below.mkdir(parents=True)
        (below / "file").write_bytes(b"x" * 1000)
        (below / "link").symlink_to("file")
        below.chmod(0o750)
        below.parent.chmod(0o511)
    record, _ = folder.capture()
    before = look(victim)
    progress = Striking(around, victim, exchange_inside)
    context = replace(folder.context(progress=progress), account=postgres)
    with racer(around, victim, exchange_inside):
        place_folder(context, record.id, around / "out")
    assert look(victim) == before
    assert tree(around / "out") == tree(folder.folder)
    assert {(uid, gid) for uid, gid, _ in look(around / "out").values()} == {(postgres.uid, postgres.gid)}
    assert stat.S_IMODE((around / "out/d7").stat().st_mode) == 0o511
    assert stat.S_IMODE((around / "out/d7/deep").stat().st_mode) == 0o750
    assert stat.S_IMODE((around / "out").stat().st_mode) == 0o700, "for a server alone"


def test_exchanging_the_folder_that_is_filled_ends_the_restore_and_harms_nobody(
    filestore: Filestore, around: Path, victim: Path, postgres: Account
) -> None:
    documents = filestore.fill(200, largest=2_000)
    record, _ = filestore.capture()
    before = look(victim)
    progress = Striking(around, victim, exchange_itself)
    context = replace(filestore.context(progress=progress), account=postgres)
    with pytest.raises(RecoveryError):
        place_documents(context, [record.id], around / "out", wanted=list(documents))
    assert look(victim) == before
    assert (victim / "precious").read_text() == "precious"


def test_a_stranger_folder_under_the_targets_name_is_not_called_a_restore(around: Path, postgres: Account) -> None:
    refused = pytest.raises(RecoveryError, match="another folder than the one that was filled")
    with refused, staging(around / "out") as made:
        name = Path(made.root.path).name
        (around / name).rename(around / "moved")
        (around / name).mkdir()
        made.put_in_place(postgres, mode=0o700)


def test_nobody_can_enter_while_it_is_filled_and_folders_are_handed_over_last(around: Path, postgres: Account) -> None:
    with staging(around / "out") as made:
        made.make_folder(b"ab", 0o755)
        path = Path(made.root.path)
        assert look(path) == {str(path): (0, 0, stat.S_IFDIR | 0o700), str(path / "ab"): (0, 0, stat.S_IFDIR | 0o700)}
        made.put_in_place(postgres, mode=0o700)
    assert {uid for uid, _, _ in look(around / "out").values()} == {postgres.uid}


def test_a_parent_behind_a_link_of_another_user_is_refused(around: Path, victim: Path, postgres: Account) -> None:
    (around / "link").symlink_to(victim)
    os.chown(around / "link", postgres.uid, postgres.gid, follow_symlinks=False)
    before = look(victim)
    with pytest.raises(TargetDirectoryError, match="behind a link"), staging(around / "link" / "out"):
        pass
    assert look(victim) == before


def test_a_full_folder_under_the_name_that_was_just_made_is_not_taken(
    around: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may move another folder of root's there, one that was restored before for example."""
    precious = around / "earlier"
    precious.mkdir(mode=0o700)
    (precious / "document").write_text("x")
    make = os.mkdir

    def exchanged(name: str, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        (around / name).rename(around / "moved")
        precious.rename(around / name)

    monkeypatch.setattr(os, "mkdir", exchanged)
    with pytest.raises(RecoveryError, match="exchanged"), staging(around / "out"):
        pass
    assert sorted(path.name for path in around.rglob("document")) == ["document"]


def test_what_stands_under_the_name_of_an_abandoned_restore_by_now_is_not_removed(around: Path) -> None:
    def fill(made: Staging) -> None:
        made.make_folder(b"ab")
        path = Path(made.root.path)
        path.rename(around / "moved")
        path.mkdir()
        (path / "precious").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staging(around / "out") as made:
        fill(made)
    assert [path.name for path in around.rglob("precious")] == ["precious"]
    assert list((around / "moved").iterdir()) == []
