"""restore.py reads what the text of the format describes, and says what it cannot read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pyrage
import pytest

from drservice.repository.breakglass import restore
from tests.doubles.formatwriter import Signer, Writer, canonical, ulid
from tests.unit.breakglass.conftest import Scene, directory


def regular_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_incomplete(scene: Scene) -> None:
    """PostgreSQL cannot start on what is there, and the folder says so."""
    assert (scene.into / "RESTORE-INCOMPLETE").exists()
    assert not (scene.into / "global/pg_control").exists()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_snapshot_comes_back_byte_for_byte_with_modes_and_links(scene: Scene) -> None:
    assert scene.restore() == 0
    assert regular_files(scene.into) == {**scene.files, "backup_label": b"START WAL LOCATION\n"}
    assert (scene.into / "PG_VERSION").stat().st_mode & 0o7777 == 0o640
    assert (scene.into / "base/1").stat().st_mode & 0o7777 == 0o750
    assert (scene.into / "pg_wal/archive_status").is_dir()
    assert str((scene.into / "base/link").readlink()) == "1/1259"


def test_wal_comes_back_from_the_start_of_the_snapshot_with_instructions(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene.restore_with_wal() == 0
    assert regular_files(scene.wal_into) == scene.wal
    assert f"restore_command = 'cp {scene.wal_into}/%f \"%p\"'" in capsys.readouterr().out


def test_the_script_runs_alone_in_another_process(scene: Scene) -> None:
    script = shutil.copy(restore.__file__, scene.base / "restore.py")
    argv = [sys.executable, "-I", script, "--repository", scene.writer.folder, "--identity", scene.base / "identity"]
    argv += ["restore", "--service", "erp", "--into", scene.into]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert regular_files(scene.into)["base/1/large"] == scene.files["base/1/large"]


def test_list_needs_no_identity_and_names_snapshots_and_gaps(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.writer.wal("000000010000000000000007", bytes(1 << 16))
    assert scene.run("list", identity=Path("/nonexistent")) == 0
    out = capsys.readouterr().out
    assert scene.snapshot.name in out
    assert "000000010000000000000001 to 000000010000000000000004" in out
    assert "000000010000000000000007 to 000000010000000000000007" in out
    assert out.count("GAP BEFORE THIS") == 1


def test_verify_reads_everything_and_is_content_with_a_whole_repository(scene: Scene) -> None:
    assert scene.run("verify") == 0


def test_one_wal_file_can_be_extracted(scene: Scene) -> None:
    name = "000000010000000000000003"
    assert scene.run("wal", "--service", "erp", name, "--to", str(scene.base / "out")) == 0
    assert (scene.base / "out").read_bytes() == scene.wal[name]


def test_a_wal_file_that_is_not_there_is_an_error(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert scene.run("wal", "--service", "erp", "00000001000000000000000F", "--to", str(scene.base / "out")) == 1
    assert "missing" in capsys.readouterr().err
    assert not (scene.base / "out").exists()


def test_signers_of_the_repository_file_are_shown_to_be_compared(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene.run("list", trust=False) == 0
    err = capsys.readouterr().err
    assert "COMPARE WITH YOUR ESCROW SHEET" in err
    assert scene.writer.signer.fingerprint in err


def test_the_latest_snapshot_is_taken_and_another_can_be_named(scene: Scene) -> None:
    root = scene.writer.tree([directory(b"global"), scene.writer.file(b"global/pg_control", b"later")])
    scene.writer.snapshot(root, number=11)
    assert scene.restore() == 0
    assert (scene.into / "global/pg_control").read_bytes() == b"later"
    shutil.rmtree(scene.into)
    assert scene.restore("--snapshot", scene.snapshot.name) == 0
    assert (scene.into / "global/pg_control").read_bytes() == scene.files["global/pg_control"]


def test_a_void_snapshot_is_not_the_latest(scene: Scene) -> None:
    root = scene.writer.tree([directory(b"global"), scene.writer.file(b"global/pg_control", b"void")])
    scene.writer.snapshot(root, number=11, checked_at="2020-01-01T00:00:00.000000Z")
    assert scene.restore() == 0
    assert (scene.into / "global/pg_control").read_bytes() == scene.files["global/pg_control"]


def test_a_target_that_is_not_empty_is_left_alone(scene: Scene) -> None:
    scene.into.mkdir()
    (scene.into / "PG_VERSION").write_text("precious")
    assert scene.restore() == 1
    assert regular_files(scene.into) == {"PG_VERSION": b"precious"}


def test_another_snapshot_is_not_mistaken_for_its_successor_that_names_it(scene: Scene) -> None:
    root = scene.writer.tree([directory(b"global"), scene.writer.file(b"global/pg_control", b"later")])
    scene.writer.snapshot(root, number=11, previous={"id": scene.snapshot.name, "sha256": "00" * 32})
    assert scene.restore("--snapshot", scene.snapshot.name) == 0
    assert (scene.into / "global/pg_control").read_bytes() == scene.files["global/pg_control"]


def test_a_target_that_only_holds_the_mark_of_a_failed_restore_can_be_used_again(scene: Scene) -> None:
    hidden = scene.packs("packs")[0].rename(scene.base / "hidden")
    assert scene.restore() == 1
    path = scene.writer.folder / f"s/erp/database/packs/{hidden.name}"
    assert not path.exists()
    name = next(
        name
        for (kind, name) in scene.writer.packs
        if not (scene.writer.folder / scene.writer.pack_path(kind, name)).exists()
    )
    hidden.rename(scene.writer.folder / scene.writer.pack_path(b"d", name))
    assert scene.restore() == 0
    assert not (scene.into / "RESTORE-INCOMPLETE").exists()


def test_files_a_writer_left_behind_are_told_and_ignored(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("snapshots", f"wal/{scene.writer.system_id}/00000001", "packs/00"):
        (scene.writer.folder / "s/erp/database" / folder).mkdir(exist_ok=True)
        (scene.writer.folder / "s/erp/database" / folder / ".tmp-1").write_bytes(b"half")
    assert scene.run("verify") == 0
    assert scene.restore_with_wal() == 0
    assert "ignored, not part of the format" in capsys.readouterr().err


def test_a_missing_age_program_is_named(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert scene.run("--age", "no-such-age", "verify") == 1
    assert "no-such-age is not installed" in capsys.readouterr().err


# --- Damage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["packs", "nodes"])
@pytest.mark.parametrize("at", [9, 60, 80, 110, -5, -30])
def test_a_flipped_bit_in_a_pack_is_found(
    scene: Scene, folder: str, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = scene.packs(folder)[-1]
    flip(pack, at)
    assert scene.restore() == 1
    assert_incomplete(scene)
    assert pack.name in capsys.readouterr().err
    assert scene.run("verify") == 1


def test_a_record_is_authenticated_even_in_a_pack_with_a_fitting_name(commit: Callable[..., Scene]) -> None:
    scene = commit()
    component = restore.Component(
        restore.Repository(scene.writer.folder, [], [str(scene.base / "identity")], "age"), "erp", "database"
    )
    [name] = [name for kind, name in scene.writer.packs if kind == b"d"]
    [piece] = component.footer(b"d", name)
    assert component.record(b"d", piece) == b"control"
    for wrong in (
        piece._replace(ordinal=1),
        piece._replace(id=bytes(32)),
        piece._replace(plain=8),
        piece._replace(codec=0),
        piece._replace(offset=105),
        piece._replace(stored=piece.stored - 1),
    ):
        with pytest.raises(restore.Problem, match="damaged or not the expected one"):
            component.record(b"d", wrong)


@pytest.mark.parametrize("folder", ["packs", "nodes"])
def test_a_missing_pack_is_named_before_any_file_is_written(
    scene: Scene, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = scene.packs(folder)[0]
    pack.unlink()
    assert scene.restore() == 1
    assert regular_files(scene.into).keys() == {"RESTORE-INCOMPLETE"}
    assert pack.name in capsys.readouterr().err
    assert pack.name in (scene.into / "RESTORE-INCOMPLETE").read_text()
    assert scene.run("verify") == 1


def test_a_truncated_pack_is_named(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    pack = scene.packs("packs")[0]
    pack.write_bytes(pack.read_bytes()[:-1])
    assert scene.restore() == 1
    assert_incomplete(scene)
    assert pack.name in capsys.readouterr().err


@pytest.mark.parametrize("at", [0, 5, 40, -1])
def test_a_flipped_bit_in_a_snapshot_is_found(scene: Scene, at: int, capsys: pytest.CaptureFixture[str]) -> None:
    flip(scene.snapshot, at)
    assert scene.restore() == 1
    assert scene.snapshot.name in capsys.readouterr().err
    assert not scene.into.exists()
    assert scene.run("list") == 1


def test_a_flipped_signature_is_found(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    length = int.from_bytes(scene.snapshot.read_bytes()[4:8], "big")
    flip(scene.snapshot, 8 + length + 10)
    assert scene.restore() == 1
    assert "does not match" in capsys.readouterr().err


def test_a_damaged_latest_snapshot_is_never_replaced_silently_by_an_older_one(scene: Scene) -> None:
    later = scene.writer.snapshot(scene.writer.tree([]), number=11)
    flip(later, -1)
    assert scene.restore() == 1
    assert scene.restore("--snapshot", scene.snapshot.name) == 0


def test_a_snapshot_under_another_name_is_refused(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.snapshot.rename(scene.snapshot.with_name(ulid(99)))
    assert scene.restore() == 1
    assert "belongs elsewhere" in capsys.readouterr().err


def test_an_object_of_another_component_is_refused(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(scene.writer.folder / "s/erp/database", scene.writer.folder / "s/erp/other")
    assert scene.restore("--component", "other") == 1
    assert "belongs elsewhere" in capsys.readouterr().err


def test_packs_of_another_component_do_not_open(scene: Scene, writer: Writer) -> None:
    other = Writer(
        writer.folder, signer=writer.signer, identity=writer.identity, component="other", data_key=writer.data_key
    )
    other.snapshot(other.tree([directory(b"global"), other.file(b"global/pg_control", b"other")]), number=12)
    [stolen] = [name for kind, name in other.packs if kind == b"d"]
    place = writer.folder / writer.pack_path(b"d", stolen)
    place.parent.mkdir(exist_ok=True)
    shutil.copy(writer.folder / other.pack_path(b"d", stolen), place)
    component = restore.Component(
        restore.Repository(writer.folder, [], [str(scene.base / "identity")], "age"), "erp", "database"
    )
    with pytest.raises(restore.Problem, match="not sealed for this component"):
        component.footer(b"d", stolen)


def test_an_unknown_signer_is_refused(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.writer.signer, known = Signer("stranger"), scene.writer.signer
    scene.writer.snapshot(scene.writer.tree([]), number=11)
    scene.writer.signer = known
    assert scene.restore() == 1
    assert "not trusted" in capsys.readouterr().err


def test_a_repository_file_by_another_signer_than_the_trusted_is_refused(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene.run("--trust", Signer().key, "list", trust=False) == 1
    assert "not trusted" in capsys.readouterr().err


def test_a_signer_is_believed_for_its_services_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(tmp_path / "repository", signer=Signer(services=["reporting"]))
    writer.begin()
    scene = Scene(writer, {}, {}, writer.snapshot(writer.tree([])), tmp_path)
    assert scene.run("list") == 1
    assert "not trusted for service erp" in capsys.readouterr().out


def test_a_changed_repository_file_is_refused(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    path = scene.writer.folder / "drservice-repository.json"
    path.write_bytes(path.read_bytes().replace(b'"write":[]', b'"write":["x"]'))
    assert scene.run("list") == 1
    assert "does not match" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 2}, "not format 1"), ({"features": {"read": ["new"], "write": [], "gc": []}}, "needs features")],
)
def test_a_newer_repository_is_refused(
    scene: Scene, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scene.writer.folder / "drservice-repository.json"
    fields = {**restore.parse_json(path.read_bytes()), **change}
    del fields["signature"]
    path.write_bytes(scene.writer.signed_repository(fields))
    assert scene.run("list") == 1
    assert message in capsys.readouterr().err


def test_the_wrong_identity_is_named_as_such(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    (scene.base / "identity").write_text(str(pyrage.x25519.Identity.generate()) + "\n")
    assert scene.restore() == 1
    assert "the identity does not open the data key" in capsys.readouterr().err
    assert_incomplete(scene)


def test_a_damaged_key_object_does_not_hide_a_second_wrapping(scene: Scene) -> None:
    [first] = (scene.writer.folder / f"keys/erp/{scene.writer.key_id}").iterdir()
    fields = {"key_id": scene.writer.key_id, "service": "erp", "recipients": []}
    key = f"keys/erp/{scene.writer.key_id}/{ulid(4)}.age"
    scene.writer.envelope(key, "key", fields, scene.writer.wrap())
    flip(first, -1)
    assert scene.restore() == 0


def lie(scene: Scene, number: int) -> None:
    """Add a wrapping, signed by a trusted host, that holds another key than it says."""
    recipient = scene.writer.identity.to_public()
    fields = {"key_id": scene.writer.key_id, "service": "erp", "recipients": [str(recipient)]}
    key = f"keys/erp/{scene.writer.key_id}/{ulid(number)}.age"
    scene.writer.envelope(key, "key", fields, pyrage.encrypt(bytes([number]) * 32, [recipient]))


def sealed(scene: Scene) -> dict[str, Callable[[restore.Component], object]]:
    """Return how each kind of thing that is sealed with a data key is read."""
    content = scene.wal["000000010000000000000002"]
    piece = scene.writer.tail(1, 5 * len(content), b"piece", size=len(content))
    [wal] = scene.writer.folder.glob("s/erp/database/wal/*/00000001/000000010000000000000002")
    assert "key_id" in json.loads(wal.read_bytes()[8:].split(b"}", 1)[0] + b"}")
    where = {path: str(path.relative_to(scene.writer.folder)) for path in (piece, wal)}
    return {
        "snapshot": lambda component: component.contents(component.snapshot(scene.snapshot.name))[0]["root"],
        "pack": lambda component: component.pack_key(b"d", bytes.fromhex(scene.packs("packs")[0].name)),
        "WAL": lambda component: component.wal([where[wal]])[1],
        "tail": lambda component: component.tail_piece(where[piece]),
    }


def reopened(scene: Scene) -> restore.Component:
    identity = str(scene.base / "identity")
    repository = restore.Repository(scene.writer.folder, [scene.writer.signer.key], [identity], "age")
    return restore.Component(repository, "erp", "database")


SEALED = ["snapshot", "pack", "WAL", "tail"]


@pytest.mark.parametrize("what", SEALED)
@pytest.mark.parametrize("numbers", [[1], [4], [1, 2, 4]], ids=["before", "behind", "around"])
def test_a_wrapping_that_holds_a_false_key_stops_no_reading(scene: Scene, what: str, numbers: list[int]) -> None:
    read = sealed(scene)[what]
    expected = read(reopened(scene))
    for number in numbers:
        lie(scene, number)
    component = reopened(scene)
    assert read(component) == expected
    assert read(component) == expected, "and again, with what is remembered"


@pytest.mark.parametrize("what", SEALED)
def test_where_every_wrapping_holds_a_false_key_it_is_said(scene: Scene, what: str) -> None:
    read = sealed(scene)[what]
    shutil.rmtree(scene.writer.folder / "keys")
    lie(scene, 1)
    lie(scene, 4)
    with pytest.raises(restore.Problem, match=f"wrappings in keys/erp/{scene.writer.key_id} hold is false"):
        read(reopened(scene))


def test_a_whole_restore_succeeds_beside_a_false_wrapping_and_verify_names_it(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    lie(scene, 1)
    assert scene.restore_with_wal() == 0
    assert regular_files(scene.into) == {**scene.files, "backup_label": b"START WAL LOCATION\n"}
    assert regular_files(scene.wal_into) == scene.wal
    assert scene.run("verify") == 1
    assert f"keys/erp/{scene.writer.key_id}: the wrappings hold 2 different keys" in capsys.readouterr().err


def test_without_a_readable_data_key_nothing_is_restored(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(scene.writer.folder / "keys")
    assert scene.restore() == 1
    assert f"keys/erp/{scene.writer.key_id}: missing" in capsys.readouterr().err


def test_a_decompression_bomb_gets_no_more_room_than_was_promised(writer: Writer, tmp_path: Path) -> None:
    entry = {"p": b"global/pg_control", "t": "f", "m": 0o600, "z": 8192, "s": 8192}
    entry["k"], entry["c"] = writer.chunk_table(b"x" * (64 << 20), 64 << 20, lengths=[8192])
    snapshot = writer.snapshot(writer.tree([directory(b"global"), entry]))
    scene = Scene(writer, {}, {}, snapshot, tmp_path)
    assert scene.restore() == 1
    assert "does not decompress" in (scene.into / "RESTORE-INCOMPLETE").read_text()


@pytest.mark.parametrize("variant", [restore.zstd_module, restore.zstd_program])
def test_each_zstd_gives_the_promised_length_and_no_more(variant: Callable[[bytes, int], bytes]) -> None:
    from backports import zstd  # noqa: PLC0415 - only to make the input

    plain = b"plain" * 1000
    frame = zstd.compress(plain)
    assert variant(frame, len(plain)) == plain
    with pytest.raises(restore.Problem):
        variant(frame, len(plain) - 1)


def test_a_sealed_body_opens_only_in_its_place_and_with_its_key(scene: Scene) -> None:
    component = restore.Component(restore.Repository(scene.writer.folder, [], [], "age"), "erp", "database")
    body = scene.writer.seal("wal/1/00000001/x", b"plain")
    assert component.unseal(scene.writer.data_key, "wal/1/00000001/x", body) == b"plain"
    for key, context in ((scene.writer.data_key, "wal/1/00000001/y"), (bytes(32), "wal/1/00000001/x")):
        with pytest.raises(restore.Problem, match="not sealed for this place"):
            component.unseal(key, context, body)


# --- Hostile trees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [b"/etc/x", b"../x", b"a/../../x", b"a//b", b"a/./b", b"a/", b"", b"nul\0", b"RESTORE-INCOMPLETE"]
)
def test_a_hostile_path_stops_the_restore_before_the_first_file(
    commit: Callable[..., Scene], writer: Writer, path: bytes
) -> None:
    scene = commit(writer.file(path, b"evil"))
    assert scene.restore() == 1
    assert regular_files(scene.into).keys() == {"RESTORE-INCOMPLETE"}
    assert {one.name for one in scene.base.iterdir()} == {"repository", "identity", "data"}


def test_nothing_is_written_through_a_link(commit: Callable[..., Scene], writer: Writer) -> None:
    link = {"p": b"base", "t": "l", "m": 0o777, "l": b".."}
    scene = commit(link, writer.file(b"base/file", b"evil"))
    assert scene.restore() == 1
    assert regular_files(scene.into).keys() == {"RESTORE-INCOMPLETE"}


def test_the_same_path_twice_is_refused(commit: Callable[..., Scene], writer: Writer) -> None:
    scene = commit(writer.file(b"twice", b"1"), writer.file(b"twice", b"2"))
    assert scene.restore() == 1
    assert regular_files(scene.into).keys() == {"RESTORE-INCOMPLETE"}


@pytest.mark.parametrize("target", [b"/etc", b"../x", b"../../x", b"", b"a/../../../x"])
def test_a_link_out_of_the_target_is_left_out_and_told(
    commit: Callable[..., Scene], target: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = commit(directory(b"pg_tblspc"), {"p": b"pg_tblspc/16385", "t": "l", "m": 0o777, "l": target})
    status = 3 if target != b"../x" else 0
    assert scene.restore() == status
    assert (scene.into / "pg_tblspc/16385").is_symlink() == (status == 0)
    assert ("LEFT OUT" in capsys.readouterr().err) == (status == 3)


def test_a_snapshot_without_backup_label_is_refused(commit: Callable[..., Scene]) -> None:
    scene = commit(attachments={})
    assert scene.restore() == 1
    assert_incomplete(scene)


@pytest.mark.parametrize(
    ("stored", "claimed"), [(100, 101), (100, 99), (8192, 16384), (8192, 8191), (0, 1), (16384, 8192)]
)
def test_a_file_whose_chunks_do_not_add_up_is_refused(
    commit: Callable[..., Scene], writer: Writer, stored: int, claimed: int
) -> None:
    scene = commit({**writer.file(b"file", b"x" * stored), "z": claimed})
    assert scene.restore() == 1
    assert_incomplete(scene)
    assert scene.run("verify") == 1


# --- WAL ----------------------------------------------------------------------------------------------------


def wal_path(scene: Scene, name: str) -> Path:
    return scene.writer.folder / f"s/erp/database/wal/{scene.writer.system_id}/{name[:8]}/{name}"


@pytest.mark.parametrize("name", ["000000010000000000000002", "000000010000000000000003", "00000002.history"])
def test_missing_wal_is_named_and_the_cluster_withheld(
    scene: Scene, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wal_path(scene, name).unlink()
    assert scene.restore_with_wal() == 1
    assert name in capsys.readouterr().err
    assert_incomplete(scene)


def test_a_gap_in_the_wal_is_named(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.writer.wal("000000020000000000000007", bytes(1 << 16))
    assert scene.restore_with_wal() == 1
    assert "000000020000000000000005 to 000000020000000000000006" in capsys.readouterr().err
    assert (scene.wal_into / "000000020000000000000007").exists()
    assert_incomplete(scene)


def test_a_timeline_that_lacks_its_first_segment_is_named(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    wal_path(scene, "000000020000000000000004").unlink()
    scene.writer.wal("000000020000000000000005", bytes(1 << 16))
    assert scene.restore_with_wal() == 1
    assert "000000020000000000000004" in capsys.readouterr().err


def test_a_timeline_in_the_middle_of_which_nothing_is_there_is_named(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """PostgreSQL would take it for the end of the WAL, and promote there."""
    wal_path(scene, "000000020000000000000004").unlink()
    scene.writer.wal("00000003.history", b"# a remark\n1\t0/40100\tone\n2\t0/70100\ttwo\n\n")
    scene.writer.wal("000000030000000000000007", bytes(1 << 16))
    assert scene.restore_with_wal() == 1
    lost = "000000020000000000000004 to 000000020000000000000006, which 00000003 needs"
    assert lost in capsys.readouterr().err
    assert_incomplete(scene)
    for number in (4, 5, 6):
        scene.writer.wal(f"00000002{number:016X}", bytes(1 << 16))
    for folder in (scene.into, scene.wal_into):
        folder.rename(folder.with_name(f"{folder.name}.old"))
    assert scene.restore_with_wal() == 0


def test_the_last_segment_that_was_salvaged_lies_under_its_own_name_as_far_as_it_was_ever_written(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "000000020000000000000005"
    copies = {"": b"first", ".r01ARZ3NDEKTSV4RRFFQ69G5FAV": b"second", ".r01ARZ3NDEKTSV4RRFFQ69G5FAW": b"third"}
    for end, content in copies.items():
        scene.writer.wal(f"{name}.partial", content.ljust(1 << 16, b"\0"), stored_as=f"{name}.partial{end}")
    left = "000000010000000000000004"
    scene.writer.wal(f"{left}.partial", bytes(1 << 16))
    assert scene.restore_with_wal() == 0
    assert (scene.wal_into / name).read_bytes().startswith(b"third")
    assert f"{name} is the last segment of its timeline, as far as it was written" in capsys.readouterr().out
    assert (scene.wal_into / left).read_bytes() == scene.wal[left]
    assert (scene.wal_into / f"{left}.partial").exists()


def test_wal_of_timelines_before_the_snapshot_is_not_needed(scene: Scene) -> None:
    scene.writer.wal("000000000000000000000003", bytes(1 << 16))
    assert scene.restore_with_wal() == 0
    assert not (scene.wal_into / "000000000000000000000003").exists()


@pytest.mark.parametrize("folder", ["keys", "hold", "gc"])
def test_verify_reads_keys_holds_and_condemned_lists(scene: Scene, folder: str) -> None:
    made = {
        "keys": scene.writer.key(),
        "hold": scene.writer.envelope(f"hold/{ulid(7)}", "hold", {"purpose": "backup", "until": "x"}, b""),
        "gc": scene.writer.envelope("gc/00000001/condemned", "condemned", {"reason": "test"}, b"[]"),
    }
    assert scene.run("verify") == 0
    flip(made[folder], 20)
    assert scene.run("verify") == 1


@pytest.mark.parametrize("at", [20, -1, -30000])
def test_damaged_wal_is_named(scene: Scene, at: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = "000000010000000000000003"
    flip(wal_path(scene, name), at)
    assert scene.restore_with_wal() == 1
    assert name in capsys.readouterr().err
    assert_incomplete(scene)
    assert scene.run("verify") == 1


def test_a_repaired_copy_stands_in_for_damaged_wal(scene: Scene) -> None:
    name = "000000010000000000000003"
    flip(wal_path(scene, name), -1)
    scene.writer.wal(name, scene.wal[name], stored_as=f"{name}.r{ulid(5)}")
    assert scene.restore_with_wal() == 0
    assert regular_files(scene.wal_into) == scene.wal


def test_wal_of_another_segment_under_this_name_is_refused(scene: Scene) -> None:
    name, other = "000000010000000000000003", "000000010000000000000002"
    scene.writer.wal(other, scene.wal[other], stored_as=name)
    assert scene.run("wal", "--service", "erp", name, "--to", str(scene.base / "out")) == 1


# --- Decoders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x80\x00",
        b"\x01",
        b"\x81\xa1a\xcb\0\0\0\0\0\0\0\0",
        b"\x81\xa1a" + b"\x91" * 20 + b"\x01",
        b"\x81\xa1a\xc6\xff\xff\xff\xffx",
    ],
)
def test_malformed_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(restore.Problem):
        restore.unpack(data)


def test_json_with_a_key_twice_is_refused() -> None:
    with pytest.raises(restore.Problem, match="canonical"):
        restore.parse_json(b'{"a":1,"a":1}')
    assert restore.parse_json(canonical({"a": "é"})) == {"a": "é"}


def test_blake3_is_used_where_it_is_installed() -> None:
    assert restore.optional("blake3") is blake3
