"""Putting a snapshot together: file parts become entries, entries become nodes, nodes become packs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from drservice.errors import DamagedObjectError
from drservice.model.ids import KeyId
from drservice.objectstore.interface import ObjectStore
from drservice.repository.cache import StagedCache
from drservice.repository.capture import RangeResult, RangeState
from drservice.repository.chunktable import INLINE_CHUNKS, LEAF_CHUNKS, ChunkTable, live_bytes
from drservice.repository.keys import DataKey
from drservice.repository.nodes import (
    Entry,
    EntryKind,
    FileIdentity,
    NodeRef,
    decode_entry,
    encode_entry,
    encode_leaf,
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
        """Return the file's entry; places of leaves are filled in later (:func:`final_entries`)."""
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
        leaves = []
        for table in parts:
            raw = encode_leaf(table)
            identifier = nodes.put_leaf(raw)
            staged.put_leaf(identifier, raw, table)
            leaves.append(NodeRef(identifier, NO_CHUNK, 0, 0, 0, 0, 0))
        return replace(base, leaves=tuple(leaves))

    def bad_offsets(self) -> list[int]:
        """Return the file offsets of damaged pages."""
        return sorted(offset for result in self.results.values() for offset in result.bad_offsets)

    def _identity(self) -> FileIdentity | None:
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

    def add_node(self, ref: NodeRef) -> None:
        """Count a node once, however often it is referred to."""
        if ref.node_id not in self._leaves:
            self._leaves.add(ref.node_id)
            self.nodes[ref.pack] = self.nodes.get(ref.pack, 0) + ref.stored_length


def final_entries(staged: StagedCache, nodes: NodeSink, usage: PackUsage) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, entry bytes) in order, with all places known, and count what they use.

    Call it after ``nodes.settle()``.
    """
    for path, body in staged.entries():
        entry = decode_entry(body)
        final = body
        if entry.kind is EntryKind.FILE:
            usage.files += 1
            usage.source_bytes += entry.size
        if entry.leaves:
            leaves = tuple(nodes.place(leaf.node_id) for leaf in entry.leaves)
            for leaf in leaves:
                usage.add_node(leaf)
                used = staged.keep_leaf(leaf.node_id)
                if used is None:
                    raise DamagedObjectError(f"the cache does not know the chunks of {path!r} any more")
                usage.add_data(used)
            final = encode_entry(replace(entry, leaves=leaves))
        elif entry.inline is not None:
            usage.add_data(live_bytes(entry.inline))
        yield path, final


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
