"""Keys: who can read, and proof that it is so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from drservice.canonical import Json
from drservice.clock import Clock
from drservice.credentials import resolve_bytes
from drservice.errors import (
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    NoIdentityError,
    SecretError,
    WrongDataKeyError,
)
from drservice.model.estate import Service
from drservice.model.ids import KeyId, ServiceName, is_ulid
from drservice.operations.keywitness import Witnesses
from drservice.operations.progress import Progress
from drservice.repository import layout
from drservice.repository.envelope import HostKey, read_object
from drservice.repository.keys import DataKey, Identities, Wrapping
from drservice.repository.recipients import is_protected
from drservice.repository.repository import Repository

_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """One wrapping of a data key."""

    service: ServiceName
    key_id: KeyId
    object_key: str
    created_at: str
    host: str
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCheck:
    """Whether one identity opens the newest data key of a service."""

    service: ServiceName
    identity: str
    """The reference it was loaded from."""
    recipient: str | None
    """Whom it opens for; ``None`` if it cannot be loaded."""
    key_id: KeyId | None
    opened: bool
    detail: str
    exposed: bool
    """Everybody on this machine may read it, and so every backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKeys:
    """WAL files that carry their key themselves, by when the store received them."""

    count: int
    oldest: datetime | None
    newest: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseWrapping:
    """A wrapping that is signed and whole and does not hold what its header says."""

    object_key: str
    host: str
    """Who signed it."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrapped:
    """What became of the data keys of a service."""

    service: ServiceName
    keys: int
    wrapped: tuple[KeyId, ...]
    """Which lacked a recipient of today and have it now (or would have)."""
    unopened: tuple[tuple[KeyId, str], ...]
    """Which were not handed on, with the reason: what they hold is not known here, or not known to be right."""
    false: tuple[FalseWrapping, ...]
    """Wrappings that do not hold what they say. They count for nobody; a right one beside them does."""
    wal: OwnKeys
    points: int
    """Recovery points: each carries its key itself; nothing that a restore needs is in one alone."""


def list_keys(repository: Repository, service: ServiceName) -> list[KeyFacts]:
    """Return every wrapping of every data key of a service, oldest first.

    Raises:
        FormatError, UnknownSignerError, BadSignatureError, DamagedObjectError: one cannot be believed.
    """
    found: list[KeyFacts] = []
    for object_key in _key_objects(repository, service):
        header, _ = _read(repository, object_key)
        recipients = header.get("recipients")
        found.append(
            KeyFacts(
                service=service,
                key_id=KeyId(str(header.get("key_id"))),
                object_key=object_key,
                created_at=str(header.get("created_at")),
                host=str(header.get("host")),
                recipients=tuple(str(item) for item in recipients) if isinstance(recipients, list) else (),
            )
        )
    return found


def check_identities(repository: Repository, chosen: Service) -> list[KeyCheck]:
    """Try each identity that is configured here on the newest data key of a service. Could not try is not a pass.

    What it finds has to open what was sealed with the key as well. One that cannot be loaded is a failed check by its
    name, and the others are tried all the same.
    """
    service = chosen.name
    witnesses = Witnesses(repository, chosen)
    keys = list_keys(repository, service)
    newest = max((key.key_id for key in keys), default=None)
    wrappings = [key for key in keys if key.key_id == newest]
    checks: list[KeyCheck] = []
    for reference, identities in repository.keyring.identities.each():
        exposed = _is_exposed(reference)
        try:
            recipients = identities.recipients
        except DrError as error:
            checks.append(
                KeyCheck(
                    service=service,
                    identity=reference,
                    recipient=None,
                    key_id=newest,
                    opened=False,
                    detail=f"cannot be used: {error.message}. {error.hint}".rstrip(),
                    exposed=exposed,
                )
            )
            continue
        for recipient in recipients:
            alone = identities.only(recipient)
            opened, detail = _try(repository, alone, wrappings, witnesses)
            checks.append(
                KeyCheck(
                    service=service,
                    identity=reference,
                    recipient=recipient,
                    key_id=newest,
                    opened=opened,
                    detail=detail,
                    exposed=exposed,
                )
            )
    return checks


def _is_exposed(reference: str) -> bool:
    """Tell whether an identity lies in a file that everybody may read, without a passphrase."""
    scheme, _, path = reference.partition(":")
    try:
        return (
            scheme == "file" and bool(Path(path).stat().st_mode & 0o004) and not is_protected(resolve_bytes(reference))
        )
    except (OSError, SecretError):
        return False  # what cannot be looked at cannot be loaded, which the check says


def _try(
    repository: Repository, identities: Identities, wrappings: list[KeyFacts], witnesses: Witnesses
) -> tuple[bool, str]:
    """Return whether one identity opens a data key by any of its wrappings, and what to say."""
    detail = "there is no data key yet; take a backup first"
    secrets: list[bytes] = []
    for wrapping in wrappings:
        _, body = _read(repository, wrapping.object_key)
        try:
            secrets.append(identities.unwrap(body, f"data key {wrapping.key_id}"))
        except DrError as error:
            detail = error.message
    if not secrets:
        return False, detail
    try:
        right = witnesses.right_one(wrappings[0].key_id, secrets)
    except WrongDataKeyError as error:
        return False, f"opens only wrappings that hold a false key: {error.message}"
    proof = "opens it" if right is not None else "opens it (nothing that was sealed with it is there to try it on)"
    others = len(set(secrets)) - 1
    return True, proof + (f"; beside it {others} wrapping(s) hold a false key" if others else "")


def rewrap_keys(
    repository: Repository, service: Service, *, clock: Clock, progress: Progress, dry_run: bool
) -> Rewrapped:
    """Wrap every data key of a service for the recipients of today that none of its wrappings is for.

    A wrapping that an identity here should open counts if it does, and if what it holds opens what was sealed with the
    data key; one that is for others only is believed by what its header says. Each missing wrapping is one more object
    beside the others, signed by this host; nothing is changed or removed, so a run that was cut off is just run again.
    A recipient that is not configured any more keeps what it could open.

    Args:
        repository: with an identity that opens the keys.
        service: whose keys.
        clock: dates the wrappings.
        progress: hears of keys, then of WAL files.
        dry_run: judge every wrapping and write nothing.

    Raises:
        NoIdentityError: no identity is configured here.
        SecretError, KeyProblemError: none can be loaded, or this host may not sign.
        ObjectStoreError: the store did not answer; what was written stays.
    """
    keyring = repository.keyring
    if not keyring.identities.configured:
        raise NoIdentityError("a data key is opened before it is wrapped again, and no identity is configured here")
    ours = frozenset(keyring.identities.recipients)  # what cannot be loaded ends this here, and is no failed key
    signer = repository.host_key
    today = frozenset(repository.recipients)
    ids = sorted({KeyId(key.split("/")[2]) for key in _key_objects(repository, service.name)})
    wrapped: list[KeyId] = []
    unopened: list[tuple[KeyId, str]] = []
    false: list[FalseWrapping] = []
    witnesses = Witnesses(repository, service)
    progress.step(f"keys of {service.name}", total_items=len(ids))
    for key_id in ids:
        wrappings = keyring.wrappings(key_id, service=service.name)
        right, why_not = None, ""
        try:
            right = _right_secret(key_id, wrappings, witnesses)
        except (KeyProblemError, FormatError, DamagedObjectError, MissingObjectError) as error:
            why_not = error.message
        lies = {item.object_key: item for item in _false_ones(wrappings, ours, right)}
        false += lies.values()
        named = frozenset().union(*(item.recipients for item in wrappings if item.object_key not in lies))
        if not today <= named and right is None:
            unopened.append((key_id, why_not))
        elif not today <= named and right is not None:
            if not dry_run:
                _wrap_again(repository, service.name, DataKey(id=key_id, secret=right), signer, clock)
            wrapped.append(key_id)
        progress.advance(1)
    return Rewrapped(
        service=service.name,
        keys=len(ids),
        wrapped=tuple(wrapped),
        unopened=tuple(unopened),
        false=tuple(false),
        wal=_with_own_keys(repository, service, progress),
        points=sum(1 for _ in repository.store.list(layout.point_prefix(service.name))),
    )


def _right_secret(key_id: KeyId, wrappings: Sequence[Wrapping], witnesses: Witnesses) -> bytes:
    """Return the secret of a data key that may be handed on.

    Where nothing that was sealed with it is left, the only one there is: nothing is lost by it.

    Raises:
        MissingObjectError, FormatError, KeyProblemError: none can be opened here.
        WrongDataKeyError: what opens here is false, or not known to be right.
    """
    secrets = list(dict.fromkeys(item.secret for item in wrappings if item.secret is not None))
    if not secrets:
        problem = next((item.problem for item in wrappings if item.problem is not None), None)
        raise problem or MissingObjectError(f"no wrapping of data key {key_id} can be believed")
    right = witnesses.right_one(key_id, secrets)
    if right is None and len(secrets) > 1:
        raise WrongDataKeyError(
            f"its wrappings hold {len(secrets)} different keys, and nothing sealed tells which is right"
        )
    return right if right is not None else secrets[0]


def _false_ones(wrappings: Sequence[Wrapping], ours: frozenset[str], right: bytes | None) -> list[FalseWrapping]:
    """Return the wrappings that are seen here not to hold what they say."""
    found: list[FalseWrapping] = []
    for item in wrappings:
        if item.secret is not None and item.secret != right:
            reason = (
                "what it holds is not the data key" if right is not None else "what it holds is not known to be right"
            )
        elif item.secret is None and item.recipients & ours:
            reason = f"an identity here should open it and does not: {item.problem.message if item.problem else ''}"
        else:
            continue
        found.append(FalseWrapping(object_key=item.object_key, host=item.host, reason=reason))
    return found


def _wrap_again(repository: Repository, service: ServiceName, key: DataKey, signer: HostKey, clock: Clock) -> None:
    """Store a wrapping for all recipients of today, and look whether it is one that others believe."""
    repository.keyring.publish(key, service=service, recipients=repository.recipients, signer=signer, now=clock.now())
    missing = frozenset(repository.recipients) - repository.keyring.recipients_of(key.id, service=service)
    if missing:
        raise DamagedObjectError(f"data key {key.id} was wrapped again, and the store does not show it")


def _with_own_keys(repository: Repository, service: Service, progress: Progress) -> OwnKeys:
    """Count the WAL files whose key is in their own header: nobody can be added to them."""
    found: list[datetime] = []
    for component in service.databases():
        archive = repository.wal(repository.scope(service.name, component.name))
        files = [item for system_id in archive.system_ids() for item in archive.listing(system_id)]
        progress.step(f"WAL files of {service.name}/{component.name}", total_items=len(files))
        with ThreadPoolExecutor(_READERS, thread_name_prefix="heads") as pool:
            for item, own in zip(files, pool.map(archive.carries_key, files), strict=True):
                progress.advance(1)
                if own:
                    found.append(item.modified_at)
    progress.done()
    return OwnKeys(count=len(found), oldest=min(found, default=None), newest=max(found, default=None))


def _key_objects(repository: Repository, service: ServiceName) -> Iterator[str]:
    for info in repository.store.list(layout.data_key_prefix(service)):
        parts = info.key.split("/")
        if len(parts) == 4 and is_ulid(parts[2]):
            yield info.key


def _read(repository: Repository, key: str) -> tuple[Mapping[str, Json], bytes | memoryview]:
    envelope, body = read_object(
        lambda: repository.store.read_versions(key),
        trust=repository.trust,
        repository=repository.id,
        key=key,
        kind="key",
    )
    return envelope.header, body
