"""A restore tells retention that it is running: a hold before it looks at what there is, let go when it ends.

The order protects it. A hold is placed before snapshots are listed, and retention looks at the holds again between
deleting snapshots and deleting WAL. So either retention sees the hold and no WAL goes, or the restore lists what is
left and starts from a snapshot whose WAL stays. Nothing about it stands in the way of a rescue: a machine that cannot
write restores without a hold, and is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drservice.clock import Clock
from drservice.errors import DrError
from drservice.operations.progress import Progress
from drservice.repository.holds import HoldKeeper, let_go
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

PURPOSE = "restore"


@contextmanager
def held(repository: Repository, scope: Scope, *, clock: Clock, progress: Progress) -> Iterator[None]:
    """Keep retention from deleting anything of the service while the block runs, as far as this host can write."""
    keeper = _place(repository, scope, clock, progress)
    try:
        yield
    finally:
        if keeper is not None:
            keeper.close()
            let_go(repository.store, keeper.first)


def _place(repository: Repository, scope: Scope, clock: Clock, progress: Progress) -> HoldKeeper | None:
    try:
        return HoldKeeper(repository.store, repository.host_key, scope, purpose=PURPOSE, then=PURPOSE, clock=clock)
    except DrError as error:
        progress.note(f"retention cannot be told of this restore, do not run it meanwhile: {error.message}")
        return None
