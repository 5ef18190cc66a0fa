"""One Odoo database with its documents as the zip that Odoo itself restores: manifest, dump, filestore.

Odoo's own backup copies the files before it dumps the rows, and its restore neither notices a document that is missing
nor a dump that is cut. Here the rows come first, the documents are those they refer to, each compared with its name on
the way into the zip, the dump has to end where ``pg_dump`` ends one, and the whole zip is read back before it gets its
name. It is written from front to end, so its size is bounded by the disk only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from drservice.components.odoo_filestore.names import is_document
from drservice.components.postgres.asking import Asking
from drservice.errors import DumpError, UsageError
from drservice.model.estate import FilesSettings, Service
from drservice.model.ids import ComponentName
from drservice.operations.outputfile import OutputFile

DUMP = "dump.sql"
_MANIFEST = "manifest.json"
_FILESTORE = "filestore"
_LEVEL = 1
_TAIL_BYTES = 4096
_PIECE_BYTES = 1 << 20
_SERIES = re.compile(r"(saas~)?([0-9]+)\.([0-9]+)")
_MODULES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OdooFacts:
    """What the manifest says of a database."""

    series: str
    """Such as ``19.0``: the first two numbers of the version of module ``base``."""
    server_version: str
    modules: dict[str, str]
    """Installed modules with their versions."""


def filestore_of(service: Service, cluster: ComponentName, database: str) -> FilesSettings:
    """Return the component with the documents of a database.

    Raises:
        UsageError: there is none.
    """
    for item in service.filestores():
        if (item.follows, item.database) == (cluster, database):
            return item
    raise UsageError(
        f"service {service.name} has no odoo-filestore component for database {database}",
        hint="Without documents use --format custom or sql.",
    )


def read_facts(asking: Asking) -> OdooFacts:
    """Ask a recovered database what Odoo's manifest tells of it.

    Raises:
        UsageError: it is no database of Odoo.
        PostgresError, UnansweredError: it cannot be asked.
    """
    if asking.answer("select to_regclass('public.ir_module_module') is not null")[0] != "t":
        raise UsageError("this is no database of Odoo: it has no modules", hint="Use --format custom or sql.")
    modules: dict[str, str] = {}
    for name, version in asking.scan(
        "select name, latest_version from ir_module_module where state = 'installed' order by name"
    ):
        if name is not None and len(modules) < _MODULES:
            modules[name] = version or ""
    series = _SERIES.match(modules.get("base", ""))
    if series is None:
        raise UsageError("this is no database of Odoo: module base is not installed or has no version")
    version = asking.answer("select current_setting('server_version_num')")[0] or "0"
    return OdooFacts(series=series[0], server_version=f"{int(version) // 10000}.{int(version) % 100}", modules=modules)


def manifest_of(facts: OdooFacts, database: str) -> bytes:
    """Return the manifest as Odoo's own restore reads it."""
    match = _SERIES.fullmatch(facts.series)
    assert match is not None, "read_facts returns nothing else"
    first: str | int = f"{match[1]}{match[2]}" if match[1] else int(match[2])
    manifest = {
        "odoo_dump": "1",
        "db_name": database,
        "version": facts.series,
        "version_info": [first, int(match[3]), 0, "final", 0, ""],
        "major_version": facts.series,
        "pg_version": facts.server_version,
        "modules": facts.modules,
    }
    return json.dumps(manifest, indent=4).encode("utf-8")


class _Appending:
    """What ``zipfile`` needs of a file that only grows: it then writes sizes behind the content."""

    def __init__(self, output: OutputFile) -> None:
        self._output = output
        self.is_given_up = False

    def write(self, piece: bytes) -> int:
        """Append; what ``zipfile`` adds to a zip that was given up goes nowhere."""
        if not self.is_given_up:
            self._output.write(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """The file goes on: it is read back."""


class ZipMember:
    """A member that is written piece by piece; remembers how it ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.written_bytes = 0
        self.tail = b""

    def write(self, piece: bytes) -> None:
        """Append."""
        self._stream.write(piece)
        self.written_bytes += len(piece)
        self.tail = (self.tail + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]


class OdooZip:
    """A zip for Odoo on its way into a file: whole when the block ends without an error; then :func:`read_back`."""

    def __init__(self, output: OutputFile) -> None:
        self._file = _Appending(output)
        self._zip = zipfile.ZipFile(
            self._file,
            "w",
            compression=zipfile.ZIP_DEFLATED,
            allowZip64=True,
            compresslevel=_LEVEL,
        )
        self.members = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the directory of the zip, or give it up."""
        self._file.is_given_up = error is not None
        self._zip.close()

    @contextmanager
    def member(self, name: str) -> Iterator[ZipMember]:
        """Write a member of unknown size."""
        # A fixed time: the same instant gives the same names and times.
        with self._zip.open(_info(name), "w", force_zip64=True) as stream:
            yield ZipMember(stream)
        self.members += 1

    def add_manifest(self, content: bytes) -> None:
        """Write the manifest."""
        with self.member(_MANIFEST) as member:
            member.write(content)

    def add_documents(self, root: Path, *, heard: Callable[[int], None]) -> int:
        """Write every document below ``root``, compared with its name; return how many.

        Raises:
            DumpError: one is not what its name says any more.
        """
        count = 0
        for name in _documents(root):
            found = hashlib.sha1(usedforsecurity=False)
            with (root / name).open("rb") as reading, self.member(f"{_FILESTORE}/{name}") as member:
                while piece := reading.read(_PIECE_BYTES):
                    found.update(piece)
                    member.write(piece)
                    heard(len(piece))
            if found.hexdigest() != name.rpartition("/")[2]:
                raise DumpError(f"document {name} was changed between being placed and being written")
            count += 1
        return count


def read_back(output: OutputFile, members: int) -> None:
    """Read a written zip as whoever unpacks it will, every byte of it.

    Raises:
        DumpError: it is not whole.
    """
    try:
        with zipfile.ZipFile(output.reread()) as archive:
            spoilt = archive.testzip()
            names = archive.namelist()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DumpError(f"the zip cannot be read back: {error}") from error
    if spoilt is not None or len(names) != members or len(set(names)) != members:
        raise DumpError(f"the zip is not whole: {spoilt or f'{len(names)} of {members} members'}")


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = _LEVEL  # type: ignore[attr-defined]  # noqa: SLF001  # public since Python 3.13 only
    info.external_attr = 0o644 << 16
    return info


def _documents(root: Path) -> Iterator[str]:
    for folder in sorted(os.scandir(root), key=lambda item: item.name):
        for item in sorted(os.scandir(folder), key=lambda item: item.name):
            name = f"{folder.name}/{item.name}"
            if item.is_file(follow_symlinks=False) and is_document(name):
                yield name
