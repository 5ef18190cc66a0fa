"""Runbooks: Markdown that people follow on paper and a program can walk them through.

A file opens with front matter (YAML between two lines ``---``). Each step is a heading of its own, some prose, and one
block fenced as ``drservice-step``, which is YAML. Other fences are ``text`` (forms, what one sees): a command that
stands in no step would be one that no test runs. Rules of the format, all checked by :func:`parse_runbook`:

* Steps are done from top to bottom. ``depends_on`` names steps that stand above; without it a step depends on the one
  before. So there is no circle. A step that is not for this occasion (``run_in``) counts as done.
* ``auto`` changes something and ``check`` only looks; both have ``run``, a script for ``bash -eu``. ``manual``,
  ``approval``, ``prompt`` and ``wait`` have ``do`` for people, and everything but ``wait`` an ``owner``.
* A step is critical unless it says otherwise; a critical command has a ``fallback``: what to do when it fails.
* Blanks (``${NAME}``) are environment variables. Front matter declares each; a person fills it in before the first
  step, a prompt ``asks`` for it, or a command's output tells it (``learn``: a regular expression with one group).

Nothing is executed or looked up here. Every mistake is told at once, with its line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from drservice.model.ids import is_name

MAX_LETTERS = 1 << 18
STEP_FENCE = "drservice-step"
_FENCES = {STEP_FENCE, "text"}
_BLANK = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_BLANK_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STATUS = re.compile(r"[0-9]{1,3}")
_DEFAULT_TIMEOUT = "1h"

Value: TypeAlias = "str | tuple[str, ...] | dict[str, str]"


class StepKind(Enum):
    """Who acts in a step, and what decides that it is done."""

    AUTO = "auto"
    """A command that changes something."""
    CHECK = "check"
    """A command that only looks; its expected output decides."""
    MANUAL = "manual"
    """The owner does something."""
    APPROVAL = "approval"
    """The owner decides that the next steps may be done."""
    PROMPT = "prompt"
    """The owner fills in blanks."""
    WAIT = "wait"
    """Something else has to happen first."""


class RunIn(Enum):
    """When a step is done."""

    DRILL = "drill"
    REAL = "real"
    BOTH = "both"


class OnFailure(Enum):
    """What happens when a step fails."""

    STOP = "stop"
    ASK = "ask"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that is wrong with a file."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class InvalidRunbookError(ValueError):
    """The text is no runbook; carries every mistake found. Who reads the file turns it into words for people."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. ``title`` is its heading; texts may hold blanks."""

    id: str
    title: str
    line: int
    kind: StepKind
    run: str | None = None
    """A script for ``bash -eu -o pipefail``; the blanks are its environment."""
    expect: tuple[str, ...] = ()
    """Texts that the output of ``run`` has to hold."""
    exit_statuses: tuple[int, ...] = (0,)
    learn: Mapping[str, str] = field(default_factory=dict)
    """Blanks that the output fills, each by a regular expression with one group."""
    asks: tuple[str, ...] = ()
    """Blanks that the owner fills in here."""
    do: str | None = None
    owner: str | None = None
    at: str | None = None
    """The machine on which this is done, in words."""
    depends_on: tuple[str, ...] = ()
    critical: bool = True
    timeout_seconds: int
    retry: int = 0
    """How often a failed command is tried again, a few seconds later."""
    on_failure: OnFailure = OnFailure.STOP
    run_in: RunIn = RunIn.BOTH
    undo: str | None = None
    """A script that takes the step back; after it the step can be done again."""
    fallback: str | None = None
    """What people do when the step fails."""

    def texts(self) -> Iterator[str]:
        """Yield everything in which a blank may stand."""
        yield from (text for text in (self.run, self.do, self.undo, self.fallback) if text is not None)
        yield from self.expect


@dataclass(frozen=True, slots=True, kw_only=True)
class Runbook:
    """A valid runbook."""

    id: str
    title: str
    purpose: str
    use_when: tuple[str, ...]
    owner: str
    minutes: int
    """How long it takes, as a rule."""
    needs: tuple[str, ...]
    """What has to be at hand before the first step."""
    changes_production: bool
    reviewed: date
    blanks: Mapping[str, str]
    """What is filled in, and what it means."""
    steps: tuple[Step, ...]
    sha256: str
    """Of the file's text: a runbook that was edited is another one, and not verified."""

    def blanks_at_start(self) -> tuple[str, ...]:
        """Return the blanks that a person has to fill in before the first step."""
        later = {name for step in self.steps for name in (*step.learn, *step.asks)}
        return tuple(name for name in self.blanks if name not in later)


def parse_runbook(text: str) -> Runbook:
    """Read and check a runbook.

    Raises:
        InvalidRunbookError: with every mistake found.
    """
    reader = _Reader()
    runbook = reader.read(text)
    if runbook is None or reader.mistakes:
        raise InvalidRunbookError(sorted(reader.mistakes, key=lambda mistake: mistake.line))
    return runbook


def blanks_in(texts: Iterable[str]) -> dict[str, None]:
    """Return the names of the blanks in some texts, in order and once."""
    return dict.fromkeys(name for text in texts for name in _BLANK.findall(text))


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    """Of its first line of content."""
    title: str | None
    text: str


_HEAD_KEYS = frozenset(
    {"id", "title", "purpose", "use_when", "owner", "minutes", "needs", "changes_production", "reviewed", "blanks"}
)
_COMMAND_KEYS = frozenset({"run", "expect", "exit", "learn", "retry", "undo"})
_STEP_KEYS = _COMMAND_KEYS | {
    "id", "kind", "do", "asks", "owner", "at", "depends_on", "critical", "timeout", "on_failure", "run_in", "fallback",
}  # fmt: skip
_COMMANDS = frozenset({StepKind.AUTO, StepKind.CHECK})


@dataclass(slots=True)
class _Fields:
    """The fields of one mapping, taken one by one; what is missing or of another form is noted."""

    values: dict[str, Value]
    lines: dict[str, int]
    line: int
    mistakes: list[Mistake]

    def wrong(self, key: str, message: str) -> None:
        self.mistakes.append(Mistake(line=self.lines.get(key, self.line), message=f"{key}: {message}"))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that has to be there, unless there is a default."""
        value = self.values.get(key, default)
        if value is None:
            self.wrong(key, "is missing")
        elif not isinstance(value, str):
            self.wrong(key, "is a text")
        elif not value.strip():
            self.wrong(key, "is empty")
        else:
            return value
        return ""

    def optional(self, key: str) -> str | None:
        """Return a text that may be absent."""
        return self.text(key) if key in self.values else None

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """Return a list of texts; one text is a list of one."""
        value = self.values.get(key, ())
        if isinstance(value, dict):
            self.wrong(key, "is a list of texts")
            return ()
        items = (value,) if isinstance(value, str) else value
        if (required and not items) or not all(item.strip() for item in items):
            self.wrong(key, "is missing or has an empty entry")
        return items

    def mapping(self, key: str) -> dict[str, str]:
        """Return names with texts."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.wrong(key, "maps names to texts")
            return {}
        return value

    def whether(self, key: str, *, default: str | None = None) -> bool:
        """Return a yes or no."""
        word = self.text(key, default)
        if word not in {"yes", "no", "true", "false", ""}:
            self.wrong(key, f"is yes or no, not {word!r}")
        return word in {"yes", "true"}

    def number(self, key: str, default: str | None = None) -> int:
        """Return a whole number up to 99,999."""
        word = self.text(key, default)
        if not (word.isascii() and word.isdigit() and len(word) <= 5):
            if word:
                self.wrong(key, f"is a whole number, not {word!r}")
            return 0
        return int(word)

    def choice(self, key: str, kinds: type[Enum], default: str | None = None) -> str:
        """Return a value of an enumeration, the first one where the word is none."""
        words = [str(item.value) for item in kinds]
        word = self.text(key, default)
        if word and word not in words:
            self.wrong(key, f"is one of {', '.join(words)}, not {word!r}")
        return word if word in words else words[0]


@dataclass(slots=True)
class _Reader:
    mistakes: list[Mistake] = field(default_factory=list)

    def read(self, text: str) -> Runbook | None:
        if len(text) > MAX_LETTERS:
            self._wrong(1, f"a runbook has at most {MAX_LETTERS} letters")
            return None
        lines = text.split("\n")
        end = next((number for number, line in enumerate(lines[1:], 1) if line == "---"), None)
        if lines[0] != "---" or end is None:
            self._wrong(1, "a runbook opens with front matter between two lines ---")
            return None
        head = self._fields("\n".join(lines[1:end]), 2, _HEAD_KEYS)
        blocks = list(self._blocks(lines, end + 1))
        steps: list[Step] = []
        for block in blocks:
            fields = self._fields(block.text, block.line, _STEP_KEYS)
            if fields is not None:
                steps.append(self._step(fields, block, steps))
        if not blocks:
            self._wrong(len(lines), "there is no step")
        if head is None:
            return None
        return self._runbook(head, steps, text)

    def _wrong(self, line: int, message: str) -> None:
        self.mistakes.append(Mistake(line=line, message=message))

    def _runbook(self, head: _Fields, steps: Sequence[Step], text: str) -> Runbook:
        identity, reviewed = head.text("id"), head.text("reviewed")
        if identity and not is_name(identity):
            head.wrong("id", f"is made of a-z, 0-9, - and _, not {identity!r}")
        try:
            day = date.fromisoformat(reviewed) if reviewed else date.min
        except ValueError:
            head.wrong("reviewed", f"is a date such as 2026-11-30, not {reviewed!r}")
            day = date.min
        minutes = head.number("minutes")
        runbook = Runbook(
            id=identity,
            title=head.text("title"),
            purpose=head.text("purpose"),
            use_when=head.texts("use_when", required=True),
            owner=head.text("owner"),
            minutes=minutes,
            needs=head.texts("needs", required=True),
            changes_production=head.whether("changes_production"),
            reviewed=day,
            blanks=head.mapping("blanks"),
            steps=tuple(steps),
            sha256=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        )
        self._check_blanks(runbook, head)
        return runbook

    def _check_blanks(self, runbook: Runbook, head: _Fields) -> None:
        """Every blank is declared, filled in before it is used, and used."""
        for name, meaning in runbook.blanks.items():
            if not _BLANK_NAME.fullmatch(name) or not meaning.strip():
                head.wrong("blanks", f"{name!r} has to be a name in capitals, with what it means")
        filled = set(runbook.blanks_at_start())
        used: set[str] = set()
        for step in runbook.steps:
            wanted = blanks_in([*step.texts(), *step.learn.values()])
            own = {*step.learn, *step.asks}
            used |= {*wanted, *own}
            for name in (*wanted, *own):
                if name not in runbook.blanks:
                    self._wrong(step.line, f"step {step.id}: ${{{name}}} is not among the blanks of the front matter")
            early = blanks_in([step.run or ""]) if step.kind in _COMMANDS else {}
            for name in early:
                if name in runbook.blanks and name not in filled:
                    self._wrong(step.line, f"step {step.id}: ${{{name}}} is used before a step tells it")
            filled |= own
        for name in runbook.blanks:
            if name not in used:
                head.wrong("blanks", f"{name} is used by no step")

    def _step(self, fields: _Fields, block: _Block, above: Sequence[Step]) -> Step:
        kind = StepKind(fields.choice("kind", StepKind))
        identity = fields.text("id")
        known = {step.id for step in above}
        if identity in known:
            fields.wrong("id", f"{identity} is the id of another step")
        elif identity and not is_name(identity):
            fields.wrong("id", f"is made of a-z, 0-9, - and _, not {identity!r}")
        if block.title is None:
            self._wrong(block.line, f"step {identity}: has no heading of its own")
        depends_on = fields.texts("depends_on") if "depends_on" in fields.values else tuple(s.id for s in above[-1:])
        for name in depends_on:
            if name not in known:
                fields.wrong("depends_on", f"{name} is no step above this one: steps are done from top to bottom")
        step = Step(
            id=identity,
            title=block.title or "",
            line=block.line,
            kind=kind,
            run=fields.optional("run"),
            expect=fields.texts("expect"),
            exit_statuses=_statuses(fields),
            learn=fields.mapping("learn"),
            asks=fields.texts("asks"),
            do=fields.optional("do"),
            owner=fields.optional("owner"),
            at=fields.optional("at"),
            depends_on=depends_on,
            critical=fields.whether("critical", default="yes"),
            timeout_seconds=_seconds(fields),
            retry=fields.number("retry", "0"),
            on_failure=OnFailure(fields.choice("on_failure", OnFailure, "stop")),
            run_in=RunIn(fields.choice("run_in", RunIn, "both")),
            undo=fields.optional("undo"),
            fallback=fields.optional("fallback"),
        )
        _check_kind(step, fields)
        return step

    def _blocks(self, lines: Sequence[str], start: int) -> Iterator[_Block]:
        """Yield the step blocks; each takes the heading above it, which no other step may have."""
        title: str | None = None
        opened: int | None = None
        for number in range(start, len(lines)):
            line = lines[number]
            if opened is not None:
                if line.rstrip() == "```":
                    if lines[opened][3:].strip() == STEP_FENCE:
                        yield _Block(opened + 2, title, "\n".join(lines[opened + 1 : number]))
                        title = None
                    opened = None
            elif re.match(r"\s*(```|~~~)", line):
                word = line.strip()[3:].strip()
                if not line.startswith("```") or word not in _FENCES:
                    self._wrong(
                        number + 1, f"fences are ```{STEP_FENCE} and ```text at the margin, not {line.strip()!r}"
                    )
                opened = number
            elif heading := re.match(r"#{1,6}\s+(\S.*?)\s*#*$", line):
                title = heading[1]
        if opened is not None:
            self._wrong(opened + 1, "this block is never closed")

    # --- YAML: one mapping of texts, lists of texts, and mappings of texts ------------------------------------

    def _fields(self, text: str, line: int, known: frozenset[str]) -> _Fields | None:
        try:
            node = YAML(typ="safe", pure=True).compose(text)
        except MarkedYAMLError as error:
            where = error.problem_mark.line if error.problem_mark is not None else 0
            self._wrong(line + where, f"this is no YAML: {error.problem or error.context}")
            return None
        except (YAMLError, ValueError, RecursionError) as error:
            self._wrong(line, f"this is no YAML: {type(error).__name__}")
            return None
        if not isinstance(node, MappingNode):
            self._wrong(line, "a mapping of keys and values is expected")
            return None
        fields = _Fields(values={}, lines={}, line=line, mistakes=self.mistakes)
        for key_node, value_node in node.value:
            here = line + key_node.start_mark.line
            key = key_node.value if isinstance(key_node, ScalarNode) else "?"
            if key in fields.values or key not in known:
                self._wrong(here, f"{key}: {'is given twice' if key in fields.values else 'is no key here'}")
                continue
            value = _plain(value_node)
            if value is None:
                self._wrong(here, f"{key}: is a text, a list of texts or a mapping of texts")
                continue
            fields.values[key], fields.lines[key] = value, here
        return fields


def _plain(node: Node) -> Value | None:
    """Return a node as texts; every scalar is what is written, whatever YAML would make of it."""
    if isinstance(node, ScalarNode):
        return str(node.value)
    if isinstance(node, SequenceNode) and all(isinstance(item, ScalarNode) for item in node.value):
        return tuple(str(item.value) for item in node.value)
    if isinstance(node, MappingNode) and all(
        isinstance(key, ScalarNode) and isinstance(value, ScalarNode) for key, value in node.value
    ):
        found = {str(key.value): str(value.value) for key, value in node.value}
        return found if len(found) == len(node.value) else None
    return None


def _seconds(fields: _Fields) -> int:
    word = fields.text("timeout", _DEFAULT_TIMEOUT)
    found = _DURATION.fullmatch(word)
    if found is None:
        fields.wrong("timeout", f"is a duration such as 30s, 10m or 4h, not {word!r}")
        return 0
    return int(found[1]) * _SECONDS[found[2]]


def _statuses(fields: _Fields) -> tuple[int, ...]:
    words = fields.texts("exit") or ("0",)
    if not all(_STATUS.fullmatch(word) and int(word) < 256 for word in words):
        fields.wrong("exit", "is an exit status from 0 to 255, or a list of them")
        return (0,)
    return tuple(int(word) for word in words)


def _check_kind(step: Step, fields: _Fields) -> None:
    """Check that a step has what its kind needs, and nothing that its kind has no use for."""
    if step.kind in _COMMANDS:
        _check_command(step, fields)
    else:
        _check_words(step, fields)
    if bool(step.asks) is not (step.kind is StepKind.PROMPT):
        fields.wrong("asks", "belongs to a prompt, and a prompt has it")


def _check_command(step: Step, fields: _Fields) -> None:
    if "run" not in fields.values:
        fields.wrong("run", f"is missing: {step.kind.value} is done by a command")
    if step.kind is StepKind.CHECK and not step.expect:
        fields.wrong("expect", "is missing: it decides whether the check passed")
    if step.kind is StepKind.CHECK and step.undo is not None:
        fields.wrong("undo", "has no use: a check changes nothing")
    if step.critical and step.fallback is None:
        fields.wrong("fallback", "is missing: what shall people do when this fails?")
    for name, pattern in step.learn.items():
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            fields.wrong("learn", f"{name}: {error}")
        else:
            if groups != 1:
                fields.wrong("learn", f"{name}: the expression has {groups} groups, it needs one")


def _check_words(step: Step, fields: _Fields) -> None:
    for key in sorted(_COMMAND_KEYS & fields.values.keys()):
        fields.wrong(key, f"is no key of a step that people do ({step.kind.value})")
    if "do" not in fields.values:
        fields.wrong("do", f"is missing: {step.kind.value} is done by people, tell them what")
    if step.owner is None and step.kind is not StepKind.WAIT:
        fields.wrong("owner", f"is missing: {step.kind.value} is done by people, tell who")
