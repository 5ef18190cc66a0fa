"""restore.py puts segments together from pieces as the format says, and so does drservice from the same pieces."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.errors import SegmentConflictError
from drservice.model.estate import SignerSettings
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.breakglass import restore
from drservice.repository.keys import Identities
from drservice.repository.repository import open_repository
from drservice.repository.tail import Rebuilt
from tests.doubles.repositories import SYSTEM_ID, Site
from tests.unit.breakglass.conftest import SEGMENT, Scene

LAST = "000000020000000000000005"
BEGIN = 5 * SEGMENT
WAL = random.Random(3).randbytes(SEGMENT)
OTHER = "01ARZ3NDEKTSV4RRFFQ69G5FAW"


def put(scene: Scene, start: int, end: int, *, data: bytes = WAL, begin: int = BEGIN, **how: str) -> Path:
    return scene.writer.tail(2, begin + start, data[start:end], size=SEGMENT, **how)


def last(scene: Scene) -> bytes:
    return (scene.wal_into / LAST).read_bytes()


def read_by_drservice(scene: Scene) -> Rebuilt:
    key = bytes.fromhex(scene.writer.signer.key.removeprefix("ed25519:"))
    repository = open_repository(
        DirectoryStore(scene.writer.folder),
        open_store=lambda: DirectoryStore(scene.writer.folder),
        signers=[SignerSettings(name="writer", public_key=key)],
        host_key=None,
        identities=Identities.load([f"file:{scene.base / 'identity'}"]),
        recipients=(),
        clock=SystemClock(),
    )
    tail = repository.tail(repository.scope(ServiceName("erp"), ComponentName("database")))
    return tail.rebuild(SystemId(scene.writer.system_id), Timeline(2), 5, SEGMENT)


def test_the_unfinished_last_segment_lies_among_the_wal_and_is_told(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    put(scene, 0, 1000)
    put(scene, 500, 3000, writer=OTHER)
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL[:3000] + bytes(SEGMENT - 3000)
    told = capsys.readouterr().out
    assert f"{LAST} was put together from pieces, up to 0/{BEGIN + 3000:X}" in told
    assert "ATTENTION" not in told
    made = read_by_drservice(scene)
    assert (bytes(made.data), made.end, made.problem) == (last(scene), Lsn(BEGIN + 3000), None)


def test_a_missing_piece_ends_it_there(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    put(scene, 0, 1000)
    put(scene, 2000, 3000)
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL[:1000] + bytes(SEGMENT - 1000)
    assert f"ATTENTION: the WAL in {LAST} ends at 0/{BEGIN + 1000:X}" in capsys.readouterr().out
    assert bytes(read_by_drservice(scene).data) == last(scene)


@pytest.mark.parametrize("at", [60, -1])
def test_a_damaged_piece_ends_it_there_unless_another_run_has_the_same(
    scene: Scene, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    put(scene, 0, 1000)
    broken = put(scene, 1000, 2000)
    put(scene, 2000, 3000)
    content = bytearray(broken.read_bytes())
    content[at] ^= 1
    broken.write_bytes(content)
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL[:1000] + bytes(SEGMENT - 1000)
    told = capsys.readouterr()
    assert f"ATTENTION: the WAL in {LAST} ends at 0/{BEGIN + 1000:X}" in told.out
    assert broken.name in told.out
    assert bytes(read_by_drservice(scene).data) == last(scene)
    assert scene.run("verify") == 1
    assert broken.name in capsys.readouterr().err
    put(scene, 900, 2100, writer=OTHER)
    for folder in (scene.into, scene.wal_into):
        folder.rename(folder.with_name(f"{folder.name}.old"))
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL[:3000] + bytes(SEGMENT - 3000)


def test_pieces_that_contradict_each_other_end_it_before_the_first_difference(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    put(scene, 0, 1000)
    put(scene, 0, 2000, data=WAL[:700] + bytes(SEGMENT), writer=OTHER)
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL[:700] + bytes(SEGMENT - 700)
    assert "two pieces say different things" in capsys.readouterr().out
    made = read_by_drservice(scene)
    assert bytes(made.data) == last(scene)
    assert isinstance(made.problem, SegmentConflictError)


def test_a_segment_that_is_whole_in_pieces_closes_the_gap_and_one_that_is_not_does_not(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.writer.wal("000000020000000000000006", bytes(SEGMENT))
    put(scene, 0, 1000)
    assert scene.restore_with_wal() == 1
    assert f"missing: {LAST}" in capsys.readouterr().err
    assert not (scene.wal_into / LAST).exists()
    put(scene, 1000, SEGMENT)
    for folder in (scene.into, scene.wal_into):
        folder.rename(folder.with_name(f"{folder.name}.old"))
    assert scene.restore_with_wal() == 0
    assert last(scene) == WAL


def test_pieces_of_a_segment_that_is_there_whole_change_nothing(scene: Scene) -> None:
    put(scene, 0, 1000, begin=4 * SEGMENT)
    assert scene.restore_with_wal() == 0
    assert (scene.wal_into / "000000020000000000000004").read_bytes() == b"\1" * SEGMENT


FORK = BEGIN + SEGMENT // 2
CHILD = f"00000003{LAST[8:]}"


def fork_in_the_last(scene: Scene) -> None:
    scene.writer.wal("00000003.history", b"1\t0/40100\tone\n2\t0/%X\ttwo\n" % FORK)


@pytest.mark.parametrize("parent", ["whole", "pieces", "short", "none"])
def test_a_childs_pieces_that_end_before_the_switch_go_on_with_the_parents(
    scene: Scene, capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    fork_in_the_last(scene)
    scene.writer.tail(3, BEGIN, WAL[:1000], size=SEGMENT)
    if parent == "whole":
        scene.writer.wal(LAST, WAL)
    elif parent != "none":
        put(scene, 0, SEGMENT * 3 // 4 if parent == "pieces" else 3000)
    assert scene.restore_with_wal() == 0
    held = {"short": 3000, "none": 1000}.get(parent, SEGMENT // 2)
    child = (scene.wal_into / CHILD).read_bytes()
    assert child == WAL[:held] + bytes(SEGMENT - held), "to the switch, and nothing of the history that was left"
    told = capsys.readouterr().out
    assert (f"{CHILD} goes on up to 0/{BEGIN + held:X}" in told) == (parent != "none")
    lost = f"ATTENTION: WAL is missing from 0/{BEGIN + held:X} to 0/{FORK:X}"
    assert (lost in told) == (parent in {"short", "none"})


@pytest.mark.parametrize("parent", ["whole", "pieces"])
def test_a_timeline_without_wal_of_its_own_does_not_read_on_in_the_history_it_left(scene: Scene, parent: str) -> None:
    fork_in_the_last(scene)
    if parent == "whole":
        scene.writer.wal(LAST, WAL)
    else:
        put(scene, 0, SEGMENT * 3 // 4)
    assert scene.restore_with_wal() == 0
    assert (scene.wal_into / CHILD).read_bytes() == WAL[: SEGMENT // 2] + bytes(SEGMENT // 2)
    assert last(scene).startswith(WAL[: SEGMENT * 3 // 4]), "who goes along the parent still gets all of it"


def test_a_childs_pieces_that_are_no_copy_of_the_parents_are_refused(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_in_the_last(scene)
    scene.writer.tail(3, BEGIN, bytes(1000), size=SEGMENT)
    put(scene, 0, 3000)
    assert scene.restore_with_wal() == 1
    assert f"{CHILD} does not begin with a copy of {LAST}" in capsys.readouterr().err


def test_a_childs_pieces_that_go_on_behind_the_switch_stay_as_they_are(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_in_the_last(scene)
    scene.writer.tail(3, BEGIN, WAL[: SEGMENT // 2] + b"child", size=SEGMENT)
    put(scene, 0, SEGMENT * 3 // 4)
    assert scene.restore_with_wal() == 0
    assert (scene.wal_into / CHILD).read_bytes() == (WAL[: SEGMENT // 2] + b"child").ljust(SEGMENT, b"\0")
    assert "ATTENTION" not in capsys.readouterr().out


def test_list_and_verify_know_pieces(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    put(scene, 0, 1000)
    assert scene.run("list") == 0
    assert f"timeline 00000002, in pieces up to 0/{BEGIN + 1000:X}" in capsys.readouterr().out
    assert scene.run("verify") == 0


def test_restore_py_reads_the_pieces_that_drservice_writes(tmp_path: Path) -> None:
    site = Site.create(tmp_path, folder=tmp_path / "repository")
    repository = site.repository()
    tail, key = repository.tail(site.scope), repository.day_keys(site.scope.service).today()
    for start, end in ((0, 1000), (1000, 2500)):
        tail.put(
            WAL[start:end],
            system_id=SYSTEM_ID,
            timeline=Timeline(2),
            start=Lsn(BEGIN + start),
            server_time=datetime(2026, 3, 1, tzinfo=UTC),
            segment_bytes=SEGMENT,
            key=key,
        )
    alone = restore.Repository(
        tmp_path / "repository", [f"ed25519:{site.host.public_key.hex()}"], [str(tmp_path / "identity")], "age"
    )
    component = restore.Component(alone, "erp", "database")
    [found] = component.tails(str(SYSTEM_ID), SEGMENT, [], "00000001", 0)
    assert (found.name, found.end, found.whole, found.problem) == (LAST, BEGIN + 2500, False, "")
    assert found.content == WAL[:2500] + bytes(SEGMENT - 2500)
