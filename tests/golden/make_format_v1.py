"""Makes tests/golden/format-v1: a small whole repository of format 1, its keys, and vectors; and format-v1-tail beside
it: one with WAL in pieces and the server's clock; and format-v1-documents: one with sets of documents.

    python tests/golden/make_format_v1.py            # only while version 1 may still change; refuses to overwrite

Inputs are the same every time; salts, data keys and age files are random, so the output differs from run to run and
is made once and committed. The keys in it are test keys and protect nothing. From the first release tag on the
folder is never edited: what can read it today must read it for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from drservice.clock import to_iso  # noqa: E402
from drservice.model.documents import DocumentPosition  # noqa: E402 - after the path
from drservice.model.ids import ComponentName, KeyId, RepositoryId, ServiceName, SystemId  # noqa: E402
from drservice.model.tail import ClockPair  # noqa: E402
from drservice.model.wal import Lsn, Timeline, WalFileName  # noqa: E402
from drservice.objectstore.memory import MemoryStore  # noqa: E402
from drservice.repository.changes import ChangeRule  # noqa: E402
from drservice.repository.chunktable import TableBuilder  # noqa: E402
from drservice.repository.envelope import HostKey, write_envelope  # noqa: E402
from drservice.repository.nodes import Entry, EntryKind, cut_entries, encode_entry, node_id  # noqa: E402
from drservice.repository.pack import DATA_KIND, ClosedPack, PackSink, PackTarget  # noqa: E402
from drservice.repository.records import Scope, derive_record_key, record_aad, record_nonce, seal_body  # noqa: E402
from tests.doubles.clock import ManualClock  # noqa: E402
from tests.doubles.filestores import Filestore, name_of  # noqa: E402
from tests.doubles.repositories import Heard, Site, noise  # noqa: E402

FOLDER = Path(__file__).parent / "format-v1"
TAIL_FOLDER = Path(__file__).parent / "format-v1-tail"
DOCUMENTS_FOLDER = Path(__file__).parent / "format-v1-documents"
TAIL_SEGMENT_BYTES = 1 << 20
TAIL_CUTS = (((0, 4096), (4096, 9000)), ((0, 7000), (7000, 12345)))
"""What two runs cut from segment 4: the first one was killed."""
SEGMENT_BYTES = 16 << 20
BEGAN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
DATA_KEY = bytes(range(32))
SALT = bytes(range(100, 132))
ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def files() -> dict[str, bytes]:
    """What the cluster holds: every way in which a file can be stored."""
    return {
        "PG_VERSION": b"15\n",
        "base/1/1259": noise(8192) + bytes(8192) + b"order 4711 " * 3000,
        "base/1/empty": b"",
        "base/1/zeros": bytes(5 * 512 + 3),
        "base/1/large": b"".join(noise(100, number) + bytes(412) for number in range(200)) + b"end",
        "global/pg_control": noise(8192, 9),
        "odd/a name with spaces and \u00e4": b"odd",
        **{f"many/{number:04}": b"%d" % number for number in range(90)},
    }


def segments() -> dict[str, bytes]:
    """The WAL: whole segments that compress to nothing, a history file."""
    made = {f"0000000100000000{number:08X}": bytes([number]) * SEGMENT_BYTES for number in (2, 3)}
    made["00000002.history"] = b"1\t0/3000100\tno recovery target specified\n"
    return made


def make(base: Path) -> None:
    """Write the repository and what is needed to read it."""
    clock = ManualClock(BEGAN)
    site = Site.create(base / "work", folder=base / "repository")
    site.clock = clock
    (base / "repository/restore.py").unlink()  # the script of the present code is tested, not a copy
    (base / "repository/RESTORE.md").unlink()
    site.chunk_bytes = 512
    site.write(files())
    (site.source / "base/link").symlink_to("1/1259")
    for _ in range(2):
        with site.writing() as writer:
            writer.add_link(b"base/link", 0o777, b"1/1259")
            regular = [one for one in site.files() if one.path != b"base/link"]
            writer.capture_files(regular, rule=ChangeRule.READ_ALL, progress=Heard())
            site.commit(writer)
        clock.pass_seconds(3600)
        site.write({"PG_VERSION": b"15\n", "base/1/1259": files()["base/1/1259"]})
    for name, data in segments().items():
        site.repository().wal(site.scope).put(
            WalFileName.parse(name), data, system_id=SystemId("7345678901234567890"), last_write=clock.now()
        )
    (base / "identity").write_text(site.secret_identity + "\n")
    (base / "trust").write_text(f"ed25519:{site.host.public_key.hex()}\n")
    expected = {
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files().items()},
        "links": {"base/link": "1/1259"},
        "wal": {name: hashlib.sha256(content).hexdigest() for name, content in segments().items()},
        "backup_label": "START WAL LOCATION: 0/2000028\n",
    }
    (base / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    work = base / "work"
    for path in sorted(work.rglob("*"), reverse=True):
        path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
    work.rmdir()


def tail_wal() -> bytes:
    """The WAL of segment 4 as far as it was written."""
    return b"".join(b"record %06d " % number for number in range(1000))[:12345]


def make_tail(base: Path) -> None:
    """Write a repository with pieces of one segment and the clock of the one before, and what is needed to read it."""
    clock = ManualClock(BEGAN)
    site = Site.create(base / "work", folder=base / "repository")
    site.clock = clock
    (base / "repository/restore.py").unlink()
    (base / "repository/RESTORE.md").unlink()
    system_id = SystemId("7345678901234567890")
    begin = Lsn(4 * TAIL_SEGMENT_BYTES)
    key = site.repository().day_keys(site.scope.service).today()
    for cuts in TAIL_CUTS:
        tail = site.repository().tail(site.scope)
        for start, end in cuts:
            clock.pass_seconds(1)
            tail.put(
                tail_wal()[start:end],
                system_id=system_id,
                timeline=Timeline(1),
                start=begin + start,
                server_time=clock.now(),
                segment_bytes=TAIL_SEGMENT_BYTES,
                key=key,
            )
    pairs = [ClockPair(server_time=BEGAN, lsn=Lsn(begin.value - 100)), ClockPair(server_time=BEGAN, lsn=begin)]
    site.repository().clocks(site.scope).put(
        system_id=system_id, timeline=Timeline(1), segment=3, segment_bytes=TAIL_SEGMENT_BYTES, pairs=pairs
    )
    (base / "identity").write_text(site.secret_identity + "\n")
    (base / "trust").write_text(f"ed25519:{site.host.public_key.hex()}\n")
    segment = tail_wal().ljust(TAIL_SEGMENT_BYTES, b"\0")
    expected = {
        "name": "000000010000000000000004",
        "end": str(begin + len(tail_wal())),
        "segment": hashlib.sha256(segment).hexdigest(),
        "server_time": to_iso(clock.now()),
        "clock": [[to_iso(pair.server_time), str(pair.lsn)] for pair in pairs],
    }
    (base / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in sorted((base / "work").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (base / "work").rmdir()


def make_documents(base: Path) -> None:
    """Write a repository with a pass over a filestore and two sets of documents, and what is needed to read it."""
    site = Site.create(base / "work", folder=base / "repository")
    site.clock = ManualClock(BEGAN)
    (base / "repository/restore.py").unlink()
    (base / "repository/RESTORE.md").unlink()
    filestore = Filestore(site=site)
    walked = filestore.add(b"in the pass")
    filestore.capture()
    repository = site.repository()
    sets = repository.document_sets(filestore.scope)
    key = repository.day_keys(filestore.scope.service).today()
    contents = [[b"in the first set", b""], [b"in the second set" * 100]]
    lost, wrong = name_of(b"lost in production"), name_of(b"damaged in production")
    previous: str | None = None
    for number, found in enumerate(contents):
        site.clock.pass_seconds(2)
        previous = sets.put(
            [(name_of(content), content) for content in found],
            position=DocumentPosition(
                system_id=SystemId("7345678901234567890"),
                timeline=Timeline(1),
                lsn=Lsn((4 << 20) + number),
                server_time=site.clock.now(),
            ),
            missing=[lost] if number else [],
            corrupt=[wrong] if number else [],
            whole=bool(number),
            previous=previous,
            key=key,
        ).id
    (base / "identity").write_text(site.secret_identity + "\n")
    (base / "trust").write_text(f"ed25519:{site.host.public_key.hex()}\n")
    expected = {
        "pass": walked,
        "sets": [{name_of(content): len(content) for content in found} for found in contents],
        "missing": lost,
        "corrupt": wrong,
        "lsn": "0/400001",
        "server_time": to_iso(site.clock.now()),
        "newest": previous,
    }
    (base / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in sorted((base / "work").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (base / "work").rmdir()


def vectors() -> dict[str, Any]:
    """Inputs and outputs of every building block that is the same every time."""
    scope = Scope(repository=RepositoryId(ID), service=ServiceName("erp"), component=ComponentName("database"))
    key = derive_record_key(DATA_KEY, salt=SALT, purpose="pack", scope=scope, context="data")
    plain = b"a page of data"
    chunk = blake3(plain).digest()
    aad = record_aad(b"d", 7, len(plain), 0, chunk)
    host = HostKey("db1", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    envelope = write_envelope(
        signer=host,
        repository=scope.repository,
        key="hold/01ARZ3NDEKTSV4RRFFQ69G5FAW",
        kind="hold",
        fields={"purpose": "backup", "until": "2026-02-01T00:00:00.000000Z"},
        body=[b"body"],
        now=BEGAN,
    )
    sealed = b"".join(seal_body(DATA_KEY, b"sealed text", scope=scope, context="wal/1/00000001/x"))
    store = MemoryStore()
    names: list[ClosedPack] = []
    target = PackTarget(scope=scope, kind=DATA_KIND, key_id=KeyId(ID), data_key=DATA_KEY, level=1, pack_bytes=1 << 20)
    sink = PackSink(store, target, names.append)
    sink.add(chunk, plain)
    sink.add(blake3(bytes(1000)).digest(), bytes(1000))
    sink.flush()
    sink.close()
    [info] = store.list("")
    table = TableBuilder()
    table.add(chunk, b"p" * 32, 7, (104, 30, 14, 0))
    table.add_zero(512)
    entry = Entry(path=b"PG_VERSION", kind=EntryKind.DIRECTORY, mode=0o700)
    paths = [b"base/%d" % number for number in range(1000)]
    nodes = list(cut_entries((path, msgpack.packb(number)) for number, path in enumerate(sorted(paths))))
    return {
        "scope": [ID, "erp", "database"],
        "data_key": DATA_KEY.hex(),
        "record": {
            "salt": SALT.hex(),
            "commitment": key.commitment.hex(),
            "ordinal": 7,
            "codec": 0,
            "chunk_id": chunk.hex(),
            "plain": plain.hex(),
            "aad": aad.hex(),
            "stored": key.cipher.encrypt(record_nonce(7), plain, aad).hex(),
        },
        "envelope": {"private_key": bytes(range(32)).hex(), "object": b"".join(envelope).hex(), "body": b"body".hex()},
        "sealed": {"context": "wal/1/00000001/x", "body": sealed.hex(), "plain": b"sealed text".hex()},
        "pack": {"key": info.key, "object": store.read(info.key).hex(), "plain": [plain.hex(), bytes(1000).hex()]},
        "chunk_rows": {"rows": table.rows().hex(), "chunks": [[chunk.hex(), 0, 7, 104, 30, 14, 0]], "zero_bytes": 512},
        "entry": encode_entry(entry).hex(),
        "cuts": {
            "paths": ["base/0", "base/999", 1000],
            "first_paths": [first.decode() for first, _ in nodes],
            "node_ids": [node_id(raw).hex() for _, raw in nodes],
        },
    }


def main() -> int:
    """Make everything, or refuse because it is there."""
    missing = [folder for folder in (FOLDER, TAIL_FOLDER, DOCUMENTS_FOLDER) if not (folder / "repository").exists()]
    if not missing:
        sys.stderr.write("everything exists; golden files are never edited\n")
        return 1
    os.umask(0o022)
    for folder in missing:
        folder.mkdir(exist_ok=True)
        if folder == TAIL_FOLDER:
            make_tail(folder)
        elif folder == DOCUMENTS_FOLDER:
            make_documents(folder)
        else:
            make(folder)
            (folder / "vectors.json").write_text(json.dumps(vectors(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
