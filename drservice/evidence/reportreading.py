"""Makes typed values of decoded statements. Pure.

A statement is signed by whoever wrote it, not by whoever reads it: its shape is checked field by field here. What does
not have the agreed shape becomes :class:`Unreadable`, which a report shows as an exception; it is never passed over.
Fields beyond the agreed ones are allowed (a newer writer), missing ones are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import TypeVar

from drservice.canonical import Json
from drservice.clock import from_iso
from drservice.evidence.reportentries import (
    AccessEntry,
    ApprovalEntry,
    BackupEntry,
    BackupOutcome,
    Captured,
    Check,
    CheckOutcome,
    DecodedEntry,
    Documents,
    DrillEntry,
    DrillOutcome,
    Entry,
    FailureEntry,
    FindingEntry,
    Gravity,
    KeyEntry,
    MissedEntry,
    ObligationEntry,
    Probe,
    ProbeEntry,
    Promise,
    Restoration,
    RestoreEntry,
    RestoreOutcome,
    RetentionEntry,
    Stamp,
    Target,
    Trouble,
    Unreadable,
)

_GREATEST = 2**53 - 1
"""What every reader of JSON counts to (RFC 8259, section 6)."""
PREDICATE_PREFIX = "urn:drservice:evidence:"

_E = TypeVar("_E", bound=Enum)


class _ShapeError(Exception):
    """A statement does not have the agreed shape; never leaves this module."""


def read_entry(signed: DecodedEntry) -> Entry | Unreadable:
    """Return the typed value of an entry, or why there is none. Raises nothing for any statement."""
    try:
        statement = _Fields(signed.statement, "statement")
        kind = _kind_of(statement.text("predicateType"))
        fields = statement.map("predicate")
        tool = fields.map("tool")
        stamp = Stamp(
            number=signed.number,
            kind=kind,
            service=fields.maybe_text("service"),
            host=fields.text("host"),
            run=fields.maybe_text("run"),
            recorded_at=fields.instant("recorded_at"),
            tool=f"{tool.text('name')} {tool.text('version')}",
            is_kept_aside="kept_aside" in fields,
            signers=signed.signers,
        )
        return _READERS[kind](fields, stamp)
    except _ShapeError as error:
        return Unreadable(number=signed.number, reason=str(error))


class _Fields:
    """A JSON object whose values are asked for by type; another shape raises :class:`_ShapeError` naming the field."""

    def __init__(self, value: Json, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _ShapeError(f"{where} is no object")
        self._value = value
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def _get(self, name: str) -> Json:
        if name not in self._value:
            raise _ShapeError(f"{self._where}.{name} is missing")
        return self._value[name]

    def _wrong(self, name: str, wanted: str) -> _ShapeError:
        return _ShapeError(f"{self._where}.{name} is no {wanted}")

    def map(self, name: str) -> _Fields:
        return _Fields(self._get(name), f"{self._where}.{name}")

    def maybe_map(self, name: str) -> _Fields | None:
        return None if self._get(name) is None else self.map(name)

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def maybe_text(self, name: str) -> str | None:
        return None if self._get(name) is None else self.text(name)

    def number(self, name: str) -> int:
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _GREATEST:
            raise self._wrong(name, "whole number")
        return value

    def maybe_number(self, name: str) -> int | None:
        return None if self._get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def instant(self, name: str) -> datetime:
        try:
            return from_iso(self.text(name))
        except (ValueError, OverflowError) as error:
            raise _ShapeError(f"{self._where}.{name}: {error}") from error

    def maybe_instant(self, name: str) -> datetime | None:
        return None if self._get(name) is None else self.instant(name)

    def choice(self, name: str, kind: type[_E]) -> _E:
        text = self.text(name)
        try:
            return kind(text)
        except ValueError as error:
            raise _ShapeError(f"{self._where}.{name} is {text!r}, which means nothing here") from error

    def maps(self, name: str) -> list[_Fields]:
        return [_Fields(item, f"{self._where}.{name}[{place}]") for place, item in enumerate(self._list(name))]

    def instants(self, name: str) -> tuple[datetime, ...]:
        try:
            return tuple(from_iso(text) for text in self.texts(name))
        except (ValueError, OverflowError) as error:
            raise _ShapeError(f"{self._where}.{name}: {error}") from error

    def texts(self, name: str) -> tuple[str, ...]:
        found = []
        for item in self._list(name):
            if not isinstance(item, str):
                raise self._wrong(name, "list of texts")
            found.append(item)
        return tuple(found)

    def _list(self, name: str) -> list[Json]:
        value = self._get(name)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(name, "list")
        return list(value)

    def count(self, name: str) -> int:
        """A number, or the number of things in a list (null: none)."""
        value = self._get(name)
        if value is None:
            return 0
        return len(value) if isinstance(value, (list, tuple)) else self.number(name)

    def numbers(self) -> tuple[tuple[str, int | None], ...]:
        return tuple((name, self.maybe_number(name)) for name in self._value)


def _kind_of(predicate_type: str) -> str:
    kind = predicate_type.removeprefix(PREDICATE_PREFIX).removesuffix(":v1")
    if predicate_type != f"{PREDICATE_PREFIX}{kind}:v1" or kind not in _READERS:
        raise _ShapeError(f"the kind {predicate_type!r} is unknown to this version")
    return kind


def _trouble(fields: _Fields) -> Trouble | None:
    error = fields.maybe_map("error")
    return None if error is None else Trouble(code=error.text("code"), message=error.text("message"))


def _backup(fields: _Fields, stamp: Stamp) -> BackupEntry:
    components = [
        Captured(
            component=item.text("component"),
            kind=item.text("kind"),
            state=item.text("state"),
            snapshot=item.maybe_text("snapshot"),
            missing_in_production=item.count("missing_in_production"),
            corrupt_in_production=item.count("corrupt_in_production"),
        )
        for item in fields.maps("components")
    ]
    return BackupEntry(
        stamp=stamp,
        outcome=fields.choice("outcome", BackupOutcome),
        point=fields.maybe_text("point"),
        started_at=fields.maybe_instant("started_at"),
        ended_at=fields.maybe_instant("ended_at"),
        components=tuple(components),
        error=_trouble(fields),
    )


def _target(fields: _Fields | None) -> Target | None:
    if fields is None:
        return None
    return Target(
        requested=fields.maybe_text("requested"),
        kind=fields.maybe_text("kind"),
        reached_time=fields.maybe_instant("reached_time"),
        reached_lsn=fields.maybe_text("reached_lsn"),
        timeline=fields.maybe_number("timeline"),
    )


def _restoration(fields: _Fields) -> Restoration:
    phases, documents = fields.maybe_map("phases_ms"), fields.maybe_map("documents")
    environment = fields.maybe_map("environment")
    counted = None
    if documents is not None:
        counted = Documents(
            expected=documents.count("expected"),
            missing=documents.count("missing"),
            corrupt=documents.count("corrupt"),
            extra=documents.count("extra"),
            missing_in_production=documents.count("missing_in_production"),
        )
    return Restoration(
        target=_target(fields.maybe_map("target")),
        point=fields.maybe_text("point"),
        snapshots=tuple((item.text("component"), item.text("snapshot")) for item in fields.maps("snapshots")),
        phases_ms=phases.numbers() if phases else (),
        rto_ms=fields.maybe_number("rto_ms"),
        documents=counted,
        isolation=tuple(
            Probe(name=item.text("name"), is_good=item.flag("isolated"), detail=item.text("detail"))
            for item in fields.maps("isolation")
        ),
        environment=f"{environment.text('kind')} {environment.text('id')}" if environment else None,
        error=_trouble(fields),
    )


def _restore(fields: _Fields, stamp: Stamp) -> RestoreEntry:
    return RestoreEntry(stamp=stamp, outcome=fields.choice("outcome", RestoreOutcome), restoration=_restoration(fields))


def _promise(fields: _Fields) -> Promise:
    return Promise(rpo_ms=fields.maybe_number("rpo_ms"), rto_ms=fields.maybe_number("rto_ms"))


def _drill(fields: _Fields, stamp: Stamp) -> DrillEntry:
    challenge = fields.maybe_map("challenge")
    checks = [
        Check(
            name=item.text("name"),
            state=item.choice("state", CheckOutcome),
            gravity=item.choice("severity", Gravity),
            is_not_applicable=item.flag("not_applicable"),
            owner=item.maybe_text("owner"),
            duration_ms=item.maybe_number("duration_ms"),
            detail=item.text("detail"),
        )
        for item in fields.maps("checks")
    ]
    return DrillEntry(
        stamp=stamp,
        outcome=fields.choice("outcome", DrillOutcome),
        restoration=_restoration(fields),
        obligation=fields.text("obligation"),
        obligation_entry=fields.maybe_number("obligation_entry"),
        reasons=fields.texts("reasons"),
        checks=tuple(checks),
        rpo_ms=fields.maybe_number("rpo_ms"),
        target_accuracy_ms=fields.maybe_number("target_accuracy_ms"),
        promised=_promise(fields.map("promised")),
        not_tested=fields.texts("not_tested"),
        seed=fields.maybe_text("seed"),
        mutation=fields.maybe_text("mutation"),
        is_destroyed=fields.flag("destroyed"),
        is_kept=fields.flag("kept"),
        findings=fields.texts("findings"),
        challenge_nonce=challenge.text("nonce") if challenge else None,
        challenge_lsn=challenge.maybe_text("lsn") if challenge else None,
    )


def _obligation(fields: _Fields, stamp: Stamp) -> ObligationEntry:
    plan, criteria, target = fields.map("plan"), fields.map("criteria"), fields.map("target")
    return ObligationEntry(
        stamp=stamp,
        obligation=fields.text("obligation"),
        what=fields.text("what"),
        plan=plan.text("name"),
        plan_sha256=plan.text("sha256"),
        due_at=fields.maybe_instant("due_at"),
        promised=_promise(criteria),
        counts_documents=criteria.flag("documents"),
        checks=tuple((item.text("name"), item.choice("severity", Gravity)) for item in criteria.maps("checks")),
        target_kind=target.text("kind"),
        target_time=target.maybe_instant("time"),
        target_from=target.maybe_instant("from"),
        target_to=target.maybe_instant("to"),
        seed_commitment=target.maybe_text("seed_commitment"),
        mutation=fields.maybe_text("mutation"),
    )


def _approval(fields: _Fields, stamp: Stamp) -> ApprovalEntry:
    return ApprovalEntry(
        stamp=stamp,
        entry=fields.number("entry"),
        approver=fields.text("approver"),
        decision=fields.text("decision"),
        comment=fields.text("comment"),
    )


def _probe(fields: _Fields, stamp: Stamp) -> ProbeEntry:
    return ProbeEntry(
        stamp=stamp,
        probe=fields.text("probe"),
        is_passed=fields.choice("outcome", DrillOutcome) is DrillOutcome.PASSED,
        results=tuple(
            Probe(name=item.text("name"), is_good=item.flag("passed"), detail=item.text("detail"))
            for item in fields.maps("results")
        ),
    )


class _FindingState(Enum):
    OPENED = "opened"
    CLOSED = "closed"


def _finding(fields: _Fields, stamp: Stamp) -> FindingEntry:
    return FindingEntry(
        stamp=stamp,
        finding=fields.text("finding"),
        is_open=fields.choice("state", _FindingState) is _FindingState.OPENED,
        check=fields.text("check"),
        gravity=fields.choice("severity", Gravity),
        owner=fields.maybe_text("owner"),
        drill_entry=fields.maybe_number("drill_entry"),
        detail=fields.text("detail"),
        due_at=fields.maybe_instant("due_at"),
    )


def _key(fields: _Fields, stamp: Stamp) -> KeyEntry:
    key = fields.map("key")
    return KeyEntry(
        stamp=stamp,
        action=fields.text("action"),
        name=key.text("name"),
        role=key.text("role"),
        public=key.text("public"),
        services=fields.texts("services"),
        previous=fields.maybe_text("previous"),
    )


def _missed(fields: _Fields, stamp: Stamp) -> MissedEntry:
    return MissedEntry(
        stamp=stamp,
        kind=fields.text("kind"),
        plan=fields.maybe_text("plan"),
        slots=fields.instants("slots"),
        reason=fields.text("reason"),
        caught_up_by=fields.maybe_text("caught_up_by"),
        noticed_at=fields.instant("noticed_at"),
    )


def _failure(fields: _Fields, stamp: Stamp) -> FailureEntry:
    return FailureEntry(
        stamp=stamp,
        kind=fields.text("kind"),
        plan=fields.maybe_text("plan"),
        outcome=fields.text("outcome"),
        scheduled_for=fields.instant("scheduled_for"),
        claims=fields.number("claims"),
        ended_at=fields.instant("ended_at"),
        error=_trouble(fields),
    )


def _retention(fields: _Fields, stamp: Stamp) -> RetentionEntry:
    return RetentionEntry(
        stamp=stamp,
        action=fields.text("action"),
        outcome=fields.text("outcome"),
        plan_sha256=fields.text("plan"),
        planned=fields.map("planned").numbers(),
        removed=fields.map("removed").numbers(),
        refused=fields.number("refused"),
        kept=tuple((item.text("by"), item.number("snapshots")) for item in fields.maps("kept")),
        last_verified=tuple((item.text("component"), item.text("snapshot")) for item in fields.maps("last_verified")),
        anomalies=fields.texts("anomalies"),
        is_accepted=fields.flag("accepted"),
        error=_trouble(fields),
    )


def _access(fields: _Fields, stamp: Stamp) -> AccessEntry:
    outcomes = fields.map("outcomes")
    return AccessEntry(
        stamp=stamp,
        log=fields.text("log"),
        day=fields.text("day"),
        lines=fields.number("lines"),
        late=fields.number("late"),
        sha256=fields.text("sha256"),
        succeeded=outcomes.number("succeeded"),
        refused=outcomes.number("refused"),
        failed=outcomes.number("failed"),
        sign_ins_refused=outcomes.number("sign_ins_refused"),
        is_first=fields.maybe_map("previous") is None,
    )


_READERS: dict[str, Callable[[_Fields, Stamp], Entry]] = {
    "backup": _backup,
    "restore": _restore,
    "drill": _drill,
    "obligation": _obligation,
    "approval": _approval,
    "probe": _probe,
    "finding": _finding,
    "key": _key,
    "missed": _missed,
    "failure": _failure,
    "retention": _retention,
    "access": _access,
}
