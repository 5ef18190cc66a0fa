"""A repository with everything around it, small enough for a unit test: keys, a state folder, files to capture.

site = Site.create(tmp_path)                     # in memory; Site.create(tmp_path, url="file:///...") on a store
site.write({"base/1/1259": b"..."})              # files of the "cluster"
record = site.capture()                          # one snapshot; read everything that changed
site.restore(record.id, into)                    # place_files, and the folder's content back
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.clock import Clock, SystemClock
from drservice.model.estate import SignerSettings
from drservice.model.ids import ComponentName, ServiceName, SnapshotId, SystemId
from drservice.model.snapshot import POSTGRES_KIND, PostgresFacts, SnapshotRecord
from drservice.model.wal import Lsn, Timeline, WalFileName
from drservice.objectstore.directory import DirectoryStore
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.memory import MemoryStore
from drservice.processes import Account
from drservice.repository.changes import ChangeRule
from drservice.repository.envelope import HostKey
from drservice.repository.intake import SourceFile
from drservice.repository.keys import Identities, make_identity
from drservice.repository.nodes import FileIdentity
from drservice.repository.placing import Onto, Placed, place_files
from drservice.repository.records import Scope
from drservice.repository.repository import Repository, create_repository, open_repository
from drservice.repository.walarchive import PutOutcome
from drservice.repository.writer import CommitFacts, SnapshotWriter

SYSTEM_ID = SystemId("7345678901234567890")
CHUNK = 64 << 10


class Heard:
    """A progress that adds up."""

    def __init__(self) -> None:
        self.bytes = 0

    def advance(self, amount: int, /) -> None:
        self.bytes += amount


def new_host(name: str = "db1") -> HostKey:
    """Make the signing key of a host."""
    return HostKey(name, Ed25519PrivateKey.generate())


def trusted(host: HostKey, *services: str) -> SignerSettings:
    """Return a host as a signer that is believed."""
    return SignerSettings(
        name=host.host, public_key=host.public_key, services=tuple(ServiceName(name) for name in services)
    )


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def facts(**changes: object) -> PostgresFacts:
    """Return what a snapshot says about its cluster."""
    made = PostgresFacts(
        system_id=SYSTEM_ID,
        timeline=Timeline(1),
        start_lsn=Lsn.parse("0/2000028"),
        stop_lsn=Lsn.parse("0/3000000"),
        server_version=15,
        segment_bytes=16 << 20,
        block_bytes=8192,
        data_checksums=True,
        bad_pages=0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # named by the test


@dataclass(kw_only=True)
class Site:
    """One host with a repository and a folder of files."""

    base: Path
    store: ObjectStore
    open_store: Callable[[], ObjectStore]
    host: HostKey
    secret_identity: str
    recipient: str
    clock: Clock = field(default_factory=SystemClock)
    workers: int = 1
    chunk_bytes: int = CHUNK

    @classmethod
    def create(cls, base: Path, *, store: ObjectStore | None = None, folder: Path | None = None) -> Site:
        """Create a repository in memory, in a folder, or on a given store."""
        opener: Callable[[], ObjectStore]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            opener = partial(DirectoryStore, folder)
            chosen: ObjectStore = opener()
        else:
            chosen = store or MemoryStore()
            opener = lambda: chosen  # noqa: E731 - in one process there is one store
        secret, recipient = make_identity()
        (base / "source").mkdir(parents=True, exist_ok=True)
        site = cls(
            base=base, store=chosen, open_store=opener, host=new_host(), secret_identity=secret, recipient=recipient
        )
        (base / "identity").write_text(secret + "\n")
        create_repository(chosen, signer=site.host, signers=[trusted(site.host)], clock=site.clock)
        return site

    @property
    def source(self) -> Path:
        return self.base / "source"

    @property
    def state_dir(self) -> Path:
        return self.base / "state"

    @property
    def scope(self) -> Scope:
        return self.repository().scope(ServiceName("erp"), ComponentName("database"))

    def identities(self) -> Identities:
        return Identities.load([f"file:{self.base / 'identity'}"])

    def repository(
        self,
        *,
        store: ObjectStore | None = None,
        identities: Identities | None = None,
        signers: Sequence[SignerSettings] = (),
        host: HostKey | None = None,
    ) -> Repository:
        """Open the repository as this host, with its identity, unless told otherwise."""
        chosen = store or self.store
        return open_repository(
            chosen,
            open_store=(lambda: chosen) if store is not None else self.open_store,
            signers=[trusted(self.host), *signers],
            host_key=host or self.host,
            identities=self.identities() if identities is None else identities,
            recipients=(self.recipient,),
            clock=self.clock,
        )

    # --- the source -----------------------------------------------------------------------------------------

    def write(self, files: Mapping[str, bytes], *, settled: bool = True) -> None:
        """Write files into the source folder; ``settled`` makes them look an hour old."""
        for name, content in files.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if settled:
                hour_ago = path.stat().st_mtime - 3600
                os.utime(path, (hour_ago, hour_ago))

    def files(self) -> list[SourceFile]:
        """List the source folder as a component does, now."""
        return list(self._list())

    def _list(self) -> Iterator[SourceFile]:
        now = int(self.clock.now().timestamp() * 1e9)
        for path in sorted(self.source.rglob("*")):
            if path.is_dir():
                continue
            info = path.lstat()
            yield SourceFile(
                path=os.fsencode(path.relative_to(self.source)),
                absolute=str(path.parent.resolve() / path.name),
                mode=info.st_mode & 0o777,
                size=info.st_size,
                chunk_bytes=self.chunk_bytes,
                identity=FileIdentity(
                    device=info.st_dev,
                    inode=info.st_ino,
                    modified_ns=info.st_mtime_ns,
                    changed_ns=info.st_ctime_ns,
                    read_began_ns=now,
                ),
            )

    # --- snapshots ------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, store: ObjectStore | None = None) -> Iterator[SnapshotWriter]:
        """Begin a snapshot with the source's folders in it."""
        repository = self.repository(store=store)
        with repository.writer(self.scope, state_dir=self.state_dir, workers=self.workers, level=1) as writer:
            for path in sorted(self.source.rglob("*")):
                if path.is_dir():
                    writer.add_directory(os.fsencode(path.relative_to(self.source)), 0o700)
            yield writer

    def capture(self, *, store: ObjectStore | None = None, rule: ChangeRule = ChangeRule.READ_ALL) -> SnapshotRecord:
        """Take a snapshot of the source folder."""
        with self.writing(store) as writer:
            writer.capture_files(self.files(), rule=rule, progress=Heard())
            return self.commit(writer)

    def commit(self, writer: SnapshotWriter, *, bad_pages: Sequence[tuple[bytes, int]] = ()) -> SnapshotRecord:
        now = self.clock.now()
        return writer.commit(
            CommitFacts(
                kind=POSTGRES_KIND,
                method="local",
                started_at=now,
                stopped_at=now,
                facts=facts(bad_pages=len(bad_pages)),
                attachments={"backup_label": b"START WAL LOCATION: 0/2000028\n"},
                bad_pages=bad_pages,
            )
        )

    def place(
        self,
        snapshot: SnapshotId,
        into: Path,
        *,
        store: ObjectStore | None = None,
        hold_back: frozenset[bytes] = frozenset(),
        onto: Onto | None = None,
        account: Account | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> Placed:
        """Restore a snapshot's files."""
        repository = self.repository(store=store)
        opened = repository.open_snapshot(self.scope, snapshot)
        into.mkdir(exist_ok=True)
        return place_files(
            repository.reader(self.scope, snapshot),
            into,
            open_store=repository.open_store,
            scope=self.scope,
            secrets=repository.secrets(self.scope, opened),
            hold_back=hold_back,
            account=account,
            workers=self.workers,
            progress=Heard(),
            onto=onto,
            begin=begin,
        )

    def restore(self, snapshot: SnapshotId, into: Path, *, store: ObjectStore | None = None) -> dict[str, bytes]:
        """Restore a snapshot's files and return what lies there."""
        self.place(snapshot, into, store=store)
        return content_of(into)

    # --- WAL ------------------------------------------------------------------------------------------------

    def put_wal(self, name: str, data: bytes, *, store: ObjectStore | None = None) -> PutOutcome:
        return (
            self.repository(store=store)
            .wal(self.scope)
            .put(WalFileName.parse(name), data, system_id=SYSTEM_ID, last_write=self.clock.now())
        )

    def fetch_wal(self, name: str, *, store: ObjectStore | None = None) -> bytes:
        return self.repository(store=store).wal(self.scope).fetch(WalFileName.parse(name), system_id=SYSTEM_ID)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys of the store."""
        return [info.key for info in self.store.list(prefix)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the stored bytes by key."""
        return {info.key: info.stored_bytes for info in self.store.list(prefix)}

    def replace(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Overwrite an object, as a program with the store's credentials can."""
        data = change(self.store.read(key))
        self.store.delete(key)
        self.store.create(key, data)


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the regular files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def flipped(at: int) -> Callable[[bytes], bytes]:
    """Return a change of one bit."""

    def flip(data: bytes) -> bytes:
        spoilt = bytearray(data)
        spoilt[at] ^= 1
        return bytes(spoilt)

    return flip
