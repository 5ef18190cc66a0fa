"""Side restores and extracts: what comes back of one database, and that nothing else looks as if it had."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice import processes
from drservice.clock import to_iso
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError, ProofError, ReplayError, UnknownNameError
from drservice.model.recovery import Target, TargetKind
from drservice.operations import selection
from drservice.operations.restore import run_restore
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import Pusher, TempEstate
from tests.doubles.sidehistory import BIG_ROWS, HOSTILE, LARGE, SMALL, SideHistory

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "one-table.md"
EXTRACT = {
    "schema", "run", "service", "database", "tables", "format", "target", "snapshot", "output", "left_out", "lacks",
    "load_command", "known_problems", "phases", "dump_seconds", "restored_bytes", "fetched_bytes",
    "documents",
}  # fmt: skip
"""Names of the document: a contract."""


@pytest.fixture(scope="module")
def told(template_cache: Path) -> Iterator[SideHistory]:
    maker = ClusterMaker(cache=template_cache)
    history = SideHistory.over(maker)
    yield history
    history.estate.close()
    maker.close()


@pytest.fixture(scope="module")
def elsewhere(template_cache: Path) -> Iterator[Cluster]:
    """Another cluster, with a role that may do nothing."""
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make()
    cluster.start()
    cluster.sql("create role plain login")
    yield cluster
    maker.close()


def extracted(history: SideHistory, at: datetime, *words: str | Path, **how: Any) -> dict[str, Any]:
    return history.estate.json("extract", "erp", "--to", to_iso(at), *words, **how)


def refused(history: SideHistory, at: datetime, *words: str | Path, status: int = 2) -> dict[str, Any]:
    return history.estate.refusal("extract", "erp", "--to", to_iso(at), *words, status=status)


class Side:
    """A side restore in this process that is left running."""

    def __init__(self, history: SideHistory, at: datetime, database: str) -> None:
        self._history = history
        request = history.estate.request(Target(kind=TargetKind.TIME, time=at))
        self._request = replace(request, database=database)

    def __enter__(self) -> Any:
        with self._history.estate.plane() as plane:
            self.result = run_restore(self._history.estate.restore_context(plane), self._request)
        return self.result

    def __exit__(self, *exception: object) -> None:
        open_sandbox(self.result.environment.path).destroy()


def asked(result: Any, database: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(f"{result.environment.dsn} dbname={database}") as connection:
        return connection.execute(query.encode()).fetchall()


def not_restored(history: SideHistory, at: datetime, database: str) -> DrError:
    with pytest.raises(DrError) as caught, Side(history, at, database):
        pass
    assert history.estate.environments() == []
    return caught.value


def load(elsewhere: Cluster, database: str, command: str) -> None:
    """Load a dump with the very command that was printed, as a role that owns an empty database and nothing else."""
    elsewhere.sql(f"create database {database} owner plain")
    line = command.replace("TARGET", f'"{elsewhere.dsn(database, "plain")}"')
    done = processes.run(
        ["sh", "-c", line], environment=processes.clean_environment({"PATH": f"{elsewhere.bin}:/usr/bin:/bin"})
    )
    assert done.status == 0, done.stderr.decode()


def orders_in(elsewhere: Cluster, database: str, table: str = "orders") -> list[tuple[Any, ...]]:
    return elsewhere.sql(f"select * from {table} t order by t::text", database=database)


# --- one database ---------------------------------------------------------------------------------------------------


def test_one_database_comes_back_as_it_was_and_little_else_is_fetched(told: SideHistory) -> None:
    with Side(told, told.whole, SMALL) as result:
        assert asked(result, SMALL, "select * from orders t order by t::text") == told.orders
        assert asked(result, SMALL, 'select * from "Lines of orders" t order by t::text') == told.lines
        assert result.side.database == result.database == SMALL
        assert set(result.side.left_out) == {LARGE, "third"}
        assert result.side.pages_passed_over > 1000, "the vacuum was to meet pages that are not there"
        source = result.planned.resolved.plan.snapshot.source_bytes
        sizes = sum(path.stat().st_size for path in (told.cluster.data / "base" / "16385").glob("*"))
        assert result.restored_bytes <= source - sizes // 2, "the large database was to be left out"
        assert result.fetched_bytes < result.restored_bytes / 3, "compressed, and without the large database"
        with pytest.raises(psycopg.OperationalError, match=f'invalid database "{LARGE}"'):
            asked(result, LARGE, "select 1")
        barred = asked(result, "postgres", "select datname from pg_database where not datallowconn")
        assert {name for (name,) in barred} == {LARGE, "third", "template0"}
        ballast = open_sandbox(result.environment.path).data / told.ballast
        assert ballast.stat().st_size == (told.cluster.data / told.ballast).stat().st_size > 1_000_000
        assert ballast.stat().st_blocks == 0, "left out means no space, either"
    assert told.estate.json("info", "erp")["services"][0]["verified_at"] is None, "one database proves no snapshot"


@pytest.mark.long
def test_a_page_that_should_be_there_and_is_not_fails_a_side_restore(
    told: SideHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = selection.select_files

    def losing(reader: Any, name: str) -> Any:
        found = real(reader, name)
        kept = found.selection.kept | {16385}

        class Losing(type(found.selection)):  # type: ignore[misc]  # the large one counts as kept but is not placed
            __slots__ = ()

            def wants(self, path: bytes) -> bool:
                return found.selection.wants(path)

        fields = {name: getattr(found.selection, name) for name in ("name", "candidates", "holders", "left_out")}
        return replace(found, selection=Losing(**fields, kept=kept))

    for module in list(sys.modules.values()):
        if getattr(module, "select_files", None) is real:
            monkeypatch.setattr(module, "select_files", losing)
    error = not_restored(told, told.whole, SMALL)
    assert isinstance(error, ReplayError)
    assert re.search(r"page \d+ of base/16385/\d+, which the snapshot does not have", error.message)


@pytest.mark.long
def test_databases_that_were_renamed_dropped_made_or_exchanged_after_the_snapshot(told: SideHistory) -> None:
    with Side(told, told.spoilt, "third") as result:
        assert result.database == "archive", "asked for by the name it had in the snapshot"
        assert asked(result, "archive", "select id from notes") == [(1,)]
        assert {"copied", "fresh"} <= set(result.side.left_out)
    error = not_restored(told, told.spoilt, "archive")
    assert "has no database archive" in error.message
    assert "third" in str(error.hint)
    assert "earlier name" in str(error.hint)
    for database in ("fresh", "copied"):
        assert isinstance(not_restored(told, told.spoilt, database), UnknownNameError)
    exchanged = not_restored(told, told.dropped, SMALL)
    assert "is not the one that the snapshot has" in exchanged.message


@pytest.mark.long
def test_a_database_copied_from_one_that_was_left_out_is_never_given_for_whole(
    told: SideHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are copied by replay from holes, so nobody could tell by its name."""

    def any_other(session: Any, chosen: Any) -> tuple[int, str]:
        del chosen
        ((oid,),) = session.rows("select oid::bigint from pg_database where datname = 'copied'")
        return oid, "copied"

    monkeypatch.setattr(selection, "_the_one", any_other)
    monkeypatch.setattr(selection, "_bar", lambda _session, _selection: ())
    error = not_restored(told, told.spoilt, SMALL)
    assert isinstance(error, ProofError)
    assert "file_copy" in str(error.hint)


@pytest.mark.long
def test_a_kept_directory_holds_the_one_database_and_refuses_the_others(
    told: SideHistory, template_cache: Path
) -> None:
    place = told.into("kept")
    place.mkdir()
    hand_over(place)
    data = place / "data"
    words = ("restore", "erp", "--to", to_iso(told.whole), "--database", SMALL, "--into", data)
    document = told.estate.json(*words)
    assert document["database"] == SMALL
    assert document["left_out"] == ["third", LARGE]
    maker = ClusterMaker(cache=template_cache)
    try:
        kept = maker.over(data)
        kept.start([("archive_mode", "off")])
        assert kept.sql("select * from orders t order by t::text", database=SMALL) == told.orders
        with pytest.raises(psycopg.OperationalError, match="invalid database"):
            kept.sql("select 1", database=LARGE)
    finally:
        maker.close()
    assert told.estate.refusal(*words, status=2)["code"] == "DR311", "never over something that is there"


def test_a_dry_run_says_what_would_be_left_out(told: SideHistory) -> None:
    plan = told.estate.json("restore", "erp", "--to", to_iso(told.whole), "--database", SMALL, "--dry-run")
    assert plan["left_out"] == ["third", LARGE]
    assert plan["placed_bytes"] + plan["left_out_bytes"] == plan["source_bytes"]
    assert plan["left_out_bytes"] > BIG_ROWS * 100
    unknown = told.estate.refusal(
        "restore", "erp", "--to", to_iso(told.whole), "--database", "plnat", "--dry-run", status=2
    )
    assert "It has: plant, postgres, template0, template1, third, warehouse" in unknown["hint"]


# --- as a file ------------------------------------------------------------------------------------------------------


def test_an_extract_loads_unprivileged_elsewhere_and_equals_the_instant(told: SideHistory, elsewhere: Cluster) -> None:
    output = told.into("plant.dump")
    document = extracted(told, told.whole, "--database", SMALL, "--output", output)
    assert set(document) >= EXTRACT
    assert document["schema"] == "drservice/extract/v1"
    assert set(document["left_out"]) == {LARGE, "third"}
    assert sorted(document["tables"]) == [
        "public.Lines of orders", "public.customers", "public.orders", "public.parts_2025", "sales.orders",
        'sales.x"\n\\! touch hostile\n\\copy',
    ]  # fmt: skip
    assert output.stat().st_mode & 0o777 == 0o600
    assert document["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert told.estate.environments() == [], "nothing is left running"
    assert not list(output.parent.glob(".*.part"))
    load(elsewhere, "whole", document["load_command"])
    assert orders_in(elsewhere, "whole") == told.orders
    assert orders_in(elsewhere, "whole", '"Lines of orders"') == told.lines
    assert elsewhere.sql(f"select * from {HOSTILE}", database="whole") == [(7,)]
    record = told.estate.json("evidence", "list")["records"][0]
    shown = told.estate.json("evidence", "show", str(record["record"]))
    assert f"extract of database {SMALL}" in str(shown)
    assert record["outcome"] == "partial", "an extract proves nothing about the rest"


def test_the_commands_of_the_how_to_bring_one_table_back(told: SideHistory, elsewhere: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    program = tmp_path / "drservice"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m drservice --config {told.estate.config} "$@"\n')
    program.chmod(0o755)
    elsewhere.sql("create role rescuer login createdb")
    blanks = {
        "SERVICE": "erp",
        "TARGET": to_iso(told.whole),
        "DATABASE": SMALL,
        "TABLE": 'public."Lines of orders"',
        "WORK": str(place),
        "LOADING": elsewhere.dsn("postgres", "rescuer"),
    }
    paths = {"PATH": f"{tmp_path}:{elsewhere.bin}:/usr/bin:/bin", "HOME": str(tmp_path)}
    blocks = re.findall(r"```sh\n(.*?)\n```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        done = processes.run(
            ["sh", "-e", "-c", block],
            cwd=tmp_path,
            environment=processes.clean_environment({**paths, **blanks}),
            timeout_seconds=120,
        )
        assert done.status == 0, f"{block}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    assert orders_in(elsewhere, "rescue", '"Lines of orders"') == told.lines


@pytest.mark.long
def test_a_table_with_partitions_brings_its_rows_and_says_what_it_lacks(told: SideHistory, elsewhere: Cluster) -> None:
    output = told.into("tables.dump")
    document = extracted(
        told, told.whole, "--database", SMALL, "--output", output,
        "--table", "public.orders", "--table", "public.parts", "--table", 'public."Lines of orders"',
    )  # fmt: skip
    assert sorted(document["tables"]) == ["public.Lines of orders", "public.orders", "public.parts_2025"]
    assert document["lacks"] == ["table public.customers", "type public.state"]
    elsewhere.sql("create database parts owner plain")
    elsewhere.sql(
        "create type state as enum ('open', 'done'); create table customers (id int primary key, name text);"
        " insert into customers select i from generate_series(1, 20) i;"
        " alter type state owner to plain; alter table customers owner to plain",
        database="parts",
    )
    line = document["load_command"].replace("TARGET", f'"{elsewhere.dsn("parts", "plain")}"')
    done = processes.run(["sh", "-c", line], environment=processes.clean_environment())
    assert done.status == 0, done.stderr.decode()
    assert orders_in(elsewhere, "parts") == told.orders
    assert elsewhere.sql("select count(*) from parts", database="parts") == [(1,)]


@pytest.mark.long
def test_plain_sql_is_written_by_a_safe_program_or_on_demand_only(told: SideHistory, elsewhere: Cluster) -> None:
    output = told.into("plant.sql")
    words = ("--database", SMALL, "--format", "sql", "--output", output)
    version = processes.run([elsewhere.bin / "pg_dump", "--version"]).stdout.decode()
    minor = int(re.findall(r"15\.(\d+)", version)[0]) if " 15." in version else 99
    if minor < 19:
        error = refused(told, told.whole, *words)
        assert error["code"] == "DR604"
        assert "CVE-2026-18408" in error["message"]
        assert not output.exists()
    document = extracted(told, told.whole, *words, "--accept-known-problems")
    assert output.read_text().rstrip().splitlines()[-1].startswith(("--", "\\unrestrict"))
    load(elsewhere, "plainly", document["load_command"])
    assert orders_in(elsewhere, "plainly") == told.orders
    assert elsewhere.sql(f"select * from {HOSTILE}", database="plainly") == [(7,)]


def test_what_is_there_is_not_overwritten_and_what_is_unknown_is_named(told: SideHistory) -> None:
    output = told.into("taken.dump")
    output.write_text("mine")
    assert refused(told, told.whole, "--database", SMALL, "--output", output)["code"] == "DR322"
    assert output.read_text() == "mine"
    unknown = refused(told, told.whole, "--database", "plnat", "--output", told.into("never.dump"))
    assert unknown["code"] == "DR103"
    assert "It has: plant," in unknown["hint"]
    bad = refused(told, told.whole, "--database", SMALL, "--table", "orders", "--output", told.into("never.dump"))
    assert bad["code"] == "DR100"
    assert not told.into("never.dump").exists()


@pytest.mark.long
@pytest.mark.parametrize("variant", ["checksums", "no full pages"])
def test_replay_passes_over_what_is_left_out_with_checksums_and_without_page_images(
    template_cache: Path, variant: str
) -> None:
    maker = ClusterMaker(cache=template_cache)
    try:
        pages = "off" if variant == "no full pages" else "on"
        history = SideHistory.over(maker, checksums=variant == "checksums", full_page_writes=pages)
        with Side(history, history.whole, SMALL) as result:
            assert asked(result, SMALL, "select * from orders t order by t::text") == history.orders
            passed = result.side.pages_passed_over
            assert passed > 1000 if pages == "off" else passed < 1000, "with checksums a vacuum brings page images"
        history.estate.close()
    finally:
        maker.close()


@pytest.mark.long
def test_databases_in_tablespaces_are_brought_back_and_left_out_alike(template_cache: Path) -> None:
    maker = ClusterMaker(cache=template_cache)
    try:
        cluster = maker.make(checksums=False, wal_segment_mb=1, settings={"autovacuum": "off"})
        estate = TempEstate.over(cluster)
        estate.initialise()
        cluster.configure(archive_mode="on", archive_command="''")
        cluster.start()
        cluster.sql(f"create tablespace space location '{maker.folder('space')}'")
        for name in ("inside", "beside"):
            cluster.sql(f"create database {name} tablespace space")
            cluster.sql("create table t as select generate_series(1, 50000) i", database=name)
        cluster.sql("checkpoint")
        with Pusher(estate) as pusher:
            estate.backup()
            cluster.sql("vacuum t", database="beside")
            cluster.sql("insert into t values (0)", database="inside")
            pusher.drain(cluster.switch_wal())
        cluster.stop()
        request = replace(estate.request(Target(kind=TargetKind.LATEST)), database="inside")
        with estate.plane() as plane:
            result = run_restore(estate.restore_context(plane), request)
        assert asked(result, "inside", "select count(*) from t") == [(50_001,)]
        assert result.side is not None
        assert result.side.left_out == ("beside",)
        assert result.side.pages_passed_over > 100
        estate.close()
    finally:
        maker.close()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["fetch and place ...", "replay WAL ...", "prove the target ..."])
def test_an_extract_that_is_told_to_end_leaves_nothing_and_says_so(told: SideHistory, stage: str) -> None:
    output = told.into("ended.dump")
    words = ("extract", "erp", "--to", to_iso(told.whole), "--database", SMALL, "--output", str(output))
    argv = [sys.executable, "-m", "drservice", "--config", str(told.estate.config), *words]
    process = processes.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr:
        assert any(stage.encode() in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.wait(60) == 130
    assert told.estate.environments() == []
    assert not [path for path in output.parent.iterdir() if "ended.dump" in path.name]
    record = told.estate.json("evidence", "list")["records"][0]
    assert (record["kind"], record["outcome"]) == ("restore", "failed")


@pytest.mark.long
def test_an_unknown_table_ends_without_a_file_or_an_environment(told: SideHistory) -> None:
    output = told.into("never.dump")
    error = refused(told, told.whole, "--database", SMALL, "--table", "public.ordesr", "--output", output)
    assert "public.orders" in error["hint"]
    assert not output.exists()
    assert told.estate.environments() == []
    assert "outcome': 'failed" in str(told.estate.json("evidence", "show", str(newest(told.estate))))


def newest(estate: TempEstate) -> int:
    number: int = estate.json("evidence", "list")["records"][0]["record"]
    return number


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a small file system to be mounted")
def test_no_space_for_the_file_leaves_none_and_no_environment(told: SideHistory, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = processes.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small])
    assert mounted.status == 0, mounted.stderr.decode()
    try:
        error = refused(told, told.whole, "--database", SMALL, "--output", small / "x.dump", status=1)
        assert error["code"] == "DR321"
        assert "no space left" in error["message"]
        assert list(small.iterdir()) == []
    finally:
        assert processes.run(["umount", small]).status == 0
    assert told.estate.environments() == []
