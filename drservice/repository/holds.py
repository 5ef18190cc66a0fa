"""Holds of running work, and the lists of packs that count as missing (docs/format.md, section 9)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import datetime

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import to_iso
from drservice.errors import FormatError
from drservice.model.ids import make_ulid
from drservice.objectstore.interface import ObjectStore
from drservice.repository.envelope import HostKey, Trust, read_object, write_envelope
from drservice.repository.records import Scope

_PACK = re.compile("s/[^/]+/[^/]+/(?:packs|nodes)/[0-9a-f]{2}/[0-9a-f]{64}")


def place_hold(
    store: ObjectStore, signer: HostKey, scope: Scope, *, purpose: str, now: datetime, until: datetime
) -> None:
    """Tell collectors that packs seen from ``now`` on must stay until ``until``."""
    key = f"hold/{make_ulid(now, os.urandom(10))}"
    fields: dict[str, Json] = {
        "purpose": purpose,
        "until": to_iso(until),
        "service": scope.service,
        "component": scope.component,
    }
    store.create(
        key,
        write_envelope(
            signer=signer, repository=scope.repository, key=key, kind="hold", fields=fields, body=[], now=now
        ),
    )


def condemned_packs(store: ObjectStore, *, trust: Trust, scope: Scope) -> set[str]:
    """Return the keys of all packs that were condemned: their chunks count as missing.

    Raises:
        FormatError, UnknownSignerError, BadSignatureError: a list cannot be believed: nothing is re-used blindly.
    """
    condemned: set[str] = set()
    for info in store.list("gc/"):
        if not info.key.endswith("/condemned"):
            continue
        key = info.key
        _, body = read_object(
            lambda key=key: store.read_versions(key),  # type: ignore[misc]  # bound per loop
            trust=trust,
            repository=scope.repository,
            key=key,
            kind="condemned",
        )
        try:
            names = parse_canonical(body)
        except ValueError as error:
            raise FormatError(f"{key} holds no list: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) and _PACK.fullmatch(name) for name in names):
            raise FormatError(f"{key} holds something that is no list of pack keys")
        condemned.update(str(name) for name in names)
    return condemned


def condemn(
    store: ObjectStore, signer: HostKey, scope: Scope, *, packs: Iterable[str], reason: str, now: datetime
) -> str:
    """Publish a list of pack keys that count as missing from now on; returns the key of the list.

    Raises:
        ObjectExistsError: somebody else published at the same moment; call again.
    """
    numbers = [int(info.key.split("/")[1]) for info in store.list("gc/") if info.key.endswith("/condemned")]
    key = f"gc/{max(numbers, default=0) + 1:08d}/condemned"
    fields: dict[str, Json] = {"reason": reason, "service": scope.service, "component": scope.component}
    body = canonical_bytes(sorted(packs))
    store.create(
        key,
        write_envelope(
            signer=signer,
            repository=scope.repository,
            key=key,
            kind="condemned",
            fields=fields,
            body=[body],
            now=now,
        ),
    )
    return key
