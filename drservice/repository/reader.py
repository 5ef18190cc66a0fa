"""Reading a snapshot: its tree, its files, and the plan of what to fetch from which pack.

A pack is the bytes whose SHA-256 is its name. On a versioned store anybody with the store's credentials can put other
bytes on top; readers then find the version that is the pack, wherever it lies.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    ObjectNotFoundError,
    WrongDataKeyError,
)
from drservice.model.snapshot import FilesFacts, SnapshotRecord
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.chunktable import ChunkRow, ChunkTable
from drservice.repository.keys import Keyring
from drservice.repository.nodes import (
    RESERVED_PATHS,
    RESTORE_MARKER,
    Entry,
    EntryKind,
    NodeRef,
    decode_leaf,
    walk,
)
from drservice.repository.pack import NODE_KIND, PackHead, pack_record_key, read_head
from drservice.repository.records import CODEC_ZERO, RecordKey, Scope, open_record
from drservice.repository.snapshots import OpenedSnapshot, SnapshotSecret

_NODE_PACKS_BYTES = 32 << 20
"""Packs of tree nodes that are kept: many small ones of incremental snapshots, or the few that are being read."""
_RECOVERED_PACKS_KEPT = 2


@dataclass(frozen=True, slots=True)
class PackBody:
    """A whole pack in memory, its key derived."""

    head: PackHead
    key: RecordKey
    data: bytes


class SnapshotReader:
    """Reads one snapshot. Needs an identity."""

    def __init__(self, store: ObjectStore, *, scope: Scope, keyring: Keyring, opened: OpenedSnapshot) -> None:
        self._store = store
        self._scope = scope
        self._keyring = keyring
        self._opened = opened
        self._secret = opened.secret(keyring, scope)
        self._node_packs: OrderedDict[bytes, PackBody] = OrderedDict()
        self._view: Callable[[Iterator[Entry]], Iterator[Entry]] = iter
        self._known = {use.name: use for use in (*opened.packs.data, *opened.packs.nodes)}

    @property
    def record(self) -> SnapshotRecord:
        """The public part."""
        return self._opened.record

    @property
    def secret(self) -> SnapshotSecret:
        """The decrypted part."""
        return self._secret

    def pack_bytes(self, name: bytes) -> int:
        """Return the stored size of a pack.

        Raises:
            DamagedObjectError: the snapshot does not list it.
        """
        use = self._known.get(name.hex())
        if use is None:
            raise DamagedObjectError(f"the tree refers to pack {name.hex()[:16]}, which the snapshot does not list")
        return use.stored_bytes

    def entries(self, *, on_lost: Callable[[DrError], None] | None = None) -> Iterator[Entry]:
        """Yield all entries in order of path.

        Args:
            on_lost: hears of each part of the tree that cannot be read; the others are yielded. Without it:

        Raises:
            DamagedObjectError, MissingObjectError, FormatError: the tree cannot be read as a whole.
        """
        files = isinstance(self.record.facts, FilesFacts)
        reserved = frozenset({RESTORE_MARKER}) if files else RESERVED_PATHS
        return self._view(walk(self._secret.root, self._node, reserved=reserved, on_lost=on_lost))

    def seen_through(self, view: Callable[[Iterator[Entry]], Iterator[Entry]]) -> SnapshotReader:
        """Return the same snapshot with some entries left out or moved; the tree is still checked as a whole."""
        other = copy.copy(self)
        other._view = view  # noqa: SLF001 - of this class
        return other

    def tables(self, entry: Entry) -> Iterator[ChunkTable]:
        """Yield the chunk tables of a file, in order; their lengths add up to its size.

        Raises:
            DamagedObjectError: they do not.
        """
        what = entry.path.decode("utf-8", "backslashreplace")
        if entry.kind is not EntryKind.FILE:
            return
        if entry.inline is not None:
            yield entry.inline
            return
        total = 0
        for number, leaf in enumerate(entry.leaves):
            table = decode_leaf(self._node(leaf), what)
            table.validate(chunk_bytes=entry.chunk_bytes, what=what)
            part = table.plain_bytes()
            if number < len(entry.leaves) - 1 and part % entry.chunk_bytes:
                raise DamagedObjectError(f"the chunks of {what} leave a hole")
            total += part
            yield table
        if total != entry.size:
            raise DamagedObjectError(f"the chunks of {what} make {total} bytes instead of {entry.size}")

    def read_file(self, entry: Entry) -> bytes:
        """Return the content of a small file.

        Raises:
            DamagedObjectError, MissingObjectError: naming the file.
        """
        return b"".join(self.pieces(entry))

    def pieces(self, entry: Entry) -> Iterator[bytes | memoryview]:
        """Yield the content of a file, chunk by chunk.

        Raises:
            DamagedObjectError, MissingObjectError: naming the file.
        """
        for table in self.tables(entry):
            for row in table:
                yield (
                    bytes(row.plain_length)
                    if row.codec == CODEC_ZERO
                    else self._chunk(table.packs[row.pack_index], row)
                )

    def _chunk(self, pack: bytes, row: ChunkRow) -> bytes | memoryview:
        opener = PackOpener(self._store, scope=self._scope, keyring=self._keyring)
        return opener.chunk(pack, row)

    def _node(self, ref: NodeRef) -> bytes | memoryview:
        pack = self._node_packs.get(ref.pack)
        if pack is None:
            pack = self._load_node_pack(ref.pack)
            self._node_packs[ref.pack] = pack
            kept_bytes = sum(len(kept.data) for kept in self._node_packs.values())
            while kept_bytes > _NODE_PACKS_BYTES and len(self._node_packs) > 1:
                kept_bytes -= len(self._node_packs.popitem(last=False)[1].data)
        else:
            self._node_packs.move_to_end(ref.pack)
        stored = memoryview(pack.data)[ref.offset : ref.offset + ref.stored_length]
        plain = open_record(
            pack.key,
            stored,
            kind=NODE_KIND,
            ordinal=ref.ordinal,
            plain_length=ref.plain_length,
            codec=ref.codec,
            chunk_id=ref.node_id,
            where=lambda: f"node {ref.node_id.hex()[:16]} in pack {ref.pack.hex()[:16]}",
        )
        if blake3(plain).digest() != ref.node_id:
            raise DamagedObjectError(f"node {ref.node_id.hex()[:16]} does not have the content its id says")
        return plain

    def _load_node_pack(self, name: bytes) -> PackBody:
        self.pack_bytes(name)
        return load_pack(self._store, name, kind="nodes", scope=self._scope, keyring=self._keyring)


def load_pack(store: ObjectStore, name: bytes, *, kind: str, scope: Scope, keyring: Keyring) -> PackBody:
    """Read a whole pack, check it against its name and derive its key.

    Raises:
        MissingObjectError: it is not in the store.
        DamagedObjectError: its bytes do not have the hash that is its name.
    """
    text = name.hex()
    key = layout.pack_key(scope.service, scope.component, kind, text)
    try:
        data = store.read(key)
    except ObjectNotFoundError as error:
        raise MissingObjectError(f"pack {text[:16]} is not in the repository ({key})") from error
    if hashlib.sha256(data).digest() != name:
        good = version_of_pack(store, key, name)
        if good is None:
            raise DamagedObjectError(
                f"pack {text[:16]} was changed: its bytes do not have the hash that is its name ({key})"
            )
        data = good
    head = read_head(data, key)
    return PackBody(head=head, key=_record_key(keyring, head, scope, f"pack {text[:16]}"), data=data)


def version_of_pack(store: ObjectStore, key: str, name: bytes) -> bytes | None:
    """Return the version of a pack that has the hash that is its name; ``None`` if the store keeps none.

    Raises:
        ObjectStoreError: the store did not answer.
    """
    if not store.capabilities.versioned:
        return None
    return next((body for body in store.read_versions(key) if hashlib.sha256(body).digest() == name), None)


def _record_key(keyring: Keyring, head: PackHead, scope: Scope, what: str) -> RecordKey:
    """Return the key of a pack; a problem with its data key names the pack: its key id may be what is damaged."""
    try:
        return keyring.use(
            head.key_id, lambda secret: pack_record_key(head, secret, scope, what), service=scope.service
        )
    except WrongDataKeyError:
        raise  # it names the pack
    except (MissingObjectError, DamagedObjectError, FormatError, KeyProblemError) as error:
        raise type(error)(f"{what}: {error.message}", hint=error.hint) from error


UNUSABLE_PACK = (DamagedObjectError, MissingObjectError, FormatError, KeyProblemError)
"""What reading from a pack raises when its bytes are not the pack's: they may name keys that never existed."""


class PackOpener:
    """Reads single chunks from data packs by range; remembers the keys of the packs it met.

    A range says nothing about the hash of the whole, so what is wrong shows only when a chunk does not open. Then
    :meth:`recover` looks for another version; reading again gives its bytes.
    """

    def __init__(self, store: ObjectStore, *, scope: Scope, keyring: Keyring) -> None:
        self._store = store
        self._scope = scope
        self._keyring = keyring
        self._keys: dict[bytes, RecordKey] = {}
        self._recovered: OrderedDict[bytes, bytes] = OrderedDict()

    def record_key(self, pack: bytes, head: bytes | memoryview | None = None) -> RecordKey:
        """Return the key of a pack, from its first 104 bytes (read if not at hand)."""
        known = self._keys.get(pack)
        if known is None:
            what = f"pack {pack.hex()[:16]}"
            parsed = read_head(head if head is not None else self.read(pack, 0, 104), what)
            known = self._keys[pack] = _record_key(self._keyring, parsed, self._scope, what)
        return known

    def read(self, pack: bytes, offset: int, length: int | None) -> bytes:
        """Read a range of a pack (the whole for ``None``).

        Raises:
            MissingObjectError: the pack is not in the store.
            DamagedObjectError: it is shorter than that.
        """
        recovered = self._recovered.get(pack)
        if recovered is not None:
            return recovered[offset : None if length is None else offset + length]
        key = self._key(pack)
        try:
            return self._store.read(key, offset=offset, length=length)
        except ObjectNotFoundError as error:
            raise MissingObjectError(f"pack {pack.hex()[:16]} is not in the repository ({key})") from error

    def recover(self, pack: bytes) -> bool:
        """Find the version of a damaged pack whose hash is its name, and read from it from now on.

        Returns:
            False if there is none, or if it is what was read: reading again would not help.
        """
        if pack in self._recovered:
            return False
        body = version_of_pack(self._store, self._key(pack), pack)
        if body is None:
            return False
        self._recovered[pack] = body
        self._keys.pop(pack, None)
        while len(self._recovered) > _RECOVERED_PACKS_KEPT:
            self._recovered.popitem(last=False)
        return True

    def chunk(self, pack: bytes, row: ChunkRow) -> bytes | memoryview:
        """Return one chunk, from another version of its pack if need be.

        Raises:
            DamagedObjectError, MissingObjectError, FormatError, KeyProblemError: no version holds it.
        """
        try:
            return self._chunk(pack, row)
        except UNUSABLE_PACK:
            if not self.recover(pack):
                raise
        return self._chunk(pack, row)

    def _chunk(self, pack: bytes, row: ChunkRow) -> bytes | memoryview:
        return open_chunk(self.record_key(pack), self.read(pack, row.offset, row.stored_length), pack, row)

    def _key(self, pack: bytes) -> str:
        return layout.pack_key(self._scope.service, self._scope.component, "packs", pack.hex())


def open_chunk(
    key: RecordKey, stored: bytes | memoryview, pack: bytes, row: ChunkRow, *, hashed: bool = True
) -> bytes | memoryview:
    """Decrypt, decompress and check one chunk.

    Args:
        key: of the pack.
        stored: the record.
        pack: its name.
        row: which chunk it should be; its id is authenticated with the record.
        hashed: compare the plain bytes with that id, too. A caller who compares the whole file with a hash of its own
            need not pay for two.

    Raises:
        DamagedObjectError: naming the pack.
    """
    plain = open_record(
        key,
        stored,
        kind=b"d",
        ordinal=row.ordinal,
        plain_length=row.plain_length,
        codec=row.codec,
        chunk_id=row.chunk_id,
        where=lambda: f"record {row.ordinal} of pack {pack.hex()[:16]}",
    )
    if hashed and blake3(plain).digest() != row.chunk_id:
        raise DamagedObjectError(f"record {row.ordinal} of pack {pack.hex()[:16]} is not the chunk it should be")
    return plain
