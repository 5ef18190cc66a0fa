"""Capturing with real processes on real stores: killed at any point, short of workers, within its memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from drservice.errors import BusyError, RecoveryError, WorkerDiedError
from drservice.model.ids import SnapshotId, ulid_time
from drservice.objectstore.opening import open_store, open_store_readonly
from drservice.repository.changes import ChangeRule
from drservice.repository.target import sync_folder
from tests.doubles.repositories import Heard, Site, content_of, noise
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, moto_server
from tests.integration.repository.measured_writer import workers_of_this_process as workers

MIB = 1 << 20
PACKS = "s/erp/database/packs/"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site.create(tmp_path, folder=tmp_path / "repository")
    (tmp_path / "host").write_bytes(made.host.private_key.private_bytes_raw())
    (tmp_path / "recipient").write_text(made.recipient)
    return made


def chunks_of(site: Site, snapshot: SnapshotId) -> list[tuple[bytes, int, list[bytes]]]:
    """Return what a tree says, without where it is stored and when it was read."""
    reader = site.repository().reader(site.scope, snapshot)
    return [
        (entry.path, entry.size, [row.chunk_id for table in reader.tables(entry) for row in table])
        for entry in reader.entries()
    ]


def test_worker_processes_and_one_process_make_the_same_tree(site: Site, tmp_path: Path) -> None:
    site.write({f"base/{number}": noise(number * 3 * MIB // 4, number) for number in range(12)})
    inline = site.capture()
    other = Site.create(tmp_path / "other", folder=tmp_path / "other/repository")
    (tmp_path / "other/source").rmdir()
    (tmp_path / "other/source").symlink_to(site.source)
    other.workers = 2
    pooled = other.capture()
    assert pooled.source_bytes > 24 * MIB, "or no process was started"
    assert chunks_of(other, pooled.id) == chunks_of(site, inline.id)
    assert other.restore(pooled.id, tmp_path / "out") == content_of(site.source)
    sync_folder(tmp_path / "out")


def run_doomed(site: Site, number: int) -> int:
    script = Path(__file__).with_name("doomed_writer.py")
    return subprocess.run([sys.executable, script, site.base, str(number)], check=False).returncode


@pytest.mark.parametrize(
    ("number", "acknowledged"),
    [(1, 0), (2, 0), (3, 0), (4, 32), (5, 40), (6, 40)],
    ids=["hold", "key", "first pack", "second pack", "nodes", "snapshot"],
)
def test_a_writer_killed_before_any_object_leaves_no_snapshot_and_its_packs_to_the_next(
    site: Site, tmp_path: Path, number: int, acknowledged: int
) -> None:
    site.write({"base/1": noise(40 * MIB)})
    assert run_doomed(site, number) == -signal.SIGKILL
    assert site.repository().snapshots(site.scope).records == ()
    before = sum(site.sizes(PACKS).values())
    assert before >= acknowledged * MIB
    record = site.capture()
    stored = sum(site.sizes(PACKS).values()) - before
    assert stored < (40 - acknowledged) * MIB + MIB
    assert site.restore(record.id, tmp_path / "out") == content_of(site.source)


def test_the_lock_of_a_killed_writer_is_free_and_that_of_a_living_one_is_not(site: Site) -> None:
    site.write({"f": b"x"})
    assert run_doomed(site, 2) == -signal.SIGKILL
    with site.writing(), pytest.raises(BusyError):
        site.capture()
    site.capture()


def test_a_killed_worker_fails_the_run_and_leaves_no_snapshot(site: Site, tmp_path: Path) -> None:
    site.workers = 2
    site.write({f"base/{number}": noise(10 * MIB, number) for number in range(6)})

    class KillAWorker(Heard):
        def advance(self, amount: int, /) -> None:
            if self.bytes == 0:
                os.kill(workers()[0], signal.SIGKILL)
            super().advance(amount)

    with site.writing() as writer, pytest.raises(WorkerDiedError, match="status -9"):
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=KillAWorker())
    assert workers() == []
    assert site.repository().snapshots(site.scope).records == ()
    record = site.capture()
    assert site.restore(record.id, tmp_path / "out") == content_of(site.source)


def both_workers() -> list[int]:
    """Return the pids of both workers, as soon as both have become what they are to be (fork, then exec)."""
    deadline = time.monotonic() + 30
    while len(found := workers()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_workers_that_were_made_ready_do_the_work_and_end_with_a_run_that_had_none(site: Site, tmp_path: Path) -> None:
    site.workers = 2
    site.write({"base/1": noise(30 * MIB)})
    with site.writing() as writer:
        writer.make_ready(1 * MIB)
        assert workers() == [], "no process is started for little"
        writer.make_ready(30 * MIB)
        both_workers()
        assert writer.previous_at() is None
    assert workers() == [], "nothing was read, and nobody is left waiting"
    seen: set[int] = set()

    class Look(Heard):
        def advance(self, amount: int, /) -> None:
            seen.update(workers())
            super().advance(amount)

    with site.writing() as writer:
        writer.make_ready(30 * MIB)
        ready = both_workers()
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Look())
        assert seen == set(ready), "those and no others"
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == content_of(site.source)
    with site.writing() as writer:
        assert writer.previous_at() == ulid_time(record.id)


def test_workers_open_the_store_before_there_is_work_and_leave_nothing_if_there_is_none(site: Site) -> None:
    site.workers = 2
    site.write({"base/1": b"little"})
    journals = site.state_dir / "journal" / "erp" / "database"

    def opened() -> set[str]:
        return {path.stem.rpartition("-worker-")[2] for path in journals.glob("*-worker-*.journal")}

    with site.writing() as writer:
        writer.make_ready(30 * MIB)
        deadline = time.monotonic() + 30
        while opened() != {"0", "1"} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert opened() == {"0", "1"}, "nobody has given them anything"
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        site.commit(writer)
        assert workers() == []
        assert not journals.exists()


def test_a_worker_that_died_idle_is_noticed_when_it_is_asked_to_flush(site: Site) -> None:
    site.workers = 2
    site.write({"base/1": noise(30 * MIB)})
    killed: list[int] = []

    class KillTheIdleOne(Heard):
        def advance(self, amount: int, /) -> None:
            super().advance(amount)
            if not killed:  # one file, one batch: only the first worker has had work
                killed.append(workers()[-1])
                os.kill(killed[0], signal.SIGKILL)
                os.waitid(os.P_PID, killed[0], os.WEXITED | os.WNOWAIT)

    with site.writing() as writer, pytest.raises(WorkerDiedError, match="status -9"):
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=KillTheIdleOne())
    assert site.repository().snapshots(site.scope).records == ()


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_target_that_fills_up_is_told_in_words(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write({"base/1": noise(3 * MIB)})
    record = site.capture()
    try:
        with small_disk(tmp_path / "disk", 2 * MIB) as disk:
            with pytest.raises(RecoveryError, match="3,145,728 are needed"):
                site.place(record.id, disk)
            assert list(disk.iterdir()) == []
            monkeypatch.setattr("drservice.repository.placing.require_space", lambda _root, _needed: None)
            with pytest.raises(RecoveryError, match="no space left while writing base/1"):
                site.place(record.id, disk)
    except subprocess.CalledProcessError:
        pytest.skip("this machine does not let root mount")


def test_no_process_of_a_backup_needs_more_than_150_mib(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        for number in range(75):
            file.write(noise(4 * MIB, number))
    script = Path(__file__).with_name("measured_writer.py")
    began = time.monotonic()
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [float(word) for word in done.stdout.split()]
    assert len(peaks) == 3, done.stdout
    assert max(peaks) <= 150, f"{peaks} MiB in {time.monotonic() - began:.1f} s"


@pytest.mark.parametrize("buckets", list(MotoBuckets))
def test_a_bucket_is_as_good_as_a_folder(tmp_path: Path, buckets: MotoBuckets) -> None:
    with moto_server(MotoBehaviour.CONDITIONAL, buckets) as server, server.credentials():
        opener = partial(open_store, server.url_for(f"dr-{buckets.name.lower()}", "prod"), lock_dir=tmp_path / "locks")
        (tmp_path / "locks").mkdir()
        site = Site.create(tmp_path / "site", store=opener())
        site.open_store = opener
        site.write({"base/1": noise(3 * MIB), "base/2": bytes(MIB), "PG_VERSION": b"15\n"})
        first = site.capture()
        site.write({"PG_VERSION": b"16\n"})
        second = site.capture()
        assert second.stored_bytes < 3000
        site.put_wal("000000010000000000000002", noise(MIB))
        assert site.fetch_wal("000000010000000000000002") == noise(MIB)
        listing = site.repository().snapshots(site.scope)
        assert ([one.id for one in listing.records], listing.unreadable) == ([first.id, second.id], {})
        assert site.restore(second.id, tmp_path / "out") == content_of(site.source)
        site.store.close()


def test_packs_overwritten_in_a_versioned_bucket_are_read_from_the_version_with_their_hash(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.VERSIONED) as server, server.credentials():
        url = server.url_for("overwritten", "prod")
        site = Site.create(tmp_path / "site", store=open_store(url, lock_dir=tmp_path / "locks"))
        site.write({"base/1": noise(MIB), "base/2": noise(MIB, 1)})
        record = site.capture()
        overwritten = [*site.keys(PACKS), *site.keys("s/erp/database/nodes/")]
        for key in overwritten:
            body = site.store.read(key)
            server.plant("overwritten", f"prod/{key}", bytes(len(body)))
            assert site.store.read(key) == bytes(len(body)), "or this tests nothing"
        for open_again in (open_store, open_store_readonly):
            site.store.close()
            site.store = open_again(url, lock_dir=tmp_path / "locks")
            site.open_store = partial(open_again, url, lock_dir=tmp_path / "locks")
            assert site.restore(record.id, tmp_path / open_again.__name__) == content_of(site.source)
        site.store.close()
