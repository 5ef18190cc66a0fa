"""The tree against the published vectors of Certificate Transparency's reference implementation."""

from __future__ import annotations

import pytest

from drservice.evidence.merkle import EMPTY_ROOT, MerkleTree, leaf_hash, verify_consistency, verify_inclusion

INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
A, B, C = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = {
    (0, 1): (),
    (0, 8): (A, B, C),
    (5, 8): (D, E, ROOTS[3]),
    (2, 3): (ROOTS[1],),
    (1, 5): (ROOTS[0], B, D),
}
CONSISTENCY = {(1, 1): (), (1, 8): (A, B, C), (6, 8): (F, E, ROOTS[3]), (2, 5): (B, D)}


def tree() -> MerkleTree:
    return MerkleTree(leaf_hash(bytes.fromhex(text)) for text in INPUTS)


def test_roots_of_every_size_are_the_published_ones() -> None:
    assert tuple(tree().root(size).hex() for size in range(1, 9)) == ROOTS
    assert tree().root(0) == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(("place", "proof"), INCLUSION.items(), ids=str)
def test_inclusion_proofs_are_the_published_ones_and_verify(place: tuple[int, int], proof: tuple[str, ...]) -> None:
    index, size = place
    made = tree().inclusion(index, size)
    assert tuple(step.hex() for step in made) == proof
    leaf, root = leaf_hash(bytes.fromhex(INPUTS[index])), bytes.fromhex(ROOTS[size - 1])
    assert verify_inclusion(leaf=leaf, index=index, size=size, proof=made, root=root)
    assert not verify_inclusion(leaf=leaf, index=index, size=size, proof=made, root=leaf_hash(b"other"))
    assert not verify_inclusion(leaf=leaf_hash(b"other"), index=index, size=size, proof=made, root=root)
    assert not verify_inclusion(leaf=leaf, index=index, size=size, proof=[*made, root], root=root)


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items(), ids=str)
def test_consistency_proofs_are_the_published_ones_and_verify(sizes: tuple[int, int], proof: tuple[str, ...]) -> None:
    first, second = sizes
    made = tree().consistency(first, second)
    assert tuple(step.hex() for step in made) == proof
    old, new = (bytes.fromhex(ROOTS[size - 1]) for size in sizes)
    assert verify_consistency(first=first, second=second, first_root=old, second_root=new, proof=made)
    other = leaf_hash(b"other")
    assert not verify_consistency(first=first, second=second, first_root=other, second_root=new, proof=made)
    assert not verify_consistency(first=first, second=second, first_root=old, second_root=other, proof=made)
    assert not verify_consistency(first=first, second=second, first_root=old, second_root=new, proof=[*made, old])


def test_sizes_and_places_outside_the_tree_are_refused() -> None:
    for call in (
        lambda: tree().root(9),
        lambda: tree().inclusion(8, 8),
        lambda: tree().inclusion(0, 9),
        lambda: tree().consistency(0, 8),
        lambda: tree().consistency(5, 4),
        lambda: MerkleTree([b"short"]),
    ):
        with pytest.raises(ValueError, match=r"leaves|leaf"):
            call()


def test_ten_thousand_leaves_take_one_hash_each_and_one_for_each_node() -> None:
    grown = MerkleTree(leaf_hash(str(number).encode()) for number in range(10_000))
    assert sum(len(level) for level in grown._levels) < 20_000
    assert len(grown.inclusion(9_999, 10_000)) <= 14
