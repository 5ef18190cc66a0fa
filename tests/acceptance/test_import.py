"""Odoo's own zip becomes a recovery point: restored, drilled and given back as a zip, it is what it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.clock import from_iso
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError
from drservice.model.ids import ComponentName, ServiceName
from drservice.repository.writer import lock_path
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, wait_for
from tests.doubles.odoobusiness import create_office
from tests.doubles.odoozips import manifest, write_zip
from tests.doubles.plant import CHECKS, DATABASE, Plant

SERVICE = "imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A plant whose server is known to the service ``imported`` by its zip only."""

    plant: Plant
    zip: Path
    told: bytes
    imported: dict[str, Any]

    def zip_with(
        self, name: str, *, lost: str | None = None, told: bytes | None = None, dump: bytes | None = None
    ) -> Path:
        """Write the plant's zip again, with something changed."""
        with zipfile.ZipFile(self.zip) as archive:
            named = {
                item.removeprefix("filestore/"): archive.read(item)
                for item in archive.namelist()
                if item.startswith("filestore/") and item != f"filestore/{lost}"
            }
            rows = archive.read("dump.sql")
        return write_zip(self.plant.root / name, dump=dump or rows, told=told or self.told, named=named)

    def dump(self, dsn: str) -> bytes:
        """Return all of a database's structure and rows, without what a dump leaves to its loader."""
        argv = ["pg_dump", "--no-owner", "--no-privileges", f"--dbname={dsn} dbname={DATABASE}"]
        lines = subprocess.run(argv, check=True, capture_output=True).stdout.splitlines()
        return b"\n".join(line for line in lines if not line.startswith((b"\\restrict", b"\\unrestrict")))


def configured(plant: Plant) -> None:
    """Give the configuration services whose servers nobody here can reach."""
    document = plant.document()

    def unreachable(name: str) -> dict[str, Any]:
        return {
            "owner": "plant-it@example.com",
            "objectives": {"rpo": "26h", "rto": "5m"},
            "components": {
                "database": {"kind": "postgres", "dsn": f"host=/nowhere/{name} dbname={DATABASE} user=drservice"},
                "documents": {"kind": "odoo-filestore", "path": f"/nowhere/{name}/filestore", "database": DATABASE},
            },
            "checks": CHECKS,
        }

    document["services"] |= {name: unreachable(name) for name in (SERVICE, "other", "trapped")}
    document["drills"]["nightly"] = {"service": SERVICE, "target": "latest", "neutralize": False}
    plant.estate.config.write_text(json.dumps(document))


def odoo_backup(plant: Plant, path: Path) -> bytes:
    """Make the zip as Odoo does: manifest, plain dump without owners, filestore; return the manifest."""
    argv = ["pg_dump", "--no-owner", f"--dbname={plant.cluster.dsn(DATABASE)}"]
    dump = subprocess.run(argv, check=True, capture_output=True).stdout
    modules = dict(plant.sql("select name, latest_version from ir_module_module where state = 'installed'"))
    told = manifest(db_name="production", modules=modules)
    named = {name: (plant.filestore / name).read_bytes() for name in plant.acknowledged}
    write_zip(path, dump=dump, told=told, named=named)
    return told


@pytest.fixture(scope="module")
def made(template_cache: Path) -> Iterator[Made]:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=5)
    try:
        with plant.cluster.connect(DATABASE) as connection:
            create_office(connection)
            for statement in (
                "create extension unaccent",
                "alter function public.unaccent(text) immutable",
                "create index on ir_attachment (unaccent(name))",
                "grant select on stock_move to public",
                "update ir_attachment set create_date = create_date - interval '5 hours'",
            ):
                connection.execute(statement.encode())
        path = plant.root / "production_2026-11-27.zip"
        told = odoo_backup(plant, path)
        configured(plant)
        imported = plant.json("import", SERVICE, path)
        yield Made(plant=plant, zip=path, told=told, imported=imported)
    finally:
        plant.estate.close()
        maker.close()


def snapshots(plant: Plant, service: str) -> list[Path]:
    folder = plant.estate.repository / "s" / service
    return [path for kind in ("snapshots", "points") for path in folder.rglob(f"{kind}/*") if path.is_file()]


def test_what_was_imported_is_drilled_as_what_was_backed_up_and_shows_what_the_zip_has(made: Made) -> None:
    plant, imported = made.plant, made.imported
    digest = hashlib.sha256(made.zip.read_bytes()).hexdigest()
    origin = imported["origin"]
    assert (origin["file"], origin["sha256"], origin["database"]) == (made.zip.name, digest, "production")
    assert imported["state"] == "complete"
    assert imported["documents"] == {"expected": 5, "missing": [], "corrupt": [], "other_size": []}
    assert imported["left_out"] == {"privileges": 1}
    assert plant.estate.environments() == []
    (newest,) = plant.sql("select max(create_date) from ir_attachment")[0]
    assert from_iso(origin["rows_until"]) == newest.replace(microsecond=0)

    (info,) = plant.json("info", SERVICE)["services"]
    assert [point["origin"]["sha256"] for point in info["points"]] == [digest]
    assert info["points"][0]["at"] == origin["rows_until"], "a point of a dump stands for its newest row"
    assert info["seconds_at_risk"] is None
    assert "imported from a dump" in info["at_risk_problem"]

    drill = plant.json("drill", SERVICE, "--plan", "nightly", "--keep")
    try:
        assert drill["verdict"] == "passed", drill
        states = {check["name"].rpartition(":")[2]: check["state"] for check in drill["checks"]}
        assert states["posted-lines"] == "passed", f"the baseline is what the loaded copy said: {states}"
        assert 5 * 3600 <= drill["rpo_seconds"] < 6 * 3600, "the loss counts from the newest row, not from the import"
        assert made.dump(drill["environment"]["dsn"]) == made.dump(plant.cluster.dsn(DATABASE))
        placed = {str(path.relative_to(path.parent.parent)) for path in documents_below(drill["environment"]["path"])}
        assert placed == set(plant.acknowledged)
    finally:
        plant.json("environment", "destroy", drill["environment"]["id"])


def documents_below(environment: str) -> list[Path]:
    return [path for path in Path(environment, "files", "documents").rglob("*") if path.is_file()]


def test_the_record_names_the_zip(made: Made) -> None:
    records = made.plant.json("evidence", "list")["records"]
    number = next(item["record"] for item in records if item["kind"] == "backup" and item["service"] == SERVICE)
    predicate = made.plant.json("evidence", "show", str(number))["statement"]["predicate"]
    assert predicate["origin"] == made.imported["origin"]
    assert predicate["components"][0]["method"] == "odoo-zip"


def test_a_zip_without_a_document_is_refused_and_nothing_of_it_stays(made: Made) -> None:
    plant, lost = made.plant, made.plant.acknowledged[0]
    path = made.zip_with("lost.zip", lost=lost)
    before = snapshots(plant, "other")
    error = plant.estate.refusal("import", "other", path, status=5)
    assert error["code"] == "DR791"
    assert lost in error["message"]
    assert snapshots(plant, "other") == before, "nothing is stored of it"
    assert plant.estate.environments() == []


TRAPS = b"""
CREATE SCHEMA trap;
CREATE FUNCTION trap.sprung() RETURNS boolean LANGUAGE plpgsql AS $$ begin
  if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
    copy (select 1) to program 'touch sprung';
    raise exception 'a trap was sprung by a superuser';
  end if;
  return true;
end $$;
CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS
  $$ select pg_catalog.set_config($1, $2, $3) where trap.sprung() $$;
CREATE FUNCTION trap.to_regclass(text) RETURNS regclass LANGUAGE sql AS
  $$ select pg_catalog.to_regclass($1) where trap.sprung() $$;
CREATE VIEW trap.ir_attachment AS SELECT * FROM public.ir_attachment WHERE trap.sprung();
DO $$ begin
  execute pg_catalog.format('alter database %I set search_path = trap, pg_catalog, public', current_database());
end $$;
UPDATE public.ir_attachment SET create_date = now() + interval '1 year' WHERE id = (
  SELECT min(id) FROM public.ir_attachment);
"""
"""What the owner of a database can leave in it for whoever asks it next and may do more than he, and a row that makes
the dump look new."""


def test_what_a_dump_leaves_for_a_superuser_meets_none_and_its_future_does_not_make_it_new(made: Made) -> None:
    with zipfile.ZipFile(made.zip) as archive:
        dump = archive.read("dump.sql")
    end = b"--\n-- PostgreSQL database dump complete"
    trapped = made.zip_with("trapp\udce9.zip", dump=dump.replace(end, TRAPS + end))
    done = made.plant.json("import", "trapped", trapped)
    assert (done["state"], done["documents"]["expected"], done["notes"]) == ("complete", 5, made.imported["notes"])
    assert done["origin"]["file"] == "trapp\\xe9.zip", "a name that is no UTF-8, as an old server has them"
    assert done["origin"]["rows_until"] == made.imported["origin"]["rows_until"]


@pytest.mark.long
def test_what_the_zip_lacks_is_imported_as_production_s_damage_and_named_ever_after(made: Made) -> None:
    plant, lost = made.plant, made.plant.acknowledged[0]
    done = plant.json("import", "other", made.zip_with("damaged.zip", lost=lost), "--accept-damage", status=3)
    assert done["documents"]["missing"] == [lost]
    assert done["state"] == "degraded"
    restored = plant.json("restore", "other", "--to", "latest", "--start", status=3)
    plant.json("environment", "destroy", restored["environment"]["id"])
    assert restored["documents"]["missing_in_production"] == 1


@pytest.mark.long
def test_a_restore_and_a_zip_of_it_have_all_that_was_imported(made: Made) -> None:
    plant = made.plant
    restored = plant.json("restore", SERVICE, "--to", "latest", "--start")
    try:
        assert restored["documents"] == {"expected": 5, "missing": [], "corrupt": []} | restored["documents"]
        assert made.dump(restored["environment"]["dsn"]) == made.dump(plant.cluster.dsn(DATABASE))
    finally:
        plant.json("environment", "destroy", restored["environment"]["id"])
    output = plant.root / "back.zip"
    words = ("--database", DATABASE, "--format", "odoo-zip", "--accept-known-problems", "--output", output)
    plant.json("extract", SERVICE, "--to", "latest", *words)
    with zipfile.ZipFile(output) as back, zipfile.ZipFile(made.zip) as first:
        documents = [name for name in first.namelist() if name.startswith("filestore/")]
        assert sorted(name for name in back.namelist() if name.startswith("filestore/")) == sorted(documents)
        assert all(back.read(name) == first.read(name) for name in documents)
        assert json.loads(back.read("manifest.json"))["modules"] == json.loads(made.told)["modules"]
        assert rows_of(back.read("dump.sql")) == rows_of(first.read("dump.sql"))


def rows_of(dump: bytes) -> list[bytes]:
    """Return the lines of a dump without comments, privileges and what only psql reads."""
    return [line for line in dump.splitlines() if line and not line.startswith((b"--", b"\\r", b"\\u", b"GRANT"))]


@pytest.mark.long
def test_a_service_is_imported_again_and_again_and_never_beside_its_own_cluster(made: Made) -> None:
    plant = made.plant
    again = plant.json("import", SERVICE, made.zip)
    assert again["point"] != made.imported["point"]
    plant.json("backup", "erp")
    error = plant.estate.refusal("import", "erp", made.zip, status=2)
    assert error["code"] == "DR792"
    plant.json("init", "--adopt", "erp")
    error = plant.estate.refusal("import", "erp", made.zip, status=2)
    assert error["code"] == "DR792", "whom the next backup may come from says nothing about dumps"
    assert "a cluster of its own" in error["message"]


@pytest.mark.long
def test_a_server_is_backed_up_after_an_import_without_any_ceremony(made: Made) -> None:
    plant = made.plant
    document = json.loads(plant.estate.config.read_text())
    there = document["services"]["erp"]["components"]
    document["services"]["late"] = {
        **document["services"]["other"],
        "components": {"database": there["database"], "documents": there["documents"]},
    }
    plant.estate.config.write_text(json.dumps(document))
    plant.json("import", "late", made.zip)
    plant.estate.archive_by(plant.estate.push_command().replace("--service erp", "--service late"))
    plant.cluster.sql("select pg_reload_conf()")
    done = plant.json("backup", "late")
    assert done["state"] == "complete", "the import pins no cluster: WAL and snapshots of the server are believed"
    error = plant.estate.refusal("import", "late", made.zip, status=2)
    assert error["code"] == "DR792"


@pytest.mark.long
@pytest.mark.parametrize("what", ["modules", "cut", "psql", "neutralized", "superuser"])
def test_a_zip_that_is_not_what_it_says_leaves_nothing(made: Made, what: str) -> None:
    plant, before = made.plant, snapshots(made.plant, "other")
    with zipfile.ZipFile(made.zip) as archive:
        dump = archive.read("dump.sql")
    end = b"--\n-- PostgreSQL database dump complete"
    told = None
    match what:
        case "modules":
            told, code = manifest(modules={**json.loads(made.told)["modules"], "base": "18.0.1.3"}), "DR790"
        case "cut":
            dump, code = dump[: int(len(dump) * 0.55)], "DR790"
        case "psql":
            dump, code = dump.replace(end, b"\\! touch /tmp/never\n" + end), "DR790"
        case "superuser":
            dump, code = dump.replace(end, b"COPY pg_class TO PROGRAM 'id';\n" + end), "DR790"
        case _:
            mark = b"insert into public.ir_config_parameter (key, value) values ('drservice.neutralized', 'X');\n"
            dump, code = dump.replace(end, mark + end), "DR782"
    status = 1 if code == "DR782" else 5
    error = plant.estate.refusal("import", "other", made.zip_with(f"{what}.zip", told=told, dump=dump), status=status)
    assert error["code"] == code
    assert snapshots(plant, "other") == before
    assert plant.estate.environments() == []


@pytest.mark.long
def test_what_fails_after_the_database_was_captured_commits_none_of_it(made: Made) -> None:
    plant, before = made.plant, snapshots(made.plant, "other")
    lock = lock_path(plant.estate.state, ServiceName("other"), ComponentName("documents"))
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        error = plant.estate.refusal("import", "other", made.zip, status=6)
    assert error["code"] == "DR110"
    assert snapshots(plant, "other") == before
    assert plant.estate.environments() == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_import_that_is_stopped_commits_nothing_and_leaves_nothing_running(
    made: Made, number: signal.Signals
) -> None:
    plant, before = made.plant, snapshots(made.plant, "other")
    with zipfile.ZipFile(made.zip) as archive:
        dump = archive.read("dump.sql")
    end = b"--\n-- PostgreSQL database dump complete"
    path = made.zip_with("slow.zip", dump=dump.replace(end, b"select pg_sleep(60);\n" + end))
    argv = [*PROGRAM, "--config", str(plant.estate.config), "import", "other", str(path), "--json"]
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: sleeps(plant), "the import to be loading", 60.0)
        running.send_signal(number)
        running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert snapshots(plant, "other") == before
    if number is signal.SIGKILL:  # its environment goes with the next one that is made, or with the reaper
        plant.json("environment", "list")
        for name in plant.estate.environments():
            plant.json("environment", "destroy", name)
    assert plant.estate.environments() == []


def sleeps(plant: Plant) -> bool:
    """Tell whether a server in an environment is at the statement that takes a minute."""
    for name in plant.estate.environments():
        try:
            dsn = open_sandbox(plant.estate.state / "environments" / name).dsn
            with psycopg.connect(dsn) as connection:
                asked = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'"
                return connection.execute(asked.encode()).fetchone() == (1,)
        except (DrError, psycopg.OperationalError):
            return False  # it is being made
    return False
