"""``drservice evidence``: the ledger as people see it, and the bundle an auditor takes home."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import click

from drservice.cli.formatting import format_bytes, format_table
from drservice.cli.invocation import Invocation
from drservice.cli.targets import parse_time
from drservice.clock import to_iso
from drservice.errors import KeyProblemError, UsageError, VerificationFailedError
from drservice.evidence.bundlewriting import BundleForm
from drservice.evidence.ledger import Entry
from drservice.evidence.notes import NoteVerifier
from drservice.evidence.report import Period
from drservice.evidence.signing import Signer, load_log_key, make_log_key
from drservice.evidence.verification import VerificationError, lines_of, verify_bundle
from drservice.model.evidence import EvidenceKind, ledger_origin
from drservice.operations.enroll import begin_ledger
from drservice.operations.evidence import Evidence
from drservice.operations.evidenceexport import default_period, export_bundle, policy_document
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_anchored_evidence, open_evidence

_SHOWN = 50


@click.command(help="Make the log key on this machine and begin the ledger, if `init` did not.")
@click.pass_obj
def begin(invocation: Invocation) -> None:
    """Begin the ledger."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane:
        origin = ledger_origin(plane.repository.id)
        with open_evidence(plane) as evidence:
            begun_before = evidence.ledger.size() > 0
        key = make_log_key(estate.state_dir, origin)
        with open_evidence(plane) as evidence:
            record = None if begun_before and not _began_with(evidence, key) else begin_ledger(evidence)
    public = f"ed25519:{key.public_key.hex()}"
    document = {
        "record": record.number if record is not None else None,
        "origin": origin,
        "log_key": public,
        "vkey": key.verifier.vkey,
    }
    lines = [
        f"the ledger {origin} begins with log key {key.fingerprint}"
        if record is not None
        else f"the ledger {origin} was begun with another log key; {key.fingerprint} is a further one",
        "add to evidence.log_keys, beside those that are there, wherever the ledger is read, and tell your auditor:",
        f"  {public}",
        "next: drservice evidence anchor",
    ]
    invocation.output.result("evidence-begin", document, lines)


def _began_with(evidence: Evidence, key: Signer) -> bool:
    """Tell whether record 0 names this log key; a record 0 that another key signed is another's."""
    try:
        named = evidence.ledger.entry(0).signed.statement.predicate.get("key")
    except KeyProblemError:
        return False
    return isinstance(named, Mapping) and named.get("public") == f"ed25519:{key.public_key.hex()}"


@click.command(name="list", help="List the newest records of the ledger, or those of SERVICE.")
@click.argument("service", required=False)
@click.option("--kind", type=click.Choice([kind.value for kind in EvidenceKind]), help="only records of this kind")
@click.option("--most", type=click.IntRange(1, 100_000), default=_SHOWN, show_default=True, help="how many")
@click.pass_obj
def list_records(invocation: Invocation, service: str | None, kind: str | None, most: int) -> None:
    """List records."""
    estate = invocation.load().estate
    name = estate.service(service).name if service is not None else None
    found: list[Entry] = []
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
        size = evidence.ledger.size()
        for entry in evidence.newest_first(service=name, most=size):
            if kind is None or entry.signed.statement.kind.value == kind:
                found.append(entry)
            if len(found) == most:
                break
        pending = len(evidence.ledger.pending())
    rows = [_row(entry) for entry in found]
    document = {"size": size, "pending": pending, "records": [dict(zip(_FIELDS, row, strict=True)) for row in rows]}
    lines = format_table([name.upper() for name in _FIELDS], rows) if rows else ["no record of this kind yet"]
    if pending:
        lines.append(f"{pending} records are kept aside on this host; the next command that writes appends them")
    lines.append("next: drservice evidence show N")
    invocation.output.result("evidence-list", document, lines)


_FIELDS = ("record", "at", "kind", "service", "host", "outcome")


def _row(entry: Entry) -> tuple[str, ...]:
    statement = entry.signed.statement
    predicate = statement.predicate
    outcome = predicate.get("outcome") or predicate.get("state") or predicate.get("action") or ""
    if statement.kind is EvidenceKind.OBLIGATION:
        plan = predicate["plan"]
        outcome = str(plan["name"]) if isinstance(plan, Mapping) else ""
    if statement.kind is EvidenceKind.MISSED:
        slots = predicate["slots"]
        count = len(slots) if isinstance(slots, list) else 0
        outcome = f"{predicate['kind']}, {count} slots" if count > 1 else f"{predicate['kind']}, a slot"
    if statement.kind is EvidenceKind.ACCESS:
        outcome = str(predicate["day"])
    if predicate.get("mutation") is not None:
        outcome = f"{outcome} (must fail: {predicate['mutation']})"
    return (
        str(entry.number),
        to_iso(statement.recorded_at)[:19] + "Z",
        statement.kind.value,
        statement.service or "-",
        str(predicate["host"]),
        str(outcome),
    )


@click.command(help="Show one record: what it says, who signed it, and its exact bytes.")
@click.argument("number", type=click.IntRange(0))
@click.pass_obj
def show(invocation: Invocation, number: int) -> None:
    """Show a record."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
        if number >= evidence.ledger.size():
            raise UsageError(f"the ledger has no record {number}", hint="`drservice evidence list` shows the newest.")
        entry = evidence.ledger.entry(number)
    signed = entry.signed
    statement = json.loads(signed.payload)
    document = {
        "record": number,
        "kind": signed.statement.kind.value,
        "sha256": signed.sha256,
        "signers": list(entry.signers),
        "statement": statement,
        "envelope": base64.b64encode(signed.raw).decode("ascii"),
    }
    lines = [
        f"record {number}: {signed.statement.kind.value}, signed by {', '.join(entry.signers)}",
        f"sha256 {signed.sha256}",
        *json.dumps(statement, indent=2, ensure_ascii=False).splitlines(),
    ]
    invocation.output.result("evidence-show", document, lines)


@click.command(help="Sign a checkpoint (on the machine with the log key) and copy the newest one to every anchor.")
@click.pass_obj
def anchor(invocation: Invocation) -> None:
    """Anchor the ledger."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence:
        flushed = evidence.ledger.flush_pending() if evidence.problem is None else ()
        anchors = evidence.seal()
        newest = evidence.ledger.latest_checkpoint()
        signs = evidence.holds_log_key
    document = {
        "appended": [record.number for record in flushed],
        "checkpoint": newest.checkpoint.size if newest is not None else None,
        "root": newest.checkpoint.root.hex() if newest is not None else None,
        "signed_here": signs,
        "anchors": [
            {"name": item.place, "size": item.signed.checkpoint.size, "at": to_iso(item.anchored_at)}
            for item in anchors
        ],
    }
    lines = [f"appended record {record.number}, which was kept aside" for record in flushed]
    if newest is not None:
        lines.append(f"checkpoint over {newest.checkpoint.size} records, root {newest.checkpoint.root.hex()}")
    if not signs:
        lines.append("this host does not hold the log key: the newest checkpoint was signed elsewhere")
    lines += [f"anchored in {item.place}" for item in anchors]
    if not anchors:
        lines.append("no anchor is configured: who can rewrite the repository can set the ledger back unseen")
        lines.append("next: name a second store in evidence.anchors")
    else:
        lines.append("next: drservice evidence export")
    invocation.output.result("evidence-anchor", document, lines)


@click.command(help="Write the bundle for an auditor: records, proofs, checkpoints, verifier, report (HTML and PDF).")
@click.option("--service", help="what the report is about (records of all services are in the bundle anyway)")
@click.option("--from", "begin_text", metavar="TIME", help="beginning of the period (default: 92 days ago)")
@click.option("--to", "end_text", metavar="TIME", help="end of the period (default: now)")
@click.option("--output", type=click.Path(path_type=Path), help="where to (default: ./evidence-DATE.zip)")
@click.option("--folder", is_flag=True, help="write a folder instead of a .zip")
@click.pass_obj
def export(
    invocation: Invocation,
    service: str | None,
    begin_text: str | None,
    end_text: str | None,
    output: Path | None,
    *,
    folder: bool,
) -> None:
    """Export evidence."""
    estate = invocation.load().estate
    name = estate.service(service).name if service is not None else None
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence:
        now = plane.clock.now()
        period = _period(begin_text, end_text, default_period(now))
        target = output or Path(f"evidence-{now:%Y%m%d-%H%M%S}{'' if folder else '.zip'}")
        if evidence.holds_log_key:
            evidence.seal()
        built = export_bundle(
            evidence,
            estate,
            target=target.absolute(),
            period=period,
            service=name,
            form=BundleForm.FOLDER if folder else BundleForm.ZIP,
        )
    try:
        verify_bundle(built.path)
    except VerificationError as error:
        raise VerificationFailedError(
            f"{built.path} was written and does NOT verify: {error}",
            hint="If a log key was replaced, list the old one in evidence.log_keys too; else treat it as tampering.",
        ) from error
    document = {
        "path": str(built.path),
        "files": built.files,
        "stored_bytes": built.stored_bytes,
        "manifest_sha256": built.manifest_sha256,
        "records": built.report.ledger.tree_size,
        "root": built.report.ledger.root_hash,
        "from": to_iso(period.begin),
        "to": to_iso(period.end),
    }
    lines = [
        f"wrote {built.path}: {built.report.ledger.tree_size} records, {format_bytes(built.stored_bytes)}",
        f"  manifest {built.manifest_sha256}",
        "  report.html and report.pdf are inside, and verify.py, which needs nothing of drservice",
        f"next: drservice evidence verify {built.path}",
    ]
    invocation.output.result("evidence-export", document, lines)


def _period(begin_text: str | None, end_text: str | None, default: Period) -> Period:
    end = parse_time(end_text) if end_text is not None else default.end
    begin = parse_time(begin_text) if begin_text is not None else min(default.begin, end - timedelta(days=1))
    if begin >= end:
        raise UsageError(f"the period ends at {to_iso(end)}, before it begins ({to_iso(begin)})")
    return Period(begin=begin, end=end)


@click.command(help="Verify a BUNDLE offline, step by step; the first thing that is wrong is named (exit status 5).")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Path(path_type=Path), help="whose keys to believe, not the bundle's own list")
@click.pass_obj
def verify(invocation: Invocation, bundle: Path, policy: Path | None) -> None:
    """Verify a bundle."""
    try:
        verified = verify_bundle(bundle, policy)
    except VerificationError as error:
        raise VerificationFailedError(f"{bundle} is NOT VERIFIED: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or bundle}: {error.strerror or error}") from error
    document = {
        "verified": True,
        "origin": verified.origin,
        "size": verified.size,
        "entries": verified.entries,
        "complete": verified.is_complete,
        "policy": verified.policy_source,
        "keys": list(verified.keys),
        "counts": dict(verified.counts),
        "drills": dict(verified.drills),
        "mutations_noticed": verified.mutations_noticed,
        "mutations_missed": list(verified.mutations_missed),
        "open_obligations": list(verified.open_obligations),
        "overdue_obligations": list(verified.overdue_obligations),
    }
    invocation.output.result("evidence-verify", document, [*lines_of(verified), "VERIFIED"])


@click.command(help="Print the policy of this ledger: whose keys an auditor should believe.")
@click.pass_obj
def policy(invocation: Invocation) -> None:
    """Print the policy."""
    estate = invocation.load().estate
    with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence:
        text = policy_document(evidence, estate).decode("utf-8")
        log = load_log_key(estate.state_dir, evidence.ledger.origin)
        keys = [NoteVerifier(name=key.name, public_key=key.public_key).vkey for key in evidence.ledger.policy.log_keys]
    document = {"policy": json.loads(text), "log_keys": keys, "log_key_here": log is not None}
    invocation.output.result("evidence-policy", document, [text])
