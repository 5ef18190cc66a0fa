"""``verify``: prove that what the repository holds is whole; damage is healed by the next backup."""

from __future__ import annotations

import os
from dataclasses import dataclass

from drservice.clock import Clock
from drservice.errors import DrError, ObjectExistsError
from drservice.model.estate import PostgresSettings, Service
from drservice.operations.progress import Progress
from drservice.repository.holds import condemn, condemned_packs
from drservice.repository.records import Scope
from drservice.repository.repository import Repository
from drservice.repository.verify import Depth, Verified, share_of, verify_component

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome for one component, and what was done about damage."""

    verified: Verified
    condemned: tuple[str, ...]
    """Packs that count as missing from now on: the next backup stores their chunks again."""
    not_published: str | None
    """Why damaged packs could not be condemned from here."""


def run_verify(
    repository: Repository,
    service: Service,
    component: PostgresSettings,
    *,
    depth: Depth,
    percent: int,
    clock: Clock,
    progress: Progress,
) -> Verification:
    """Verify one component; damaged packs are condemned if this host may write.

    Raises:
        ObjectStoreError: the store did not answer: not verified.
    """
    scope = repository.scope(service.name, component.name)
    progress.step(f"verify {service.name}/{component.name} ({depth.value})")
    seed = os.urandom(8).hex()
    verified = verify_component(
        repository,
        scope,
        depth=depth,
        percent=percent,
        chosen=lambda key, share: share_of(key, share, seed),
        advance=progress.advance,
    )
    progress.done()
    damaged = set(verified.damaged_packs())
    if not damaged:
        return Verification(verified=verified, condemned=(), not_published=None)
    try:
        fresh = damaged - condemned_packs(repository.store, trust=repository.trust, scope=scope)
        if fresh:
            _condemn(repository, scope, fresh, clock)
    except DrError as error:
        return Verification(verified=verified, condemned=(), not_published=error.message)
    return Verification(verified=verified, condemned=tuple(sorted(damaged)), not_published=None)


def _condemn(repository: Repository, scope: Scope, packs: set[str], clock: Clock) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            condemn(
                repository.store,
                repository.host_key,
                scope,
                packs=packs,
                reason="damaged or missing when verified",
                now=clock.now(),
            )
        except ObjectExistsError:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            return
