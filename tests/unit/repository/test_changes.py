"""Which files need not be read: the rule as a table, and the schedule that reads each one again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.repository import changes
from drservice.repository.changes import ChangeRule, file_system_of, is_due_for_reading, is_unchanged, rule_for
from drservice.repository.nodes import Entry, EntryKind, FileIdentity

SECOND = 10**9
DAY = 86_400 * SECOND
READ = 1_000_000 * SECOND
KNOWN = FileIdentity(device=1, inode=2, modified_ns=READ - DAY, changed_ns=READ - DAY, read_began_ns=READ)
NOW = replace(KNOWN, read_began_ns=READ + DAY)


def entry(identity: FileIdentity | None = KNOWN, kind: EntryKind = EntryKind.FILE) -> Entry:
    return Entry(path=b"f", kind=kind, mode=0o600, size=8192, chunk_bytes=65536, identity=identity)


def both(known: FileIdentity, **times: int) -> tuple[FileIdentity, FileIdentity]:
    return replace(known, **times), replace(known, read_began_ns=NOW.read_began_ns, **times)


def test_a_file_that_looks_as_it_did_long_before_it_was_read_is_unchanged() -> None:
    assert is_unchanged(NOW, 8192, entry())


@pytest.mark.parametrize("field", ["device", "inode", "modified_ns", "changed_ns"])
@pytest.mark.parametrize("by", [1, -1])
def test_any_difference_means_reading(field: str, by: int) -> None:
    assert not is_unchanged(replace(NOW, **{field: getattr(NOW, field) + by}), 8192, entry())


@pytest.mark.parametrize("size", [8191, 8193, 0])
def test_another_size_means_reading(size: int) -> None:
    assert not is_unchanged(NOW, size, entry())


def test_what_was_no_file_or_is_not_known_means_reading() -> None:
    assert not is_unchanged(NOW, 8192, entry(None))
    assert not is_unchanged(NOW, 8192, entry(kind=EntryKind.LINK))


@pytest.mark.parametrize("field", ["modified_ns", "changed_ns"])
@pytest.mark.parametrize(
    ("before_read", "unchanged"),
    [(2 * SECOND, True), (2 * SECOND - 1, False), (SECOND, False), (1, False), (0, False), (-SECOND, False)],
)
def test_a_write_in_the_clock_tick_of_the_read_cannot_hide(field: str, before_read: int, *, unchanged: bool) -> None:
    known, now = both(KNOWN, **{field: READ - before_read})
    assert is_unchanged(now, 8192, entry(known)) is unchanged


@pytest.mark.parametrize("field", ["modified_ns", "changed_ns"])
def test_a_time_in_the_future_is_never_trusted(field: str) -> None:
    known, now = both(KNOWN, **{field: NOW.read_began_ns + 1})
    assert not is_unchanged(now, 8192, entry(replace(known, read_began_ns=NOW.read_began_ns + DAY)))


def test_a_clock_that_went_backward_means_reading() -> None:
    assert not is_unchanged(replace(NOW, read_began_ns=KNOWN.modified_ns - 1), 8192, entry())


@pytest.mark.parametrize("path", [b"a", b"base/1/1259", b"\xff", b"x" * 500])
@pytest.mark.parametrize("first_day", [0, 13, 20_000])
def test_nightly_each_file_is_read_again_exactly_once_in_30_days(path: bytes, first_day: int) -> None:
    read = first_day * DAY
    reads = []
    for day in range(first_day + 1, first_day + 91):
        if is_due_for_reading(path, read, day * DAY):
            read = day * DAY
            reads.append(day)
    assert len(reads) == 3
    assert {later - earlier for earlier, later in itertools.pairwise(reads)} == {30}


@pytest.mark.parametrize("path", [b"a", b"b", b"c", b"d"])
def test_a_missed_night_only_delays_the_turn(path: bytes) -> None:
    due = [day for day in range(1, 31) if is_due_for_reading(path, 0, day * DAY)]
    assert due == list(range(due[0], 31)), "once its day has come a file stays due until it is read"


def test_the_turns_are_spread_over_the_month() -> None:
    counts = [
        sum(is_due_for_reading(b"%d" % file, day * DAY, (day + 1) * DAY) for file in range(3000)) for day in range(30)
    ]
    assert sum(counts) == 3000
    assert max(counts) < 200


def test_several_backups_of_one_day_do_not_read_twice() -> None:
    for hour in range(1, 24):
        assert not is_due_for_reading(b"a", 5 * DAY, 5 * DAY + hour * 3600 * SECOND)


def test_a_month_without_backups_makes_everything_due() -> None:
    assert all(is_due_for_reading(b"%d" % file, 0, 400 * DAY) for file in range(100))


MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:20 / /mnt/share\\040one rw shared:1 - nfs4 server:/x rw
23 21 0:21 / /mnt/new rw - weirdfs none rw
24 23 0:22 / /mnt/new/local rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind", "rule"),
    [
        ("/var/lib/postgresql", "ext4", ChangeRule.IDENTITY),
        ("/mnt/share one/data", "nfs4", ChangeRule.READ_ALL),
        ("/mnt/new/data", "weirdfs", ChangeRule.READ_ALL),
        ("/mnt/new/local/data", "xfs", ChangeRule.IDENTITY),
        ("/mnt/newer", "ext4", ChangeRule.IDENTITY),
    ],
)
def test_only_file_systems_known_to_be_local_are_judged_by_identity(
    folder: str, kind: str, rule: ChangeRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(changes, "_MOUNTS", tmp_path / "mountinfo")
    assert file_system_of(Path(folder)) == kind
    assert rule_for(Path(folder)) is rule


def test_a_kernel_that_tells_nothing_means_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text("")
    monkeypatch.setattr(changes, "_MOUNTS", tmp_path / "mountinfo")
    assert rule_for(tmp_path) is ChangeRule.READ_ALL
