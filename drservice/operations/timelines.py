"""Choosing the timeline that a restored cluster promotes to, so that no two restores choose the same one (trap T34)."""

from __future__ import annotations

from drservice.components.postgres.recovery import TargetAction
from drservice.errors import DrError
from drservice.model.wal import Timeline
from drservice.operations.restorerequest import Planned, RestoreContext, RestoreRequest
from drservice.repository.timelines import take_timeline


def choose_timeline(context: RestoreContext, request: RestoreRequest, planned: Planned) -> Timeline | None:
    """Take a timeline for a cluster that is kept in a directory and may archive; ``None``: PostgreSQL chooses.

    One in a sandbox never archives, nor does a side restore or a drill; they use up no numbers. A machine that cannot
    write restores without a number of its own, and is told: nothing about it stands in the way of a rescue.
    """
    is_kept = request.into is not None and request.database is None and request.purpose == "restore"
    if not is_kept or request.action is not TargetAction.PROMOTE:
        return None
    inventory = planned.archived.inventory
    known = max(*inventory.timelines(), planned.resolved.plan.timeline)
    repository = context.repository
    try:
        return take_timeline(
            repository.store,
            repository.host_key,
            planned.scope,
            inventory.system_id,
            above=Timeline(known),
            clock=context.clock,
        )
    except DrError as error:
        context.progress.note(
            "WARNING: no timeline can be taken for this copy, so another one may get the same; let only one of them"
            f" archive: {error.message}"
        )
        return None
