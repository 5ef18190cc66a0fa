"""``drservice extract --document``: one document as a file."""

from __future__ import annotations

from pathlib import Path

from drservice.cli.formatting import format_bytes, format_seconds
from drservice.cli.invocation import Invocation
from drservice.cli.targets import parse_target
from drservice.clock import to_iso
from drservice.errors import ExitStatus
from drservice.operations.extractdocument import DocumentRequest, ExtractedDocument, extract_document
from drservice.operations.restorerequest import RestoreContext
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence


def extract_one_document(
    invocation: Invocation, service: str, document: str, *, to: str | None, component: str | None, output: Path
) -> ExitStatus:
    """Write a document of a service to a file.

    Raises:
        As :func:`extract_document`.
    """
    target = None
    if to is not None:
        target = parse_target(to=to, lsn=None, xid=None, name=None, snapshot=None, timeline=None)
    estate = invocation.load().estate
    chosen = estate.service(service)
    request = DocumentRequest(
        service=chosen,
        component=chosen.filestore(component),
        document=document.rpartition("/")[2].lower(),  # store_fname as it stands in the row will do
        target=target,
        output=output.absolute(),
    )
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence, invocation.progress() as progress:
        context = RestoreContext(
            repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock, progress=progress
        )
        result = extract_document(context, evidence, request)
    invocation.output.result("extract-document", _document(result), _lines(result))
    return ExitStatus.OK


def _document(result: ExtractedDocument) -> dict[str, object]:
    restored = result.restored
    return {
        "run": result.run,
        "service": result.request.service.name,
        "component": result.request.component.name,
        "document": {"sha1": result.sha1, "name": result.name, "size": result.size, "source": result.source},
        "target": {
            "requested": result.request.target.describe() if result.request.target is not None else None,
            "reached_time": to_iso(restored.reached.time) if restored is not None and restored.reached.time else None,
            "reached_lsn": str(restored.reached.lsn) if restored is not None else None,
            "timeline": int(restored.reached.timeline) if restored is not None else None,
        },
        "output": {"path": str(result.request.output), "stored_bytes": result.size, "sha256": result.sha256},
        "passed_over": list(result.passed_over),
        "seconds": round(result.seconds, 3),
    }


def _lines(result: ExtractedDocument) -> list[str]:
    called = f" ({result.name})" if result.name is not None else ""
    return [
        f"extracted: document {result.sha1}{called}",
        f"  {result.request.output}: {format_bytes(result.size)}, its content has that SHA-1, from {result.source}",
        f"  in {format_seconds(result.seconds)}" + ("; the environment is destroyed" if result.restored else ""),
        *(f"  WARNING: a copy was passed over: {text}" for text in result.passed_over),
        "next: look at it before you open it: it is what somebody uploaded",
    ]
