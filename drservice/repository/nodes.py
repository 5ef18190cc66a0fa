"""The metadata tree of a snapshot (docs/format.md, section 6): entries, nodes, and how they are cut.

Nodes are stored by content, so an unchanged region of the tree costs nothing. Building and reading here is pure; where
nodes are stored is the caller's ``put`` and ``get``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import msgpack
from blake3 import blake3

from drservice.errors import DrError, FormatError, KeyProblemError, RepositoryError
from drservice.repository.chunktable import ChunkTable

_CUT_MASK = 0x3F
_MAX_ENTRIES = 512
_MAX_REFS = 1024
_MAX_NODE_BYTES = 64 << 20
_MAX_DEPTH = 16
_LEADING_OUT = frozenset({b"", b".", b".."})
RESTORE_MARKER = b"RESTORE-INCOMPLETE"
RESERVED_PATHS = frozenset({b"backup_label", b"tablespace_map", RESTORE_MARKER, b"global/pg_control.withheld"})
"""What a restore writes by itself; never entries of a tree (the label files are attachments)."""


class EntryKind(Enum):
    """What a path is."""

    DIRECTORY = "d"
    FILE = "f"
    LINK = "l"


_KINDS = {kind.value: kind for kind in EntryKind}


@dataclass(frozen=True, slots=True)
class NodeRef:
    """Where a node is stored."""

    node_id: bytes
    pack: bytes
    ordinal: int
    offset: int
    stored_length: int
    plain_length: int
    codec: int

    def to_list(self) -> list[bytes | int]:
        """Return the wire form."""
        return [
            self.node_id,
            self.pack,
            self.ordinal,
            self.offset,
            self.stored_length,
            self.plain_length,
            self.codec,
        ]

    @classmethod
    def from_list(cls, items: object, what: str) -> NodeRef:
        """Read the wire form.

        Raises:
            FormatError: it is none.
        """
        match items:
            case [bytes(node_id), bytes(pack), int(ordinal), int(offset), int(stored), int(plain), int(codec)]:
                numbers = (ordinal, offset, stored, plain)
                fits = min(numbers) >= 0 and max(numbers) < 1 << 32 and plain <= _MAX_NODE_BYTES and 0 <= codec <= 255
                if len(node_id) == len(pack) == 32 and fits:
                    return cls(node_id, pack, ordinal, offset, stored, plain, codec)
        raise FormatError(f"{what} holds something that is no reference to a node")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """How a file looked on the writing host when it was read (times in ns since 1970)."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    read_began_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of a snapshot."""

    path: bytes
    kind: EntryKind
    mode: int
    size: int = 0
    chunk_bytes: int = 0
    inline: ChunkTable | None = None
    leaves: tuple[NodeRef, ...] = ()
    target: bytes = b""
    identity: FileIdentity | None = None
    sha1: bytes = b""
    """SHA-1 of the content of a document whose name says another one: it was damaged in production already."""


def encode_entry(entry: Entry) -> bytes:
    """Return an entry's msgpack bytes."""
    fields: dict[str, object] = {"p": entry.path, "t": entry.kind.value, "m": entry.mode}
    if entry.kind is EntryKind.LINK:
        fields["l"] = entry.target
    if entry.kind is EntryKind.FILE:
        fields["z"] = entry.size
        fields["s"] = entry.chunk_bytes
        if entry.leaves:
            fields["n"] = [leaf.to_list() for leaf in entry.leaves]
        else:
            table = entry.inline or ChunkTable((), b"")
            fields["k"] = list(table.packs)
            fields["c"] = table.rows
    if entry.sha1:
        fields["h"] = entry.sha1
    if entry.identity is not None:
        i = entry.identity
        fields["i"] = [i.device, i.inode, i.modified_ns, i.changed_ns, i.read_began_ns]
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_entry(raw: bytes | dict[str, object]) -> Entry:
    """Read an entry from its bytes or its already unpacked map.

    Raises:
        FormatError: it is none.
    """
    fields = raw if isinstance(raw, dict) else unpack_map(raw, "a tree entry")
    path, letter = fields.get("p"), fields.get("t")
    kind = _KINDS.get(letter) if isinstance(letter, str) else None
    if not isinstance(path, bytes) or kind is None:
        raise FormatError("a tree entry lacks path or type")
    what = path.decode("utf-8", "backslashreplace")
    mode = fields.get("m", 0o777 if kind is EntryKind.LINK else None)
    if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= 0o7777:
        raise FormatError(f"{what} has no mode")
    if kind is EntryKind.DIRECTORY:
        return Entry(path=path, kind=kind, mode=mode)
    if kind is EntryKind.LINK:
        target = fields.get("l")
        if not isinstance(target, bytes):
            raise FormatError(f"the link {what} has no target")
        return Entry(path=path, kind=kind, mode=mode, target=target)
    size, chunk_bytes = fields.get("z"), fields.get("s")
    if not isinstance(size, int) or not isinstance(chunk_bytes, int) or not 0 <= size < 1 << 63 or chunk_bytes < 1:
        raise FormatError(f"the file {what} has no size")
    leaves: tuple[NodeRef, ...] = ()
    inline: ChunkTable | None = None
    if "n" in fields:
        items = fields["n"]
        if not isinstance(items, list):
            raise FormatError(f"the file {what} has unreadable leaves")
        leaves = tuple(NodeRef.from_list(item, what) for item in items)
    else:
        inline = _table(fields.get("k"), fields.get("c"), what)
        if inline.validate(chunk_bytes=chunk_bytes, what=what) != size:
            raise FormatError(f"the chunks of {what} do not add up to its size")
    return Entry(
        path=path,
        kind=kind,
        mode=mode,
        size=size,
        chunk_bytes=chunk_bytes,
        inline=inline,
        leaves=leaves,
        identity=_identity(fields.get("i")),
        sha1=_sha1(fields.get("h", b""), what),
    )


def _sha1(value: object, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) not in {0, 20}:
        raise FormatError(f"the file {what} has an unreadable SHA-1")
    return value


def _identity(items: object) -> FileIdentity | None:
    match items:
        case [int(device), int(inode), int(modified), int(changed), int(began)]:
            return FileIdentity(
                device=device, inode=inode, modified_ns=modified, changed_ns=changed, read_began_ns=began
            )
    return None


def _table(packs: object, rows: object, what: str) -> ChunkTable:
    if not isinstance(packs, list) or not isinstance(rows, bytes):
        raise FormatError(f"{what} has no chunk table")
    if not all(isinstance(name, bytes) and len(name) == 32 for name in packs):
        raise FormatError(f"{what} has a chunk table with unreadable pack names")
    return ChunkTable(packs, rows)


def encode_leaf(table: ChunkTable) -> bytes:
    """Return the bytes of a ``chunks`` node."""
    packed: bytes = msgpack.packb({"v": 1, "kind": "chunks", "packs": list(table.packs), "chunks": table.rows})
    return packed


def decode_leaf(raw: bytes | memoryview, what: str) -> ChunkTable:
    """Read a ``chunks`` node.

    Raises:
        FormatError: it is none.
    """
    fields = _node(raw, what)
    if fields.get("kind") != "chunks":
        raise FormatError(f"{what}: expected a node of chunks")
    return _table(fields.get("packs"), fields.get("chunks"), what)


def node_id(raw: bytes) -> bytes:
    """Return the id of a node: BLAKE3 of its bytes."""
    return blake3(raw).digest()


def cut_entries(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Cut sorted (path, entry bytes) into ``entries`` nodes; yields (first path, node bytes); at least one."""
    made = False
    for group in group_entries(entries):
        yield group[0][0], entries_node([raw for _, raw in group])
        made = True
    if not made:
        yield b"", entries_node(())


def group_entries(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield the sorted (path, entry bytes) of each ``entries`` node, which begins where it would in the whole."""
    current: list[tuple[bytes, bytes]] = []
    for item in entries:
        if current and (len(current) >= _MAX_ENTRIES or begins_node(item[0])):
            yield current
            current = []
        current.append(item)
    if current:
        yield current


def begins_node(path: bytes) -> bool:
    """Tell whether a node begins with this path whatever stands before it."""
    return blake3(path).digest()[0] & _CUT_MASK == 0


def entries_node(entries: Sequence[bytes]) -> bytes:
    """Return the bytes of an ``entries`` node."""
    # The entries are msgpack already: an array header before them makes the list without unpacking anything.
    packer = msgpack.Packer()
    head: bytes = packer.pack_map_header(3) + packer.pack("v") + packer.pack(1) + packer.pack("kind")
    return b"".join(
        (head, packer.pack("entries"), packer.pack("entries"), packer.pack_array_header(len(entries)), *entries)
    )


class NodeStore(Protocol):
    """Stores nodes by content; a place is known once :meth:`settle` has returned."""

    def put(self, raw: bytes) -> bytes:
        """Store a node unless it is stored already, and return its id."""
        ...

    def settle(self) -> None:
        """Make everything put so far durable."""
        ...

    def place(self, node_id: bytes) -> NodeRef:
        """Return where a settled node is."""
        ...


def build_root(entries: Iterable[tuple[bytes, bytes]], store: NodeStore) -> NodeRef:
    """Store the tree over sorted (path, entry bytes), level by level, and return its root.

    Args:
        entries: strictly increasing by path.
        store: where nodes go; settled once per level, because a reference names its pack.
    """
    return build_above(((first, store.put(raw)) for first, raw in cut_entries(entries)), store)


def build_above(nodes: Iterable[tuple[bytes, bytes]], store: NodeStore) -> NodeRef:
    """Store the tree over (first path, id) of its ``entries`` nodes, at least one, and return its root."""
    level = list(nodes)
    store.settle()
    while len(level) > 1:
        above: list[tuple[bytes, bytes]] = []
        current: list[tuple[bytes, NodeRef]] = []
        for first, node in level:
            full = len(current) >= _MAX_REFS
            if len(current) >= 2 and (full or node[0] & _CUT_MASK == 0):
                above.append((current[0][0], store.put(_refs_node(current))))
                current = []
            current.append((first, store.place(node)))
        above.append((current[0][0], store.put(_refs_node(current))))
        store.settle()
        level = above
    return store.place(level[0][1])


def _refs_node(items: Sequence[tuple[bytes, NodeRef]]) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "kind": "refs", "refs": [[first, ref.to_list()] for first, ref in items]})
    return packed


def walk(
    root: NodeRef,
    get: Callable[[NodeRef], bytes | memoryview],
    *,
    reserved: frozenset[bytes] = RESERVED_PATHS,
    on_lost: Callable[[DrError], None] | None = None,
) -> Iterator[Entry]:
    """Yield all entries below ``root`` in order of path.

    Args:
        root: of the tree.
        get: reads a node.
        reserved: paths that are never entries.
        on_lost: hears of each node that cannot be read and is passed over; without it the first one ends the walk.

    Raises:
        FormatError: a node has the wrong shape, or paths are not strictly increasing, not clean or reserved, or lie in
            something that is not a folder of this tree.
    """
    previous = b""
    folders = {b""}
    lost: list[DrError] = []

    def lose(error: DrError) -> None:
        if on_lost is None:
            raise error
        lost.append(error)
        on_lost(error)

    for entry in _walk(root, get, 0, lose):
        check_path(entry.path, reserved)
        if entry.path <= previous:
            raise FormatError("the tree of this snapshot is not in order")
        previous = entry.path
        if entry.path.rpartition(b"/")[0] not in folders and not lost:  # its folder may stand in a lost node
            raise FormatError(f"the snapshot puts {entry.path!r} below something that is no folder of it")
        if entry.kind is EntryKind.DIRECTORY:
            folders.add(entry.path)
        yield entry


def _walk(
    ref: NodeRef,
    get: Callable[[NodeRef], bytes | memoryview],
    depth: int,
    lose: Callable[[DrError], None],
) -> Iterator[Entry]:
    if depth > _MAX_DEPTH:
        raise FormatError("the tree of this snapshot is too deep")
    what = f"node {ref.node_id.hex()[:16]}"
    try:
        fields = _node(get(ref), what)
    except (RepositoryError, KeyProblemError) as error:
        lose(error)
        return
    if fields.get("kind") == "entries":
        items = fields.get("entries")
        if not isinstance(items, list):
            raise FormatError(f"{what} has no entries")
        for item in items:
            if not isinstance(item, dict):
                raise FormatError(f"{what} holds something that is no entry")
            yield decode_entry(item)
        return
    refs = fields.get("refs")
    if fields.get("kind") != "refs" or not isinstance(refs, list) or not refs:
        raise FormatError(f"{what} is neither a node of entries nor of references")
    for item in refs:
        if not isinstance(item, list) or len(item) != 2:
            raise FormatError(f"{what} holds an unreadable reference")
        yield from _walk(NodeRef.from_list(item[1], what), get, depth + 1, lose)


def check_path(path: bytes, reserved: frozenset[bytes] = RESERVED_PATHS) -> None:
    """Refuse a path that could lead out of the target.

    Raises:
        FormatError: absolute, empty, with NUL, ``.`` or ``..`` or empty parts, or a name that is reserved.
    """
    if path in reserved or b"\0" in path or not _LEADING_OUT.isdisjoint(path.split(b"/")):
        raise FormatError(f"a snapshot holds the path {path!r}, which no restore may write")


def _node(raw: bytes | memoryview, what: str) -> Mapping[str, object]:
    fields = unpack_map(raw, what)
    if fields.get("v") != 1:
        raise FormatError(f"{what} has version {fields.get('v')!r}; this program reads version 1")
    return fields


def unpack_map(raw: bytes | memoryview, what: str) -> Mapping[str, object]:
    """Decode a msgpack map with string keys, bounded by its own length.

    Raises:
        FormatError: it is none.
    """
    if len(raw) > _MAX_NODE_BYTES:
        raise FormatError(f"{what} is too large")
    try:
        fields = msgpack.unpackb(raw, raw=False, strict_map_key=True, object_pairs_hook=_map_of_pairs)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FormatError(f"{what} is not readable msgpack") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{what} is no map")
    return fields


def _map_of_pairs(pairs: Sequence[tuple[object, object]]) -> dict[object, object]:
    """Make a map and refuse a key that stands in it twice: readers would disagree about its value."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a map has a key twice")
    return made
