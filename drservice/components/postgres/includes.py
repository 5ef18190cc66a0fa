"""Which other files PostgreSQL's configuration files name. Pure; knows the grammars just as far as that.

``postgresql.conf``: ``include``, ``include_if_exists`` and ``include_dir`` with a value in single quotes or none
(``guc-file.l``). ``pg_hba.conf`` and ``pg_ident.conf``: the same words since version 16, with names in double quotes
or none, and ``@file`` in lists of databases and users (``hba.c``). Relative names are relative to the file that names
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class ConfigurationKind(Enum):
    """What grammar a file has."""

    SETTINGS = "settings"
    """``postgresql.conf`` and what it includes."""
    RULES = "rules"
    """``pg_hba.conf``, ``pg_ident.conf`` and what they include."""
    NAMES = "names"
    """A list behind an ``@``."""
    OTHER = "other"
    """Names no further file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Include:
    """A file or folder that a configuration file names."""

    path: str
    """As it stands there; may be relative."""
    kind: ConfigurationKind
    is_folder: bool = False
    """All of its files ``*.conf`` are meant."""
    is_optional: bool = False


_WORDS = {"include": (False, False), "include_if_exists": (False, True), "include_dir": (True, False)}
_SETTING = re.compile(
    r"\s*(include|include_if_exists|include_dir)(?:\s*=\s*|\s+)(?:'((?:[^'\\\n]|''|\\.)*)'|([^\s#']+))", re.IGNORECASE
)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPED = re.compile(r"''|\\([0-7]{1,3}|.)")
_TOKEN = re.compile(r'#.*|((?:"(?:[^"]|"")*"|[^\s,"#])+)')


def includes_of(kind: ConfigurationKind, content: bytes) -> Iterator[Include]:
    """Yield what a file names, in its order."""
    text = content.decode("utf-8", "surrogateescape")
    if kind is ConfigurationKind.SETTINGS:
        yield from _of_settings(text)
    elif kind is ConfigurationKind.RULES:
        yield from _of_rules(text)
    elif kind is ConfigurationKind.NAMES:
        for line in text.splitlines():
            yield from _lists(_tokens(line))


def _of_settings(text: str) -> Iterator[Include]:
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match is not None:
            path = match[3] if match[2] is None else _ESCAPED.sub(_unescape, match[2])
            is_folder, is_optional = _WORDS[match[1].lower()]
            yield Include(path=path, kind=ConfigurationKind.SETTINGS, is_folder=is_folder, is_optional=is_optional)


def _unescape(match: re.Match[str]) -> str:
    letter = match[1]
    if letter is None:
        return "'"
    return chr(int(letter, 8)) if letter.isdigit() and letter < "8" else _ESCAPES.get(letter, letter)


def _of_rules(text: str) -> Iterator[Include]:
    for line in text.replace("\\\n", "").splitlines():
        tokens = _tokens(line)
        if len(tokens) == 2 and tokens[0] in _WORDS:
            is_folder, is_optional = _WORDS[tokens[0]]
            yield Include(
                path=_unquoted(tokens[1]), kind=ConfigurationKind.RULES, is_folder=is_folder, is_optional=is_optional
            )
        else:
            yield from _lists(tokens)


def _lists(tokens: list[str]) -> Iterator[Include]:
    for token in tokens:
        if token.startswith("@") and len(token) > 1:
            yield Include(path=_unquoted(token[1:]), kind=ConfigurationKind.NAMES)


def _tokens(line: str) -> list[str]:
    return [match[1] for match in _TOKEN.finditer(line) if match[1] is not None]


def _unquoted(token: str) -> str:
    return token.replace('""', "\0").replace('"', "").replace("\0", '"')
