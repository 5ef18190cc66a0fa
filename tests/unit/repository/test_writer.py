"""Writing snapshots: what is stored, what is re-used, and that nothing is visible before it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.clock import Clock
from drservice.components.postgres.pages import PageChecker
from drservice.errors import (
    BusyError,
    CaptureError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    StoreUnreachableError,
)
from drservice.model.snapshot import SnapshotRecord, SnapshotState
from drservice.objectstore.interface import ObjectInfo
from drservice.objectstore.memory import MemoryStore
from drservice.repository import changes
from drservice.repository.capture import PageCheck, require_straight
from drservice.repository.changes import ChangeRule
from drservice.repository.holds import condemn, condemned_packs
from drservice.repository.intake import SourceFile
from drservice.repository.keys import Identities
from drservice.repository.repository import open_repository
from tests.doubles.clock import ManualClock
from tests.doubles.repositories import CHUNK, Heard, Site, content_of, new_host, noise, trusted
from tests.doubles.stores import Fault, FaultyStore, MissingStore, RecordingStore, StaleListStore, When

PACKS, NODES = "s/erp/database/packs/", "s/erp/database/nodes/"


@pytest.fixture
def files(site: Site) -> dict[str, bytes]:
    made = {
        "PG_VERSION": b"15\n",
        "base/1/1259": noise(3 * CHUNK + 100),
        "base/1/empty": b"",
        "base/1/zeros": bytes(2 * CHUNK + 7),
        "base/1/text": b"order 4711\n" * 20_000,
    }
    site.write(made)
    return made


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as settled at once: their ctime cannot be set back."""
    monkeypatch.setattr(changes, "SETTLED_NS", -(10**9))


def new_packs(site: Site, act: Callable[[], SnapshotRecord]) -> tuple[SnapshotRecord, int, int]:
    """Return the snapshot and how many data and node packs it added."""
    before = set(site.keys())
    record = act()
    added = set(site.keys()) - before
    return record, sum(key.startswith(PACKS) for key in added), sum(key.startswith(NODES) for key in added)


def table(site: Site, record: SnapshotRecord) -> set[str]:
    return {use.name for use in site.repository().open_snapshot(site.scope, record.id).packs.data}


# --- what is stored -----------------------------------------------------------------------------------------


def test_a_snapshot_comes_back_byte_for_byte(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    record = site.capture()
    assert site.restore(record.id, tmp_path / "out") == files
    assert (record.files, record.source_bytes) == (5, sum(map(len, files.values())))
    assert record.read_bytes == record.source_bytes


def test_zeros_are_not_stored_and_text_is_compressed(site: Site, files: dict[str, bytes]) -> None:
    stored = sum(site.sizes(PACKS).values()) if site.capture() else 0
    assert stored < len(files["base/1/1259"]) + 20_000


def test_an_unchanged_source_stores_nothing_but_nodes(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    record, data, nodes = new_packs(site, site.capture)
    assert (data, nodes) == (0, 1)
    assert site.restore(record.id, tmp_path / "out") == files


@pytest.mark.usefixtures("settled")
def test_files_taken_over_unread_store_nothing_at_all(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    record, data, nodes = new_packs(site, lambda: site.capture(rule=ChangeRule.IDENTITY))
    assert (data, nodes, record.read_bytes, record.stored_bytes) == (0, 0, 0, 0)
    assert site.restore(record.id, tmp_path / "out") == files


@pytest.mark.usefixtures("settled")
def test_a_file_that_changed_is_read_although_its_size_did_not(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    site.write({"PG_VERSION": b"16\n"})
    record = site.capture(rule=ChangeRule.IDENTITY)
    assert record.read_bytes == 3
    assert record.source_bytes == sum(map(len, files.values()))


@pytest.mark.usefixtures("settled")
def test_with_the_rule_read_all_nothing_is_taken_over(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    assert site.capture(rule=ChangeRule.READ_ALL).read_bytes == sum(map(len, files.values()))


@pytest.mark.usefixtures("settled")
def test_within_30_days_every_file_taken_over_is_read_again_once(site: Site) -> None:
    site.write({f"f{number}": b"x" for number in range(40)})
    site.clock = ManualClock(datetime.now(UTC) + timedelta(seconds=5))
    site.store = site.open_store()
    site.capture()
    reads = 0
    for _ in range(30):
        site.clock.pass_seconds(86_400)
        reads += site.capture(rule=ChangeRule.IDENTITY).read_bytes
    # What is read again gets the machine's own time of reading, which stands still here: it may come up again.
    assert reads >= 40


def test_one_changed_chunk_stores_one_chunk(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    changed = files["base/1/1259"][:CHUNK] + noise(CHUNK, 9) + files["base/1/1259"][2 * CHUNK :]
    site.write({"base/1/1259": changed})
    record, data, _ = new_packs(site, site.capture)
    assert data == 1
    assert CHUNK < record.stored_bytes < CHUNK + 2500
    assert site.restore(record.id, tmp_path / "out") == {**files, "base/1/1259": changed}


def test_a_file_that_grew_or_shrank_stores_what_is_new(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    grown = files["base/1/1259"][: 3 * CHUNK] + noise(2 * CHUNK, 5)
    site.write({"base/1/1259": grown, "base/1/text": b"short"})
    record = site.capture()
    assert record.stored_bytes < 2 * CHUNK + 3000
    assert site.restore(record.id, tmp_path / "out") == {**files, "base/1/1259": grown, "base/1/text": b"short"}


@pytest.mark.parametrize("chunks", [63, 64, 65, 1023, 1024, 1025, 2049])
def test_files_on_both_sides_of_every_limit_come_back(site: Site, tmp_path: Path, chunks: int) -> None:
    site.chunk_bytes = 512
    content = noise(chunks * 512 - 5)
    site.write({"f": content})
    first = site.capture()
    assert site.restore(first.id, tmp_path / "one") == {"f": content}
    changed = content[:1000] + noise(300, 3) + content[1300:]
    site.write({"f": changed})
    second = site.capture()
    assert second.stored_bytes < 2 * 512 + chunks * 60 + 2000
    assert site.restore(second.id, tmp_path / "two") == {"f": changed}
    assert site.restore(first.id, tmp_path / "three") == {"f": content}


def test_the_order_of_a_capture_is_hold_key_packs_nodes_snapshot(site: Site, files: dict[str, bytes]) -> None:
    store = RecordingStore(site.store)
    site.capture(store=store)
    places = [
        key.split("/")[0] if key[0] in "hk" else key.split("/")[3] for name, key in store.calls if name == "create"
    ]
    assert places == ["hold", "keys", "packs", "nodes", "snapshots"]
    assert files


def test_the_check_of_packs_is_dated_before_it_is_made(site: Site, files: dict[str, bytes]) -> None:
    store = RecordingStore(site.store)
    site.capture(store=store)
    last_look = max(number for number, call in enumerate(store.calls) if call == ("list", NODES))
    dated = [number for number, call in enumerate(store.calls) if call[0] == "server_time"]
    assert dated[-1] < min(
        number for number, call in enumerate(store.calls) if call == ("list", PACKS) and number > dated[-1]
    )
    assert dated[-1] < last_look
    assert files


def test_each_snapshot_names_the_one_before(site: Site, files: dict[str, bytes]) -> None:
    first, second, third = site.capture(), site.capture(), site.capture()
    assert (first.previous, second.previous, third.previous) == (None, first.id, second.id)
    assert files


def test_damaged_pages_make_a_snapshot_degraded(site: Site, files: dict[str, bytes]) -> None:
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer, bad_pages=[(b"base/1/1259", 7)])
    assert record.state is SnapshotState.DEGRADED
    reader = site.repository().reader(site.scope, record.id)
    assert reader.secret.bad_pages == ((b"base/1/1259", 7),)
    assert files


@pytest.mark.usefixtures("settled")
def test_a_damaged_file_that_does_not_change_is_read_and_reported_each_time(site: Site) -> None:
    site.write({"base/5/16385": b"\x07" * 8192 * 3, "base/5/16386": bytes(8192)})
    check = PageChecker(first_block=0, block_bytes=8192)
    found = []
    for rule in (ChangeRule.READ_ALL, ChangeRule.IDENTITY, ChangeRule.IDENTITY):
        with site.writing() as writer:
            sources = [replace(source, check=check) for source in site.files()]
            writer.capture_files(sources, rule=rule, progress=Heard())
            bad = writer.bad_pages()
            state = site.commit(writer, bad_pages=bad).state
            found.append((state, [offset for _, offset in bad], writer.reused_files))
    offsets = [0, 8192, 16384]
    assert found == [(SnapshotState.DEGRADED, offsets, reused) for reused in (0, 1, 1)]


# --- a source that moves ------------------------------------------------------------------------------------


def with_check(source: SourceFile, check: PageCheck) -> SourceFile:
    return SourceFile(
        path=source.path,
        absolute=source.absolute,
        mode=source.mode,
        size=source.size,
        chunk_bytes=source.chunk_bytes,
        identity=source.identity,
        check=check,
    )


def test_a_file_that_vanished_since_it_was_listed_is_left_out_and_counted(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    with site.writing() as writer:
        listed = site.files()
        (site.source / "base/1/text").unlink()
        writer.capture_files(listed, rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
        assert writer.vanished == 1
    del files["base/1/text"]
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_folder_that_was_exchanged_for_a_link_since_it_was_listed_is_not_read(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    assert "base/1/text" in files
    with site.writing() as writer:
        listed = site.files()
        (site.source / "base/1").rename(tmp_path / "secrets")
        (site.source / "base/1").symlink_to(tmp_path / "secrets")
        with pytest.raises(CaptureError, match="a folder on the way is a link now"):
            writer.capture_files(listed, rule=ChangeRule.READ_ALL, progress=Heard())


def test_a_file_that_is_renamed_or_deleted_while_it_is_open_still_lies_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "5"
    folder.mkdir(parents=True)
    path = folder / "1"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        require_straight(file.fileno(), str(path))
        path.rename(folder / "other")
        require_straight(file.fileno(), str(path))
        shutil.rmtree(folder)
        require_straight(file.fileno(), str(path))


def test_a_file_that_was_cut_off_since_it_was_listed_has_what_was_there(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    with site.writing() as writer:
        listed = site.files()
        os.truncate(site.source / "base/1/1259", CHUNK + 10)
        writer.capture_files(listed, rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
    expected = {**files, "base/1/1259": files["base/1/1259"][: CHUNK + 10]}
    assert site.restore(record.id, tmp_path / "out") == expected


@pytest.mark.parametrize("left", [0, 512, 1024 * 512, 1500 * 512, 2048 * 512, 2049 * 512 - 1])
def test_a_large_file_that_was_cut_off_has_what_was_there(site: Site, tmp_path: Path, left: int) -> None:
    site.chunk_bytes = 512
    content = noise(3000 * 512)
    site.write({"f": content})
    with site.writing() as writer:
        listed = site.files()
        os.truncate(site.source / "f", left)
        writer.capture_files(listed, rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == {"f": content[:left]}


def test_what_follows_a_short_part_is_never_moved_up(site: Site, tmp_path: Path) -> None:
    """The file is cut off while its first part is read and has grown again when the second is."""
    site.chunk_bytes = 512
    content = noise(2048 * 512)
    site.write({"f": content})
    path = site.source / "f"

    def grow(descriptor: int, offset: int, data: memoryview) -> list[int]:
        if offset == 0 and descriptor and data:
            path.write_bytes(content)
        return []

    with site.writing() as writer:
        [source] = site.files()
        os.truncate(path, 512 * 512)
        writer.capture_files([with_check(source, grow)], rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
    restored = site.restore(record.id, tmp_path / "out")["f"]
    assert content.startswith(restored)
    assert len(restored) == 512 * 512


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_a_path_that_is_no_regular_file_any_more_fails_the_run(site: Site, files: dict[str, bytes], kind: str) -> None:
    with site.writing() as writer:
        listed = site.files()
        path = site.source / "PG_VERSION"
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        else:
            path.mkdir()
        with pytest.raises(CaptureError, match="PG_VERSION"):
            writer.capture_files(listed, rule=ChangeRule.READ_ALL, progress=Heard())
    assert site.repository().snapshots(site.scope).records == ()
    assert files


# --- packs that vanish --------------------------------------------------------------------------------------


def data_pack_of(site: Site) -> str:
    return site.keys(PACKS)[0]


def test_chunks_of_a_pack_that_is_gone_are_stored_again(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    site.capture()
    site.store.delete(data_pack_of(site))
    record = site.capture()
    assert site.restore(record.id, tmp_path / "out") == files


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("prefix", [PACKS, NODES])
def test_files_whose_packs_are_gone_are_not_taken_over(
    site: Site, files: dict[str, bytes], tmp_path: Path, prefix: str
) -> None:
    site.chunk_bytes = 512
    first = site.capture()
    site.store.delete(large_files_pack(site, first, prefix))
    record = site.capture(rule=ChangeRule.IDENTITY)
    assert site.restore(record.id, tmp_path / "out") == files


@pytest.mark.parametrize("prefix", [PACKS, NODES])
def test_chunks_of_a_condemned_pack_are_stored_again(
    site: Site, files: dict[str, bytes], tmp_path: Path, prefix: str
) -> None:
    site.chunk_bytes = 512
    first = site.capture()
    bad = large_files_pack(site, first, prefix)
    condemn(site.store, site.host, site.scope, packs=[bad], reason="damaged", now=site.clock.now())
    record = site.capture(rule=ChangeRule.IDENTITY)
    site.store.delete(bad)
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_list_of_condemned_packs_that_cannot_be_believed_fails_the_run(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    key = condemn(site.store, new_host("stranger"), site.scope, packs=[], reason="x", now=site.clock.now())
    with pytest.raises(KeyProblemError, match=key):
        site.capture()
    assert files


@pytest.mark.parametrize("packs", [["not a key"], ["s/erp/database/packs/zz/xx"], ["s/x/y/snapshots/aa/" + "a" * 64]])
def test_a_signed_list_of_something_else_is_refused(site: Site, packs: list[str]) -> None:
    condemn(site.store, site.host, site.scope, packs=packs, reason="x", now=site.clock.now())
    with pytest.raises(FormatError, match="no list of pack keys"):
        condemned_packs(site.store, trust=site.repository().trust, scope=site.scope)


def test_lists_of_condemned_packs_add_up(site: Site) -> None:
    for letter in "ab":
        name = f"s/erp/database/packs/{letter * 2}/{letter * 64}"
        condemn(site.store, site.host, site.scope, packs=[name], reason="x", now=site.clock.now())
    assert len(condemned_packs(site.store, trust=site.repository().trust, scope=site.scope)) == 2
    assert site.keys("gc/") == ["gc/00000001/condemned", "gc/00000002/condemned"]


def large_files_pack(site: Site, record: SnapshotRecord, prefix: str) -> str:
    """Return the key of the pack that holds chunks, or the leaf, of the one large file."""
    reader = site.repository().reader(site.scope, record.id)
    [entry] = [entry for entry in reader.entries() if entry.path == b"base/1/1259"]
    [table] = reader.tables(entry)
    name = (table.packs[0] if prefix == PACKS else entry.leaves[0].pack).hex()
    return f"{prefix}{name[:2]}/{name}"


@pytest.mark.parametrize("prefix", [PACKS, NODES])
def test_a_pack_that_vanishes_while_the_run_reads_is_noticed_in_time_and_read_again(
    site: Site, files: dict[str, bytes], tmp_path: Path, prefix: str
) -> None:
    site.chunk_bytes = 512
    first = site.capture()
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        site.store.delete(large_files_pack(site, first, prefix))
        lost = writer.recheck()
        assert b"base/1/1259" in lost
        writer.capture_files(
            [source for source in site.files() if source.path in lost], rule=ChangeRule.READ_ALL, progress=Heard()
        )
        assert writer.recheck() == set()
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == files


@pytest.mark.parametrize("prefix", [PACKS, NODES])
def test_a_pack_that_vanishes_after_the_last_look_fails_the_run_and_the_next_one_heals_it(
    site: Site, files: dict[str, bytes], tmp_path: Path, prefix: str
) -> None:
    site.chunk_bytes = 512
    first = site.capture()
    before = site.keys("s/erp/database/snapshots/")
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        assert writer.recheck() == set()
        site.store.delete(large_files_pack(site, first, prefix))
        with pytest.raises(CaptureError, match="vanished from the store while it ran"):
            site.commit(writer)
    assert site.keys("s/erp/database/snapshots/") == before
    record = site.capture()
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_pack_condemned_after_the_last_look_fails_the_run(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        condemn(site.store, site.host, site.scope, packs=[data_pack_of(site)], reason="x", now=site.clock.now())
        with pytest.raises(CaptureError, match="vanished"):
            site.commit(writer)
    assert files


def test_a_stale_listing_costs_uploads_and_never_a_snapshot(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    stale = StaleListStore(site.store)
    stale.freeze()
    with pytest.raises((CaptureError, MissingObjectError)):
        site.capture(store=stale)
    assert stale.hidden
    stale.thaw()
    record = site.capture(store=stale)
    assert site.restore(record.id, tmp_path / "out") == files


# --- failures -----------------------------------------------------------------------------------------------


def capture_calls(site: Site) -> int:
    store = FaultyStore(site.store, Fault(at=10_000))
    site.capture(store=store)
    return store.calls


@pytest.mark.parametrize("when", list(When))
def test_whichever_call_to_the_store_fails_the_run_fails_and_the_next_is_whole(tmp_path: Path, when: When) -> None:
    probe = Site.create(tmp_path / "probe")
    probe.write({"f": noise(CHUNK), "g": noise(CHUNK, 1)})
    calls = capture_calls(probe)
    failed = 0
    for number in range(1, calls + 1):
        site = Site.create(tmp_path / f"{number}")
        site.write({"f": noise(CHUNK), "g": noise(CHUNK, 1)})
        with FaultyStore(site.store, Fault(at=number, when=when)) as store:
            try:
                site.capture(store=store)
            except StoreUnreachableError:
                failed += 1
        committed = site.repository().snapshots(site.scope)
        assert not committed.unreadable
        # Only a reply that was lost, or cut off behind what was asked for, can leave a snapshot.
        assert committed.records == () or when is When.AFTER
        record = site.capture()
        assert site.restore(record.id, tmp_path / f"out{number}") == content_of(site.source)
    assert failed == calls if when is When.BEFORE else failed > calls // 2 > 5


def test_a_run_that_failed_leaves_its_packs_to_the_next(site: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    def fail_at_snapshot(store: MemoryStore) -> FaultyStore:
        return FaultyStore(store, Fault(at=5, operations={"create"}))

    assert isinstance(site.store, MemoryStore)
    with fail_at_snapshot(site.store) as store, pytest.raises(StoreUnreachableError):
        site.capture(store=store)
    record, data, _ = new_packs(site, site.capture)
    assert data == 0
    assert record.stored_bytes < 3000
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_snapshot_whose_data_key_goes_after_the_last_look_is_not_committed(
    site: Site, files: dict[str, bytes]
) -> None:
    site.capture()
    old = set(site.keys("keys/"))
    lost: set[str] = set()
    gone = MissingStore(site.store, chooses=lambda key: key in lost)
    with site.writing(gone) as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        assert writer.recheck() == set()
        lost |= old
        with pytest.raises(MissingObjectError, match="no stored wrapping opens it for every recipient"):
            site.commit(writer)
        assert gone.withheld
    assert files


def test_a_second_writer_on_this_host_is_told_to_wait(site: Site, files: dict[str, bytes]) -> None:
    with site.writing() as writer:
        with pytest.raises(BusyError, match="erp-database is running on this host"):
            site.capture()
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        site.commit(writer)
    site.capture()
    assert files


def test_a_host_without_a_signing_key_cannot_write(site: Site) -> None:
    repository = open_repository(
        site.store,
        open_store=site.open_store,
        signers=[trusted(site.host)],
        host_key=None,
        identities=Identities(),
        recipients=(site.recipient,),
        clock=site.clock,
    )
    with pytest.raises(KeyProblemError, match="no signing key"):
        repository.writer(site.scope, state_dir=site.state_dir, workers=1, level=1)


def test_an_unannounced_part_is_noticed(site: Site, files: dict[str, bytes]) -> None:
    """A stream that ends inside a file leaves no snapshot behind."""
    with site.writing() as writer:
        source = site.files()[0]
        with pytest.raises(CaptureError, match="ended inside"), writer.stream() as stream:
            stream.file(source, iter([memoryview(b"")]))
    assert site.repository().snapshots(site.scope).records == ()
    assert files


@pytest.mark.parametrize("piece", [64 << 10, 1 << 20])
def test_a_stream_makes_the_same_snapshot_as_files(
    site: Site, files: dict[str, bytes], tmp_path: Path, piece: int
) -> None:
    def pieces(content: bytes) -> Iterator[memoryview]:
        for at in range(0, len(content), piece):
            yield memoryview(content[at : at + piece])

    with site.writing() as writer:
        with writer.stream() as stream:
            for source in site.files():
                stream.file(source, pieces(files[os.fsdecode(source.path)]))
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == files
    with site.writing() as writer:
        with writer.stream() as stream:
            for source in site.files():
                stream.file(source, pieces(files[os.fsdecode(source.path)]))
        again = site.commit(writer)
    assert again.stored_bytes == 0


def test_bytes_and_links_are_captured(site: Site, tmp_path: Path) -> None:
    with site.writing() as writer:
        writer.add_directory(b"d", 0o750)
        writer.add_bytes(b"d/control", 0o600, b"control")
        writer.add_bytes(b"d/control", 0o600, b"newer")
        writer.add_link(b"d/link", 0o777, b"control")
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == {"d/control": b"newer"}
    assert (tmp_path / "out/d/link").readlink() == Path("control")
    assert (tmp_path / "out/d").stat().st_mode & 0o777 == 0o750


class TickingStore(MemoryStore):
    """Its clock jumps half a day with every look at the packs."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.ticking = clock

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        if prefix == PACKS:
            self.ticking.pass_seconds(13 * 3600)
        return super().list(prefix, start_after=start_after)


def test_a_writer_that_slept_over_its_last_look_makes_a_void_snapshot(tmp_path: Path) -> None:
    clock: Clock = ManualClock()
    assert isinstance(clock, ManualClock)
    site = Site.create(tmp_path, store=TickingStore(clock))
    site.write({"f": b"x"})
    record = site.capture()
    listing = site.repository().snapshots(site.scope)
    assert listing.records == ()
    [(key, problem)] = listing.unreadable.items()
    assert key.endswith(record.id)
    assert "12 hours" in problem.message
