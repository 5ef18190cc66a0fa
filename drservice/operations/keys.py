"""Keys: who can read, and proof that it is so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drservice.canonical import Json
from drservice.errors import DrError
from drservice.model.ids import KeyId, ServiceName, is_ulid
from drservice.repository import layout
from drservice.repository.envelope import read_object
from drservice.repository.keys import Identities
from drservice.repository.repository import Repository


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
    recipient: str
    key_id: KeyId | None
    opened: bool
    detail: str


def list_keys(repository: Repository, service: ServiceName) -> list[KeyFacts]:
    """Return every wrapping of every data key of a service, oldest first.

    Raises:
        FormatError, UnknownSignerError, BadSignatureError, DamagedObjectError: one cannot be believed.
    """
    found: list[KeyFacts] = []
    for info in repository.store.list(layout.data_key_prefix(service)):
        parts = info.key.split("/")
        if len(parts) != 4 or not is_ulid(parts[2]):
            continue
        header, _ = _read(repository, info.key)
        recipients = header.get("recipients")
        found.append(
            KeyFacts(
                service=service,
                key_id=KeyId(str(header.get("key_id"))),
                object_key=info.key,
                created_at=str(header.get("created_at")),
                host=str(header.get("host")),
                recipients=tuple(str(item) for item in recipients) if isinstance(recipients, list) else (),
            )
        )
    return found


def check_identities(repository: Repository, references: tuple[str, ...], service: ServiceName) -> list[KeyCheck]:
    """Try each identity on the newest data key of a service. Could not try is not a pass.

    Raises:
        SecretError, KeyProblemError: an identity reference cannot be loaded.
    """
    keys = list_keys(repository, service)
    checks: list[KeyCheck] = []
    for reference in references:
        identities = Identities.load([reference])
        for recipient in identities.recipients:
            if not keys:
                checks.append(
                    KeyCheck(
                        service=service,
                        recipient=recipient,
                        key_id=None,
                        opened=False,
                        detail="there is no data key yet; take a backup first",
                    )
                )
                continue
            newest = max(key.key_id for key in keys)
            checks.append(_try(repository, identities, recipient, [k for k in keys if k.key_id == newest]))
    return checks


def _try(repository: Repository, identities: Identities, recipient: str, wrappings: list[KeyFacts]) -> KeyCheck:
    detail = ""
    for wrapping in wrappings:
        _, body = _read(repository, wrapping.object_key)
        try:
            identities.unwrap(body, f"data key {wrapping.key_id}")
        except DrError as error:
            detail = error.message
        else:
            return KeyCheck(
                service=wrapping.service, recipient=recipient, key_id=wrapping.key_id, opened=True, detail="opens it"
            )
    first = wrappings[0]
    return KeyCheck(service=first.service, recipient=recipient, key_id=first.key_id, opened=False, detail=detail)


def _read(repository: Repository, key: str) -> tuple[Mapping[str, Json], bytes | memoryview]:
    envelope, body = read_object(
        lambda: repository.store.read_versions(key),
        trust=repository.trust,
        repository=repository.id,
        key=key,
        kind="key",
    )
    return envelope.header, body
