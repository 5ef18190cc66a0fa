"""Documents stored between two passes over a filestore, in sets (docs/format.md, section 15).

A set is one PUT. Its public header says up to which position of the database it tells the truth; which documents are in
it stands in a sealed index at its beginning, so that a reader who looks for one document reads little of each set. Sets
are only ever added: one that was stored twice, because an answer was lost, does no harm.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import msgpack

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnreachableError,
)
from drservice.model.documents import DocumentPart, DocumentPosition, StoredSet
from drservice.model.ids import KeyId, SystemId, is_ulid, make_ulid
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import ObjectInfo, ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import (
    HEAD_READ_BYTES,
    Envelope,
    HostKey,
    Trust,
    header_extent,
    read_envelope,
    read_object,
    require_signer,
    write_envelope,
)
from drservice.repository.keys import DataKey, Keyring
from drservice.repository.nodes import unpack_map
from drservice.repository.records import Scope, seal_body

MAX_SET_BYTES = 32 << 20
"""So much content a set has at most."""
MAX_DOCUMENTS = 10_000
PART_BYTES = 24 << 20
"""A bigger document is cut at every multiple of this."""

UNUSABLE_SET = (FormatError, DamagedObjectError, KeyProblemError, MissingObjectError, ObjectNotFoundError)
"""What one set may be while others are good."""

_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"([0-9a-f]{2,3})/([0-9a-f]{40})")
_READERS = 16
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SetListing:
    """The sets of a component, by the server's time, and those whose header cannot be believed, by key."""

    sets: tuple[StoredSet, ...]
    unreadable: Mapping[str, DrError]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A document or a part of one in a set."""

    name: str
    size: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetIndex:
    """What is in a set, and what production was found not to have."""

    entries: tuple[IndexEntry, ...]
    missing: tuple[str, ...]
    corrupt: tuple[str, ...]


class DocumentSets:
    """The document sets of one component. Headers need no identity, everything else does.

    Args:
        store: where they lie.
        scope: of the component.
        trust: who is believed.
        keyring: opens keys.
        signer: of this host; ``None``: it cannot write.
        clock: of this host.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        scope: Scope,
        trust: Trust,
        keyring: Keyring,
        signer: HostKey | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._scope = scope
        self._trust = trust
        self._keyring = keyring
        self._signer = signer
        self._clock = clock

    @property
    def is_distant(self) -> bool:
        """Whether the store is far away: many small reads side by side are worth it."""
        return self._store.capabilities.distant

    # --- writing --------------------------------------------------------------------------------------------

    def put(
        self,
        documents: Sequence[tuple[str, bytes]],
        *,
        position: DocumentPosition,
        missing: Sequence[str],
        corrupt: Sequence[str],
        whole: bool,
        previous: str | None,
        key: DataKey,
        parts: Sequence[DocumentPart] = (),
    ) -> StoredSet:
        """Store a set; durable and verified on return. One request, unless an answer is lost.

        After an error it is not known whether it was stored: call again, under the same ``previous``.

        Args:
            documents: names and contents, of at most ``PART_BYTES`` each; none may do.
            position: where the database stood before its rows were read.
            missing: documents that rows refer to and production does not have.
            corrupt: documents whose content in production is not what their name says.
            whole: every row that was visible at the position was compared with all that is stored.
            previous: the set before this one in the same run.
            key: sealed with this one, whose wrapping is stored already.
            parts: of documents that are bigger, as :func:`cut` cuts them.

        Raises:
            ValueError: a content that is not its name's, or more than a set holds.
            KeyProblemError: this host cannot write.
            ObjectStoreError: not stored, or not known to be stored.
        """
        items = [
            *(DocumentPart(name=name, size=len(data), offset=0, data=data) for name, data in documents),
            *parts,
        ]
        _require_fit(items)
        index: bytes = msgpack.packb(
            {
                "v": 1,
                "documents": [[item.name.encode(), item.size, item.offset, len(item.data)] for item in items],
                "missing": [_checked(name).encode() for name in missing],
                "corrupt": [_checked(name).encode() for name in corrupt],
            }
        )
        contents = b"".join(item.data for item in items)
        fields: dict[str, Json] = {
            "system_id": position.system_id,
            "timeline": int(position.timeline),
            "lsn": str(position.lsn),
            "server_time": to_iso(position.server_time),
            "documents": len(items),
            "plain_bytes": len(contents),
            "key_id": key.id,
            "previous": previous,
            "whole": whole,
        }
        return self._create(fields, index, contents, key)

    def _create(self, fields: Mapping[str, Json], index: bytes, contents: bytes, data_key: DataKey) -> StoredSet:
        for _ in range(_TRIES):
            now = self._clock.now()
            identifier = make_ulid(now, os.urandom(10))
            object_key = layout.documents_key(self._scope.service, self._scope.component, identifier)
            context = f"documents/{identifier}"
            sealed = seal_body(data_key.secret, index, scope=self._scope, context=f"{context}/index")
            pieces = write_envelope(
                signer=require_signer(self._signer),
                repository=self._scope.repository,
                key=object_key,
                kind="documents",
                fields={**fields, "id": identifier},
                body=[
                    _LENGTH.pack(sum(map(len, sealed))),
                    *sealed,
                    *seal_body(data_key.secret, contents, scope=self._scope, context=context),
                ],
                now=now,
            )
            try:
                self._store.create(object_key, pieces)
            except ObjectExistsError:
                if not self._is_ours(object_key, bytes(pieces[0])):
                    continue  # somebody else's: it stays, and ours gets another name
            envelope = read_envelope(
                bytes(pieces[0]), trust=self._trust, repository=self._scope.repository, key=object_key, kind="documents"
            )
            stored = ObjectInfo(key=object_key, stored_bytes=sum(map(len, pieces)), modified_at=now)
            return _decode(envelope, stored)
        raise ObjectExistsError(f"every name for a document set of {self._scope.component} is taken")

    def _is_ours(self, object_key: str, head: bytes) -> bool:
        """Tell whether what is stored is what was just sent: the answer to the first try was lost."""
        try:
            envelope, _ = self._read(object_key)
        except UNUSABLE_SET:
            return False
        mine = read_envelope(
            head, trust=self._trust, repository=self._scope.repository, key=object_key, kind="documents"
        )
        return envelope.header_sha256 == mine.header_sha256

    # --- reading --------------------------------------------------------------------------------------------

    def listing(self, *, since: datetime | None = None) -> SetListing:
        """Read the headers of all sets, oldest first by the server's time; no identity is needed.

        Args:
            since: those that the store received before are left out unread.

        Raises:
            ObjectStoreError: the listing is not complete, or the store did not answer for one of them.
        """
        infos = [info for info in self.stored() if since is None or info.modified_at >= since]
        sets: list[StoredSet] = []
        unreadable: dict[str, DrError] = {}
        width = _READERS if self.is_distant else 1
        with ThreadPoolExecutor(max_workers=width, thread_name_prefix="sets") as threads:
            for info, got in zip(infos, threads.map(self._header, infos), strict=True):
                if isinstance(got, StoredSet):
                    sets.append(got)
                elif got is not None:
                    unreadable[info.key] = got
        sets.sort(key=lambda item: (item.position.server_time, item.id))
        return SetListing(sets=tuple(sets), unreadable=unreadable)

    def stored(self) -> list[ObjectInfo]:
        """Return the sets as the store lists them, whether they can be read or not. Complete or raises."""
        prefix = layout.documents_prefix(self._scope.service, self._scope.component)
        # Foreign objects beside ours are not ours to judge.
        return [info for info in self._store.list(prefix) if is_ulid(info.key.removeprefix(prefix))]

    def newest(self, *, fits: Callable[[StoredSet], bool] = lambda _: True) -> StoredSet | None:
        """Return the newest set that is whole, by the store's clock; it costs a listing and a read or two.

        Args:
            fits: which sets are meant; each that is not costs one more read.

        Raises:
            ObjectStoreError: the listing is not complete, or the store did not answer.
        """
        # An identifier has its writer's clock: one that was ahead for a moment would be the newest for as long.
        newest = sorted(self.stored(), key=lambda info: (info.modified_at, info.key), reverse=True)
        headers = map(self._header, newest)
        return next((item for item in headers if isinstance(item, StoredSet) and item.is_whole and fits(item)), None)

    def _header(self, info: ObjectInfo) -> StoredSet | DrError | None:
        try:
            return _decode(self._read_head(info.key, info.stored_bytes), info)
        except ObjectNotFoundError:
            return None  # let go since it was listed
        except StoreUnreachableError:
            raise  # no answer says nothing about the set: the list would not be complete
        except DrError as error:
            return error

    def index(self, stored: StoredSet) -> SetIndex:
        """Return what is in a set; reads its beginning only where the store has no versions.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, ObjectStoreError: it cannot be read, or not here.
        """
        if self._store.capabilities.versioned:
            _, body = self._read(stored.key)
            return self._open_index(stored, body)
        envelope = self._read_head(stored.key, stored.stored_bytes)
        begin = envelope.body_offset
        (length,) = _LENGTH.unpack(self._store.read(stored.key, offset=begin, length=_LENGTH.size))
        if begin + _LENGTH.size + length > stored.stored_bytes:
            raise FormatError(f"{stored.key} has an impossible index")
        return self._open_index(stored, self._store.read(stored.key, offset=begin, length=_LENGTH.size + length))

    def names(self, sets: Sequence[StoredSet]) -> Mapping[str, StoredSet]:
        """Return which documents are in the sets, whole or with every part; of several sets that have one, the last.

        A document that is cut over several sets is named with the one that has its beginning.

        Raises:
            As :meth:`index`.
        """
        found: dict[str, StoredSet] = {}
        parts: dict[str, set[int]] = {}
        begun: dict[str, StoredSet] = {}
        for stored in sets:
            for entry in self.index(stored).entries:
                if entry.length == entry.size:
                    found[entry.name] = stored
                    continue
                parts.setdefault(entry.name, set()).add(entry.offset)
                if entry.offset == 0:
                    begun[entry.name] = stored
                if parts[entry.name] >= set(range(0, entry.size, PART_BYTES)):
                    found[entry.name] = begun[entry.name]
        return found

    def read(self, stored: StoredSet, wanted: Collection[str]) -> Iterator[DocumentPart]:
        """Yield the wanted documents of a set, and parts of those that are bigger, in the order of the set.

        A whole document has the SHA-1 of its name. Whether parts have it, shows when they are together.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, ObjectStoreError: it cannot be read, or not here.
        """
        envelope, body = self._read(stored.key)
        index = self._open_index(stored, body)
        (length,) = _LENGTH.unpack_from(body)
        context = f"documents/{stored.id}"
        pieces = self._keyring.open_body(
            KeyId(envelope.text("key_id")),
            memoryview(body)[_LENGTH.size + length :],
            scope=self._scope,
            context=context,
            where=f"document set {stored.id}",
        )
        buffer = _Buffer(pieces)
        for entry in index.entries:
            data = buffer.take(entry.length, keep=entry.name in wanted)
            if entry.name not in wanted:
                continue
            part = DocumentPart(name=entry.name, size=entry.size, offset=entry.offset, data=data)
            if part.is_whole and _sha1(data) != entry.name[-40:]:
                raise DamagedObjectError(f"document set {stored.id} holds other content under {entry.name}")
            yield part
        buffer.require_end(stored)

    def check(self, stored: StoredSet, *, decrypted: bool) -> None:
        """Read a set as a whole and check signature and hashes; ``decrypted``: its index and contents too.

        Raises:
            FormatError, DamagedObjectError, KeyProblemError, MissingObjectError, ObjectStoreError: it is not whole.
        """
        if decrypted:
            for _ in self.read(stored, {entry.name for entry in self.index(stored).entries}):
                pass
            return
        self._read(stored.key)
        if not self._keyring.recipients_of(stored.key_id, service=self._scope.service):
            raise MissingObjectError(f"data key {stored.key_id} of {stored.key} is not in the repository")

    def _open_index(self, stored: StoredSet, body: bytes | memoryview) -> SetIndex:
        what = f"the index of document set {stored.id}"
        if len(body) < _LENGTH.size:
            raise FormatError(f"{what} is not there")
        (length,) = _LENGTH.unpack_from(body)
        sealed = memoryview(body)[_LENGTH.size : _LENGTH.size + length]
        if len(sealed) < length:
            raise FormatError(f"{what} has an impossible length")
        context = f"documents/{stored.id}/index"
        pieces = self._keyring.open_body(stored.key_id, sealed, scope=self._scope, context=context, where=what)
        return _decode_index(b"".join(pieces), stored, what)

    def _read(self, object_key: str) -> tuple[Envelope, bytes | memoryview]:
        return read_object(
            lambda: self._store.read_versions(object_key),
            trust=self._trust,
            repository=self._scope.repository,
            key=object_key,
            kind="documents",
        )

    def _read_head(self, object_key: str, stored_bytes: int) -> Envelope:
        if self._store.capabilities.versioned:
            return self._read(object_key)[0]
        head = self._store.read(object_key, length=min(stored_bytes, HEAD_READ_BYTES))
        extent = header_extent(head, object_key)
        if extent > len(head):
            head = self._store.read(object_key, length=min(extent, stored_bytes))
        envelope = read_envelope(
            head, trust=self._trust, repository=self._scope.repository, key=object_key, kind="documents"
        )
        if stored_bytes != envelope.body_offset + envelope.number("body_bytes"):
            raise FormatError(f"{object_key} is cut off: {stored_bytes} bytes are stored")
        return envelope


class _Buffer:
    """The contents of a set, taken off one after the other; no more is held than the document at hand."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def take(self, length: int, *, keep: bool) -> bytes:
        """Return the next bytes; nothing if they are not to be kept."""
        taken = bytearray()
        left = length
        while left:
            if not self._rest:
                self._rest = memoryview(self._next())
            piece = self._rest[:left]
            self._rest = self._rest[len(piece) :]
            left -= len(piece)
            if keep:
                taken += piece
        return bytes(taken)

    def require_end(self, stored: StoredSet) -> None:
        """Refuse a set that holds more than its index says."""
        if self._rest or next(self._pieces, None) is not None:
            raise FormatError(f"document set {stored.id} goes on behind its last document")

    def _next(self) -> bytes | memoryview:
        piece = next(self._pieces, None)
        if piece is None:
            raise DamagedObjectError("a document set ends inside a document")
        return piece


def cut(name: str, size: int, offset: int) -> range:
    """Return which bytes of a document that is too big for a set are the part that begins at ``offset``.

    Raises:
        ValueError: no part begins there, or the document is stored whole.
    """
    if size <= PART_BYTES or offset % PART_BYTES or not 0 <= offset < size:
        raise ValueError(f"no part of {name} begins at {offset}")
    return range(offset, min(offset + PART_BYTES, size))


def _require_fit(items: Sequence[DocumentPart]) -> None:
    total = sum(len(item.data) for item in items)
    if total > MAX_SET_BYTES or len(items) > MAX_DOCUMENTS:
        raise ValueError(f"{len(items)} documents of {total} bytes are more than a set holds")
    if len({(item.name, item.offset) for item in items}) != len(items):
        raise ValueError("a document stands in a set twice")
    for item in items:
        _checked(item.name)
        if item.size > PART_BYTES:
            if len(item.data) != len(cut(item.name, item.size, item.offset)):
                raise ValueError(f"{item.name} is not cut where documents are cut")
        elif not item.is_whole or _sha1(item.data) != item.name[-40:]:
            raise ValueError(f"{item.name} has other content than its name says")


def _checked(name: str) -> str:
    found = _NAME.fullmatch(name)
    if found is None or not found[2].startswith(found[1]):
        raise ValueError(f"{name!r} is no name of a document")
    return name


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _decode(envelope: Envelope, info: ObjectInfo) -> StoredSet:
    identifier, whole = envelope.text("id"), envelope.header.get("whole")
    previous = envelope.header.get("previous")
    if info.key.rsplit("/", 1)[-1] != identifier:
        raise FormatError(f"{info.key} describes another document set")
    if not isinstance(whole, bool) or not (previous is None or (isinstance(previous, str) and is_ulid(previous))):
        raise FormatError(f"{info.key} has an unreadable header")
    try:
        position = DocumentPosition(
            system_id=SystemId(envelope.text("system_id")),
            timeline=Timeline(envelope.number("timeline")),
            lsn=Lsn.parse(envelope.text("lsn")),
            server_time=from_iso(envelope.text("server_time")),
        )
    except ValueError as error:
        raise FormatError(f"{info.key} has an unreadable header: {error}") from error
    return StoredSet(
        id=identifier,
        key=info.key,
        position=position,
        documents=envelope.number("documents"),
        plain_bytes=envelope.number("plain_bytes"),
        key_id=KeyId(envelope.text("key_id")),
        previous=previous,
        is_whole=whole,
        stored_bytes=info.stored_bytes,
        stored_at=info.modified_at,
    )


def _decode_index(raw: bytes, stored: StoredSet, what: str) -> SetIndex:
    fields = unpack_map(raw, what)
    rows = fields.get("documents")
    if fields.get("v") != 1 or not isinstance(rows, list):
        raise FormatError(f"{what} is unreadable")
    try:
        entries = tuple(_decode_row(row) for row in rows)
        missing, corrupt = (_decode_names(fields.get(kind)) for kind in ("missing", "corrupt"))
    except (ValueError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} is unreadable: {error}") from error
    if len({(entry.name, entry.offset) for entry in entries}) != len(entries):
        raise FormatError(f"{what} names a document twice")
    total = sum(entry.length for entry in entries)
    if (len(entries), total) != (stored.documents, stored.plain_bytes) or total > MAX_SET_BYTES:
        telemetry.warning("document set disagrees with its header", document_set=stored.id)
        raise FormatError(f"{what} is not that of its header")
    return SetIndex(entries=entries, missing=missing, corrupt=corrupt)


def _decode_row(row: object) -> IndexEntry:
    match row:
        case [bytes(name), int(size), int(offset), int(length)] if size >= 0:
            entry = IndexEntry(name=_checked(name.decode("ascii")), size=size, offset=offset, length=length)
        case _:
            raise ValueError("an entry is none")
    expected = size if size <= PART_BYTES and offset == 0 else len(cut(entry.name, size, offset))
    if length != expected:
        raise ValueError(f"{entry.name} is not cut where documents are cut")
    return entry


def _decode_names(names: object) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError("a list of names is none")
    return tuple(_checked(name.decode("ascii")) for name in names)
