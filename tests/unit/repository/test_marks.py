"""Marks: the rule of unchanged files, compared as bytes, never says more than the rule itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from drservice.repository.changes import DAY_NS, is_due_for_reading, is_unchanged
from drservice.repository.marks import (
    NO_LOOK,
    MarkJudge,
    is_not_its_name,
    look_of,
    make_folder_mark,
    make_mark,
)
from drservice.repository.nodes import Entry, EntryKind, FileIdentity

SECOND = 10**9
READ = 20_000 * DAY_NS
KNOWN = FileIdentity(device=1, inode=2, modified_ns=READ - DAY_NS, changed_ns=READ - DAY_NS, read_began_ns=READ)
PATH = b"ab/" + b"ab" * 20


def mark_of(identity: FileIdentity, *, wrong: bool = False) -> bytes:
    return make_mark(PATH, 100, identity, not_its_name=wrong)


def look(size: int = 100, **changes: int) -> bytes:
    values = {"device": 1, "inode": 2, "modified_ns": READ - DAY_NS, "changed_ns": READ - DAY_NS, **changes}
    status = os.stat_result(
        (0o100644, values["inode"], values["device"], 1, 0, 0, size, 0, 0, 0),
        {"st_mtime_ns": values["modified_ns"], "st_ctime_ns": values["changed_ns"]},
    )
    return look_of(status)


def test_the_mark_says_unchanged_exactly_when_the_rule_does() -> None:
    """Over tables of times: written long before, in, and after the reading, seen a moment to 40 days later."""
    agreed = 0
    for age, size, inode, later in itertools.product(
        [-SECOND, 0, SECOND, 2 * SECOND - 1, 2 * SECOND, DAY_NS],
        [100, 101],
        [2, 3],
        [1, DAY_NS, 7 * DAY_NS, 29 * DAY_NS, 30 * DAY_NS, 40 * DAY_NS],
    ):
        known = replace(KNOWN, modified_ns=READ - age, changed_ns=READ - age)
        now = READ + later
        entry = Entry(path=PATH, kind=EntryKind.FILE, mode=0o644, size=100, chunk_bytes=1 << 22, identity=known)
        listed = replace(known, inode=inode, read_began_ns=now)
        rule = is_unchanged(listed, size, entry) and not is_due_for_reading(PATH, READ, now)
        seen = look(size, inode=inode, modified_ns=READ - age, changed_ns=READ - age)
        assert MarkJudge(now).by_identity(seen, mark_of(known)) is rule
        agreed += rule
    assert agreed, "or nothing was ever unchanged"


def test_a_clock_that_went_back_means_reading() -> None:
    assert MarkJudge(READ + 1).by_identity(look(), mark_of(KNOWN))
    assert not MarkJudge(READ - 1).by_identity(look(), mark_of(KNOWN))
    assert not MarkJudge(READ - 1).by_name(look(), mark_of(KNOWN))


def test_by_name_another_inode_and_change_time_do_not_matter() -> None:
    judge = MarkJudge(READ + 1)
    assert judge.by_name(look(inode=9, device=8, changed_ns=READ), mark_of(KNOWN))
    assert not judge.by_identity(look(inode=9), mark_of(KNOWN))


@pytest.mark.parametrize("seen", [look(101), look(modified_ns=READ), NO_LOOK])
def test_by_name_another_size_or_time_means_reading(seen: bytes) -> None:
    assert not MarkJudge(READ + 1).by_name(seen, mark_of(KNOWN))


def test_by_name_a_document_that_was_wrong_is_always_read() -> None:
    assert not MarkJudge(READ + 1).by_name(look(), mark_of(KNOWN, wrong=True))


def test_by_name_every_document_is_read_once_in_30_days() -> None:
    due = [day for day in range(1, 31) if not MarkJudge(READ + day * DAY_NS).by_name(look(), mark_of(KNOWN))]
    assert due == list(range(due[0], 31)), "from its day on, until it is read"
    assert due[0] <= 30


def test_a_file_that_nobody_knows_is_read() -> None:
    judge = MarkJudge(READ)
    assert not judge.by_identity(look(), None)
    assert not judge.by_name(look(), None)


def test_a_mark_remembers_that_content_was_not_its_name() -> None:
    assert is_not_its_name(mark_of(KNOWN, wrong=True))
    assert not is_not_its_name(mark_of(KNOWN))


# --- folders ------------------------------------------------------------------------------------------------

NAMES = [b"%02x" % number * 20 for number in range(1, 5)]


def folder_of(*read_ns: int, age_ns: int = DAY_NS, wrong: bool = False) -> dict[bytes, bytes | None]:
    """Return the marks of a file for each time of reading."""
    known = (
        replace(KNOWN, inode=at, modified_ns=at - age_ns, changed_ns=at - age_ns, read_began_ns=at) for at in read_ns
    )
    return {
        name: make_mark(b"ab/" + name, 100, identity, not_its_name=wrong)
        for name, identity in zip(NAMES, known, strict=False)
    }


def looks_of(marks: dict[bytes, bytes | None]) -> dict[bytes, bytes]:
    return {name: mark[:40] for name, mark in marks.items() if mark is not None}


def test_the_mark_of_a_folder_says_unchanged_exactly_when_those_of_all_its_files_do() -> None:
    agreed = 0
    for first, second, age, later, other in itertools.product(
        [0, 3, 20], [0, 1, 29], [2 * SECOND - 1, 2 * SECOND, DAY_NS], [-1, 1, DAY_NS, 9 * DAY_NS, 30 * DAY_NS], [0, 1]
    ):
        marks = folder_of(READ, READ - first * DAY_NS, READ - second * DAY_NS, age_ns=age)
        looks = looks_of(marks)
        if other:
            looks[NAMES[1]] = look()
        judge = MarkJudge(READ + later)
        one_by_one = all(judge.by_identity(seen, marks[name]) for name, seen in looks.items())
        mark = make_folder_mark(marks)
        assert (mark is not None and judge.whole_folder(looks, mark) == (3, 300)) is one_by_one
        agreed += one_by_one
    assert agreed, "or nothing was ever unchanged"


def test_a_folder_is_unchanged_in_whatever_order_it_is_listed() -> None:
    marks = folder_of(READ, READ, READ)
    mark = make_folder_mark(marks)
    assert mark is not None
    looks = dict(reversed(looks_of(marks).items()))
    assert MarkJudge(READ + 1).whole_folder(looks, mark) == (3, 300)


@pytest.mark.parametrize(
    "change",
    [
        lambda looks: looks.popitem(),
        lambda looks: looks.update({NAMES[3]: look()}),
        lambda looks: looks.update({NAMES[0]: looks[NAMES[1]], NAMES[1]: looks[NAMES[0]]}),
        lambda looks: looks.update({NAMES[3]: looks.pop(NAMES[0])}),
        lambda looks: looks.update({NAMES[0]: looks[NAMES[0]][:-1] + b"\1"}),
    ],
    ids=["gone", "added", "exchanged", "renamed", "another change time"],
)
def test_a_folder_with_another_name_or_look_in_it_is_not_unchanged(
    change: Callable[[dict[bytes, bytes]], object],
) -> None:
    marks = folder_of(READ, READ - DAY_NS + 1, READ)
    mark = make_folder_mark(marks)
    assert mark is not None
    looks = looks_of(marks)
    change(looks)
    assert MarkJudge(READ + 1).whole_folder(looks, mark) is None


@pytest.mark.parametrize(
    "marks",
    [
        folder_of(READ, age_ns=SECOND),
        folder_of(READ, wrong=True),
        {NAMES[0]: None},
        {b"deeper/" + name: mark for name, mark in folder_of(READ).items()},
    ],
    ids=["just written", "not its name", "unknown", "deeper"],
)
def test_a_folder_with_a_file_that_must_be_asked_for_itself_has_no_mark(marks: dict[bytes, bytes | None]) -> None:
    assert make_folder_mark(folder_of(READ)) is not None
    assert make_folder_mark({**folder_of(READ, READ), **marks}) is None
