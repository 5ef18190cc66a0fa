"""What a check expects, what it found, and what production said when the recovery point was made.

Pure rules. A value is the text that PostgreSQL printed; numbers are compared as decimals, never as floats. Whatever is
not a proper answer (NULL, text where a number belongs, no baseline to compare with) is *unverified*, and
``model.outcomes`` never lets an unverified check pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import Enum

from drservice.canonical import Json
from drservice.clock import from_iso, to_iso
from drservice.model.ids import SystemId
from drservice.model.wal import Lsn

_COMPARISON = re.compile(r"(=|!=|>=|<=|>|<)\s*(\S.*)", re.DOTALL)
_WITHIN = re.compile(r"within\s+([0-9]+(?:\.[0-9]+)?)\s*%\s+of\s+baseline")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_SHOWN_LETTERS = 80
_EXPECTED = 'expected "= 0", "!= text", ">= 1", "<= 1", "> 1", "< 1", "unchanged" or "within 1% of baseline"'


class Severity(Enum):
    """What a check that does not pass means for the verdict."""

    CRITICAL = "critical"
    """The drill has failed."""
    WARNING = "warning"
    """It is reported, and the drill may pass."""


class CheckState(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    UNVERIFIED = "unverified"
    """It could not be asked, or got no proper answer: never a pass."""


class ExpectationKind(Enum):
    """What a value is compared with."""

    EQUAL = "="
    NOT_EQUAL = "!="
    AT_LEAST = ">="
    AT_MOST = "<="
    MORE = ">"
    LESS = "<"
    UNCHANGED = "unchanged"
    WITHIN = "within"


_ORDERED = frozenset({ExpectationKind.AT_LEAST, ExpectationKind.AT_MOST, ExpectationKind.MORE, ExpectationKind.LESS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the answer to a question has to be; made by :meth:`parse`."""

    kind: ExpectationKind
    operand: str
    """Number or text for a comparison, per cent for ``WITHIN``, empty for ``UNCHANGED``."""

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read an expectation as it stands in the configuration.

        Raises:
            ValueError: it is none; the message says what is expected.
        """
        words = text.strip()
        if words == ExpectationKind.UNCHANGED.value:
            return cls(kind=ExpectationKind.UNCHANGED, operand="")
        if within := _WITHIN.fullmatch(words):
            return cls(kind=ExpectationKind.WITHIN, operand=within[1])
        comparison = _COMPARISON.fullmatch(words)
        if comparison is None:
            raise ValueError(f"{_EXPECTED}, not {_shown(text)}")
        kind, operand = ExpectationKind(comparison[1]), comparison[2]
        if operand[0] in "=<>":
            raise ValueError(f"{_EXPECTED}, not {_shown(text)}")
        if kind in _ORDERED and as_number(operand) is None:
            raise ValueError(f"expected a number after {kind.value}, not {_shown(operand)}")
        return cls(kind=kind, operand=operand)

    @property
    def needs_baseline(self) -> bool:
        """Whether production has to be asked the same question when the recovery point is made."""
        return self.kind in {ExpectationKind.UNCHANGED, ExpectationKind.WITHIN}

    def __str__(self) -> str:
        match self.kind:
            case ExpectationKind.UNCHANGED:
                return "unchanged"
            case ExpectationKind.WITHIN:
                return f"within {self.operand}% of baseline"
            case _:
                return f"{self.kind.value} {self.operand}"

    def judge(
        self, value: str | int | Decimal | None, baseline: str | int | Decimal | None = None
    ) -> tuple[CheckState, str]:
        """Compare an answer with what is expected: the state, and a sentence that holds both numbers.

        Args:
            value: the answer; ``None`` is SQL's NULL, which is no answer.
            baseline: what production answered; only :attr:`needs_baseline` expectations look at it.
        """
        if value is None:
            return CheckState.UNVERIFIED, f"expected {self}, and the answer was NULL"
        found = str(value)
        if not self.needs_baseline:
            return self._compare(found)
        if baseline is None:
            return CheckState.UNVERIFIED, f"expected {self}, and there is no baseline; the answer was {_shown(found)}"
        before = str(baseline)
        if self.kind is ExpectationKind.UNCHANGED:
            state = _state(_same(found, before))
            detail = f"{_shown(found)}, as in production" if state is CheckState.PASSED else ""
            return state, detail or f"{_shown(found)}, in production it was {_shown(before)}"
        return self._within(found, before)

    def _compare(self, found: str) -> tuple[CheckState, str]:
        if self.kind in {ExpectationKind.EQUAL, ExpectationKind.NOT_EQUAL}:
            same = _same(found, self.operand)
            return _state(same is (self.kind is ExpectationKind.EQUAL)), f"{_shown(found)}, expected {self}"
        number, limit = as_number(found), as_number(self.operand)
        if number is None or limit is None:
            return CheckState.UNVERIFIED, f"expected {self}, and {_shown(found)} is no number"
        holds = {
            ExpectationKind.AT_LEAST: number >= limit,
            ExpectationKind.AT_MOST: number <= limit,
            ExpectationKind.MORE: number > limit,
            ExpectationKind.LESS: number < limit,
        }[self.kind]
        return _state(holds), f"{_shown(found)}, expected {self}"

    def _within(self, found: str, before: str) -> tuple[CheckState, str]:
        number, base, per_cent = as_number(found), as_number(before), as_number(self.operand)
        if number is None or base is None or per_cent is None:
            bad = _shown(found if number is None else before)
            return CheckState.UNVERIFIED, f"expected {self}, and {bad} is no number"
        holds = abs(number - base) * 100 <= per_cent * abs(base)
        return _state(holds), f"{_shown(found)}, in production it was {_shown(before)}, expected {self}"


def as_number(text: str) -> Decimal | None:
    """Return the finite number that ``text`` spells in decimal, or ``None``."""
    if len(text) > 1000 or not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _same(one: str, other: str) -> bool:
    """Compare as numbers where both are (``1.0`` is ``1.00``), else letter by letter."""
    numbers = as_number(one), as_number(other)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    return one == other


def _state(holds: bool) -> CheckState:  # noqa: FBT001 - a predicate's answer, turned into its name
    return CheckState.PASSED if holds else CheckState.FAILED


def _shown(text: str) -> str:
    """Return a foreign text so that it can stand in a sentence: short, printable, quoted unless it is a number."""
    short = text if len(text) <= _SHOWN_LETTERS else text[:_SHOWN_LETTERS] + "..."
    return short if as_number(short) is not None else repr(short)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What one check found."""

    name: str
    state: CheckState
    severity: Severity
    detail: str
    """A sentence for people, with the numbers of the moment."""
    seconds: float
    owner: str | None = None
    value: str | None = None
    """The answer itself, where there is one."""

    @property
    def duration_ms(self) -> int:
        """How long it took, for evidence."""
        return round(self.seconds * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineValue:
    """What production answered to one question: a value, or why there is none."""

    value: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What one cluster in production said about itself, kept in the recovery point."""

    measured_at: datetime
    lsn: Lsn
    """Read after the transaction: every row that the values count was committed before this position."""
    snapshot_xmin: int
    """64-bit: every transaction with a smaller id had ended when the values were read."""
    system_id: SystemId
    values: Mapping[str, str] = field(default_factory=dict)
    """By name of the check or watermark."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Questions that production could not answer, with the reason: their checks stay unverified."""

    def value(self, name: str) -> BaselineValue:
        """Return what is known about a question; one that was never asked has a problem too."""
        if name in self.values:
            return BaselineValue(value=self.values[name])
        problem = self.problems.get(name, "production was not asked when the recovery point was made")
        return BaselineValue(value=None, problem=problem)

    def as_json(self) -> Json:
        """Return the baseline for canonical JSON; :meth:`from_json` reads it."""
        return {
            "measured_at": to_iso(self.measured_at),
            "lsn": str(self.lsn),
            "snapshot_xmin": str(self.snapshot_xmin),
            "system_id": self.system_id,
            "values": dict(self.values),
            "problems": dict(self.problems),
        }

    @classmethod
    def from_json(cls, data: Json) -> Baseline:
        """Read what :meth:`as_json` returned.

        Raises:
            ValueError: something is missing, of another type, or unknown.
        """
        if not isinstance(data, Mapping) or set(data) != _BASELINE_FIELDS:
            raise ValueError(f"a baseline has exactly the fields {', '.join(sorted(_BASELINE_FIELDS))}")
        xmin = _text(data, "snapshot_xmin")
        if not (xmin.isascii() and xmin.isdigit() and int(xmin) < 1 << 64):
            raise ValueError(f"{_shown(xmin)} is no transaction id")
        return cls(
            measured_at=from_iso(_text(data, "measured_at")),
            lsn=Lsn.parse(_text(data, "lsn")),
            snapshot_xmin=int(xmin),
            system_id=SystemId(_text(data, "system_id")),
            values=_texts(data, "values"),
            problems=_texts(data, "problems"),
        )


_BASELINE_FIELDS = {"measured_at", "lsn", "snapshot_xmin", "system_id", "values", "problems"}


def _text(data: Mapping[str, Json], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} of a baseline is text")  # noqa: TRY004 - the reader's callers handle one kind
    return value


def _texts(data: Mapping[str, Json], name: str) -> dict[str, str]:
    value = data[name]
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} of a baseline is an object")  # noqa: TRY004 - the reader's callers handle one kind
    found: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"{name}.{key} of a baseline is text")  # noqa: TRY004 - the reader's callers handle one kind
        found[key] = item
    return found


def join_columns(columns: Sequence[str | None]) -> str | None:
    """Return the answer that a row gives: the text of its only column, or all of them; with a NULL there is none."""
    texts = [column for column in columns if column is not None]
    if not columns or len(texts) != len(columns):
        return None
    return texts[0] if len(texts) == 1 else " | ".join(text.replace("|", "||") for text in texts)
