"""Documents that no snapshot has come from the sets: each right, whatever is damaged beside it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.components.odoo_filestore import placingsets
from drservice.errors import NoIdentityError, StoreUnreachableError
from drservice.model.documents import DocumentPart, DocumentPosition, StoredSet, nearest_sets
from drservice.model.wal import Lsn, Timeline
from drservice.repository import documentsets
from drservice.repository.documentsets import cut
from drservice.repository.keys import Identities
from tests.doubles.filestores import Filestore, name_of, tree
from tests.doubles.repositories import SYSTEM_ID, noise

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def put(
    filestore: Filestore,
    contents: Sequence[bytes] = (),
    *,
    seconds: int = 0,
    missing: Sequence[str] = (),
    corrupt: Sequence[str] = (),
    parts: Sequence[DocumentPart] = (),
) -> StoredSet:
    """Store a set, as a run of its own."""
    repository = filestore.site.repository()
    return repository.document_sets(filestore.scope).put(
        [(name_of(content), content) for content in contents],
        position=DocumentPosition(
            system_id=SYSTEM_ID, timeline=Timeline(1), lsn=Lsn(seconds), server_time=NOON + timedelta(seconds=seconds)
        ),
        missing=missing,
        corrupt=corrupt,
        whole=True,
        previous=None,
        key=repository.day_keys(filestore.scope.service).today(),
        parts=parts,
    )


def files(folder: Path) -> dict[bytes, bytes | str]:
    return {name: content for name, content in tree(folder).items() if content != "folder"}


def test_what_no_snapshot_has_comes_from_the_sets(filestore: Filestore, tmp_path: Path) -> None:
    walked = filestore.fill(5)
    record, _ = filestore.capture()
    later = [noise(50_000, seed=number) for number in range(4)]
    sets = [put(filestore, later[:2]), put(filestore, later[2:], seconds=1)]
    wanted = [*walked, *map(name_of, later[1:])]
    placed = filestore.place([record.id], tmp_path / "out", wanted, sets=sets)
    assert (placed.placed, placed.from_sets, placed.missing) == (8, 3, ())
    assert placed.used_sets == (sets[0].id, sets[1].id)
    everything = {**walked, **{name_of(content): content for content in later[1:]}}
    assert files(tmp_path / "out") == {name.encode(): content for name, content in everything.items()}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_without_any_snapshot_the_sets_are_enough(filestore: Filestore, tmp_path: Path) -> None:
    one = put(filestore, [b"one"])
    placed = filestore.place([], tmp_path / "out", [name_of(b"one")], sets=[one])
    assert (placed.placed, placed.missing) == (1, ())


def test_what_a_set_names_as_lost_in_production_is_not_our_loss(filestore: Filestore, tmp_path: Path) -> None:
    lost, wrong, unknown, saved = map(name_of, (b"lost", b"wrong", b"unknown", b"saved"))
    sets = [put(filestore, missing=[lost, saved], corrupt=[wrong], seconds=1), put(filestore, [b"saved"])]
    placed = filestore.place([], tmp_path / "out", [lost, wrong, unknown, saved], sets=sets)
    assert (placed.missing_in_production, placed.corrupt_in_production) == ((lost,), (wrong,))
    assert placed.missing == (unknown,)
    assert placed.placed == 1


def test_a_damaged_set_costs_its_documents_and_not_those_that_are_elsewhere_too(
    filestore: Filestore, tmp_path: Path
) -> None:
    bad = put(filestore, [noise(9000), b"twice"], seconds=1)
    good = put(filestore, [b"twice", b"alone"])
    data = filestore.site.store.read(bad.key)
    filestore.site.store.delete(bad.key)
    filestore.site.store.create(bad.key, data[:-1] + bytes([data[-1] ^ 1]))
    wanted = [name_of(noise(9000)), name_of(b"twice"), name_of(b"alone")]
    placed = filestore.place([], tmp_path / "out", wanted, sets=[bad, good])
    assert placed.corrupt == (name_of(noise(9000)),)
    assert (placed.placed, placed.missing) == (2, ())
    assert bad.id in placed.unreadable[0]


def test_a_big_document_is_put_together_from_its_parts_and_one_that_is_not_whole_leaves_nothing(
    filestore: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentsets, "PART_BYTES", 1000)
    monkeypatch.setattr(placingsets, "PART_BYTES", 1000)

    def parts(content: bytes) -> list[DocumentPart]:
        name, size = name_of(content), len(content)
        ranges = [cut(name, size, offset) for offset in range(0, size, 1000)]
        return [DocumentPart(name=name, size=size, offset=r.start, data=content[r.start : r.stop]) for r in ranges]

    big, cut_off, false = noise(2500, seed=1), noise(2500, seed=2), noise(2500, seed=3)
    changed = [*parts(false)[:2], DocumentPart(name=name_of(false), size=2500, offset=2000, data=bytes(500))]
    sets = [
        put(filestore, parts=[*parts(big)[1:], *parts(cut_off)[:2]]),
        put(filestore, parts=[*parts(big)[:1], *changed], seconds=1),
    ]
    placed = filestore.place([], tmp_path / "out", list(map(name_of, (big, cut_off, false))), sets=sets)
    assert files(tmp_path / "out") == {name_of(big).encode(): big}
    assert (placed.missing, placed.corrupt) == ((name_of(cut_off),), (name_of(false),))


def test_sets_that_have_nothing_wanted_are_not_read_as_a_whole(
    filestore: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [put(filestore, [b"%d" % number], seconds=number) for number in range(30)]
    read: list[str] = []
    original = filestore.site.store.read_versions

    def counting(key: str) -> Iterator[bytes]:
        read.append(key)
        return original(key)

    monkeypatch.setattr(filestore.site.store, "read_versions", counting)
    nearest = nearest_sets(sets, NOON + timedelta(seconds=20))
    placed = filestore.place([], tmp_path / "out", [name_of(b"20"), name_of(b"22")], sets=nearest)
    assert placed.placed == 2
    assert [key for key in read if key in {item.key for item in sets}] == [sets[20].key, sets[22].key]


def test_a_store_that_does_not_answer_ends_it_and_so_does_a_missing_identity(
    filestore: Filestore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = put(filestore, [b"one"])
    blind = filestore.site.repository(identities=Identities())
    monkeypatch.setattr(type(filestore.site), "repository", lambda _self, **_: blind)
    with pytest.raises(NoIdentityError):
        filestore.place([], tmp_path / "out", [name_of(b"one")], sets=[one])
    monkeypatch.undo()

    def silent(key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        raise StoreUnreachableError(f"no answer for {key} at {offset} ({length})")

    monkeypatch.setattr(filestore.site.store, "read", silent)
    with pytest.raises(StoreUnreachableError):
        filestore.place([], tmp_path / "out", [name_of(b"one")], sets=[one])
    assert not (tmp_path / "out").exists()
