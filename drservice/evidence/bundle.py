"""Writes an evidence bundle: everything an auditor needs, in one .zip or folder (layout: docs/evidence.md).

The same contents give the same bytes: names are sorted, times and rights are fixed, nothing is compressed (two builds
of zlib compress differently), and the reports depend on no clock. A bundle appears whole or not at all, and never in
the place of something else. Artefacts pass through one block after the other.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import to_iso
from drservice.errors import CheckpointError, EvidenceIncompleteError, StatementError
from drservice.evidence.anchoring import anchors as anchors_of
from drservice.evidence.bundlewriting import BundleForm, Sink, open_sink
from drservice.evidence.ledger import Ledger
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.notes import Checkpoint, NoteSigner, parse_checkpoint, sign_note, split_note
from drservice.evidence.report import AnchorFacts, LedgerFacts, Period, Report, ReportInputs, Scenario, ServiceFacts
from drservice.evidence.reportbuilding import build_report
from drservice.evidence.reportentries import DecodedEntry
from drservice.evidence.reporthtml import render_html
from drservice.evidence.reportpdf import render_pdf
from drservice.evidence.reportsections import view_of
from drservice.evidence.reporttext import format_instant, neutralise
from drservice.evidence.statements import ARTEFACT_PREFIX, PAYLOAD_TYPE, decode_envelope, fingerprint
from drservice.evidence.times import signed_at
from drservice.model.evidence import EvidenceKind

MANIFEST_SCHEMA = "drservice/evidence-bundle/v1"
READERS = 8
NOTE_TITLE = "drservice evidence bundle v1"

Blocks = Callable[[], Iterable[bytes]]
"""Opens something large, to be read once from its beginning, block by block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """What a bundle is made of: the ledger's own bytes, as they were read."""

    repository: str
    origin: str
    entries: Sequence[bytes]
    """Entries 0 to the size of ``checkpoint``, all of them."""
    checkpoint: bytes
    """The newest signed note."""
    earlier: Mapping[int, bytes]
    """Earlier checkpoints, by size."""
    anchors: Mapping[str, Mapping[int, bytes]]
    """Copies of checkpoints from other places, by place and size."""
    artefacts: Mapping[str, Blocks]
    """By SHA-256 (hex)."""
    policy: bytes
    """The policy file that the bundle carries; whose keys it names is the caller's responsibility."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportWishes:
    """What the report is about, beside the ledger."""

    period: Period
    services: tuple[ServiceFacts, ...]
    scenarios: tuple[Scenario, ...] = ()
    only_service: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBundle:
    """A bundle that was written. ``manifest_sha256`` names its contents, whatever their form."""

    path: Path
    files: int
    stored_bytes: int
    manifest_sha256: str
    report: Report


def read_contents(ledger: Ledger, *, repository: str, policy: bytes, only_service: str | None = None) -> BundleContents:
    """Read a ledger up to its newest checkpoint.

    The ledger verifies entries that this host has not seen before; of the others the bytes are taken whose leaf hash
    was verified then. :func:`report_of` compares all of them with the signed root.

    Args:
        ledger: the ledger, with its anchor places.
        repository: the repository's id.
        policy: the policy file for the bundle.
        only_service: take only artefacts of this service, and of none in particular; entries are always all taken.

    Raises:
        EvidenceIncompleteError: there is no checkpoint yet.
        LedgerError, StatementError, KeyProblemError, ObjectStoreError: the ledger cannot be read or believed.
    """
    checkpoints = ledger.checkpoints()
    if not checkpoints:
        raise EvidenceIncompleteError(
            "the ledger has no signed checkpoint yet", hint="Sign one on the host with the log key, then export again."
        )
    *earlier, newest = checkpoints
    size = newest.checkpoint.size
    entries = _read_entries(ledger, size)
    named = {
        sha256
        for number, raw in enumerate(entries)
        for service, sha256 in _artefacts_of(_decoded(number, raw, {}).statement)
        if only_service is None or service in {None, only_service}
    }
    places = {
        place.name: {
            anchor.signed.checkpoint.size: anchor.signed.note
            for anchor in anchors_of(place, origin=ledger.origin, policy=ledger.policy)
            if anchor.signed.checkpoint.size <= size
        }
        for place in ledger.anchors
    }
    return BundleContents(
        repository=repository,
        origin=ledger.origin,
        entries=entries,
        checkpoint=newest.note,
        earlier={each.checkpoint.size: each.note for each in earlier},
        anchors=places,
        artefacts={sha256: _artefact(ledger, sha256) for sha256 in sorted(named)},
        policy=policy,
    )


def _read_entries(ledger: Ledger, size: int) -> list[bytes]:
    """Return the first ``size`` entries, several at a time (a store may be far away)."""
    tree = ledger.tree()
    if len(tree) < size:
        raise EvidenceIncompleteError(f"the newest checkpoint has {size} entries, the ledger only {len(tree)}")
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return list(pool.map(lambda number: ledger.raw_of_leaf(number, tree.leaf(number)), range(size)))


def _artefacts_of(statement: Mapping[str, Json]) -> Iterator[tuple[str | None, str]]:
    """Yield (service, SHA-256) of each artefact that a statement names."""
    predicate, subjects = statement.get("predicate"), statement.get("subject")
    service = predicate.get("service") if isinstance(predicate, dict) else None
    for subject in subjects if isinstance(subjects, list) else ():
        name, digest = subject["name"], subject["digest"]["sha256"]
        if name.startswith(ARTEFACT_PREFIX):
            yield service, digest


def _artefact(ledger: Ledger, sha256: str) -> Blocks:
    return lambda: [ledger.artefact(sha256)]


def report_of(contents: BundleContents, wishes: ReportWishes) -> Report:
    """Return what the contents say about the period (also without writing a bundle).

    Raises:
        EvidenceIncompleteError: the entries do not have the root of the checkpoint, or are of another log.
    """
    newest = _checkpoint_of(contents.checkpoint, "the newest checkpoint")
    tree = MerkleTree(leaf_hash(raw) for raw in contents.entries)
    if newest.origin != contents.origin or newest.size != len(tree) or newest.root != tree.root():
        raise EvidenceIncompleteError(
            f"{len(tree)} entries of {contents.origin} do not make the newest checkpoint "
            f"({newest.size} entries of {newest.origin})"
        )
    anchors = tuple(
        AnchorFacts(name=name, tree_size=size, anchored_at=signed_at(_checkpoint_of(note, f"anchor {name}/{size}")))
        for name, notes in sorted(contents.anchors.items())
        for size, note in sorted(notes.items())
    )
    facts = LedgerFacts(
        repository=contents.repository,
        origin=contents.origin,
        tree_size=newest.size,
        root_hash=newest.root.hex(),
        anchors=anchors,
    )
    inputs = ReportInputs(
        ledger=facts,
        period=wishes.period,
        services=wishes.services,
        scenarios=wishes.scenarios,
        only_service=wishes.only_service,
    )
    names = _key_names(contents.policy)
    entries = [_decoded(number, raw, names) for number, raw in enumerate(contents.entries)]
    return build_report(entries, inputs=inputs)


def build_bundle(
    contents: BundleContents,
    *,
    target: Path,
    wishes: ReportWishes,
    form: BundleForm = BundleForm.ZIP,
    signers: Sequence[NoteSigner] = (),
) -> BuiltBundle:
    """Write a bundle with its reports to ``target``: whole and durable on return, or not there.

    Args:
        contents: what goes in, from :func:`read_contents`.
        target: a file (zip) or folder that does not exist yet, in a folder that does.
        wishes: what the report is about.
        form: a .zip or a folder.
        signers: who signs the manifest (``manifest.note``); it stays unsigned without any.

    Raises:
        BundleExistsError: there is something at ``target``.
        EvidenceIncompleteError: entries, checkpoint and artefacts do not fit each other.
        EvidenceExportError: it cannot be written. Nothing is left behind, unless this process is killed: then a name
            that begins with a dot.
    """
    report = report_of(contents, wishes)
    small = _small_files(contents, report)
    with open_sink(target, form) as sink:
        files: dict[str, Json] = {}
        for name, blocks in sorted({**small, **_artefact_files(contents)}.items()):
            sha256, size = sink.write(name, blocks)
            if name.startswith("artefacts/") and sha256 != name.rpartition("/")[2]:
                raise EvidenceIncompleteError(f"the artefact {name.rpartition('/')[2]} has another hash than its name")
            files[name] = {"sha256": sha256, "bytes": size}
        manifest = canonical_bytes(_manifest(report, files))
        digest = hashlib.sha256(manifest).hexdigest()
        _write(sink, "manifest.json", manifest)
        if signers:
            _write(sink, "manifest.note", sign_note(f"{NOTE_TITLE}\n{contents.origin}\n{digest}\n", signers))
        stored = sink.publish()
    return BuiltBundle(
        path=target,
        files=len(files) + 1 + bool(signers),
        stored_bytes=stored,
        manifest_sha256=digest,
        report=report,
    )


# --- files --------------------------------------------------------------------------------------------------


def _small_files(contents: BundleContents, report: Report) -> dict[str, Iterable[bytes]]:
    view = view_of(report)
    files: dict[str, bytes] = {
        "README.txt": _readme(report),
        "checkpoint": contents.checkpoint,
        "policy.json": contents.policy,
        "report.html": render_html(view),
        "report.pdf": render_pdf(view),
        "verify.py": _resource("verification.py"),
    }
    files.update((f"entries/{number:012d}.json", raw) for number, raw in enumerate(contents.entries))
    files.update((f"checkpoints/{size:012d}", note) for size, note in contents.earlier.items())
    for place, notes in contents.anchors.items():
        files.update((f"anchors/{place}/{size:012d}", note) for size, note in notes.items())
    files.update((f"schemas/{kind.value}.json", _resource(f"schemas/{kind.value}.json")) for kind in EvidenceKind)
    return {name: (data,) for name, data in files.items()}


def _artefact_files(contents: BundleContents) -> dict[str, Iterable[bytes]]:
    return {f"artefacts/{sha256}": _Opened(blocks) for sha256, blocks in contents.artefacts.items()}


@dataclass(frozen=True, slots=True)
class _Opened:
    """Opens its blocks when they are asked for, and not before."""

    blocks: Blocks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.blocks())


def _write(sink: Sink, name: str, data: bytes) -> None:
    sink.write(name, (data,))


def _manifest(report: Report, files: Mapping[str, Json]) -> Json:
    size = report.ledger.tree_size
    return {
        "schema": MANIFEST_SCHEMA,
        "origin": report.ledger.origin,
        "size": size,
        "complete": True,
        "range": {"from": 0, "to": size - 1},
        "service": report.only_service,
        "period": {"from": to_iso(report.period.begin), "to": to_iso(report.period.end)},
        "files": files,
    }


def _readme(report: Report) -> bytes:
    text = _resource("templates/README.txt").decode("utf-8")
    filled = string.Template(text).substitute(
        origin=neutralise(report.ledger.origin),
        size=report.ledger.tree_size,
        last=report.ledger.tree_size - 1,
        root=report.ledger.root_hash,
        begin=format_instant(report.period.begin),
        end=format_instant(report.period.end),
        service=neutralise(report.only_service or "all"),
    )
    return filled.encode("utf-8")


def _resource(name: str) -> bytes:
    return resources.files("drservice.evidence").joinpath(name).read_bytes()


# --- reading what was given ---------------------------------------------------------------------------------


def _checkpoint_of(note: bytes, what: str) -> Checkpoint:
    try:
        return parse_checkpoint(split_note(note)[0])
    except CheckpointError as error:
        raise EvidenceIncompleteError(f"{what} cannot be read: {error.message}") from error


def _decoded(number: int, raw: bytes, names: Mapping[str, str]) -> DecodedEntry:
    """Return an entry for the report; one that cannot be decoded has an empty statement, which the report shows."""
    try:
        payload, signatures = decode_envelope(raw, PAYLOAD_TYPE, f"entry {number}")
        statement = parse_canonical(payload)
    except (StatementError, ValueError):
        return DecodedEntry(number=number, statement={})
    signers = tuple(f"{names.get(keyid, 'unknown key')} ({keyid})" for keyid, _ in signatures)
    return DecodedEntry(number=number, statement=statement if isinstance(statement, dict) else {}, signers=signers)


def _key_names(policy: bytes) -> dict[str, str]:
    """Return the names that the policy gives to keys, by fingerprint."""
    found: dict[str, str] = {}
    try:
        value = json.loads(policy)
        for group in ("log_keys", "executors", "approvers"):
            for key in value[group]:
                found[fingerprint(bytes.fromhex(key["key"].removeprefix("ed25519:")))] = str(key["name"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvidenceIncompleteError(f"the policy for the bundle cannot be read: {error!r}") from error
    return found
