"""A service is backed up and restored as one: the database leads, its rows say which documents belong to it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from drservice.clock import to_iso
from tests.doubles.cluster import ClusterMaker
from tests.doubles.plant import DATABASE, Plant, placed


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[dict[str, object]]:
    """Two recovery points; what happened between and after them is in the dictionary. The server goes on running.

    Before the first point production has lost one document and one is damaged there; ``removed`` is deleted and
    collected between the points; ``late`` is filed after the second one.
    """
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1))
    try:
        lost = plant.upload(b"lost in production")
        (plant.filestore / lost).unlink()
        damaged = plant.upload(b"damaged in production")
        (plant.filestore / damaged).write_bytes(b"something else entirely")
        first = plant.json("backup", "erp", status=3)
        removed = plant.upload(b"deleted before the second point")
        plant.json("backup", "erp", "--component", "documents", status=3)
        before_removal = plant.now()
        plant.sql("select pg_sleep(0.05)")
        plant.remove(removed)
        second = plant.json("backup", "erp", status=3)
        after_second = plant.now()
        plant.sql("insert into stock_move (state, product_qty) values ('draft', 1)")
        late = plant.upload(b"filed after the last pass")
        plant.archive()
        yield {
            "plant": plant,
            "lost": lost,
            "damaged": damaged,
            "removed": removed,
            "late": late,
            "first": first,
            "second": second,
            "before_removal": before_removal,
            "after_second": after_second,
        }
    finally:
        plant.estate.close()
        maker.close()


def plant_of(story: dict[str, object]) -> Plant:
    plant = story["plant"]
    assert isinstance(plant, Plant)
    return plant


def test_a_backup_names_its_point_and_tells_what_production_has_lost(story: dict[str, object]) -> None:
    first = story["first"]
    assert isinstance(first, dict)
    assert (first["state"], len(first["point"])) == ("degraded", 26)
    database, documents, configuration = first["snapshots"]
    assert [item["component"] for item in first["snapshots"]] == ["database", "documents", "configuration"]
    assert documents["started_at"] > database["stopped_at"], "the pass over the files begins after the database's end"
    assert (documents["missing_in_production"], documents["corrupt_in_production"]) == (1, 1)
    assert (database["state"], documents["state"], configuration["state"]) == ("complete", "degraded", "complete")
    assert configuration["files"] == 1


def test_a_backup_of_one_component_makes_no_point(story: dict[str, object]) -> None:
    plant = plant_of(story)
    before = len(plant.json("info", "erp")["services"][0]["points"])
    done = plant.json("backup", "erp", "--component", "configuration")
    assert done["point"] is None
    assert [item["component"] for item in done["snapshots"]] == ["configuration"]
    assert len(plant.json("info", "erp")["services"][0]["points"]) == before


def test_an_unchanged_document_is_not_read_again(story: dict[str, object]) -> None:
    second = story["second"]
    assert isinstance(second, dict)
    documents = second["snapshots"][1]
    assert documents["read_bytes"] < documents["source_bytes"] / 2
    assert documents["reused_files"] > 50


def test_info_speaks_of_the_service(story: dict[str, object]) -> None:
    plant = plant_of(story)
    (service,) = plant.json("info", "erp")["services"]
    assert service["name"] == "erp"
    assert service["components"] == ["database", "documents", "configuration"]
    assert [point["state"] for point in service["points"]] == ["degraded", "degraded"]
    assert set(service["points"][-1]["snapshots"]) == {"database", "documents", "configuration"}
    assert {item["kind"] for item in service["snapshots"]} == {"postgres", "odoo-filestore", "directory"}
    assert service["wal"]["gaps"] == []
    assert service["documents_seconds_at_risk"] > 0


def test_the_gate_asks_about_documents_what_it_asks_about_wal(story: dict[str, object], tmp_path: Path) -> None:
    plant = plant_of(story)
    document = plant.document()

    def asked(**objectives: str) -> str:
        document["services"]["erp"]["objectives"] = objectives
        (tmp_path / "drservice.yaml").write_text(json.dumps(document))
        answer = plant.estate.run("gate", "erp", "--json", config=tmp_path / "drservice.yaml")
        (state,) = [check["state"] for check in json.loads(answer.stdout)["checks"] if check["name"] == "document lag"]
        return str(state)

    assert asked(documents_rpo="1h") == "ok"
    assert asked(documents_rpo="1ms") == "failed"


def test_exactly_the_documents_of_the_target_are_placed(story: dict[str, object]) -> None:
    """At this instant ``removed`` is still referred to, although production and the last snapshot lack it."""
    plant = plant_of(story)
    target = to_iso(story["before_removal"])  # type: ignore[arg-type]  # a datetime of the server
    into = plant.cluster.root / "before-removal"
    done = plant.json("restore", "erp", "--to", target, "--into", into, status=3)
    files = placed(into / "documents")
    expected = {*plant.acknowledged, str(story["removed"])} - {
        str(story["late"]),
        str(story["lost"]),
        str(story["damaged"]),
    }
    assert set(files) == expected
    assert files[str(story["removed"])] == b"deleted before the second point"
    assert done["documents"] == {
        "expected": len(expected) + 2,
        "missing": 0,
        "corrupt": 0,
        "extra": 0,
        "missing_in_production": 2,
    }
    assert placed(into / "configuration") == {"odoo.conf": b"[options]\nworkers = 4\n"}
    assert (into / "database" / "global" / "pg_control").exists()
    (item,) = [item for item in done["files"] if item["component"] == "documents"]
    assert item["recovered_from_older"] == [], "removed was not lost: its row was deleted"
    assert len(item["snapshots"]) == 2, "of three: the preferred one, and the one that had what it lacks"
    kept = [path for name in ("documents", "configuration") for path in (into / name, *(into / name).rglob("*"))]
    assert {path.stat().st_uid for path in kept} == {os.geteuid()}, "whoever restored it"
    assert stat.S_IMODE((into / "documents").stat().st_mode) == 0o700
    assert (into / "configuration").stat().st_mode == (plant.root / "configuration").stat().st_mode


def test_a_document_newer_than_the_last_pass_is_missing_and_named(story: dict[str, object]) -> None:
    plant = plant_of(story)
    done = plant.json("restore", "erp", "--to", "latest", "--start", status=3)
    try:
        assert done["documents"]["missing"] == 1
        (documents,) = [item for item in done["files"] if item["component"] == "documents"]
        assert documents["missing"] == [story["late"]]
        assert documents["missing_in_production"] == [story["lost"]]
        assert documents["corrupt_in_production"] == [story["damaged"]]
        assert documents["behind_seconds"] > 0
        assert any(note.startswith("the rows are newer than the documents") for note in documents["notes"])
        server = Path(done["environment"]["path"], "data").stat().st_uid
        paths = [Path(item["path"]) for item in done["files"]]
        assert {path.stat().st_uid for root in paths for path in (root, *root.rglob("*"))} == {server}
        with psycopg.connect(f"{done['environment']['dsn']} dbname={DATABASE}") as connection:
            (rows,) = connection.execute("select count(*) from ir_attachment").fetchone() or (0,)
        assert rows == done["documents"]["expected"]
    finally:
        plant.json("environment", "destroy", done["environment"]["id"])


def test_what_production_has_lost_since_is_told_even_if_an_older_snapshot_has_it(template_cache: Path) -> None:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=5)
    try:
        kept = plant.upload(b"lost later")
        older = plant.json("backup", "erp")["snapshots"][1]["snapshot"]
        plant.json("backup", "erp", "--component", "documents")
        (plant.filestore / kept).unlink()
        newest = plant.json("backup", "erp", status=3)["snapshots"][1]["snapshot"]
        plant.archive()
        done = plant.json("restore", "erp", "--to", "latest", "--into", plant.cluster.root / "back")
        assert placed(plant.cluster.root / "back" / "documents")[kept] == b"lost later"
        (documents,) = [item for item in done["files"] if item["component"] == "documents"]
        assert documents["recovered_from_older"] == [kept]
        assert documents["snapshots"][0] == newest
        assert len(documents["snapshots"]) == 2, "of the older ones that only which had it"
        assert older != newest
        told = plant.estate.run("restore", "erp", "--to", "latest", "--into", plant.cluster.root / "told")
        assert f"LOST IN PRODUCTION, FROM AN OLDER SNAPSHOT: {kept}" in told.stdout.decode()
    finally:
        plant.estate.close()
        maker.close()


def test_people_read_which_documents_are_missing(story: dict[str, object]) -> None:
    plant = plant_of(story)
    told = plant.estate.run("restore", "erp", "--to", "latest", "--into", plant.cluster.root / "told")
    text = told.stdout.decode()
    assert told.status == 3
    assert f"MISSING: {story['late']}" in text
    assert f"MISSING IN PRODUCTION: {story['lost']}" in text
    assert "PROBLEM: 1 documents of documents are in no snapshot" in text
    assert f"next: chown -R odoo: {plant.cluster.root / 'told' / 'documents'}" in text
    assert f"next: give {plant.cluster.root / 'told' / 'configuration'} to whoever reads it" in text


def test_one_component_can_be_restored_alone(story: dict[str, object]) -> None:
    plant = plant_of(story)
    into = plant.cluster.root / "only-database"
    done = plant.json("restore", "erp", "--to", "latest", "--component", "database", "--into", into)
    assert (into / "global" / "pg_control").exists()
    assert done["documents"]["expected"] is None
    folder = plant.cluster.root / "only-configuration"
    done = plant.json("restore", "erp", "--to", "latest", "--component", "configuration", "--into", folder)
    assert placed(folder) == {"odoo.conf": b"[options]\nworkers = 4\n"}
    refused = plant.estate.refusal("restore", "erp", "--to", "latest", "--component", "configuration", status=2)
    assert "--into" in refused["message"]


def test_a_service_without_files_keeps_the_directory_it_was_given(story: dict[str, object], tmp_path: Path) -> None:
    plant = plant_of(story)
    document = plant.document()
    del document["services"]["erp"]["components"]["documents"]
    del document["services"]["erp"]["components"]["configuration"]
    config = tmp_path / "only.yaml"
    config.write_text(json.dumps(document))
    into = plant.cluster.root / "plain"
    done = plant.json("restore", "erp", "--to", "latest", "--into", into, config=config)
    assert done["environment"]["path"] == str(into)
    assert (into / "global" / "pg_control").exists()


def test_every_backup_and_restore_is_on_record(story: dict[str, object]) -> None:
    plant = plant_of(story)
    size = plant.json("evidence", "list")["size"]
    plant.json("backup", "erp", "--component", "configuration")
    plant.json("restore", "erp", "--to", "latest", "--into", plant.cluster.root / "recorded", status=3)
    whole = plant.cluster.root / "recorded-whole"
    plant.json("restore", "erp", "--to", "latest", "--component", "database", "--into", whole)
    records = plant.json("evidence", "list", "--most", "1000")["records"][::-1]
    assert records[0]["kind"] == "key"
    assert {record["outcome"] for record in records[:size] if record["kind"] == "backup"} >= {"degraded"}
    told = [(record["kind"], record["outcome"]) for record in records[size:]]
    assert told == [("backup", "complete"), ("restore", "partial"), ("restore", "restored")]


def test_a_backup_that_fails_is_on_record_too(story: dict[str, object], tmp_path: Path) -> None:
    plant = plant_of(story)
    document = plant.document()
    document["services"]["erp"]["components"]["documents"]["path"] = str(tmp_path / "not-there")
    config = tmp_path / "broken.yaml"
    config.write_text(json.dumps(document))
    points = len(plant.json("info", "erp")["services"][0]["points"])
    refused = plant.estate.refusal("backup", "erp", config=config, status=1)
    newest = plant.json("evidence", "list", "--most", "1")["records"][0]
    shown = plant.json("evidence", "show", newest["record"])["statement"]["predicate"]
    assert (newest["kind"], newest["outcome"]) == ("backup", "failed")
    assert shown["error"]["code"] == refused["code"]
    assert [item["component"] for item in shown["components"]] == ["database"]
    assert len(plant.json("info", "erp")["services"][0]["points"]) == points, "a failed backup publishes no point"


def test_verify_looks_at_files_as_well(story: dict[str, object]) -> None:
    plant = plant_of(story)
    document = plant.json("verify", "erp", "--all")
    assert [item["component"] for item in document["components"]] == ["database", "documents", "configuration"]
    assert all(item["findings"] == [] for item in document["components"])


def test_check_asks_about_folders_rows_and_the_ledger(story: dict[str, object], tmp_path: Path) -> None:
    plant = plant_of(story)
    answers = {item["name"]: item for item in plant.json("check", "erp", status=1)["checks"]}
    assert answers["ledger anchored in second"]["remedy"] == "Run: drservice evidence anchor"
    plant.json("evidence", "anchor")
    answers = {item["name"]: item for item in plant.json("check", "erp")["checks"]}
    for name in (
        "ledger anchored in second",
        "ledger",
        "records kept aside",
        "erp/documents: folder",
        "erp/documents: rows",
    ):
        assert answers[name]["state"] == "ok", answers[name]
    document = plant.document()
    document["services"]["erp"]["components"]["documents"]["path"] = str(tmp_path / "not-there")
    document["evidence"] = {}
    config = tmp_path / "broken.yaml"
    config.write_text(json.dumps(document))
    answers = {item["name"]: item for item in plant.json("check", "erp", config=config, status=1)["checks"]}
    assert answers["erp/documents: folder"]["state"] == "failed"
    assert answers["ledger anchored"]["state"] == "warning"
    plant.sql("insert into ir_attachment (name, store_fname) values ('elsewhere', 's3://bucket/key')")
    try:
        answers = {item["name"]: item for item in plant.json("check", "erp")["checks"]}
    finally:
        plant.sql("delete from ir_attachment where name = 'elsewhere'")
    assert answers["erp/documents: rows"]["state"] == "warning"
