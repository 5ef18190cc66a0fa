"""What is recorded of a clone, as the JSON beside its bundle (docs/format.md, section 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from drservice.errors import FormatError

RECORD = "clone.json"
BUNDLE = "refs.bundle"
STAGED = "staged.diff"
FILES = "files"
_VERSION = 1
_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_NOT_IN_REFS = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|\Z)|[./]\Z")
"""What no name of a ref has (git-check-ref-format); git itself does not ask everywhere, and a ref's name is a path."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PASSED_ON = re.compile(r"(//)[^/@\s]*@|(\A[^/@:\s]+):[^/@\s]*(?=@)")
"""User and password of an address behind a helper's name; a password before ``@host:path``."""
_NAMELESS_USERS = ("ssh", "git+ssh", "ssh+git")
"""Schemes whose user names no secret: ``git@``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submodule:
    """A clone inside a clone: only which commit belongs there."""

    path: str
    recorded: str
    """The commit in the index."""
    url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRecord:
    """One clone as it was. Paths and names are text with lone surrogates for bytes that are no UTF-8."""

    path: str
    folder: str
    """The name of its folder in the snapshot, and of the clone that a restore makes."""
    bare: bool
    object_format: str
    head: str | None
    """The commit; ``None`` = there is none yet."""
    branch: str | None
    """The ref that HEAD names; ``None`` = detached."""
    refs: Mapping[str, str]
    symbolic: Mapping[str, str] = field(default_factory=dict)
    """Refs that name other refs."""
    remotes: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """``url`` (without credentials) and ``fetch`` of each."""
    branches: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """``remote`` and ``merge`` of each branch that follows one."""
    line_ends: Mapping[str, str] = field(default_factory=dict)
    """``core.autocrlf`` and ``core.eol``: how a checkout writes lines."""
    shallow: Sequence[str] = ()
    """Commits whose parents are not in the clone."""
    submodules: Sequence[Submodule] = ()
    staged: bool = False
    changed: Sequence[str] = ()
    """Files that are not as the index has them, or that it does not know; their content is in ``files/``."""
    deleted: Sequence[str] = ()
    notes: Sequence[str] = ()
    """What is not in the snapshot, in sentences."""

    @property
    def is_dirty(self) -> bool:
        """Whether something was not committed."""
        return self.staged or bool(self.changed) or bool(self.deleted)

    def describe(self) -> str:
        """Say what it is in one line."""
        where = self.branch.removeprefix("refs/heads/") if self.branch is not None else "detached"
        at = self.head[:12] if self.head is not None else "without a commit"
        dirty = f", {len(self.changed) + len(self.deleted)} files not committed" if self.is_dirty else ""
        return f"{self.folder}: {where} at {at}, {len(self.refs)} refs{dirty}"


def without_credentials(url: str) -> str:
    """Return a remote's address without what gives access: user and password, or a token in the query.

    The user of an SSH address stays: it is a name.
    """
    if _SCHEME.match(url) is None:
        # host:path, or a path; a helper's name may stand before an address (`http::https://user:password@host`).
        return _PASSED_ON.sub(lambda found: found[1] or found[2], url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(an address that cannot be read)"
    user, at, place = parts.netloc.rpartition("@")
    kept = f"{user.partition(':')[0]}@" if at and parts.scheme.lower() in _NAMELESS_USERS else ""
    return urlunsplit((parts.scheme, kept + place, parts.path, "", ""))


def encode_clone(record: CloneRecord) -> bytes:
    """Return the JSON."""
    fields: dict[str, Any] = {
        "v": _VERSION,
        "path": record.path,
        "folder": record.folder,
        "bare": record.bare,
        "object_format": record.object_format,
        "head": record.head,
        "branch": record.branch,
        "refs": dict(record.refs),
        "symbolic": dict(record.symbolic),
        "remotes": {name: {key: list(item) for key, item in remote.items()} for name, remote in record.remotes.items()},
        "branches": {name: dict(item) for name, item in record.branches.items()},
        "line_ends": dict(record.line_ends),
        "shallow": list(record.shallow),
        "submodules": [{"path": one.path, "commit": one.recorded, "url": one.url} for one in record.submodules],
        "staged": record.staged,
        "changed": list(record.changed),
        "deleted": list(record.deleted),
        "notes": list(record.notes),
    }
    return json.dumps(fields, indent=1, sort_keys=True).encode("ascii") + b"\n"


def decode_clone(content: bytes, what: str) -> CloneRecord:
    """Return what a JSON says.

    Raises:
        FormatError: it is none, of another version, or says what cannot be.
    """
    try:
        fields = json.loads(content)
        if fields["v"] != _VERSION:
            raise FormatError(f"{what} has version {fields['v']!r}; this program reads version {_VERSION}")
        record = CloneRecord(
            path=_text(fields["path"]),
            folder=_text(fields["folder"]),
            bare=bool(fields["bare"]),
            object_format=_text(fields["object_format"]),
            head=None if fields["head"] is None else _commit(fields["head"]),
            branch=None if fields["branch"] is None else _ref(fields["branch"]),
            refs={_ref(name): _commit(value) for name, value in fields["refs"].items()},
            symbolic={_ref(name): _ref(value) for name, value in fields["symbolic"].items()},
            remotes={
                _text(name): {key: [_text(item) for item in remote[key]] for key in ("url", "fetch") if key in remote}
                for name, remote in fields["remotes"].items()
            },
            branches={
                _text(name): {key: _text(item[key]) for key in ("remote", "merge") if key in item}
                for name, item in fields["branches"].items()
            },
            line_ends={key: _text(fields["line_ends"][key]) for key in LINE_ENDS if key in fields["line_ends"]},
            shallow=tuple(_commit(item) for item in fields["shallow"]),
            submodules=tuple(
                Submodule(path=_text(one["path"]), recorded=_commit(one["commit"]), url=one["url"])
                for one in fields["submodules"]
            ),
            staged=bool(fields["staged"]),
            changed=tuple(_path(item) for item in fields["changed"]),
            deleted=tuple(_path(item) for item in fields["deleted"]),
            notes=tuple(_text(item) for item in fields["notes"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{what} cannot be read") from error
    if record.folder in {"", ".", ".."} or "/" in record.folder or record.object_format not in {"sha1", "sha256"}:
        raise FormatError(f"{what} says what cannot be")
    return record


LINE_ENDS = {"core.autocrlf": ("true", "false", "input"), "core.eol": ("lf", "crlf", "native")}
"""Settings that decide the bytes of a checkout, with the values that are taken over."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _commit(value: object) -> str:
    text = _text(value)
    if _ID.fullmatch(text) is None:
        raise ValueError("no object's name")
    return text


def _ref(value: object) -> str:
    text = _text(value)
    if not text.startswith("refs/") or _NOT_IN_REFS.search(text) is not None:
        raise ValueError("no ref")
    return text


def _path(value: object) -> str:
    text = _text(value)
    if not is_inside(text):
        raise ValueError("no path inside a working tree")
    return text


def is_inside(path: str) -> bool:
    """Tell whether a path stays inside a working tree; an index that somebody made up may say anything."""
    steps = path.split("/")
    return "\0" not in path and not any(step in {"", ".", ".."} for step in steps) and steps[0].lower() != ".git"
