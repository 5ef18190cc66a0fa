"""What Odoo calls a document: ``xx/<sha1>``, the first two digits of the SHA-1 of its content and the SHA-1 itself.

Filestores that began before Odoo 8 also have folders of three digits, which Odoo up to 17 goes on using for files that
are there already (``ir_attachment._get_path``); what a row calls ``store_fname`` is the truth, never a computed name.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"([0-9a-f]{2,3})/([0-9a-f]{40})")
_FOLDER = re.compile(r"[0-9a-f]{2,3}")
_is_digest = re.compile(r"[0-9a-f]{40}").fullmatch
CHECKLIST = "checklist"
"""Odoo's list of files that its garbage collection looks at: empty files, worthless elsewhere."""


def is_document(name: str) -> bool:
    """Tell whether a ``store_fname`` is a document of a filestore (others are URLs of object-store add-ons)."""
    found = _NAME.fullmatch(name)
    return found is not None and found[2].startswith(found[1])


def is_document_folder(name: str) -> bool:
    """Tell whether documents lie in a folder of this name."""
    return _FOLDER.fullmatch(name) is not None


def is_document_file(folder: str, name: str) -> bool:
    """Tell whether a file of this name in this folder is a document."""
    return name.startswith(folder) and _is_digest(name) is not None


def sha1_of_name(name: str) -> bytes:
    """Return the SHA-1 that a document's content must have (20 bytes)."""
    return bytes.fromhex(name[-40:])
