"""An extract for Odoo: manifest, dump and filestore of an instant in the zip that Odoo's own restore takes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice.clock import to_iso
from tests.doubles.cluster import ClusterMaker
from tests.doubles.odoobusiness import create_office
from tests.doubles.plant import DATABASE, Plant


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A plant with modules; ``removed`` is deleted, and ``late`` filed, after the instant that is asked for."""

    plant: Plant
    at: str
    expected: frozenset[str]
    lost: str
    lost_row: int
    removed: str
    removed_row: int


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=5)
    try:
        with plant.cluster.connect(DATABASE) as connection:
            create_office(connection)
        lost = plant.upload(b"lost in production")
        (plant.filestore / lost).unlink()
        removed = plant.upload(b"deleted afterwards")
        plant.json("backup", "erp", status=3)
        at, expected = to_iso(plant.now()), frozenset(plant.acknowledged) - {lost}
        ((lost_row,), (removed_row,)) = (
            plant.sql("select id from ir_attachment where store_fname = %s", (name,))[0] for name in (lost, removed)
        )
        plant.sql("select pg_sleep(0.05)")
        plant.remove(removed)
        plant.upload(b"filed afterwards")
        plant.archive()
        yield Story(
            plant=plant,
            at=at,
            expected=expected,
            lost=lost,
            lost_row=lost_row,
            removed=removed,
            removed_row=removed_row,
        )
    finally:
        plant.estate.close()
        maker.close()


def test_the_zip_has_what_odoo_restores_and_every_document_of_the_instant(story: Story) -> None:
    plant, output = story.plant, story.plant.root / "plant.zip"
    words = ("--database", DATABASE, "--format", "odoo-zip", "--accept-known-problems", "--output", output)
    done = plant.json("extract", "erp", "--to", story.at, *words, status=3)
    assert done["documents"]["missing_in_production"] == [story.lost], "it is told, and the exit status is partial"
    assert done["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    with zipfile.ZipFile(output) as archive:
        names = archive.namelist()
        assert names[:2] == ["manifest.json", "dump.sql"]
        documents = {name.removeprefix("filestore/") for name in names[2:]}
        assert documents == set(story.expected), "those of the instant: the later one is not, the deleted one is"
        for name in documents:
            assert hashlib.sha1(archive.read(f"filestore/{name}")).hexdigest() == name[3:]
        manifest = json.loads(archive.read("manifest.json"))
        dump = archive.read("dump.sql")
    assert (manifest["odoo_dump"], manifest["db_name"], manifest["version"]) == ("1", DATABASE, "19.0")
    assert manifest["version_info"][:2] == [19, 0]
    assert manifest["modules"]["base"] == "19.0.1.0"
    assert "website" not in manifest["modules"]
    assert set(manifest) == {
        "odoo_dump", "db_name", "version", "version_info", "major_version", "pg_version", "modules",
    }  # fmt: skip
    plant.cluster.sql("create database copied")
    loaded = subprocess.run(
        ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={plant.cluster.dsn('copied')}"],
        input=dump,
        capture_output=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    with plant.cluster.connect("copied") as connection:
        rows = {name for (name,) in connection.execute("select store_fname from ir_attachment").fetchall()}
    assert rows == set(story.expected) | {story.lost}


def test_a_document_is_extracted_by_its_sha_1_without_any_recovery(story: Story) -> None:
    plant, output = story.plant, story.plant.root / "one.pdf"
    name = min(story.expected)
    done = plant.json("extract", "erp", "--document", name, "--output", output)
    content = output.read_bytes()
    assert hashlib.sha1(content).hexdigest() == name[3:] == done["document"]["sha1"]
    assert done["output"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert done["document"]["source"].startswith("snapshot ")
    assert done["target"]["reached_lsn"] is None
    assert output.stat().st_mode & 0o777 == 0o600
    again = plant.estate.refusal("extract", "erp", "--document", name, "--output", output, status=2)
    assert "exists" in again["message"]
    absent = ("extract", "erp", "--document", "0" * 40, "--output", plant.root / "absent")
    assert "no pass and no set" in plant.estate.refusal(*absent, status=2)["message"]
    assert not (plant.root / "absent").exists()


def test_nothing_found_where_nobody_could_look_is_no_answer(story: Story) -> None:
    plant = story.plant
    nodes = plant.estate.repository / "s" / "erp" / "documents" / "nodes"
    words = ("extract", "erp", "--document", "0" * 40, "--output", plant.root / "never")
    nodes.rename(nodes.with_name("aside"))
    try:
        error = plant.estate.refusal(*words, status=5)
    finally:
        nodes.with_name("aside").rename(nodes)
    assert "as far as anybody could look" in error["message"]
    assert "snapshot" in error["message"]


def test_a_document_is_extracted_by_its_row_as_of_an_instant(story: Story) -> None:
    plant, output = story.plant, story.plant.root / "row.pdf"
    row = str(story.removed_row)
    done = plant.json("extract", "erp", "--to", story.at, "--document", row, "--output", output)
    assert hashlib.sha1(output.read_bytes()).hexdigest() == done["document"]["sha1"] == story.removed[3:]
    assert done["target"]["reached_lsn"] is not None
    words = ("extract", "erp", "--to", story.at, "--output", plant.root / "never", "--document")
    error = plant.estate.refusal(*words, "999999999", status=2)
    assert "no attachment 999999999" in error["message"]
    error = plant.estate.refusal(*words, str(story.lost_row), status=5)
    assert story.lost[3:] in error["message"], "the row is there, and its document is nowhere"
    assert not (plant.root / "never").exists()
    assert plant.estate.environments() == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name what is extracted"),
        (("--database", DATABASE, "--document", "5"), "name what is extracted"),
        (("--document", "5"), "as of an instant"),
        (("--document", "../5; drop"), "neither a SHA-1"),
        (("--document", "5", "--table", "public.x"), "as it is"),
        (("--document", "5", "--component", "database"), "no odoo-filestore database"),
        (("--database", DATABASE), "as of an instant"),
    ],
)
def test_an_extract_that_names_nothing_whole_is_refused(story: Story, words: tuple[str, ...], told: str) -> None:
    output = story.plant.root / "refused"
    assert told in story.plant.estate.refusal("extract", "erp", *words, "--output", output, status=2)["message"]


def test_what_cannot_be_a_zip_for_odoo_is_refused_before_anything_begins(story: Story) -> None:
    plant, output = story.plant, story.plant.root / "never.zip"
    words = ("extract", "erp", "--to", story.at, "--format", "odoo-zip", "--output", output)
    error = plant.estate.refusal(*words, "--database", "postgres", status=2)
    assert "no odoo-filestore component" in error["message"]
    error = plant.estate.refusal(*words, "--database", DATABASE, "--table", "public.stock_move", status=2)
    assert "the whole database" in error["message"]
    assert not output.exists()
    assert plant.estate.environments() == []
