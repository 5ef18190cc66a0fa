"""The listing of a live data directory (T8, T9)."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from drservice.components.postgres import layout
from drservice.components.postgres.controlfile import read_control_file
from drservice.components.postgres.tablespaces import version_directory
from drservice.errors import CaptureError, UnsupportedClusterError
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over


def own_version(data: Path) -> str:
    return version_directory(read_control_file(data), int((data / "PG_VERSION").read_text()))


def listing_of(data: Path) -> layout.ClusterListing:
    return layout.list_cluster(data, version_directory=own_version(data))


def paths(listing: layout.ClusterListing) -> set[str]:
    return {entry.path for entry in listing.files}


def test_t8_only_what_belongs_into_a_copy_is_listed(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    data = cluster.data
    cluster.sql("create table kept as select generate_series(1, 5000) i; create index on kept(i)")
    cluster.sql("vacuum kept")
    cluster.sql("create unlogged table fleeting as select generate_series(1, 5000) i")
    kept = cluster.value("select pg_relation_filepath('kept')")
    fleeting = cluster.value("select pg_relation_filepath('fleeting')")
    database = str(Path(kept).parent)
    with cluster.connect() as session:
        session.execute("create temporary table passing as select generate_series(1, 5000) i")
        row = session.execute("select pg_relation_filepath('passing')").fetchone()
        assert row is not None
        passing = row[0]
        session.execute("checkpoint")
        (data / "base/pgsql_tmp").mkdir(exist_ok=True)
        (data / "base/pgsql_tmp/pgsql_tmp1.0").write_bytes(b"x")
        for name in ("backup_label.old", "tablespace_map", "recovery.signal.x", "backup_manifest", "x.signal"):
            (data / name).write_bytes(b"x")
        # The same names where PostgreSQL never puts them are a person's files and stay.
        (data / "mine").mkdir()
        for name in ("backup_label", "pg_internal.init", "t1_2", "pgsql_tmp1", "postmaster.pid", "pg_wal"):
            (data / "mine" / name).write_bytes(b"x")
        os.mkfifo(data / "mine" / "pipe")
        (data / "mine" / "link").symlink_to("/etc/passwd")
        with socket.socket(socket.AF_UNIX) as plug:
            plug.bind(str(data / "mine" / "sock"))
        listing = listing_of(data)
        assert (data / passing).exists(), "the temporary table must be there for the test to mean anything"
    listed = paths(listing)

    assert passing not in listed
    assert (data / fleeting).exists()
    assert fleeting not in listed
    assert f"{fleeting}_init" in listed
    assert kept in listed
    assert f"{kept}_vm" in listed
    assert not {path for path in listed if path.startswith(("pg_wal/", "pg_replslot/", "pg_notify/"))}
    assert not {path for path in listed if path.startswith(("pg_subtrans/", "pg_stat_tmp/", "base/pgsql_tmp"))}
    for name in ("postmaster.pid", "postmaster.opts", "backup_label.old", "tablespace_map", "backup_manifest"):
        assert (data / name).exists()
        assert name not in listed
    assert "x.signal" not in listed
    assert "recovery.signal.x" in listed
    internal = {path for path in data.glob("**/pg_internal.init") if "mine" not in path.parts}
    assert internal
    assert not {os.fspath(path.relative_to(data)) for path in internal} & listed
    for name in ("backup_label", "pg_internal.init", "t1_2", "pgsql_tmp1", "postmaster.pid", "pg_wal"):
        assert f"mine/{name}" in listed
    assert {entry.path: entry.reason for entry in listing.refused} == {
        "mine/pipe": "named pipe",
        "mine/link": "symbolic link to /etc/passwd",
        "mine/sock": "socket",
    }
    folders = [entry.path for entry in listing.directories]
    assert {"pg_wal", "pg_wal/archive_status", "pg_notify", "pg_replslot", "mine", database} <= set(folders)
    assert folders == sorted(folders)
    assert listing.files[-1].path == "global/pg_control"
    assert listing.files[-1].rule is layout.FileRule.COPY_LAST
    for entry in listing.files:
        real = (data / entry.path).stat()
        assert entry.identity.inode == real.st_ino
        relation = entry.relation
        assert (relation is not None) == entry.path.split("/")[-1].split("_")[0].split(".")[0].isdigit() or (
            not entry.path.startswith(("base/", "global/"))
        )


def test_t8_a_copy_made_from_the_listing_starts_and_holds_everything_but_unlogged_rows(
    clusters: ClusterMaker,
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    cluster.start()
    cluster.sql("create table kept as select generate_series(1, 5000) i")
    cluster.sql("create unlogged table fleeting as select generate_series(1, 5000) i")
    cluster.kill9()
    copy = clusters.folder("copy")
    listing = listing_of(cluster.data)
    for folder in listing.directories:
        (copy / folder.path).mkdir(mode=folder.mode)
    for entry in listing.files:
        shutil.copy(cluster.data / entry.path, copy / entry.path)
    # Unlogged relations are reset from their init forks by recovery, which every restore goes through; here
    # the crash makes it necessary. (A server that was shut down cleanly would miss their data.)
    for path in (cluster.data / "pg_wal").glob("0*"):
        shutil.copy(path, copy / "pg_wal" / path.name)
    restored = clusters.over(copy)
    restored.start()
    assert restored.value("select count(*) from kept") == 5000
    assert restored.value("select count(*) from fleeting") == 0
    assert (
        restored.run("pg_amcheck", "-h", restored.sock, "-U", "postgres", "--install-missing", "postgres").status == 0
    )


def test_t8_pg_wal_on_another_disk_becomes_a_plain_directory(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    elsewhere = clusters.folder("wal-disk") / "pg_wal"
    shutil.move(cluster.data / "pg_wal", elsewhere)
    (cluster.data / "pg_wal").symlink_to(elsewhere)
    cluster.start()
    listing = listing_of(cluster.data)
    assert {"pg_wal", "pg_wal/archive_status"} <= {entry.path for entry in listing.directories}
    assert listing.refused == ()
    assert not [path for path in paths(listing) if path.startswith("pg_wal/")]


def test_t10_tablespaces_are_listed_wherever_they_lie_and_nothing_else_that_lies_there(clusters: ClusterMaker) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"allow_in_place_tablespaces": "on"})
    cluster.start()
    spot = clusters.folder("ts")
    (cluster.data / "disk").mkdir()
    hand_over(cluster.data / "disk")
    cluster.sql(f"create tablespace far location '{spot}'")
    cluster.sql("create tablespace near location ''")
    cluster.sql(f"create tablespace inside location '{cluster.data}/disk'")
    oids = {}
    for name in ("far", "near", "inside"):
        oids[name] = cluster.value(f"select oid from pg_tablespace where spcname = '{name}'")
        cluster.sql(f"create table {name}_table tablespace {name} as select generate_series(1, 5000) i")
        cluster.sql(f"create unlogged table {name}_fleeting tablespace {name} as select 1 i")
    tables = {name: str(cluster.value(f"select pg_relation_filepath('{name}_table')")) for name in oids}
    version = own_version(cluster.data)
    for other in (spot, cluster.data / "pg_tblspc" / str(oids["near"])):
        for name in ("PG_14_202107181", "somebody"):  # an older server's, and what is nobody's
            (other / name / "5").mkdir(parents=True)
            (other / name / "5" / "16384").write_bytes(b"x")
    (spot / version / "pgsql_tmp").mkdir()
    (spot / version / "pgsql_tmp" / "pgsql_tmp1.0").write_bytes(b"x")
    with cluster.connect() as session:
        session.execute("create temporary table passing tablespace far as select 1 i")
        row = session.execute("select pg_relation_filepath('passing')").fetchone()
        listing = listing_of(cluster.data)
    assert row is not None

    assert {(entry.oid, entry.target, entry.in_place) for entry in listing.tablespaces} == {
        (oids["far"], str(spot), False),
        (oids["near"], f"pg_tblspc/{oids['near']}", True),
        (oids["inside"], f"{cluster.data}/disk", False),
    }
    listed = paths(listing)
    assert set(tables.values()) <= listed
    assert row[0] not in listed, "a temporary relation"
    for name, oid in oids.items():
        part = next(entry.relation for entry in listing.files if entry.path == tables[name])
        assert part is not None
        assert part.tablespace == oid
        fleeting = str(cluster.value(f"select pg_relation_filepath('{name}_fleeting')"))
        assert fleeting not in listed
        assert f"{fleeting}_init" in listed
    folders = {entry.path for entry in listing.directories}
    below = {path for path in listed | folders if path.startswith("pg_tblspc/")}
    assert {path.split("/")[2] for path in below if path.count("/") > 1} == {version}
    assert not {path for path in below if "pgsql_tmp" in path}
    assert "disk" in folders
    assert not {path for path in listed | folders if path.startswith("disk/")}, "it would be stored twice"
    assert [listing.bytes_of(item) > 100_000 for item in listing.tablespaces] == [True] * 3


@pytest.mark.parametrize("planted", ["link", "foreign", "relative", "unmounted"])
def test_t10_a_link_that_does_not_lead_straight_to_a_folder_of_the_servers_is_refused(
    clusters: ClusterMaker, planted: str
) -> None:
    cluster = clusters.make(wal_segment_mb=1)
    spot = clusters.folder("ts")
    version = own_version(cluster.data)
    (spot / version).mkdir(parents=True)
    hand_over(spot)
    target: Path | str = spot
    if planted == "link":
        target = spot.with_name("ts-link")
        target.symlink_to(spot)
    elif planted == "foreign":
        target = spot.parent / "another"
        (target / version).mkdir(parents=True)
        if os.getuid() == 0:
            os.chown(target, 65534, 65534)
        else:
            target = Path("/usr")
    elif planted == "relative":
        target = "../../ts"
    else:
        (spot / version).rmdir()
    (cluster.data / "pg_tblspc" / "16385").symlink_to(target)
    with pytest.raises(CaptureError if planted == "unmounted" else UnsupportedClusterError) as caught:
        listing_of(cluster.data)
    assert "16385" in caught.value.message
    assert ("is a link itself" in caught.value.message) is (planted == "link")
    assert caught.value.hint


def test_t9_files_that_vanish_during_the_listing_are_no_error(server: Cluster) -> None:
    with server.connect() as busy:
        for round_number in range(8):
            for number in range(12):
                busy.execute(f"create table churn_{number}(i int primary key, t text)".encode())
            before = listing_of(server.data)
            for number in range(12):
                busy.execute(f"drop table churn_{number}".encode())
            busy.execute("checkpoint")
            after = listing_of(server.data)
            assert paths(before) != paths(after), round_number
            vanished = [path for path in paths(before) if not (server.data / path).exists()]
            assert vanished


def test_t9_a_directory_that_vanishes_between_its_name_and_its_content_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "base" / "5").mkdir(parents=True)
    (tmp_path / "base" / "5" / "1").write_bytes(b"")
    with os.scandir(tmp_path / "base") as entries:
        entry = next(iter(entries))
        shutil.rmtree(tmp_path / "base" / "5")
        walk = layout._Walk(version_directory="PG_15_202209061")
        layout._visit_directory(entry, "base/5", 0o700, walk)
    assert walk.files == []
