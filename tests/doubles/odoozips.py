"""Zips in the shape of Odoo's own backup, whole ones and ones that no Odoo ever made.

write_zip(path, dump=..., documents=[...])       # as Odoo writes it
write_zip(path, ..., extra=[Member("../x", b"")])  # with members of any name
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD = (
    "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.3\n-- Dumped by pg_dump version 15.3\n\n"
)
END = "\n--\n-- PostgreSQL database dump complete\n--\n\n"
MODULES = {"base": "19.0.1.3", "web": "19.0.1.0"}


@dataclass(frozen=True, slots=True)
class Member:
    """A member of any name; ``mode`` is that of Unix, with the kind of file."""

    name: str
    content: bytes
    mode: int = 0o100644


def manifest(**changes: Any) -> bytes:
    """Return a manifest; a field that is ``None`` is left out."""
    fields: dict[str, Any] = {
        "odoo_dump": "1",
        "db_name": "plant",
        "version": "19.0-20261101",
        "version_info": [19, 0, 0, "final", 0, ""],
        "major_version": "19.0",
        "pg_version": "15.0",
        "modules": MODULES,
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def name_of(content: bytes, digits: int = 2) -> str:
    """Return what Odoo calls a document."""
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return f"{digest[:digits]}/{digest}"


def write_zip(
    path: Path,
    *,
    dump: bytes | None = (HEAD + "select 1;\n" + END).encode(),
    told: bytes | None = None,
    documents: Iterable[bytes] = (),
    named: Mapping[str, bytes] | None = None,
    extra: Iterable[Member] = (),
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """Write a zip: documents under their own names, then those under names that are given, then members of any kind."""
    files = {name_of(content): content for content in documents} | dict(named or {})
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        archive.writestr("manifest.json", told if told is not None else manifest())
        if dump is not None:
            archive.writestr("dump.sql", dump)
        for name, content in files.items():
            archive.writestr(f"filestore/{name}", content)
        for member in extra:
            info = zipfile.ZipInfo(member.name)
            info.create_system, info.external_attr, info.compress_type = 3, member.mode << 16, method
            archive.writestr(info, member.content)
    return path
