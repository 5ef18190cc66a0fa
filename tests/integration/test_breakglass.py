"""restore.py brings a real cluster back to an instant, with nothing of drservice in the process.

Once from a repository of the second writer (tests/doubles/formatwriter.py), so that the text of the format, not the
code of drservice, is what both sides share; once from a real backup of drservice, in a virtual environment that has
nothing but what RESTORE.md asks for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drservice.components.postgres.placing import finish_cluster, place_cluster
from drservice.model.ids import SnapshotId
from drservice.operations.progress import SilentProgress
from drservice.repository.breakglass import restore
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import Pusher, TempEstate
from tests.doubles.formatwriter import Writer

LEFT_OUT = {"postmaster.pid", "postmaster.opts", "backup_label", "tablespace_map"}


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[ClusterMaker]:
    maker = ClusterMaker(cache=tmp_path)
    yield maker
    maker.close()


def entries_of(data: Path, writer: Writer) -> list[dict[str, Any]]:
    """Store a data directory but for WAL and pid files, as a capture does."""
    entries: list[dict[str, Any]] = []
    for path in data.rglob("*"):
        name, mode = path.relative_to(data).as_posix(), stat.S_IMODE(path.lstat().st_mode)
        if path.is_dir():
            entries.append({"p": name.encode(), "t": "d", "m": mode})
        elif name not in LEFT_OUT and not name.startswith("pg_wal/"):
            entries.append(writer.file(name.encode(), path.read_bytes(), mode=mode, size=65536))
    return sorted(entries, key=lambda entry: entry["p"])


def back_up(source: Cluster, writer: Writer) -> None:
    """Take a base backup with PostgreSQL's low-level functions and commit it as a snapshot."""
    with source.connect() as connection:
        [(start,)] = connection.execute("select pg_backup_start('test', fast => true)::text").fetchall()
        root = writer.tree(entries_of(source.data, writer))
        query = "select lsn::text, labelfile, spcmapfile from pg_backup_stop(wait_for_archive => false)"
        [(stop, label, spaces)] = connection.execute(query).fetchall()
    about = {
        "system_id": writer.system_id,
        "timeline": 1,
        "start_lsn": start,
        "stop_lsn": stop,
        "server_version": 150000,
        "segment_bytes": 1 << 20,
        "block_bytes": 8192,
        "data_checksums": True,
        "bad_pages": 0,
    }
    attachments = {"backup_label": label.encode(), "tablespace_map": (spaces or "").encode()}
    writer.snapshot(root, postgres=about, attachments=attachments)


def test_a_real_cluster_comes_back_to_an_instant_without_drservice(clusters: ClusterMaker, tmp_path: Path) -> None:
    source = clusters.make(wal_segment_mb=1)
    archive = source.archive_to(source.root / "archive")
    source.start()
    source.sql("create table orders (id int primary key, note text)")
    source.sql("insert into orders select i, repeat('x', 200) from generate_series(1, 5000) i")
    writer = Writer(tmp_path / "repository")
    writer.system_id = str(source.value("select system_identifier from pg_control_system()"))
    (tmp_path / "identity").write_text(str(writer.identity) + "\n")
    writer.begin()
    back_up(source, writer)
    source.sql("insert into orders values (5001, 'after the snapshot')")
    instant = source.value("select clock_timestamp()::text")
    source.sql("drop table orders")
    source.wait_archived(source.switch_wal(), archive)
    source.stop()
    for number, path in enumerate(sorted(archive.iterdir())):
        if re.fullmatch(restore.WAL_NAME, path.name):
            writer.wal(path.name, path.read_bytes(), wrapped=number % 2 == 0)

    place = clusters.folder()
    data, wal = place / "data", place / "wal"
    argv: list[str | Path] = [
        sys.executable,
        "-I",
        restore.__file__,
        "--repository",
        writer.folder,
        "--identity",
        tmp_path / "identity",
    ]
    argv += ["--trust", writer.signer.key, "restore", "--service", "erp", "--into", data, "--wal-into", wal]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    assert result.returncode == 0, result.stderr

    hand_over(place)
    recovered = clusters.over(data)
    [command] = re.findall(r"^  (restore_command = .*)$", result.stdout, re.MULTILINE)
    with (data / "postgresql.auto.conf").open("a") as config:
        config.write(f"{command}\nrecovery_target_time = '{instant}'\narchive_mode = off\n")
        config.write("recovery_target_action = 'promote'\n")
    (data / "recovery.signal").touch()
    hand_over(data)
    recovered.start()
    assert recovered.value("select count(*) from orders") == 5001
    assert recovered.value("select note from orders where id = 5001") == "after the snapshot"
    recovered.stop()


# --- a real backup, a clean environment ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with what RESTORE.md asks for and nothing else (about 9 s)."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    python = folder / "bin" / "python"
    wanted = ["cryptography", "backports.zstd"] if sys.version_info < (3, 14) else ["cryptography"]
    result = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    for name in ("drservice", "blake3", "msgpack", "pyrage"):
        assert subprocess.run([python, "-I", "-c", f"import {name}"], capture_output=True, check=False).returncode != 0
    return python


def facts_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return type or SHA-256, and mode, of everything below a folder."""
    found: dict[str, tuple[str, int]] = {}
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        what = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(folder).as_posix()] = (what, mode)
    return found


def place_with_drservice(estate: TempEstate, snapshot: SnapshotId, into: Path) -> None:
    """Restore a snapshot's directory with drservice itself, up to the point where PostgreSQL would start."""
    with estate.plane() as plane:
        repository = plane.repository
        service, component = estate.parts()
        scope = repository.scope(service.name, component.name)
        reader = repository.reader(scope, snapshot)
        _, placed = place_cluster(
            reader,
            into,
            open_store=repository.open_store,
            scope=scope,
            secrets=repository.secrets(scope, repository.open_snapshot(scope, snapshot)),
            account=None,
            workers=2,
            progress=SilentProgress(),
        )
        assert finish_cluster(reader, into, placed, account=None) == ()


def test_a_real_backup_comes_back_with_nothing_but_the_stored_script(
    clusters: ClusterMaker, tmp_path: Path, clean_python: Path
) -> None:
    source = clusters.make(wal_segment_mb=1, fresh=True)
    source.configure(archive_mode="on", archive_command="''")
    source.start()
    estate = TempEstate.over(source)
    trust = estate.initialise()
    source.sql("create table orders (id int primary key, note text)")
    source.sql("insert into orders select i, repeat(md5(i::text), 6) from generate_series(1, 20000) i")
    with Pusher(estate) as pusher:
        snapshot = estate.backup().record
        source.sql("insert into orders values (20001, 'after the snapshot')")
        instant = source.value("select clock_timestamp()::text")
        source.sql("drop table orders")
        pusher.drain(source.switch_wal())
        source.stop()

    # Only the bucket, the identity and the signer's key from the escrow sheet leave the burning house.
    house = tmp_path / "escrow"
    house.mkdir()
    subprocess.run(["cp", "-a", estate.repository, house / "repository"], check=True)
    shutil.copy(estate.identity, house / "identity")
    place = clusters.folder()
    data, wal = place / "data", place / "wal"
    argv: list[str | Path] = [clean_python, "-I", house / "repository" / "restore.py"]
    argv += ["--repository", house / "repository", "--identity", house / "identity", "--trust", trust]
    argv += ["restore", "--service", "erp", "--into", data, "--wal-into", wal]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(house)}
    result = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, cwd="/")
    assert result.returncode == 0, result.stderr
    assert snapshot.id in result.stdout

    place_with_drservice(estate, snapshot.id, tmp_path / "own")
    own, theirs = facts_of(tmp_path / "own"), facts_of(data)
    assert own.pop("recovery.signal")
    assert theirs == own
    assert len(theirs) > 900

    hand_over(place)
    recovered = clusters.over(data)
    [command] = re.findall(r"^  (restore_command = .*)$", result.stdout, re.MULTILINE)
    with (data / "postgresql.auto.conf").open("a") as config:
        config.write(f"{command}\nrecovery_target_time = '{instant}'\narchive_mode = off\n")
        config.write("recovery_target_action = 'promote'\n")
    (data / "recovery.signal").touch()
    hand_over(data)
    recovered.start()
    assert recovered.value("select count(*) from orders") == 20001
    assert recovered.value("select note from orders where id = 20001") == "after the snapshot"
    assert recovered.value("select count(*) from orders where note = repeat(md5(id::text), 6)") == 20000
    recovered.stop()
