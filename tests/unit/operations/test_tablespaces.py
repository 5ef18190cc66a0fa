"""Tablespaces while WAL is replayed: what a server that ended needs, and where they lie at the end (trap T10)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from drservice.components.postgres.recovery import interpret_log
from drservice.components.postgres.server import PostgresPrograms
from drservice.components.postgres.tablespaces import Moved
from drservice.errors import EnvironmentFailedError, ProofError, RecoveryError, ReplayError
from drservice.operations.tablespaces import Tablespaces, allows_in_place

V15 = PostgresPrograms(major=15, minor=4, directory=Path("/nowhere"))


def died(location: str, oid: int = 16390) -> str:
    """Return what servers 13 to 18 say when the location of a CREATE TABLESPACE is not there."""
    return (
        "2026-01-01 00:00:00.000 UTC [2] LOG:  starting PostgreSQL 15.4 on x86_64\n"
        f'2026-01-01 00:00:00.000 UTC [5] FATAL:  directory "{location}" does not exist\n'
        "2026-01-01 00:00:00.000 UTC [5] HINT:  Create this directory for the tablespace before restarting.\n"
        "2026-01-01 00:00:00.000 UTC [5] CONTEXT:  WAL redo at 0/3000148 for Tablespace/CREATE: "
        f'{oid} "{location}"\n'
        "2026-01-01 00:00:00.000 UTC [2] LOG:  startup process (PID 5) exited with exit code 1\n"
    )


class Place:
    """An environment that is a folder and a log."""

    def __init__(self, root: Path) -> None:
        self.data = root / "data"
        (self.data / "pg_tblspc").mkdir(parents=True)
        self.links: dict[str, str] = {}
        self.log = ""

    def share(self, folders: Sequence[Path], *, links: Mapping[str, str]) -> None:
        if any(path.startswith("/usr") for path in links):
            raise EnvironmentFailedError("it cannot be provided")
        assert not folders
        self.links.update(links)

    def server_log(self) -> str:
        return self.log


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def spaces_of(place: Place, *moved: Moved) -> Tablespaces:
    environment: Any = place
    return Tablespaces(environment=environment, account=None, moved=moved, locations={})


def run(spaces: Tablespaces, place: Place, *logs: str) -> int:
    """Let a server end with each of these logs, then succeed; return how often it was started."""
    starts = iter(logs)
    count = 0

    def start() -> None:
        nonlocal count
        count += 1
        place.log += next(starts, "starting PostgreSQL\n")

    def wait() -> Any:
        if count <= len(logs):
            raise ReplayError("PostgreSQL ended during recovery")
        return interpret_log(place.log)

    spaces.replay(start, wait)
    return count


def test_t10_a_location_that_the_server_names_is_provided_and_recovery_goes_on(place: Place) -> None:
    spaces = spaces_of(place)
    assert run(spaces, place, died("/disk/new"), died("/disk/other", 16391)) == 3
    assert place.links == {
        "/disk/new": "/env/data/pg_tblspc.drservice/16390",
        "/disk/other": "/env/data/pg_tblspc.drservice/16391",
    }
    (place.data / "pg_tblspc.drservice" / "16390" / "PG_15_1").mkdir()
    (place.data / "pg_tblspc" / "16390").symlink_to("/disk/new")  # as recovery does
    found = spaces.settle(V15, kept=True)
    assert [(item.oid, item.location, item.in_place) for item in found] == [(16390, "/disk/new", True)]
    assert (place.data / "pg_tblspc" / "16390" / "PG_15_1").is_dir()
    assert not (place.data / "pg_tblspc" / "16390").is_symlink()
    assert sorted(path.name for path in place.data.iterdir()) == ["pg_tblspc", "postgresql.auto.conf"]
    assert "allow_in_place_tablespaces = 'on'" in (place.data / "postgresql.auto.conf").read_text()


def test_t10_a_server_that_says_no_more_than_the_path_is_understood(place: Place) -> None:
    """With ``log_error_verbosity = terse``, as of a restore of one database, no line names the OID."""
    terse = 'LOG:  starting PostgreSQL 15.4\n[5] FATAL:  directory "/disk/new" does not exist\n'
    spaces = spaces_of(place)
    run(spaces, place, terse)
    assert place.links == {"/disk/new": "/env/data/pg_tblspc.drservice/new-0"}
    (place.data / "pg_tblspc.drservice" / "new-0" / "PG_15_1").mkdir()
    (place.data / "pg_tblspc" / "16390").symlink_to("/disk/new")
    [found] = spaces.settle(V15, kept=False)
    assert (found.oid, found.location, found.in_place) == (16390, "/disk/new", True)
    assert (place.data / "pg_tblspc" / "16390" / "PG_15_1").is_dir()


def test_t10_a_tablespace_created_while_the_snapshot_was_taken_keeps_what_was_placed(place: Place) -> None:
    (place.data / "pg_tblspc" / "16390" / "PG_15_1").mkdir(parents=True)
    spaces = spaces_of(place)
    run(spaces, place, died("/disk/new"))
    # Recovery replaces what stands there by its link, which it can only if that is no folder with content.
    assert (place.data / "pg_tblspc" / "16390").readlink() == Path("/disk/new")
    assert (place.data / "pg_tblspc.drservice" / "16390" / "PG_15_1").is_dir()
    spaces.settle(V15, kept=False)
    assert (place.data / "pg_tblspc" / "16390" / "PG_15_1").is_dir()
    assert not (place.data / "postgresql.auto.conf").exists()


@pytest.mark.parametrize("known", ["/disk/new", ""], ids=["in the map", "created after the map"])
def test_t10_a_mapped_tablespace_that_is_created_again_stays_where_it_was_mapped(
    place: Place, tmp_path: Path, known: str
) -> None:
    folder = tmp_path / "mapped"
    folder.mkdir()
    spaces = spaces_of(place, Moved(oid=16390, location=known, folder=folder))
    run(spaces, place, died("/disk/new"))
    assert place.links == {"/disk/new": str(folder)}
    (place.data / "pg_tblspc" / "16390").symlink_to("/disk/new")
    [found] = spaces.settle(V15, kept=True)
    assert (found.path, found.in_place, found.location) == (folder, False, "/disk/new")
    assert (place.data / "pg_tblspc" / "16390").readlink() == folder


@pytest.mark.parametrize(
    "log",
    [
        "starting PostgreSQL\nFATAL:  the database system is on fire\n",
        died("relative"),
        died("/disk/new") + "LOG:  starting PostgreSQL 15\nFATAL:  something else\n",
    ],
    ids=["other", "relative", "earlier"],
)
def test_a_server_that_ends_for_another_reason_is_not_started_again(place: Place, log: str) -> None:
    with pytest.raises(ReplayError):
        run(spaces_of(place), place, log)
    assert not place.links


def test_a_location_that_was_provided_and_is_asked_for_again_ends_the_restore(place: Place) -> None:
    with pytest.raises(ReplayError, match=r"ended during recovery\Z"):
        run(spaces_of(place), place, died("/disk/new"), died("/disk/new"))


def test_a_location_that_cannot_be_provided_is_named(place: Place) -> None:
    with pytest.raises(ReplayError, match="a tablespace at /usr/x") as caught:
        run(spaces_of(place), place, died("/usr/x"))
    assert caught.value.hint


def test_folders_in_place_created_by_the_wal_are_allowed_at_the_next_start(place: Place) -> None:
    spaces = spaces_of(place)
    assert spaces.options(V15) == ()
    (place.data / "pg_tblspc" / "16390").mkdir()
    panic = 'starting PostgreSQL\n[5] PANIC:  unexpected directory entry "16390" found in pg_tblspc/\n'
    assert run(spaces, place, panic) == 2
    assert spaces.options(V15) == (("allow_in_place_tablespaces", "on"),)
    with pytest.raises(ReplayError):
        run(spaces, place, panic)


@pytest.mark.parametrize(("major", "minor", "known"), [(13, 7, False), (13, 8, True), (14, 5, True), (18, 0, True)])
def test_old_minor_versions_do_not_know_the_setting(major: int, minor: int, known: bool) -> None:  # noqa: FBT001 - a table
    assert allows_in_place(PostgresPrograms(major=major, minor=minor, directory=Path("/"))) is known


@pytest.mark.parametrize("planted", ["link", "file", "parent", "area", "conf"])
def test_what_a_hostile_server_plants_leads_nowhere(place: Place, tmp_path: Path, planted: str) -> None:
    production = tmp_path / "production"
    (production / "16390").mkdir(parents=True)
    (production / "postgresql.auto.conf").write_text("port = 5432\n")
    spaces = spaces_of(place)
    tblspc = place.data / "pg_tblspc"
    if planted == "link":
        (tblspc / "16390").symlink_to(production)
    elif planted == "file":
        (tblspc / "16390").touch()
    elif planted == "parent":
        tblspc.rmdir()
        tblspc.symlink_to(production)
    elif planted == "area":
        run(spaces, place, died("/disk/new"))
        os.rename(place.data / "pg_tblspc.drservice", tmp_path / "away")  # noqa: PTH104 - as a server does
        (place.data / "pg_tblspc.drservice").symlink_to(production)
        (tblspc / "16390").symlink_to("/disk/new")
    else:
        (tblspc / "16390").mkdir()
        (place.data / "postgresql.auto.conf").symlink_to(production / "postgresql.auto.conf")
    with pytest.raises(ProofError if planted in {"link", "file"} else RecoveryError):
        spaces.settle(V15, kept=True)
    assert sorted(path.name for path in production.iterdir()) == ["16390", "postgresql.auto.conf"]
    assert (production / "postgresql.auto.conf").read_text() == "port = 5432\n"
