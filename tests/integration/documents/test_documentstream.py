"""Documents are in the repository seconds after their commit, and nothing is promised that is not there."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drservice.clock import SystemClock
from drservice.errors import BusyError, StoreUnreachableError
from drservice.model.wal import Lsn
from drservice.operations import documentstream, documentstreamfolders
from drservice.operations.documentstate import DocumentPhase, is_alive, read_state
from drservice.operations.documentstreamnames import Known, journal_of, read_known
from drservice.repository import documentsets
from drservice.repository.descent import open_below
from drservice.repository.keys import Identities
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.documentworlds import TABLE, DocumentWorld
from tests.doubles.filestores import name_of
from tests.doubles.repositories import noise
from tests.doubles.stores import SlowStore


@pytest.fixture(scope="module")
def cluster(template_cache: Path) -> Iterator[Cluster]:
    maker = ClusterMaker(cache=template_cache)
    made = maker.make(wal_segment_mb=1)
    made.start()
    yield made
    maker.close()


@pytest.fixture
def world(cluster: Cluster, tmp_path: Path) -> DocumentWorld:
    return DocumentWorld.create(tmp_path, cluster, database="odoo")


def test_a_document_is_stored_and_the_position_proved(world: DocumentWorld) -> None:
    first = world.upload(b"there before")
    with world.capture() as running:
        running.wait_stored(1)
        second = world.upload(b"an invoice")
        running.wait_stored(2)
        running.wait_whole()
        assert running.state.state is DocumentPhase.STREAMING
        assert is_alive(world.filestore.site.state_dir, running.state.service, running.state.component)
    assert world.stored() == {first: b"there before", second: b"an invoice"}
    sets = world.sets()
    assert sets[-1].is_whole
    assert [item.previous for item in sets] == [None, *(item.id for item in sets[:-1])]
    state = read_state(world.filestore.site.state_dir, running.state.service, running.state.component)
    assert state == running.state
    assert (state.pending, state.stored, state.missing, state.corrupt) == (0, 2, 0, 0)


def test_an_idle_capture_proves_its_position_once_in_an_idle_interval(world: DocumentWorld) -> None:
    world.upload(b"one")
    with world.capture(settings=replace(world.settings, idle_interval=timedelta(seconds=60))) as running:
        running.wait(lambda s: s.state is DocumentPhase.STREAMING, "streaming")
        before = len(running.states)
        running.wait(lambda _: len(running.states) > before + 5, "rounds")
        assert [(item.documents, item.is_whole) for item in world.sets()] == [(1, True)]


def test_what_a_pass_has_is_not_stored_again_by_a_host_without_identity(world: DocumentWorld) -> None:
    walked = [world.upload(noise(2000, seed=number)) for number in range(5)]
    world.filestore.capture()
    world.identities = Identities.load([])
    with world.capture() as running:
        new = world.upload(b"new")
        running.wait_stored(1)
        running.wait_whole()
    with world.capture() as running:  # a second run knows the first one's
        running.wait_whole()
        assert running.state.stored == 0
    assert set(world.stored()) == {new}
    assert walked


def test_a_host_that_remembers_nothing_stores_again_and_never_claims_what_it_does_not_know(
    world: DocumentWorld,
) -> None:
    names = {world.upload(noise(100, seed=number)) for number in range(3)}
    world.identities = Identities.load([])
    with world.capture() as running:
        running.wait_whole()
    path = world.filestore.site.state_dir / "documents" / "erp.documents.names"
    spoilt = bytearray(path.read_bytes())
    spoilt[60] = ord("0") if spoilt[60] != ord("0") else ord("1")
    path.write_bytes(spoilt)
    with world.capture() as running:
        running.wait_whole()
        assert running.state.stored == 3
    assert set(world.stored()) == names


def test_a_set_that_is_gone_from_the_store_is_not_relied_on(world: DocumentWorld) -> None:
    name = world.upload(b"stored, and deleted there")
    with world.capture() as running:
        running.wait_whole()
    for item in world.sets():
        world.filestore.site.store.delete(item.key)
    with world.capture() as running:
        running.wait_whole()
    assert set(world.stored()) == {name}


def test_a_new_pass_takes_the_place_of_older_sets(world: DocumentWorld) -> None:
    old = world.upload(b"in a set only, deleted before the pass")
    with world.capture() as running:
        running.wait_whole()
        (world.filestore.folder / old).unlink()
        world.sql("delete from ir_attachment")
        world.upload(b"another")
        running.wait_stored(2)
        world.filestore.capture()
        running.wait_whole()
        world.upload(b"in a set only, deleted before the pass")  # retention may let go the first set
        running.wait_stored(3)
    assert sum(old in {e.name for e in world.archive.index(item).entries} for item in world.sets()) == 2


def test_a_row_that_takes_another_document_is_seen_however_old_it_is(world: DocumentWorld) -> None:
    world.upload(b"the first")
    settings = replace(world.settings, interval=timedelta(milliseconds=50))
    with world.capture(settings=settings) as running:
        running.wait_whole()
        hidden = name_of(b"written where nobody lists")
        world.sql("update ir_attachment set store_fname = %s", (hidden,))
        running.wait(lambda s: s.missing == 1, "named")
    assert world.lost() == ({hidden}, set())


def test_a_row_without_a_file_is_named_and_what_comes_back_is_stored(world: DocumentWorld) -> None:
    world.filestore.add(b"another")
    name = name_of(b"lost, and found")
    world.row(name)
    with world.capture() as running:
        running.wait(lambda s: s.missing == 1 and s.durable_server_time is not None, "named")
        assert world.lost() == ({name}, set())
        naming = [name in world.archive.index(item).missing for item in world.sets()].index(True)
        assert not any(item.is_whole for item in world.sets()[:naming]), "nothing is claimed before it is named"
        world.filestore.add(b"lost, and found")
        running.wait(lambda s: s.missing == 0 and s.stored == 2, "stored")
    assert name in world.stored()


def test_a_file_that_is_being_written_is_stored_when_it_is_whole(world: DocumentWorld) -> None:
    world.upload(b"first")
    content = noise(50_000)
    name = name_of(content)
    path = world.filestore.folder / name
    path.parent.mkdir(exist_ok=True)
    with world.capture() as running:
        running.wait_whole()
        path.write_bytes(content[:20_000])
        time.sleep(2.4)  # its folder is settled, and not listed any more
        path.write_bytes(content)  # the folder's time stays
        running.wait_stored(2)
        assert running.state.corrupt == 0
    assert world.stored()[name] == content
    assert world.lost() == (set(), set())


def test_a_short_file_that_a_row_refers_to_is_named_corrupt_and_never_stored(world: DocumentWorld) -> None:
    name = name_of(b"the whole content")
    path = world.filestore.folder / name
    path.parent.mkdir()
    path.write_bytes(b"the who")
    world.row(name)
    with world.capture() as running:
        running.wait(lambda s: s.corrupt == 1 and s.durable_server_time is not None, "named")
    assert world.lost() == (set(), {name})
    assert world.stored() == {}


def test_a_big_document_is_cut_over_sets(world: DocumentWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (documentsets, documentstreamfolders):
        monkeypatch.setattr(module, "PART_BYTES", 1000)
    for module in (documentsets, documentstream):
        monkeypatch.setattr(module, "MAX_SET_BYTES", 1500)
    contents = [noise(4321), noise(900, seed=1), noise(700, seed=2)]
    names = [world.upload(content) for content in contents]
    with world.capture() as running:
        running.wait_whole()
        assert running.state.stored == 3
    assert world.stored() == dict(zip(names, contents, strict=True))


def test_what_is_filed_and_deleted_between_two_rounds_is_stored(world: DocumentWorld) -> None:
    """A target in between refers to it, and Odoo leaves the file for its daily collection."""
    world.upload(b"first")
    with world.capture() as running:
        running.wait_whole()
        name = world.filestore.add(b"short-lived")
        world.sql("delete from ir_attachment")
        running.wait_stored(2)
    assert name in world.stored()


def test_old_folders_of_three_digits_hostile_names_and_other_places_disturb_nothing(world: DocumentWorld) -> None:
    content = b"from before Odoo 8"
    digest = name_of(content)[3:]
    old = f"{digest[:3]}/{digest}"
    (world.filestore.folder / digest[:3]).mkdir()
    (world.filestore.folder / old).write_bytes(content)
    other = digest[:2]
    (world.filestore.folder / other).mkdir()
    (world.filestore.folder / other / "../../source/evil\n").write_bytes(b"x")
    (world.filestore.folder / other / ("0" * 40)).mkdir()
    outside = world.filestore.site.base / "outside"
    outside.write_bytes(b"secret")
    linked = name_of(b"secret")
    (world.filestore.folder / linked).parent.mkdir(exist_ok=True)
    (world.filestore.folder / linked).symlink_to(outside)
    pipe = name_of(b"pipe")
    (world.filestore.folder / pipe).parent.mkdir(exist_ok=True)
    os.mkfifo(world.filestore.folder / pipe)
    for name in (old, "s3://bucket/key", "../../../etc/passwd", "aa/'; drop table ir_attachment; --", "a b\x01%s"):
        world.row(name)
    world.sql("insert into ir_attachment (db_datas) values ('inside')")
    with world.capture() as running:
        running.wait_whole()
        assert (running.state.in_database, running.state.not_covered) == (1, 4)
    assert world.stored() == {old: content}
    assert world.lost() == (set(), set())


def test_a_store_that_is_away_loses_nothing_and_is_told(world: DocumentWorld) -> None:
    is_down = threading.Event()

    def answer(operation: str) -> None:
        if is_down.is_set():
            raise StoreUnreachableError(f"{operation}: the network is cut")

    store = SlowStore(world.filestore.site.store, wait=answer)
    with world.capture(store=store) as running:
        running.wait_whole()
        is_down.set()
        names = {world.upload(noise(500, seed=number)) for number in range(3)}
        stalled = running.wait(lambda s: s.state is DocumentPhase.STALLED and s.pending > 0, "told")
        assert stalled.problem
        assert stalled.remedy
        is_down.clear()
        running.wait(lambda s: s.stored == 3 and s.state is DocumentPhase.STREAMING and s.pending == 0, "caught up")
    assert set(world.stored()) == names


def test_a_filestore_that_is_unmounted_loses_nothing(world: DocumentWorld) -> None:
    first = world.upload(b"first")
    folder = world.filestore.folder
    with world.capture() as running:
        running.wait_whole()
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()  # the empty mount point
        gone = name_of(b"filed while it was away")
        world.row(gone)
        running.wait(lambda s: s.state is DocumentPhase.STALLED, "told")
        assert "mounted" in (running.state.remedy or "")
        folder.rmdir()
        running.wait(lambda s: "cannot open" in (s.problem or ""), "told")
        folder.with_name("elsewhere").rename(folder)
        world.filestore.add(b"filed while it was away")
        running.wait(lambda s: s.state is DocumentPhase.STREAMING and s.stored == 2, "caught up")
    assert set(world.stored()) == {first, gone}
    assert world.lost() == (set(), set())


def test_an_empty_folder_at_the_start_is_no_loss_of_every_document(world: DocumentWorld) -> None:
    world.row(name_of(b"on a disk that is not mounted"))
    with world.capture() as running:
        told = running.wait(lambda s: s.state is DocumentPhase.STALLED, "told")
        assert "rows refer to some" in (told.problem or "")
    assert world.sets() == ()


def test_a_folder_that_is_exchanged_is_listed_as_a_whole(world: DocumentWorld, tmp_path: Path) -> None:
    world.upload(b"first")
    folder = world.filestore.folder
    with world.capture() as running:
        running.wait_whole()
        time.sleep(2.3)  # every folder is settled
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)  # times of folders are copied, too
        hidden = copy / name_of(b"first")[:2]
        stamp = hidden.stat()
        extra = name_of(b"first")[:2]
        content = next(c for c in (b"%d" % n for n in range(10_000)) if name_of(c)[:2] == extra)
        (copy / name_of(content)).write_bytes(content)
        os.utime(hidden, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        folder.rename(tmp_path / "old")
        copy.rename(folder)
        running.wait_stored(2)
    assert world.stored()[name_of(content)] == content


def test_a_database_that_is_renamed_is_told_and_nobody_is_kept_from_renaming_it(world: DocumentWorld) -> None:
    with world.capture() as running:
        running.wait_whole()
        world.cluster.sql(f"alter database {world.database} rename to {world.database}_old")  # nobody is connected
        told = running.wait(lambda s: s.state is DocumentPhase.STALLED, "told")
        assert "does not exist" in (told.problem or "")
        world.cluster.sql(f"alter database {world.database}_old rename to {world.database}")
        running.wait(lambda s: s.state is DocumentPhase.STREAMING, "back")


def test_two_databases_in_one_cluster_are_two_filestores(world: DocumentWorld, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = DocumentWorld.create(tmp_path / "other", world.cluster, database=f"{world.database}_b")
    one, two = world.upload(b"one"), other.upload(b"two")
    with world.capture() as first, other.capture() as second:
        first.wait_whole()
        second.wait_whole()
    assert (set(world.stored()), set(other.stored())) == ({one}, {two})


def test_a_second_capture_of_a_component_is_refused(world: DocumentWorld) -> None:
    with world.capture() as running:
        running.wait_whole()
        with pytest.raises(BusyError, match="already"), world.capture():
            pass


def test_nobody_in_the_database_waits_for_a_look(world: DocumentWorld) -> None:
    """Odoo's collection locks the table in share mode, its upgrade exclusively: neither waits for us."""
    world.upload(b"one")
    with world.capture() as running:
        running.wait_whole()
        with world.cluster.connect(world.database) as connection, connection.transaction():
            connection.execute("set local lock_timeout = '1s'")
            connection.execute("lock ir_attachment in share mode")
            running.wait_whole()  # reading goes on beside it
        with world.cluster.connect(world.database) as connection, connection.transaction():
            connection.execute("set local lock_timeout = '1s'")
            connection.execute("lock ir_attachment in access exclusive mode")
        world.upload(b"two")
        running.wait_stored(2)


def test_what_is_committed_before_the_end_is_stored_by_the_last_round(world: DocumentWorld) -> None:
    settings = replace(world.settings, interval=timedelta(seconds=60))
    with world.capture(settings=settings) as running:
        running.wait(lambda s: s.state is DocumentPhase.STREAMING, "streaming")
        name = world.upload(b"just before the end")
    assert set(world.stored()) == {name}


def test_a_journal_keeps_only_the_sets_it_is_told_to(world: DocumentWorld) -> None:
    journal = journal_of(world.filestore.site.state_dir, world.filestore.scope)
    name = name_of(b"x")
    journal.add("ONE", [name])
    journal.add("TWO", [])
    journal.keep({"ONE"})
    assert list(journal.read()) == [("ONE", [name])]


def test_a_file_that_was_mended_while_the_store_was_away_is_read_again(
    world: DocumentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its row nor its folder changes any more: only what was in doubt before says that it is to be read."""
    monkeypatch.setattr(documentstreamfolders, "_SETTLED_SECONDS", 0.2)
    is_down = threading.Event()

    def answer(operation: str) -> None:
        if is_down.is_set():
            raise StoreUnreachableError(f"{operation}: the network is cut")

    content = b"the whole content"
    name = name_of(content)
    path = world.filestore.folder / name
    path.parent.mkdir()
    path.write_bytes(content[:7])
    world.row(name)
    with world.capture(store=SlowStore(world.filestore.site.store, wait=answer)) as running:
        running.wait(lambda s: s.corrupt == 1 and s.durable_server_time is not None, "named")
        time.sleep(0.5)  # its folder is settled
        is_down.set()
        path.write_bytes(content)
        running.wait(lambda s: s.state is DocumentPhase.STALLED and s.pending == 1, "told")
        is_down.clear()
        running.wait(lambda s: s.stored == 1 and s.corrupt == 0, "stored")
    assert world.stored() == {name: content}


def test_another_database_under_the_same_name_is_compared_anew(world: DocumentWorld, tmp_path: Path) -> None:
    """Its rows are older than the last look, by every transaction's number."""
    (tmp_path / "other").mkdir()
    other = DocumentWorld.create(tmp_path / "other", world.cluster, database=f"{world.database}_staged")
    lost = name_of(b"stands in the other database's rows alone")
    other.row(lost)
    world.upload(b"first")
    with world.capture() as running:
        running.wait_whole()
        world.cluster.sql(f"alter database {world.database} rename to {world.database}_old")
        world.cluster.sql(f"alter database {other.database} rename to {world.database}")
        running.wait(lambda s: s.missing == 1, "named")
    world.cluster.sql(f"drop database {world.database}")
    world.cluster.sql(f"alter database {world.database}_old rename to {world.database}")
    assert world.lost() == ({lost}, set())


def test_nothing_is_proven_while_a_folder_cannot_be_listed(
    world: DocumentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is being committed may refer to what lies there."""
    is_closed = threading.Event()
    is_closed.set()

    def opened(root: int, path: bytes) -> AbstractContextManager[int]:
        if path == b"ff" and is_closed.is_set():
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_below(root, path)

    monkeypatch.setattr(documentstreamfolders, "open_below", opened)
    world.upload(b"first")
    (world.filestore.folder / "ff").mkdir()
    with world.capture() as running:
        running.wait(lambda s: s.state is DocumentPhase.STALLED and s.stored == 1, "told")
        before = len(running.states)
        running.wait(lambda _: len(running.states) > before + 5, "rounds")
        assert running.state.durable_server_time is None
        assert not any(item.is_whole for item in world.sets())
        is_closed.clear()
        running.wait_whole()


def test_the_last_round_proves_the_position_though_rows_only_went(world: DocumentWorld) -> None:
    world.upload(b"one")
    with world.capture(settings=replace(world.settings, idle_interval=timedelta(seconds=60))) as running:
        running.wait(lambda s: s.state is DocumentPhase.STREAMING, "streaming")
        world.sql("delete from ir_attachment")
        deleted = Lsn.parse(str(world.cluster.value("select pg_current_wal_flush_lsn()")))
        running.wait_whole()
    assert [item.is_whole and item.position.lsn >= deleted for item in world.sets()] == [False, True]


def test_a_machine_that_slept_asks_again_what_is_stored(world: DocumentWorld) -> None:
    """Retention may have let go meanwhile what it relies on; its steady clock stood still."""
    clock = _SleepyClock()
    world.filestore.site = replace(world.filestore.site, clock=clock)
    name = world.upload(b"stored, and let go while the machine slept")
    with world.capture() as running:
        running.wait_whole()
        for item in world.sets():
            world.filestore.site.store.delete(item.key)
        clock.slept = timedelta(hours=7)
        running.wait_stored(2)
    assert set(world.stored()) == {name}


def test_a_database_without_attachments_proves_nothing_and_is_told(world: DocumentWorld) -> None:
    """It may be the wrong one: nobody would miss a document in it."""
    world.filestore.add(b"an invoice")
    world.sql("drop table ir_attachment")
    with world.capture() as running:
        told = running.wait(lambda s: s.state is DocumentPhase.STALLED and s.stored == 1, "told")
        assert "no table ir_attachment" in (told.problem or "")
        assert not any(item.is_whole for item in world.sets())
        world.sql(TABLE)
        running.wait(lambda s: s.state is DocumentPhase.STREAMING, "streaming")


def test_a_round_that_lasts_too_long_asks_again_what_is_stored(
    world: DocumentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention lets go what no writer may rely on after a day; a first capture over a slow line takes longer."""
    monkeypatch.setattr(documentstream, "_AFRESH_SECONDS", 0.4)
    monkeypatch.setattr(documentstream, "MAX_DOCUMENTS", 1)
    asked: list[int] = []

    def known(*arguments: Any) -> Known:
        asked.append(len(world.archive.stored()))
        return read_known(*arguments)

    monkeypatch.setattr(documentstream, "read_known", known)
    names = {world.upload(noise(100, seed=number)) for number in range(8)}
    store = SlowStore(world.filestore.site.store, wait=lambda what: time.sleep(0.15 * (what == "create")))
    with world.capture(store=store) as running:
        running.wait_stored(8)
    assert any(0 < stored < 8 for stored in asked)
    assert set(world.stored()) == names
    assert sum(item.documents for item in world.sets()) == 8, "no document is stored twice"


class _SleepyClock(SystemClock):
    """Its time of day goes on while the machine sleeps."""

    slept = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.slept
