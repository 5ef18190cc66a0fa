"""A filestore on disk and its component, for tests."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drservice.components.odoo_filestore.capture import CapturedFiles, capture_files
from drservice.components.odoo_filestore.placing import (
    PlaceContext,
    PlacedDocuments,
    PlacedFolder,
    place_documents,
    place_folder,
)
from drservice.components.odoo_filestore.record import DocumentRecord, document_record
from drservice.model.documents import StoredSet
from drservice.model.estate import FilesKind, FilesSettings
from drservice.model.ids import ComponentName, ServiceName, SnapshotId
from drservice.model.snapshot import SnapshotRecord
from drservice.objectstore.interface import ObjectStore
from drservice.repository.placing import PlacingProgress
from drservice.repository.records import Scope
from tests.doubles.repositories import Heard, Site

HOUR_NS = 3600 * 10**9


def name_of(content: bytes) -> str:
    """Return the name Odoo gives a document."""
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return f"{digest[:2]}/{digest}"


def settle(folder: Path) -> None:
    """Wait until nothing below a folder counts as just written: change times cannot be set."""
    newest = max((path.lstat().st_ctime for path in folder.rglob("*")), default=0.0)
    time.sleep(max(0.0, newest + 2.05 - time.time()))


@dataclass(kw_only=True)
class Filestore:
    """A folder that is a component of a site's service."""

    site: Site
    kind: FilesKind = FilesKind.ODOO_FILESTORE
    workers: int = 1

    @property
    def folder(self) -> Path:
        return self.site.source

    @property
    def settings(self) -> FilesSettings:
        return FilesSettings(
            name=ComponentName("documents"), kind=self.kind, path=self.folder, database="erp", workers=self.workers
        )

    @property
    def scope(self) -> Scope:
        return self.site.repository().scope(ServiceName("erp"), self.settings.name)

    # --- production -----------------------------------------------------------------------------------------

    def add(self, content: bytes) -> str:
        """Write a document as Odoo does and return its name."""
        name = name_of(content)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return name

    def fill(self, count: int, *, seed: int = 0, largest: int = 40_000) -> dict[str, bytes]:
        """Write random documents."""
        chance = random.Random(seed)
        contents = [chance.randbytes(chance.randrange(1, largest)) for _ in range(count)]
        return {self.add(content): content for content in contents}

    # --- snapshots ------------------------------------------------------------------------------------------

    def capture(
        self, *, referred: Mapping[str, int] | None = None, store: ObjectStore | None = None
    ) -> tuple[SnapshotRecord, CapturedFiles]:
        """Take a snapshot."""
        repository = self.site.repository(store=store)
        with repository.writer(self.scope, state_dir=self.site.state_dir, workers=self.workers, level=1) as writer:
            captured = capture_files(
                writer, component=self.settings, referred=referred, clock=self.site.clock, progress=Heard()
            )
            return writer.commit(captured.commit_facts()), captured

    def record(self, snapshot: SnapshotId) -> DocumentRecord:
        """Return what a snapshot knows of production's damage."""
        return document_record(self.site.repository().reader(self.scope, snapshot))

    def context(self, *, store: ObjectStore | None = None, progress: PlacingProgress | None = None) -> PlaceContext:
        return PlaceContext(
            repository=self.site.repository(store=store),
            scope=self.scope,
            account=None,
            workers=self.workers,
            progress=progress or Heard(),
        )

    def place(
        self,
        snapshots: Sequence[SnapshotId],
        target: Path,
        wanted: Collection[str],
        *,
        store: ObjectStore | None = None,
        sets: Sequence[StoredSet] = (),
    ) -> PlacedDocuments:
        """Restore documents."""
        return place_documents(self.context(store=store), snapshots, target, wanted=wanted, sets=sets)

    def place_all(self, snapshot: SnapshotId, target: Path) -> PlacedFolder:
        """Restore a plain folder."""
        return place_folder(self.context(), snapshot, target)

    def packs(self) -> list[str]:
        """Return the keys of this component's data packs."""
        return self.site.keys(f"s/erp/{self.settings.name}/packs/")


def tree(folder: Path) -> dict[bytes, bytes | str]:
    """Return what lies below a folder: content of files, ``link to ...``, ``folder``; names as bytes."""
    found: dict[bytes, bytes | str] = {}
    for path in folder.rglob("*"):
        key = os.fsencode(path.relative_to(folder))
        if path.is_symlink():
            found[key] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[key] = "folder"
        else:
            found[key] = path.read_bytes()
    return found
