"""Holds of running work, and the lists of packs that count as missing (docs/format.md, section 9)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from datetime import datetime, timedelta

from drservice import telemetry
from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import Clock, from_iso, to_iso
from drservice.errors import DrError, FormatError, ObjectNotFoundError, StoreUnreachableError
from drservice.model.ids import ComponentName, RepositoryId, ServiceName, make_ulid
from drservice.model.retentionstock import Hold
from drservice.objectstore.interface import ObjectInfo, ObjectStore
from drservice.repository.envelope import HostKey, Trust, read_object, write_envelope
from drservice.repository.records import Scope

_PACK = re.compile("s/[^/]+/[^/]+/(?:packs|nodes)/[0-9a-f]{2}/[0-9a-f]{64}")
LONGEST_HOLD = timedelta(hours=48)
"""However long a hold asks for: nobody stops deletion for ever with one object."""
HOLD_LASTS = timedelta(hours=24)
"""What running work asks for; see :class:`HoldKeeper`."""
_LOOK_SECONDS = 60.0


def place_hold(
    store: ObjectStore, signer: HostKey, scope: Scope, *, purpose: str, now: datetime, until: datetime
) -> str:
    """Tell retention and collectors that what is seen from ``now`` on must stay until ``until``; return the key."""
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
    return key


class HoldKeeper:
    """Holds that follow each other for as long as work lasts, so that a killed one stops deletion for a day at most.

    A thread looks once a minute, and places the next hold when half of the last one's time is over; one that cannot be
    placed is tried again at the next look. The later ones go when the work ends; the first is the caller's to let go.
    """

    def __init__(
        self,
        store: ObjectStore,
        signer: HostKey,
        scope: Scope,
        *,
        purpose: str,
        then: str,
        clock: Clock,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Place the first hold.

        Args:
            store: where.
            signer: whose work it is.
            scope: what it is about.
            purpose: of the first hold.
            then: purpose of the later ones: they begin later, so they may have to keep more.
            clock: tells how long the work has lasted.
            look_seconds: how often the thread looks.

        Raises:
            DrError: it cannot be placed.
        """
        self._store, self._signer, self._scope, self._clock = store, signer, scope, clock
        self._then, self._look_seconds = then, look_seconds
        self._later: list[str] = []
        self.first = self._place(purpose)
        """The key of the first hold."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hold", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Place the next hold if it is time."""
        waited = max(
            self._clock.now() - self._placed_at, timedelta(seconds=self._clock.monotonic() - self._placed_monotonic)
        )
        if waited < HOLD_LASTS / 2:
            return
        try:
            self._later.append(self._place(self._then))
        except DrError as error:
            telemetry.warning("hold not renewed", purpose=self._then, problem=error.message)

    def close(self) -> None:
        """Place no more, and remove the later ones; one that cannot be removed ends by itself."""
        self._stop.set()
        self._thread.join()
        for key in self._later:
            let_go(self._store, key)

    def _place(self, purpose: str) -> str:
        now, monotonic = self._clock.now(), self._clock.monotonic()
        key = place_hold(self._store, self._signer, self._scope, purpose=purpose, now=now, until=now + HOLD_LASTS)
        self._placed_at, self._placed_monotonic = now, monotonic
        return key

    def _run(self) -> None:
        while not self._stop.wait(self._look_seconds):
            self.look()


def let_go(store: ObjectStore, key: str) -> None:
    """Remove a hold; one that cannot be removed (locked, no right to) ends by itself."""
    try:
        store.delete(key)
    except DrError as error:
        telemetry.info("hold not removed", key=key, problem=error.message)


def live_holds(
    store: ObjectStore, *, trust: Trust, repository: RepositoryId, service: ServiceName, now: datetime
) -> tuple[Hold, ...]:
    """Return the holds of a service that have not ended; one that cannot be read is of everybody.

    Begin and end are by the store's clock: a hold lasts as long as its writer asked, from when the store received it.

    Raises:
        ObjectStoreError: the store did not answer: what is held is not known.
    """
    found: list[Hold] = []
    for info in store.list("hold/"):
        if info.modified_at + LONGEST_HOLD <= now:
            continue
        try:
            hold = _read_hold(store, info, trust=trust, repository=repository, service=service)
        except ObjectNotFoundError:
            continue  # let go between the listing and now
        except StoreUnreachableError:
            raise
        except DrError:
            hold = Hold(
                key=info.key,
                purpose="work whose hold cannot be read",
                component=None,
                since=info.modified_at,
                until=info.modified_at + LONGEST_HOLD,
            )
        if hold is not None and now < hold.until:
            found.append(hold)
    return tuple(found)


def _read_hold(
    store: ObjectStore, info: ObjectInfo, *, trust: Trust, repository: RepositoryId, service: ServiceName
) -> Hold | None:
    if not (versions := list(store.read_versions(info.key))):
        raise ObjectNotFoundError(f"{info.key} is gone")
    envelope, _ = read_object(lambda: versions, trust=trust, repository=repository, key=info.key, kind="hold")
    if envelope.text("service") != service:
        return None
    try:
        asked = from_iso(envelope.text("until")) - from_iso(envelope.text("created_at"))
    except ValueError as error:
        raise FormatError(f"{info.key} does not say how long it lasts: {error}") from error
    return Hold(
        key=info.key,
        purpose=envelope.text("purpose"),
        component=ComponentName(envelope.text("component")),
        since=info.modified_at,
        until=info.modified_at + min(max(asked, timedelta(0)), LONGEST_HOLD),
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
