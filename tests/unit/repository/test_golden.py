"""The committed repository of format 1 is read by drservice and by restore.py, byte for byte; vectors hold for both.

tests/golden/make_format_v1.py made it. From the first release tag on it is never edited.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.clock import SystemClock, to_iso
from drservice.model.estate import SignerSettings
from drservice.model.ids import ComponentName, RepositoryId, ServiceName, SystemId
from drservice.model.wal import Timeline, WalFileName
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.breakglass import restore
from drservice.repository.chunktable import ChunkTable
from drservice.repository.envelope import HostKey, Trust, read_envelope, write_envelope
from drservice.repository.keys import Identities
from drservice.repository.nodes import EntryKind, cut_entries, decode_entry, node_id
from drservice.repository.pack import pack_record_key, read_head, read_table
from drservice.repository.placing import place_files
from drservice.repository.records import Scope, derive_record_key, open_body, open_record, record_aad, record_nonce
from drservice.repository.repository import Repository, open_repository
from drservice.repository.verify import Depth, verify_component
from tests.doubles.formatwriter import canonical
from tests.doubles.repositories import SYSTEM_ID, Heard, content_of

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "format-v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
VECTORS: dict[str, Any] = json.loads((GOLDEN / "vectors.json").read_text())
SCOPE = Scope(
    repository=RepositoryId(VECTORS["scope"][0]),
    service=ServiceName(VECTORS["scope"][1]),
    component=ComponentName(VECTORS["scope"][2]),
)
DATA_KEY = bytes.fromhex(VECTORS["data_key"])


def hashes(content: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy whose snapshots have the times they were stored at, which git does not keep."""
    made = Path(shutil.copytree(GOLDEN / "repository", tmp_path / "repository"))
    for path in made.glob("s/*/*/snapshots/*"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "big")])
        stored = datetime.fromisoformat(header["checked_at"]).timestamp()
        os.utime(path, (stored, stored))
    return made


@pytest.fixture
def repository(folder: Path) -> Repository:
    text = (GOLDEN / "trust").read_text().strip().removeprefix("ed25519:")
    return open_repository(
        DirectoryStore(folder),
        open_store=partial(DirectoryStore, folder),
        signers=[SignerSettings(name="golden", public_key=bytes.fromhex(text))],
        host_key=None,
        identities=Identities.load([f"file:{GOLDEN / 'identity'}"]),
        recipients=(),
        clock=SystemClock(),
    )


def test_drservice_restores_every_snapshot_of_the_golden_repository(repository: Repository, tmp_path: Path) -> None:
    scope = repository.scope(ServiceName("erp"), ComponentName("database"))
    listing = repository.snapshots(scope)
    assert (len(listing.records), listing.unreadable) == (2, {})
    for record in listing.records:
        into = tmp_path / record.id
        into.mkdir()
        reader = repository.reader(scope, record.id)
        place_files(
            reader,
            into,
            open_store=repository.open_store,
            scope=scope,
            secrets=repository.secrets(scope, repository.open_snapshot(scope, record.id)),
            hold_back=frozenset(),
            account=None,
            workers=1,
            progress=Heard(),
        )
        assert hashes(content_of(into)) == EXPECTED["files"]
        links = {str(path.relative_to(into)): str(path.readlink()) for path in into.rglob("*") if path.is_symlink()}
        assert links == EXPECTED["links"]
        assert reader.secret.attachments == {"backup_label": EXPECTED["backup_label"].encode()}


def test_drservice_reads_the_golden_wal(repository: Repository) -> None:
    archive = repository.wal(repository.scope(ServiceName("erp"), ComponentName("database")))
    names = [file.name for file in archive.listing(SYSTEM_ID)]
    content = {name: archive.fetch(WalFileName.parse(name), system_id=SYSTEM_ID) for name in names}
    assert hashes(content) == EXPECTED["wal"]
    assert archive.system_ids() == [SystemId(SYSTEM_ID)]
    assert WalFileName.parse(names[0]).timeline == Timeline(1)


def test_drservice_verifies_the_golden_repository(repository: Repository) -> None:
    verified = verify_component(
        repository,
        repository.scope(ServiceName("erp"), ComponentName("database")),
        depth=Depth.DATA,
        percent=100,
        chosen=lambda _key, _percent: True,
        advance=lambda _: None,
    )
    assert verified.findings == []
    assert verified.packs_checked == verified.packs_total > 2
    assert verified.wal_files == 3


def run_script(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path] = [sys.executable, "-I", restore.__file__, "--repository", folder]
    argv += ["--identity", GOLDEN / "identity", "--trust", (GOLDEN / "trust").read_text().strip(), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_the_script_restores_the_golden_repository_with_its_wal(folder: Path, tmp_path: Path) -> None:
    result = run_script(
        folder, "restore", "--service", "erp", "--into", tmp_path / "out", "--wal-into", tmp_path / "wal"
    )
    assert result.returncode == 0, result.stderr
    label = {"backup_label": hashlib.sha256(EXPECTED["backup_label"].encode()).hexdigest()}
    assert hashes(content_of(tmp_path / "out")) == {**EXPECTED["files"], **label}
    assert {str(path.readlink()) for path in (tmp_path / "out").rglob("*") if path.is_symlink()} == {"1/1259"}
    placed = hashes(content_of(tmp_path / "wal"))
    # The script makes the copy that a timeline begins with, so that PostgreSQL does not read on in the history it left.
    begun, parent = ((tmp_path / "wal" / f"{line:08X}0000000000000003").read_bytes() for line in (2, 1))
    assert len(begun) == len(parent)
    assert parent.startswith(begun.rstrip(b"\0"))
    assert begun != parent
    del placed["000000020000000000000003"]
    assert placed == EXPECTED["wal"]


def test_the_script_verifies_the_golden_repository(folder: Path) -> None:
    result = run_script(folder, "verify")
    assert result.returncode == 0, result.stderr
    assert "is whole" in result.stdout


def test_the_golden_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 200 << 10


TAIL = GOLDEN.with_name("format-v1-tail")


def test_golden_pieces_of_wal_are_put_together_by_both_and_the_clock_is_read() -> None:
    expected = json.loads((TAIL / "expected.json").read_text())
    trust, folder = (TAIL / "trust").read_text().strip(), TAIL / "repository"
    opened = open_repository(
        DirectoryStore(folder),
        open_store=partial(DirectoryStore, folder),
        signers=[SignerSettings(name="golden", public_key=bytes.fromhex(trust.removeprefix("ed25519:")))],
        host_key=None,
        identities=Identities.load([f"file:{TAIL / 'identity'}"]),
        recipients=(),
        clock=SystemClock(),
    )
    scope = opened.scope(ServiceName("erp"), ComponentName("database"))
    made = opened.tail(scope).rebuild(SYSTEM_ID, Timeline(1), 4, 1 << 20)
    assert (str(made.end), made.problem, len(made.pieces)) == (expected["end"], None, 4)
    assert hashlib.sha256(made.data).hexdigest() == expected["segment"]
    assert made.last_server_time == datetime.fromisoformat(expected["server_time"])
    pairs = opened.clocks(scope).read(system_id=SYSTEM_ID, timeline=Timeline(1), segment=3, segment_bytes=1 << 20)
    assert [[to_iso(pair.server_time), str(pair.lsn)] for pair in pairs] == expected["clock"]
    alone = restore.Component(restore.Repository(folder, [trust], [str(TAIL / "identity")], "age"), "erp", "database")
    [found] = alone.tails(SYSTEM_ID, 1 << 20, [], "00000001", 0)
    assert (found.name, restore.position(found.end), found.problem) == (expected["name"], expected["end"], "")
    assert hashlib.sha256(found.content).hexdigest() == expected["segment"]


DOCUMENTS = GOLDEN.with_name("format-v1-documents")


def test_golden_sets_of_documents_are_read_by_both() -> None:
    expected = json.loads((DOCUMENTS / "expected.json").read_text())
    trust, folder = (DOCUMENTS / "trust").read_text().strip(), DOCUMENTS / "repository"
    opened = open_repository(
        DirectoryStore(folder),
        open_store=partial(DirectoryStore, folder),
        signers=[SignerSettings(name="golden", public_key=bytes.fromhex(trust.removeprefix("ed25519:")))],
        host_key=None,
        identities=Identities.load([f"file:{DOCUMENTS / 'identity'}"]),
        recipients=(),
        clock=SystemClock(),
    )
    sets = opened.document_sets(opened.scope(ServiceName("erp"), ComponentName("documents")))
    first, second = sets.listing().sets
    assert (first.is_whole, first.previous, second.is_whole, second.previous) == (False, None, True, first.id)
    assert (second.id, str(second.position.lsn)) == (expected["newest"], expected["lsn"])
    assert to_iso(second.position.server_time) == expected["server_time"]
    index = sets.index(second)
    assert (index.missing, index.corrupt) == ((expected["missing"],), (expected["corrupt"],))
    alone = restore.Component(
        restore.Repository(folder, [trust], [str(DOCUMENTS / "identity")], "age"), "erp", "documents"
    )
    assert alone.document_sets() == [first.id, second.id]
    for stored, names in zip((first, second), expected["sets"], strict=True):
        mine = {part.name: part.data for part in sets.read(stored, names)}
        theirs = {path.decode(): data for path, _, _, data in alone.documents(stored.id)}
        assert mine == theirs
        assert {name: len(data) for name, data in mine.items()} == names


# --- vectors ------------------------------------------------------------------------------------------------


def unhex(vector: str, *names: str) -> list[bytes]:
    return [bytes.fromhex(VECTORS[vector][name]) for name in names]


def test_the_record_vector_holds_for_both() -> None:
    about = VECTORS["record"]
    salt, commitment, chunk, plain, aad, stored = unhex(
        "record", "salt", "commitment", "chunk_id", "plain", "aad", "stored"
    )
    key = derive_record_key(DATA_KEY, salt=salt, purpose="pack", scope=SCOPE, context="data")
    assert key.commitment == commitment
    assert record_aad(b"d", about["ordinal"], len(plain), about["codec"], chunk) == aad
    assert key.cipher.encrypt(record_nonce(about["ordinal"]), plain, aad) == stored
    assert blake3(plain).digest() == chunk
    aes, theirs = restore.derive(DATA_KEY, salt, f"drservice pack v1|{'|'.join(VECTORS['scope'])}|data")
    piece = restore.Piece(chunk, b"", about["ordinal"], 0, len(stored), len(plain), about["codec"])
    assert theirs == commitment
    assert restore.open_record(aes, b"d", piece, stored) == plain


def test_the_envelope_vector_holds() -> None:
    seed, data, body = unhex("envelope", "private_key", "object", "body")
    host = HostKey("db1", Ed25519PrivateKey.from_private_bytes(seed))
    key = "hold/01ARZ3NDEKTSV4RRFFQ69G5FAW"
    trust = Trust([SignerSettings(name="db1", public_key=host.public_key)])
    envelope = read_envelope(data, trust=trust, repository=SCOPE.repository, key=key, kind="hold")
    assert envelope.check_body(data[envelope.body_offset :]) == body
    made = write_envelope(
        signer=host,
        repository=SCOPE.repository,
        key=key,
        kind="hold",
        fields={"purpose": "backup", "until": "2026-02-01T00:00:00.000000Z"},
        body=[body],
        now=datetime(2026, 1, 31, 12, tzinfo=UTC),
    )
    assert b"".join(made) == data, "Ed25519 and canonical JSON have one answer"
    assert canonical(dict(envelope.header)) == data[8 : envelope.body_offset - 64]


def test_the_sealed_body_vector_holds() -> None:
    body, plain = unhex("sealed", "body", "plain")
    assert b"".join(open_body(DATA_KEY, body, scope=SCOPE, context=VECTORS["sealed"]["context"], where="it")) == plain


def test_the_pack_vector_holds() -> None:
    [data] = unhex("pack", "object")
    assert VECTORS["pack"]["key"].endswith(hashlib.sha256(data).hexdigest())
    key = pack_record_key(read_head(data, "it"), DATA_KEY, SCOPE, "it")
    plains = [
        bytes(
            open_record(
                key,
                data[offset : offset + stored],
                kind=b"d",
                ordinal=number,
                plain_length=length,
                codec=codec,
                chunk_id=chunk,
                where=lambda: "it",
            )
        ).hex()
        for number, (chunk, offset, stored, length, codec) in enumerate(read_table(data, key, "it"))
    ]
    assert plains == VECTORS["pack"]["plain"]


def test_the_chunk_row_vector_holds() -> None:
    [rows] = unhex("chunk_rows", "rows")
    first, zero = ChunkTable([b"p" * 32], rows)
    assert [first.chunk_id.hex(), *first[1:]] == VECTORS["chunk_rows"]["chunks"][0]
    assert zero == (bytes(32), 0, 0, 0, 0, VECTORS["chunk_rows"]["zero_bytes"], 255)


def test_the_entry_vector_holds() -> None:
    entry = decode_entry(bytes.fromhex(VECTORS["entry"]))
    assert (entry.path, entry.kind, entry.mode) == (b"PG_VERSION", EntryKind.DIRECTORY, 0o700)


def test_the_node_cuts_are_where_they_always_were() -> None:
    paths = sorted(b"base/%d" % number for number in range(VECTORS["cuts"]["paths"][2]))
    nodes = list(cut_entries((path, msgpack.packb(number)) for number, path in enumerate(paths)))
    assert [first.decode() for first, _ in nodes] == VECTORS["cuts"]["first_paths"]
    assert [node_id(raw).hex() for _, raw in nodes] == VECTORS["cuts"]["node_ids"]
