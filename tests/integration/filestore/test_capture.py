"""Capturing real files: what production lost is told, nothing is read twice, and no file can end the run."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drservice.errors import DocumentsUnreadableError
from drservice.model.estate import FilesKind
from drservice.model.snapshot import SnapshotState
from drservice.repository.changes import ChangeRule
from drservice.repository.descent import Root
from drservice.repository.folders import FilesOutcome, ListedFolder
from drservice.repository.marks import NO_LOOK
from tests.doubles.filestores import Filestore, settle, tree
from tests.doubles.repositories import Heard, Site, noise
from tests.doubles.stores import RecordingStore

ABSENT = "ab/" + "ab" * 20
NOBODY = 65534


@contextmanager
def as_nobody(base: Path) -> Iterator[None]:
    """Be somebody who may not read everything."""
    if os.geteuid() != 0:
        yield
        return
    for path in [base, *base.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# --- What production lost ---------------------------------------------------------------------------------------


def test_a_healthy_filestore_makes_a_complete_snapshot(filestore: Filestore) -> None:
    documents = filestore.fill(40)
    record, captured = filestore.capture(referred={name: len(content) for name, content in documents.items()})
    assert record.state is SnapshotState.COMPLETE
    assert record.kind == "odoo-filestore"
    facts = record.documents
    assert (facts.referred, facts.missing, facts.corrupt, facts.foreign, facts.unreadable) == (40, 0, 0, 0, 0)
    assert record.files == captured.files == 40
    assert record.source_bytes == sum(map(len, documents.values()))


def test_a_row_without_a_file_is_missing_in_production_and_degrades(filestore: Filestore) -> None:
    filestore.fill(3)
    record, _ = filestore.capture(referred={ABSENT: 7})
    assert record.state is SnapshotState.DEGRADED
    assert record.documents.missing == 1
    assert filestore.record(record.id).missing == (ABSENT.encode(),)


def test_content_that_is_not_its_name_is_stored_as_it_is_and_told(filestore: Filestore) -> None:
    documents = filestore.fill(5)
    wrong = next(iter(documents))
    (filestore.folder / wrong).write_bytes(b"ransom")
    settle(filestore.folder)
    record, _ = filestore.capture()
    assert record.state is SnapshotState.DEGRADED
    assert filestore.record(record.id).corrupt == (wrong.encode(),)
    reader = filestore.site.repository().reader(filestore.scope, record.id)
    stored = {os.fsdecode(entry.path): entry for entry in reader.entries()}
    assert reader.read_file(stored[wrong]) == b"ransom"
    again, captured = filestore.capture()
    assert captured.reused_files == 5, "nothing changed"
    assert again.state is SnapshotState.DEGRADED, "damage that was taken over unread is still damage"
    assert filestore.record(again.id).corrupt == (wrong.encode(),)


def test_names_that_no_document_has_are_counted_and_not_stored(filestore: Filestore) -> None:
    filestore.fill(2)
    (filestore.folder / "checklist").mkdir()
    (filestore.folder / "checklist/ab").mkdir()
    (filestore.folder / "README").write_text("x")
    (filestore.folder / "ab").mkdir(exist_ok=True)
    (filestore.folder / "ab" / ("cd" * 20)).write_text("in the folder of another name")
    (filestore.folder / "ab" / f"{'ab' * 20}.gc").write_text("being collected")
    (filestore.folder / "fe").write_text("a file where a folder should be")
    record, _ = filestore.capture()
    assert record.files == 2
    assert record.documents.foreign == 4
    assert set(filestore.record(record.id).foreign) == {
        b"README",
        b"fe",
        b"ab/" + b"cd" * 20,
        b"ab/" + b"ab" * 20 + b".gc",
    }
    assert record.state is SnapshotState.COMPLETE


def test_folders_of_three_digits_are_documents_too(filestore: Filestore) -> None:
    name = filestore.add(b"old")
    digest = name[3:]
    (filestore.folder / digest[:3]).mkdir()
    (filestore.folder / name).rename(filestore.folder / digest[:3] / digest)
    record, _ = filestore.capture(referred={f"{digest[:3]}/{digest}": 3})
    assert record.files == 1
    assert record.state is SnapshotState.COMPLETE


def test_a_filestore_that_is_not_there_is_an_error_and_no_empty_snapshot(filestore: Filestore) -> None:
    shutil.rmtree(filestore.folder)
    with pytest.raises(DocumentsUnreadableError, match="source"):
        filestore.capture()
    assert filestore.site.keys("s/erp/documents/snapshots") == []


# --- Reading once -----------------------------------------------------------------------------------------------


def test_what_is_unchanged_is_not_read_again_and_costs_no_pack(filestore: Filestore) -> None:
    documents = filestore.fill(300)
    settle(filestore.folder)
    first, _ = filestore.capture()
    store = RecordingStore(filestore.site.store)
    second, captured = filestore.capture(store=store)
    assert (captured.reused_files, captured.read_bytes) == (300, 0)
    assert second.stored_bytes == 0
    assert [key for operation, key in store.calls if operation == "create" and "/packs/" in key] == []
    assert second.files == first.files == len(documents)
    assert second.source_bytes == first.source_bytes


def test_a_new_document_is_the_only_one_read(filestore: Filestore) -> None:
    filestore.fill(200)
    settle(filestore.folder)
    filestore.capture()
    added = filestore.add(noise(5000, 9))
    record, captured = filestore.capture()
    assert (captured.reused_files, captured.read_bytes) == (200, 5000)
    assert added.encode() in {
        entry.path for entry in filestore.site.repository().reader(filestore.scope, record.id).entries()
    }


def test_a_deleted_document_and_a_deleted_folder_leave_the_snapshot(filestore: Filestore) -> None:
    documents = list(filestore.fill(120))
    settle(filestore.folder)
    filestore.capture()
    (filestore.folder / documents[0]).unlink()
    gone = documents[1].partition("/")[0]
    shutil.rmtree(filestore.folder / gone)
    record, _ = filestore.capture()
    kept = {os.fsdecode(e.path) for e in filestore.site.repository().reader(filestore.scope, record.id).entries()}
    assert kept == {str(path.relative_to(filestore.folder)) for path in filestore.folder.rglob("*")}


def test_a_file_just_written_is_read_again_because_a_later_write_could_look_the_same(filestore: Filestore) -> None:
    filestore.fill(3)
    filestore.capture()
    _, captured = filestore.capture()
    assert captured.reused_files == 0


def test_a_document_encrypted_in_place_is_noticed_though_its_size_and_time_are_the_old_ones(
    filestore: Filestore,
) -> None:
    documents = filestore.fill(10)
    settle(filestore.folder)
    filestore.capture()
    name, content = next(iter(documents.items()))
    path = filestore.folder / name
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0x5A for byte in content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    record, captured = filestore.capture()
    assert captured.read_bytes == len(content)
    assert filestore.record(record.id).corrupt == (name.encode(),)


def test_workers_and_one_process_capture_the_same(tmp_path: Path) -> None:
    site = Site.create(tmp_path, folder=tmp_path / "repository")
    pooled = Filestore(site=site, workers=2)
    documents = pooled.fill(2100, largest=3000)
    record, captured = pooled.capture()
    assert captured.files == 2100, "from 2,000 on processes are started"
    placed = pooled.place([record.id], tmp_path / "out", list(documents))
    assert placed.placed == 2100
    assert tree(tmp_path / "out") == tree(pooled.folder)


# --- What files do meanwhile ------------------------------------------------------------------------------------


def taken(filestore: Filestore, listed: list[ListedFolder], *, hashed: bool = False) -> FilesOutcome:
    """Capture what a listing says, which need not be true any more."""
    repository = filestore.site.repository()
    facts = filestore.folder.stat()
    root = Root(str(filestore.folder), facts.st_dev, facts.st_ino)
    with repository.writer(filestore.scope, state_dir=filestore.site.state_dir, workers=1, level=1) as writer:
        return writer.capture_folders(root, listed, rule=ChangeRule.READ_ALL, hashed=hashed, progress=Heard())


def listing(folder: bytes, *names: bytes) -> list[ListedFolder]:
    return [ListedFolder(folder, dict.fromkeys(names, NO_LOOK), flat=True)]


def test_a_file_that_vanished_since_it_was_listed_is_counted(folder: Filestore) -> None:
    (folder.folder / "here").write_bytes(b"x")
    outcome = taken(folder, listing(b"", b"here", b"gone"))
    assert (outcome.files, outcome.vanished) == (1, [b"gone"])


def test_a_document_that_vanished_and_is_referred_to_is_missing_in_production(filestore: Filestore) -> None:
    filestore.fill(2500, largest=200)
    name = "ff/" + "ff" * 20
    (filestore.folder / "ff").mkdir(exist_ok=True)
    (filestore.folder / name).write_bytes(b"short life")

    class Deleting(RecordingStore):
        """Deletes the document when the first pack is stored: after it was listed, before it is read."""

        def create(self, key: str, body: object) -> None:
            (filestore.folder / name).unlink(missing_ok=True)
            super().create(key, body)  # type: ignore[arg-type]  # passed on

    record, captured = filestore.capture(referred={name: 10}, store=Deleting(filestore.site.store))
    assert captured.record.missing == (name.encode(),)
    assert record.files == 2500


def test_a_pipe_in_the_place_of_a_listed_file_is_never_waited_for(folder: Filestore) -> None:
    os.mkfifo(folder.folder / "pipe")
    began = time.monotonic()
    outcome = taken(folder, listing(b"", b"pipe"))
    assert outcome.vanished == [b"pipe"]
    assert time.monotonic() - began < 5


def test_a_folder_exchanged_for_a_link_is_not_entered(folder: Filestore, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "shadow").write_bytes(b"secret")
    (folder.folder / "was-a-folder").symlink_to(secret)
    outcome = taken(folder, listing(b"was-a-folder", b"shadow"))
    assert (outcome.files, outcome.vanished) == (0, [b"was-a-folder/shadow"])


def test_a_link_in_the_place_of_a_listed_file_is_not_followed(folder: Filestore, tmp_path: Path) -> None:
    (tmp_path / "shadow").write_bytes(b"secret")
    (folder.folder / "link").symlink_to(tmp_path / "shadow")
    assert taken(folder, listing(b"", b"link")).files == 0


def test_a_file_cut_off_while_it_is_read_is_taken_as_far_as_it_goes(folder: Filestore, tmp_path: Path) -> None:
    path = folder.folder / "log"
    path.write_bytes(noise(100 << 20))

    class Cutting(RecordingStore):
        """Cuts the file off when its first pack is stored."""

        def create(self, key: str, body: object) -> None:
            if "/packs/" in key:
                os.truncate(path, 36 << 20)
            super().create(key, body)  # type: ignore[arg-type]  # passed on

    record, _ = folder.capture(store=Cutting(folder.site.store))
    assert 36 << 20 <= record.source_bytes < 100 << 20, "it was cut while it was read"
    folder.place_all(record.id, tmp_path / "out")
    assert (tmp_path / "out/log").read_bytes() == noise(100 << 20)[: record.source_bytes]


def test_a_document_whose_writer_is_not_done_is_read_again(filestore: Filestore) -> None:
    content = noise(50_000, 3)
    path = filestore.folder / filestore.add(content)
    path.write_bytes(content[:1000])
    finish = threading.Timer(0.05, path.write_bytes, [content])
    finish.start()
    record, _ = filestore.capture()
    finish.join()
    assert record.state is SnapshotState.COMPLETE
    assert record.source_bytes == len(content)


def test_permission_denied_makes_a_partial_snapshot_with_the_names() -> None:
    base = Path("/tmp") / f"drservice-denied-{os.getpid()}"
    base.mkdir(mode=0o755)
    try:
        filestore = Filestore(site=Site.create(base))
        documents = list(filestore.fill(20))
        closed, locked = documents[0], next(n for n in documents if n[:2] != documents[0][:2])
        (filestore.folder / closed).chmod(0)
        (filestore.folder / locked).parent.chmod(0)
        with as_nobody(base):
            record, _ = filestore.capture(referred=dict.fromkeys([*documents, ABSENT], 1))
            known = filestore.record(record.id)
        assert record.state is SnapshotState.PARTIAL
        assert known.unreadable == tuple(
            sorted([(closed.encode(), "Permission denied"), (locked[:2].encode(), "Permission denied")])
        )
        assert known.missing == (ABSENT.encode(),), "what could not be looked at is not known to be missing"
    finally:
        shutil.rmtree(base)


# --- Plain folders ----------------------------------------------------------------------------------------------

HOSTILE = [
    b"-rf",
    b"new\nline",
    b"\x1b[31mred",
    "\u202egnp.exe".encode(),
    b"\xff\xfe",
    b"*",
    b"a b",
    b"~",
    b"backup_label",
]


def test_hostile_names_go_there_and_back(folder: Filestore, tmp_path: Path) -> None:
    for raw in HOSTILE:
        name = os.fsdecode(raw)
        (folder.folder / f"in {name}").mkdir()
        for path in (folder.folder / name, folder.folder / f"in {name}" / name):
            path.write_bytes(b"content of " + raw)
    record, _ = folder.capture()
    placed = folder.place_all(record.id, tmp_path / "out")
    assert (placed.files, placed.folders) == (2 * len(HOSTILE), len(HOSTILE))
    assert tree(tmp_path / "out") == tree(folder.folder)


def test_special_files_are_left_out_by_name_and_links_are_recorded(folder: Filestore, tmp_path: Path) -> None:
    os.mkfifo(folder.folder / "pipe")
    os.mknod(folder.folder / "socket", 0o140600)
    (folder.folder / "link").symlink_to("/etc/shadow")
    (folder.folder / "dangling").symlink_to("nowhere")
    (folder.folder / "RESTORE-INCOMPLETE").write_text("x")
    (folder.folder / "empty").write_bytes(b"")
    record, _ = folder.capture()
    assert dict(folder.record(record.id).left_out) == {
        b"pipe": "pipe",
        b"socket": "socket",
        b"RESTORE-INCOMPLETE": "mark of a restore that did not finish",
    }
    placed = folder.place_all(record.id, tmp_path / "out")
    assert (placed.files, placed.links) == (1, 2)
    assert str((tmp_path / "out/link").readlink()) == "/etc/shadow"
    assert (tmp_path / "out/empty").read_bytes() == b""


def test_a_link_between_documents_is_left_out(filestore: Filestore) -> None:
    name = filestore.add(b"x")
    (filestore.folder / name).unlink()
    (filestore.folder / name).symlink_to("/etc/shadow")
    record, _ = filestore.capture()
    assert (record.files, record.documents.left_out) == (0, 1)


def test_set_user_id_is_dropped_and_other_modes_are_kept(folder: Filestore, tmp_path: Path) -> None:
    for name, mode in (("suid", 0o4755), ("private", 0o600), ("readable", 0o644)):
        (folder.folder / name).write_bytes(b"x")
        (folder.folder / name).chmod(mode)
    (folder.folder / "closed").mkdir()
    (folder.folder / "closed/f").write_bytes(b"y")
    (folder.folder / "closed").chmod(0o550)
    record, _ = folder.capture()
    folder.place_all(record.id, tmp_path / "out")
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "out").iterdir()}
    assert modes == {"suid": 0o755, "private": 0o600, "readable": 0o644, "closed": 0o550}


def test_holes_are_neither_read_nor_stored_nor_filled(folder: Filestore, tmp_path: Path) -> None:
    with (folder.folder / "sparse").open("wb") as stream:
        stream.truncate(64 << 30)
        stream.seek(32 << 30)
        stream.write(b"in the middle")
    began = time.monotonic()
    record, _ = folder.capture()
    folder.place_all(record.id, tmp_path / "out")
    assert time.monotonic() - began < 30, "64 GiB cannot be read in this time"
    assert record.stored_bytes < 1 << 20
    facts = (tmp_path / "out/sparse").stat()
    assert facts.st_size == 64 << 30
    assert facts.st_blocks * 512 < 64 << 20
    with (tmp_path / "out/sparse").open("rb") as stream:
        stream.seek(32 << 30)
        assert stream.read(13) == b"in the middle"


def test_a_large_file_that_did_not_change_is_taken_over_with_its_chunks(folder: Filestore, tmp_path: Path) -> None:
    with (folder.folder / "large").open("wb") as stream:  # more chunks than an entry holds itself
        stream.write(noise(1 << 20))
        stream.truncate(300 << 20)
        stream.seek(280 << 20)
        stream.write(b"tail")
    settle(folder.folder)
    folder.capture()
    record, captured = folder.capture()
    assert captured.reused_files == 1
    folder.place_all(record.id, tmp_path / "out")
    with (tmp_path / "out/large").open("rb") as stream:
        assert stream.read(1 << 20) == noise(1 << 20)
        stream.seek(280 << 20)
        assert stream.read(5) == b"tail\0"


def test_the_same_name_and_size_are_never_enough_in_a_plain_folder(folder: Filestore) -> None:
    assert folder.kind is FilesKind.DIRECTORY
    (folder.folder / "f").write_bytes(b"before")
    settle(folder.folder)
    folder.capture()
    times = (folder.folder / "f").stat()
    (folder.folder / "f").write_bytes(b"after!")
    os.utime(folder.folder / "f", ns=(times.st_atime_ns, times.st_mtime_ns))
    _, captured = folder.capture()
    assert captured.read_bytes == 6
