"""Snapshots made from the last one are the snapshots that would have been made from nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from drservice.components.odoo_filestore.capture import capture_files
from drservice.components.odoo_filestore.walk import Walk
from drservice.model.ids import SnapshotId
from drservice.repository.changes import ChangeRule
from drservice.repository.holds import condemn
from drservice.repository.nodes import NodeRef, begins_node, build_root, encode_entry, node_id
from tests.doubles.filestores import Filestore, settle, tree
from tests.doubles.repositories import Heard


class KnownPlaces:
    """Stores nothing: knows where the nodes of a snapshot are, and fails for any other node."""

    def __init__(self, filestore: Filestore, snapshot: SnapshotId) -> None:
        self.reader = filestore.site.repository().reader(filestore.scope, snapshot)
        self.places: dict[bytes, NodeRef] = {}
        inner = self.reader._node

        def noting(ref: NodeRef) -> bytes | memoryview:
            self.places[ref.node_id] = ref
            return inner(ref)

        self.reader._node = noting  # type: ignore[method-assign]  # to see which nodes the tree is made of
        self.entries = [(entry.path, encode_entry(entry)) for entry in self.reader.entries()]

    def put(self, raw: bytes) -> bytes:
        assert node_id(raw) in self.places, "the tree is cut in another way than from nothing"
        return node_id(raw)

    def settle(self) -> None: ...

    def place(self, node: bytes) -> NodeRef:
        return self.places[node]


def edit(filestore: Filestore, chance: random.Random, names: list[str]) -> None:
    """Delete, add and change some documents, sometimes whole folders."""
    for name in chance.sample(names, 5):
        (filestore.folder / name).unlink(missing_ok=True)
    for number in range(chance.randrange(30)):
        filestore.add(chance.randbytes(20 + number))
    if chance.random() < 0.5:
        shutil.rmtree(filestore.folder / names[0][:2], ignore_errors=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_tree_that_keeps_old_nodes_is_cut_as_from_nothing(filestore: Filestore, seed: int) -> None:
    chance = random.Random(seed)
    filestore.fill(1500, seed=seed, largest=60)
    settle(filestore.folder)
    filestore.capture()
    for _ in range(6):
        names = [str(path.relative_to(filestore.folder)) for path in filestore.folder.rglob("*") if path.is_file()]
        edit(filestore, chance, sorted(names))
        record, captured = filestore.capture()
        assert captured.reused_files > 1000
        known = KnownPlaces(filestore, record.id)
        root = build_root(known.entries, known)
        assert root == known.reader.secret.root
        on_disk = {path for path, kind in tree(filestore.folder).items() if kind != "folder"}
        assert {path for path, _ in known.entries if b"/" in path} == on_disk
        assert (record.files, record.source_bytes) == (
            len(on_disk),
            sum(path.stat().st_size for path in filestore.folder.rglob("*") if path.is_file()),
        )
        live = {use.name: use.live_bytes for use in known.reader._opened.packs.data}
        used: dict[str, int] = {}
        for entry in known.reader.entries():
            for table in known.reader.tables(entry):
                for row in table:
                    pack = table.packs[row.pack_index].hex()
                    used[pack] = used.get(pack, 0) + row.stored_length
        assert live == used


def test_nodes_that_begin_where_512_entries_end_move_with_what_stands_before_them(folder: Filestore) -> None:
    names = [name for name in (f"n{number:05}" for number in range(1300)) if not begins_node(name.encode())]
    for name in names:
        (folder.folder / name).write_bytes(b"x")
    settle(folder.folder)
    folder.capture()
    (folder.folder / names[10]).unlink()
    record, captured = folder.capture()
    assert captured.reused_files == len(names) - 1
    known = KnownPlaces(folder, record.id)
    assert build_root(known.entries, known) == known.reader.secret.root


def test_documents_in_packs_that_are_gone_are_read_and_stored_again(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(50)
    settle(filestore.folder)
    filestore.capture()
    (pack,) = filestore.packs()
    filestore.site.store.delete(pack)
    record, captured = filestore.capture()
    assert captured.reused_files == 0
    assert filestore.place([record.id], tmp_path / "out", list(documents)).placed == 50


def test_condemned_packs_are_not_relied_on(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(50)
    settle(filestore.folder)
    filestore.capture()
    (pack,) = filestore.packs()
    site = filestore.site
    condemn(site.store, site.host, filestore.scope, packs=[pack], reason="damaged", now=site.clock.now())
    record, captured = filestore.capture()
    assert captured.reused_files == 0
    site.store.delete(pack)
    assert filestore.place([record.id], tmp_path / "out", list(documents)).placed == 50


def test_a_pack_that_vanishes_while_the_capture_runs_is_noticed_before_the_commit(
    filestore: Filestore, tmp_path: Path
) -> None:
    documents = filestore.fill(50)
    settle(filestore.folder)
    filestore.capture()
    (pack,) = filestore.packs()
    site = filestore.site

    class Deleting(Heard):
        """Deletes the pack when its documents have been taken over."""

        def advance(self, amount: int, /) -> None:
            super().advance(amount)
            if pack in filestore.packs():
                site.store.delete(pack)

    with site.repository().writer(filestore.scope, state_dir=site.state_dir, workers=1, level=1) as writer:
        captured = capture_files(
            writer, component=filestore.settings, referred=None, clock=site.clock, progress=Deleting()
        )
        record = writer.commit(captured.commit_facts())
    assert record.files == captured.files == 50
    assert captured.read_bytes == sum(map(len, documents.values()))
    assert filestore.place([record.id], tmp_path / "out", list(documents)).placed == 50


@pytest.mark.parametrize(("rule", "reused"), [(ChangeRule.NAMED, 29), (ChangeRule.IDENTITY, 0)])
def test_by_name_documents_need_no_reading_on_a_file_system_that_forgets_inodes(
    filestore: Filestore, rule: ChangeRule, reused: int
) -> None:
    documents = list(filestore.fill(30))
    (filestore.folder / documents[0]).write_bytes(b"wrong")
    settle(filestore.folder)
    filestore.capture()
    for name in documents:
        copy = tmp_copy(filestore.folder / name)
        copy.replace(filestore.folder / name)
    walk = Walk(str(filestore.folder), filestore.kind, on_folder=lambda _: None, on_link=lambda _: None)
    site = filestore.site
    with site.repository().writer(filestore.scope, state_dir=site.state_dir, workers=1, level=1) as writer:
        outcome = writer.capture_folders(walk.root, walk.folders(), rule=rule, hashed=True, progress=Heard())
    walk.close()
    assert outcome.reused_files == reused, "by name all but the one that was wrong"
    assert outcome.not_their_name == [documents[0].encode()]


def tmp_copy(path: Path) -> Path:
    """Return a copy of a file under another name, with its times."""
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    return copy
