"""What the demo saw, what was wrong with it, and how it is told. Pure: values in, lines or a document out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.cli.formatting import format_bytes, format_seconds, format_table
from drservice.cli.oracle import Comparison, Exposure, Moment, Order, picture
from drservice.cli.output import Colour, Line, Span
from drservice.clock import to_iso

_PICTURE_COLUMNS = 58
_SHOWN = 5
_PHASES = {
    "wal": "the last WAL reaches the repository",
    "plan": "plan, and prove that the target exists",
    "fetch": "fetch and decrypt the files",
    "place": "make them durable",
    "start": "isolation self-test, start the server",
    "replay": "replay WAL up to the target",
    "check": "prove the target, compare every order",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """One backup in numbers."""

    snapshot: str
    started_at: datetime
    stopped_at: datetime
    source_bytes: int
    read_bytes: int
    stored_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the demo measured."""

    backups: tuple[BackupFacts, ...]
    exposures: tuple[Exposure, ...]
    """Committed work at risk, looked at many times between the first backup and the decision."""
    orders: tuple[Order, ...]
    found: frozenset[str]
    """Numbers of the orders in the recovered database."""
    comparison: Comparison
    history_rows: int
    history_is_the_same: bool
    mistake_is_real: bool
    """Production has lost the table."""
    host_cannot_read: bool
    """The production host could not open what it had written."""
    target: datetime
    dropped_at: datetime
    decided_at: datetime
    used_snapshot: str
    used_from: datetime
    reached: datetime | None
    """Time of the last transaction replayed."""
    probes: int
    phases: Mapping[str, float]
    rto_seconds: float
    """From the decision to the end of the checks, waiting for the last WAL included."""
    rpo_promised_seconds: float
    rto_promised_seconds: float
    repository_bytes: int
    environment: str
    dsn: str

    @property
    def worst(self) -> Exposure:
        """The look at which the most time was at risk."""
        return max(self.exposures, key=lambda seen: seen.seconds)

    def breached(self) -> bool:
        """Tell whether a promise was not kept although nothing was wrong."""
        return self.worst.seconds > self.rpo_promised_seconds or self.rto_seconds > self.rto_promised_seconds


def problems_of(facts: Facts) -> tuple[str, ...]:
    """Return everything that is not as it must be; empty only if the recovery is proven."""
    found: list[str] = []
    seen = facts.comparison
    if seen.lost:
        found.append(f"{len(seen.lost)} acknowledged orders are lost: {_some(seen.lost)}")
    if seen.unwanted:
        found.append(f"{len(seen.unwanted)} orders are there that must not be: {_some(seen.unwanted)}")
    if seen.acknowledged == 0 or seen.after_target == 0:
        found.append("no order was entered before the target, or none after it: this run proves nothing")
    if not facts.history_is_the_same:
        found.append("rows that were there from the beginning have changed or are missing")
    if not facts.mistake_is_real:
        found.append("production still has the table: there was nothing to recover from")
    if not facts.host_cannot_read:
        found.append("the production host can read what it wrote, although it has no identity")
    if facts.reached is None or facts.reached > facts.target:
        found.append(f"the last transaction replayed is of {facts.reached}, not before the target")
    if facts.backups[-1].stored_bytes >= facts.backups[0].stored_bytes:
        found.append("the second backup re-used nothing of the first")
    return tuple(found)


def document(facts: Facts, problems: Sequence[str], *, seconds: float, kept: str | None) -> dict[str, object]:
    """Return the JSON document; ``kept``: the folder, if it was left.

    ``rpo_seconds`` is the most committed work that the loss of the machine would have cost at any look;
    ``commits_lost`` counts orders acknowledged up to the target that the recovered database lacks. ``null`` stands for
    what is not built yet.
    """
    seen = facts.comparison
    return {
        "state": "failed" if problems else "breached" if facts.breached() else "passed",
        "problems": list(problems),
        "commits_acknowledged": seen.acknowledged,
        "commits_recovered": seen.recovered,
        "commits_lost": len(seen.lost),
        "commits_after_target": seen.after_target,
        "commits_unwanted": len(seen.unwanted),
        "commits_in_flight": seen.in_flight,
        "rpo_seconds": round(facts.worst.seconds, 3),
        "rpo_promised_seconds": facts.rpo_promised_seconds,
        "rpo_looks": len(facts.exposures),
        "rto_seconds": round(facts.rto_seconds, 3),
        "rto_promised_seconds": facts.rto_promised_seconds,
        "phases": {name: round(value, 3) for name, value in facts.phases.items()},
        "documents_expected": None,
        "documents_missing": None,
        "drill_verdict": None,
        "evidence_verified": None,
        "repository_bytes": facts.repository_bytes,
        "source_bytes": facts.backups[-1].source_bytes,
        "snapshots": [
            {
                "snapshot": item.snapshot,
                "started_at": to_iso(item.started_at),
                "stopped_at": to_iso(item.stopped_at),
                "source_bytes": item.source_bytes,
                "read_bytes": item.read_bytes,
                "stored_bytes": item.stored_bytes,
                "seconds": round(item.seconds, 3),
            }
            for item in facts.backups
        ],
        "target": to_iso(facts.target),
        "dropped_at": to_iso(facts.dropped_at),
        "decided_at": to_iso(facts.decided_at),
        "reached_time": to_iso(facts.reached) if facts.reached else None,
        "restored_snapshot": facts.used_snapshot,
        "isolation_probes": facts.probes,
        "history_rows": facts.history_rows,
        "folder": kept,
        "environment": {"id": facts.environment, "dsn": facts.dsn} if kept else None,
        "seconds": round(seconds, 3),
    }


def report(facts: Facts, problems: Sequence[str], *, blocks: bool, seconds: float) -> list[Line]:
    """Return the end of the story: picture, what was promised and what was measured, verdict."""
    lines: list[Line] = ["", (Span("What happened, to scale", Colour.STRONG),), *_picture(facts, blocks=blocks)]
    lines += ["", (Span("Promised and measured", Colour.STRONG),), *(f"   {row}" for row in _table(facts)), ""]
    lines += [(Span(f"   PROBLEM: {text}", Colour.BAD),) for text in problems]
    if problems:
        verdict = Span("FAILED", Colour.BAD)
    elif facts.breached():
        verdict = Span("BREACHED: recovered, but not within the promise", Colour.WARNING)
    else:
        verdict = Span("PASSED", Colour.GOOD)
    return [*lines, (verdict, f" in {format_seconds(seconds)}")]


def _picture(facts: Facts, *, blocks: bool) -> list[Line]:
    moments = [
        *(Moment(mark=str(n), at=b.stopped_at, text=f"snapshot {n}") for n, b in enumerate(facts.backups, start=1)),
        Moment(mark="T", at=facts.target, text="the target: one second before the mistake"),
        Moment(mark="X", at=facts.dropped_at, text="DROP TABLE work_order"),
        Moment(mark="D", at=facts.decided_at, text="decision to restore"),
    ]
    acknowledged = [(order.number, order.acknowledged) for order in facts.orders if order.acknowledged is not None]
    rows = picture(
        moments=moments,
        entered=[at for _, at in acknowledged],
        recovered=[at for number, at in acknowledged if number in facts.found],
        used=(facts.used_from, facts.target),
        width=_PICTURE_COLUMNS,
        blocks=blocks,
    )
    legend = [f"   {m.mark}  {m.at:%H:%M:%S}.{m.at.microsecond // 1000:03d}  {m.text}" for m in moments]
    return [*(f"   {row}" for row in rows), *legend]


def _table(facts: Facts) -> list[str]:
    seen, worst = facts.comparison, facts.worst
    rto = format_seconds(facts.rto_seconds)
    rows = [
        (f"orders lost, of {seen.acknowledged} acknowledged up to the target", "0", str(len(seen.lost))),
        (f"orders there, of {seen.after_target} begun after the target", "0", str(len(seen.unwanted))),
        (
            f"RPO: work at risk, the worst of {len(facts.exposures)} looks ({worst.orders} orders)",
            format_seconds(facts.rpo_promised_seconds),
            format_seconds(worst.seconds),
        ),
        ("RTO: decision to checks passed", format_seconds(facts.rto_promised_seconds), rto),
        *((f"     {_PHASES.get(name, name)}", "", format_seconds(value)) for name, value in facts.phases.items()),
        ("files of the database", "", format_bytes(facts.backups[-1].source_bytes)),
        ("repository: two snapshots and the WAL", "", format_bytes(facts.repository_bytes)),
        ("documents, drill verdict, signed evidence", "", "not built yet"),
    ]
    return format_table(("", "PROMISED", "MEASURED"), rows)


def _some(numbers: Sequence[str]) -> str:
    more = len(numbers) - _SHOWN
    return ", ".join(numbers[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
