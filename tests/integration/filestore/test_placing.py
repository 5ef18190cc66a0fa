"""Placing documents: exactly the wanted ones, each right, all or nothing under the target's name."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.components.odoo_filestore.placing import place_documents
from drservice.components.odoo_filestore.record import document_record
from drservice.errors import (
    DocumentsDamagedError,
    FormatError,
    NoIdentityError,
    ObjectStoreError,
    RecoveryError,
    TargetDirectoryError,
)
from drservice.processes import Account
from drservice.repository import bulkplacing
from drservice.repository.keys import Identities
from drservice.repository.nodes import EntryKind
from tests.doubles.filestores import Filestore, settle, tree
from tests.doubles.repositories import Heard, Site, flipped, noise
from tests.doubles.stores import Fault, FaultyStore

ABSENT = "ab/" + "ab" * 20
STRANGE = ["../../etc/passwd", "s3://bucket/key", "", "ab/../" + "ab" * 20, "ab/" + "AB" * 20, "/etc/passwd"]


def forget(filestore: Filestore) -> None:
    """Make the next snapshot upload everything again, into packs of its own."""
    shutil.rmtree(filestore.site.state_dir / "cache")


def leftovers(folder: Path) -> list[str]:
    """Return what a restore left beside its target."""
    return [path.name for path in folder.iterdir() if ".drservice-" in path.name]


# --- What is wanted ---------------------------------------------------------------------------------------------


def test_exactly_the_wanted_documents_are_placed(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(60)
    record, _ = filestore.capture()
    wanted = list(documents)[:45]
    placed = filestore.place([record.id], tmp_path / "out", wanted)
    assert (placed.expected, placed.placed, placed.extra) == (45, 45, 15)
    assert placed.missing == placed.corrupt == placed.missing_in_production == placed.corrupt_in_production == ()
    assert placed.written_bytes == sum(len(documents[name]) for name in wanted)
    files = {name: content for name, content in tree(tmp_path / "out").items() if content != "folder"}
    assert files == {name.encode(): documents[name] for name in wanted}


def test_missing_missing_in_production_and_corrupt_in_production_are_told_apart(
    filestore: Filestore, tmp_path: Path
) -> None:
    documents = list(filestore.fill(10))
    (filestore.folder / documents[0]).write_bytes(b"short")
    settle(filestore.folder)
    record, _ = filestore.capture(referred=dict.fromkeys([*documents, ABSENT], 1))
    newer = "cd/" + "cd" * 20
    placed = filestore.place([record.id], tmp_path / "out", [*documents, ABSENT, newer])
    assert (placed.expected, placed.placed) == (12, 9)
    assert placed.missing == (newer,)
    assert placed.missing_in_production == (ABSENT,)
    assert placed.corrupt_in_production == (documents[0],)
    assert placed.corrupt == ()
    assert not (tmp_path / "out" / documents[0]).exists(), "Odoo would take the right content for a collision"


def test_names_of_a_hostile_database_lead_nowhere(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(3))
    record, _ = filestore.capture()
    placed = filestore.place([record.id], tmp_path / "out", [*documents, *STRANGE])
    assert placed.placed == 3
    assert set(placed.missing) == set(STRANGE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in {"source", "state", "identity"}) == [
        "out"
    ]


def test_what_the_first_snapshot_lacks_comes_from_another(filestore: Filestore, tmp_path: Path) -> None:
    early = filestore.fill(8, seed=1)
    old, _ = filestore.capture()
    lost = next(iter(early))
    (filestore.folder / lost).unlink()
    late = filestore.fill(8, seed=2)
    new, _ = filestore.capture(referred=dict.fromkeys([*early, *late], 1))
    placed = filestore.place([new.id, old.id], tmp_path / "out", [*early, *late])
    assert (placed.placed, placed.from_older) == (16, 1)
    assert placed.missing_in_production == (), "production had lost it, and it is back"
    assert placed.recovered_from_older == (lost,), "and that is told"
    assert placed.used == (new.id, old.id)
    assert (tmp_path / "out" / lost).read_bytes() == early[lost]


def test_only_snapshots_that_documents_came_from_are_called_used(filestore: Filestore, tmp_path: Path) -> None:
    early = filestore.fill(8, seed=1)
    oldest, _ = filestore.capture()
    (lost, spoilt, deleted), untouched = list(early)[:3], list(early)[3:]
    (filestore.folder / lost).unlink()
    (filestore.folder / spoilt).write_bytes(b"something else")
    (filestore.folder / deleted).unlink()  # as Odoo collects what no row refers to: not lost
    settle(filestore.folder)
    useless, _ = filestore.capture()
    new, _ = filestore.capture(referred=dict.fromkeys([lost, spoilt, *untouched], 1))
    placed = filestore.place([new.id, useless.id, oldest.id], tmp_path / "out", [*early, ABSENT])
    assert (placed.placed, placed.from_older, placed.missing) == (8, 3, (ABSENT,))
    assert placed.used == (new.id, oldest.id)
    assert placed.recovered_from_older == tuple(sorted([lost, spoilt]))
    again = filestore.place([useless.id, oldest.id], tmp_path / "again", [lost])
    assert again.used == (oldest.id,), "the preferred one gave nothing"


def test_nothing_wanted_is_an_empty_filestore(filestore: Filestore, tmp_path: Path) -> None:
    filestore.fill(3)
    record, _ = filestore.capture()
    placed = filestore.place([record.id], tmp_path / "out", [])
    assert (placed.expected, placed.placed, placed.extra) == (0, 0, 3)
    assert list((tmp_path / "out").iterdir()) == []


# --- Damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_byte_costs_the_document_it_is_in_and_no_other(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(50)
    record, _ = filestore.capture()
    (pack,) = filestore.packs()
    filestore.site.replace(pack, flipped(200_000))
    placed = filestore.place([record.id], tmp_path / "out", list(documents))
    assert placed.placed == 49
    (corrupt,) = placed.corrupt
    files = {name for name, content in tree(tmp_path / "out").items() if content != "folder"}
    assert files == {name.encode() for name in documents} - {corrupt.encode()}


def test_documents_of_a_damaged_pack_come_from_another_snapshot(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(50)
    old, _ = filestore.capture()
    kept = set(filestore.packs())
    forget(filestore)
    new, _ = filestore.capture()
    (pack,) = set(filestore.packs()) - kept
    filestore.site.replace(pack, flipped(200_000))
    placed = filestore.place([new.id, old.id], tmp_path / "out", list(documents))
    assert (placed.placed, placed.from_older, placed.corrupt) == (50, 1, ())
    assert tree(tmp_path / "out") == tree(filestore.folder)


def test_a_pack_that_is_gone_costs_what_is_in_it(filestore: Filestore, tmp_path: Path) -> None:
    early = filestore.fill(10, seed=1)
    settle(filestore.folder)
    filestore.capture()
    (pack,) = filestore.packs()
    late = filestore.fill(10, seed=2)
    record, _ = filestore.capture()
    filestore.site.store.delete(pack)
    placed = filestore.place([record.id], tmp_path / "out", [*early, *late])
    assert set(placed.corrupt) == set(early)
    assert placed.placed == 10


def test_a_damaged_tree_costs_the_snapshot_not_the_restore(filestore: Filestore, tmp_path: Path) -> None:
    documents = filestore.fill(10)
    old, _ = filestore.capture()
    kept = set(filestore.site.keys("s/erp/documents/nodes/"))
    forget(filestore)
    new, _ = filestore.capture()
    for key in set(filestore.site.keys("s/erp/documents/nodes/")) - kept:
        filestore.site.replace(key, flipped(150))
    placed = filestore.place([new.id, old.id], tmp_path / "out", list(documents))
    assert (placed.placed, placed.from_older) == (10, 10)
    assert len(placed.unreadable) == 1
    assert str(new.id) in placed.unreadable[0]


def test_a_plain_folder_with_damage_is_refused_by_name(folder: Filestore, tmp_path: Path) -> None:
    (folder.folder / "bad").write_bytes(noise(300_000, 1))
    (folder.folder / "good").write_bytes(b"x")
    record, _ = folder.capture()
    (pack,) = folder.packs()
    folder.site.replace(pack, flipped(100_000))
    with pytest.raises(DocumentsDamagedError, match="1 of 2 files cannot be restored: bad"):
        folder.place_all(record.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_documents_are_not_placed_from_the_snapshot_of_a_cluster(filestore: Filestore, tmp_path: Path) -> None:
    site = filestore.site
    site.write({"base/1": b"page"})
    cluster = site.capture()
    context = filestore.context()
    placed = place_documents(replace(context, scope=site.scope), [cluster.id], tmp_path / "out", wanted=[ABSENT])
    assert placed.missing == (ABSENT,)
    assert "holds no documents" in placed.unreadable[0]


# --- All or nothing ---------------------------------------------------------------------------------------------


def test_a_store_that_fails_at_any_read_leaves_nothing(tmp_path: Path) -> None:
    filestore = Filestore(site=Site.create(tmp_path))
    documents = list(filestore.fill(30))
    record, _ = filestore.capture()
    failed = 0
    for number in range(1, 30):
        store = FaultyStore(filestore.site.store, Fault(at=number, operations={"read"}))
        try:
            filestore.place([record.id], tmp_path / "out", documents, store=store)
        except ObjectStoreError:
            failed += 1
            assert not (tmp_path / "out").exists()
            assert leftovers(tmp_path) == []
        else:
            break
    assert failed >= 3, "repository file, node pack and data pack are read"
    assert (tmp_path / "out").exists()


def test_an_error_of_the_disk_while_others_are_written_fails_the_restore(
    filestore: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells an error once: to the call in the background, and not to the last one again."""
    documents = list(filestore.fill(30))
    record, _ = filestore.capture()
    calls = []

    def fails_once(_descriptor: int, root: Path) -> None:
        calls.append(root)
        if len(calls) == 1:
            raise RecoveryError(f"writing {root} to disk failed: Input/output error")

    monkeypatch.setattr("drservice.components.odoo_filestore.staging.sync_opened", fails_once)
    monkeypatch.setattr("drservice.components.odoo_filestore.staging._WRITE_BACK_BYTES", 1)
    with pytest.raises(RecoveryError, match="Input/output error"):
        filestore.place([record.id], tmp_path / "out", documents)
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_room_for_what_is_wanted_is_enough_where_the_whole_snapshot_has_none(
    filestore: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = filestore.fill(30)
    record, _ = filestore.capture()
    wanted = list(documents)[:3]
    needed = sum(len(documents[name]) for name in wanted)
    for free, fits in ((needed, True), (needed - 1, False)):
        for module in ("drservice.repository.target", "drservice.components.odoo_filestore.staging"):
            monkeypatch.setattr(f"{module}.free_bytes", lambda _root, free=free: free)
        if fits:
            assert filestore.place([record.id], tmp_path / "out", wanted).placed == 3
        else:
            with pytest.raises(RecoveryError, match="are needed"):
                filestore.place([record.id], tmp_path / "other", wanted)
            assert not (tmp_path / "other").exists()


class Killing(Heard):
    """Kills its own process as soon as something is written."""

    def advance(self, amount: int, /) -> None:
        if amount:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_restore_leaves_nothing_under_the_targets_name(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(30))
    record, _ = filestore.capture()
    child = os.fork()
    if child == 0:
        try:
            place_documents(filestore.context(progress=Killing()), [record.id], tmp_path / "out", wanted=documents)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(leftovers(tmp_path)) == 1, "what it had written lies under a name that nobody takes for a restore"
    placed = filestore.place([record.id], tmp_path / "out", documents)
    assert placed.placed == 30, "the next one is not disturbed"


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_a_target_in_use_is_refused_and_left_alone(filestore: Filestore, tmp_path: Path, kind: str) -> None:
    documents = list(filestore.fill(3))
    record, _ = filestore.capture()
    target = tmp_path / "out"
    if kind == "full":
        target.mkdir()
        (target / "precious").write_text("x")
    elif kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(filestore.folder)
    before = tree(tmp_path)
    with pytest.raises(TargetDirectoryError):
        filestore.place([record.id], target, documents)
    assert tree(tmp_path) == before


def test_an_empty_target_is_taken(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(3))
    record, _ = filestore.capture()
    (tmp_path / "out").mkdir()
    assert filestore.place([record.id], tmp_path / "out", documents).placed == 3


def test_a_target_that_cannot_be_made_is_an_error(filestore: Filestore, tmp_path: Path) -> None:
    record, _ = filestore.capture()
    with pytest.raises(RecoveryError, match="No such file"):
        filestore.place([record.id], tmp_path / "no/such/parent", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_is_placed_belongs_to_the_account(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(5))
    record, _ = filestore.capture()
    owned = replace(filestore.context(), account=Account(name="nobody", uid=65534, gid=65534, home="/"))
    place_documents(owned, [record.id], tmp_path / "out", wanted=documents)
    placed = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in placed} == {(65534, 65534)}


def test_a_plain_folder_to_keep_has_the_mode_it_had(folder: Filestore, tmp_path: Path) -> None:
    (folder.folder / "file").write_bytes(b"x")
    folder.folder.chmod(0o750)
    record, _ = folder.capture()
    assert folder.record(record.id).root_mode == 0o750
    folder.place_all(record.id, tmp_path / "out")
    facts = (tmp_path / "out").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o750, os.geteuid())


def test_a_plain_folder_whose_snapshot_did_not_record_a_mode_may_be_looked_into(
    folder: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = folder.capture()
    monkeypatch.setattr(
        "drservice.components.odoo_filestore.placing.document_record",
        lambda reader: replace(document_record(reader), root_mode=None),
    )
    folder.place_all(record.id, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_snapshot_without_its_record_is_refused(filestore: Filestore) -> None:
    site = filestore.site
    site.write({"f": b"x"})
    cluster = site.capture()
    with pytest.raises(FormatError, match="is not there"):
        document_record(site.repository().reader(site.scope, cluster.id))


def test_without_an_identity_nothing_is_called_missing(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(3))
    record, _ = filestore.capture()
    context = filestore.context()
    blind = replace(context, repository=filestore.site.repository(identities=Identities()))
    with pytest.raises(NoIdentityError):
        place_documents(blind, [record.id], tmp_path / "out", wanted=documents)
    assert not (tmp_path / "out").exists()


def test_a_document_that_is_not_its_name_is_not_placed_whatever_the_snapshot_says(
    folder: Filestore, tmp_path: Path
) -> None:
    """A plain folder's snapshot does not know what names mean: here it stands for one that lies."""
    name = folder.add(b"right")
    (folder.folder / name).write_bytes(b"wrong")
    record, _ = folder.capture()
    placed = folder.place([record.id], tmp_path / "out", [name])
    assert (placed.placed, placed.corrupt) == (0, (name,))
    assert not (tmp_path / "out" / name).exists()


def test_modes_are_those_of_production_whatever_the_umask(filestore: Filestore, tmp_path: Path) -> None:
    documents = list(filestore.fill(3))
    (filestore.folder / documents[0]).chmod(0o640)
    record, _ = filestore.capture()
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            filestore.place([record.id], tmp_path / f"{mask}", documents)
        finally:
            os.umask(before)
        modes = [(tmp_path / f"{mask}" / name).stat().st_mode & 0o7777 for name in documents]
        assert modes == [0o640, 0o644, 0o644]


def test_no_worker_is_left_with_much_at_the_end(filestore: Filestore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulkplacing, "_PIECE_FILES", 2)
    filestore.fill(100, largest=50)
    record, _ = filestore.capture()
    reader = filestore.site.repository().reader(filestore.scope, record.id)
    files = [bulkplacing.WantedFile(entry, b"") for entry in reader.entries() if entry.kind is EntryKind.FILE]
    batches = [len(batch) for batch in bulkplacing._batches(reader, iter(files), [])]
    assert sum(batches) == 50
    assert batches == sorted(batches, reverse=True)
    assert (batches[0], batches[-15:]) == (4, [1] * 15)
