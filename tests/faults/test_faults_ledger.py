"""A process killed while it appends or keeps aside: a record stands once in the ledger, or waits whole on the host."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.evidence.leafcache import LeafCache
from drservice.evidence.ledger import Ledger
from drservice.evidence.statements import Statement
from drservice.objectstore.directory import DirectoryStore
from tests.doubles import evidence as made


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ledger_of(folder: Path, host: str = "state") -> Ledger:
    return made.open_ledger(DirectoryStore(folder / "repository"), folder / host, SystemClock())


def append_and_die_before_the_cache(folder: Path) -> None:
    LeafCache.add = die  # type: ignore[method-assign]  # only this process has it
    ledger_of(folder).append(statement())


def flush_and_die_before_the_cache(folder: Path) -> None:
    ledger_of(folder).keep_aside(statement())
    LeafCache.add = die  # type: ignore[method-assign]  # only this process has it
    ledger_of(folder).flush_pending()


def keep_and_die_before_the_rename(folder: Path) -> None:
    Path.replace = die  # type: ignore[method-assign,assignment]  # only this process has it
    ledger_of(folder).keep_aside(statement())


def statement(number: int = 1) -> Statement:
    return made.probe(made.START, number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    ledger_of(tmp_path).begin(made.occasion(made.START, service=None))
    return tmp_path


def require_killed(target: Callable[[Path], None], folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it never came to where it should die"


def runs(ledger: Ledger) -> list[str]:
    return [str(entry.signed.statement.predicate["run"]) for entry in ledger.entries(1)]


def test_a_record_whose_writer_died_before_its_cache_stands_once(folder: Path) -> None:
    require_killed(append_and_die_before_the_cache, folder)
    again = ledger_of(folder)
    assert again.append(statement(2)).number == 2
    assert runs(again) == [made.ulid(1), made.ulid(2)]
    assert again.checkpoint().checkpoint.size == 3


def test_a_record_kept_aside_whose_flush_died_before_the_cache_is_not_appended_again(folder: Path) -> None:
    require_killed(flush_and_die_before_the_cache, folder)
    again = ledger_of(folder)
    assert len(again.pending()) == 1, "its file is removed only when it is known to be in the ledger"
    assert [record.number for record in again.flush_pending()] == [1]
    assert again.pending() == ()
    assert runs(again) == [made.ulid(1)]


def test_a_record_killed_while_it_is_kept_aside_is_whole_or_not_there(folder: Path) -> None:
    require_killed(keep_and_die_before_the_rename, folder)
    again = ledger_of(folder)
    assert again.pending() == ()
    left = [path.name for path in (folder / "state" / "evidence" / "pending").iterdir()]
    assert len(left) == 1, "what was being written is there"
    assert left[0].startswith("."), "and is no record"
    again.keep_aside(statement(2))
    assert again.append(statement(3)).number == 2
    assert runs(again) == [made.ulid(2), made.ulid(3)]
