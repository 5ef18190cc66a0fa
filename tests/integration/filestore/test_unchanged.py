"""A pass that finds nothing changed: folders are taken over at once, the cache stays, and no change goes unseen."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from drservice.components.odoo_filestore.walk import Walk
from drservice.model.ids import KeyId
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.documentstreamnames import cache_stamp
from drservice.repository import folders, marks
from drservice.repository.cache import SnapshotCache, StagedCache, sums_path
from drservice.repository.capture import file_clock_ns
from drservice.repository.changes import DAY_NS, ChangeRule, is_due_for_reading
from drservice.repository.nodes import EntryKind
from tests.doubles.filestores import Filestore, name_of, tree
from tests.doubles.repositories import Heard


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as settled at once: their change time cannot be set back."""
    monkeypatch.setattr(marks, "SETTLED_NS", -(10**9))


@pytest.fixture
def documents(filestore: Filestore) -> dict[str, bytes]:
    return filestore.fill(300, largest=200)


def cache_of(filestore: Filestore) -> Path:
    return filestore.site.state_dir / "cache/erp/documents.sqlite"


def opened(filestore: Filestore) -> SnapshotCache:
    cache = SnapshotCache.open(cache_of(filestore), identity={})
    assert cache is not None
    return cache


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that hears of each folder whose files are asked for their marks."""
    heard: list[bytes] = []
    inner = SnapshotCache.marks

    def marks_of(self: SnapshotCache, folder: bytes) -> dict[bytes, bytes | None]:
        heard.append(folder)
        return inner(self, folder)

    monkeypatch.setattr(SnapshotCache, "marks", marks_of)
    return heard


def stored(filestore: Filestore, record: SnapshotRecord) -> dict[bytes, bytes | str]:
    """Return what a snapshot holds, as :func:`tree` shows it."""
    reader = filestore.site.repository().reader(filestore.scope, record.id)
    return {
        entry.path: reader.read_file(entry) if entry.kind is EntryKind.FILE else "folder" for entry in reader.entries()
    }


def test_nothing_changed_leaves_the_cache_and_says_whose_it_is_now(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    first, _ = filestore.capture()
    before, content = cache_of(filestore).stat(), cache_of(filestore).read_bytes()
    second, captured = filestore.capture()
    assert captured.reused_files == second.files == len(documents)
    assert second.source_bytes == first.source_bytes
    assert cache_of(filestore).stat().st_ino == before.st_ino
    assert cache_of(filestore).read_bytes() == content
    assert opened(filestore).meta()["snapshot"] == second.id
    third, _ = filestore.capture()
    assert (second.previous, third.previous) == (first.id, second.id)
    assert stored(filestore, third) == tree(filestore.folder)


def test_only_folders_in_which_something_changed_are_looked_into(
    filestore: Filestore, documents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    filestore.capture()
    asked = asked_for(monkeypatch)
    filestore.capture()
    assert asked == []
    added = filestore.add(b"a new one")
    record, captured = filestore.capture()
    assert asked == [added[:2].encode()]
    assert (captured.reused_files, captured.read_bytes) == (len(documents), 9)
    asked.clear()
    again, _ = filestore.capture()
    assert asked == [], "the folder has a new mark"
    assert stored(filestore, again) == stored(filestore, record) == tree(filestore.folder)


def overwrite(path: Path, content: bytes) -> None:
    """Write into a file and give it back the time it had; its folder hears nothing of it."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def exchange(first: Path, second: Path) -> None:
    spare = first.with_suffix(".spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


@pytest.mark.parametrize(
    "edit",
    [
        lambda one, _: overwrite(one, b"x"),
        lambda one, _: overwrite(one, b"x" * 300),
        lambda one, _: one.unlink(),
        lambda one, _: one.with_name(one.name[:2] + "0" * 38).write_bytes(b"x"),
        lambda one, _: one.rename(one.with_name(one.name[:2] + "0" * 38)),
        exchange,
    ],
    ids=["same size and time", "longer", "gone", "added", "renamed", "exchanged"],
)
def test_a_change_in_one_folder_is_in_the_snapshot(
    filestore: Filestore, documents: dict[str, bytes], edit: Callable[[Path, Path], object]
) -> None:
    filestore.capture()
    filestore.capture()
    by_folder: dict[str, list[str]] = {}
    for name in documents:
        by_folder.setdefault(name[:2], []).append(name)
    one, other, *_ = next(names for names in by_folder.values() if len(names) > 1)
    edit(filestore.folder / one, filestore.folder / other)
    record, captured = filestore.capture()
    assert len(documents) - 2 <= captured.reused_files < record.files + (captured.read_bytes == 0)
    assert stored(filestore, record) == tree(filestore.folder)


def test_each_document_is_still_read_once_in_30_days(
    filestore: Filestore, documents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    filestore.capture()
    now = file_clock_ns()
    for days in (1, 9, 31):
        later = now + days * DAY_NS
        monkeypatch.setattr(folders, "file_clock_ns", lambda later=later: later)
        due = [name for name in documents if is_due_for_reading(name.encode(), now, later)]
        _, captured = filestore.capture()  # which is remembered as of today: the clock of the reading goes on
        assert captured.reused_files == len(documents) - len(due)
        assert captured.read_bytes == sum(len(documents[name]) for name in due)
        assert due


def test_a_document_that_is_not_its_name_is_told_by_each_snapshot(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    name = next(iter(documents))
    (filestore.folder / name).write_bytes(b"wrong")
    for _ in range(3):
        record, captured = filestore.capture()
        assert captured.record.corrupt == (name.encode(),)
    assert captured.reused_files == record.files == len(documents)


def test_a_cache_without_marks_of_folders_is_used_and_gets_them(
    filestore: Filestore, documents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the version before wrote it: nothing is uploaded twice because of the change."""
    first, _ = filestore.capture()
    path = cache_of(filestore)
    with sqlite3.connect(path) as database:
        database.execute("drop table folders")
        database.execute("update meta set value = '3' where name = 'format'")
    sums_path(path).write_text(blake3(path.read_bytes()).hexdigest())
    second, captured = filestore.capture()
    assert (captured.reused_files, second.stored_bytes, second.previous) == (len(documents), 0, first.id)
    asked = asked_for(monkeypatch)
    filestore.capture()
    assert asked == []


@pytest.mark.parametrize("damage", ["{", '{"snapshot": 1}', "[]", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])
def test_what_is_said_of_a_cache_is_whole_or_the_cache_is_not_used(
    filestore: Filestore, documents: dict[str, bytes], damage: str
) -> None:
    filestore.capture()
    filestore.capture()
    sums = sums_path(cache_of(filestore))
    total = sums.read_text().partition(" ")[0]
    sums.write_text(f"{total} {damage}")
    record, captured = filestore.capture()
    assert (captured.reused_files, record.previous) == (0, None)
    assert record.files == len(documents)


def test_a_pass_that_leaves_the_cache_is_noticed_by_who_waits_for_passes(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    assert documents
    state_dir, scope = filestore.site.state_dir, filestore.scope
    assert cache_stamp(state_dir, scope) is None
    filestore.capture()
    first = cache_stamp(state_dir, scope)
    filestore.capture()
    second = cache_stamp(state_dir, scope)
    assert None not in {first, second}
    assert first != second == cache_stamp(state_dir, scope)


def test_a_link_in_the_place_of_a_file_is_recorded_and_what_is_around_it_taken_over(folder: Filestore) -> None:
    below = folder.folder / "below"
    below.mkdir()
    for number in range(9):
        (below / f"{number}").write_bytes(b"%d" % number)
    folder.capture()
    (below / "3").unlink()
    (below / "3").symlink_to("4")
    (below / "new").symlink_to("5")
    for _ in range(2):
        record, captured = folder.capture()
        assert captured.reused_files == record.files == 8
        reader = folder.site.repository().reader(folder.scope, record.id)
        links = {entry.path: entry.target for entry in reader.entries() if entry.kind is EntryKind.LINK}
        assert links == {b"below/3": b"4", b"below/new": b"5"}
    (below / "new").unlink()
    (below / "new").symlink_to("6")
    record, captured = folder.capture()
    targets = [entry.target for entry in folder.site.repository().reader(folder.scope, record.id).entries()]
    assert (captured.reused_files, targets.count(b"6")) == (8, 1)


def test_a_folder_with_another_mode_is_recorded_though_its_documents_are_taken_over(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    filestore.capture()
    changed = filestore.folder / next(iter(documents))[:2]
    changed.chmod(0o700)
    record, captured = filestore.capture()
    modes = {
        entry.path: entry.mode for entry in filestore.site.repository().reader(filestore.scope, record.id).entries()
    }
    assert captured.reused_files == len(documents)
    assert modes[changed.name.encode()] == 0o700


def test_the_mark_of_a_folder_goes_when_it_cannot_be_made_anew(
    filestore: Filestore, documents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document comes, counts as just written, and is gone by the next pass: all looks as before."""
    filestore.capture()
    monkeypatch.setattr(marks, "SETTLED_NS", 2 * 10**9)
    taken = {name[:2] for name in documents}
    contents = (b"for a moment, %d" % number for number in range(1000))
    added = filestore.add(next(content for content in contents if name_of(content)[:2] in taken))
    filestore.capture()
    (filestore.folder / added).unlink()
    record, captured = filestore.capture()
    assert captured.reused_files == len(documents)
    assert stored(filestore, record) == tree(filestore.folder)


def test_a_folder_that_is_gone_is_gone_from_the_snapshot_though_all_others_are_as_they_were(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    filestore.capture()
    shutil.rmtree(filestore.folder / next(iter(documents))[:2])
    for _ in range(2):
        record, captured = filestore.capture()
        assert captured.reused_files == record.files < len(documents)
        assert stored(filestore, record) == tree(filestore.folder)


def test_where_nothing_but_reading_counts_no_folder_is_taken_over(
    filestore: Filestore, documents: dict[str, bytes]
) -> None:
    filestore.capture()
    walk = Walk(str(filestore.folder), filestore.kind, on_folder=lambda _: None, on_link=lambda _: None)
    site = filestore.site
    with site.repository().writer(filestore.scope, state_dir=site.state_dir, workers=1, level=1) as writer:
        outcome = writer.capture_folders(
            walk.root, walk.folders(), rule=ChangeRule.READ_ALL, hashed=True, progress=Heard()
        )
    walk.close()
    assert (outcome.reused_files, outcome.read_bytes) == (0, sum(map(len, documents.values())))


@pytest.mark.parametrize("other", ["nothing", "a node is elsewhere", "a node less", "a pack more", "an entry more"])
def test_a_cache_stays_only_if_the_new_one_would_be_the_same(
    filestore: Filestore, documents: dict[str, bytes], other: str
) -> None:
    filestore.capture()
    old = opened(filestore)
    staged = StagedCache(cache_of(filestore), old=old)
    for folder in {name[:2].encode() for name in documents}:
        body = old.entry(folder)
        assert body is not None
        staged.put_entry(folder, body)
        staged.carry_folder(folder, len(old.marks(folder)))
    regions = list(old.regions())
    for region in regions[1:] if other == "a node less" else regions:
        staged.carry_region(region)
    for pack in old.packs():
        staged.put_pack(*pack)
    place = old.node(regions[0].node)
    assert place is not None
    staged.put_place(replace(place, offset=place.offset + 1) if other == "a node is elsewhere" else place)
    if other == "a pack more":
        staged.put_pack(b"p" * 32, "packs", KeyId("key"), 1)
    if other == "an entry more":
        staged.put_entry(b"zz", b"other")
    before = cache_of(filestore).stat().st_ino
    staged.publish({**old.meta(), "snapshot": "another"})
    old.close()
    assert (cache_of(filestore).stat().st_ino == before) is (other == "nothing")
    assert opened(filestore).meta()["snapshot"] == "another"
