"""``extract --document``: one document as a file, by the SHA-1 of its content or by the row that referred to it.

A SHA-1 names the same bytes at any time, so nothing is recovered for it: the first copy that can be read to its end is
written. A row is asked in a side restore of its database to the target, as every other extract is, and the environment
is destroyed. The file appears under its name only when its content has the SHA-1.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drservice.components.odoo_filestore.names import is_document
from drservice.components.postgres.asking import Asking, asking
from drservice.environments.sandbox import open_sandbox
from drservice.errors import (
    DamagedObjectError,
    DrError,
    ExitStatus,
    InterruptedRunError,
    MissingObjectError,
    UnknownNameError,
    UsageError,
)
from drservice.model.estate import FilesSettings, Service
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import EnvironmentId, make_ulid
from drservice.model.recovery import Target
from drservice.operations.evidence import Evidence
from drservice.operations.finddocument import find_document
from drservice.operations.holding import held
from drservice.operations.outputfile import OutputFile, require_free
from drservice.operations.records import bounded, recovery_fields, target_fields
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest, RestoreResult

_SHA1 = re.compile(r"[0-9a-f]{40}")
_ROW = re.compile(r"[1-9][0-9]{0,9}")
_ASK_SECONDS = 600.0
_INSIDE = "the database itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRequest:
    """What is asked for. ``document``: a SHA-1 (40 hex digits) or the ``id`` of a row of ``ir_attachment``."""

    service: Service
    component: FilesSettings
    document: str
    target: Target | None
    """When the row is asked; a SHA-1 needs none."""
    output: Path

    @property
    def is_row(self) -> bool:
        """Whether a row is named."""
        return _SHA1.fullmatch(self.document) is None

    def describe(self) -> str:
        """Return what is extracted, in words."""
        if not self.is_row or self.target is None:
            return f"extract of document {self.document}"
        return f"{self.target.describe()} (extract of the document of row {self.document})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedDocument:
    """A document that was written, its content compared with its SHA-1."""

    run: str
    request: DocumentRequest
    sha1: str
    name: str | None
    """What its row calls it for people; ``None`` without a row."""
    size: int
    sha256: str
    source: str
    """Where the copy lay, in words."""
    passed_over: tuple[str, ...]
    """Copies that could not be read, and where nobody could look for one, with the reason."""
    restored: RestoreResult | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    sha1: str
    name: str | None = None
    inside: bytes | None = None
    """Its content, if the database itself has it."""
    restored: RestoreResult | None = None


def extract_document(context: RestoreContext, evidence: Evidence, request: DocumentRequest) -> ExtractedDocument:
    """Write one document to a file, compared with its SHA-1, and put that on record.

    Raises:
        UsageError: it is neither a SHA-1 nor the id of a row, or a row without an instant; nothing was begun.
        OutputTakenError: there is a file of this name; nothing was begun.
        UnknownNameError: no row of this id at that instant, or nobody has such a document.
        MissingObjectError: the row refers to a document that is stored nowhere.
        DamagedObjectError: no copy of it can be read.
        And as :func:`run_restore`.
    """
    if request.is_row and _ROW.fullmatch(request.document) is None:
        raise UsageError(
            f"{request.document!r} is neither a SHA-1 (40 hex digits) nor the id of a row of ir_attachment"
        )
    if request.is_row and request.target is None:
        raise UsageError("a row is asked as of an instant", hint="Give --to TIME, or --to latest.")
    require_free(request.output)
    run = make_ulid(context.clock.now(), os.urandom(10))
    begun: list[EnvironmentId] = []
    try:
        result = _extract(context, request, run, begun)
    except DrError as error:
        if begun or error.exit_status is not ExitStatus.USAGE:
            _record(evidence, context, request, run, error=error)
        raise
    except KeyboardInterrupt:
        _record(evidence, context, request, run, error=InterruptedRunError("the extract was interrupted"))
        raise
    _record(evidence, context, request, run, result=result)
    context.progress.done()
    return result


def _extract(
    context: RestoreContext, request: DocumentRequest, run: str, begun: list[EnvironmentId]
) -> ExtractedDocument:
    began = context.clock.monotonic()
    wanted = _of_row(context, request, begun) if request.is_row else _Wanted(sha1=request.document)
    scope = context.repository.scope(request.service.name, request.component.name)
    context.progress.step(f"look for document {wanted.sha1}")
    with held(context.repository, scope, clock=context.clock, progress=context.progress):
        passed_over: list[str] = []
        for source, content in _copies(context, request, wanted, passed_over.append):
            with OutputFile(request.output) as output:
                try:
                    for piece in content:
                        output.write(bytes(piece))
                except DamagedObjectError as error:
                    passed_over.append(f"{source}: {error.message}")
                    continue
                output.publish()
            return ExtractedDocument(
                run=run,
                request=request,
                sha1=wanted.sha1,
                name=wanted.name,
                size=output.written_bytes,
                sha256=output.sha256,
                source=source,
                passed_over=tuple(passed_over),
                restored=wanted.restored,
                seconds=context.clock.monotonic() - began,
            )
    if passed_over:
        raise DamagedObjectError(
            f"no copy of document {wanted.sha1} can be read, as far as anybody could look:"
            f" {bounded('; '.join(passed_over))}"
        )
    if request.is_row:
        raise MissingObjectError(
            f"row {request.document} refers to {wanted.sha1}, which no pass and no set of {request.component.name} has",
            hint="It was lost in production before it was captured, or filed after the last pass.",
        )
    raise UnknownNameError(
        f"no pass and no set of {request.component.name} has a document {wanted.sha1}",
        hint="The SHA-1 is the last part of store_fname. Was it kept in the database, or in another filestore?",
    )


def _copies(
    context: RestoreContext, request: DocumentRequest, wanted: _Wanted, on_lost: Callable[[str], None]
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    if wanted.inside is not None:
        yield _INSIDE, (wanted.inside,)
        return
    scope = context.repository.scope(request.service.name, request.component.name)
    for found in find_document(context.repository, scope, wanted.sha1, on_lost=on_lost):
        yield found.source, found.content


def _of_row(context: RestoreContext, request: DocumentRequest, begun: list[EnvironmentId]) -> _Wanted:
    """Ask the row in a side restore of its database."""
    component = request.component
    assert request.target is not None
    assert component.database is not None
    restored = run_restore(
        context,
        RestoreRequest(
            service=request.service,
            component=request.service.database(component.follows),
            target=request.target,
            into=None,
            afterwards=Afterwards.LEAVE_RUNNING,
            database=component.database,
            purpose="extract",
            made=begun.append,
        ),
    )
    environment = open_sandbox(restored.environment.path)
    try:
        assert restored.side is not None, "a side restore was asked for"
        environment.require_own_socket()
        with asking(
            environment.dsn,
            seconds=_ASK_SECONDS,
            database=restored.side.database,
            application_name="drservice extract document",
        ) as session:
            sha1, name, inside = _ask(session, request.document)
    finally:
        context.progress.step("destroy the environment")
        environment.destroy()
    return _Wanted(sha1=sha1, name=name, inside=inside, restored=restored)


def _ask(session: Asking, row: str) -> tuple[str, str | None, bytes | None]:
    """Return SHA-1, name and, where the database has it, the content; a row's word is hostile text."""
    columns = "name::text, store_fname::text, encode(db_datas, 'hex')"
    found = list(session.scan(f"select {columns} from public.ir_attachment where id = {int(row)}"))  # noqa: S608 - a number
    if len(found) != 1:
        raise UnknownNameError(f"there was no attachment {row} at that instant", hint="Is it of another database?")
    name, stored, inside = found[0]
    if stored and is_document(stored):
        return stored[-40:], name, None
    if inside:
        content = bytes.fromhex(inside)
        return hashlib.sha1(content, usedforsecurity=False).hexdigest(), name, content
    where = f"under {stored!r}, outside of filestore and database" if stored else "nowhere: it is a link or empty"
    raise MissingObjectError(
        f"the content of attachment {row} is kept {where}",
        hint="Only documents in the filestore or in the database are covered.",
    )


def _record(
    evidence: Evidence,
    context: RestoreContext,
    request: DocumentRequest,
    run: str,
    *,
    result: ExtractedDocument | None = None,
    error: DrError | None = None,
) -> None:
    """Put it on record: one document proves nothing about the service, so it is never a whole recovery."""
    reached = result.restored.reached if result is not None and result.restored is not None else None
    evidence.record(
        EvidenceKind.RESTORE,
        service=request.service.name,
        run=run,
        subject=[],
        fields={
            "outcome": "partial" if error is None else "failed",
            "target": target_fields(
                requested=bounded(request.describe()),
                kind=request.target.kind.value if request.target is not None else "latest",
                reached_time=reached.time if reached is not None else None,
                reached_lsn=str(reached.lsn) if reached is not None else None,
                timeline=int(reached.timeline) if reached is not None else None,
            ),
            **recovery_fields(rto_seconds=result.seconds if result is not None else None, error=error),
        },
        progress=context.progress,
    )
