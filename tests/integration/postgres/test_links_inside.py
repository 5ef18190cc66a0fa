"""Links inside a data directory: what is missing in a copy is no snapshot, by either method and in any language."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from drservice import processes
from drservice.components.postgres import basebackup
from drservice.errors import UnsupportedClusterError
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import Pusher, TempEstate

METHODS = ("local", "pg_basebackup", "the protocol")
"""The last one is what method ``pg_basebackup`` does where there may be tablespaces."""


@pytest.fixture(scope="module")
def german(template_cache: Path) -> Iterator[Cluster]:
    """A server that says its warnings in German, and to nobody who does not ask for them."""
    maker = ClusterMaker(cache=template_cache)
    settings = {"archive_mode": "on", "lc_messages": "'C.UTF-8'", "client_min_messages": "error"}
    cluster = maker.make(wal_segment_mb=1, settings=settings)
    argv: list[str | Path] = [cluster.bin / "postgres", "-D", cluster.data, "-k", cluster.sock]
    with cluster.log.open("ab") as log:
        cluster.process = processes.start(
            argv,
            account=cluster.account,
            environment=processes.clean_environment({"LANGUAGE": "de"}),
            stdout=log,
            stderr=log,
        )
    cluster.wait_ready()
    cluster.sql("create table kept as select generate_series(1, 3000) i; checkpoint")
    yield cluster
    maker.close()


@pytest.fixture(params=METHODS)
def estate(request: pytest.FixtureRequest, german: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[TempEstate]:
    method = "local" if request.param == "local" else "pg_basebackup"
    if request.param == "the protocol":
        monkeypatch.setattr(basebackup, "_may_have_tablespaces", lambda _: True)
    made = TempEstate.over(german, method=method, name=request.param.replace(" ", "-"))
    made.initialise()
    with Pusher(made):
        yield made
    shutil.rmtree(made.root)


@contextmanager
def moved_away(path: Path, elsewhere: Path) -> Iterator[None]:
    """Move a file or folder to another place and leave a link."""
    elsewhere.mkdir(exist_ok=True)
    place = elsewhere / path.name
    shutil.move(path, place)
    path.symlink_to(place)
    try:
        yield
    finally:
        path.unlink()
        shutil.move(place, path)


@contextmanager
def planted(path: Path, target: Path) -> Iterator[None]:
    path.symlink_to(target)
    try:
        yield
    finally:
        path.unlink()


def test_t8_a_cluster_of_which_a_part_lies_behind_a_link_is_refused(estate: TempEstate) -> None:
    cluster = estate.cluster
    table = str(cluster.value("select pg_relation_filepath('kept')"))
    places = (table, "base/1", "pg_xact")
    with ExitStack() as links:
        for path in places:
            links.enter_context(moved_away(cluster.data / path, cluster.root / "elsewhere"))
        with pytest.raises(UnsupportedClusterError) as caught:
            estate.backup()
    assert all(f"{path} (" in caught.value.message for path in places), caught.value.message
    assert "TABLESPACE" in caught.value.hint
    with estate.plane() as plane:
        service, component = estate.parts()
        assert plane.repository.snapshots(plane.repository.scope(service.name, component.name)).records == ()


@pytest.mark.parametrize("estate", ["local", "the protocol"], indirect=True)
def test_t10_a_link_among_tablespaces_that_is_none_is_refused(estate: TempEstate) -> None:
    odd = estate.cluster.data / "pg_tblspc" / "odd"
    with planted(odd, estate.root), pytest.raises(UnsupportedClusterError, match="pg_tblspc/odd"):
        estate.backup()


def test_t8_a_link_beside_the_clusters_state_is_left_out_and_named(estate: TempEstate) -> None:
    data = estate.cluster.data
    with planted(data / "journal", estate.root), planted(data / "base" / "pgsql_tmp_disk", estate.root):
        taken = estate.backup()
    assert "left out: journal (" in " ".join(taken.notes)
    assert "pgsql_tmp" not in " ".join(taken.notes)


def test_t14_damaged_pages_are_found_in_any_language(estate: TempEstate) -> None:
    cluster = estate.cluster
    cluster.sql("create table spoiled as select generate_series(1, 2000) i; checkpoint")
    path = str(cluster.value("select pg_relation_filepath('spoiled')"))
    with (cluster.data / path).open("r+b") as file:
        file.seek(2 * 8192 + 4000)
        file.write(b"rotten")
    try:
        assert estate.backup().bad_pages == ((path, 2),)
        if estate.method != "local":
            assert "Prüfsummenüberprüfung" in cluster.log_text(), "the server speaks English: nothing was tested"
    finally:
        cluster.sql("drop table spoiled; checkpoint")
