"""The tree: cut by content so that a change stays local, and refused whenever it is not what a writer makes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from drservice.errors import FormatError
from drservice.repository.chunktable import ROW, ChunkTable
from drservice.repository.nodes import (
    Entry,
    EntryKind,
    FileIdentity,
    NodeRef,
    build_root,
    check_path,
    cut_entries,
    decode_entry,
    decode_leaf,
    encode_entry,
    encode_leaf,
    node_id,
    unpack_map,
    walk,
)

ZERO_PACK = bytes(32)


class Nodes:
    """Keeps nodes in a dictionary."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.settled = 0

    def put(self, raw: bytes) -> bytes:
        self.stored[node_id(raw)] = raw
        return node_id(raw)

    def settle(self) -> None:
        self.settled += 1

    def place(self, node: bytes) -> NodeRef:
        return NodeRef(node, ZERO_PACK, 0, 0, 0, len(self.stored[node]), 1)

    def get(self, ref: NodeRef) -> bytes:
        return self.stored[ref.node_id]


def link(path: bytes) -> tuple[bytes, bytes]:
    return path, encode_entry(Entry(path=path, kind=EntryKind.LINK, mode=0o777, target=b"t"))


def tree_of(entries: list[tuple[bytes, bytes]]) -> tuple[Nodes, NodeRef]:
    nodes = Nodes()
    return nodes, build_root(entries, nodes)


NAMES = [b"%06d" % number for number in range(30_000)]


@pytest.fixture(scope="module")
def large() -> tuple[Nodes, NodeRef]:
    return tree_of([link(name) for name in NAMES])


def test_a_tree_of_many_entries_comes_back_in_order(large: tuple[Nodes, NodeRef]) -> None:
    nodes, root = large
    assert [entry.path for entry in walk(root, nodes.get)] == NAMES
    assert 300 < len(nodes.stored) < 700


@pytest.mark.parametrize("change", ["insert", "remove", "edit"])
def test_one_changed_entry_changes_one_node_of_each_level(large: tuple[Nodes, NodeRef], change: str) -> None:
    nodes, root = large
    entries = [link(name) for name in NAMES]
    if change == "insert":
        entries.insert(15_000, link(b"014999x"))
    elif change == "remove":
        del entries[15_001]
    else:
        path = NAMES[15_001]
        entries[15_001] = (path, encode_entry(Entry(path=path, kind=EntryKind.LINK, mode=0o777, target=b"other")))
    other, changed = tree_of(entries)
    new = set(other.stored) - set(nodes.stored)
    assert changed != root
    assert 2 <= len(new) <= 8, "a change must not ripple through the tree"


def test_the_same_entries_make_the_same_tree_in_whatever_order_they_were_found(large: tuple[Nodes, NodeRef]) -> None:
    assert tree_of([link(name) for name in NAMES])[1] == large[1]


def test_an_empty_tree_is_one_node_without_entries() -> None:
    nodes, root = tree_of([])
    assert list(walk(root, nodes.get)) == []
    assert [unpack_map(raw, "it") for raw in nodes.stored.values()] == [{"v": 1, "kind": "entries", "entries": []}]


def test_a_run_of_paths_that_never_cuts_is_cut_after_512() -> None:
    names = [name for name in NAMES if blake3(name).digest()[0] & 0x3F][:1200]
    sizes = [len(unpack_map(raw, "it")["entries"]) for _, raw in cut_entries(link(name) for name in names)]  # type: ignore[arg-type]  # a list of the test's own making
    assert sizes == [512, 512, 176]


def test_nodes_are_settled_before_anything_refers_to_them(large: tuple[Nodes, NodeRef]) -> None:
    assert large[0].settled >= 2


NAME = st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 0x2F} & set(name) and name not in {b".", b".."})


def any_file(path: bytes, chance: random.Random) -> Entry:
    chunk_bytes = chance.randint(1, 1 << 20)
    rest = chance.randint(0, chunk_bytes)
    lengths = [chunk_bytes] * chance.randint(0, 5) + ([rest] if rest else [])
    rows = b"".join(
        ROW.pack(b"c" * 32, chance.randint(0, 1), number, 104, 16, length, chance.randint(0, 1))
        if chance.random() < 0.5
        else ROW.pack(bytes(32), 0, 0, 0, 0, length, 255)
        for number, length in enumerate(lengths)
    )
    seen = FileIdentity(device=1, inode=2**63, modified_ns=-5, changed_ns=chance.getrandbits(62), read_began_ns=0)
    return Entry(
        path=path,
        kind=EntryKind.FILE,
        mode=chance.randint(0, 0o777),
        size=sum(lengths),
        chunk_bytes=chunk_bytes,
        inline=ChunkTable([b"p" * 32, b"q" * 32] if rows else [], rows),
        identity=chance.choice([None, seen]),
    )


@settings(max_examples=40)
@given(st.lists(NAME, unique=True, max_size=30), st.integers(0, 2**32))
def test_any_tree_comes_back_as_it_was(names: list[bytes], seed: int) -> None:
    chance = random.Random(seed)
    entries: list[Entry] = []
    for path in sorted(names):
        kind = chance.choice(list(EntryKind))
        if kind is EntryKind.FILE:
            entries.append(any_file(path, chance))
        elif kind is EntryKind.LINK:
            entries.append(Entry(path=path, kind=kind, mode=0o777, target=chance.randbytes(5)))
        else:
            entries.append(Entry(path=path, kind=kind, mode=chance.randint(0, 0o777)))
    nodes, root = tree_of([(entry.path, encode_entry(entry)) for entry in entries])
    assert list(walk(root, nodes.get)) == entries


ODD: st.SearchStrategy[object] = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        255,
        1 << 32,
        1 << 63,
        -(1 << 63),
        b"",
        b"x",
        b"x" * 53,
        "",
        "f",
        "l",
        [],
        [7],
        [b"x" * 32],
        {},
    ]
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["p", "t", "m", "l", "z", "s", "k", "c", "n", "i"]), ODD, max_size=4))
def test_no_map_makes_an_entry_fail_in_another_way_than_refused(fields: dict[str, object]) -> None:
    for base in ({}, FILE, {**FILE, "z": 1, "s": 1}, {"p": b"l", "t": "l", "l": b"x"}):
        try:
            decode_entry({**base, **fields})
        except FormatError:
            continue


@settings(max_examples=60)
@given(st.binary(max_size=60))
def test_no_bytes_make_a_node_fail_in_another_way_than_refused(raw: bytes) -> None:
    for decode in (lambda: decode_leaf(raw, "it"), lambda: decode_entry(raw), lambda: list(walk(REF, lambda _: raw))):
        with pytest.raises(FormatError):
            decode()


REF = NodeRef(b"n" * 32, ZERO_PACK, 0, 0, 16, 10, 1)
DIRECTORY = {"p": b"d", "t": "d", "m": 0o700}
FILE = {"p": b"f", "t": "f", "m": 0o600, "z": 0, "s": 8192, "k": [], "c": b""}


def walked(*entries: Mapping[str, Any]) -> list[Entry]:
    raw = msgpack.packb({"v": 1, "kind": "entries", "entries": list(entries)})
    return list(walk(REF, lambda _: raw))


@pytest.mark.parametrize(
    "path",
    [
        b"", b"/etc/passwd", b"..", b"../x", b"a/../b", b"a//b", b"a/", b".", b"a/./b", b"a\0b", b"backup_label",
        b"tablespace_map", b"RESTORE-INCOMPLETE", b"global/pg_control.withheld",
    ],
)  # fmt: skip
def test_a_path_that_no_restore_may_write_is_refused(path: bytes) -> None:
    with pytest.raises(FormatError, match="which no restore may write"):
        check_path(path)


@pytest.mark.parametrize("path", [b"a", b"a/b", b"-rf", b"\x1b[2J", b"\xff\xfe", b"a\nb", b"...", b"x/backup_label"])
def test_an_odd_name_is_a_name(path: bytes) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([FILE, FILE], "not in order"),
        ([{**FILE, "p": b"b"}, {**FILE, "p": b"a"}], "not in order"),
        ([{**FILE, "p": b"d/f"}], "below something that is no folder"),
        ([FILE, {**FILE, "p": b"f/x"}], "below something that is no folder"),
        ([{"p": b"d", "t": "l", "l": b"/etc"}, {**FILE, "p": b"d/f"}], "below something that is no folder"),
        ([DIRECTORY, {**FILE, "p": b"d/e/f"}], "below something that is no folder"),
        ([{**FILE, "p": b"../x"}], "which no restore may write"),
        ([{**FILE, "t": "s"}], "lacks path or type"),
        ([{**FILE, "t": ["f"]}], "lacks path or type"),
        ([{**FILE, "p": "text"}], "lacks path or type"),
        ([{**FILE, "m": 0o10000}], "has no mode"),
        ([{**FILE, "m": -1}], "has no mode"),
        ([{**FILE, "m": True}], "has no mode"),
        ([{"p": b"d", "t": "d"}], "has no mode"),
        ([{**FILE, "z": -1}], "has no size"),
        ([{**FILE, "z": 1 << 63}], "has no size"),
        ([{**FILE, "s": 0}], "has no size"),
        ([{**FILE, "z": 1}], "do not add up"),
        ([{**FILE, "k": ["text"]}], "unreadable pack names"),
        ([{**FILE, "k": [b"short"]}], "unreadable pack names"),
        ([{**FILE, "c": b"x"}], "cut off"),
        ([{**FILE, "n": 7}], "unreadable leaves"),
        ([{**FILE, "n": [[1]]}], "no reference to a node"),
        ([{"p": b"l", "t": "l", "m": 0}], "has no target"),
        ([{"p": b"l", "t": "l", "m": 0, "l": "text"}], "has no target"),
        ([7], "no entry"),
    ],
)  # fmt: skip
def test_a_hostile_entry_is_refused(entries: list[Any], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        walked(*entries)


def test_a_folder_before_its_content_is_what_a_tree_looks_like() -> None:
    made = walked(DIRECTORY, {**FILE, "p": b"d-e"}, {**FILE, "p": b"d/f"}, {"p": b"d/l", "t": "l", "l": b"f"})
    assert [entry.path for entry in made] == [b"d", b"d-e", b"d/f", b"d/l"]


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 2, "kind": "entries", "entries": []},
        {"kind": "entries", "entries": []},
        {"v": 1, "kind": "other"},
        {"v": 1, "kind": "refs", "refs": []},
        {"v": 1, "kind": "refs", "refs": [[b"a"]]},
        {"v": 1, "kind": "refs", "refs": 7},
        {"v": 1, "kind": "entries", "entries": 7},
        {"v": 1, "kind": "chunks", "packs": [], "chunks": b""},
    ],
)
def test_a_hostile_node_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        list(walk(REF, lambda _: msgpack.packb(fields)))


def test_a_tree_deeper_than_any_tree_is_refused() -> None:
    raw = msgpack.packb({"v": 1, "kind": "refs", "refs": [[b"", REF.to_list()]]})
    with pytest.raises(FormatError, match="too deep"):
        list(walk(REF, lambda _: raw))


def test_a_map_with_a_key_twice_is_refused() -> None:
    with pytest.raises(FormatError, match="not readable"):
        unpack_map(b"\x82\xa1v\x01\xa1v\x02", "it")


@pytest.mark.parametrize(
    "items",
    [
        [b"n" * 31, ZERO_PACK, 0, 0, 0, 0, 0],
        [b"n" * 32, b"short", 0, 0, 0, 0, 0],
        [b"n" * 32, ZERO_PACK, -1, 0, 0, 0, 0],
        [b"n" * 32, ZERO_PACK, 1 << 32, 0, 0, 0, 0],
        [b"n" * 32, ZERO_PACK, 0, 0, 0, (64 << 20) + 1, 0],
        [b"n" * 32, ZERO_PACK, 0, 0, 0, 0, 256],
        [b"n" * 32, ZERO_PACK, 0, 0, 0, 0],
        None,
    ],
)
def test_a_hostile_reference_is_refused(items: object) -> None:
    with pytest.raises(FormatError, match="no reference"):
        NodeRef.from_list(items, "it")


def test_a_leaf_comes_back() -> None:
    table = ChunkTable([b"p" * 32], ROW.pack(b"c" * 32, 0, 0, 104, 20, 4, 0))
    made = decode_leaf(encode_leaf(table), "it")
    assert (list(made.packs), made.rows) == (list(table.packs), table.rows)
