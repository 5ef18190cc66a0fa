"""Putting on record what was done: required where a proof is made, never in the way of a rescue.

A drill without its obligation on record proves nothing, so :meth:`Evidence.require` raises. A restore at three in the
morning goes on whatever the ledger says, so :meth:`Evidence.record` does not: the record is kept aside on this host,
appended by the next one that succeeds, and everybody is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

from drservice import telemetry
from drservice.canonical import Json
from drservice.clock import Clock
from drservice.errors import DrError, LogKeyError, StatementError
from drservice.evidence.anchoring import Anchor
from drservice.evidence.ledger import Entry, Ledger, Record, Unless
from drservice.evidence.signing import Signer
from drservice.evidence.statements import Occasion, Statement, Subject, load_schema_check, make_statement
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import RepositoryId, RunId, ServiceName
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.progress import Progress
from drservice.repository import layout

_LOOKED_AT = 2000
"""Of the newest entries, for one that makes a record superfluous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The ledger as this host uses it."""

    repository: RepositoryId
    ledger: Ledger
    host: str
    clock: Clock
    signer: Signer | None
    """This host's signing key, if it has one that is believed."""
    problem: str | None
    """Why this host cannot sign records; ``None`` if it can."""
    holds_log_key: bool

    def occasion(self, service: ServiceName | None, run: str | None) -> Occasion:
        """Return what every record says first."""
        return Occasion(
            repository=self.repository,
            service=service,
            host=self.host,
            run=RunId(run) if run is not None else None,
            recorded_at=self.clock.now(),
            tool_version=metadata.version("drservice"),
        )

    def require(
        self,
        kind: EvidenceKind,
        *,
        service: ServiceName | None,
        run: str | None,
        subject: Sequence[Subject],
        fields: Mapping[str, Json],
    ) -> Record:
        """Append a record.

        Raises:
            LogKeyError: this host has no signing key that anybody believes.
            LedgerError, StatementError, ObjectStoreError: it is not on record.
        """
        self.require_signing()
        return self.ledger.append(
            make_statement(kind, occasion=self.occasion(service, run), subject=subject, fields=fields)
        )

    def expect(self, kind: EvidenceKind) -> None:
        """Load beside a run what the record at its end is checked with: a tenth of a second to be ready earlier.

        If it cannot be loaded, the record itself says so.
        """
        if self.problem is None:
            threading.Thread(target=_load_check, args=(kind,), name="expect-record", daemon=True).start()

    def require_signing(self) -> None:
        """Return if this host can sign records.

        Raises:
            LogKeyError: it cannot; the message tells why.
        """
        if self.problem is not None:
            raise LogKeyError(
                f"this host cannot put anything on record: {self.problem}",
                hint="`drservice init` makes a signing key; list it in repository.signers on every host.",
            )

    def append_or_keep(
        self,
        kind: EvidenceKind,
        *,
        service: ServiceName | None,
        run: str | None,
        subject: Sequence[Subject],
        fields: Mapping[str, Json],
        progress: Progress,
        unless: Callable[[Statement], bool] | None = None,
    ) -> Record | None:
        """Append a record; if the ledger does not take it, keep it aside on this host, say so, and return ``None``.

        ``unless``: one of the newest entries for which it is true stands in for the record, which is not appended.

        Raises:
            LogKeyError: this host has no signing key that anybody believes.
            StatementError: it cannot be spelled as a record.
            LedgerError, ObjectStoreError: neither the ledger nor this host's disk takes it.
        """
        self.require_signing()
        statement = make_statement(kind, occasion=self.occasion(service, run), subject=subject, fields=fields)
        try:
            if unless is None:
                return self.ledger.append(statement)
            since = max(0, self.ledger.size() - _LOOKED_AT)
            return self.ledger.append(statement, unless=Unless(since=since, stands_in=unless))
        except StatementError:
            raise
        except DrError as error:
            try:
                path = self.ledger.keep_aside(statement)
            except DrError as second:
                why = f"{error.message}; nor could it be kept on this host: {second.message}"
                raise type(error)(why, hint=error.hint) from second
            _tell(
                progress,
                f"the ledger did not take the record of this {kind.value} ({error.message}); it is kept in {path} and"
                " appended by the next drservice command that writes to the ledger",
            )
            return None

    def record(
        self,
        kind: EvidenceKind,
        *,
        service: ServiceName | None,
        run: str | None,
        subject: Sequence[Subject],
        fields: Mapping[str, Json],
        progress: Progress,
        unless: Callable[[Statement], bool] | None = None,
    ) -> Record | None:
        """Append a record or keep it aside; what is neither is said. Never raises our own errors: for rescues."""
        try:
            return self.append_or_keep(
                kind, service=service, run=run, subject=subject, fields=fields, progress=progress, unless=unless
            )
        except DrError as error:
            _tell(progress, f"this {kind.value} is NOT on record: {error.message}")
        return None

    def newest_first(self, *, service: ServiceName | None = None, most: int) -> Iterator[Entry]:
        """Yield the newest entries first, at most ``most`` of them are read; only those of ``service`` if given.

        Raises:
            LedgerError, StatementError, KeyProblemError, ObjectStoreError: the ledger cannot be read or believed.
        """
        size = self.ledger.size()
        for number in range(size - 1, max(-1, size - 1 - most), -1):
            entry = self.ledger.entry(number)
            if service is None or entry.signed.statement.service == service:
                yield entry

    def is_sealed(self, number: int, anchors: Sequence[Anchor]) -> bool:
        """Tell whether a record is bound: by an anchor in every place, or by a checkpoint where there are none."""
        sizes = [anchor.signed.checkpoint.size for anchor in anchors]
        if not self.ledger.anchors:
            newest = self.ledger.latest_checkpoint()
            sizes = [newest.checkpoint.size] if newest is not None else []
        return bool(sizes) and min(sizes) > number

    def seal(self) -> tuple[Anchor, ...]:
        """Sign a checkpoint if this host holds the log key, and copy the newest one to every anchor place.

        Without the log key that is an older checkpoint: :meth:`is_sealed` tells whether a record is bound by it.

        Raises:
            LedgerError, AnchorError, ObjectStoreError: it was not signed, or not anchored everywhere.
        """
        if self.holds_log_key:
            self.ledger.checkpoint()
        if not self.ledger.anchors:
            return ()
        return self.ledger.anchor()


def snapshot_subjects(records: Sequence[SnapshotRecord]) -> list[Subject]:
    """Return snapshots as subjects: their keys and the hashes of their headers."""
    return [
        Subject(layout.snapshot_key(record.service, record.component, record.id), record.header_sha256)
        for record in records
    ]


def artefact_subjects(evidence: Evidence, artefact: tuple[str, bytes] | None, *, progress: Progress) -> list[Subject]:
    """Store what is too large for a record beside it; return it as a subject, or nothing if there is none.

    One that cannot be stored is told: the record says less then, and what it says stays true.
    """
    if artefact is None or evidence.problem is not None:
        return []
    name, data = artefact
    try:
        return [Subject(f"artefact/{name}", evidence.ledger.store_artefact(data))]
    except DrError as error:
        _tell(progress, f"{name} is NOT stored beside the record: {error.message}")
        return []


def _load_check(kind: EvidenceKind) -> None:
    with suppress(Exception):  # make_statement meets it again, where somebody hears of it
        load_schema_check(kind)


def _tell(progress: Progress, text: str) -> None:
    progress.note(f"WARNING: {text}")
    telemetry.warning("evidence not written", problem=text)
