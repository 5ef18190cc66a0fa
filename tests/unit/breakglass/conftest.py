"""A small repository written by hand from the format's text, and restore.py as a function."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drservice.repository.breakglass import restore
from tests.doubles.formatwriter import Writer, chunk_id

SEGMENT = 1 << 16
# Before these paths a new tree node begins (§6), so that the tree has a root of references.
CUTS = [number for number in range(500) if chunk_id(b"many/%04d" % number)[0] & 0x3F == 0][:4]


@dataclass
class Scene:
    """A repository with one snapshot and WAL, and what a restore of it must give."""

    writer: Writer
    files: dict[str, bytes]
    wal: dict[str, bytes]
    snapshot: Path
    base: Path

    @property
    def into(self) -> Path:
        return self.base / "data"

    @property
    def wal_into(self) -> Path:
        return self.base / "wal"

    def run(self, *arguments: str, trust: bool = True, identity: Path | None = None) -> int:
        common = ["--repository", str(self.writer.folder), "--identity", str(identity or self.base / "identity")]
        return restore.main([*common, *(["--trust", self.writer.signer.key] if trust else []), *arguments])

    def restore(self, *arguments: str) -> int:
        return self.run("restore", "--service", "erp", "--into", str(self.into), *arguments)

    def restore_with_wal(self) -> int:
        return self.restore("--wal-into", str(self.wal_into))

    def packs(self, folder: str) -> list[Path]:
        return sorted((self.writer.folder / f"s/erp/database/{folder}").glob("*/*"))


def directory(path: bytes, mode: int = 0o700) -> dict[str, Any]:
    return {"p": path, "t": "d", "m": mode}


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    made = Writer(tmp_path / "repository")
    (tmp_path / "identity").write_text(str(made.identity) + "\n")
    made.begin()
    return made


@pytest.fixture
def commit(writer: Writer, tmp_path: Path) -> Callable[..., Scene]:
    """Commit a snapshot of ``pg_control`` and the entries a test adds."""

    def make(*entries: dict[str, Any], attachments: dict[str, bytes] | None = None) -> Scene:
        control = [directory(b"global"), writer.file(b"global/pg_control", b"control")]
        ordered = sorted([*control, *entries], key=lambda entry: entry["p"])
        changes: dict[str, Any] = {} if attachments is None else {"attachments": attachments}
        snapshot = writer.snapshot(writer.tree(ordered), **changes)
        return Scene(writer, {"global/pg_control": b"control"}, {}, snapshot, tmp_path)

    return make


@pytest.fixture
def scene(writer: Writer, tmp_path: Path) -> Scene:
    chance = random.Random(7)
    files = {
        "PG_VERSION": b"15\n",
        "base/1/1259": chance.randbytes(8192) + bytes(8192) + b"text" * 3000,
        "base/1/empty": b"",
        "base/1/zeros": bytes(20000),
        "base/1/large": b"".join(chance.randbytes(500) + bytes(12) for _ in range(70)) + bytes(8192) + b"end",
        "global/pg_control": chance.randbytes(8192),
        **{f"many/{number:04}": b"" for number in (*range(5), *CUTS)},
    }
    modes = {"PG_VERSION": 0o640}
    entries = [
        writer.file(name.encode(), content, mode=modes.get(name, 0o600), size=512 if name.endswith("large") else 8192)
        for name, content in files.items()
    ]
    entries += [directory(b"base"), directory(b"base/1", 0o750), directory(b"global"), directory(b"many")]
    entries += [directory(b"pg_wal"), directory(b"pg_wal/archive_status")]
    entries.append({"p": b"base/link", "t": "l", "m": 0o777, "l": b"1/1259"})
    snapshot = writer.snapshot(writer.tree(sorted(entries, key=lambda entry: entry["p"])))
    wal = {f"0000000100000000{number:08X}": chance.randbytes(SEGMENT) for number in (2, 3)}
    wal["000000010000000000000004"] = bytes(SEGMENT)
    wal["000000020000000000000004"] = b"\1" * (SEGMENT)
    wal["00000002.history"] = b"1\t0/40100\tno recovery target specified\n"
    for number, (name, content) in enumerate(wal.items()):
        writer.wal(name, content, wrapped=number % 2 == 1)
    writer.wal("000000010000000000000001", bytes(SEGMENT))
    return Scene(writer, files, wal, snapshot, tmp_path)
