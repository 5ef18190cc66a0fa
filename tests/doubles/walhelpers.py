"""A cluster's ``pg_wal`` without a server, and the helper of it in this process: everything but PostgreSQL is real.

world = HelperWorld.create(tmp_path)
path = world.segment(1)                          # 1 MiB with a right header, ready
with world.helper() as helper:
    assert world.ask(path) == ""                 # durable
"""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drservice.clock import Clock, SystemClock
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import WalFileName
from drservice.objectstore.interface import ObjectStore
from drservice.operations.lineage import Lineage
from drservice.operations.walahead import Ahead
from drservice.operations.walhelper import HelperFacts, HelperServer, listening, only_helper
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import socket_path
from drservice.walclient import protocol
from drservice.walclient.client import ask
from tests.doubles.repositories import SYSTEM_ID, Site

SEGMENT = 1 << 20
ERP, DATABASE = ServiceName("erp"), ComponentName("database")


def segment_content(number: int, *, system_id: SystemId = SYSTEM_ID, seed: int = 0, bytes_: int = SEGMENT) -> bytes:
    """Return a segment of timeline 1 as PostgreSQL 15 writes it: a right first page, and something behind it."""
    head = struct.pack("<HHIQIxxxxQII", 0xD110, 2, 1, number * bytes_, 0, int(system_id), bytes_, 8192)
    return head + random.Random(number * 1000 + seed).randbytes(4096) + bytes(bytes_ - len(head) - 4096)


def name_of(number: int) -> str:
    return f"{1:08X}{0:08X}{number:08X}"


@dataclass(kw_only=True)
class Running:
    """A helper that runs."""

    ahead: Ahead
    socket: Path


@dataclass(kw_only=True)
class HelperWorld:
    """A repository, a configuration file, a data directory."""

    site: Site
    data: Path
    config: Path
    services: Collection[str] = field(default=("erp", "erp/database"))

    @classmethod
    def create(cls, base: Path, *, folder: Path | None = None) -> HelperWorld:
        site = Site.create(base, folder=folder)
        data, config = base / "data", base / "drservice.yaml"
        (data / "pg_wal" / "archive_status").mkdir(parents=True)
        (site.state_dir / "run").mkdir(parents=True, exist_ok=True)
        config.write_text("version: 1\n")
        return cls(site=site, data=data, config=config)

    @property
    def wal(self) -> Path:
        return self.data / "pg_wal"

    def segment(
        self, number: int, *, system_id: SystemId = SYSTEM_ID, seed: int = 0, position: int | None = None
    ) -> Path:
        """Write a segment and mark it as ready; ``position``: its content is another segment's."""
        return self.file(
            name_of(number),
            segment_content(number if position is None else position, system_id=system_id, seed=seed),
        )

    def file(self, name: str, content: bytes) -> Path:
        path = self.wal / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        self.mark(name)
        return path

    def mark(self, name: str) -> None:
        (self.wal / "archive_status" / f"{name}.ready").touch()

    def done(self, path: Path) -> None:
        """Do what PostgreSQL does when archive_command has ended with 0."""
        ready = self.wal / "archive_status" / f"{path.name}.ready"
        ready.rename(ready.with_suffix(".done"))

    @property
    def socket(self) -> Path:
        return socket_path(self.site.state_dir, ERP, DATABASE)

    def ask(self, path: Path, *, service: str = "erp", config: Path | None = None) -> str:
        return ask(socket=str(self.socket), config=str(config or self.config), service=service, path=str(path))

    @contextmanager
    def helper(
        self,
        *,
        store: ObjectStore | None = None,
        clock: Clock | None = None,
        in_flight: int = 2,
        believed: Collection[int] | None = None,
    ) -> Iterator[Running]:
        """Run the helper for the block."""
        site = self.site
        if clock is not None:
            site.clock = clock
        repository = site.repository(store=store)
        ahead = Ahead(
            folder=ReadyFolder(self.data),
            archive=repository.wal(site.scope),
            lineage=Lineage(repository, site.scope, site.state_dir),
            day_keys=repository.day_keys(ERP),
            in_flight=in_flight,
            clock=SystemClock(),
        )
        facts = HelperFacts(
            config=protocol.configuration(self.config.stat()), services=self.services, repository=repository.id
        )
        stop = threading.Event()
        with only_helper(site.state_dir, ERP, DATABASE), listening(self.socket, group=os.getegid()) as listener:
            answered = {0, os.geteuid()} if believed is None else believed
            server = HelperServer(listener, facts, ahead, believed=answered, look_seconds=0.02)
            thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
            thread.start()
            ahead.start()
            try:
                yield Running(ahead=ahead, socket=self.socket)
            finally:
                stop.set()
                thread.join()
                assert ahead.stop(10.0), "files on their way did not end"
                server.drain(1.0)

    def archived(self, path: Path, *, system_id: SystemId = SYSTEM_ID) -> bytes:
        """Return what the repository has under this name."""
        return self.site.repository().wal(self.site.scope).fetch(WalFileName.parse(path.name), system_id=system_id)

    def archived_names(self, *, system_id: SystemId = SYSTEM_ID) -> list[str]:
        return [item.name for item in self.site.repository().wal(self.site.scope).listing(system_id)]
