"""Restore a cluster, a filestore or a folder from a drservice repository with this one file and nothing else of it.

RESTORE.md beside this file says what to do step by step; docs/format.md of drservice describes every byte (§ marks
below refer to it). Needed: Python 3.9 or newer with the package `cryptography`; zstd in any form (Python 3.14,
`backports.zstd`, `zstandard` or the program `zstd`); the program `age`. With `blake3` chunk ids are checked too.

    python3 restore.py --repository DIR list
    python3 restore.py --repository DIR --identity FILE restore --service erp --into NEW --wal-into NEW
    python3 restore.py --repository DIR --identity FILE restore --service erp --component documents --into NEW
    python3 restore.py --repository DIR --identity FILE wal --service erp 000000010000000000000007 --to FILE
    python3 restore.py --repository DIR --identity FILE verify

The repository is only read. Nothing is believed that is not signed by a trusted key or authenticated by a data
key. Whatever is missing or damaged is named, the exit status is not 0, the file RESTORE-INCOMPLETE stays in the
target and `global/pg_control` is withheld, so that PostgreSQL cannot start on half a cluster.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import importlib
import io
import json
import os
import posixpath
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ULID = "[0-9A-HJKMNP-TV-Z]{26}"
WAL_NAME = r"[0-9A-F]{8}([0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?|\.history)(\.r[0-9A-Z]{26})?"
TAIL_NAME = r"([0-9A-F]{16})-([0-9A-F]{16})-[0-9A-Z]{26}"
ZERO_ID = bytes(32)
KINDS = ("postgres", "odoo-filestore", "directory", "git", "redis")
MARKER = "RESTORE-INCOMPLETE"
UNFINISHED = "This restore did not finish. Do not start PostgreSQL here, and let no program use these files.\n"
CONTROL, WITHHELD = b"global/pg_control", b"global/pg_control.withheld"
PART = 24 << 20  # a bigger document is cut at every multiple (§15)
LARGEST_FRAME, LARGEST_NODE = 1 << 20, 64 << 20
THREADS = min(8, max(4, os.cpu_count() or 4))
Value = Any  # what JSON and msgpack hold; `reading` turns a wrong type into a Problem
Fields = dict[str, Any]


class Problem(Exception):  # noqa: N818 - this is what the reader is told; the word is theirs
    """Something is missing, damaged, not trusted or impossible; the text names the object."""


class OtherKey(Problem):
    """Something was not sealed with this data key: another wrapping may hold the right one."""


class Piece(NamedTuple):
    """Where a record (a chunk or a tree node) is stored, in the order of a reference (§6)."""

    id: bytes
    pack: bytes
    ordinal: int
    offset: int
    stored: int
    plain: int
    codec: int


class Tail(NamedTuple):
    """A segment that is stored in pieces only: up to which position it could be put together, and why no further."""

    name: str
    content: bytes
    end: int
    whole: bool
    problem: str


class Snapshot(NamedTuple):
    """A snapshot: its name, its key in the repository, its signed header, its body."""

    id: str
    key: str
    header: Fields
    body: bytes


# --- Telling ------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print progress or a warning."""
    sys.stderr.write(text + "\n")


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Name the object that is being read in whatever goes wrong with it."""
    try:
        yield
    except Problem as problem:
        raise Problem(f"{where}: {problem}") from problem
    except FileNotFoundError as error:
        raise Problem(f"{where}: missing") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error) as error:
        raise Problem(f"{where}: damaged or not of this format: {error!r}") from error


# --- Decoding -----------------------------------------------------------------------------------------------


def demand(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion that cannot be switched off
    """Raise a Problem unless the condition holds."""
    if not condition:
        raise Problem(otherwise)


def canonical(value: Value) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_json(data: bytes) -> Fields:
    """Decode a canonical JSON object; any other spelling (a key twice, for example) is refused."""
    value = json.loads(data)
    demand(isinstance(value, dict) and canonical(value) == data, "not a canonical JSON object")
    return dict(value)


NUMBERS = {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}
CONTAINERS: dict[int, tuple[type, str]] = {0xC4: (bytes, "B"), 0xC5: (bytes, "H"), 0xC6: (bytes, "I")}
CONTAINERS.update({0xD9: (str, "B"), 0xDA: (str, "H"), 0xDB: (str, "I")})
CONTAINERS.update({0xDC: (list, "H"), 0xDD: (list, "I"), 0xDE: (dict, "H"), 0xDF: (dict, "I")})


def unpack_value(source: io.BytesIO, depth: int = 0) -> Value:
    """Decode one value of the part of msgpack the format uses; counts end where the bytes end."""

    def take(count: int) -> bytes:
        data = source.read(count)
        demand(len(data) == count and depth <= 8, "msgpack ends early or is nested too deeply")
        return data

    def number(code: str) -> int:
        return int(struct.unpack(">" + code, take(struct.calcsize(code)))[0])

    tag = take(1)[0]
    if tag < 0x80 or tag >= 0xE0:
        return tag if tag < 0x80 else tag - 256
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
    if tag in NUMBERS:
        return number(NUMBERS[tag])
    if tag < 0xC0:
        kind: type = str if tag >= 0xA0 else list if tag >= 0x90 else dict
        size = tag & (31 if kind is str else 15)
    else:
        demand(tag in CONTAINERS, f"msgpack type {tag:#x} has no place in the format")
        kind, size = CONTAINERS[tag][0], number(CONTAINERS[tag][1])
    if kind in (bytes, str):
        return take(size) if kind is bytes else take(size).decode("utf-8", "surrogateescape")
    items = [unpack_value(source, depth + 1) for _ in range(size * (2 if kind is dict else 1))]
    if kind is list:
        return items
    pairs = dict(zip(items[::2], items[1::2]))  # noqa: B905 - `strict` needs Python 3.10; the count is even
    demand(len(pairs) == size, "msgpack map with a key twice")
    return pairs


def unpack(data: bytes) -> Fields:
    """Decode one msgpack map that fills ``data``."""
    source = io.BytesIO(data)
    value = unpack_value(source)
    demand(isinstance(value, dict) and source.tell() == len(data), "not one msgpack map")
    return dict(value)


def moment(text: str) -> datetime:
    """Parse a time of the format."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # noqa: FURB162 - Python 3.9 does not know Z


def lsn(text: str) -> int:
    """Parse a WAL position such as 16/B374D848."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def shown(path: bytes) -> str:
    """Make a path fit for a message."""
    return path.decode("utf-8", "backslashreplace")


@cache
def optional(name: str) -> Value:
    """Import a package that need not be there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def zstd_module(data: bytes, room: int) -> bytes:
    """Decompress with Python's own zstd or its backport."""
    decoder = (optional("compression.zstd") or optional("backports.zstd")).ZstdDecompressor()
    plain: bytes = decoder.decompress(data, max_length=room)
    demand(decoder.eof and not decoder.unused_data, "not one zstd frame of the promised length")
    return plain


def zstd_zstandard(data: bytes, room: int) -> bytes:
    """Decompress with the package zstandard."""
    source = optional("zstandard").ZstdDecompressor().stream_reader(io.BytesIO(data))
    plain: bytes = source.read(room)
    demand(not source.read(1), "longer than promised")
    return plain


def zstd_program(data: bytes, room: int) -> bytes:
    """Decompress with the program zstd."""
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        argv = [shutil.which("zstd") or "zstd", "-d", "-c", "-q"]
        with subprocess.Popen(argv, stdin=source, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            plain, more = process.stdout.read(room), process.stdout.read(1)
            process.kill()
    demand(not more, "longer than promised")
    return plain


@cache
def find_zstd() -> Callable[[bytes, int], bytes]:
    """Choose a zstd; each of them is given no more room than the authenticated length."""
    if optional("compression.zstd") or optional("backports.zstd"):
        return zstd_module
    if optional("zstandard"):
        return zstd_zstandard
    demand(shutil.which("zstd") is not None, "no zstd: install the program zstd or backports.zstd or zstandard")
    return zstd_program


def derive(data_key: bytes, salt: bytes, info: str) -> tuple[bytes, bytes]:
    """HKDF-SHA256 (RFC 5869) of 64 bytes: the AES key and the commitment (§3, §5)."""
    secret = hmac.digest(salt, data_key, "sha256")
    key = hmac.digest(secret, info.encode() + b"\1", "sha256")
    return key, hmac.digest(secret, key + info.encode() + b"\2", "sha256")


def open_record(key: bytes, kind: bytes, piece: Piece, stored: bytes) -> bytes:
    """Decrypt and decompress a record (§5): it must be this one, at this place, of this length."""
    about = b"drservice record v1" + kind + struct.pack(">IIB", piece.ordinal, piece.plain, piece.codec)
    try:
        plain = AESGCM(key).decrypt(piece.ordinal.to_bytes(12, "big"), stored, about + piece.id)
    except InvalidTag as error:
        raise Problem(f"record {piece.ordinal} is damaged or not the expected one") from error
    if piece.codec == 1:
        try:
            plain = find_zstd()(plain, piece.plain)
        except Exception as error:  # each of the zstd packages has its own exceptions
            raise Problem(f"record {piece.ordinal} does not decompress: {error}") from error
    demand(piece.codec in (0, 1) and len(plain) == piece.plain, f"record {piece.ordinal} has a wrong length")
    blake3 = optional("blake3") if kind in (b"d", b"n") else None
    demand(not blake3 or blake3.blake3(plain).digest() == piece.id, f"record {piece.ordinal}: wrong BLAKE3")
    return plain


# --- The repository: trust, envelopes, data keys ------------------------------------------------------------


class Repository:
    """A repository in a local folder, the signers that are believed and the identities that open it."""

    def __init__(self, folder: Path, trust: list[str], identities: list[str], age: str) -> None:
        self.folder, self.identities, self.age, self.lock = folder, identities, age, threading.Lock()
        self.unlocked: dict[str, bytes | None] = {}
        self.unlocking = threading.Lock()
        self.data_keys: dict[tuple[str, str], dict[str, bytes]] = {}
        with reading("drservice-repository.json"):
            fields = parse_json((folder / "drservice-repository.json").read_bytes())
            demand(fields["format"] == 1, "not format 1; use the restore.py that is stored beside it")
            demand(fields["features"]["read"] == [], f"needs features {fields['features']['read']}")
            self.id: str = fields["repository"]
            self.signers = self.believe(fields["signers"], trust)
            signature = fields.pop("signature")
            message = b"drservice repository v1\n" + canonical(fields)
            self.check_signature(signature["signer"], bytes.fromhex(signature["value"]), message, None)

    def believe(self, listed: list[Fields], trust: list[str]) -> dict[str, tuple[bytes, list[str]]]:
        """Return fingerprint -> (public key, services; none named means all)."""
        services = {one["key"]: list(one["services"]) for one in listed}
        if not trust:
            note("NO --trust GIVEN. Believing the signers that the repository names; COMPARE WITH YOUR ESCROW SHEET:")
        signers = {}
        for text in trust or services:
            demand(bool(re.fullmatch("ed25519:[0-9a-f]{64}", text)), f"{text!r} is not ed25519: and 64 hex digits")
            public = bytes.fromhex(text[8:])
            fingerprint = hashlib.sha256(public).hexdigest()[:16]
            signers[fingerprint] = (public, services.get(text, []))
            note(f"signer {fingerprint}  {text}  for {', '.join(services.get(text, [])) or 'all services'}")
        return signers

    def check_signature(self, signer: str, signature: bytes, message: bytes, service: str | None) -> None:
        """Refuse what is not signed by a key that is trusted for the service."""
        hint = "if your escrow sheet has this signer, add its key with --trust ed25519:HEX"
        demand(signer in self.signers, f"signed by {signer}, who is not trusted; {hint}")
        public, services = self.signers[signer]
        demand(not services or service in (None, *services), f"{signer} is not trusted for service {service}")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except InvalidSignature as error:
            raise Problem(f"the signature of {signer} does not match: it was changed after writing") from error

    def names(self, key: str, pattern: str = ".+") -> list[str]:
        """List a folder of the repository; what cannot belong there is told and ignored."""
        folder = self.folder / key
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        for name in found:
            if not re.fullmatch(pattern, name):
                note(f"ignored, not part of the format: {key}/{name}")
        return [name for name in found if re.fullmatch(pattern, name)]

    def envelope(self, key: str, kind: str, *, body: bool = True) -> tuple[Fields, bytes]:
        """Return the header of a signed object and, if asked, its body; both checked (§3)."""
        with reading(key), (self.folder / key).open("rb") as file:
            magic, length = struct.unpack(">4sI", file.read(8))
            demand(magic == b"DRS1" and length <= 1 << 20, "not an envelope")
            raw, signature = file.read(length), file.read(64)
            fields, parts = parse_json(raw), key.split("/")
            service = parts[1] if parts[0] in ("s", "keys") else None
            self.check_signature(fields["signer"], signature, b"drservice envelope v1\n" + raw, service)
            for name, expected in (("repository", self.id), ("type", kind), ("key", key)):
                demand(fields[name] == expected, f"belongs elsewhere: its {name} is {fields[name]!r}")
            if not body:
                return fields, b""
            content = file.read()
            demand(len(content) == fields["body_bytes"], "the body is cut short or too long")
            demand(hashlib.sha256(content).hexdigest() == fields["body_sha256"], "the body is damaged")
            return fields, content

    def unwrap(self, wrapped: bytes) -> bytes:
        """Let the program age open a wrapped data key."""
        demand(bool(self.identities), "this needs --identity FILE, the age identity from your escrow")
        demand(shutil.which(self.age) is not None, f"the program {self.age} is not installed")
        argv, pipes = [self.age, "--decrypt"], []
        for path in self.identities:
            secret = self.unlock(path)
            if secret is not None:
                reader, writer = os.pipe()
                pipes.append(reader)
                with os.fdopen(writer, "wb") as file:
                    file.write(secret)
            argv += ["-i", path if secret is None else f"/dev/fd/{pipes[-1]}"]
        try:
            result = subprocess.run(argv, input=wrapped, capture_output=True, check=False, pass_fds=pipes)
        finally:
            for reader in pipes:
                os.close(reader)
        told = result.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        demand(result.returncode == 0, f"the identity does not open the data key ({told})")
        demand(len(result.stdout) == 32, "holds no data key")
        return result.stdout

    def unlock(self, path: str) -> bytes | None:
        """Return what is inside an identity file made with `age -p`, asked for once; None for any other identity."""
        with self.unlocking:
            if path not in self.unlocked:
                with reading(path):
                    begin = Path(path).read_bytes()[:64]
                locked = begin.startswith((b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----"))
                if locked:
                    result = subprocess.run([self.age, "--decrypt", path], stdout=subprocess.PIPE, check=False)
                    demand(result.returncode == 0, f"{path} was not opened: wrong passphrase, or no terminal to ask on")
                    demand(len(result.stdout) <= 1 << 15, f"{path} holds more than identities")
                self.unlocked[path] = result.stdout if locked else None
            return self.unlocked[path]

    def opened(self, service: str, key_id: str, reasons: list[str]) -> Iterator[bytes]:
        """Yield each different key that the wrappings of a data key hold (§4), those opened before first."""
        folder = f"keys/{service}/{key_id}"
        demand(bool(re.fullmatch(ULID, key_id)), f"{key_id!r} is not the id of a data key")
        known = self.data_keys.setdefault((service, key_id), {})
        told: set[bytes] = set()

        def known_first() -> Iterator[str]:
            yield from list(known)
            yield from self.names(folder, ULID + r"\.age")

        for name in known_first():
            with self.lock:
                try:
                    if name not in known:
                        fields, body = self.envelope(f"{folder}/{name}", "key")
                        with reading(f"{folder}/{name}"):
                            demand((fields["key_id"], fields["service"]) == (key_id, service), "wraps another key")
                            known[name] = self.unwrap(body)
                except Problem as problem:
                    reasons.append(str(problem))
                    continue
            if known[name] not in told:
                told.add(known[name])
                yield known[name]

    def with_key(self, service: str, key_id: str, use: Callable[[bytes], Value]) -> Value:
        """Return what `use` makes of a data key: a wrapping may hold a false one, and only what was sealed shows it."""
        folder, refused = f"keys/{service}/{key_id}", ""
        reasons: list[str] = []
        for data_key in self.opened(service, key_id, reasons):
            try:
                return use(data_key)
            except OtherKey as problem:
                refused = refused or str(problem)
        if refused:
            reasons.insert(0, f"{refused}; what the wrappings in {folder} hold is false, or this was moved here")
        raise Problem("; ".join(reasons) or f"{folder}: missing")


# --- One component: packs, tree, snapshots, WAL -------------------------------------------------------------


class Component:
    """What the repository holds of one component of a service."""

    def __init__(self, repository: Repository, service: str, name: str) -> None:
        self.repository, self.service, self.name = repository, service, name
        self.prefix, self.lock = f"s/{service}/{name}", threading.Lock()
        self.pack_keys: dict[tuple[bytes, bytes], bytes] = {}
        self.footer = lru_cache(maxsize=256)(self.read_footer)

    def unseal(self, data_key: bytes, context: str, body: bytes) -> bytes:
        """Decrypt a sealed body (§3)."""
        info = f"drservice sealed v1|{self.repository.id}|{self.service}|{self.name}|{context}"
        key, commitment = derive(data_key, body[:32], info)
        if not hmac.compare_digest(commitment, body[32:64]):
            raise OtherKey("not sealed for this place with this data key")
        parts: list[bytes] = []
        at = 64
        while at < len(body):
            codec, plain, stored = struct.unpack(">BII", body[at : at + 9])
            at += 9 + stored
            demand(plain <= LARGEST_FRAME and at <= len(body), "impossible length of a frame")
            piece = Piece(ZERO_ID, b"", len(parts), at - stored, stored, plain, codec)
            parts.append(open_record(key, b"s", piece, body[at - stored : at]))
        return b"".join(parts)

    def unseal_with(self, key_id: str, context: str, body: bytes) -> bytes:
        """Decrypt a body that was sealed with a data key of the service."""
        plain: bytes = self.repository.with_key(self.service, key_id, lambda key: self.unseal(key, context, body))
        return plain

    def pack_path(self, kind: bytes, pack: bytes) -> str:
        """Return the key of a pack in the repository (§1)."""
        return f"{self.prefix}/{'packs' if kind == b'd' else 'nodes'}/{pack.hex()[:2]}/{pack.hex()}"

    def pack_key(self, kind: bytes, pack: bytes) -> bytes:
        """Return the AES key of a pack (§5); at its first use the whole pack must match its name."""
        with self.lock, reading(self.pack_path(kind, pack)):
            if (kind, pack) not in self.pack_keys:
                data = (self.repository.folder / self.pack_path(kind, pack)).read_bytes()
                demand(hashlib.sha256(data).digest() == pack, "damaged: its SHA-256 is not its name")
                magics = data[:8] == b"DRSPACK1" and data[-8:] == b"DRSPEND1" and len(data) >= 140
                demand(magics and data[34:40] == kind + bytes(5), "not a pack of the expected kind")
                place = f"{self.repository.id}|{self.service}|{self.name}|{'data' if kind == b'd' else 'nodes'}"

                def fitting(data_key: bytes) -> bytes:
                    key, commitment = derive(data_key, data[40:72], f"drservice pack v1|{place}")
                    if not hmac.compare_digest(commitment, data[72:104]):
                        raise OtherKey("not sealed for this component with this data key")
                    return key

                key_id = data[8:34].decode("ascii")
                self.pack_keys[kind, pack] = self.repository.with_key(self.service, key_id, fitting)
            return self.pack_keys[kind, pack]

    def record(self, kind: bytes, piece: Piece) -> bytes:
        """Return the plain bytes of a chunk or node."""
        key, where = self.pack_key(kind, piece.pack), self.pack_path(kind, piece.pack)
        with reading(where), (self.repository.folder / where).open("rb") as file:
            file.seek(piece.offset)
            return open_record(key, kind, piece, file.read(piece.stored))

    def read_footer(self, kind: bytes, pack: bytes) -> list[Piece]:
        """Return the table of a pack's records, which must fill it without gaps (§5)."""
        key, where = self.pack_key(kind, pack), self.pack_path(kind, pack)
        with reading(where):
            data = (self.repository.folder / where).read_bytes()
            stored, plain, count = struct.unpack(">III", data[-20:-8])
            at, begin = 104, len(data) - 20 - stored
            demand(plain == count * 45 and begin >= at, "impossible footer")
            footer = Piece(ZERO_ID, pack, count, begin, stored, plain, 1)
            table = open_record(key, b"f", footer, data[begin:-20])
            pieces: list[Piece] = []
            for chunk, offset, length, size, codec in struct.iter_unpack(">32sIIIB", table):
                demand(offset == at, f"record {len(pieces)} is not where the one before it ends")
                pieces.append(Piece(chunk, pack, len(pieces), offset, length, size, codec))
                at += length
            demand(at == begin, "bytes between the records and the footer")
            return pieces

    def node(self, piece: Piece, *kinds: str) -> Fields:
        """Read a node of the tree (§6)."""
        with reading(f"tree node in {piece.pack.hex()}"):
            demand(piece.plain <= LARGEST_NODE, "impossible length")
            fields = unpack(self.record(b"n", piece))
            demand(fields["v"] == 1 and fields["kind"] in kinds, f"not a node of kind {' or '.join(kinds)}")
            return fields

    def entries(self, root: Piece, depth: int = 0) -> Iterator[Fields]:
        """Walk the tree below a node, in order."""
        demand(depth <= 16, "the tree is deeper than any tree can be")
        fields = self.node(root, "entries", "refs")
        if fields["kind"] == "entries":
            yield from fields["entries"]
        else:
            for _, where in fields["refs"]:
                yield from self.entries(Piece(*where), depth + 1)

    def pieces(self, entry: Fields) -> Iterator[Piece]:
        """Yield the chunks of a file in order; their lengths must add up to its size."""
        nodes = (self.node(Piece(*where), "chunks") for where in entry.get("n", ()))
        tables = ((node["packs"], node["chunks"]) for node in nodes)
        total, end = 0, entry["z"]
        for packs, table in tables if "n" in entry else [(entry["k"], entry["c"])]:
            for chunk, index, ordinal, offset, stored, plain, codec in struct.iter_unpack(">32sIIIIIB", table):
                total += plain
                fits = 0 < plain <= entry["s"] and total <= end and (plain == entry["s"] or total == end)
                demand(fits, "the chunks do not add up to the file")
                if codec == 255:
                    demand(chunk == ZERO_ID and not (index or ordinal or offset or stored), "odd chunk of zeros")
                yield Piece(chunk, b"" if codec == 255 else packs[index], ordinal, offset, stored, plain, codec)
        demand(total == end, "the chunks do not add up to the file")

    def snapshot(self, name: str) -> Snapshot:
        """Read a snapshot object (§7)."""
        key = f"{self.prefix}/snapshots/{name}"
        fields, body = self.repository.envelope(key, "snapshot")
        with reading(key):
            own = (fields["id"], fields["service"], fields["component"])
            demand(own == (name, self.service, self.name), "describes another snapshot")
            demand(fields["kind"] in KINDS, f"this script does not know kind {fields['kind']}")
            times = [moment(fields[each]) for each in ("started_at", "stopped_at", "checked_at")]
            if fields["kind"] == "postgres":
                about = fields["postgres"]
                numbers = [lsn(about["start_lsn"]), lsn(about["stop_lsn"]), about["segment_bytes"], about["timeline"]]
            else:
                numbers = [fields["documents"][each] for each in ("missing", "corrupt", "unreadable")]
            demand(("postgres" in fields) != ("documents" in fields), "facts of two kinds")
            demand(len(times) == 3 and all(type(number) is int for number in numbers), "odd fields")
            return Snapshot(name, key, fields, body)

    def snapshots(self) -> Iterator[Snapshot | Problem]:
        """Yield every snapshot, and the problem in place of one that is damaged."""
        for name in self.repository.names(f"{self.prefix}/snapshots", ULID):
            try:
                yield self.snapshot(name)
            except Problem as problem:
                yield problem

    def is_void(self, snapshot: Snapshot) -> bool:
        """Tell whether the object is over 12 hours younger than its last check (§7), by the file's time."""
        written = (self.repository.folder / snapshot.key).stat().st_mtime
        return written > (moment(snapshot.header["checked_at"]) + timedelta(hours=12)).timestamp()

    def choose(self, wanted: str) -> Snapshot:
        """Return the snapshot with this id, or the latest that is not void; what is damaged is never skipped."""
        if wanted != "latest":
            return self.snapshot(wanted)
        found = list(self.snapshots())
        damaged = [str(one) for one in found if isinstance(one, Problem)]
        demand(not damaged, "; ".join(damaged) + "; `list` shows the others: name one with --snapshot")
        whole = [one for one in found if isinstance(one, Snapshot) and not self.is_void(one)]
        hint = "is there none, or did the files lose their times in copying? `list`, then --snapshot ID"
        demand(bool(whole), f"{self.prefix}: no snapshot that counts ({hint})")
        return max(whole, key=lambda one: (moment(one.header["stopped_at"]), one.id))

    def contents(self, snapshot: Snapshot) -> tuple[Fields, dict[tuple[bytes, bytes], int]]:
        """Return the secret part of a snapshot and the stored bytes of each pack it needs."""
        with reading(snapshot.key):
            length = 4 + int.from_bytes(snapshot.body[:4], "big")
            tables = parse_json(snapshot.body[4:length])
            packs = {(b"d", bytes.fromhex(row[0])): row[1] for row in tables["packs"]}
            packs.update({(b"n", bytes.fromhex(row[0])): row[1] for row in tables["node_packs"]})
            key_id, sealed = snapshot.header["sealed_key_id"], snapshot.body[length:]
            return unpack(self.unseal_with(key_id, f"snapshot/{snapshot.id}", sealed)), packs

    def require(self, packs: dict[tuple[bytes, bytes], int]) -> None:
        """Refuse at once, by name, if packs are missing or not as long as the snapshot says."""
        lost = []
        for pack, size in packs.items():
            path = self.repository.folder / self.pack_path(*pack)
            if not path.is_file() or path.stat().st_size != size:
                lost.append(self.pack_path(*pack))
        demand(not lost, f"{len(lost)} packs are missing or cut short: {', '.join(lost[:50])}")

    def wal_files(self, system_id: str) -> dict[str, list[str]]:
        """Return name -> keys of the objects that may hold it, in the order they are read in (§8)."""
        found: dict[str, list[str]] = {}
        folder = f"{self.prefix}/wal/{system_id}"
        for timeline in self.repository.names(folder, "[0-9A-F]{8}"):
            for name in self.repository.names(f"{folder}/{timeline}", WAL_NAME):
                plain = name[:-28] if re.search(r"\.r[0-9A-Z]{26}$", name) else name
                at = (
                    0 if plain.endswith(".partial") else len(found.get(plain, []))
                )  # its last copy was written furthest
                found.setdefault(plain, []).insert(at, f"{folder}/{timeline}/{name}")
        return found

    def wal(self, keys: list[str], *, body: bool = True) -> tuple[Fields, bytes]:
        """Return header and content of a WAL file from the first object that passes all checks."""
        reasons = []
        for key in keys:
            try:
                fields, sealed = self.repository.envelope(key, "wal", body=body)
                with reading(key):
                    system_id, timeline, name = key.split("/")[4:]
                    demand(fields["name"] in (name, name[:-28]), f"is the WAL file {fields['name']}")
                    demand(str(fields["system_id"]) == system_id, "belongs to another cluster")
                    if not body:
                        return fields, b""
                    context = f"wal/{system_id}/{timeline}/{fields['name']}"
                    if "wrapped_key" in fields:
                        data_key = self.repository.unwrap(base64.b64decode(fields["wrapped_key"], validate=True))
                        plain = self.unseal(data_key, context, sealed)
                    else:
                        plain = self.unseal_with(fields["key_id"], context, sealed)
                    demand(len(plain) == fields["plain_bytes"], "has a wrong length")
                    demand(hashlib.sha256(plain).hexdigest() == fields["plain_sha256"], "has a wrong SHA-256")
                    return fields, plain
            except Problem as problem:
                note(f"WARNING {problem}")
                reasons.append(str(problem))
        raise Problem("; ".join(reasons))

    def tail_keys(self, system_id: str, timeline: str) -> list[tuple[int, int, str]]:
        """Return begin, end and key of the pieces of WAL of a timeline, in order (§13)."""
        folder = f"{self.prefix}/tail/{system_id}/{timeline}"
        found = [(re.fullmatch(TAIL_NAME, name), name) for name in self.repository.names(folder, TAIL_NAME)]
        return sorted((int(one[1], 16), int(one[2], 16), f"{folder}/{name}") for one, name in found if one)

    def all_tails(self) -> Iterator[tuple[str, str, list[tuple[int, int, str]]]]:
        """Yield cluster, timeline and pieces wherever there are any."""
        for system_id in self.repository.names(f"{self.prefix}/tail"):
            for timeline in self.repository.names(f"{self.prefix}/tail/{system_id}", "[0-9A-F]{8}"):
                if pieces := self.tail_keys(system_id, timeline):
                    yield system_id, timeline, pieces

    def tail_piece(self, key: str) -> bytes:
        """Return the bytes of a piece of WAL."""
        fields, sealed = self.repository.envelope(key, "tail")
        with reading(key):
            system_id, timeline, name = key.split("/")[4:]
            begin, end, size = lsn(fields["start_lsn"]), lsn(fields["end_lsn"]), fields["segment_bytes"]
            own = (str(fields["system_id"]), f"{fields['timeline']:08X}", f"{begin:016X}-{end:016X}-{fields['writer']}")
            demand(own == (system_id, timeline, name), "describes another piece")
            demand(begin < end and begin // size == (end - 1) // size, "crosses the boundary of a segment")
            plain = self.unseal_with(fields["key_id"], f"tail/{system_id}/{timeline}/{name}", sealed)
            demand(len(plain) == end - begin, "has a wrong length")
            demand(hashlib.sha256(plain).hexdigest() == fields["plain_sha256"], "has a wrong SHA-256")
            return plain

    def assemble(self, name: str, begin: int, size: int, pieces: list[tuple[int, int, str]]) -> Tail:
        """Put a segment together from its pieces, as far as they follow each other and agree (§13)."""
        content, end, problem, spoilt = bytearray(size), begin, "", [(0, "")]
        for start, stop, key in pieces:
            if start > end or (problem and start >= end):
                problem = problem or f"what lies behind {position(end)} is missing, and {position(start)} is there"
                break
            try:
                plain = self.tail_piece(key)
            except Problem as found:
                note(f"WARNING {found}")
                spoilt.append((stop, str(found)))
                continue
            known = bytes(content[start - begin : min(end, stop) - begin])
            if known != plain[: len(known)]:
                end = start + next(at for at in range(len(known)) if known[at] != plain[at])
                problem = f"two pieces say different things about {position(end)}; {key} is one of them"
            elif not problem and stop > end:
                content[start - begin : stop - begin] = plain
                end = stop
        furthest, reason = max(spoilt)
        problem = reason if furthest > end and "different" not in problem else problem
        content[end - begin :] = bytes(size - (end - begin))
        return Tail(name, bytes(content), end, end - begin == size, problem)

    def document_sets(self) -> list[str]:
        """Return the names of the sets of documents (§15), the oldest first."""
        return self.repository.names(f"{self.prefix}/documents", ULID)

    def documents(self, name: str) -> list[tuple[bytes, int, int, bytes]]:
        """Return what is in a set of documents: path, size of the whole document, where these bytes begin, bytes."""
        key = f"{self.prefix}/documents/{name}"
        fields, body = self.repository.envelope(key, "documents")
        found = []
        with reading(key):
            begin, at = 4 + int.from_bytes(body[:4], "big"), 0
            index = unpack(self.unseal_with(fields["key_id"], f"documents/{name}/index", body[4:begin]))
            plain = self.unseal_with(fields["key_id"], f"documents/{name}", body[begin:])
            rows = index["documents"]
            demand(index["v"] == 1 and fields["id"] == name, "is no set of documents that this script knows")
            demand(len(rows) == fields["documents"], "the index is not that of its header")
            demand(sum(row[3] for row in rows) == fields["plain_bytes"] == len(plain), "the contents are not as long")
            for path, size, offset, length in rows:
                folder, _, digits = path.partition(b"/")
                named = re.fullmatch(rb"[0-9a-f]{2,3}/[0-9a-f]{40}", path) and digits.startswith(folder)
                demand(bool(named), f"{shown(path)} is no document")
                cut = size > PART and offset % PART == 0 and 0 <= offset < size
                right = min(PART, size - offset) if cut else size
                demand(length == right and (cut or offset == 0), f"{shown(path)}: an impossible part")
                data, at = plain[at : at + length], at + length
                demand(length != size or sha1_is(path, data), f"{shown(path)}: the content is not what its name says")
                found.append((path, size, offset, data))
        return found

    def tails(self, system_id: str, size: int, files: Iterable[str], since: str, first: int) -> Iterator[Tail]:
        """Yield the segments from `first` on that are in pieces only, timeline by timeline; the last may be unfinished.

        Only the last of a timeline may: one in the middle that is not whole is a gap.
        """
        for timeline in self.repository.names(f"{self.prefix}/tail/{system_id}", "[0-9A-F]{8}"):
            if timeline < since:
                continue
            stored = [number for run in runs(files, size).get(timeline, []) for number in range(run[0], run[1] + 1)]
            mine: dict[int, list[tuple[int, int, str]]] = {}
            for one in self.tail_keys(system_id, timeline):
                if one[0] // size == (one[1] - 1) // size >= first and one[0] // size not in stored:
                    mine.setdefault(one[0] // size, []).append(one)
            for number, pieces in mine.items():
                name = segment_name(timeline, number, size)
                found = self.assemble(name, number * size, size, pieces)
                is_last = number == max([*stored, *mine])
                if found.whole or (is_last and f"{name}.partial" not in files):
                    yield found


def position(value: int) -> str:
    """Return a WAL position as PostgreSQL writes it."""
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


def runs(names: Iterable[str], segment_bytes: int) -> dict[str, list[list[int]]]:
    """Return timeline -> [first, last] numbers of segments that follow each other; between two runs is a gap."""
    found: dict[str, list[list[int]]] = {}
    for name in sorted(names):
        if len(name) == 24:
            number = int(name[8:16], 16) * ((1 << 32) // segment_bytes) + int(name[16:], 16)
            timeline = found.setdefault(name[:8], [])
            if timeline and timeline[-1][1] == number - 1:
                timeline[-1][1] = number
            else:
                timeline.append([number, number])
    return found


def segment_name(timeline: str, number: int, segment_bytes: int) -> str:
    """Return the name of a WAL segment."""
    high, low = divmod(number, (1 << 32) // segment_bytes)
    return f"{timeline}{high:08X}{low:08X}"


# --- Restoring ----------------------------------------------------------------------------------------------


def check_entry(entry: Fields, before: bytes, folders: set[bytes], reserved: tuple[bytes, ...]) -> None:
    """Refuse an entry that could write outside the target or over another one."""
    path, kind = entry["p"], entry["t"]
    demand(not {b"", b".", b".."} & set(path.split(b"/")) and b"\0" not in path, "a path that leaves the target")
    demand(path > before, "paths are repeated or not in order")
    demand(posixpath.dirname(path) in folders, "does not lie in a folder of the snapshot")
    demand(path not in reserved, "reserved name")
    demand(kind in ("d", "f", "l"), f"unknown type {kind!r}")
    demand(kind == "l" or 0 <= entry["m"] <= 0o7777, "impossible mode")
    demand(kind != "l" or isinstance(entry["l"], bytes), "impossible link")


def stays_inside(link: Fields) -> bool:
    """Tell whether a link points to a place below the target folder."""
    target, folder = link["l"], posixpath.dirname(link["p"])
    ends = posixpath.normpath(posixpath.join(folder, target)).split(b"/")[0]
    return bool(target) and b"\0" not in target and not posixpath.isabs(target) and ends != b".."


def read_tree(component: Component, root: Piece, kind: str) -> list[Fields]:
    """Return all entries of a snapshot; every path is checked before anything is written."""
    reserved = (MARKER.encode(), *((WITHHELD, b"backup_label", b"tablespace_map") if kind == "postgres" else ()))
    entries: list[Fields] = []
    folders = {b""}
    before = b""
    for entry in component.entries(root):
        with reading(shown(entry["p"])):
            check_entry(entry, before, folders, reserved)
            before = entry["p"]
            if entry["t"] == "d":
                folders.add(before)
            entries.append(entry)
    return entries


@contextmanager
def new_file(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Create a file that is not there, following no link; it is durable when the block ends."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def in_threads(what: str, work: Callable[[Value], None], items: list[Value]) -> None:
    """Do the work for every item in a few threads; the first failure stops the rest and is raised."""
    told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for done, future in enumerate(futures, 1):
                future.result()
                if done == len(futures) or time.monotonic() - told >= 5:
                    told = time.monotonic()
                    note(f"{what}: {done} of {len(futures)}")
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def make_folders(folders: list[Fields], into: Path, moved: dict[bytes, Path]) -> None:
    """Make the folders of a snapshot, and for each moved tablespace a link: what follows is written through it."""
    for entry in folders:
        path = into / os.fsdecode(entry["p"])
        if entry["p"] in moved:
            path.symlink_to(moved[entry["p"]])
        else:
            path.mkdir(mode=0o700)


def place_tree(component: Component, entries: list[Fields], into: Path, kind: str, moved: dict[bytes, Path]) -> int:
    """Write folders, files and links, pg_control under another name; return how many links were left out."""
    folders, files, links = ([entry for entry in entries if entry["t"] == letter] for letter in "dfl")

    def place(entry: Fields) -> None:
        path = into / os.fsdecode(WITHHELD if entry["p"] == CONTROL and kind == "postgres" else entry["p"])
        sha1 = hashlib.sha1(usedforsecurity=False)
        with reading(shown(entry["p"])), new_file(path, entry["m"] & 0o777) as file:
            at = 0
            for piece in component.pieces(entry):
                plain = bytes(piece.plain) if piece.codec == 255 else component.record(b"d", piece)
                if piece.codec != 255:
                    file.seek(at)
                    file.write(plain)
                if kind == "odoo-filestore":
                    sha1.update(plain)
                at += piece.plain
            file.truncate(entry["z"])
            if kind == "odoo-filestore":
                named = bytes.fromhex(posixpath.basename(entry["p"]).decode("ascii"))
                demand(sha1.digest() == entry.get("h", named), "the content does not have the SHA-1 it should have")

    make_folders(folders, into, moved)
    in_threads("files", place, files)
    for entry in links:
        if stays_inside(entry):
            (into / os.fsdecode(entry["p"])).symlink_to(os.fsdecode(entry["l"]))
        else:
            note(f"LEFT OUT: the link {shown(entry['p'])} -> {shown(entry['l'])}, which leaves the target")
    for entry in reversed(folders):
        sync_folder(into / os.fsdecode(entry["p"]))
        (into / os.fsdecode(entry["p"])).chmod(entry["m"] & 0o777)
    return sum(not stays_inside(entry) for entry in links)


def sha1_is(path: bytes, data: bytes) -> bool:
    """Tell whether content has the SHA-1 that a document's name says."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest() == posixpath.basename(path).decode("ascii")


def finish_document(path: bytes, into: Path) -> bool:
    """Give a document that was put together its name if its content has the SHA-1 of that; else remove it."""
    whole, sha1 = into / os.fsdecode(path), hashlib.sha1(usedforsecurity=False)
    partial = whole.with_name(f"{whole.name}.unfinished")
    with partial.open("rb") as file:
        for data in iter(lambda: file.read(1 << 20), b""):
            sha1.update(data)
        os.fsync(file.fileno())
    if sha1.hexdigest() != whole.name:
        partial.unlink()
        return False
    partial.chmod(0o644)
    partial.replace(whole)  # what was there was damaged on the server already
    return True


def place_sets(component: Component, entries: list[Fields], into: Path) -> int:
    """Write every document that the sets have and the snapshot has not; return how many sets and documents are lost."""
    known = {entry["p"] for entry in entries if entry["t"] == "f" and not entry.get("h")}
    parts: dict[bytes, set[int]] = {}
    names, before = component.document_sets(), len(known)
    lost = 0
    for name in names:
        try:
            found = component.documents(name)
        except Problem as problem:
            say(f"ATTENTION: a set of documents is lost: {problem}")
            lost += 1
            continue
        for path, size, offset, data in found:
            if path in known:
                continue
            partial = into / f"{os.fsdecode(path)}.unfinished"
            partial.parent.mkdir(mode=0o755, exist_ok=True)
            with partial.open("r+b" if path in parts else "xb") as file:
                file.seek(offset)
                file.write(data)
            parts.setdefault(path, set()).add(offset)
            if parts[path] >= set(range(0, size, PART)):
                del parts[path]
                if finish_document(path, into):
                    known.add(path)
    for path in parts:
        (into / f"{os.fsdecode(path)}.unfinished").unlink()
        say(f"ATTENTION: parts of {shown(path)} are in no set that can be read")
    if len(known) > before:
        say(f"{len(known) - before} documents are from {len(names)} sets beside the snapshot")
    return lost + len(parts)


def locations(attachments: Fields) -> dict[bytes, bytes]:
    """Return path in the snapshot -> folder on the server of the tablespaces that tablespace_map names (§7)."""
    lines = re.findall(rb"([0-9]+) ((?:\\[\n\r\\]|[^\n])+)\n", attachments.get("tablespace_map") or b"")
    return {b"pg_tblspc/" + oid: re.sub(rb"\\([\n\r\\])", rb"\1", place) for oid, place in lines if place[:1] == b"/"}


def tablespaces(entries: list[Fields]) -> list[bytes]:
    """Return the paths of the extra tablespaces in a snapshot."""
    return [entry["p"] for entry in entries if entry["t"] == "d" and re.fullmatch(rb"pg_tblspc/[0-9]+", entry["p"])]


def choose_folders(asked: list[str], entries: list[Fields], attachments: Fields, into: Path) -> dict[bytes, Path]:
    """Return path in the snapshot -> folder for each --tablespace OLD=NEW; the folders are made."""
    known, moved = locations(attachments), dict[bytes, Path]()
    for text in asked:
        old, _, new = text.partition("=")
        found = [
            path
            for path in tablespaces(entries)
            if old in (shown(path)[10:], os.fsdecode(known.get(path, b"-"))) and path not in moved
        ]
        demand(len(found) == 1, f"--tablespace {text}: the snapshot has no (other) tablespace {old}")
        demand(posixpath.isabs(new), f"--tablespace {text}: NEW must be an absolute path")
        folder = Path(new).resolve()
        inside = any(
            posixpath.commonpath([str(folder), str(other)]) in (str(folder), str(other))
            for other in (into.resolve(), *moved.values())
        )
        demand(not inside, f"{folder} lies in another folder of this restore, or that one in it")
        empty_folder(folder)
        demand(not any(folder.iterdir()), f"{folder} is not empty; nothing was written")
        moved[found[0]] = folder
    return moved


def place_label(attachments: Fields, into: Path) -> None:
    """Write the file without which a cluster must not start; tablespace_map would bring links to the old places."""
    with new_file(into / "backup_label") as file:
        file.write(attachments["backup_label"])


def place_configuration(attachments: Fields, snapshot: Snapshot, into: Path) -> None:
    """Write configuration that lay outside the data folder to where no server reads it, and say what is there (§7)."""
    if "configuration" not in attachments:
        return
    with reading("the configuration of the origin"):
        fields = unpack(attachments["configuration"])
        demand(fields["v"] == 1, f"has version {fields['v']}")
        base = into / "configuration"
        base = into / f"configuration-{snapshot.id}" if os.path.lexists(base) else base
        base.mkdir(mode=0o700)
        for item in fields["files"]:
            path = os.fsdecode(item["p"])
            plain = path[:1] == "/" and path[1:2] not in ("", "/") and posixpath.normpath(path) == path
            demand(plain and "\0" not in path, f"has a path that is none: {shown(item['p'])}")
            place = base / path[1:]
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new_file(place) as file:
                file.write(item["c"])
            say(f"Configuration: {shown(item['p'])} ({item['r']}, mode {item['m']:04o}) is in {base}")
        for path, reason in fields["missing"] + fields["left_out"]:
            say(f"Configuration NOT in the snapshot: {shown(path)} ({reason})")


def place_tails(tails: Iterable[Tail], into: Path) -> Iterator[tuple[str, int]]:
    """Write segments that were put together from pieces, say so, and yield their names and ends."""
    for tail in tails:
        if tail.problem:
            say(f"ATTENTION: the WAL in {tail.name} ends at {position(tail.end)}: {tail.problem}")
        if tail.whole or tail.end % len(tail.content):
            with new_file(into / tail.name) as file:
                file.write(tail.content)
            say(f"{tail.name} was put together from pieces, up to {position(tail.end)}")
            yield tail.name, tail.end


def place_partials(names: list[str], size: int, into: Path) -> None:
    """Give the unfinished last segment of a timeline the name PostgreSQL asks for, and say so (§8)."""
    whole = runs(names, size)
    for name in names:
        number = int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:24], 16) if name.endswith(".partial") else -1
        if number > whole.get(name[:8], [[0, -1]])[-1][1]:
            (into / name).rename(into / name[:24])
            say(f"{name[:24]} is the last segment of its timeline, as far as it was written (it was stored as {name})")


def complete_copies(ends: dict[str, int], size: int, into: Path) -> None:
    """Give a timeline's first segment what it begins with: the parent's bytes up to the switch, as far as they lack.

    PostgreSQL takes the newest timeline's file. One that ends before the switch would hide what the parent has; without
    one it would read on in the parent's, behind the switch, the history that was left.
    """
    for history in sorted(into.glob("*.history")):
        rows = [row.split() for row in history.read_text().splitlines() if row[:1].isdigit()]
        switch = lsn(rows[-1][1]) if rows else 0
        begin = switch - switch % size
        name = segment_name(history.name[:8], begin // size, size)
        parent = f"{int(rows[-1][0]):08X}{name[8:]}" if rows else ""
        end = ends.get(name, switch if (into / name).exists() else begin)
        has_parent = bool(parent) and (into / parent).exists()
        if end >= switch or (end == begin and not has_parent):
            continue
        reach = min(switch, ends.get(parent, switch)) if has_parent else end
        if reach > end:
            content = (into / parent).read_bytes()[: reach - begin]
            own = (into / name).read_bytes()[: end - begin] if end > begin else b""
            demand(content.startswith(own), f"{name} does not begin with a copy of {parent}")
            (into / name).unlink(missing_ok=True)
            with new_file(into / name) as file:
                file.write(content + bytes(size - len(content)))
            say(f"{name} goes on up to {position(reach)} with the WAL of {parent}, which it begins with a copy of")
            ends[name] = reach
        if reach < switch:
            lost = f"{position(max(reach, end))} to {position(switch)}"
            say(f"ATTENTION: WAL is missing from {lost}, where {name[:8]} begins")


def lost_before(line: str, history: str, found: dict[str, list[list[int]]], size: int, first: int) -> Iterator[str]:
    """Yield what is missing of the timelines a history leads through, before it leaves them (whole segments only)."""
    begin = first
    for text in history.splitlines():
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        parent, switch = text.split()[:2]
        end, name = lsn(switch) // size, f"{int(parent):08X}"
        for start, last in [*found.get(name, []), [end, end]]:
            if begin < min(start, end):
                left = segment_name(name, min(start, end) - 1, size)
                yield f"{segment_name(name, begin, size)} to {left}, which {line} needs"
            begin = max(begin, min(last + 1, end))
        begin = max(begin, end)


def place_wal(component: Component, snapshot: Snapshot, into: Path) -> None:
    """Write all WAL from the snapshot's start on, of all timelines, and refuse gaps by name."""
    about = snapshot.header["postgres"]
    size, timeline = about["segment_bytes"], f"{about['timeline']:08X}"
    first, last = lsn(about["start_lsn"]) // size, (lsn(about["stop_lsn"]) - 1) // size
    floor = segment_name("", first, size)
    files = component.wal_files(str(about["system_id"]))
    wanted = {
        name: keys for name, keys in files.items() if len(name) < 24 or (name[:8] >= timeline and name[8:24] >= floor)
    }

    def place(name: str) -> None:
        content = component.wal(wanted[name])[1]
        with new_file(into / name) as file:
            file.write(content)

    in_threads("WAL files", place, list(wanted))
    tails = component.tails(str(about["system_id"]), size, files, timeline, first)
    ends = dict(place_tails(tails, into))
    wanted.update({name: [] for name in ends})
    place_partials(list(wanted), size, into)
    with reading("the histories"):
        complete_copies(ends, size, into)
    sync_folder(into)
    found = runs(wanted, size)
    missing = []
    for line, parts in found.items():
        begin = first
        if line > timeline and f"{line}.history" not in wanted:
            missing.append(f"{line}.history")
        elif line > timeline:
            with reading(f"{line}.history"):
                text = (into / f"{line}.history").read_text()
                missing.extend(lost_before(line, text, found, size, first))
                begin = max(first, lsn([row.split()[1] for row in text.splitlines() if row[:1].isdigit()][-1]) // size)
        if parts[0][0] > begin:
            missing.append(f"{segment_name(line, begin, size)} to {segment_name(line, parts[0][0] - 1, size)}")
        for (_, end), (start, _) in zip(parts, parts[1:]):  # noqa: B905, RUF007 - Python 3.9 has neither
            missing.append(f"{segment_name(line, end + 1, size)} to {segment_name(line, start - 1, size)}")
    if found.get(timeline, [[0, -1]])[0][1] < last:
        missing.append(
            f"{segment_name(timeline, first, size)} to {segment_name(timeline, last, size)}, all of which it needs"
        )
    demand(not missing, f"missing: {', '.join(missing)}. What there is was written; see RESTORE.md")


def empty_folder(path: Path) -> None:
    """Make the target, or accept one that is empty or holds nothing but our own marker."""
    path.mkdir(mode=0o700, exist_ok=True)
    demand({one.name for one in path.iterdir()} <= {MARKER}, f"{path} is not empty; nothing was written")


def restore(component: Component, arguments: argparse.Namespace) -> int:
    """Restore the files of a snapshot and, if asked, the WAL that follows it."""
    snapshot, into, wal_into = component.choose(arguments.snapshot), arguments.into, arguments.wal_into
    kind = snapshot.header["kind"]
    demand(kind == "postgres" or not wal_into, f"{component.prefix} is a folder of files and has no WAL")
    note(f"snapshot {snapshot.id} of {snapshot.header['stopped_at']}, {snapshot.header['state']}")
    for folder in [into] + ([wal_into] if wal_into else []):
        empty_folder(folder)
    marker = into / MARKER
    marker.write_text(UNFINISHED)
    try:
        with reading(snapshot.key):
            secret, packs = component.contents(snapshot)
            cluster = kind == "postgres"
            demand(not cluster or bool(secret["attachments"].get("backup_label")), "holds no backup_label")
            component.require(packs)
            entries = read_tree(component, Piece(*secret["root"]), kind)
            demand(not cluster or any(entry["p"] == CONTROL for entry in entries), "has no global/pg_control")
            moved = choose_folders(arguments.tablespace, entries, secret["attachments"], into)
            left_out = place_tree(component, entries, into, kind, moved)
        if kind == "odoo-filestore":
            left_out += place_sets(component, entries, into)
        if cluster:
            finish_cluster(component, snapshot, secret["attachments"], into, wal_into)
    except BaseException as error:
        marker.write_text(f"{UNFINISHED}{error}\n", "utf-8", "replace")
        raise
    marker.unlink()
    sync_folder(into)
    say(f"Restored {len(entries)} entries of {component.prefix}, snapshot {snapshot.id}, into {into}")
    if cluster:
        try:
            place_configuration(secret["attachments"], snapshot, into)
        except (Problem, OSError) as error:
            say(f"ATTENTION: {error}. The cluster itself is whole.")
        explain_tablespaces(entries, secret["attachments"], into)
        explain_cluster(snapshot, secret, into, wal_into)
    else:
        explain_files(snapshot, entries)
    return 3 if left_out else 0


def finish_cluster(
    component: Component, snapshot: Snapshot, attachments: Fields, into: Path, wal_into: Path | None
) -> None:
    """Write backup_label and WAL, and give pg_control its name last."""
    place_label(attachments, into)
    if wal_into:
        with reading("WAL"):
            place_wal(component, snapshot, wal_into)
    (into / os.fsdecode(WITHHELD)).rename(into / os.fsdecode(CONTROL))
    sync_folder(into / "global")


def explain_files(snapshot: Snapshot, entries: list[Fields]) -> None:
    """Say what production itself had lost when the snapshot was taken."""
    about = snapshot.header["documents"]
    if about["missing"] or about["unreadable"]:
        say(f"ATTENTION: on the server {about['missing']} documents were missing already, and {about['unreadable']}")
        say("files could not be read for this snapshot: an older one may have them.")
    wrong = [shown(entry["p"]) for entry in entries if entry.get("h")]
    if wrong:
        say(f"ATTENTION: {len(wrong)} documents were damaged on the server already: {', '.join(wrong[:50])}")
    say("Give the folder to the user that Odoo (or whoever owned it) runs as.")


def explain_tablespaces(entries: list[Fields], attachments: Fields, into: Path) -> None:
    """Say where the extra tablespaces lie, and what a recovery with those inside needs."""
    inside = False
    for path in tablespaces(entries):
        place, before = into / os.fsdecode(path), shown(locations(attachments).get(path, b"in place"))
        inside = inside or not place.is_symlink()
        say(f"Tablespace {shown(path)[10:]} (it was {before}): {place.resolve()}")
    if inside:
        say("\nTablespaces inside the folder: recovery ends with a PANIC unless postgresql.auto.conf has the line\n")
        say("  allow_in_place_tablespaces = 'on'")
        say("\n(not 13 before 13.8 and 14 before 14.5, which do not know it and need no permission)")


def explain_cluster(snapshot: Snapshot, secret: Fields, into: Path, wal_into: Path | None) -> None:
    """Say what was restored and how PostgreSQL recovers it."""
    about = snapshot.header["postgres"]
    say(f"System identifier {about['system_id']}, timeline {about['timeline']}, from {about['start_lsn']}.")
    if about["bad_pages"]:
        say(f"ATTENTION: {about['bad_pages']} pages were bad on the server already: {secret['bad_pages'][:50]}")
    if wal_into:
        command = f'cp {shlex.quote(str(wal_into.resolve())).replace("%", "%%")}/%f "%p"'.replace("'", "''")
        say("\nTo recover, write into postgresql.auto.conf of the restored folder:\n")
        say(f"  restore_command = '{command}'")
        say("  recovery_target_time = '2026-01-31 12:00:00+00'   # the instant you want, or no such line for the end")
        say("  recovery_target_action = 'pause'                  # look first, then: select pg_wal_replay_resume()")
        say(f"\nThen: touch {shlex.quote(str(into))}/recovery.signal, give the folder to the user postgres, start.")


# --- The other commands -------------------------------------------------------------------------------------


def show(component: Component) -> int:
    """Print the snapshots and the WAL of a component; return how much of it is damaged."""
    say(f"\n{component.service} / {component.name}")
    bad = 0
    for one in component.snapshots():
        if isinstance(one, Problem):
            bad += 1
            say(f"  DAMAGED {one}")
            continue
        head = one.header
        void = "  VOID (or the copy lost its file times)" if component.is_void(one) else ""
        say(f"  snapshot {one.id}  {head['started_at']} to {head['stopped_at']}  {head['state']}{void}")
        if head["kind"] != "postgres":
            lost = ", ".join(f"{head['documents'][each]} {each}" for each in ("missing", "corrupt", "unreadable"))
            say(f"    {head['kind']}, {head['files']} files; in production {lost}")
            continue
        about = head["postgres"]
        lsns = f"{about['start_lsn']} to {about['stop_lsn']}"
        say(f"    system {about['system_id']}, timeline {about['timeline']}, {lsns}")
    for system_id in component.repository.names(f"{component.prefix}/wal"):
        files, size = component.wal_files(system_id), 0
        times = {}
        for name, keys in files.items():
            try:
                fields = component.wal(keys, body=False)[0]
                times[name] = fields["last_write"]
                size = fields["plain_bytes"] if len(name) == 24 else size
            except Problem:
                bad += 1
        for timeline, parts in runs(times, size).items() if size else ():
            for number, (first, last) in enumerate(parts):
                begin, end = segment_name(timeline, first, size), segment_name(timeline, last, size)
                gap = "  GAP BEFORE THIS" if number else ""
                say(f"  WAL of {system_id}: {begin} to {end}, {times[begin]} to {times[end]}{gap}")
    show_sets(component.document_sets())
    for system_id, timeline, pieces in component.all_tails():
        say(f"  WAL of {system_id}, timeline {timeline}, in pieces up to {position(max(pieces)[1])}")
    return bad


def show_sets(names: list[str]) -> None:
    """Print how many sets of documents there are, if there are any."""
    if names:
        say(f"  {len(names)} sets of documents beside the snapshots, the newest {names[-1]}")


def check_pack(component: Component, kind: bytes, pack: bytes) -> None:
    """Read every record of a pack."""
    for piece in component.footer(kind, pack):
        component.record(kind, piece)


def check_snapshot(component: Component, found: Snapshot | Problem) -> None:
    """Walk the tree of a snapshot; each chunk must be a record that its pack knows."""
    if isinstance(found, Problem):
        raise found
    with reading(found.key):
        secret, packs = component.contents(found)
        component.require(packs)
        for entry in read_tree(component, Piece(*secret["root"]), found.header["kind"]):
            with reading(shown(entry["p"])):
                for piece in component.pieces(entry) if entry["t"] == "f" else ():
                    if piece.codec != 255:
                        demand((b"d", piece.pack) in packs, f"the pack {piece.pack.hex()} is not listed")
                        known = component.footer(b"d", piece.pack)[piece.ordinal]
                        demand(known == piece, f"record {piece.ordinal} of {piece.pack.hex()} is another")


def check_key(repository: Repository, service: str, key_id: str) -> None:
    """Open a data key, and check every wrapping of it even if one opens: they must not differ."""
    reasons: list[str] = []
    held, folder = len(list(repository.opened(service, key_id, reasons))), f"keys/{service}/{key_id}"
    demand(held > 0, "; ".join(reasons) or f"{folder}: missing")
    demand(held == 1, f"{folder}: the wrappings hold {held} different keys, so some are false")
    for name in repository.names(f"keys/{service}/{key_id}", ULID + r"\.age"):
        repository.envelope(f"keys/{service}/{key_id}/{name}", "key")


def verify(repository: Repository, components: list[Component]) -> int:
    """Read everything: keys, packs, trees, WAL, holds; return how much of it is damaged."""
    bad: list[str] = []
    names = repository.names

    def check(work: Callable[..., object], *details: object) -> None:
        try:
            with reading(" ".join(str(one) for one in details if isinstance(one, str)) or "the repository"):
                work(*details)
        except Problem as problem:
            bad.append(str(problem))
            note(f"DAMAGED {problem}")

    for service in names("keys"):
        in_threads(
            f"{service}: data keys", partial(check, check_key, repository, service), names(f"keys/{service}", ULID)
        )
    for name in names("hold", ULID):
        check(repository.envelope, f"hold/{name}", "hold")
    for number in names("gc", "[0-9]{8}"):
        check(repository.envelope, f"gc/{number}/condemned", "condemned")
    for one in components:
        for kind, folder in ((b"d", f"{one.prefix}/packs"), (b"n", f"{one.prefix}/nodes")):
            packs = [name for two in names(folder) for name in names(f"{folder}/{two}", "[0-9a-f]{64}")]
            work = partial(check, check_pack, one, kind)
            in_threads(folder, work, [bytes.fromhex(name) for name in packs])
        for found in one.snapshots():
            check(check_snapshot, one, found)
        for system_id in names(f"{one.prefix}/wal"):
            in_threads(f"{one.prefix}/wal", partial(check, one.wal), list(one.wal_files(system_id).values()))
        keys = [key for _, _, pieces in one.all_tails() for _, _, key in pieces]
        in_threads(f"{one.prefix}/tail", partial(check, one.tail_piece), keys)
        in_threads(f"{one.prefix}/documents", partial(check, one.documents), one.document_sets())
    say(f"{len(bad)} problems" if bad else "Everything was read and is whole.")
    return len(bad)


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", required=True, type=Path, help="the repository as a local folder")
    told = "file with an age identity, or an SSH private key; may be repeated (not needed for list)"
    parser.add_argument("--identity", action="append", default=[], help=told)
    parser.add_argument("--trust", action="append", default=[], help="ed25519:HEX, a signer to believe; repeatable")
    parser.add_argument("--age", default="age", help="the program age, or rage")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "restore", "wal", "verify"):
        command = commands.add_parser(name)
        command.add_argument("--service", required=name in ("restore", "wal"))
        command.add_argument("--component")
        if name == "restore":
            command.add_argument("--snapshot", default="latest", help="id of a snapshot; the latest if not given")
            command.add_argument("--into", required=True, type=Path, help="new or empty folder for the cluster")
            command.add_argument("--wal-into", type=Path, help="new or empty folder for the WAL that follows")
            command.add_argument(
                "--tablespace",
                action="append",
                default=[],
                metavar="OLD=NEW",
                help="put a tablespace (OID, or path on the server) into a new or empty folder; else it lies inside",
            )
        if name == "wal":
            command.add_argument("name", help="name of the WAL file")
            command.add_argument("--system-id", help="needed if the component has had several clusters")
            command.add_argument("--to", required=True, type=Path, help="file to create")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    repository = Repository(arguments.repository, arguments.trust, arguments.identity, arguments.age)
    checked = "are checked" if optional("blake3") else "are NOT checked (no package blake3); AES-GCM and SHA-256 are"
    note(f"repository {repository.id}; zstd: {find_zstd().__name__}; BLAKE3 chunk ids {checked}")
    found = [
        Component(repository, service, name)
        for service in repository.names("s")
        for name in repository.names(f"s/{service}")
        if arguments.service in (None, service) and arguments.component in (None, name)
    ]
    demand(bool(found), "no such service or component; `list` shows them")
    if arguments.command == "list":
        return min(1, sum([show(component) for component in found]))
    if arguments.command == "verify":
        return min(1, verify(repository, found))
    demand(len(found) == 1, f"name one with --component: {', '.join(one.name for one in found)}")
    if arguments.command == "restore":
        return restore(found[0], arguments)
    systems = [arguments.system_id] if arguments.system_id else repository.names(f"{found[0].prefix}/wal")
    keys = [found[0].wal_files(one).get(arguments.name, []) for one in systems]
    keys = [one for one in keys if one]
    demand(bool(keys), f"{arguments.name}: missing")
    demand(len(keys) == 1, f"{arguments.name}: in several clusters, name one with --system-id")
    content = found[0].wal(keys[0])[1]
    with new_file(arguments.to) as file:
        file.write(content)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run; every failure is one line on stderr and an exit status that is not 0."""
    try:
        return run(arguments_of(argv))
    except (Problem, OSError) as problem:
        note(f"FAILED: {problem}")
        return 1
    except KeyboardInterrupt:
        note("INTERRUPTED")
        return 130


if __name__ == "__main__":
    sys.exit(main())
