"""The Merkle tree of RFC 6962 over SHA-256, and its proofs (RFC 9162, section 2.1). Pure.

:class:`MerkleTree` keeps the hash of every complete subtree, so that roots and proofs for any size up to its own cost
a number of steps that grows with the logarithm of the size. Verifying needs no tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: its domain is kept apart from that of nodes (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """An append-only tree of leaf hashes; every earlier size stays answerable."""

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        """``_levels[k][i]`` is the root of the complete subtree over the leaves from ``i << k`` to ``(i + 1) << k``."""
        for leaf in leaf_hashes:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash and every subtree it completes."""
        if len(leaf) != HASH_BYTES:
            raise ValueError(f"a leaf hash has {HASH_BYTES} bytes, not {len(leaf)}")
        level = 0
        self._levels[0].append(leaf)
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            self._levels[level + 1].append(node_hash(left, right))
            level += 1

    def leaf(self, index: int) -> bytes:
        """Return one leaf hash."""
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first ``size`` leaves (of all of them by default)."""
        wanted = len(self) if size is None else size
        self._require_size(wanted)
        return self._subtree(0, wanted) if wanted else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Return the audit path of a leaf in the tree of ``size`` leaves, from the leaf up (section 2.1.3.1)."""
        self._require_size(size)
        if not 0 <= index < size:
            raise ValueError(f"there is no leaf {index} in a tree of {size}")
        path: list[bytes] = []
        begin, end = 0, size
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(begin, middle))
                begin = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """Return the proof that the tree of ``second`` leaves only adds to that of ``first`` (section 2.1.4.1)."""
        self._require_size(second)
        if not 0 < first <= second:
            raise ValueError(f"no consistency proof leads from {first} to {second} leaves")
        path: list[bytes] = []
        begin, end = 0, second
        while end != first:
            middle = begin + _split(end - begin)
            if first <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(begin, middle))
                begin = middle
        if begin > 0:
            path.append(self._subtree(begin, end))
        return tuple(reversed(path))

    def _require_size(self, size: int) -> None:
        if not 0 <= size <= len(self):
            raise ValueError(f"the tree has {len(self)} leaves, not {size}")

    def _subtree(self, begin: int, end: int) -> bytes:
        """Return MTH over the leaves ``begin`` to ``end``; ``begin`` is a multiple of the widest complete part."""
        width = end - begin
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][begin >> level]
        middle = begin + _split(width)
        return node_hash(self._subtree(begin, middle), self._subtree(middle, end))


def _split(width: int) -> int:
    """Return the largest power of two below ``width``."""
    return 1 << ((width - 1).bit_length() - 1)


def verify_inclusion(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Tell whether ``leaf`` (a leaf hash) is at ``index`` of the tree with this size and root (section 2.1.3.2)."""
    if not 0 <= index < size or any(len(step) != HASH_BYTES for step in proof):
        return False
    node, last, computed = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(step, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, step)
        node, last = node >> 1, last >> 1
    return last == 0 and computed == root


def verify_consistency(
    *, first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Tell whether the tree of ``second`` leaves has that of ``first`` as its beginning (section 2.1.4.2)."""
    if not 0 < first <= second or any(len(step) != HASH_BYTES for step in proof):
        return False
    if first == second:
        return not proof and first_root == second_root
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, step)
        node, last = node >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root
