"""The tree, its proofs and the verifier's own walk against the definition of RFC 6962, for any size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.evidence.merkle import MerkleTree, leaf_hash, verify_consistency, verify_inclusion
from drservice.evidence.verification import _Checkpoint, _is_consistent, _is_included, _roots

SIZES = st.integers(1, 130)


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def leaves_of(size: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(size)]


def checkpoint(size: int, root: bytes) -> _Checkpoint:
    return _Checkpoint(what="a checkpoint", size=size, root=root, time=None, signers=())


@given(SIZES, st.data())
def test_roots_are_those_of_the_definition(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    smaller = data.draw(st.integers(0, size))
    assert MerkleTree(leaves).root(smaller) == naive_root(leaves[:smaller])
    assert _roots(iter(leaves), {smaller})[smaller] == naive_root(leaves[:smaller])


@settings(max_examples=200)
@given(SIZES, st.data())
def test_a_leaf_is_proved_where_it_is_and_nowhere_else(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    index, claimed = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    proof, root = MerkleTree(leaves).inclusion(index, size), naive_root(leaves)
    expected = index == claimed
    given_proof = {"leaf": leaves[index], "index": claimed, "size": size}
    assert verify_inclusion(**given_proof, proof=proof, root=root) == expected  # type: ignore[arg-type]  # as given
    assert _is_included(leaves[index], claimed, size, proof, root) == expected


@settings(max_examples=200)
@given(SIZES, st.data())
def test_a_beginning_is_proved_and_a_changed_one_is_not(size: int, data: st.DataObject) -> None:
    leaves = leaves_of(size)
    first = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, first - 1))
    other = [*leaves[:changed], leaf_hash(b"other"), *leaves[changed + 1 : first]]
    proof, new = MerkleTree(leaves).consistency(first, size), naive_root(leaves)
    for old, expected in ((naive_root(leaves[:first]), True), (naive_root(other), False)):
        assert verify_consistency(first=first, second=size, first_root=old, second_root=new, proof=proof) is expected
        assert _is_consistent(checkpoint(first, old), checkpoint(size, new), proof) is expected
