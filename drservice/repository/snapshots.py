"""Snapshot objects: the commit that makes a captured state exist (docs/format.md, section 7)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

import msgpack

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import from_iso, to_iso
from drservice.errors import DrError, FormatError, MissingObjectError, ObjectNotFoundError, StoreUnreachableError
from drservice.model.ids import ComponentName, KeyId, ServiceName, SnapshotId, SystemId, is_ulid
from drservice.model.snapshot import (
    FILES_KINDS,
    POSTGRES_KIND,
    FilesFacts,
    PostgresFacts,
    SnapshotRecord,
    SnapshotState,
)
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import (
    HEAD_READ_BYTES,
    Envelope,
    HostKey,
    Trust,
    header_extent,
    header_sha256,
    read_envelope,
    read_object,
    write_envelope,
)
from drservice.repository.keys import Keyring
from drservice.repository.nodes import NodeRef, unpack_map
from drservice.repository.records import Scope, seal_body

_LENGTH = struct.Struct(">I")
_DECIMAL = re.compile("[1-9][0-9]{0,19}")
_PACK_NAME = re.compile("[0-9a-f]{64}")
VOID_AFTER = timedelta(hours=12)
_VOID = (
    "is void: it was stored more than 12 hours after its packs were checked (or copied here without its time);"
    " it can be restored by name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackUse:
    """A pack that a snapshot relies on."""

    name: str
    stored_bytes: int
    live_bytes: int
    key_id: KeyId


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSecret:
    """The part of a snapshot that needs a key."""

    root: NodeRef
    attachments: Mapping[str, bytes]
    bad_pages: Sequence[tuple[bytes, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTable:
    """All packs of a snapshot."""

    data: tuple[PackUse, ...]
    nodes: tuple[PackUse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotListing:
    """Readable snapshots, oldest first, and what could not be read, by key."""

    records: tuple[SnapshotRecord, ...]
    unreadable: Mapping[str, DrError]
    void: tuple[SnapshotRecord, ...] = ()
    """Readable, but committed too long after their packs were checked (or copied here without their times): counted as
    unreadable, and restored only if asked for by name, because every pack is checked on the way."""


def encode_header(record: SnapshotRecord, previous_sha256: str | None) -> dict[str, Json]:
    """Return the header fields of a snapshot."""
    facts = record.facts
    previous: Json = None
    if record.previous is not None and previous_sha256 is not None:
        previous = {"id": record.previous, "sha256": previous_sha256}
    return {
        "id": record.id,
        "service": record.service,
        "component": record.component,
        "kind": record.kind,
        "method": record.method,
        "state": record.state.value,
        "started_at": to_iso(record.started_at),
        "stopped_at": to_iso(record.stopped_at),
        "checked_at": to_iso(record.checked_at),
        "key_ids": list(record.key_ids),
        "sealed_key_id": record.sealed_key_id,
        "previous": previous,
        "source_bytes": record.source_bytes,
        "read_bytes": record.read_bytes,
        "stored_bytes": record.stored_bytes,
        "files": record.files,
        **(
            {"documents": _files_fields(facts)}
            if isinstance(facts, FilesFacts)
            else {"postgres": _cluster_fields(facts)}
        ),
    }


def _cluster_fields(facts: PostgresFacts) -> dict[str, Json]:
    return {
        "system_id": facts.system_id,
        "timeline": int(facts.timeline),
        "start_lsn": str(facts.start_lsn),
        "stop_lsn": str(facts.stop_lsn),
        "server_version": facts.server_version,
        "segment_bytes": facts.segment_bytes,
        "block_bytes": facts.block_bytes,
        "data_checksums": facts.data_checksums,
        "bad_pages": facts.bad_pages,
    }


def _files_fields(facts: FilesFacts) -> dict[str, Json]:
    return {
        "walk_began_at": to_iso(facts.walk_began_at),
        "referred": facts.referred,
        "missing": facts.missing,
        "corrupt": facts.corrupt,
        "foreign": facts.foreign,
        "vanished": facts.vanished,
        "unreadable": facts.unreadable,
        "left_out": facts.left_out,
    }


def decode_header(envelope: Envelope) -> SnapshotRecord:
    """Read the header of a verified snapshot object.

    Raises:
        FormatError: a field is missing or makes no sense.
    """
    header = envelope.header
    key_ids = header.get("key_ids")
    previous = header.get("previous")
    key = envelope.text("key")
    if not isinstance(key_ids, list):
        raise FormatError(f"{key} names no keys")
    own = layout.snapshot_key(
        ServiceName(envelope.text("service")),
        ComponentName(envelope.text("component")),
        SnapshotId(envelope.text("id")),
    )
    if own != key:
        raise FormatError(f"{key} describes another snapshot ({own})")
    if envelope.text("sealed_key_id") not in key_ids:
        raise FormatError(f"{key} names a key for its sealed part that is not among its keys")
    try:
        return SnapshotRecord(
            id=SnapshotId(envelope.text("id")),
            service=ServiceName(envelope.text("service")),
            component=ComponentName(envelope.text("component")),
            kind=envelope.text("kind"),
            method=envelope.text("method"),
            state=SnapshotState(envelope.text("state")),
            host=envelope.text("host"),
            started_at=from_iso(envelope.text("started_at")),
            stopped_at=from_iso(envelope.text("stopped_at")),
            checked_at=from_iso(envelope.text("checked_at")),
            key_ids=tuple(KeyId(str(item)) for item in key_ids),
            sealed_key_id=KeyId(envelope.text("sealed_key_id")),
            previous=SnapshotId(str(previous["id"])) if isinstance(previous, Mapping) else None,
            source_bytes=envelope.number("source_bytes"),
            read_bytes=envelope.number("read_bytes"),
            stored_bytes=envelope.number("stored_bytes"),
            files=envelope.number("files"),
            facts=_decode_facts(header, envelope.text("kind")),
            header_sha256=envelope.header_sha256,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{key} has an unreadable header: {error}") from error


def _decode_facts(header: Mapping[str, Json], kind: str) -> PostgresFacts | FilesFacts:
    """Read the one map of facts that a snapshot of this kind has; another kind's beside it would contradict it."""
    if kind != POSTGRES_KIND and kind not in FILES_KINDS:
        raise ValueError(f"this program does not know the kind {kind!r}")
    own, other = ("documents", "postgres") if kind in FILES_KINDS else ("postgres", "documents")
    facts = header.get(own)
    if not isinstance(facts, Mapping) or other in header:
        raise TypeError(f"the facts are not those of kind {kind!r}")
    if kind not in FILES_KINDS:
        return _decode_cluster(facts)
    files = _decode_files(facts)
    if header.get("state") != files.state.value:
        raise ValueError(f"the facts are those of a snapshot that is {files.state.value}")
    return files


def _number(facts: Mapping[str, Json], name: str) -> int:
    value = facts[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{name} is no number")
    return value


def _decode_files(facts: Mapping[str, Json]) -> FilesFacts:
    number = partial(_number, facts)
    return FilesFacts(
        walk_began_at=from_iso(str(facts["walk_began_at"])),
        referred=None if facts["referred"] is None else number("referred"),
        missing=number("missing"),
        corrupt=number("corrupt"),
        foreign=number("foreign"),
        vanished=number("vanished"),
        unreadable=number("unreadable"),
        left_out=number("left_out"),
    )


def _decode_cluster(facts: Mapping[str, Json]) -> PostgresFacts:
    number = partial(_number, facts)
    system_id = facts["system_id"]
    if not isinstance(system_id, str) or not _DECIMAL.fullmatch(system_id):
        raise TypeError("system_id is no decimal text")
    if not number("segment_bytes") or not number("block_bytes") or not number("timeline"):
        raise ValueError("segment_bytes, block_bytes and timeline are never 0")
    return PostgresFacts(
        system_id=SystemId(system_id),
        timeline=Timeline(number("timeline")),
        start_lsn=Lsn.parse(str(facts["start_lsn"])),
        stop_lsn=Lsn.parse(str(facts["stop_lsn"])),
        server_version=number("server_version"),
        segment_bytes=number("segment_bytes"),
        block_bytes=number("block_bytes"),
        data_checksums=bool(facts["data_checksums"]),
        bad_pages=number("bad_pages"),
    )


def commit_snapshot(
    store: ObjectStore,
    *,
    signer: HostKey,
    scope: Scope,
    record: SnapshotRecord,
    previous_sha256: str | None,
    packs: PackTable,
    secret: SnapshotSecret,
    data_key: bytes,
    now: datetime,
) -> str:
    """Create the snapshot object: from here on the snapshot exists. Returns the SHA-256 of its header.

    Raises:
        ObjectExistsError, ObjectStoreError: it does not exist.
    """
    key = layout.snapshot_key(record.service, record.component, record.id)
    public = canonical_bytes(
        {"packs": _pack_rows(packs.data, record.key_ids), "node_packs": _pack_rows(packs.nodes, record.key_ids)}
    )
    plain: bytes = msgpack.packb(
        {
            "root": secret.root.to_list(),
            "attachments": dict(secret.attachments),
            "bad_pages": [[path, block] for path, block in secret.bad_pages],
        }
    )
    sealed = seal_body(data_key, plain, scope=scope, context=f"snapshot/{record.id}")
    pieces = write_envelope(
        signer=signer,
        repository=scope.repository,
        key=key,
        kind="snapshot",
        fields=encode_header(record, previous_sha256),
        body=[_LENGTH.pack(len(public)), public, *sealed],
        now=now,
    )
    store.create(key, pieces)
    return header_sha256(bytes(pieces[0]), key)


def _pack_rows(uses: Sequence[PackUse], key_ids: Sequence[KeyId]) -> list[Json]:
    index = {key_id: number for number, key_id in enumerate(key_ids)}
    return [
        [use.name, use.stored_bytes, use.live_bytes, index[use.key_id]] for use in sorted(uses, key=lambda u: u.name)
    ]


def list_snapshots(store: ObjectStore, *, trust: Trust, scope: Scope) -> SnapshotListing:
    """Read the headers of all snapshots of a component.

    A snapshot that cannot be read is reported, never passed over in silence; a void one (its object is far younger than
    its last check of re-used packs) counts as unreadable.

    Raises:
        ObjectStoreError: the listing is not complete, or the store did not answer for one of them.
    """
    records: list[SnapshotRecord] = []
    void: list[SnapshotRecord] = []
    unreadable: dict[str, DrError] = {}
    for info in store.list(layout.snapshot_prefix(scope.service, scope.component)):
        if not is_ulid(info.key.rsplit("/", 1)[-1]):
            continue  # foreign objects beside ours are not ours to judge
        try:
            record = decode_header(_read_head(store, info.key, info.stored_bytes, trust=trust, scope=scope))
        except StoreUnreachableError:
            raise  # no answer says nothing about the snapshot: the list would not be complete
        except DrError as error:
            unreadable[info.key] = error
        else:
            if info.modified_at - record.checked_at > VOID_AFTER:
                unreadable[info.key] = FormatError(f"{info.key} {_VOID}", hint=f"Try --snapshot {record.id}.")
                void.append(record)
            else:
                records.append(record)
    return SnapshotListing(
        records=tuple(sorted(records, key=lambda r: (r.stopped_at, r.id))), unreadable=unreadable, void=tuple(void)
    )


def _read_head(store: ObjectStore, key: str, stored_bytes: int, *, trust: Trust, scope: Scope) -> Envelope:
    if store.capabilities.versioned:
        envelope, _ = read_object(
            lambda: store.read_versions(key), trust=trust, repository=scope.repository, key=key, kind="snapshot"
        )
        return envelope
    head = store.read(key, length=min(stored_bytes, HEAD_READ_BYTES))
    extent = header_extent(head, key)
    if extent > len(head):
        head = store.read(key, length=min(extent, stored_bytes))
    envelope = read_envelope(head, trust=trust, repository=scope.repository, key=key, kind="snapshot")
    if stored_bytes != envelope.body_offset + envelope.number("body_bytes"):
        raise FormatError(f"{key} is cut off: {stored_bytes} bytes are stored")
    return envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSnapshot:
    """A snapshot object read as a whole."""

    record: SnapshotRecord
    packs: PackTable
    sealed: bytes | memoryview

    def secret(self, keyring: Keyring, scope: Scope) -> SnapshotSecret:
        """Decrypt the part that needs a key.

        Raises:
            NoIdentityError, WrongIdentityError, DamagedObjectError, FormatError.
        """
        what = f"snapshot {self.record.id}"
        context = f"snapshot/{self.record.id}"
        pieces = keyring.open_body(self.record.sealed_key_id, self.sealed, scope=scope, context=context, where=what)
        fields = unpack_map(b"".join(pieces), what)
        attachments, bad_pages = fields.get("attachments"), fields.get("bad_pages")
        if not isinstance(attachments, Mapping) or not isinstance(bad_pages, list):
            raise FormatError(f"{what} lacks its attachments")
        if not all(isinstance(k, str) and isinstance(v, bytes) for k, v in attachments.items()):
            raise FormatError(f"{what} has unreadable attachments")
        pages: list[tuple[bytes, int]] = []
        for page in bad_pages:
            match page:
                case [bytes(path), int(block)]:
                    pages.append((path, block))
                case _:
                    raise FormatError(f"{what} has an unreadable list of bad pages")
        return SnapshotSecret(
            root=NodeRef.from_list(fields.get("root"), what), attachments=dict(attachments), bad_pages=tuple(pages)
        )


def open_snapshot(store: ObjectStore, snapshot: SnapshotId, *, trust: Trust, scope: Scope) -> OpenedSnapshot:
    """Read a whole snapshot object and check it.

    Raises:
        MissingObjectError: there is none of this id.
        FormatError, DamagedObjectError, UnknownSignerError, BadSignatureError.
    """
    key = layout.snapshot_key(scope.service, scope.component, snapshot)

    def versions() -> Iterator[bytes]:
        try:
            yield from store.read_versions(key)
        except ObjectNotFoundError as error:
            raise MissingObjectError(f"there is no snapshot {snapshot} of {scope.service}/{scope.component}") from error

    if next(store.list(key), None) is None:
        raise MissingObjectError(f"there is no snapshot {snapshot} of {scope.service}/{scope.component}")
    envelope, body = read_object(versions, trust=trust, repository=scope.repository, key=key, kind="snapshot")
    record = decode_header(envelope)
    if len(body) < _LENGTH.size:
        raise FormatError(f"{key} has no pack table")
    (length,) = _LENGTH.unpack_from(body)
    view = memoryview(body)
    if length > len(view) - _LENGTH.size:
        raise FormatError(f"{key} has an impossible pack table")
    public = bytes(view[_LENGTH.size : _LENGTH.size + length])
    return OpenedSnapshot(
        record=record, packs=_decode_packs(public, record.key_ids, key), sealed=view[_LENGTH.size + length :]
    )


def _decode_packs(public: bytes, key_ids: Sequence[KeyId], what: str) -> PackTable:
    try:
        fields = parse_canonical(public)
    except ValueError as error:
        raise FormatError(f"{what} has an unreadable pack table: {error}") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{what} has an unreadable pack table")
    data, nodes = (_decode_uses(fields.get(kind), key_ids, what) for kind in ("packs", "node_packs"))
    return PackTable(data=data, nodes=nodes)


def _decode_uses(rows: Json, key_ids: Sequence[KeyId], what: str) -> tuple[PackUse, ...]:
    if not isinstance(rows, list):
        raise FormatError(f"{what} has an unreadable pack table")
    uses: list[PackUse] = []
    for row in rows:
        match row:
            case [str(name), int(stored), int(live), int(index)] if (
                _PACK_NAME.fullmatch(name) and 0 <= live <= stored and 0 <= index < len(key_ids)
            ):
                uses.append(PackUse(name=name, stored_bytes=stored, live_bytes=live, key_id=key_ids[index]))
            case _:
                raise FormatError(f"{what} has an unreadable row in its pack table")
    if any(first.name >= second.name for first, second in pairwise(uses)):
        raise FormatError(f"the pack table of {what} is not in order")
    return tuple(uses)
