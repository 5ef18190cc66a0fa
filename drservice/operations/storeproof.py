"""The proof that a bucket refuses what it must refuse: tried at ``init``, and again by whoever meets it a week old.

What was tried is put on record (kind ``probe``) and remembered on this host, so that ``check`` can show it and backups
know when it is due. It stands in no backup's way: a bucket that cannot be tried is told, and tried again next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import DrError
from drservice.model.estate import Estate
from drservice.model.evidence import EvidenceKind
from drservice.objectstore.interface import Capabilities
from drservice.operations.checklist import Checklist
from drservice.operations.evidence import Evidence
from drservice.operations.progress import Progress
from drservice.operations.records import bounded
from drservice.processes import create_private

if TYPE_CHECKING:
    from drservice.objectstore.conformance import Tried

EVERY = timedelta(days=7)
_NAME = "store refuses what it must"
_PROBE = "object store"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreProof:
    """What was tried last, and when."""

    tried_at: datetime
    results: tuple[tuple[str, bool, str], ...]
    """(what, whether it went as it must, how it went)."""

    @property
    def failed(self) -> tuple[str, ...]:
        """What did not go as it must."""
        return tuple(f"{name}: {detail}" for name, passed, detail in self.results if not passed)


def keep_store_proved(estate: Estate, evidence: Evidence, *, clock: Clock, progress: Progress) -> StoreProof | None:
    """Return the last proof, made anew if it is due; ``None`` for a directory, or if it cannot be made now (told)."""
    if not estate.repository.url.startswith("s3:"):
        return None
    known = _recall(estate)
    if known is not None and timedelta(0) <= clock.now() - known.tried_at < EVERY:
        return known
    try:
        return prove_store(estate, evidence, clock=clock, progress=progress)
    except DrError as error:
        progress.note(f"whether the store refuses what it must could not be tried: {error.message}")
        return None


def prove_store(estate: Estate, evidence: Evidence, *, clock: Clock, progress: Progress) -> StoreProof:
    """Try the store, put the outcome on record and remember it.

    Raises:
        ObjectStoreError, StoreDeniedError, StoreUnreachableError: it cannot be tried.
    """
    from drservice.objectstore.conformance import try_store  # noqa: PLC0415 - botocore takes 0.15 s to load

    settings = estate.repository
    tried = try_store(settings.url, lock_dir=estate.state_dir / "run", settings=settings.store, clock=clock)
    proof = StoreProof(tried_at=clock.now(), results=tuple((item.name, item.passed, item.detail) for item in tried))
    _record(evidence, tried, progress)
    _remember(estate, proof, progress)
    return proof


def check_store_proof(
    estate: Estate, capabilities: Capabilities, evidence: Evidence, *, clock: Clock, progress: Progress, to: Checklist
) -> None:
    """Show the proof, made anew if it is due; a lock that is asked for and not kept is a failure."""
    if not estate.repository.url.startswith("s3:"):
        return
    if estate.repository.store.lock is not None and capabilities.lock is None:
        to.fail(_NAME, " ".join(capabilities.warnings), "Nothing is backed up until then: see docs/how-to/s3.md.")
        return
    if not capabilities.writable:
        return  # a host that only reads: those that write try it
    with to.asking(_NAME):
        known = _recall(estate)
        if known is None or not timedelta(0) <= clock.now() - known.tried_at < EVERY:
            known = prove_store(estate, evidence, clock=clock, progress=progress)
        if not known.failed:
            to.ok(_NAME, f"{len(known.results)} things were tried at {to_iso(known.tried_at)}")
            return
        remedy = "See docs/how-to/s3.md; `drservice check` tries again when the outcome is a week old."
        tell = to.fail if estate.repository.store.lock is not None else to.warn
        tell(_NAME, "; ".join(known.failed), remedy)


def _record(evidence: Evidence, tried: Sequence[Tried], progress: Progress) -> None:
    evidence.record(
        EvidenceKind.PROBE,
        service=None,
        run=None,
        subject=[],
        fields={
            "probe": _PROBE,
            "outcome": "passed" if all(item.passed for item in tried) else "failed",
            "results": [
                {"name": bounded(item.name), "passed": item.passed, "detail": bounded(item.detail)} for item in tried
            ],
        },
        progress=progress,
    )


def _memory(estate: Estate) -> Path:
    lock = estate.repository.store.lock
    what = f"{estate.repository.url}\n{lock.describe() if lock is not None else 'no lock'}"
    return estate.state_dir / "run" / f"store-proof-{hashlib.sha256(what.encode()).hexdigest()[:24]}.json"


def _recall(estate: Estate) -> StoreProof | None:
    """Return the last proof; one that cannot be read is none."""
    try:
        record = json.loads(_memory(estate).read_bytes())
        return StoreProof(
            tried_at=from_iso(record["tried_at"]),
            results=tuple((str(name), passed is True, str(detail)) for name, passed, detail in record["results"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(estate: Estate, proof: StoreProof, progress: Progress) -> None:
    """Keep it for other processes of this host; one that cannot be kept is made again by the next."""
    memory = _memory(estate)
    temporary = memory.with_name(f"{memory.name}.{secrets.token_hex(6)}")
    document = {"tried_at": to_iso(proof.tried_at), "results": [list(result) for result in proof.results]}
    try:
        with os.fdopen(create_private(temporary, 0o644), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(document))
        temporary.replace(memory)
    except OSError as error:
        progress.note(
            f"what was tried cannot be kept in {memory.parent} ({error.strerror}): it is tried again next time"
        )
