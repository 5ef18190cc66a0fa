"""The verifier of evidence bundles: one file, Python 3.11 or later and ``cryptography``, nothing else of drservice.

Every bundle carries it as ``verify.py``::

    python verify.py BUNDLE [--policy FILE]

BUNDLE is a folder or a .zip. The steps are those of docs/evidence.md; the first thing that is wrong ends the run with
exit status 5 and is named. Exit status 0: every step passed. 2: the command line or a file given in it is unusable.

A bundle cannot vouch for its own keys. Take the policy from somebody you trust, or compare the printed fingerprints
with those you were told another way; take ``known`` roots from the second store with your own hands.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
import zipfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_Object: TypeAlias = "dict[str, Any]"
_Check: TypeAlias = "Callable[[Any], str | None]"
"""Returns ``None`` for a good value, else where in it something is wrong."""


class Step(IntEnum):
    """The steps of a verification, in their order."""

    MANIFEST = 1
    POLICY = 2
    CHECKPOINT = 3
    TREE = 4
    HISTORY = 5
    SIGNATURES = 6
    STATEMENTS = 7
    AUTHORITY = 8
    TIMES = 9
    OBLIGATIONS = 10
    ARTEFACTS = 11
    EXPECTATIONS = 12


class VerificationError(Exception):
    """Something in the bundle is wrong: in which step, and what."""

    def __init__(self, step: Step, what: str) -> None:
        super().__init__(f"step {step.value} ({step.name.lower()}): {what}")
        self.step = step
        self.what = what


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a bundle that passed every step proves, and what it leaves open."""

    origin: str
    size: int
    entries: int
    is_complete: bool
    service: str | None
    period: tuple[str | None, str | None]
    policy_source: str
    """``given`` or ``bundle``."""
    keys: tuple[str, ...]
    """One line per key of the policy, to be compared with what was told another way."""
    manifest_signed_by: str | None
    checkpoint_time: datetime
    counts: Mapping[str, int]
    """Entries by kind."""
    drills: Mapping[str, int]
    """Ordinary drills by outcome."""
    mutations_noticed: int
    """Drills with a deliberate fault that failed, as they must."""
    mutations_missed: tuple[int, ...]
    """Entries of drills with a deliberate fault that nevertheless passed."""
    open_obligations: tuple[str, ...]
    overdue_obligations: tuple[str, ...]
    late_entries: tuple[int, ...]
    """Entries written later than recorded: their time is the host's word only."""
    last_anchor: tuple[str, int, datetime] | None
    """Place, size and signing time of the greatest anchor."""
    remarks: tuple[str, ...] = ()


# --- reading ------------------------------------------------------------------------------------------------

_FILE_LIMIT_BYTES = 1 << 30
_ENVELOPE_LIMIT_BYTES = 65_535
_PLACES = re.compile(
    r"manifest\.json|manifest\.note|policy\.json|checkpoint|checkpoints/[0-9]{12}|anchors/[a-z0-9][a-z0-9_-]*/[0-9]{12}"
    r"|entries/[0-9]{12}\.json|proofs/[0-9]{12}\.json|consistency/[0-9]{12}\.json|artefacts/[0-9a-f]{64}"
    r"|schemas/[a-z]+\.json|verify\.py|README\.txt|report\.[a-z]+"
)
_UNLISTED = frozenset({"manifest.json", "manifest.note"})


class _Folder:
    """The files of a bundle in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names = {
            each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_symlink() or not each.is_dir()
        }

    def read(self, name: str) -> bytes:
        path = self._path / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _FILE_LIMIT_BYTES:
            raise VerificationError(Step.MANIFEST, f"{name} is no ordinary file, or too large")
        return path.read_bytes()


class _Archive:
    """The files of a bundle in a .zip."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        names = [each.filename for each in self._zip.infolist() if not each.is_dir()]
        self.names = set(names)
        if len(self.names) != len(names):
            raise VerificationError(Step.MANIFEST, "the archive holds a name twice")

    def read(self, name: str) -> bytes:
        try:
            if self._zip.getinfo(name).file_size > _FILE_LIMIT_BYTES:
                raise VerificationError(Step.MANIFEST, f"{name} is too large")
            return self._zip.read(name)
        except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise VerificationError(Step.MANIFEST, f"{name} cannot be read from the archive: {error}") from error


def _json(raw: bytes, step: Step, what: str, *, canonical: bool = True) -> Any:  # noqa: ANN401 - JSON is anything
    """Read JSON that has no floats and no key twice and, if ``canonical``, is spelled the one way."""

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no integer")

    def unique(pairs: list[tuple[str, Any]]) -> _Object:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        value = json.loads(raw, parse_float=refuse, parse_constant=refuse, object_pairs_hook=unique)
        spelled = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise VerificationError(step, f"{what} cannot be read: {error}") from error
    if canonical and spelled != raw:
        raise VerificationError(step, f"{what} is not canonical JSON")
    return value


def _base64(text: object, size: int | None = None) -> bytes | None:
    """Return what padded standard base64 encodes, if ``text`` is its one spelling and has ``size`` bytes."""
    if not isinstance(text, str):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode("ascii") == text and size in {None, len(raw)} else None


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


# --- the shape of JSON --------------------------------------------------------------------------------------


def _pattern(rule: str) -> _Check:
    matches = re.compile(rule).fullmatch
    return lambda value: None if isinstance(value, str) and matches(value) else ""


def _enum(*words: str) -> _Check:
    return lambda value: None if isinstance(value, str) and value in words else ""


def _nullable(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


def _list(check: _Check) -> _Check:
    def checks(value: object) -> str | None:
        if not isinstance(value, list):
            return ""
        for index, item in enumerate(value):
            wrong = check(item)
            if wrong is not None:
                return f"[{index}]{wrong}"
        return None

    return checks


def _object(optional: Mapping[str, _Check] | None = None, /, **fields: _Check) -> _Check:
    """Return a check for an object with exactly these fields (a trailing underscore frees a Python word)."""
    required = {name.rstrip("_"): check for name, check in fields.items()}
    known = {**required, **(optional or {})}

    def checks(value: object) -> str | None:
        if not isinstance(value, dict):
            return ""
        for name, item in value.items():
            check = known.get(name)
            wrong = "" if check is None else check(item)
            if wrong is not None:
                return f".{name}{wrong}"
        missing = [name for name in required if name not in value]
        return f".{missing[0]}" if missing else None

    return checks


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and len(value) <= 8192 else ""


def _count(value: object) -> str | None:
    return None if type(value) is int and value >= 0 else ""


def _positive(value: object) -> str | None:
    return None if type(value) is int and value >= 1 else ""


def _bool(value: object) -> str | None:
    return None if isinstance(value, bool) else ""


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


def _time(value: object) -> str | None:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return ""
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return ""
    return None


_ulid = _pattern("[0-7][0-9A-HJKMNP-TV-Z]{25}")
_name = _pattern("[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_hash = _pattern("[0-9a-f]{64}")
_lsn = _pattern("[0-9A-F]{1,8}/[0-9A-F]{1,8}")
_day = _pattern("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_run_kind = _pattern("[a-z]{1,20}")
_key = _pattern("ed25519:[0-9a-f]{64}")
_error = _nullable(_object(code=_pattern("DR[0-9]{3}"), message=_text))
_promised = {"rto_ms": _nullable(_count), "rpo_ms": _nullable(_count)}
_common: dict[str, _Check] = {
    "repository": _ulid,
    "service": _nullable(_name),
    "host": _name,
    "run": _nullable(_ulid),
    "recorded_at": _time,
    "tool": _object(name=_enum("drservice"), version=_text),
}
_recovery: dict[str, _Check] = {
    "target": _object(
        requested=_nullable(_text),
        kind=_nullable(_text),
        reached_time=_nullable(_time),
        reached_lsn=_nullable(_lsn),
        timeline=_nullable(_count),
    ),
    "point": _nullable(_ulid),
    "snapshots": _list(_object(component=_name, snapshot=_ulid)),
    "phases_ms": _nullable(
        _object(**dict.fromkeys(("plan", "fetch", "place", "start", "replay", "check"), _nullable(_count)))
    ),
    "rto_ms": _nullable(_count),
    "documents": _nullable(
        _object(
            {"behind_ms": _count},
            **dict.fromkeys(("expected", "missing", "corrupt", "extra", "missing_in_production"), _count),
        )
    ),
    "isolation": _list(_object(name=_text, isolated=_bool, detail=_text)),
    "environment": _nullable(_object(id=_text, kind=_text)),
    "error": _error,
}
_late: dict[str, _Check] = {"kept_aside": lambda value: None if value is True else ""}
_recovered: dict[str, _Check] = {
    **_late,
    "losses": _list(
        _object(
            component=_name,
            database=_text,
            lossy=_bool,
            from_=_time,
            to=_nullable(_time),
            known_behind=_nullable(_ulid),
            **dict.fromkeys(("rows_lost", "numbers_at_risk", "queued", "overdue_actions"), _count),
        )
    ),
    "neutralized": _list(
        _object(
            component=_name,
            database=_text,
            is_odoo=_bool,
            scripts=_nullable(_count),
            **dict.fromkeys(("without_code", "other_databases"), _count),
        )
    ),
}
_severity = _enum("critical", "warning")
_PREDICATES: dict[str, _Check] = {
    "backup": _object(
        {
            **_late,
            "origin": _object(
                **dict.fromkeys(("kind", "file", "database", "version"), _text), sha256=_hash, rows_until=_time
            ),
        },
        **_common,
        outcome=_enum("complete", "degraded", "partial", "failed"),
        point=_nullable(_ulid),
        started_at=_time,
        ended_at=_time,
        components=_list(
            _object(
                component=_name,
                kind=_text,
                method=_nullable(_text),
                snapshot=_nullable(_ulid),
                state=_text,
                start_lsn=_nullable(_lsn),
                stop_lsn=_nullable(_lsn),
                **dict.fromkeys(("source_bytes", "read_bytes", "stored_bytes", "files", "timeline"), _nullable(_count)),
                **dict.fromkeys(("missing_in_production", "corrupt_in_production"), _nullable(_count)),
            )
        ),
        error=_error,
    ),
    "restore": _object(
        {**_recovered, "in_place": _late["kept_aside"]},
        **_common,
        **_recovery,
        outcome=_enum("restored", "partial", "failed"),
    ),
    "obligation": _object(
        **_common,
        obligation=_ulid,
        what=_enum("drill"),
        plan=_object(name=_text, sha256=_hash),
        due_at=_nullable(_time),
        criteria=_object(
            **_promised,
            documents=_bool,
            documents_missing=_count,
            checks=_list(_object(name=_text, severity=_severity)),
        ),
        target=_object(
            kind=_enum("latest", "consistent", "time", "random"),
            time=_nullable(_time),
            from_=_nullable(_time),
            to=_nullable(_time),
            seed_commitment=_nullable(_hash),
        ),
        mutation=_nullable(_text),
    ),
    "drill": _object(
        _recovered,
        **_common,
        **_recovery,
        outcome=_enum("passed", "failed", "aborted"),
        obligation=_ulid,
        obligation_entry=_count,
        reasons=_list(_text),
        checks=_list(
            _object(
                name=_text,
                state=_enum("passed", "failed", "unverified"),
                severity=_severity,
                not_applicable=_bool,
                owner=_nullable(_text),
                duration_ms=_count,
                detail=_text,
            )
        ),
        rpo_ms=_nullable(_count),
        target_accuracy_ms=_nullable(_count),
        promised=_object(**_promised),
        not_tested=_list(_text),
        seed=_nullable(_hash),
        mutation=_nullable(_text),
        destroyed=_bool,
        kept=_bool,
        findings=_list(_ulid),
        challenge=_nullable(_object(nonce=_pattern("([0-9a-f]{2}){16,64}"), lsn=_nullable(_lsn))),
    ),
    "approval": _object(**_common, entry=_count, approver=_text, decision=_enum("approved", "rejected"), comment=_text),
    "probe": _object(
        _late,
        **_common,
        probe=_text,
        outcome=_enum("passed", "failed"),
        results=_list(_object(name=_text, passed=_bool, detail=_text)),
    ),
    "finding": _object(
        _late,
        **_common,
        finding=_ulid,
        state=_enum("opened", "closed"),
        check=_text,
        severity=_severity,
        owner=_nullable(_text),
        drill_entry=_nullable(_count),
        detail=_text,
        due_at=_nullable(_time),
    ),
    "key": _object(
        **_common,
        action=_enum("added", "rotated", "revoked"),
        key=_object(name=_name, role=_enum("executor", "log", "approver"), public=_key),
        services=_list(_name),
        previous=_nullable(_pattern("[0-9a-f]{16}")),
    ),
    "missed": _object(
        **_common,
        event=_ulid,
        kind=_run_kind,
        plan=_nullable(_text),
        slots=lambda value: _list(_time)(value) if value else "",
        reason=_text,
        caught_up_by=_nullable(_ulid),
        noticed_at=_time,
    ),
    "failure": _object(
        **_common,
        event=_ulid,
        kind=_run_kind,
        plan=_nullable(_text),
        outcome=_enum("failed", "cancelled"),
        scheduled_for=_time,
        claims=_count,
        started_at=_nullable(_time),
        ended_at=_time,
        error=_error,
    ),
    "retention": _object(
        _late,
        **_common,
        action=_enum("retention", "prune"),
        outcome=_enum("applied", "frozen", "held", "blocked", "refused", "marked", "failed"),
        policy=_object(**dict.fromkeys(("within", "daily", "weekly", "monthly", "yearly"), _nullable(_text))),
        plan=_hash,
        planned=_object(
            {"document_sets": _count},
            **dict.fromkeys(("points", "snapshots", "wal_files", "wal_bytes", "packs", "pack_bytes"), _count),
        ),
        removed=_object(
            {"document_sets": _count}, **dict.fromkeys(("points", "snapshots", "wal_files", "wal_bytes"), _count)
        ),
        refused=_count,
        kept=_list(_object(by=_text, snapshots=_positive)),
        last_verified=_list(_object(component=_name, snapshot=_ulid)),
        anomalies=_list(_text),
        accepted=_bool,
        error=_error,
    ),
    "access": _object(
        **_common,
        event=_ulid,
        log=_ulid,
        day=_day,
        lines=_positive,
        late=_count,
        sha256=_hash,
        outcomes=_object(**dict.fromkeys(("succeeded", "refused", "failed", "sign_ins_refused"), _count)),
        first=_time,
        last=_time,
        previous=_nullable(_object(day=_day, sha256=_hash)),
        closed_at=_time,
    ),
}
_subject_name: _Check = lambda value: None if isinstance(value, str) and 1 <= len(value) <= 1024 else ""  # noqa: E731 - one of many
_STATEMENT = _object(
    _type=_enum("https://in-toto.io/Statement/v1"),
    predicateType=_text,
    subject=_list(_object(name=_subject_name, digest=_object(sha256=_hash))),
    predicate=lambda value: None if isinstance(value, dict) else "",
)


# --- policy -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    """What the policy lets a key do: between two entry numbers (or, for a log key, tree sizes), both included."""

    role: str
    name: str
    public: bytes
    services: tuple[str, ...]
    begin: int
    end: int | None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.public).hexdigest()[:16]

    @property
    def hint(self) -> bytes:
        """Return the key hash that signature lines of notes carry (C2SP signed-note)."""
        return hashlib.sha256(self.name.encode("utf-8") + b"\n\x01" + self.public).digest()[:4]

    def covers(self, number: int) -> bool:
        return self.begin <= number and (self.end is None or number <= self.end)

    def line(self) -> str:
        unit = "sizes" if self.role == "log" else "entries"
        scope = f"{unit} {self.begin} to {'any' if self.end is None else self.end}"
        services = f", services {' '.join(self.services)}" if self.services else ""
        return f"{self.role:8} {self.fingerprint} {self.name} ({scope}{services})"


_end = _nullable(_count)
_record_key = _object(name=_text, key=_key, services=_list(_name), from_entry=_count, to_entry=_end)
_POLICY = _object(
    schema=_enum("drservice/evidence-policy/v1"),
    origin=_text,
    log_keys=_list(_object(name=_text, key=_key, from_size=_count, to_size=_end)),
    executors=_list(_record_key),
    approvers=_list(_record_key),
    anchors=_list(
        _object(name=_name, max_age_ms=_end, known=_list(_object(size=_count, root=_pattern("[A-Za-z0-9+/]{43}="))))
    ),
    obligations=_list(_ulid),
    drills=_list(_object(service=_name, at_least=_count, from_=_nullable(_time), to=_nullable(_time))),
    tolerance_ms=_count,
    manifest_signed=_bool,
)


class _Policy:
    """Whose signatures are believed, and what is expected of the bundle."""

    def __init__(self, raw: bytes, what: str) -> None:
        value = _json(raw, Step.POLICY, what, canonical=False)
        wrong = _POLICY(value)
        if wrong is not None:
            raise VerificationError(Step.POLICY, f"{what} is no policy: look at {wrong or 'all of it'}")
        self.origin: str = value["origin"]
        self.grants: dict[str, list[_Grant]] = {}
        self.expected: _Object = value
        self.tolerance = timedelta(milliseconds=value["tolerance_ms"])
        for entry in value["log_keys"]:
            self._add("log", entry, entry["from_size"], entry["to_size"])
        for role, entries in (("executor", value["executors"]), ("approver", value["approvers"])):
            for entry in entries:
                self._add(role, entry, entry["from_entry"], entry["to_entry"])
        if not value["log_keys"]:
            raise VerificationError(Step.POLICY, f"{what} names no log key")

    def _add(self, role: str, entry: _Object, begin: int, end: int | None) -> None:
        public = bytes.fromhex(entry["key"].partition(":")[2])
        grant = _Grant(
            role=role,
            name=entry["name"],
            public=public,
            services=tuple(entry.get("services", ())),
            begin=begin,
            end=end,
        )
        self.grants.setdefault(grant.fingerprint, []).append(grant)

    def all(self, *roles: str) -> list[_Grant]:
        return [grant for grants in self.grants.values() for grant in grants if grant.role in roles]


# --- notes and trees ----------------------------------------------------------------------------------------

_SIGNATURE_LINE = re.compile("— ([^ +]+) ([A-Za-z0-9+/]+={0,2})")


def _note_signers(note: bytes, grants: Sequence[_Grant], step: Step, what: str) -> tuple[str, list[_Grant]]:
    """Return the text of a signed note and those of ``grants`` that signed it, at least one."""
    try:
        text, found, block = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError as error:
        raise VerificationError(step, f"{what} is no signed note") from error
    matches = [_SIGNATURE_LINE.fullmatch(line) for line in block.split("\n")[:-1]]
    raws = [_base64(match[2]) if match else None for match in matches]
    if not found or not block.endswith("\n") or not matches or None in raws:
        raise VerificationError(step, f"{what} is no signed note")
    text += "\n"
    signed = []
    for match, raw in zip(matches, raws, strict=True):
        for grant in grants:
            if match and raw and (grant.name, grant.hint) == (match[1], raw[:4]) and grant not in signed:
                if not _is_signed(grant.public, raw[4:], text.encode("utf-8")):
                    raise VerificationError(step, f"the signature of {grant.name} on {what} does not match its text")
                signed.append(grant)
    if not signed:
        names = ", ".join(match[1] for match in matches if match)
        raise VerificationError(step, f"{what} is signed by {names}: by no key of the policy that may sign it")
    return text, signed


def _is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """A signed checkpoint (a root that the policy knows has no signers)."""

    what: str
    size: int
    root: bytes
    time: datetime | None
    signers: tuple[str, ...]


def _checkpoint(note: bytes, policy: _Policy, step: Step, what: str) -> _Checkpoint:
    lines = note.decode("utf-8", "replace").split("\n")
    size = int(lines[1]) if len(lines) > 3 and re.fullmatch("0|[1-9][0-9]{0,11}", lines[1]) else -1
    root = _base64(lines[2], 32) if size >= 0 else None
    if root is None:
        raise VerificationError(step, f"{what} is no checkpoint: it has no size or no root")
    if lines[0] != policy.origin:
        raise VerificationError(step, f"{what} is of the log {lines[0][:200]!r}, not of {policy.origin}")
    grants = [grant for grant in policy.all("log") if grant.covers(size)]
    text, signed = _note_signers(note, grants, step, what)
    extensions = text.split("\n")[3:-1]
    times = [line[5:] for line in extensions if line.startswith("time ")]
    if len(times) != 1 or _time(times[0]) is not None:
        raise VerificationError(step, f"{what} does not say when it was signed")
    return _Checkpoint(
        what=what,
        size=size,
        root=root,
        time=_instant(times[0]),
        signers=tuple(grant.fingerprint for grant in signed),
    )


def _leaf(raw: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + raw).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _roots(leaves: Iterator[bytes], sizes: set[int]) -> dict[int, bytes]:
    """Return the roots of the first so many leaves, for each of ``sizes`` (RFC 6962, section 2.1)."""
    roots = {0: hashlib.sha256(b"").digest()}
    peaks: list[tuple[int, bytes]] = []
    for count, leaf in enumerate(leaves, 1):
        height, top = 0, leaf
        while peaks and peaks[-1][0] == height:
            top = _node(peaks.pop()[1], top)
            height += 1
        peaks.append((height, top))
        if count in sizes:
            root = peaks[-1][1]
            for _, peak in reversed(peaks[:-1]):
                root = _node(peak, root)
            roots[count] = root
    return roots


def _climb(node: int, last: int, path: Sequence[bytes], old: bytes, new: bytes) -> tuple[bytes, bytes] | None:
    """Walk an audit path up to both roots (RFC 9162, sections 2.1.3.2 and 2.1.4.2); ``None`` if it does not fit."""
    for step in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            old, new = _node(step, old), _node(step, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = _node(new, step)
        node, last = node >> 1, last >> 1
    return (old, new) if last == 0 else None


def _is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    reached = _climb(index, size - 1, path, leaf, leaf) if 0 <= index < size else None
    return reached is not None and reached[1] == root


def _is_consistent(first: _Checkpoint, second: _Checkpoint, proof: Sequence[bytes]) -> bool:
    if first.size == second.size:
        return not proof and first.root == second.root
    path = [first.root, *proof] if first.size & (first.size - 1) == 0 else list(proof)
    node, last = first.size - 1, second.size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    return bool(path) and _climb(node, last, path[1:], path[0], path[0]) == (first.root, second.root)


# --- the steps ----------------------------------------------------------------------------------------------

_file = _object(sha256=_hash, bytes=_count)
_MANIFEST = _object(
    schema=_enum("drservice/evidence-bundle/v1"),
    origin=_text,
    size=_count,
    complete=_bool,
    range=_object(from_=_count, to=_count),
    service=_nullable(_name),
    period=_object(from_=_nullable(_time), to=_nullable(_time)),
    files=lambda value: None if isinstance(value, dict) and all(_file(each) is None for each in value.values()) else "",
)
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PAE = b"DSSEv1 %d %s " % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode())
_ENVELOPE = _object(
    payload=lambda value: None if isinstance(value, str) else "",
    payloadType=_enum(_PAYLOAD_TYPE),
    signatures=_list(_object(keyid=_pattern("[0-9a-f]{16}"), sig=_pattern("[A-Za-z0-9+/]{86}=="))),
)
_UNIQUE_RUNS = frozenset({"backup", "restore", "drill", "retention"})
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class _Entry:
    """An entry on its way through the steps."""

    number: int
    raw: bytes
    payload: bytes = b""
    signers: tuple[str, ...] = ()
    kind: str = ""
    subject: Mapping[str, str] = field(default_factory=dict)
    predicate: _Object = field(default_factory=dict)
    time: datetime = _EPOCH

    @property
    def what(self) -> str:
        return f"entry {self.number} ({self.kind})" if self.kind else f"entry {self.number}"

    @property
    def is_late(self) -> bool:
        return "kept_aside" in self.predicate


class _Verification:
    """One pass through the steps; every method raises at the first thing that is wrong."""

    def __init__(self, bundle: _Folder | _Archive, policy: tuple[bytes, str] | None) -> None:
        self.bundle = bundle
        self.given_policy = policy
        self.digests: dict[str, str] = {}
        self.manifest: _Object = {}
        self.manifest_signer: str | None = None
        self.entries: dict[int, _Entry] = {}
        self.history: list[_Checkpoint] = []
        self.anchors: dict[str, list[_Checkpoint]] = {}
        self.ended: dict[str, int] = {}
        self.drilled: dict[str, _Entry] = {}
        self.obligations: dict[str, _Entry] = {}
        self.digests_of_days: dict[str, _Object] = {}
        self.remarks: list[str] = []

    def run(self) -> Verified:
        self.check_manifest()
        self.check_policy()
        self.check_newest()
        self.check_tree()
        self.check_history()
        for entry in self.entries.values():
            self.check_signatures(entry)
        for entry in self.entries.values():
            self.check_statement(entry)
        self.check_authority()
        self.check_times()
        self.check_replays()
        self.check_obligations()
        self.check_artefacts()
        self.check_expectations()
        return self.summary()

    def under(self, folder: str) -> list[str]:
        return sorted(name for name in self.bundle.names if name.startswith(folder + "/"))

    # 1
    def check_manifest(self) -> None:
        if "manifest.json" not in self.bundle.names:
            raise VerificationError(Step.MANIFEST, "the bundle has no manifest.json")
        self.manifest = _json(self.bundle.read("manifest.json"), Step.MANIFEST, "manifest.json")
        wrong = _MANIFEST(self.manifest)
        if wrong is not None:
            raise VerificationError(Step.MANIFEST, f"manifest.json is no manifest: look at {wrong or 'all of it'}")
        listed = self.manifest["files"]
        for name in sorted(self.bundle.names ^ set(listed)):
            if name not in _UNLISTED or name in listed:
                where = "is not in the manifest" if name in self.bundle.names else "is missing in the bundle"
                raise VerificationError(Step.MANIFEST, f"{name} {where}")
        for name in sorted(listed):
            if not _PLACES.fullmatch(name):
                raise VerificationError(Step.MANIFEST, f"{name!r} has no place in a bundle")
            raw = self.bundle.read(name)
            digest = hashlib.sha256(raw).hexdigest()
            if (digest, len(raw)) != (listed[name]["sha256"], listed[name]["bytes"]):
                raise VerificationError(
                    Step.MANIFEST, f"{name} is not the file that the manifest lists: its hash differs"
                )
            self.digests[name] = digest
            if name.startswith("entries/"):
                number = int(name[8:20])
                self.entries[number] = _Entry(number=number, raw=raw)

    # 2
    def check_policy(self) -> None:
        if self.given_policy is not None:
            self.policy = _Policy(*self.given_policy)
        elif "policy.json" in self.digests:
            self.policy = _Policy(self.bundle.read("policy.json"), "policy.json")
        else:
            raise VerificationError(Step.POLICY, "the bundle has no policy.json, and none was given")
        if self.manifest["origin"] != self.policy.origin:
            raise VerificationError(
                Step.POLICY, f"the manifest is of {self.manifest['origin']!r}, the policy of {self.policy.origin!r}"
            )
        if "manifest.note" in self.bundle.names:
            grants = self.policy.all("executor", "log")
            note = self.bundle.read("manifest.note")
            text, signed = _note_signers(note, grants, Step.POLICY, "manifest.note")
            digest = hashlib.sha256(self.bundle.read("manifest.json")).hexdigest()
            if text != f"drservice evidence bundle v1\n{self.policy.origin}\n{digest}\n":
                raise VerificationError(Step.POLICY, "manifest.note was signed for another manifest.json")
            self.manifest_signer = signed[0].name
        elif self.policy.expected["manifest_signed"]:
            raise VerificationError(Step.POLICY, "the policy asks for a signed manifest: manifest.note is missing")
        else:
            self.remarks.append("The manifest is unsigned: reports, service and period in it are labels, not proof.")

    # 3
    def check_newest(self) -> None:
        if "checkpoint" not in self.digests:
            raise VerificationError(Step.CHECKPOINT, "the bundle has no checkpoint")
        self.newest = _checkpoint(self.bundle.read("checkpoint"), self.policy, Step.CHECKPOINT, "the newest checkpoint")
        if self.newest.size != self.manifest["size"]:
            raise VerificationError(
                Step.CHECKPOINT,
                f"the manifest says {self.manifest['size']} entries, the newest checkpoint {self.newest.size}",
            )

    # 4
    def check_tree(self) -> None:
        numbers = sorted(self.entries)
        selected = self.manifest["range"]
        if not numbers or (numbers[0], numbers[-1]) != (selected["from"], selected["to"]):
            raise VerificationError(Step.TREE, f"the entries are not {selected['from']} to {selected['to']}")
        if not self.manifest["complete"]:
            self.check_inclusion(numbers)
            return
        for number in range(self.newest.size):
            if number not in self.entries:
                raise VerificationError(Step.TREE, f"entry {number} of {self.newest.size} is missing")
        if len(numbers) != self.newest.size:
            raise VerificationError(Step.TREE, f"entry {numbers[-1]} lies behind the newest checkpoint")
        roots = _roots((_leaf(self.entries[number].raw) for number in numbers), {self.newest.size})
        if roots[self.newest.size] != self.newest.root:
            raise VerificationError(Step.TREE, f"the entries do not have the root of the checkpoint: {self.culprit()}")

    def culprit(self) -> str:
        """Return which entry makes the root wrong, as far as it can be told."""
        for entry in self.entries.values():
            try:
                self.check_signatures(entry)
            except VerificationError as error:
                return error.what
        signed = [self.bundle.read(name).decode("utf-8", "replace").split("\n") for name in self.under("checkpoints")]
        sizes = {int(lines[1]): lines[2] for lines in signed if len(lines) > 3 and lines[1].isdecimal()}
        leaves = (_leaf(self.entries[number].raw) for number in range(self.newest.size))
        roots = _roots(leaves, {size for size in sizes if size < self.newest.size})
        agreed = max((size for size, root in roots.items() if size and _base64(sizes[size]) == root), default=0)
        return f"something from entry {agreed} on was exchanged, moved or signed anew"

    def check_inclusion(self, numbers: Sequence[int]) -> None:
        self.remarks.append("The bundle is a selection: nothing is said about entries that are not in it.")
        for number in numbers:
            path = self.proof(f"proofs/{number:012d}.json", "entry", number)
            leaf = _leaf(self.entries[number].raw)
            if not _is_included(leaf, number, self.newest.size, path, self.newest.root):
                raise VerificationError(Step.TREE, f"entry {number} is not in the tree of the newest checkpoint")
        for name in self.under("proofs"):
            if int(name[7:19]) not in self.entries:
                raise VerificationError(Step.TREE, f"{name} proves an entry that is not in the bundle")

    def proof(self, name: str, word: str, number: int) -> list[bytes]:
        step = Step.TREE if word == "entry" else Step.HISTORY
        if name not in self.digests:
            raise VerificationError(step, f"{name} is missing")
        value = _json(self.bundle.read(name), step, name)
        shape = _object(**{word: _count}, size=_count, hashes=_list(_pattern("[A-Za-z0-9+/]{43}=")))
        if shape(value) is not None or (value[word], value["size"]) != (number, self.newest.size):
            raise VerificationError(step, f"{name} is no proof about {number} of {self.newest.size}")
        hashes = [raw for text in value["hashes"] if (raw := _base64(text, 32))]
        if len(hashes) != len(value["hashes"]):
            raise VerificationError(step, f"{name} has a hash that is not written the one way")
        return hashes

    # 5
    def check_history(self) -> None:
        for name in self.under("checkpoints"):
            self.history.append(self.earlier(name, f"the checkpoint {name}"))
        for name in self.under("anchors"):
            _, place, _ = name.split("/")
            anchor = self.earlier(name, f"the anchor {name}")
            self.anchors.setdefault(place, []).append(anchor)
            self.history.append(anchor)
        for expected in self.policy.expected["anchors"]:
            for known in expected["known"]:
                what = f"the root that the policy knows from {expected['name']} for size {known['size']}"
                root = base64.b64decode(known["root"])
                self.history.append(_Checkpoint(what=what, size=known["size"], root=root, time=None, signers=()))
        sizes = {each.size for each in self.history}
        roots: dict[int, bytes] = {}
        if self.manifest["complete"]:
            roots = _roots((_leaf(self.entries[number].raw) for number in range(self.newest.size)), sizes)
        for each in sorted(self.history, key=lambda each: each.size):
            self.check_earlier(each, roots)
        self.history.append(self.newest)

    def earlier(self, name: str, what: str) -> _Checkpoint:
        found = _checkpoint(self.bundle.read(name), self.policy, Step.HISTORY, what)
        if found.size != int(name.rpartition("/")[2]):
            raise VerificationError(Step.HISTORY, f"{what} is of size {found.size}: it was moved")
        return found

    def check_earlier(self, each: _Checkpoint, roots: Mapping[int, bytes]) -> None:
        if each.size > self.newest.size:
            raise VerificationError(
                Step.HISTORY, f"{each.what} has {each.size} entries, the newest checkpoint {self.newest.size}: set back"
            )
        if self.manifest["complete"]:
            agrees = roots[each.size] == each.root
        elif each.size in {0, self.newest.size}:
            agrees = each.size == 0 or each.root == self.newest.root
        else:
            proof = self.proof(f"consistency/{each.size:012d}.json", "from", each.size)
            agrees = _is_consistent(each, self.newest, proof)
        if not agrees:
            raise VerificationError(Step.HISTORY, f"{each.what} is of another history: the log was forked or rewritten")

    # 6
    def check_signatures(self, entry: _Entry) -> None:
        if len(entry.raw) > _ENVELOPE_LIMIT_BYTES:
            raise VerificationError(Step.SIGNATURES, f"{entry.what} has {len(entry.raw)} bytes")
        envelope = _json(entry.raw, Step.SIGNATURES, entry.what)
        wrong = _ENVELOPE(envelope)
        payload = None if wrong is not None else _base64(envelope["payload"])
        if payload is None or not 1 <= len(envelope["signatures"]) <= 8:
            raise VerificationError(Step.SIGNATURES, f"{entry.what} is no DSSE envelope: look at {wrong or 'payload'}")
        message = _PAE + b"%d " % len(payload) + payload
        signers = []
        for each in envelope["signatures"]:
            grants = self.policy.grants.get(each["keyid"])
            if grants is None:
                continue
            if not _is_signed(grants[0].public, _base64(each["sig"]) or b"", message):
                raise VerificationError(
                    Step.SIGNATURES,
                    f"the signature of {entry.what} by {grants[0].name} ({each['keyid']}) does not match its content",
                )
            signers.append(each["keyid"])
        if not signers:
            names = ", ".join(each["keyid"] for each in envelope["signatures"])
            raise VerificationError(Step.SIGNATURES, f"{entry.what} is signed by {names}: by no key of the policy")
        entry.payload, entry.signers = payload, tuple(signers)

    # 7
    def check_statement(self, entry: _Entry) -> None:
        value = _json(entry.payload, Step.STATEMENTS, f"the statement of {entry.what}")
        wrong = _STATEMENT(value)
        if wrong is not None:
            raise VerificationError(Step.STATEMENTS, f"{entry.what} is no statement: look at {wrong or 'all of it'}")
        match = re.fullmatch("urn:drservice:evidence:([a-z]+):v1", value["predicateType"])
        shape = _PREDICATES.get(match[1]) if match else None
        if match is None or shape is None:
            raise VerificationError(
                Step.STATEMENTS, f"{entry.what} is of unknown kind {value['predicateType'][:200]!r}"
            )
        entry.kind, entry.predicate = match[1], value["predicate"]
        wrong = shape(entry.predicate)
        if wrong is not None:
            raise VerificationError(Step.STATEMENTS, f"{entry.what} breaks its schema at predicate{wrong}")
        if f"drservice/{entry.predicate['repository']}" != self.policy.origin:
            raise VerificationError(
                Step.STATEMENTS, f"{entry.what} is of the repository {entry.predicate['repository']}: of another log"
            )
        entry.subject = {each["name"]: each["digest"]["sha256"] for each in value["subject"]}
        if len(entry.subject) != len(value["subject"]):
            raise VerificationError(Step.STATEMENTS, f"{entry.what} names a subject twice")
        entry.time = _instant(entry.predicate["recorded_at"])

    # 8
    def check_authority(self) -> None:
        for number in sorted(self.entries):
            entry = self.entries[number]
            if entry.kind == "key":
                self.check_key_entry(entry)
            else:
                self.check_signer(entry, "approver" if entry.kind == "approval" else "executor")
        for checkpoint in self.history:
            for signer in checkpoint.signers:
                last = self.ended.get(signer)
                if last is not None and checkpoint.size > last:
                    raise VerificationError(
                        Step.AUTHORITY,
                        f"{checkpoint.what} of size {checkpoint.size} is signed by the log key {signer}, "
                        f"which entry {last} revoked",
                    )

    def check_signer(self, entry: _Entry, *roles: str) -> None:
        """Return if one of the signers may sign this entry; else tell why the first one may not."""
        reasons = []
        for signer in entry.signers:
            grants = [grant for grant in self.policy.grants[signer] if grant.role in roles]
            name = self.policy.grants[signer][0].name
            reason = self.refusal(entry, signer, grants)
            if reason is None:
                return
            reasons.append(f"{entry.what} is signed by {name} ({signer}), {reason}")
        raise VerificationError(Step.AUTHORITY, reasons[0])

    def refusal(self, entry: _Entry, signer: str, grants: Sequence[_Grant]) -> str | None:
        service = entry.predicate["service"]
        if not grants:
            return f"whose role does not sign {entry.kind} entries"
        if self.ended.get(signer, entry.number) < entry.number:
            return f"which entry {self.ended[signer]} revoked"
        grants = [grant for grant in grants if grant.covers(entry.number)]
        if not grants:
            return "which may not sign an entry of this number"
        if service is not None and not any(not grant.services or service in grant.services for grant in grants):
            return f"who may not write for {service}"
        return None

    def check_key_entry(self, entry: _Entry) -> None:
        key, action = entry.predicate["key"], entry.predicate["action"]
        public = bytes.fromhex(key["public"].partition(":")[2])
        digest = hashlib.sha256(public).hexdigest()
        name = digest[:16]
        if entry.subject != {f"key/{name}": digest}:
            raise VerificationError(Step.AUTHORITY, f"{entry.what} is not about the key it shows ({name})")
        if entry.number == 0 and (action, key["role"], name in entry.signers) != ("added", "log", True):
            raise VerificationError(Step.AUTHORITY, "entry 0 does not name the log key that signs it")
        if entry.number == 0 and all(grant.role != "log" for grant in self.policy.grants[name]):
            raise VerificationError(Step.AUTHORITY, f"entry 0 names the log key {name}, which the policy does not know")
        if action != "rotated":
            self.check_signer_of_key(entry)
        else:
            previous = entry.predicate["previous"]
            if previous not in entry.signers or name not in entry.signers:
                raise VerificationError(
                    Step.AUTHORITY, f"{entry.what} rotates a key and is not signed by both the old and the new one"
                )
            if self.ended.get(previous, entry.number) < entry.number:
                raise VerificationError(
                    Step.AUTHORITY, f"{entry.what} rotates {previous}, which entry {self.ended[previous]} revoked"
                )
            self.ended.setdefault(previous, entry.number)
        if action == "revoked":
            self.ended.setdefault(name, entry.number)

    def check_signer_of_key(self, entry: _Entry) -> None:
        unrestricted = [
            signer
            for signer in entry.signers
            if any(
                grant.role == "log" or (grant.role == "executor" and not grant.services)
                for grant in self.policy.grants[signer]
            )
        ]
        if not unrestricted:
            raise VerificationError(
                Step.AUTHORITY, f"{entry.what} is about a key and is signed by {entry.signers[0]}, who may not say that"
            )
        for signer in unrestricted:
            if self.ended.get(signer, entry.number) < entry.number:
                raise VerificationError(
                    Step.AUTHORITY, f"{entry.what} is signed by {signer}, which entry {self.ended[signer]} revoked"
                )
        if entry.number > 0:
            self.check_signer(entry, "executor", "log")

    # 9
    def check_times(self) -> None:
        timed = sorted((each.size, each.time, each.what) for each in self.history if each.time is not None)
        self.check_checkpoint_times(timed)
        latest: tuple[datetime, int] | None = None
        sizes = [size for size, _, _ in timed]
        for number in sorted(self.entries):
            entry = self.entries[number]
            self.check_recorded(entry, latest)
            behind = bisect_right(sizes, number)
            if behind and not entry.is_late and entry.time < timed[behind - 1][1] - self.policy.tolerance:
                raise VerificationError(
                    Step.TIMES,
                    f"{entry.what} was recorded at {entry.predicate['recorded_at']} and lies behind "
                    f"{timed[behind - 1][2]}, which was signed later: it is back-dated",
                )
            if behind < len(timed) and not entry.is_late and entry.time > timed[behind][1] + self.policy.tolerance:
                raise VerificationError(
                    Step.TIMES,
                    f"{entry.what} was recorded at {entry.predicate['recorded_at']}, after {timed[behind][2]}, "
                    "which already holds it: it is dated forward",
                )
            if not entry.is_late and (latest is None or entry.time > latest[0]):
                latest = entry.time, number

    def check_checkpoint_times(self, timed: Sequence[tuple[int, datetime, str]]) -> None:
        for earlier, later in pairwise(timed):
            if later[1] < earlier[1] - self.policy.tolerance:
                raise VerificationError(Step.TIMES, f"{later[2]} is larger than {earlier[2]} and was signed before it")

    def check_recorded(self, entry: _Entry, latest: tuple[datetime, int] | None) -> None:
        said = entry.predicate["recorded_at"]
        if latest is not None and not entry.is_late and entry.time < latest[0] - self.policy.tolerance:
            raise VerificationError(
                Step.TIMES, f"{entry.what} was recorded at {said}, before entry {latest[1]}: it is back-dated"
            )
        if entry.kind in {"backup", "failure"}:
            ended = _instant(entry.predicate["ended_at"])
            begun = _instant(entry.predicate["started_at"] or entry.predicate["ended_at"])
            if ended < begun or (not entry.is_late and ended > entry.time + self.policy.tolerance):
                raise VerificationError(Step.TIMES, f"{entry.what} ended before it began, or after it was recorded")
        if entry.kind == "missed":
            slots = entry.predicate["slots"]
            ordered = all(earlier < later for earlier, later in pairwise(slots))
            if not ordered or slots[-1] > entry.predicate["noticed_at"]:
                raise VerificationError(
                    Step.TIMES, f"{entry.what} names slots out of order, or noticed them before they came"
                )

    def check_replays(self) -> None:
        seen: dict[tuple[str, str], int] = {}
        for number in sorted(self.entries):
            entry = self.entries[number]
            predicate = entry.predicate
            plain = {name: value for name, value in predicate.items() if name != "kept_aside"}
            marks = [("statement", json.dumps([entry.kind, sorted(entry.subject.items()), plain], sort_keys=True))]
            if entry.kind in _UNIQUE_RUNS and predicate["run"] is not None:
                marks.append((f"{entry.kind} run", predicate["run"]))
            if entry.kind == "obligation":
                marks.append(("obligation", predicate["obligation"]))
            if entry.kind == "drill" and predicate["challenge"]:
                marks.append(("challenge nonce", predicate["challenge"]["nonce"]))
            if "event" in predicate:
                marks.append(("event", predicate["event"]))
            for mark in marks:
                first = seen.setdefault(mark, number)
                if first != number:
                    shown = "statement" if mark[0] == "statement" else f"{mark[0]} {mark[1][:64]}"
                    raise VerificationError(Step.TIMES, f"{entry.what} replays entry {first}: the same {shown}")

    # 10
    def check_obligations(self) -> None:
        opened: set[str] = set()
        for number in sorted(self.entries):
            entry = self.entries[number]
            if entry.kind == "obligation":
                self.check_obligation(entry)
            elif entry.kind == "drill":
                self.check_drill(entry)
            elif entry.kind == "approval":
                self.check_approval(entry)
            elif entry.kind == "access":
                self.check_access(entry)
            elif entry.kind == "retention":
                self.check_retention(entry)
            elif entry.kind == "finding":
                finding = entry.predicate["finding"]
                if entry.predicate["state"] == "opened":
                    opened.add(finding)
                elif self.manifest["complete"] and finding not in opened:
                    raise VerificationError(Step.OBLIGATIONS, f"{entry.what} closes {finding}, which was never opened")

    def check_obligation(self, entry: _Entry) -> None:
        target, plan = entry.predicate["target"], entry.predicate["plan"]
        given = {name for name in ("time", "from", "to", "seed_commitment") if target[name] is not None}
        chosen = {"latest": set(), "consistent": set(), "time": {"time"}, "random": {"from", "to", "seed_commitment"}}
        wanted = chosen[target["kind"]]
        if given != wanted or (target["kind"] == "random" and _instant(target["to"]) < _instant(target["from"])):
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} has a target that is not {target['kind']}")
        if entry.subject != {f"plan/{plan['name']}": plan["sha256"]}:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} is not about its own plan {plan['name']}")
        self.obligations[entry.predicate["obligation"]] = entry

    def check_drill(self, entry: _Entry) -> None:
        drill, ulid = entry.predicate, entry.predicate["obligation"]
        due = self.obligations.get(ulid)
        if due is None or due.number != drill["obligation_entry"]:
            raise VerificationError(
                Step.OBLIGATIONS,
                f"{entry.what} names the obligation {ulid} at entry {drill['obligation_entry']}: none stands there",
            )
        if ulid in self.drilled:
            raise VerificationError(
                Step.OBLIGATIONS, f"{entry.what} answers {ulid}, which entry {self.drilled[ulid].number} has answered"
            )
        promise = due.predicate
        plan = promise["plan"]
        differences = {
            "service": drill["service"] == promise["service"],
            "plan": entry.subject.get(f"plan/{plan['name']}") == plan["sha256"],
            "promised": drill["promised"] == {name: promise["criteria"][name] for name in ("rto_ms", "rpo_ms")},
            "mutation": drill["mutation"] == promise["mutation"],
        }
        for name, agrees in differences.items():
            if not agrees:
                raise VerificationError(
                    Step.OBLIGATIONS, f"{entry.what} has another {name} than its obligation (entry {due.number})"
                )
        self.check_target(entry, promise["target"])
        if drill["outcome"] == "passed":
            self.check_passed(entry, promise["criteria"])
        self.drilled[ulid] = entry

    def check_target(self, entry: _Entry, target: _Object) -> None:
        drill = entry.predicate
        requested, seed = drill["target"]["requested"], drill["seed"]
        if drill["outcome"] == "aborted" and requested is None and seed is None:
            return
        wanted = {"latest": "latest", "consistent": "consistent", "time": target["time"]}.get(target["kind"])
        if target["kind"] == "random":
            if seed is None or hashlib.sha256(bytes.fromhex(seed)).hexdigest() != target["seed_commitment"]:
                raise VerificationError(
                    Step.OBLIGATIONS, f"{entry.what} has a seed that its obligation did not commit to"
                )
            wanted = _target_from_seed(bytes.fromhex(seed), target["from"], target["to"])
        elif seed is not None:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} has a seed, and its obligation has none")
        if requested != wanted or drill["target"]["kind"] != target["kind"]:
            raise VerificationError(
                Step.OBLIGATIONS, f"{entry.what} had the target {requested}; its obligation leads to {wanted}"
            )

    def check_passed(self, entry: _Entry, criteria: _Object) -> None:
        """A drill says that it passed: by its own numbers, against the criteria that were fixed before."""
        drill = entry.predicate
        against = (
            *_told_against(drill),
            *_not_shown(drill),
            *_snapshots_not_named(entry),
            *_checks_against(drill["checks"], criteria["checks"]),
            *_limits_against(drill, criteria),
            *_documents_against(drill["documents"], criteria),
        )
        if against:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} says passed against its own numbers: {against[0]}")

    def check_approval(self, entry: _Entry) -> None:
        number = entry.predicate["entry"]
        if number >= entry.number:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} approves entry {number}, which came later")
        approved = self.entries.get(number)
        if approved is None:
            self.remarks.append(f"Entry {entry.number} approves entry {number}, which is not in the bundle.")
            return
        if entry.subject != {f"ledger/{number:012d}": hashlib.sha256(approved.raw).hexdigest()}:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} approves other bytes than those of entry {number}")

    def check_access(self, entry: _Entry) -> None:
        """Each day of an access log names the digest of the day before it that had a line."""
        said = entry.predicate
        outcomes = said["outcomes"]
        counted = outcomes["succeeded"] + outcomes["refused"] + outcomes["failed"]
        if (
            counted != said["lines"]
            or outcomes["sign_ins_refused"] > outcomes["refused"]
            or said["first"] > said["last"]
        ):
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} counts other lines than it has")
        before = self.digests_of_days.get(said["log"])
        if self.manifest["complete"] and said["previous"] != before:
            raise VerificationError(
                Step.OBLIGATIONS,
                f"{entry.what} does not follow the last digest of the access log {said['log']}: a day was dropped",
            )
        if said["previous"] is not None and said["previous"]["day"] >= said["day"]:
            raise VerificationError(
                Step.OBLIGATIONS, f"{entry.what} is of {said['day']} and follows {said['previous']['day']}"
            )
        if said["previous"] is None and self.digests_of_days:
            self.remarks.append(
                f"Entry {entry.number} begins another access log: the last lines of an earlier one may be untold."
            )
        self.digests_of_days[said["log"]] = {"day": said["day"], "sha256": said["sha256"]}

    def check_retention(self, entry: _Entry) -> None:
        said = entry.predicate
        if entry.subject.get("plan/retention") != said["plan"]:
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} is not about its own plan")
        is_idle = said["outcome"] in {"frozen", "marked"} or said["action"] == "prune"
        if is_idle and any(said["removed"].values()):
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} says {said['outcome']} and that something went")
        if said["outcome"] == "applied" and (said["refused"] or said["error"] is not None):
            raise VerificationError(Step.OBLIGATIONS, f"{entry.what} says applied against its own numbers")

    # 11
    def check_artefacts(self) -> None:
        for name in self.under("artefacts"):
            if self.digests[name] != name.rpartition("/")[2]:
                raise VerificationError(Step.ARTEFACTS, f"{name} has another hash than its name: it was exchanged")
        service = self.manifest["service"]
        named: set[str] = set()
        for entry in self.entries.values():
            for name, sha256 in entry.subject.items():
                if name.startswith("artefact/"):
                    named.add(f"artefacts/{sha256}")
                    if service in {None, entry.predicate["service"]} and f"artefacts/{sha256}" not in self.digests:
                        raise VerificationError(Step.ARTEFACTS, f"{name} of {entry.what} is missing: {sha256}")
        for name in self.under("artefacts"):
            if name not in named:
                raise VerificationError(Step.ARTEFACTS, f"no entry names {name}")

    # 12
    def check_expectations(self) -> None:
        assert self.newest.time is not None  # step 3 asked for it
        expected = self.policy.expected
        for ulid in expected["obligations"]:
            if ulid not in self.obligations:
                raise VerificationError(
                    Step.EXPECTATIONS, f"the obligation {ulid}, which the policy expects, is missing"
                )
        for wanted in expected["drills"]:
            begin, end = (wanted[name] and _instant(wanted[name]) for name in ("from", "to"))
            found = [
                entry
                for entry in self.obligations.values()
                if entry.predicate["service"] == wanted["service"]
                and (begin is None or entry.time >= begin)
                and (end is None or entry.time <= end)
            ]
            if len(found) < wanted["at_least"]:
                raise VerificationError(
                    Step.EXPECTATIONS,
                    f"{wanted['service']} has {len(found)} obligations; the policy expects {wanted['at_least']}",
                )
        for place in expected["anchors"]:
            held = self.anchors.get(place["name"])
            if not held and not place["known"]:
                raise VerificationError(
                    Step.EXPECTATIONS, f"the policy expects an anchor in {place['name']}: none is there"
                )
            times = [each.time for each in held or () if each.time is not None]
            limit = place["max_age_ms"]
            if limit is not None and (not times or self.newest.time - max(times) > timedelta(milliseconds=limit)):
                raise VerificationError(
                    Step.EXPECTATIONS, f"the newest anchor in {place['name']} is older than the policy allows"
                )

    def summary(self) -> Verified:
        assert self.newest.time is not None  # step 3 asked for it
        ordinary = [each for each in self.drilled.values() if each.predicate["mutation"] is None]
        mutated = [each for each in self.drilled.values() if each.predicate["mutation"] is not None]
        waiting = [each for ulid, each in self.obligations.items() if ulid not in self.drilled]
        due = {each.predicate["obligation"]: each.predicate["due_at"] for each in waiting}
        overdue = [ulid for ulid, at in due.items() if at is not None and _instant(at) < self.newest.time]
        anchored = [(place, each) for place, held in self.anchors.items() for each in held]
        last = max(anchored, key=lambda pair: pair[1].size, default=None)
        return Verified(
            origin=self.policy.origin,
            size=self.newest.size,
            entries=len(self.entries),
            is_complete=self.manifest["complete"],
            service=self.manifest["service"],
            period=(self.manifest["period"]["from"], self.manifest["period"]["to"]),
            policy_source="bundle" if self.given_policy is None else "given",
            keys=tuple(grant.line() for grant in self.policy.all("log", "executor", "approver")),
            manifest_signed_by=self.manifest_signer,
            checkpoint_time=self.newest.time,
            counts=dict(sorted(Counter(entry.kind for entry in self.entries.values()).items())),
            drills=dict(sorted(Counter(each.predicate["outcome"] for each in ordinary).items())),
            mutations_noticed=sum(each.predicate["outcome"] == "failed" for each in mutated),
            mutations_missed=tuple(each.number for each in mutated if each.predicate["outcome"] == "passed"),
            open_obligations=tuple(ulid for ulid in due if ulid not in overdue),
            overdue_obligations=tuple(overdue),
            late_entries=tuple(sorted(each.number for each in self.entries.values() if each.is_late)),
            last_anchor=None if last is None or last[1].time is None else (last[0], last[1].size, last[1].time),
            remarks=tuple(self.remarks),
        )


def _told_against(drill: _Object) -> Iterator[str]:
    """Yield what a drill says against itself."""
    if drill["error"] is not None:
        yield f"it has the error {drill['error']['code']}"
    if drill["reasons"]:
        yield f"it gives a reason against itself: {drill['reasons'][0]}"
    yield from (f"{each['name']} is not isolated" for each in drill["isolation"] if not each["isolated"])


def _not_shown(drill: _Object) -> Iterator[str]:
    """Yield what a drill has to show to have passed, and does not: what is missing never helps it."""
    for name in ("reached_lsn", "timeline"):
        if drill["target"][name] is None:
            yield f"its {name} is not known"
    for name in ("environment", "target_accuracy_ms", "challenge"):
        if drill[name] is None:
            yield f"its {name} is not known"
    if not drill["isolation"]:
        yield "the isolation of its environment was not tested"
    if not drill["destroyed"] and not drill["kept"]:
        yield "its environment was neither destroyed nor kept on purpose"


def _snapshots_not_named(entry: _Entry) -> Iterator[str]:
    """Yield which snapshots a drill says it recovered and does not name by their hash: at least one is needed."""
    snapshots = entry.predicate["snapshots"]
    if not snapshots:
        yield "it names no snapshot that it recovered"
    for each in snapshots:
        place = f"/{each['component']}/snapshots/{each['snapshot']}"
        if not any(name.endswith(place) for name in entry.subject):
            yield f"the snapshot {each['snapshot']} of {each['component']} is none of its subjects"


def _checks_against(results: Sequence[_Object], planned: Sequence[_Object]) -> Iterator[str]:
    """Yield what the checks of a drill say against it, measured by those that were planned."""
    by_name = {each["name"]: each for each in results}
    severities = {each["name"]: each["severity"] for each in planned}
    if len(by_name) != len(results) or len(severities) != len(planned):
        yield "a check stands twice"
    excused = {name for name in severities if name in by_name and by_name[name]["not_applicable"]}
    if not severities.keys() & by_name.keys() - excused:
        yield "no planned check was asked"
    for name, severity in severities.items():
        if name not in by_name:
            yield f"{name} has no result"
        elif by_name[name]["severity"] != severity:
            yield f"{name} is {by_name[name]['severity']}, planned was {severity}"
    for name, each in by_name.items():
        if each["not_applicable"] and (name not in excused or each["state"] != "unverified"):
            yield f"{name} is said to be not applicable and {each['state']}"
        elif each["severity"] == "critical" and each["state"] != "passed" and name not in excused:
            yield f"{name} {each['state']}"


def _limits_against(drill: _Object, criteria: _Object) -> Iterator[str]:
    for name in ("rto_ms", "rpo_ms"):
        if criteria[name] is not None and (drill[name] is None or drill[name] > criteria[name]):
            yield f"{name} is {drill[name]}, promised was {criteria[name]}"


def _documents_against(documents: _Object | None, criteria: _Object) -> Iterator[str]:
    if documents is None:
        if criteria["documents"]:
            yield "its documents were not counted"
        return
    if documents["missing"] > criteria["documents_missing"]:
        yield f"{documents['missing']} documents are missing"
    if documents["corrupt"]:
        yield f"{documents['corrupt']} documents are corrupt"


def _target_from_seed(seed: bytes, begin: str, end: str) -> str:
    """Return the instant that a seed chooses in a window (docs/evidence.md)."""
    first = _instant(begin)
    width = (_instant(end) - first) // _MICROSECOND + 1
    number = int.from_bytes(hashlib.sha256(b"drservice target v1\n" + seed).digest()[:8], "big")
    chosen = first + (number % width) * _MICROSECOND
    return chosen.isoformat(timespec="microseconds").replace("+00:00", "Z")


def verify_bundle(path: Path, policy: Path | None = None) -> Verified:
    """Take a bundle through every step and return what it proves.

    Args:
        path: a folder or a .zip.
        policy: whose keys are believed; without it the policy in the bundle, which then is to be compared.

    Raises:
        VerificationError: the first thing that is wrong.
        OSError: the bundle or the policy cannot be read at all.
    """
    given = None if policy is None else (policy.read_bytes(), str(policy))
    try:
        bundle = _Folder(path) if path.is_dir() else _Archive(path)
    except zipfile.BadZipFile as error:
        raise VerificationError(Step.MANIFEST, f"{path} is neither a folder nor a .zip: {error}") from error
    return _Verification(bundle, given).run()


def lines_of(verified: Verified) -> Iterator[str]:
    """Yield what a person should read about a bundle that passed."""
    for step in Step:
        yield f"step {step.value:2} {step.name.lower():12} ok"
    yield f"log            {verified.origin}, {verified.size} entries, signed {verified.checkpoint_time.isoformat()}"
    yield f"in the bundle  {verified.entries} entries" + ("" if verified.is_complete else " (a selection)")
    yield "kinds          " + ", ".join(f"{kind} {count}" for kind, count in verified.counts.items())
    yield "drills         " + (", ".join(f"{word} {count}" for word, count in verified.drills.items()) or "none")
    if verified.mutations_noticed or verified.mutations_missed:
        missed = ", ".join(f"entry {number}" for number in verified.mutations_missed) or "none"
        yield f"faults planted noticed {verified.mutations_noticed}, not noticed: {missed}"
    for word, ulids in (("open", verified.open_obligations), ("OVERDUE", verified.overdue_obligations)):
        for ulid in ulids:
            yield f"obligation     {ulid} {word}: nothing came of it so far"
    for number in verified.late_entries:
        yield f"late           entry {number} was written later than it says: its time is the host's word only"
    if verified.last_anchor is None:
        yield "anchors        none in the bundle: a log key could have rewritten everything"
    else:
        place, size, at = verified.last_anchor
        yield f"last anchor    {place}, size {size} of {verified.size}, signed {at.isoformat()}"
    for remark in verified.remarks:
        yield f"remark         {remark}"
    if verified.policy_source == "given":
        yield "policy         the one given with --policy"
    else:
        yield "policy         the one in the bundle. Compare these fingerprints with those you were told another way:"
        yield from (f"  {line}" for line in verified.keys)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verifier as a program; returns its exit status."""
    parser = argparse.ArgumentParser(description="Verify an evidence bundle, offline.")
    parser.add_argument("bundle", type=Path, help="a folder or a .zip")
    parser.add_argument("--policy", type=Path, help="whose keys are believed, instead of the bundle's own policy.json")
    given = parser.parse_args(arguments)
    try:
        verified = verify_bundle(given.bundle, given.policy)
    except VerificationError as error:
        sys.stderr.write(f"NOT VERIFIED, {error}\n")
        return 5
    except OSError as error:
        sys.stderr.write(f"cannot read: {error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in lines_of(verified)))
    sys.stdout.write("VERIFIED\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
