"""A second writer of the repository format, made from docs/format.md alone, for tests that need odd objects.

It follows the text where a test does not ask for the opposite; nothing of drservice is imported.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import msgpack
import pyrage
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
NOW = "2026-01-01T00:00:00.000000Z"


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def ulid(number: int) -> str:
    return "01" + "".join(_CROCKFORD[(number >> (5 * place)) & 31] for place in range(23, -1, -1))


def chunk_id(plain: bytes) -> bytes:
    return blake3.blake3(plain).digest()


def hkdf(data_key: bytes, salt: bytes, info: str) -> tuple[bytes, bytes]:
    out = HKDF(algorithm=SHA256(), length=64, salt=salt, info=info.encode()).derive(data_key)
    return out[:32], out[32:]


def seal_record(key: bytes, kind: bytes, number: int, plain: bytes, codec: int, chunk: bytes, length: int) -> bytes:
    """Encrypt one record; ``length`` is the promised one, which a test may make a lie."""
    associated = b"drservice record v1" + kind + struct.pack(">IIB", number, length, codec) + chunk
    return AESGCM(key).encrypt(number.to_bytes(12, "big"), zstd.compress(plain) if codec == 1 else plain, associated)


@dataclass
class Signer:
    """A host that signs."""

    name: str = "db1"
    services: list[str] = field(default_factory=list)
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    @property
    def key(self) -> str:
        return "ed25519:" + self.public.hex()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.public).hexdigest()[:16]


@dataclass
class Writer:
    """Writes a repository for one service and component into a folder."""

    folder: Path
    signer: Signer = field(default_factory=Signer)
    identity: Any = field(default_factory=pyrage.x25519.Identity.generate)
    service: str = "erp"
    component: str = "database"
    id: str = ulid(1)
    key_id: str = ulid(2)
    data_key: bytes = field(default_factory=lambda: os.urandom(32))
    packs: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    segment_bytes: int = 1 << 16
    system_id: str = "7345678901234567890"

    def begin(self) -> None:
        """Write the repository file and the wrapped data key."""
        fields: dict[str, Any] = {
            "format": 1,
            "repository": self.id,
            "created_at": NOW,
            "algorithms": {
                "cipher": "aes-256-gcm",
                "compression": "zstd",
                "chunk": "blake3",
                "pack": "sha256",
                "signature": "ed25519",
            },
            "features": {"read": [], "write": [], "gc": []},
            "signers": [{"name": self.signer.name, "key": self.signer.key, "services": self.signer.services}],
        }
        self.put("drservice-repository.json", self.signed_repository(fields))
        self.key()

    def signed_repository(self, fields: dict[str, Any]) -> bytes:
        value = self.signer.private.sign(b"drservice repository v1\n" + canonical(fields)).hex()
        return canonical({**fields, "signature": {"signer": self.signer.fingerprint, "value": value}})

    def put(self, key: str, data: bytes) -> Path:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def wrap(self) -> bytes:
        return bytes(pyrage.encrypt(self.data_key, [self.identity.to_public()]))

    def key(self) -> Path:
        fields = {"key_id": self.key_id, "service": self.service, "recipients": [str(self.identity.to_public())]}
        return self.envelope(f"keys/{self.service}/{self.key_id}/{ulid(3)}.age", "key", fields, self.wrap())

    def envelope(self, key: str, kind: str, fields: dict[str, Any], body: bytes) -> Path:
        common = {
            "type": kind,
            "repository": self.id,
            "key": key,
            "signer": self.signer.fingerprint,
            "host": self.signer.name,
            "created_at": NOW,
            "body_bytes": len(body),
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        header = canonical({**common, **fields})
        signature = self.signer.private.sign(b"drservice envelope v1\n" + header)
        return self.put(key, b"DRS1" + struct.pack(">I", len(header)) + header + signature + body)

    def seal(self, context: str, plain: bytes) -> bytes:
        salt = os.urandom(32)
        info = f"drservice sealed v1|{self.id}|{self.service}|{self.component}|{context}"
        key, commitment = hkdf(self.data_key, salt, info)
        out = io.BytesIO()
        out.write(salt + commitment)
        for number, at in enumerate(range(0, len(plain), 1 << 20)):
            part = plain[at : at + (1 << 20)]
            stored = seal_record(key, b"s", number, part, number % 2, bytes(32), len(part))
            out.write(struct.pack(">BII", number % 2, len(part), len(stored)) + stored)
        return out.getvalue()

    def pack(self, kind: bytes, plains: list[bytes], lengths: list[int] | None = None) -> list[list[Any]]:
        """Store a pack and return a reference to each record; ``lengths`` are promised lengths that may lie."""
        salt = os.urandom(32)
        place = f"{self.id}|{self.service}|{self.component}|{'data' if kind == b'd' else 'nodes'}"
        key, commitment = hkdf(self.data_key, salt, f"drservice pack v1|{place}")
        data = b"DRSPACK1" + self.key_id.encode() + kind + bytes(5) + salt + commitment
        table, references = b"", []
        for number, plain in enumerate(plains):
            length = lengths[number] if lengths else len(plain)
            codec, chunk = (number + 1) % 2, chunk_id(plain)
            stored = seal_record(key, kind, number, plain, codec, chunk, length)
            references.append([chunk, None, number, len(data), len(stored), length, codec])
            table += chunk + struct.pack(">IIIB", len(data), len(stored), length, codec)
            data += stored
        footer = seal_record(key, b"f", len(plains), table, 1, bytes(32), len(table))
        data += footer + struct.pack(">III", len(footer), len(table), len(plains)) + b"DRSPEND1"
        name = hashlib.sha256(data).digest()
        for reference in references:
            reference[1] = name
        self.put(self.pack_path(kind, name), data)
        self.packs[kind, name] = len(data)
        return references

    def pack_path(self, kind: bytes, name: bytes) -> str:
        folder = "packs" if kind == b"d" else "nodes"
        return f"s/{self.service}/{self.component}/{folder}/{name.hex()[:2]}/{name.hex()}"

    def node(self, value: dict[str, Any]) -> list[Any]:
        return self.pack(b"n", [msgpack.packb(value)])[0]

    def chunk_table(self, content: bytes, size: int, lengths: list[int] | None = None) -> tuple[list[bytes], bytes]:
        """Store the chunks of a file in one pack and return (packs, table); chunks of zeros are not stored."""
        parts = [content[at : at + size] for at in range(0, len(content), size)]
        stored = [part for part in parts if part.strip(b"\0")]
        references = iter(self.pack(b"d", stored, lengths) if stored else [])
        table, packs = b"", []
        for part in parts:
            if not part.strip(b"\0"):
                table += bytes(48) + struct.pack(">IB", len(part), 255)
                continue
            chunk, name, number, offset, length, plain, codec = next(references)
            packs = [name]
            table += chunk + struct.pack(">IIIIIB", 0, number, offset, length, plain, codec)
        return packs, table

    def file(self, path: bytes, content: bytes, *, mode: int = 0o600, size: int = 8192) -> dict[str, Any]:
        """Store a file and return its entry: with its chunks inside up to 64, in nodes of 1,024 above."""
        entry: dict[str, Any] = {"p": path, "t": "f", "m": mode, "z": len(content), "s": size, "i": [1, 2, 3, 4, 5]}
        if len(content) <= 64 * size:
            entry["k"], entry["c"] = self.chunk_table(content, size)
            return entry
        entry["n"] = []
        for at in range(0, len(content), 1024 * size):
            packs, table = self.chunk_table(content[at : at + 1024 * size], size)
            entry["n"].append(self.node({"kind": "chunks", "v": 1, "packs": packs, "chunks": table}))
        return entry

    def tree(self, entries: list[dict[str, Any]]) -> list[Any]:
        """Store nodes cut as §6 says and return the reference to the root."""
        groups: list[list[dict[str, Any]]] = [[]]
        for entry in entries:
            if groups[-1] and (chunk_id(entry["p"])[0] & 0x3F == 0 or len(groups[-1]) == 512):
                groups.append([])
            groups[-1].append(entry)
        level: list[list[Any]] = [
            [group[0]["p"] if group else b"", self.node({"kind": "entries", "v": 1, "entries": group})]
            for group in groups
        ]
        while len(level) > 1:
            cut: list[list[Any]] = [[]]
            for pair in level:
                if len(cut[-1]) >= 2 and (pair[1][0][0] & 0x3F == 0 or len(cut[-1]) == 1024):
                    cut.append([])
                cut[-1].append(pair)
            level = [[refs[0][0], self.node({"kind": "refs", "v": 1, "refs": refs})] for refs in cut]
        return list(level[0][1])

    def snapshot(self, root: list[Any], number: int = 10, **changes: Any) -> Path:
        """Commit a snapshot of everything packed so far."""
        name = ulid(number)
        tables: dict[str, list[list[Any]]] = {"packs": [], "node_packs": []}
        for (kind, pack), size in sorted(self.packs.items()):
            tables["packs" if kind == b"d" else "node_packs"].append([pack.hex(), size, size, 0])
        public = canonical(tables)
        attachments = changes.pop("attachments", {"backup_label": b"START WAL LOCATION\n", "tablespace_map": b""})
        secret = {"root": root, "attachments": attachments, "bad_pages": []}
        sealed = self.seal(f"snapshot/{name}", msgpack.packb(secret))
        fields = {
            "id": name,
            "service": self.service,
            "component": self.component,
            "kind": "postgres",
            "method": "local",
            "state": "complete",
            "started_at": NOW,
            "stopped_at": f"2026-01-01T00:00:{number:02}.000000Z",
            "checked_at": "2100-01-01T00:00:00.000000Z",
            "previous": None,
            "key_ids": [self.key_id],
            "sealed_key_id": self.key_id,
            "source_bytes": 1,
            "read_bytes": 1,
            "stored_bytes": 1,
            "files": 1,
            "postgres": {
                "system_id": self.system_id,
                "timeline": 1,
                "start_lsn": "0/20028",
                "stop_lsn": "0/30000",
                "server_version": 150000,
                "segment_bytes": self.segment_bytes,
                "block_bytes": 8192,
                "data_checksums": True,
                "bad_pages": 0,
            },
            **changes,
        }
        fields = {field: value for field, value in fields.items() if value is not None or field == "previous"}
        key = f"s/{self.service}/{self.component}/snapshots/{name}"
        return self.envelope(key, "snapshot", fields, struct.pack(">I", len(public)) + public + sealed)

    def tail(
        self, timeline: int, begin: int, content: bytes, *, size: int, writer: str = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    ) -> Path:
        """Store a piece of WAL of a cluster whose segments have `size` bytes."""
        end = begin + len(content)
        name = f"{begin:016X}-{end:016X}-{writer}"
        fields: dict[str, Any] = {
            "system_id": self.system_id,
            "timeline": timeline,
            "start_lsn": f"{begin >> 32:X}/{begin & 0xFFFFFFFF:X}",
            "end_lsn": f"{end >> 32:X}/{end & 0xFFFFFFFF:X}",
            "writer": writer,
            "segment_bytes": size,
            "server_time": NOW,
            "plain_sha256": hashlib.sha256(content).hexdigest(),
            "key_id": self.key_id,
        }
        where = f"{self.system_id}/{timeline:08X}/{name}"
        key = f"s/{self.service}/{self.component}/tail/{where}"
        return self.envelope(key, "tail", fields, self.seal(f"tail/{where}", content))

    def wal(self, name: str, content: bytes, *, stored_as: str = "", wrapped: bool = False) -> Path:
        """Store a WAL file, under another name for a repaired copy, with the data key inside if wanted."""
        key = f"s/{self.service}/{self.component}/wal/{self.system_id}/{name[:8]}/{stored_as or name}"
        fields: dict[str, Any] = {
            "name": name,
            "system_id": self.system_id,
            "timeline": int(name[:8], 16),
            "plain_bytes": len(content),
            "plain_sha256": hashlib.sha256(content).hexdigest(),
            "last_write": NOW,
        }
        fields.update({"wrapped_key": b64encode(self.wrap()).decode()} if wrapped else {"key_id": self.key_id})
        return self.envelope(key, "wal", fields, self.seal(f"wal/{self.system_id}/{name[:8]}/{name}", content))
