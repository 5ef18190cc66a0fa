"""Putting a snapshot together: file parts become entries, entries become nodes, nodes become packs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgpack

from drservice.errors import DamagedObjectError
from drservice.model.ids import KeyId
from drservice.objectstore.interface import ObjectStore
from drservice.repository.cache import Region, StagedCache
from drservice.repository.capture import RangeResult, RangeState
from drservice.repository.chunktable import INLINE_CHUNKS, LEAF_CHUNKS, ChunkTable, live_bytes
from drservice.repository.keys import DataKey
from drservice.repository.nodes import (
    Entry,
    EntryKind,
    FileIdentity,
    NodeRef,
    begins_node,
    build_above,
    decode_entry,
    encode_entry,
    encode_leaf,
    entries_node,
    group_entries,
    node_id,
)
from drservice.repository.pack import NODE_KIND, NODE_PACK_BYTES, ClosedPack, PackSink, PackTarget, Place
from drservice.repository.records import NO_CHUNK, Scope
from drservice.repository.snapshots import PackTable, PackUse

_NODE_LEVEL = 3
"""zstd level for nodes: small and read by every restore."""


class NodeSink:
    """Stores tree nodes by content. A node that the last snapshot stored is not stored again."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        scope: Scope,
        key: DataKey,
        staged: StagedCache,
        missing: frozenset[bytes],
        on_pack: Callable[[bytes, int], None],
    ) -> None:
        target = PackTarget(
            scope=scope,
            kind=NODE_KIND,
            key_id=key.id,
            data_key=key.secret,
            level=_NODE_LEVEL,
            pack_bytes=NODE_PACK_BYTES,
        )
        self._sink = PackSink(store, target, self._on_closed)
        self._staged = staged
        self._missing = missing
        self._on_pack = on_pack
        self._pending: dict[bytes, Place] = {}
        self.used: set[bytes] = set()
        """Ids of the tree's nodes above the leaves."""

    def put(self, raw: bytes) -> bytes:
        """Store a node of the tree unless it is stored already, and return its id."""
        identifier = self.put_leaf(raw)
        self.used.add(identifier)
        return identifier

    def put_leaf(self, raw: bytes) -> bytes:
        """Store a leaf unless it is stored already, and return its id."""
        identifier = node_id(raw)
        if identifier not in self._pending:
            known = self._staged.node(identifier)
            if known is not None and known.pack not in self._missing:
                self._staged.put_place(known)
            else:
                self._pending[identifier] = self._sink.add(identifier, raw)
        return identifier

    def forget(self, packs: Iterable[bytes]) -> None:
        """Never refer to nodes in these packs any more: they are gone."""
        self._missing = self._missing | frozenset(packs)

    def keep(self, region: Region) -> bool:
        """Use a node of the last snapshot again; ``False`` if its pack is not to be used."""
        if region.pack in self._missing:
            return False
        self._staged.carry_region(region)
        self.used.add(region.node)
        return True

    def settle(self) -> None:
        """Make everything put so far durable."""
        self._sink.flush()

    def place(self, node: bytes) -> NodeRef:
        """Return where a settled node is."""
        ref = self._staged.node(node)
        if ref is None:
            raise DamagedObjectError("a tree node was referred to before it was stored")
        return ref

    def close(self) -> None:
        """Release the uploader."""
        self._sink.close()

    def _on_closed(self, pack: ClosedPack) -> None:
        self._on_pack(pack.name, pack.stored_bytes)
        done = [node for node, place in self._pending.items() if place.token == pack.token]
        for node in done:
            place = self._pending.pop(node)
            self._staged.put_place(
                NodeRef(
                    node,
                    pack.name,
                    place.ordinal,
                    place.offset,
                    place.stored_length,
                    place.plain_length,
                    place.codec,
                )
            )


def stage_leaves(tables: Iterable[ChunkTable], nodes: NodeSink, staged: StagedCache) -> tuple[NodeRef, ...]:
    """Store the chunk tables of a large file as leaves; their places are filled in later (:func:`store_tree`)."""
    leaves = []
    for table in tables:
        raw = encode_leaf(table)
        identifier = nodes.put_leaf(raw)
        staged.put_leaf(identifier, raw, table)
        leaves.append(NodeRef(identifier, NO_CHUNK, 0, 0, 0, 0, 0))
    return tuple(leaves)


@dataclass(slots=True)
class FileAssembly:
    """The parts of one file while they come in, in any order."""

    path: bytes
    mode: int
    chunk_bytes: int
    first_task: int
    tasks: int
    results: dict[int, RangeResult] = field(default_factory=dict)
    tables: dict[int, ChunkTable] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Tell whether every part is there and every pack has its name."""
        return len(self.tables) == self.tasks

    def vanished(self) -> bool:
        """Tell whether the file was gone when its first part was to be read."""
        return self.results[self.first_task].state is RangeState.VANISHED

    def entry(self, nodes: NodeSink, staged: StagedCache) -> Entry:
        """Return the file's entry; places of leaves are filled in later (:func:`store_tree`)."""
        parts: list[ChunkTable] = []
        size = 0
        for number in range(self.first_task, self.first_task + self.tasks):
            table, result = self.tables[number], self.results[number]
            if result.state is RangeState.VANISHED:
                break
            if parts and not result.plain_bytes:
                break
            parts.append(table)
            size += result.plain_bytes
            if result.plain_bytes < LEAF_CHUNKS * self.chunk_bytes:
                break  # the file ended here when it was read: what follows was cut off and comes back from WAL
        base = Entry(
            path=self.path,
            kind=EntryKind.FILE,
            mode=self.mode,
            size=size,
            chunk_bytes=self.chunk_bytes,
            identity=self._identity(),
        )
        if len(parts) <= 1 and sum(map(len, parts)) <= INLINE_CHUNKS:
            return replace(base, inline=parts[0] if parts else ChunkTable((), b""))
        return replace(base, leaves=stage_leaves(parts, nodes, staged))

    def bad_offsets(self) -> list[int]:
        """Return the file offsets of damaged pages."""
        return sorted(offset for result in self.results.values() for offset in result.bad_offsets)

    def _identity(self) -> FileIdentity | None:
        """Return what tells that the file did not change; ``None`` for one that must be read each time.

        A file with damaged pages is one of them: taken over unread, its damage would be in a snapshot that is silent.
        """
        if any(result.bad_offsets for result in self.results.values()):
            return None
        identities = [result.identity for result in self.results.values() if result.identity is not None]
        if len(identities) != self.tasks:
            return None
        began = min(identity.read_began_ns for identity in identities)
        settled = {replace(identity, read_began_ns=began) for identity in identities}
        return settled.pop() if len(settled) == 1 else None


@dataclass(slots=True)
class PackUsage:
    """How many stored bytes of each pack a snapshot uses."""

    data: dict[bytes, int] = field(default_factory=dict)
    nodes: dict[bytes, int] = field(default_factory=dict)
    files: int = 0
    source_bytes: int = 0
    _leaves: set[bytes] = field(default_factory=set)

    def add_data(self, usage: Mapping[bytes, int]) -> None:
        """Count data records."""
        for name, amount in usage.items():
            self.data[name] = self.data.get(name, 0) + amount

    def add_region(self, region: Region) -> None:
        """Count the files of a node and what their chunks use."""
        self.files += region.files
        self.source_bytes += region.source_bytes
        self.add_data(region.usage or {})

    def add_node(self, ref: NodeRef) -> None:
        """Count a node once, however often it is referred to."""
        if ref.node_id not in self._leaves:
            self._leaves.add(ref.node_id)
            self.nodes[ref.pack] = self.nodes.get(ref.pack, 0) + ref.stored_length


def store_tree(staged: StagedCache, nodes: NodeSink, usage: PackUsage) -> NodeRef:
    """Store the tree over all staged entries, count what it uses, and return its root.

    Nodes of the last snapshot whose entries are all as they were are used again without looking into them.
    """
    nodes.settle()  # from here on every leaf has a place
    return build_above(_entry_nodes(staged, nodes, usage), nodes)


def _entry_nodes(staged: StagedCache, nodes: NodeSink, usage: PackUsage) -> Iterator[tuple[bytes, bytes]]:
    """Yield (first path, node id) of the nodes that hold the entries, in order; at least one.

    Where a node begins depends on the path it begins with, or on how many entries stand before it. So a node is kept
    only if nothing in it changed, the path behind it is still there, and it begins where the one before it ends.
    """
    old = list(staged.old_regions())
    changed = staged.changed_paths() if old else []
    made = False
    begin: bytes | None = None  # of a stretch that must be cut anew
    if not old or (changed and changed[0] < old[0].first):
        begin = b""
    for index, region in enumerate(old):
        end = old[index + 1].first if index + 1 < len(old) else None
        untouched = region.usage is not None and not _any_within(changed, region.first, end)
        if untouched and (begin is None or begins_node(region.first)) and nodes.keep(region):
            if begin is not None:
                yield from _cut_anew(staged, nodes, usage, (begin, region.first))
            begin = None
            usage.add_region(region)
            yield region.first, region.node
            made = True
        elif begin is None:
            begin = region.first
    if begin is not None:
        for node in _cut_anew(staged, nodes, usage, (begin, None)):
            yield node
            made = True
    if not made:
        yield b"", nodes.put(entries_node(()))


def _any_within(paths: Sequence[bytes], first: bytes, last: bytes | None) -> bool:
    index = bisect_left(paths, first)
    return index < len(paths) and (last is None or paths[index] <= last)


def _cut_anew(
    staged: StagedCache, nodes: NodeSink, usage: PackUsage, span: tuple[bytes, bytes | None]
) -> Iterator[tuple[bytes, bytes]]:
    for group in group_entries(staged.entries(*span)):
        first = group[0][0]
        counted = _Counted()
        raw = entries_node([_final_body(path, body, staged, nodes, usage, counted) for path, body in group])
        region = Region(
            first,
            nodes.put(raw),
            counted.files,
            counted.source_bytes,
            None if counted.has_leaves else counted.usage,
        )
        usage.add_region(region if region.usage is not None else replace(region, usage=counted.usage))
        staged.put_region(region)
        yield first, region.node


@dataclass(slots=True)
class _Counted:
    """What the entries of one node add up to."""

    files: int = 0
    source_bytes: int = 0
    usage: dict[bytes, int] = field(default_factory=dict)
    has_leaves: bool = False


def _final_body(
    path: bytes, body: bytes, staged: StagedCache, nodes: NodeSink, usage: PackUsage, counted: _Counted
) -> bytes:
    """Count an entry and return its bytes with all places known."""
    fields: Mapping[str, object] = msgpack.unpackb(body)  # written by this program, on this host
    if fields["t"] != EntryKind.FILE.value:
        return body
    counted.files += 1
    counted.source_bytes += int(fields["z"])  # type: ignore[call-overload]  # encode_entry puts a number there
    if "n" not in fields:
        table = ChunkTable(fields["k"], fields["c"])  # type: ignore[arg-type]  # names and rows, by encode_entry
        for name, amount in live_bytes(table).items():
            counted.usage[name] = counted.usage.get(name, 0) + amount
        return body
    counted.has_leaves = True
    entry = decode_entry(body)
    leaves = tuple(nodes.place(leaf.node_id) for leaf in entry.leaves)
    for leaf in leaves:
        usage.add_node(leaf)
        used = staged.keep_leaf(leaf.node_id)
        if used is None:
            raise DamagedObjectError(f"the cache does not know the chunks of {path!r} any more")
        usage.add_data(used)
    return encode_entry(replace(entry, leaves=leaves))


def collect_pack_table(usage: PackUsage, facts: Mapping[bytes, tuple[KeyId, int]]) -> PackTable:
    """Return the pack table of a snapshot; ``facts`` tells key id and stored bytes of each pack."""

    def uses(amounts: Mapping[bytes, int]) -> tuple[PackUse, ...]:
        return tuple(
            PackUse(
                name=name.hex(),
                stored_bytes=facts[name][1],
                live_bytes=min(amount, facts[name][1]),
                key_id=facts[name][0],
            )
            for name, amount in sorted(amounts.items())
        )

    return PackTable(data=uses(usage.data), nodes=uses(usage.nodes))
