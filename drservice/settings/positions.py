"""Reads YAML into plain data and remembers where each key and value stands in the file.

Owns the defence against hostile or broken files: size, depth and alias expansion are bounded, duplicate keys
and custom tags are refused, and nothing but strings, numbers, booleans, nulls, lists and mappings comes out.
No Python object is ever built from a tag: the node graph is read, ``yaml.load`` is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"
Path: TypeAlias = "tuple[str | int, ...]"

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 50_000
MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_TRUE = {"true", "True", "TRUE"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mark:
    """A place in the file; both numbers count from 1, as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake: where it is, the path of the setting, and what was expected."""

    mark: Mark
    path: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file's plain data with the place of every key and value, by path."""

    data: Plain
    keys: dict[Path, Mark]
    values: dict[Path, Mark]

    def key_mark(self, path: Path) -> Mark:
        """Return the place of the key at ``path``, or of the closest thing around it."""
        return self.keys.get(path) or self.value_mark(path)

    def value_mark(self, path: Path) -> Mark:
        """Return the place of the value at ``path``, or of the closest thing around it."""
        for length in range(len(path), -1, -1):
            mark = self.values.get(path[:length])
            if mark is not None:
                return mark
        return Mark(line=1, column=1)


class InvalidYamlError(Exception):
    """The text is no acceptable YAML; carries every problem found. Never leaves ``settings``."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def format_path(path: Path) -> str:
    """Write a path as people do: ``services.erp.checks[0].name``."""
    text = ""
    for part in path:
        shown = f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        text += "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return text or "(the whole file)"


def parse(raw: bytes) -> Document:
    """Read one YAML document.

    Raises:
        InvalidYamlError: with every problem that can be told apart.
    """
    text = _decode(raw)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise InvalidYamlError([_syntax_problem(error)]) from error
    except ReaderError as error:
        message = f"the character {error.character!r} is not allowed in YAML; write it as an escape"
        raise InvalidYamlError([_top_problem(_mark_at(text, error.position), message)]) from error
    except (YAMLError, ValueError) as error:
        message = f"this is no YAML: {error}"
        raise InvalidYamlError([_top_problem(Mark(line=1, column=1), message)]) from error
    except RecursionError as error:
        message = f"lists and mappings are nested too deeply; at most {MAX_DEPTH} levels are read"
        raise InvalidYamlError([_top_problem(Mark(line=1, column=1), message)]) from error
    if node is None:
        raise InvalidYamlError([_top_problem(Mark(line=1, column=1), "the file is empty")])
    builder = _Builder()
    data = builder.build(node, (), 0)
    if builder.problems:
        raise InvalidYamlError(builder.problems)
    return Document(data=data, keys=builder.keys, values=builder.values)


@dataclass(slots=True)
class _Builder:
    """Walks the node graph once; an alias is expanded where it is used, within the bounds."""

    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def build(self, node: Node, path: Path, depth: int) -> Plain:
        mark = _mark_of(node)
        if len(self.values) >= MAX_VALUES or depth > MAX_DEPTH:
            what = f"more than {MAX_VALUES} values" if depth <= MAX_DEPTH else f"more than {MAX_DEPTH} levels"
            message = f"{what} (aliases count where they are used); a configuration is smaller"
            problems = [*self.problems, Problem(mark=mark, path=format_path(path), message=message)]
            raise InvalidYamlError(problems)
        self.values[path] = mark
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            if self._tag(node, path) != "seq":
                return None
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> Plain:
        if self._tag(node, path) != "map":
            return None
        data: dict[str, Plain] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in data:
                first = self.keys[here]
                self._refuse(key_node, here, f"`{key}` is given twice; the first is at line {first.line}, keep one")
                continue
            self.keys[here] = _mark_of(key_node)
            data[key] = self.build(value_node, here, depth + 1)
            if data[key] is None and value_node.value == "":
                self.values[here] = self.keys[here]  # an absent value has the place of whatever comes next
        return data

    def _key(self, node: Node, path: Path) -> str | None:
        if not isinstance(node, ScalarNode):
            self._refuse(node, path, "a key must be a plain word, not a list or a mapping")
            return None
        if str(node.tag) == f"{_TAG}merge":
            self._refuse(node, path, "merge keys (`<<`) are not read; repeat the settings or alias one value")
            return None
        return str(node.value)

    def _scalar(self, node: Node, path: Path) -> Plain:
        tag, text = self._tag(node, path), str(node.value)
        if tag == "null":
            return None
        if tag == "bool":
            return text in _TRUE
        if tag in {"int", "float"}:
            return self._number(node, path, text, tag)
        return text

    def _number(self, node: Node, path: Path, text: str, tag: str) -> Plain:
        try:
            return int(text.replace("_", ""), 0) if tag == "int" else float(text.replace("_", ""))
        except ValueError:
            self._refuse(node, path, "this looks like a number but is none; put it in quotes if it is text")
            return None

    def _tag(self, node: Node, path: Path) -> str:
        tag = str(node.tag)
        short = tag.removeprefix(_TAG)
        if short == tag or short not in {"map", "seq", "str", "int", "float", "bool", "null", "timestamp"}:
            self._refuse(node, path, f"the tag {_shown_tag(tag)} is not allowed; only plain values are read")
            return ""
        return short

    def _refuse(self, node: Node, path: Path, message: str) -> None:
        self.problems.append(Problem(mark=_mark_of(node), path=format_path(path), message=message))


def _shown_tag(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_FILE_BYTES:
        message = f"the file has {len(raw)} bytes; at most {MAX_FILE_BYTES} are read"
        raise InvalidYamlError([_top_problem(Mark(line=1, column=1), message)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = _mark_at(raw[: error.start].decode("utf-8", "replace"), error.start)
        message = f"byte 0x{raw[error.start]:02x} is no UTF-8; save the file as UTF-8"
        raise InvalidYamlError([_top_problem(mark, message)]) from error


def _mark_at(text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(line=before.count("\n") + 1, column=len(before) - (before.rfind("\n") + 1) + 1)


def _mark_of(node: Node) -> Mark:
    return Mark(line=node.start_mark.line + 1, column=node.start_mark.column + 1)


def _top_problem(mark: Mark, message: str) -> Problem:
    return Problem(mark=mark, path="", message=message)


def _syntax_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Mark(line=mark.line + 1, column=mark.column + 1) if mark else Mark(line=1, column=1)
    told = str(error.problem or "this is no YAML").replace("'\\t'", "tab")
    if "character tab" in told:
        message = "a tab stands where YAML wants spaces; indent with spaces"
    elif "undefined alias" in told:
        message = f"{told}; an alias (`*name`) needs an anchor (`&name`) before it"
    elif "another document" in told:
        message = "a second document begins here (`---`); one file holds one configuration"
    else:
        began = f", {error.context}" if error.context else ""
        message = f"this is no YAML: {told}{began}"
    return _top_problem(place, message)
