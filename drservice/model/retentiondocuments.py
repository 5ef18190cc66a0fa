"""Which document sets, and which passes over a filestore, no instant that can be recovered needs any more. Pure.

Every instant from the end of the oldest remaining snapshot of the cluster on can be asked for. The rule and its proof
are in docs/adr/0030-documents-between-passes.md: nothing goes but what is older than a pass that every writer had
learned of before another complete pass began, which ended before the first of these instants and stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from drservice.clock import to_iso
from drservice.model.ids import ComponentName
from drservice.model.retention import Kept, RetentionPlan, Verdict
from drservice.model.retentionanomalies import BEHIND, misdated
from drservice.model.retentionstock import StoredSnapshot
from drservice.model.snapshot import SnapshotState

RELIANCE = timedelta(hours=24)
"""A writer of sets that has not heard of a pass this long after it was stored relies on what is older; none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSetFile:
    """A set as the store lists it."""

    key: str
    stored_at: datetime
    """By the store's clock."""
    stored_bytes: int

    @property
    def id(self) -> str:
        """Its identifier."""
        return self.key.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """Up to when what was stored of a filestore may go."""

    before: datetime | None
    """What was stored by then, in the store's clock; ``None``: nothing may go."""
    reason: str
    kept: tuple[StoredSnapshot, ...] = ()
    """The passes that the others may go because of: they stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSetPlan:
    """What may go of the sets of one filestore."""

    component: ComponentName
    reason: str
    expired: tuple[DocumentSetFile, ...]
    remaining: int


def horizon_of(passes: Sequence[StoredSnapshot], clusters: Sequence[StoredSnapshot]) -> Horizon:
    """Return up to when sets and passes may go.

    Args:
        passes: every pass over the filestore that exists.
        clusters: every snapshot that remains of the cluster whose rows refer to it, whatever its state.
    """
    if not clusters:
        return Horizon(before=None, reason="there is no snapshot of the database: all of it stays")
    first = min(item.stored_at for item in clusters) - BEHIND
    believed = [item for item in passes if item.walk is not None and not item.void and misdated(item) is None]
    whole = [item for item in believed if _is_whole(item) and item.stored_at <= first]
    what = f"instants from {to_iso(first)} on can be recovered"
    if not whole:
        return Horizon(
            before=None, reason=f"{what}, and no complete pass ended before them that found nothing missing: all stays"
        )
    base = max(whole, key=_order)
    known = [
        item
        for item in believed
        if item.state is not SnapshotState.PARTIAL and item.stored_at + RELIANCE <= _began_after(base)
    ]
    if not known:
        reason = f"{what}; before pass {base.id} there is none that every writer had learned of: all stays"
        return Horizon(before=None, reason=reason, kept=(base,))
    learned = max(known, key=_order)
    return Horizon(
        before=_began_after(learned),
        reason=f"{what}; what they need of before them is in pass {base.id}, and nothing relied on before {learned.id}",
        kept=(base, learned),
    )


def keep_passes(
    plan: RetentionPlan, component: ComponentName, *, cluster: ComponentName, blocked: Collection[ComponentName]
) -> RetentionPlan:
    """Return the plan with every pass kept that an instant which can be recovered may need.

    Args:
        plan: what the policy lets go.
        component: the filestore.
        cluster: the database whose rows refer to it.
        blocked: components with something unreadable.
    """
    passes = [item for item, _ in plan.snapshots if item.component == component]
    horizon = horizon_of(passes, [item for item in plan.remaining if item.component == cluster])
    if {component, cluster} & set(blocked):
        horizon = Horizon(before=None, reason="something that cannot be read may need it")
    stay = {item.key for item in horizon.kept}

    def judged(item: StoredSnapshot, verdict: Verdict) -> Verdict:
        if item.component != component or verdict.kept is not None:
            return verdict
        if item.key not in stay and horizon.before is not None and item.stored_at <= horizon.before:
            return verdict
        return Verdict(kept=Kept.DOCUMENTS, reason=horizon.reason)

    return replace(plan, snapshots=tuple((item, judged(item, verdict)) for item, verdict in plan.snapshots))


def plan_sets(
    sets: Sequence[DocumentSetFile],
    component: ComponentName,
    *,
    passes: Sequence[StoredSnapshot],
    clusters: Sequence[StoredSnapshot],
) -> DocumentSetPlan:
    """Judge the sets of a filestore.

    Args:
        sets: all of them.
        component: the filestore.
        passes: every pass over it that exists and stays.
        clusters: every snapshot that remains of the cluster whose rows refer to it.
    """
    horizon = horizon_of(passes, clusters)
    before = horizon.before
    expired = tuple(item for item in sets if before is not None and item.stored_at <= before)
    return DocumentSetPlan(
        component=component, reason=horizon.reason, expired=expired, remaining=len(sets) - len(expired)
    )


def _order(item: StoredSnapshot) -> tuple[datetime, str]:
    return item.stored_at, item.id


def _is_whole(item: StoredSnapshot) -> bool:
    """Tell whether a pass has every document that rows referred to: a set may have the only copy of a missing one."""
    return item.state is SnapshotState.COMPLETE and item.walk is not None and item.walk.is_asked


def _began_after(item: StoredSnapshot) -> datetime:
    """Return an instant by the store's clock after which a pass began: what it says about its length is all it says."""
    assert item.walk is not None, "asked of passes alone"
    return item.stored_at - BEHIND - item.walk.length
