"""Placing files: all is checked before the first write, each chunk before it is written, nothing silently partial."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drservice.clock import SystemClock
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    MissingObjectError,
    RecoveryError,
)
from drservice.model.ids import SnapshotId
from drservice.objectstore.directory import DirectoryStore
from drservice.repository import placing, placingplan
from drservice.repository.chunktable import ROW, ChunkRow
from drservice.repository.target import write_error
from tests.doubles import formatwriter
from tests.doubles.formatwriter import Signer, Writer
from tests.doubles.repositories import CHUNK, Site, content_of, noise
from tests.doubles.stores import MissingStore, RecordingStore, bit_flipping_store, truncating_store

PACKS = "s/erp/database/packs/"


def is_pack(key: str) -> bool:
    return key.startswith(PACKS)


# --- hostile trees (written by the second writer, signed by a trusted host) ---------------------------------


class Hostile:
    """A repository whose trusted host commits whatever a test asks for."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.writer = Writer(base / "repository", signer=Signer())
        self.writer.begin()
        self.site = Site.create(base / "site")
        (self.site.base / "identity").write_text(str(self.writer.identity) + "\n")
        self.site.store = DirectoryStore(self.writer.folder)
        self.site.open_store = lambda: self.site.store
        self.site.clock = SystemClock()

    def restore(self, *entries: dict[str, Any], into: Path | None = None) -> dict[str, bytes]:
        path = self.writer.snapshot(self.writer.tree(list(entries)))
        from drservice.repository.envelope import HostKey  # noqa: PLC0415 - only here the two writers meet

        self.site.host = HostKey("db1", self.writer.signer.private)
        return self.site.restore(SnapshotId(path.name), into or self.base / "out")


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path)


def folder(path: bytes) -> dict[str, Any]:
    return {"p": path, "t": "d", "m": 0o700}


def test_what_another_writer_made_from_the_format_alone_is_read(hostile: Hostile) -> None:
    content = noise(100_000)
    file = hostile.writer.file
    made = hostile.restore(
        folder(b"d"), file(b"d/f", content), file(b"d/large", noise(80 * 512), size=512), file(b"z", bytes(9000))
    )
    assert made == {"d/f": content, "d/large": noise(80 * 512), "z": bytes(9000)}


Entries = Callable[[Writer], list[dict[str, Any]]]
HOSTILE: dict[str, Entries] = {
    "absolute": lambda w: [w.file(b"/tmp/x", b"x")],
    "parent": lambda w: [w.file(b"../x", b"x")],
    "inner parent": lambda w: [folder(b"d"), w.file(b"d/../../x", b"x")],
    "no folder": lambda w: [w.file(b"a", b"fine"), w.file(b"d/x", b"x")],
    "below a file": lambda w: [w.file(b"d", b"fine"), w.file(b"d/x", b"x")],
    "below a link": lambda w: [{"p": b"d", "t": "l", "m": 0o777, "l": b"/tmp"}, w.file(b"d/x", b"x")],
    "twice": lambda w: [w.file(b"a", b"x"), w.file(b"a", b"y")],
    "not in order": lambda w: [w.file(b"b", b"x"), w.file(b"a", b"y")],
    "label": lambda w: [w.file(b"backup_label", b"x")],
    "map": lambda w: [w.file(b"tablespace_map", b"x")],
    "marker": lambda w: [w.file(b"RESTORE-INCOMPLETE", b"x")],
    "nul": lambda w: [w.file(b"a\0b", b"x")],
    "device": lambda w: [w.file(b"a", b"x"), {"p": b"b", "t": "b", "m": 0o600}],
    "too short": lambda w: [{**w.file(b"a", b"x" * 100), "z": 99}],
    "too long": lambda w: [{**w.file(b"a", b"x" * 100), "z": 101}],
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tree_is_refused_before_anything_is_written(hostile: Hostile, case: str) -> None:
    into = hostile.base / "out"
    with pytest.raises(FormatError):
        hostile.restore(*HOSTILE[case](hostile.writer), into=into)
    assert list(into.iterdir()) == []


def test_links_are_made_last_of_all_and_never_followed(hostile: Hostile) -> None:
    outside = hostile.base / "outside"
    outside.mkdir()
    made = hostile.restore(
        folder(b"d"),
        hostile.writer.file(b"d/f", b"x"),
        {"p": b"d/link", "t": "l", "m": 0o777, "l": os.fsencode(outside)},
    )
    assert made == {"d/f": b"x"}
    assert list(outside.iterdir()) == []


def test_a_record_that_lies_about_its_length_is_refused_by_name(hostile: Hostile) -> None:
    entry = hostile.writer.file(b"a", b"x" * 100)
    packs, table = hostile.writer.chunk_table(b"x" * 100, 8192, lengths=[99])
    with pytest.raises(FormatError):
        hostile.restore({**entry, "k": packs, "c": table, "z": 99})


def test_a_record_that_is_not_the_chunk_its_id_says_is_refused(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(formatwriter, "chunk_id", lambda _plain: b"?" * 32)
        entry = hostile.writer.file(b"a", b"x" * 100)
    with pytest.raises(DamagedObjectError, match="is not the chunk it should be"):
        hostile.restore(entry)


def test_special_mode_bits_are_dropped(hostile: Hostile) -> None:
    hostile.restore({**folder(b"d"), "m": 0o7755}, hostile.writer.file(b"d/f", b"x", mode=0o6751))
    assert (hostile.base / "out/d").stat().st_mode & 0o7777 == 0o755
    assert (hostile.base / "out/d/f").stat().st_mode & 0o7777 == 0o751


def test_odd_names_are_only_names(hostile: Hostile) -> None:
    names = sorted([b"-rf", b"\x1b[2J", b"\xff\xfe", b"a\nb", "\u202e".encode(), b"..."])
    made = hostile.restore(*(hostile.writer.file(name, name) for name in names))
    assert sorted(made.values()) == names


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(site: Site) -> dict[str, bytes]:
    made = {"a": noise(3 * CHUNK), "b": noise(2 * CHUNK, 1), "empty": b"", "zeros": bytes(CHUNK * 2)}
    site.write(made)
    return made


def test_a_missing_pack_is_named(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    pack = site.keys(PACKS)[0]
    store = MissingStore(site.store, chooses=is_pack)
    with pytest.raises(MissingObjectError, match=pack):
        site.place(record.id, tmp_path / "out", store=store)
    assert store.withheld
    assert files


def test_a_truncated_pack_is_named(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    name = site.keys(PACKS)[0].rsplit("/", 1)[-1]
    store = truncating_store(site.store, chooses=is_pack, lost_bytes=5000)
    with pytest.raises(DamagedObjectError, match=name[:16]):
        site.place(record.id, tmp_path / "out", store=store)
    assert store.damaged
    assert files


@pytest.mark.parametrize("position", [3, 20, 50, 90, 200, 100_000])
def test_a_flipped_bit_in_a_pack_is_named(site: Site, files: dict[str, bytes], tmp_path: Path, position: int) -> None:
    record = site.capture()
    name = site.keys(PACKS)[0].rsplit("/", 1)[-1]
    store = bit_flipping_store(site.store, chooses=is_pack, position=position)
    with pytest.raises(DrError) as caught:
        site.place(record.id, tmp_path / "out", store=store)
    assert store.damaged
    assert name[:16] in caught.value.message
    assert files


@pytest.mark.parametrize("spoil", [bit_flipping_store, truncating_store])
def test_a_damaged_node_pack_is_found_before_anything_is_written(
    site: Site, files: dict[str, bytes], tmp_path: Path, spoil: Callable[..., Any]
) -> None:
    record = site.capture()
    store = spoil(site.store, chooses=lambda key: "/nodes/" in key)
    with pytest.raises(DamagedObjectError, match="hash that is its name"):
        site.place(record.id, tmp_path / "out", store=store)
    assert content_of(tmp_path / "out") == {}
    assert files


def test_only_whole_and_authenticated_chunks_are_ever_written(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    record = site.capture()
    store = bit_flipping_store(site.store, chooses=is_pack, position=250_000)
    with pytest.raises(DamagedObjectError):
        site.place(record.id, tmp_path / "out", store=store)
    for name, content in content_of(tmp_path / "out").items():
        for at in range(0, len(content), CHUNK):
            chunk = content[at : at + CHUNK]
            assert chunk in {files[name][at : at + CHUNK], bytes(len(chunk))}


# --- what is read -------------------------------------------------------------------------------------------


def test_a_pack_that_is_needed_whole_is_read_once(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    store = RecordingStore(site.store)
    placed = site.place(record.id, tmp_path / "out", store=store)
    assert [key for name, key in store.calls if name == "read" and is_pack(key)] == site.keys(PACKS)
    assert 5 * CHUNK < placed.fetched_bytes < sum(site.sizes(PACKS).values())  # all but the pack's own table
    assert placed.written_bytes == 5 * CHUNK
    assert content_of(tmp_path / "out") == files


def test_of_a_pack_that_is_hardly_needed_only_ranges_are_read(site: Site, tmp_path: Path) -> None:
    site.write({"a": noise(40 * CHUNK), "b": noise(CHUNK, 1)})
    site.capture()
    site.write({"a": noise(CHUNK, 7), "b": noise(CHUNK, 1)})
    record = site.capture()
    placed = site.place(record.id, tmp_path / "out")
    assert placed.fetched_bytes < 3 * CHUNK
    assert content_of(tmp_path / "out") == {"a": noise(CHUNK, 7), "b": noise(CHUNK, 1)}


def row(offset: int, length: int) -> tuple[int, int, ChunkRow]:
    return 0, 0, ChunkRow(b"c" * 32, 0, 0, offset, length, length - 16, 0)


def test_a_distant_store_is_asked_for_parts_that_are_not_too_long() -> None:
    items = [row(number * 60, 60) for number in range(5)]
    offsets = [[item[2].offset for item in group] for group in placingplan.merged(items, most=100)]
    assert offsets == [[0, 60], [120, 180], [240]]
    assert len(list(placingplan.merged(items))) == 1


def test_ranges_that_lie_close_are_read_together() -> None:
    gap = placingplan.MERGE_GAP_BYTES
    items = [row(104, 100), row(204, 100), row(304 + gap, 100), row(405 + 2 * gap, 100)]
    assert [[item[2].offset for item in group] for group in placingplan.merged(items)] == [
        [104, 204, 304 + gap],
        [405 + 2 * gap],
    ]


def test_what_lies_elsewhere_in_a_pack_than_in_the_files_is_read_in_the_packs_order() -> None:
    share = placingplan._Share()
    chunks = {300: (b"b", 0), 100: (b"a", 7), 200: (b"b", 65536), 0: (b"a", 0)}
    for offset, (path, place) in chunks.items():
        packed = ROW.pack(b"c" * 32, 0, 0, offset, 100, 16 << 20, 0)
        share.add(path, place, packed, offset=offset, plain_length=16 << 20)
    paths = tuple(share.paths)
    pieces = [
        [(row.offset, (paths[number], place)) for number, place, row in placingplan.unpacked(piece)]
        for piece in share.pieces()
    ]
    assert [[offset for offset, _ in piece] for piece in pieces] == [[0, 100], [200, 300]]  # of 24 MiB or a bit more
    assert {offset: where for piece in pieces for offset, where in piece} == chunks


def test_zeros_are_holes_and_cost_no_read(site: Site, tmp_path: Path) -> None:
    site.write({"zeros": bytes(1 << 20)})
    record = site.capture()
    placed = site.place(record.id, tmp_path / "out")
    assert (placed.fetched_bytes, placed.written_bytes) == (0, 0)
    assert (tmp_path / "out/zeros").read_bytes() == bytes(1 << 20)
    assert (tmp_path / "out/zeros").stat().st_blocks * 512 < 1 << 20


def test_paths_can_be_held_back(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    placed = site.place(record.id, tmp_path / "out", hold_back=frozenset({b"b"}))
    assert placed.held_back == {b"b": files["b"]}
    assert not (tmp_path / "out/b").exists()


def test_rounds_bound_what_is_planned_at_once(
    site: Site, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placingplan, "_ROUND_ROWS", 1)
    assert site.restore(site.capture().id, tmp_path / "out") == files


def test_more_files_than_descriptors_are_written(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "_OPEN_FILES", 2)
    files = {f"{number}": noise(10, number) for number in range(20)}
    site.write(files)
    assert site.restore(site.capture().id, tmp_path / "out") == files


# --- the target ---------------------------------------------------------------------------------------------


def test_too_little_space_is_told_before_the_first_write(site: Site, tmp_path: Path) -> None:
    with (tmp_path / "source/huge").open("wb") as file:
        file.truncate(CHUNK)
    record = site.capture()
    into = tmp_path / "out"
    into.mkdir()

    class Full:
        f_bavail = 1
        f_frsize = 4096

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: Full)
        with pytest.raises(RecoveryError, match="has 4,096 bytes free, and 65,536 are needed"):
            site.place(record.id, into)
    assert list(into.iterdir()) == []


def test_an_existing_file_is_never_overwritten(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b").write_text("precious")
    with pytest.raises(RecoveryError, match="cannot write b"):
        site.place(record.id, tmp_path / "out")
    assert (tmp_path / "out/b").read_text() == "precious"
    assert files


def test_a_file_exchanged_for_a_link_meanwhile_is_not_followed(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    record = site.capture()
    victim = tmp_path / "victim"
    victim.write_text("precious")

    class Exchange(RecordingStore):
        def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            target = tmp_path / "out/a"
            if is_pack(key) and not target.is_symlink():
                target.unlink()
                target.symlink_to(victim)
            return super().read(key, offset=offset, length=length)

    with pytest.raises(RecoveryError, match="cannot write a"):
        site.place(record.id, tmp_path / "out", store=Exchange(site.store))
    assert victim.read_text() == "precious"
    assert files


def test_errors_of_the_target_are_told_in_words() -> None:
    assert "no space left" in write_error(b"base/1", OSError(28, "x")).message
    assert "no space left" in write_error(b"base/1", OSError(122, "x")).message
    assert "cannot write \\xff" in write_error(b"\xff", OSError(13, "Permission denied")).message
