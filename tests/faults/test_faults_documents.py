"""Documents that go wrong while they are backed up or restored: told by name and number, never silent, never a path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drservice.model.evidence import EvidenceKind
from drservice.model.points import PointState
from drservice.model.snapshot import SnapshotState
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.estate import as_user
from tests.doubles.plant import TABLES, Plant, placed
from tests.faults.plantbench import Watcher, config_with, document_of, ledger_size, make_plant, opened, predicates

ATTACHMENTS = TABLES.split(";", maxsplit=1)[0]


@pytest.fixture(scope="module")
def plant(maker: ClusterMaker) -> Iterator[Plant]:
    """A plant with a recovery point; tests mend what they break."""
    made = make_plant(maker)
    try:
        yield made
    finally:
        made.estate.close()


@contextmanager
def as_the_servers_user() -> Iterator[None]:
    """Be somebody who may not read everything, as the process of an archiving host is."""
    account = as_user("postgres")
    if account is None:
        yield
        return
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def contents(plant: Plant) -> dict[str, bytes]:
    """Return what production has filed, by name."""
    return {name: (plant.filestore / name).read_bytes() for name in plant.acknowledged}


def restored(plant: Plant, name: str, *, status: int, config: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Restore the latest position with the program; returns its document and the folder."""
    into = plant.cluster.root / name
    return plant.json("restore", "erp", "--to", "latest", "--into", into, status=status, config=config), into


def files_of(document: dict[str, Any], component: str) -> dict[str, Any]:
    (item,) = [item for item in document["files"] if item["component"] == component]
    assert isinstance(item, dict)
    return item


def packs(plant: Plant) -> set[Path]:
    return {path for path in (plant.estate.repository / "s/erp/documents/packs").rglob("*") if path.is_file()}


# --- while they are backed up ---------------------------------------------------------------------------------


def test_documents_that_vanish_shrink_or_are_closed_during_a_backup_are_told_by_name(plant: Plant) -> None:
    gone, short, closed = (plant.upload(f"{word} during the backup".encode() * 9) for word in ("gone", "short", "shut"))
    whole = contents(plant)
    fired: list[str] = []

    def strike(step: str) -> None:
        if step != "back up erp/documents" or fired:
            return
        fired.append(step)
        (plant.filestore / gone).unlink()
        os.truncate(plant.filestore / short, 5)
        (plant.filestore / closed).chmod(0)

    begin = ledger_size(plant.estate.config)
    with as_the_servers_user(), opened(plant.estate.config, watcher=Watcher(on_step=strike)) as bench:
        backup = bench.backup()
    try:
        again = plant.json("backup", "erp", status=3, account=as_user("postgres"))
    finally:
        for name in (gone, short, closed):
            (plant.filestore / name).unlink(missing_ok=True)
            plant.put_file(whole[name], name=name)
    assert fired, "nothing went wrong during the backup"
    documents = next(item for item in backup.files if item.record.component == "documents")
    assert backup.state is SnapshotState.PARTIAL
    assert backup.point is not None
    assert backup.point.state is PointState.PARTIAL
    assert documents.unreadable == ((closed, "Permission denied"),)
    assert documents.captured.record.missing == (gone.encode(),)
    assert documents.captured.record.corrupt == (short.encode(),)
    told = next(item for item in again["snapshots"] if item["component"] == "documents")
    assert told["unreadable"] == [{"path": closed, "reason": "Permission denied"}]
    assert (told["missing_in_production"], told["corrupt_in_production"]) == (1, 1)
    records = predicates(plant.estate.config, EvidenceKind.BACKUP, begin).values()
    assert [record["outcome"] for record in records] == ["partial", "partial"]
    points = plant.json("info", "erp")["services"][0]["points"]
    assert [point["state"] for point in points[-2:]] == ["partial", "partial"]
    assert plant.json("backup", "erp")["state"] == "complete", "what was mended is captured"


# --- in the repository ----------------------------------------------------------------------------------------


def test_a_damaged_pack_costs_the_documents_in_it_and_no_other(plant: Plant) -> None:
    known = packs(plant)
    lost = [plant.upload(os.urandom(4000)) for _ in range(3)]
    plant.json("backup", "erp")
    (pack,) = packs(plant) - known
    body = pack.read_bytes()
    begin = ledger_size(plant.estate.config)
    pack.unlink()
    try:
        document, into = restored(plant, "damaged", status=3)
    finally:
        pack.write_bytes(body)
        hand_over(pack.parent)
    expected = {name: body for name, body in contents(plant).items() if name not in lost}
    assert placed(into / "documents") == expected
    assert document["documents"]["corrupt"] == 3
    assert document["documents"]["missing"] == 0
    assert files_of(document, "documents")["corrupt"] == sorted(lost)
    assert any("3 documents" in problem for problem in files_of(document, "documents")["problems"])
    (record,) = predicates(plant.estate.config, EvidenceKind.RESTORE, begin).values()
    assert (record["outcome"], record["documents"]["corrupt"]) == ("partial", 3)


def test_documents_of_a_damaged_pack_come_from_an_older_snapshot_that_has_them(plant: Plant) -> None:
    known = packs(plant)
    shutil.rmtree(plant.estate.state / "cache")  # the next snapshot stores everything again, in packs of its own
    newest = plant.json("backup", "erp")["snapshots"][1]["snapshot"]
    spoilt = {pack: pack.read_bytes() for pack in packs(plant) - known}
    assert spoilt, "the newest snapshot has packs of its own"
    for pack in spoilt:
        pack.unlink()
    try:
        document, into = restored(plant, "from-older", status=0)
    finally:
        for pack, body in spoilt.items():
            pack.write_bytes(body)
            hand_over(pack.parent)
    assert placed(into / "documents") == contents(plant)
    snapshots = files_of(document, "documents")["snapshots"]
    assert snapshots[0] == newest
    assert len(snapshots) > 1, "the older ones that were looked into are named"


# --- what rows say --------------------------------------------------------------------------------------------

HOSTILE = ("../../etc/passwd", "/etc/passwd", "s3://bucket/x", "new\nline", "ab/" + "a" * 5000, "..", "ab/../../x")


def test_a_hostile_name_in_a_row_is_never_a_path_and_counts_as_not_covered(plant: Plant) -> None:
    for name in HOSTILE:
        plant.sql("insert into ir_attachment (name, store_fname) values ('hostile', %s)", (name,))
    sentence = f"{len(HOSTILE)} attachments are NOT COVERED"
    try:
        backed_up = plant.json("backup", "erp")
        plant.archive()
        document, into = restored(plant, "hostile", status=0)
        with opened(plant.estate.config) as bench:
            drill = bench.drill()
    finally:
        plant.sql("delete from ir_attachment where name = 'hostile'")
        plant.archive()
    told = next(item for item in backed_up["snapshots"] if item["component"] == "documents")
    assert any(sentence in note for note in told["notes"])
    assert any(sentence in note for note in files_of(document, "documents")["notes"])
    assert placed(into / "documents") == contents(plant)
    assert {path.name for path in into.iterdir()} == {"database", "documents", "configuration"}
    assert document["documents"]["expected"] == len(plant.acknowledged)
    assert drill.verdict.passed, drill.verdict.reasons
    assert any("documents-not-covered" in warning for warning in drill.verdict.warnings)


def test_two_databases_of_one_cluster_have_documents_of_their_own(plant: Plant, tmp_path: Path) -> None:
    """The third database has no attachments at all: nothing is expected of it, and what lies there is nobody's."""
    document = document_of(plant)
    folders = {name: plant.root / f"filestore-{name}" for name in ("second", "bare")}
    for name, folder in folders.items():
        plant.cluster.sql(f"create database {name}")
        folder.mkdir()
        document["services"]["erp"]["components"][f"{name}-documents"] = {
            "kind": "odoo-filestore",
            "path": str(folder),
            "database": name,
        }
    plant.cluster.sql(ATTACHMENTS, database="second")
    config = config_with(plant, tmp_path / "two.yaml", components=document["services"]["erp"]["components"])
    shared = plant.upload(b"the same document in two databases")
    for folder in folders.values():
        (folder / shared).parent.mkdir()
        (folder / shared).write_bytes(b"the same document in two databases")
        hand_over(folder)
    plant.cluster.sql("insert into ir_attachment (store_fname) values (%s)", (shared,), database="second")
    assert plant.json("backup", "erp", config=config)["state"] == "complete"
    plant.archive()
    done, into = restored(plant, "two", status=0, config=config)
    assert placed(into / "documents") == contents(plant)
    assert placed(into / "second-documents") == {shared: b"the same document in two databases"}
    assert placed(into / "bare-documents") == {}
    assert done["documents"] == {
        "expected": len(plant.acknowledged) + 1,
        "missing": 0,
        "corrupt": 0,
        "extra": 1,
        "missing_in_production": 0,
    }
