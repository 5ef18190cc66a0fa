"""Extra tablespaces end to end: captured wherever they lie, restored never where production has them (trap T10)."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.components.postgres.controlfile import read_control_file
from drservice.components.postgres.tablespaces import parse_map, version_directory
from drservice.environments.sandbox import open_sandbox
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.recovery import Target, TargetKind
from drservice.operations.backup import BackupResult
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import RestoreResult
from drservice.repository.breakglass import restore as script
from drservice.repository.records import Scope
from drservice.wiring.data_plane import DataPlane
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import SERVICE, Pusher, TempEstate

LATEST = Target(kind=TargetKind.LATEST)
ROWS = 20_000


@dataclass(kw_only=True)
class Spaces:
    """A cluster with tablespaces before and after its snapshot, all of it archived."""

    cluster: Cluster
    estate: TempEstate
    place: Path
    first: BackupResult
    second: BackupResult
    maker: ClusterMaker
    version: str
    at_first: dict[str, int]
    """OIDs when the snapshots were taken."""
    oids: dict[str, int] = field(default_factory=dict)
    """At the end."""

    def restored_rows(self, dsn: str) -> dict[str, int]:
        """Return the rows of each table, read through index and heap."""
        with psycopg.connect(dsn) as connection:
            return {
                name: connection.execute(f"select count(*) from {name}_table where i > 0").fetchone()[0]  # type: ignore[index]
                for name in ("far", "near", "late", "late_near", "twice")
            }

    def untouched(self) -> dict[str, int]:
        """Return inode and modification times of everything at production's locations."""
        return {str(path): path.lstat().st_mtime_ns for path in sorted(self.place.rglob("*"))}


def oids_of(cluster: Cluster) -> dict[str, int]:
    return {str(name): int(oid) for name, oid in cluster.sql("select spcname, oid from pg_tablespace")}


def scope_of(plane: DataPlane) -> Scope:
    return plane.repository.scope(ServiceName(SERVICE), ComponentName("database"))


def make_table(cluster: Cluster, name: str, space: str | None = None) -> None:
    cluster.sql(f"create table {name}_table tablespace {space or name} as select generate_series(1, {ROWS}) i")
    cluster.sql(f"create index on {name}_table (i) tablespace {space or name}")


@pytest.fixture(scope="module")
def spaces(template_cache: Path) -> Iterator[Spaces]:
    maker = ClusterMaker(cache=template_cache, on_disk=True)
    cluster = maker.make(wal_segment_mb=1, checksums=True, settings={"allow_in_place_tablespaces": "on"})
    estate = TempEstate.over(cluster)
    estate.initialise()
    cluster.configure(archive_mode="on", archive_command="''", max_wal_size="'32MB'")
    # Production writes nothing by itself: what changed at its locations was changed by a restore.
    cluster.configure(autovacuum="off", checkpoint_timeout="'1h'", bgwriter_lru_maxpages="0")
    cluster.start()
    place = maker.folder("locations")
    for name in ("far", "gone", "late", "twice"):
        (place / name).mkdir()
    hand_over(place)
    with Pusher(estate) as pusher:
        for name, where in (("far", place / "far"), ("near", ""), ("gone", place / "gone")):
            cluster.sql(f"create tablespace {name} location '{where}'")
            make_table(cluster, name)
        cluster.sql("checkpoint")
        time.sleep(2.1)  # what was written within two seconds before it is read is read again
        first = estate.backup()
        second = estate.backup()
        made = Spaces(
            cluster=cluster,
            estate=estate,
            place=place,
            first=first,
            second=second,
            maker=maker,
            version=version_directory(read_control_file(cluster.data), 15),
            at_first=oids_of(cluster),
        )
        cluster.sql(f"create tablespace late location '{place}/late'")
        make_table(cluster, "late")
        cluster.sql("create tablespace late_near location ''")
        make_table(cluster, "late_near")
        cluster.sql(f"create tablespace passing location '{place}/twice'")
        make_table(cluster, "passing")
        cluster.sql("drop table passing_table")
        cluster.sql("drop tablespace passing")
        cluster.sql(f"create tablespace twice location '{place}/twice'")
        make_table(cluster, "twice")
        cluster.sql("drop table gone_table")
        cluster.sql("drop tablespace gone")
        cluster.sql("create database elsewhere tablespace far strategy file_copy")
        made.oids = oids_of(cluster)
        pusher.drain(cluster.switch_wal())
        cluster.sql("checkpoint")
    yield made
    estate.close()
    maker.close()


def restore(spaces: Spaces, target: Target, **how: Any) -> RestoreResult:
    with spaces.estate.plane() as plane:
        into = how.pop("into", None)
        request = replace(spaces.estate.request(target, into=into), **how)
        return run_restore(spaces.estate.restore_context(plane), request)


@pytest.mark.long
def test_t10_a_tablespace_created_after_the_snapshot_does_not_stop_replay_in_a_sandbox(spaces: Spaces) -> None:
    before = spaces.untouched()
    result = restore(spaces, LATEST)
    try:
        assert set(spaces.restored_rows(result.environment.dsn).values()) == {ROWS}
        assert {item.oid for item in result.tablespaces} == {
            spaces.oids[name] for name in ("far", "near", "late", "late_near", "twice")
        }
        for item in result.tablespaces:
            assert item.in_place
            assert item.path == open_sandbox(result.environment.path).data / "pg_tblspc" / str(item.oid)
            assert stat.S_ISDIR(item.path.lstat().st_mode), "no link is left"
    finally:
        open_sandbox(result.environment.path).destroy()
    assert spaces.untouched() == before, "production's locations were written to"


def test_t10_what_lies_in_tablespaces_is_captured_once_and_taken_over_unread(spaces: Spaces) -> None:
    with spaces.estate.plane() as plane:
        scope = scope_of(plane)
        reader = plane.repository.reader(scope, spaces.first.record.id)
        entries = {entry.path.decode(): entry for entry in reader.entries()}
        again = {e.path.decode(): e for e in plane.repository.reader(scope, spaces.second.record.id).entries()}
    for name in ("far", "near", "gone"):
        below = [path for path in entries if "/" in path and path.split("/")[1] == str(spaces.at_first[name])]
        tables = [path for path in below if entries[path].size > 500_000]
        assert tables, f"{name} has no content"
        assert {path.split("/")[2] for path in below if path.count("/") > 1} == {spaces.version}
        assert all(entries[path].inline == again[path].inline for path in tables), "stored again"
    assert spaces.second.reused_files > 0.9 * spaces.second.record.files
    assert spaces.second.record.read_bytes < 200_000


def test_t10_a_tablespace_created_after_the_snapshot_does_not_stop_replay(spaces: Spaces) -> None:
    """The copy then starts by itself, and a mapped tablespace lies where it was mapped."""
    before = spaces.untouched()
    home = spaces.cluster.root / "kept"
    home.mkdir()
    hand_over(home)
    (home / "empty").mkdir()
    hand_over(home)
    document = spaces.estate.json(
        "restore", SERVICE, "--to", "latest", "--into", home / "data",
        "--tablespace", f"{spaces.place}/far={home}/empty", "--tablespace", f"{spaces.oids['near']}={home}/new",
    )  # fmt: skip
    places = {item["oid"]: (item["path"], item["in_place"], item["location"]) for item in document["tablespaces"]}
    assert places == {
        spaces.oids["far"]: (f"{home}/empty", False, f"{spaces.place}/far"),
        spaces.oids["near"]: (f"{home}/new", False, None),
        **{
            spaces.oids[name]: (f"{home}/data/pg_tblspc/{spaces.oids[name]}", True, location)
            for name, location in (
                ("late", f"{spaces.place}/late"),
                ("late_near", None),
                ("twice", f"{spaces.place}/twice"),
            )
        },
    }
    links = {path.name: path.readlink() for path in (home / "data" / "pg_tblspc").iterdir() if path.is_symlink()}
    assert links == {str(spaces.oids["far"]): home / "empty", str(spaces.oids["near"]): home / "new"}
    assert not (home / "data" / "tablespace_map").exists()
    assert sorted(path.name for path in (home / "data").glob("pg_tblspc*")) == ["pg_tblspc"]
    assert spaces.untouched() == before

    kept = spaces.maker.over(home / "data")
    kept.configure(archive_mode="off", archive_command="''")
    kept.start()
    try:
        assert set(spaces.restored_rows(kept.dsn()).values()) == {ROWS}
        assert kept.value("show allow_in_place_tablespaces") == "on", "or no copy of this cluster could be recovered"
        located = dict(kept.sql("select oid::int, pg_tablespace_location(oid) from pg_tablespace where oid > 16383"))
        assert located[spaces.oids["far"]] == str(home / "empty")
        assert located[spaces.oids["late"]] == f"pg_tblspc/{spaces.oids['late']}"
        kept.sql("create table more tablespace far as select 1 i")
        kept.sql("create table more_late tablespace late as select 1 i")
    finally:
        kept.stop()
    assert spaces.untouched() == before


def test_t10_break_glass_restores_tablespaces_in_place_and_mapped(spaces: Spaces) -> None:
    home = spaces.maker.folder("glass")
    far, gone = spaces.at_first["far"], spaces.at_first["gone"]
    argv: list[str | Path] = [
        sys.executable, "-I", script.__file__, "--repository", spaces.estate.repository,
        "--identity", spaces.estate.identity, "restore", "--service", SERVICE, "--into", home / "data",
        "--wal-into", home / "wal", "--snapshot", spaces.second.record.id,
    ]  # fmt: skip

    def run(*mapping: str) -> subprocess.CompletedProcess[str]:
        words = [word for text in mapping for word in ("--tablespace", text)]
        return subprocess.run([*argv, *words], capture_output=True, text=True, check=False)

    for wrong, told in (
        ("99999=/srv/x", "no (other) tablespace"),
        (f"{far}=relative", "absolute"),
        (f"{far}={home}/data/inside", "lies in another folder"),
        (f"{far}={spaces.place}/far", "not empty"),
    ):
        refused = run(wrong)
        assert refused.returncode == 1
        assert told in refused.stderr
        assert sorted(path.name for path in (home / "data").iterdir()) == ["RESTORE-INCOMPLETE"]
    done = run(f"{spaces.place}/far={home}/mapped")
    assert done.returncode == 0, done.stderr
    assert f"Tablespace {far} (it was {spaces.place}/far): {home}/mapped" in done.stdout
    assert "allow_in_place_tablespaces = 'on'" in done.stdout
    assert (home / "data" / "pg_tblspc" / str(far)).readlink() == home / "mapped"
    assert not (home / "data" / "tablespace_map").exists()

    [command] = re.findall(r"^  (restore_command = .*)$", done.stdout, re.MULTILINE)
    with (home / "data" / "postgresql.auto.conf").open("a") as config:
        config.write(
            f"{command}\nrecovery_target = 'immediate'\narchive_mode = off\nrecovery_target_action = promote\n"
        )
        config.write("allow_in_place_tablespaces = 'on'\n")
    (home / "data" / "recovery.signal").touch()
    hand_over(home)
    recovered = spaces.maker.over(home / "data")
    recovered.start()
    try:
        for name in ("far", "near", "gone"):
            assert recovered.value(f"select count(*) from {name}_table where i > 0") == ROWS
        location = recovered.value(f"select pg_tablespace_location({gone})")
        assert location == f"pg_tblspc/{gone}"
    finally:
        recovered.stop()


@pytest.fixture(scope="module")
def remote(spaces: Spaces) -> Iterator[tuple[TempEstate, BackupResult, tuple[str, int]]]:
    """A base backup of the whole, taken over the protocol while a page of a tablespace is damaged."""
    cluster = spaces.cluster
    estate = TempEstate.over(cluster, method="pg_basebackup", name="remote")
    estate.initialise()
    cluster.sql("create table spoiled tablespace far as select generate_series(1, 2000) i")
    cluster.sql("checkpoint")
    spoiled = str(cluster.value("select pg_relation_filepath('spoiled')"))
    with (cluster.data / spoiled).open("r+b") as file:
        file.seek(2 * 8192 + 4000)
        file.write(b"rotten")
    with Pusher(estate):
        taken = estate.backup()
    yield estate, taken, (spoiled, 2)
    estate.close()


def test_t10_a_base_backup_reads_every_tablespace_without_a_spool_and_names_its_damaged_pages(
    spaces: Spaces, remote: tuple[TempEstate, BackupResult, tuple[str, int]]
) -> None:
    estate, taken, spoiled = remote
    cluster = spaces.cluster
    assert taken.bad_pages == (spoiled,)
    with estate.plane() as plane:
        reader = plane.repository.reader(scope_of(plane), taken.record.id)
        entries = {entry.path.decode(): entry for entry in reader.entries()}
        places = parse_map(reader.secret.attachments["tablespace_map"])
        assert places == {spaces.oids[name]: f"{spaces.place}/{name}" for name in ("far", "late", "twice")}
        for name in ("far", "near", "late", "late_near", "twice"):
            path = str(cluster.value(f"select pg_relation_filepath('{name}_table')"))
            assert reader.read_file(entries[path]) == (cluster.data / path).read_bytes()
            assert f"pg_tblspc/{spaces.oids[name]}" in entries
    below = [path.split("/") for path in entries if path.startswith("pg_tblspc/")]
    assert {parts[2] for parts in below if len(parts) > 2} == {spaces.version}
    assert not list(estate.state.rglob("*.tar")), "no spool"


@pytest.mark.long
def test_t10_a_base_backup_with_tablespaces_is_restored(
    remote: tuple[TempEstate, BackupResult, tuple[str, int]],
) -> None:
    estate, _, _ = remote
    with estate.restored(LATEST) as (result, connection):
        assert len(result.tablespaces) == 5
        for name in ("far", "near", "late"):
            assert connection.execute(f"select count(*) from {name}_table where i > 0").fetchone() == (ROWS,)


def test_t10_what_check_says_about_tablespaces(spaces: Spaces) -> None:
    document = spaces.estate.json("check", status=1)  # the helper's archive_command is not this cluster's
    [told] = [item["detail"] for item in document["checks"] if item["name"].endswith(": tablespaces")]
    assert f"far ({spaces.oids['far']}) at {spaces.place}/far" in told
    assert f"near ({spaces.oids['near']}) in place" in told
    assert " bytes" in told


def test_t10_a_mapping_that_cannot_be_is_refused_before_anything_is_written(spaces: Spaces) -> None:
    home = spaces.maker.folder("refused")
    before = spaces.untouched()
    for mapping in (
        f"{spaces.place}/far={spaces.place}/far",  # production's own
        f"{spaces.place}/far={home}/data/inside",
        f"{spaces.place}/nowhere={home}/new",
        f"{spaces.place}/far=new",
        "=/x",
    ):
        spaces.estate.refusal(
            "restore", SERVICE, "--to", "latest", "--into", home / "data", "--tablespace", mapping, status=2
        )
        assert not list(home.iterdir()), mapping
    assert spaces.untouched() == before


@pytest.mark.long
def test_t10_a_delta_restore_follows_no_link_that_an_earlier_restore_mapped(spaces: Spaces) -> None:
    home = spaces.maker.folder("delta")
    far = spaces.at_first["far"]
    words = ("restore", SERVICE, "--into", home / "data", "--delta")
    spaces.estate.json(*words, "--snapshot", spaces.second.record.id, "--tablespace", f"{far}={home}/mapped")
    assert (home / "data" / "pg_tblspc" / str(far)).readlink() == home / "mapped"
    before = {path: path.lstat().st_mtime_ns for path in sorted((home / "mapped").rglob("*"))}
    document = spaces.estate.json(*words, "--to", "latest")
    assert {item["oid"]: item["in_place"] for item in document["tablespaces"]}[far] is True
    assert (home / "data" / "pg_tblspc" / str(far) / spaces.version).is_dir()
    assert {path: path.lstat().st_mtime_ns for path in sorted((home / "mapped").rglob("*"))} == before
    kept = spaces.maker.over(home / "data")
    kept.configure(archive_mode="off", archive_command="''")
    kept.start()
    assert set(spaces.restored_rows(kept.dsn()).values()) == {ROWS}
    kept.stop()


@pytest.mark.long
def test_t10_one_database_comes_back_although_the_wal_creates_tablespaces(spaces: Spaces) -> None:
    result = restore(spaces, LATEST, database="postgres")
    try:
        assert result.side is not None
        assert set(spaces.restored_rows(result.environment.dsn).values()) == {ROWS}
        assert len(result.tablespaces) == 5
    finally:
        open_sandbox(result.environment.path).destroy()
