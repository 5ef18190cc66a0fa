"""The catalogue is an index: lost and filled again, it says what was projected as it happened, row by row."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from drservice.canonical import Json
from drservice.catalogue.database import Database, open_catalogue
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.catalogue.projection import project_points, project_service, project_snapshots, project_windows
from drservice.catalogue.rebuild import Rebuilt, catch_up_records, read_service, rebuild
from drservice.catalogue.tables import Base, Point, Record, Snapshot, WalWindow
from drservice.errors import CatalogueUnreachableError, StoreUnreachableError
from drservice.evidence.listing import entry_key
from drservice.model.estate import Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import ServiceName
from drservice.objectstore.interface import ObjectStore
from drservice.operations.backup import BackupContext
from drservice.operations.evidence import Evidence
from drservice.operations.info import windows_with_times
from drservice.operations.inventory import archive_of, newest_lineage
from drservice.operations.progress import SilentProgress
from drservice.operations.servicebackup import ServiceBackup, run_service_backup
from drservice.repository import layout
from drservice.repository.keys import Identities
from drservice.wiring.data_plane import DataPlane
from drservice.wiring.evidence import open_evidence
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import SERVICE, TempEstate, wait_for
from tests.doubles.evidence import PLAN, drill, ulid

TABLES: Sequence[type[Base]] = (Snapshot, Point, WalWindow, Record)


@dataclass(kw_only=True)
class Story:
    """Two backups with WAL between them, and drills on record; told to a catalogue as it happened."""

    estate: TempEstate
    live: Database
    backups: list[ServiceBackup] = field(default_factory=list)

    @property
    def service(self) -> Service:
        return self.estate.estate().service(SERVICE)


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything that can be rebuilt, as plain values."""
    found = {}
    with database.session() as session:
        for table in TABLES:
            columns = list(table.__table__.columns)
            keys = [column for column in columns if column.primary_key]
            found[table.__tablename__] = [tuple(row) for row in session.execute(select(*columns).order_by(*keys))]
    return found


def record_drill(evidence: Evidence, number: int, point: str, **changes: Json) -> None:
    predicate = drill(evidence.clock.now(), number, entry=0, changes={"point": point, **changes}).predicate
    common = {"repository", "service", "host", "run", "recorded_at", "tool"}
    evidence.require(
        EvidenceKind.DRILL,
        service=ServiceName(SERVICE),
        run=ulid(number),
        subject=[PLAN],
        fields={name: value for name, value in predicate.items() if name not in common},
    )


def project_wal(session: Any, plane: DataPlane, service: Service) -> None:
    """Project as a node does that has archived something."""
    component = service.database()
    scope = plane.repository.scope(service.name, component.name)
    records = plane.repository.snapshots(scope).records
    newest = newest_lineage(records)
    assert newest is not None
    windows = windows_with_times(plane.repository, scope, archive_of(plane.repository, newest), records)
    project_windows(session, service.name, component.name, windows)


def tell(story: Story, plane: DataPlane, evidence: Evidence) -> None:
    """Back up, archive and drill; after each the catalogue is told what has happened, and nothing more."""
    service, database = story.service, story.live
    context = BackupContext(
        repository=plane.repository,
        state_dir=story.estate.state,
        clock=plane.clock,
        progress=SilentProgress(),
    )
    for _ in range(2):
        backup = run_service_backup(context, evidence, service)
        story.backups.append(backup)
        assert backup.point is not None
        with database.session() as session:
            project_snapshots(session, backup.records)
            project_points(session, [backup.point])
            project_wal(session, plane, service)
        catch_up_records(database, evidence.ledger)
        segment = story.estate.cluster.switch_wal()
        done = story.estate.cluster.data / "pg_wal" / "archive_status" / f"{segment}.done"
        wait_for(done.exists, f"{segment} to be archived")
        with database.session() as session:
            project_wal(session, plane, service)
    first, second = (backup.point.id for backup in story.backups if backup.point is not None)
    record_drill(evidence, 1, first)
    catch_up_records(database, evidence.ledger)
    record_drill(evidence, 2, second, outcome="failed", reasons=["moves-balance failed"])
    record_drill(evidence, 3, second, mutation="drop a table")
    assert catch_up_records(database, evidence.ledger) == 2
    assert catch_up_records(database, evidence.ledger) == 0


@pytest.fixture(scope="module")
def story(catalogues: CatalogueServer, template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    estate = TempEstate.over(cluster)
    estate.json("init")
    estate.hand_over_repository()
    estate.archive_with_the_program()
    cluster.start()
    story = Story(estate=estate, live=catalogues.database())
    try:
        with estate.plane() as plane, open_evidence(plane) as evidence:
            tell(story, plane, evidence)
        cluster.stop()
        yield story
    finally:
        maker.close()


@pytest.fixture
def copied(story: Story, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the repository with a configuration for it, on a machine without an identity."""
    repository = tmp_path / "repository"
    shutil.copytree(story.estate.repository, repository)
    public = json.loads((repository / "drservice-repository.json").read_text())["signers"][0]
    config = story.estate.write_configuration(
        tmp_path / "drservice.yaml",
        state=tmp_path / "state",
        url=f"file://{repository}",
        identity=None,
        signers={public["name"]: public["key"]},
    )
    return repository, config


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the server's user can reach; pytest's own is closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="drs-state-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def refill(story: Story, database: Database, config: Path | None = None, store: ObjectStore | None = None) -> Rebuilt:
    """Rebuild from a repository, seen through ``store`` if given."""
    with story.estate.plane(config) as plane, open_evidence(plane) as evidence:
        repository = plane.repository
        if store is not None:
            repository = repository.seen_as(store=store, open_store=lambda: store, identities=Identities(()))
        return rebuild(database, repository, evidence.ledger, services=[story.service], progress=SilentProgress())


def test_a_lost_catalogue_is_filled_with_the_rows_that_were_projected_live(
    story: Story, database: Database, copied: tuple[Path, Path]
) -> None:
    before = rows(story.live)
    assert [len(before[table.__tablename__]) for table in TABLES] == [2, 2, 1, 6]
    rebuilt = refill(story, database, copied[1])
    assert rebuilt.unreadable == ()
    assert (rebuilt.records, rebuilt.services[0].snapshots, rebuilt.services[0].points) == (6, 2, 2)
    assert rows(database) == before


def test_a_rebuild_of_a_full_catalogue_changes_nothing(story: Story, database: Database) -> None:
    refill(story, database)
    before = rows(database)
    again = refill(story, database)
    assert rows(database) == before
    assert (again.pruned_records, again.services[0].pruned.snapshots, again.services[0].pruned.points) == (0, 0, 0)


def test_only_a_passed_drill_proves_a_point(story: Story) -> None:
    first, second = story.backups
    with story.live.session() as session:
        proved = {point.id: point.verified_at for point in session.scalars(select(Point))}
        at = session.scalars(select(Record).where(Record.kind == "drill").order_by(Record.entry)).first()
    assert first.point is not None
    assert second.point is not None
    assert at is not None
    assert proved == {first.point.id: at.recorded_at, second.point.id: None}


def test_rows_of_what_vanished_from_the_repository_go(
    story: Story, database: Database, copied: tuple[Path, Path]
) -> None:
    repository, config = copied
    refill(story, database, config)
    first, second = story.backups
    assert first.point is not None
    (record,) = first.records
    (repository / layout.point_key(record.service, first.point.id)).unlink()
    (repository / layout.snapshot_key(record.service, record.component, record.id)).unlink()
    rebuilt = refill(story, database, config)
    assert (rebuilt.services[0].pruned.snapshots, rebuilt.services[0].pruned.points) == (1, 1)
    left = rows(database)
    assert [row[0] for row in left["snapshot"]] == [second.records[0].id]
    assert [row[0] for row in left["point"]] == [second.point.id if second.point else None]
    assert left["record"] == rows(story.live)["record"]


def test_what_cannot_be_read_or_believed_has_no_row_and_is_told(
    story: Story, database: Database, copied: tuple[Path, Path]
) -> None:
    repository, config = copied
    refill(story, database, config)
    (record,) = story.backups[0].records
    snapshot = repository / layout.snapshot_key(record.service, record.component, record.id)
    entry = repository / entry_key(3)
    for path in (snapshot, entry):
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.unlink()
        path.write_bytes(content)
    rebuilt = refill(story, database, config)
    assert {item.key for item in rebuilt.unreadable} == {
        layout.snapshot_key(record.service, record.component, record.id),
        "entry 3",
    }
    left = rows(database)
    assert record.id not in [row[0] for row in left["snapshot"]]
    assert [row[0] for row in left["record"]] == [0, 1, 2, 4, 5]
    assert rebuilt.pruned_records == 1


def test_a_record_that_is_gone_takes_its_proof_along(story: Story, database: Database) -> None:
    refill(story, database)
    with database.session() as session:
        session.execute(text("UPDATE record SET entry = entry + 100 WHERE kind = 'drill' AND outcome = 'passed'"))
    rebuilt = refill(story, database)
    assert rebuilt.pruned_records == 2
    assert rows(database) == rows(story.live)


class Silent:
    """A store that stops answering at the second listing."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._listings = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Any]:
        self._listings += 1
        if self._listings > 1:
            raise StoreUnreachableError("the store does not answer")
        return self._inner.list(prefix, start_after=start_after)


def test_a_store_that_stops_answering_makes_no_row_vanish(story: Story, database: Database) -> None:
    refill(story, database)
    before = rows(database)
    with story.estate.plane() as plane:
        silent: Any = Silent(plane.repository.store)
        with pytest.raises(StoreUnreachableError):
            refill(story, database, store=silent)
    assert rows(database) == before


def test_services_and_components_that_are_not_read_keep_their_rows(story: Story, database: Database) -> None:
    refill(story, database)
    with database.session() as session:
        oldest = "id = (SELECT min(id) FROM {0})"
        session.execute(
            text("UPDATE snapshot SET id = 'other', component = 'retired' WHERE " + oldest.format("snapshot"))
        )
        session.execute(text("UPDATE point SET id = 'other', service = 'shop' WHERE " + oldest.format("point")))
    rebuilt = refill(story, database)
    assert (rebuilt.services[0].pruned.snapshots, rebuilt.services[0].pruned.points) == (0, 0)
    left = rows(database)
    assert "other" in [row[0] for row in left["snapshot"]]
    assert "other" in [row[0] for row in left["point"]]


def test_the_command_fills_an_embedded_catalogue_and_stops_it(
    story: Story, copied: tuple[Path, Path], open_folder: Path
) -> None:
    _, config = copied
    document = json.loads(config.read_text())
    document["state_dir"] = str(open_folder)
    config.write_text(json.dumps(document))
    answer = story.estate.json("rebuild", config=config)
    assert answer["schema"] == "drservice/rebuild/v1"
    assert answer["services"] == [
        {"service": SERVICE, "snapshots": 2, "points": 2, "windows": 1, "pruned": {"snapshots": 0, "points": 0}}
    ]
    assert (answer["records"], answer["unreadable"]) == (6, [])
    cluster = EmbeddedCluster(open_folder)
    with pytest.raises(CatalogueUnreachableError):
        open_catalogue(cluster.url)
    with cluster as url:
        database = open_catalogue(url)
        assert rows(database) == rows(story.live)
        database.close()


def test_the_command_tells_what_is_not_in_the_catalogue(
    story: Story, catalogues: CatalogueServer, copied: tuple[Path, Path]
) -> None:
    repository, config = copied
    document = json.loads(config.read_text())
    document["catalogue"] = catalogues.empty()
    config.write_text(json.dumps(document))
    (repository / entry_key(5)).write_bytes(b"{}")
    done = story.estate.run("rebuild", config=config)
    assert done.status == 3, done.stderr.decode()
    assert b"NOT in the catalogue: entry 5" in done.stdout
    document["catalogue"] = f"postgresql://postgres@/x?host={repository}/nobody"
    config.write_text(json.dumps(document))
    assert story.estate.refusal("rebuild", config=config, status=8)["code"] == "DR921"


def test_a_read_service_is_projected_whole_or_not_at_all(story: Story, database: Database) -> None:
    with story.estate.plane() as plane:
        contents = read_service(plane.repository, story.service)
    with pytest.raises(ZeroDivisionError), database.session() as session:  # noqa: PT012 - the error comes after work
        project_service(session, contents)
        raise ZeroDivisionError
    assert all(found == [] for found in rows(database).values())
    assert story.backups[1].records[0].stopped_at - story.backups[0].records[0].stopped_at > timedelta(0)


def test_a_point_that_comes_after_its_drill_is_proved_all_the_same(story: Story, database: Database) -> None:
    refill(story, database)
    before = rows(database)
    with story.estate.plane() as plane:
        contents = read_service(plane.repository, story.service)
    with database.session() as session:
        session.execute(text("DELETE FROM point"))
        project_service(session, contents)
    assert rows(database) == before
