"""The configuration of a server that lies outside its data directory (trap T11), as a snapshot keeps it.

Debian keeps ``postgresql.conf``, ``pg_hba.conf`` and ``pg_ident.conf`` below ``/etc/postgresql``: without them a
restored cluster has its data and nobody knows how it ran. They hold passwords and are part of the snapshot's sealed
attachments (docs/format.md, section 7). Nothing here is ever given to a server: a recovery has a configuration of its
own.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import PurePosixPath

import msgpack

from drservice.errors import FormatError
from drservice.repository.nodes import unpack_map

ATTACHMENT = "configuration"
LARGEST_FILE_BYTES = 1 << 20
LARGEST_TOTAL_BYTES = 8 << 20
MOST_FILES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationFile:
    """One file as it was on the server."""

    path: str
    """Absolute; bytes that are no UTF-8 as surrogate escapes."""
    role: str
    """What makes it configuration: a setting's name, or who includes it."""
    mode: int
    """Permission bits."""
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What of a server's configuration lies outside its data directory."""

    data_directory: str
    """Empty: not known."""
    files: tuple[ConfigurationFile, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    """(path or setting, reason) of what should be here and could not be read."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(path, reason) of what is not taken on purpose."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep and nothing to tell."""
        return not self.files and not self.missing and not self.left_out


def encode_configuration(configuration: Configuration) -> bytes:
    """Return the attachment's bytes."""
    packed: bytes = msgpack.packb(
        {
            "v": 1,
            "data_directory": _raw(configuration.data_directory),
            "files": [
                {"p": _raw(item.path), "r": item.role, "m": item.mode, "c": item.content}
                for item in sorted(configuration.files, key=lambda item: _raw(item.path))
            ],
            "missing": [[_raw(path), reason] for path, reason in configuration.missing],
            "left_out": [[_raw(path), reason] for path, reason in configuration.left_out],
        }
    )
    return packed


def decode_configuration(raw: bytes, what: str) -> Configuration:
    """Read what :func:`encode_configuration` wrote; whoever wrote it is not trusted.

    Raises:
        FormatError: it does not follow docs/format.md, for example a path that leads somewhere else.
    """
    fields = unpack_map(raw, what)
    if fields.get("v") != 1:
        raise FormatError(f"{what} has version {fields.get('v')!r}; this program reads version 1")
    directory, items = fields.get("data_directory"), fields.get("files")
    if not isinstance(directory, bytes) or not isinstance(items, list) or len(items) > MOST_FILES:
        raise FormatError(f"{what} cannot be read")
    files = tuple(_file(item, what) for item in items)
    paths = {item.path for item in files}
    in_order = [item.path for item in files] == sorted(paths, key=_raw)
    if not in_order or any(str(parent) in paths for path in paths for parent in PurePosixPath(path).parents):
        raise FormatError(f"{what} has a path twice, out of order, or below another file")
    if sum(len(item.content) for item in files) > LARGEST_TOTAL_BYTES:
        raise FormatError(f"{what} is too large to be configuration")
    return Configuration(
        data_directory=_text(directory),
        files=files,
        missing=_reasons(fields.get("missing"), what),
        left_out=_reasons(fields.get("left_out"), what),
    )


def is_plain_path(path: str) -> bool:
    """Tell whether an absolute path has no part that leads elsewhere."""
    return path.startswith("/") and not path.startswith("//") and "\0" not in path and posixpath.normpath(path) == path


def _file(item: object, what: str) -> ConfigurationFile:
    match item:
        case {"p": bytes(path), "r": str(role), "m": int(mode), "c": bytes(content)} if (
            type(mode) is int and 0 <= mode <= 0o777
        ):
            text = _text(path)
            if not is_plain_path(text) or text == "/" or len(content) > LARGEST_FILE_BYTES:
                raise FormatError(f"{what} has a path that is none: {text!r}")
            return ConfigurationFile(path=text, role=role, mode=mode, content=content)
        case _:
            raise FormatError(f"{what} has an unreadable file")


def _reasons(items: object, what: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for item in items if isinstance(items, list) else [None]:
        match item:
            case [bytes(path), str(reason)]:
                found.append((_text(path), reason))
            case _:
                raise FormatError(f"{what} has an unreadable list")
    return tuple(found)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
