"""The scripts with which Odoo's modules make a copy harmless, collected at the backup so that no Odoo is needed later.

Since version 16 a module may bring ``data/neutralize.sql`` (``odoo/modules/neutralize.py``). Which modules are
installed the database says, and where their code is the settings; both are read before anything goes wrong. Nothing is
read from outside the given folders, whatever a module is called and wherever its links lead.

An attachment of the filestore's snapshot (docs/format.md, section 7), a msgpack map.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack

from drservice.components.odoo.gathering import Module
from drservice.errors import FormatError
from drservice.repository.nodes import unpack_map
from drservice.repository.reader import SnapshotReader

ATTACHMENT = "neutralize"
INSTALLED = frozenset({"installed", "to upgrade", "to remove"})
"""States of modules whose code runs."""
SCRIPT_BYTES = 512 * 1024
"""No script is larger: Odoo's own have a few hundred bytes."""
SCRIPTS_BYTES = 4 * 1024 * 1024
"""All of them together: whoever opens the snapshot holds them in memory."""
_MODULES = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}\Z")
_NAME_LETTERS = 200
_MANIFESTS = ("__manifest__.py", "__openerp__.py")
_SCRIPT = "data/neutralize.sql"
_FIRST = "base"
"""Its script switches everything off that the others build on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleScript:
    """The ``neutralize.sql`` of one module."""

    module: str
    sql: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRecord:
    """What a backup knows of a database's modules."""

    versions: tuple[tuple[str, str], ...]
    """Every installed module with its version, by name."""
    scripts: tuple[ModuleScript, ...] = ()
    """In the order in which they run."""
    missing: tuple[str, ...] = ()
    """Installed modules whose code is in none of the folders."""
    refused: tuple[tuple[str, str], ...] = ()
    """Modules with a script that was not taken, with the reason."""

    def notes(self) -> tuple[str, ...]:
        """Return what people should know when the backup is made, in sentences."""
        told = []
        if self.missing:
            shown = ", ".join(name[:60] for name in self.missing[:10])
            more = f" and {len(self.missing) - 10} more" if len(self.missing) > 10 else ""
            told.append(f"{len(self.missing)} installed modules have no code in the folders of addons: {shown}{more}")
        told += [f"the neutralize.sql of {name[:60]} was not taken: {reason}" for name, reason in self.refused[:10]]
        return tuple(told)


def collect_modules(folders: Sequence[Path], modules: Mapping[str, Module]) -> ModuleRecord:
    """Collect the scripts of the installed modules; the first folder with a module's code counts, as for Odoo.

    What is there and cannot be taken is recorded with the reason: a copy must not pass for neutralized without it.

    Args:
        folders: where Odoo's modules are; links in them may lead to one another and nowhere else.
        modules: what the database says, by name.
    """
    installed = {name: item for name, item in modules.items() if item.state in INSTALLED}
    roots = tuple(os.path.realpath(folder) for folder in folders)
    scripts: list[ModuleScript] = []
    missing: list[str] = []
    refused: list[tuple[str, str]] = []
    left = SCRIPTS_BYTES
    for name in sorted(installed, key=lambda name: (name != _FIRST, name))[:_MODULES]:
        try:
            place = _place_of(roots, name)
            if place is None:
                missing.append(name[:_NAME_LETTERS])
                continue
            text = _read_script(roots, place, left)
        except _RefusedError as error:
            refused.append((name[:_NAME_LETTERS], str(error)))
            continue
        if text is not None and text.strip():
            left -= len(text.encode())
            scripts.append(ModuleScript(module=name, sql=text))
    return ModuleRecord(
        versions=tuple((name[:_NAME_LETTERS], installed[name].version[:100]) for name in sorted(installed)[:_MODULES]),
        scripts=tuple(scripts),
        missing=tuple(missing),
        refused=tuple(refused),
    )


class _RefusedError(Exception):
    """Something is there and is not taken; the text is the reason."""


def _place_of(roots: Sequence[str], name: str) -> str | None:
    """Return the folder of a module's code, ``None`` if it is nowhere; a name that no folder has is nowhere.

    Raises:
        _RefusedError: it is there, and outside of the folders.
    """
    if _NAME.match(name) is None:
        return None
    for root in roots:
        for manifest in _MANIFESTS:
            path = f"{root}/{name}/{manifest}"
            if os.path.lexists(path):
                _below(roots, path)
                return f"{root}/{name}"
    return None


def _below(roots: Sequence[str], path: str) -> tuple[str, list[str]]:
    """Return where a path really leads: one of the folders, and the names below it.

    Raises:
        _RefusedError: it leads out of all of them.
    """
    real = os.path.realpath(path)
    for root in roots:
        if real.startswith(root.rstrip("/") + "/"):
            return root, real[len(root.rstrip("/")) + 1 :].split("/")
    raise _RefusedError(f"{path} leads out of the folders of addons")


def _read_script(roots: Sequence[str], place: str, most: int) -> str | None:
    """Return the script of a module; ``None`` if it has none.

    Raises:
        _RefusedError: it is no plain text of a bounded size inside the folders.
    """
    path = f"{place}/{_SCRIPT}"
    if not os.path.lexists(path):
        return None
    root, names = _below(roots, path)
    try:
        raw = _read_without_links(root, names, min(SCRIPT_BYTES, most) + 1)
    except OSError as error:
        raise _RefusedError(f"it cannot be read: {error.strerror}") from error
    if len(raw) > SCRIPT_BYTES:
        raise _RefusedError(f"it is larger than {SCRIPT_BYTES} bytes")
    if len(raw) > most:
        raise _RefusedError(f"all scripts together are larger than {SCRIPTS_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _RefusedError(f"it is no UTF-8: {error.reason}") from error
    if "\0" in text:
        raise _RefusedError("it has a NUL in it")
    return text


def _read_without_links(root: str, names: Sequence[str], most: int) -> bytes:
    """Read a file below a folder; a link that was put on the way meanwhile is an error, not followed."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names[:-1]:
            deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = deeper
        # A pipe in its place must not make the backup wait.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(names[-1], flags, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _RefusedError("it is no plain file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


# --- the attachment --------------------------------------------------------------------------------------------


def encode_modules_record(record: ModuleRecord) -> bytes:
    """Return the attachment's bytes."""
    packed: bytes = msgpack.packb(
        {
            "v": 1,
            "modules": [list(item) for item in record.versions],
            "scripts": [[item.module, item.sql] for item in record.scripts],
            "missing": list(record.missing),
            "refused": [list(item) for item in record.refused],
        }
    )
    return packed


def modules_record(reader: SnapshotReader) -> ModuleRecord | None:
    """Return what a snapshot of documents knows of the modules; ``None`` if it has nothing.

    Raises:
        FormatError: it cannot be read.
    """
    raw = reader.secret.attachments.get(ATTACHMENT)
    return None if raw is None else decode_modules_record(raw, f"the modules of snapshot {reader.record.id}")


def decode_modules_record(raw: bytes, what: str) -> ModuleRecord:
    """Read what :func:`encode_modules_record` wrote.

    Raises:
        FormatError: it is something else.
    """
    fields = unpack_map(raw, what)
    if fields.get("v") != 1:
        raise FormatError(f"{what} have version {fields.get('v')!r}; this program reads version 1")
    missing = fields.get("missing")
    if not isinstance(missing, list) or not all(isinstance(name, str) for name in missing):
        raise FormatError(f"{what} have an unreadable list")
    return ModuleRecord(
        versions=tuple(_pairs(fields.get("modules"), what)),
        scripts=tuple(ModuleScript(module=name, sql=sql) for name, sql in _pairs(fields.get("scripts"), what)),
        missing=tuple(missing),
        refused=tuple(_pairs(fields.get("refused"), what)),
    )


def _pairs(items: object, what: str) -> Iterator[tuple[str, str]]:
    for item in items if isinstance(items, list) else (None,):
        match item:
            case [str(first), str(second)]:
                yield first, second
            case _:
                raise FormatError(f"{what} have an unreadable list")
