"""Evidence bundles as dictionaries of files, built and damaged by tests.

``bundle_files`` writes the layout of docs/evidence.md straight from a ledger, independently of what exports bundles.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.evidence.anchoring import anchors
from drservice.evidence.ledger import Ledger
from drservice.evidence.notes import sign_note
from drservice.evidence.signing import Signer
from tests.doubles.evidence import APPROVER, HOST, LOG, ORIGIN, OTHER_HOST, POLICY

Files = dict[str, bytes]


def policy_json(**changes: Json) -> dict[str, Json]:
    """Return the policy of the test keys, with other values for some fields."""
    policy: dict[str, Json] = {
        "schema": "drservice/evidence-policy/v1",
        "origin": ORIGIN,
        "log_keys": [{"name": LOG.name, "key": public(LOG), "from_size": 0, "to_size": None}],
        "executors": [record_key(HOST), record_key(OTHER_HOST, services=["erp"])],
        "approvers": [record_key(APPROVER)],
        "anchors": [],
        "obligations": [],
        "drills": [],
        "tolerance_ms": 300_000,
        "manifest_signed": False,
    }
    return {**policy, **changes}


def public(signer: Signer) -> str:
    return f"ed25519:{signer.public_key.hex()}"


def record_key(signer: Signer, *, services: Sequence[str] = (), to_entry: int | None = None) -> dict[str, Json]:
    return {
        "name": signer.name,
        "key": public(signer),
        "services": list(services),
        "from_entry": 0,
        "to_entry": to_entry,
    }


def bundle_files(
    ledger: Ledger,
    *,
    policy: Mapping[str, Json] | None = None,
    selection: Sequence[int] | None = None,
    signer: Signer | None = None,
) -> Files:
    """Return the files of a bundle: complete, or a selection of entries with proofs."""
    newest, *earlier = reversed(ledger.checkpoints())
    size = newest.checkpoint.size
    tree = ledger.tree()
    numbers = range(size) if selection is None else selection
    files: Files = {
        "policy.json": canonical_bytes(policy or policy_json()),
        "checkpoint": newest.note,
        "README.txt": b"Run verify.py.\n",
        "report.html": b"<p>posture</p>\n",
    }
    sizes = set()
    for each in earlier:
        files[f"checkpoints/{each.checkpoint.size:012d}"] = each.note
        sizes.add(each.checkpoint.size)
    for place in ledger.anchors:
        for anchor in anchors(place, origin=ORIGIN, policy=POLICY):
            files[f"anchors/{place.name}/{anchor.signed.checkpoint.size:012d}"] = anchor.signed.note
            sizes.add(anchor.signed.checkpoint.size)
    for number in numbers:
        entry = ledger.entry(number)
        files[f"entries/{number:012d}.json"] = entry.signed.raw
        for artefact in entry.signed.statement.artefacts():
            files[f"artefacts/{artefact.sha256}"] = ledger.artefact(artefact.sha256)
    if selection is not None:
        for number in numbers:
            files[f"proofs/{number:012d}.json"] = _proof("entry", number, size, tree.inclusion(number, size))
        for each_size in sizes - {size}:
            proof = tree.consistency(each_size, size)
            files[f"consistency/{each_size:012d}.json"] = _proof("from", each_size, size, proof)
    return with_manifest(files, size=size, complete=selection is None, signer=signer)


def _proof(word: str, number: int, size: int, hashes: Sequence[bytes]) -> bytes:
    encoded = [base64.b64encode(each).decode() for each in hashes]
    return canonical_bytes({word: number, "size": size, "hashes": encoded})


def with_manifest(files: Files, *, size: int, complete: bool = True, signer: Signer | None = None) -> Files:
    """Return the files with a manifest that fits them: what everybody can make who edits a bundle."""
    numbers = [int(name[8:20]) for name in files if name.startswith("entries/")]
    plain = {name: raw for name, raw in files.items() if not name.startswith("manifest.")}
    manifest = canonical_bytes(
        {
            "schema": "drservice/evidence-bundle/v1",
            "origin": ORIGIN,
            "size": size,
            "complete": complete,
            "range": {"from": min(numbers, default=0), "to": max(numbers, default=0)},
            "service": None,
            "period": {"from": None, "to": None},
            "files": {
                name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)} for name, raw in plain.items()
            },
        }
    )
    notes = {} if signer is None else {"manifest.note": manifest_note(manifest, signer)}
    return {**plain, "manifest.json": manifest, **notes}


def manifest_note(manifest: bytes, signer: Signer) -> bytes:
    digest = hashlib.sha256(manifest).hexdigest()
    return sign_note(f"drservice evidence bundle v1\n{ORIGIN}\n{digest}\n", [signer])


def refreshed(files: Files) -> Files:
    """Return the files with the manifest's hashes made to fit again, everything else in it kept."""
    manifest = parse_canonical(files["manifest.json"])
    assert isinstance(manifest, dict)
    listed: dict[str, Json] = {
        name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        for name, raw in files.items()
        if not name.startswith("manifest.")
    }
    return {**files, "manifest.json": canonical_bytes({**manifest, "files": listed})}


def write_folder(files: Files, folder: Path) -> Path:
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


def write_zip(files: Files, path: Path) -> Path:
    with ZipFile(path, "w") as archive:
        for name in sorted(files):
            archive.writestr(name, files[name])
    return path
