"""Which secret of a data key is the right one: only what was sealed with it can tell.

A wrapping says by its signature who made it, not that what it holds is true. Before a secret is handed on, or a
wrapping counts, it has to open something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from drservice.errors import DrError, MissingObjectError, ObjectStoreError, WrongDataKeyError
from drservice.model.estate import Service
from drservice.model.ids import KeyId, SystemId, ulid_time
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import WalFileName
from drservice.repository.keys import Identities
from drservice.repository.reader import PackOpener
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.walarchive import ArchivedFile

_EARLIER = timedelta(hours=1)
_LATER = timedelta(days=2)
"""A key that WAL is sealed with serves one day; the store's clock dates the files."""

Opening = Callable[[Repository], object]
"""Opens something of the repository, with the data keys that this view of it has."""


@dataclass(slots=True)
class Witnesses:
    """What is sealed with the data keys of a service."""

    repository: Repository
    service: Service
    _records: dict[Scope, Sequence[SnapshotRecord]] = field(default_factory=dict)
    _files: dict[Scope, Sequence[tuple[SystemId, ArchivedFile]]] = field(default_factory=dict)

    def right_one(self, key_id: KeyId, secrets: Iterable[bytes]) -> bytes | None:
        """Return which of the secrets opens what was sealed with a data key; ``None`` if nothing is there to tell.

        Raises:
            WrongDataKeyError: none of them does.
            ObjectStoreError: the store did not answer.
        """
        views = {secret: self._with_only(key_id, secret) for secret in secrets}
        for opening in self._sealed_with(key_id):
            refused: WrongDataKeyError | None = None
            for secret, view in views.items():
                try:
                    opening(view)
                except WrongDataKeyError as error:
                    refused = error
                except ObjectStoreError:
                    raise
                except DrError:
                    refused = None
                    break  # damaged, or sealed with another key: it tells nothing
                else:
                    return secret
            if refused is not None:
                raise refused
        return None

    def _with_only(self, key_id: KeyId, secret: bytes) -> Repository:
        view = self.repository.seen_as(
            store=self.repository.store, open_store=self.repository.open_store, identities=Identities()
        )
        view.keyring.adopt([(key_id, secret)])
        return view

    def _sealed_with(self, key_id: KeyId) -> Iterator[Opening]:
        scopes = [self.repository.scope(self.service.name, name) for name in self.service.components]
        for scope in scopes:
            if scope not in self._records:
                self._records[scope] = self.repository.snapshots(scope).records
            for record in reversed(self._records[scope]):
                if key_id == record.sealed_key_id:
                    yield partial(_open_snapshot, scope, record)
                elif key_id in record.key_ids:
                    yield partial(_open_pack, scope, record, key_id)
        made = ulid_time(key_id)
        for component in self.service.databases():
            scope = self.repository.scope(self.service.name, component.name)
            for system_id, file in self._wal(scope):
                if made - _EARLIER <= file.modified_at <= made + _LATER:
                    yield partial(_open_file, scope, system_id, file)

    def _wal(self, scope: Scope) -> Sequence[tuple[SystemId, ArchivedFile]]:
        if scope not in self._files:
            archive = self.repository.wal(scope)
            found = [(system_id, file) for system_id in archive.system_ids() for file in archive.listing(system_id)]
            self._files[scope] = sorted(found, key=lambda item: item[1].modified_at)
        return self._files[scope]


def _open_snapshot(scope: Scope, record: SnapshotRecord, view: Repository) -> None:
    view.open_snapshot(scope, record.id).secret(view.keyring, scope)


def _open_pack(scope: Scope, record: SnapshotRecord, key_id: KeyId, view: Repository) -> None:
    packs = view.open_snapshot(scope, record.id).packs
    name = next((use.name for use in (*packs.nodes, *packs.data) if use.key_id == key_id), None)
    if name is None:
        raise MissingObjectError(f"snapshot {record.id} lists no pack of data key {key_id}")
    PackOpener(view.store, scope=scope, keyring=view.keyring).record_key(bytes.fromhex(name))


def _open_file(scope: Scope, system_id: SystemId, file: ArchivedFile, view: Repository) -> None:
    archive = view.wal(scope)
    if archive.carries_key(file):
        raise MissingObjectError(f"{file.key} was sealed with a key of its own")
    archive.fetch(WalFileName.parse(file.name), system_id=system_id)
