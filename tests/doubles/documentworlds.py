"""A capture of documents in a thread of this process: a real server with rows, a filestore on disk, a repository.

world = DocumentWorld.create(tmp_path, cluster, database="odoo1")
with world.capture() as running:
    name = world.upload(b"an invoice")          # the file, then its row, as Odoo does
    running.wait_stored(1)
world.stored()                                  # name -> content of everything that is in sets
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from drservice.model.documents import StoredSet
from drservice.model.estate import FilesSettings, PostgresSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.objectstore.interface import ObjectStore
from drservice.operations.documentstate import DocumentState
from drservice.operations.documentstream import DocumentContext, stream_documents
from drservice.repository.documentsets import DocumentSets
from drservice.repository.keys import Identities
from tests.doubles.cluster import Cluster
from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site

TABLE = (
    "create table ir_attachment (id serial primary key, name text, store_fname varchar, checksum varchar(40),"
    " file_size int, db_datas bytea, write_date timestamp default now())"
)
INDEX = "create index on ir_attachment (store_fname)"


@dataclass(kw_only=True)
class Running:
    """A capture that runs; its states as they were told."""

    stop: threading.Event
    states: list[DocumentState] = field(default_factory=list)

    @property
    def state(self) -> DocumentState:
        return self.states[-1]

    def wait(self, holds: Callable[[DocumentState], bool], what: str, *, seconds: float = 20.0) -> DocumentState:
        """Wait until a state that is told is as it should be."""
        deadline = time.monotonic() + seconds
        while not (self.states and holds(self.state)):
            assert time.monotonic() < deadline, f"{what}: {self.states[-1:]}"
            time.sleep(0.01)
        return self.state

    def wait_stored(self, count: int) -> DocumentState:
        return self.wait(lambda state: state.stored >= count, f"{count} stored")

    def wait_whole(self) -> DocumentState:
        """Wait until everything that was committed before this call is stored, as the capture says."""
        begun = self.state.server_time if self.states else None
        return self.wait(
            lambda state: (
                state.durable_server_time is not None and (begun is None or state.durable_server_time > begun)
            ),
            "everything stored",
        )


@dataclass(kw_only=True)
class DocumentWorld:
    """A server, a filestore and a repository."""

    filestore: Filestore
    cluster: Cluster
    database: str
    identities: Identities | None = None

    @classmethod
    def create(cls, base: Path, cluster: Cluster, *, database: str, store: ObjectStore | None = None) -> DocumentWorld:
        """Make the database, or take it as an earlier test left it, with an empty table."""
        if not cluster.value("select count(*) from pg_database where datname = %s", (database,)):
            cluster.sql(f"create database {database}")
        world = cls(filestore=Filestore(site=Site.create(base, store=store)), cluster=cluster, database=database)
        (world.filestore.site.state_dir / "run").mkdir(parents=True, exist_ok=True)
        world.sql("drop table if exists ir_attachment")
        world.sql(TABLE)
        world.sql(INDEX)
        return world

    @property
    def settings(self) -> FilesSettings:
        return replace(
            self.filestore.settings,
            database=self.database,
            stream=True,
            interval=timedelta(milliseconds=100),
            idle_interval=timedelta(seconds=1),
        )

    # --- production -----------------------------------------------------------------------------------------

    def sql(self, statement: str, parameters: Sequence[object] = ()) -> None:
        with self.cluster.connect(self.database) as connection:
            connection.execute(statement, parameters)

    def upload(self, content: bytes) -> str:
        """Write a document and then its row."""
        name = self.filestore.add(content)
        self.row(name, len(content))
        return name

    def row(self, name: str, size: int = 0) -> None:
        self.sql("insert into ir_attachment (store_fname, file_size) values (%s, %s)", (name, size))

    # --- the capture ----------------------------------------------------------------------------------------

    @contextmanager
    def capture(
        self,
        *,
        store: ObjectStore | None = None,
        settings: FilesSettings | None = None,
        dsn: str | None = None,
    ) -> Iterator[Running]:
        """Run a capture for the block; it drains at the end."""
        running = Running(stop=threading.Event())
        site = self.filestore.site
        context = DocumentContext(
            service=ServiceName("erp"),
            repository=site.repository(store=store, identities=self.identities),
            state_dir=site.state_dir,
            clock=site.clock,
        )
        cluster = PostgresSettings(name=ComponentName("database"), dsn=dsn or self.cluster.dsn())
        problems: list[BaseException] = []

        def run() -> None:
            try:
                stream_documents(
                    context, settings or self.settings, cluster, stop=running.stop, observe=running.states.append
                )
            except BaseException as error:  # noqa: BLE001 - handed to the test below
                problems.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.stop.set()
            thread.join(60)
        assert not thread.is_alive(), "the capture does not end"
        if problems:
            raise problems[0]

    # --- the repository -------------------------------------------------------------------------------------

    @property
    def archive(self) -> DocumentSets:
        return self.filestore.site.repository().document_sets(self.filestore.scope)

    def sets(self) -> tuple[StoredSet, ...]:
        return tuple(sorted(self.archive.listing().sets, key=lambda item: item.id))

    def stored(self) -> dict[str, bytes]:
        """Return what is in sets; documents that were cut are put together."""
        found: dict[str, bytearray] = {}
        for item in self.sets():
            names = {entry.name for entry in self.archive.index(item).entries}
            for part in self.archive.read(item, names):
                found.setdefault(part.name, bytearray(part.size))[part.offset : part.offset + len(part.data)] = (
                    part.data
                )
        return {name: bytes(content) for name, content in found.items()}

    def lost(self) -> tuple[set[str], set[str]]:
        """Return what sets name as missing and as corrupt."""
        indexes = [self.archive.index(item) for item in self.sets()]
        return (
            {name for index in indexes for name in index.missing},
            {name for index in indexes for name in index.corrupt},
        )
