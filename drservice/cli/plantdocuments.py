"""The demo's documents: a filestore in Odoo's layout, and the rows that refer to it.

A file is written under its final name before its row is inserted, as Odoo 17 and 18 do it
(``ir_attachment._file_write``): a committed row has a file.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import LiteralString

from drservice.cli.oracle import Document, Order
from drservice.components.odoo_filestore.names import is_document
from drservice.components.postgres.connection import Session

HISTORY_DOCUMENTS = 300

_LEAST_BYTES, _MOST_BYTES = 2_000, 24_000
_HEAD = b"%PDF-1.7\n"
_FILE: LiteralString = """
insert into ir_attachment (name, res_model, res_id, type, store_fname, checksum, file_size, mimetype)
values (%s, %s, %s, 'binary', %s, %s, %s, 'application/pdf')
"""
_FOUND: LiteralString = "select name, store_fname from ir_attachment where store_fname is not null"


@dataclass(frozen=True, slots=True)
class Filestore:
    """Documents below ``root``, each in ``xx/<sha1>``."""

    root: Path

    def put(self, content: bytes) -> str:
        """Write a document under its final name and return the SHA-1 that names it."""
        sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        path = self.root / name_of(sha1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return sha1

    def sha1_of(self, name: str) -> str | None:
        """Return the SHA-1 of what lies under a name; ``None`` if nothing does, or if it is no document's name."""
        path = self.root / name
        if not is_document(name) or not path.is_file():
            return None
        return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def name_of(sha1: str) -> str:
    """Return where a document lies in a filestore."""
    return f"{sha1[:2]}/{sha1}"


@dataclass(slots=True)
class Filing:
    """Files documents one after the other, and remembers the content of each by its SHA-1."""

    filestore: Filestore
    _random: random.Random = field(default_factory=random.Random)
    _sha1: dict[str, str] = field(default_factory=dict)

    def file(self, session: Session, name: str, model: str = "sale.order", record: int = 1) -> None:
        """Write a new document, then the row that refers to it and says what it belongs to."""
        size = self._random.randrange(_LEAST_BYTES, _MOST_BYTES)
        content = _HEAD + self._random.randbytes(size)
        sha1 = self._sha1[name] = self.filestore.put(content)
        session.rows(_FILE, (name, model, record, name_of(sha1), sha1, len(content)))

    def sha1_of(self, name: str) -> str:
        """Return the SHA-1 of what was filed under a name."""
        return self._sha1[name]


def file_history(session: Session, filestore: Filestore) -> list[Document]:
    """File what was there before the demo begins."""
    filing = Filing(filestore)
    documents = []
    for number in range(1, HISTORY_DOCUMENTS + 1):
        name, begun = f"drawing-{number:04d}.pdf", datetime.now(UTC)
        filing.file(session, name, "mrp.production", number)
        entry = Order(number=name, lines=1, begun=begun, acknowledged=datetime.now(UTC), flushed=None)
        documents.append(Document(entry=entry, sha1=filing.sha1_of(name)))
    return documents


def documents_in(session: Session, filestore: Filestore) -> dict[str, str | None]:
    """Return every document that the rows of a database refer to, with the SHA-1 of what lies in a filestore."""
    return {str(name): filestore.sha1_of(str(stored)) for name, stored in session.rows(_FOUND)}
