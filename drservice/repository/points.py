"""Recovery points as objects (docs/format.md, section 10): public members, a sealed baseline.

A point is created once all of its snapshots exist, so whoever sees it can restore every part of it. Its own data key
travels in its header, wrapped for the recipients: a host that writes points cannot read them back.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import from_iso, to_iso
from drservice.errors import DrError, FormatError, MissingObjectError, StoreUnreachableError
from drservice.model.ids import ComponentName, PointId, ServiceName, SnapshotId, SystemId, is_ulid, make_ulid
from drservice.model.origin import Origin
from drservice.model.points import DatabasePosition, PointMember, PointState, RecoveryPoint
from drservice.model.snapshot import SnapshotState
from drservice.model.wal import Lsn, Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import Envelope, HostKey, Trust, read_object, write_envelope
from drservice.repository.keys import Keyring, make_data_key, wrap
from drservice.repository.records import Scope, open_body, seal_body

_COMPONENT = ComponentName("points")
"""Takes the component's place in the derivation of keys; no component may have this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointListing:
    """Readable points, oldest first, and what could not be read, by key."""

    points: tuple[RecoveryPoint, ...]
    unreadable: Mapping[str, DrError]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointArchive:
    """The recovery points of one service."""

    store: ObjectStore
    service: ServiceName
    trust: Trust
    keyring: Keyring
    recipients: tuple[str, ...]

    @property
    def _scope(self) -> Scope:
        return Scope(repository=self.keyring.repository, service=self.service, component=_COMPONENT)

    def publish(
        self,
        members: Sequence[PointMember],
        *,
        at: datetime,
        state: PointState,
        secret: Mapping[str, Json],
        signer: HostKey,
        now: datetime,
        origin: Origin | None = None,
    ) -> RecoveryPoint:
        """Create a recovery point; on return it exists.

        Args:
            members: its snapshots, all committed.
            at: the instant it stands for.
            state: how good it is.
            secret: what only readers with an identity see: the baseline measured in production.
            signer: this host.
            now: the time of writing.
            origin: where it was imported from.

        Raises:
            ObjectStoreError: there is no such point; the snapshots are restorable one by one.
        """
        identifier = PointId(make_ulid(now, os.urandom(10)))
        key = layout.point_key(self.service, identifier)
        data_key = make_data_key(now)
        fields: dict[str, Json] = {
            "id": identifier,
            "service": self.service,
            "at": to_iso(at),
            "state": state.value,
            "members": [_encode(member) for member in members],
            "wrapped_key": base64.b64encode(wrap(data_key.secret, self.recipients)).decode(),
            **({"origin": origin.as_json()} if origin is not None else {}),
        }
        pieces = write_envelope(
            signer=signer,
            repository=self._scope.repository,
            key=key,
            kind="point",
            fields=fields,
            body=seal_body(
                data_key.secret, canonical_bytes(dict(secret)), scope=self._scope, context=f"point/{identifier}"
            ),
            now=now,
        )
        self.store.create(key, pieces)
        return RecoveryPoint(
            id=identifier,
            service=self.service,
            host=signer.host,
            at=at,
            state=state,
            members=tuple(members),
            origin=origin,
        )

    def listing(self) -> PointListing:
        """Read the headers of all points; one that cannot be read is reported, never passed over in silence.

        Raises:
            ObjectStoreError: the listing is not complete.
        """
        points: list[RecoveryPoint] = []
        unreadable: dict[str, DrError] = {}
        for info in self.store.list(layout.point_prefix(self.service)):
            name = info.key.rsplit("/", 1)[-1]
            if not is_ulid(name):
                continue  # foreign objects beside ours are not ours to judge
            try:
                points.append(_decode(self._read(PointId(name))[0]))
            except StoreUnreachableError:
                raise  # no answer says nothing about the point: the list would not be complete
            except DrError as error:
                unreadable[info.key] = error
        return PointListing(points=tuple(sorted(points, key=lambda p: (p.at, p.id))), unreadable=unreadable)

    def secret(self, point: PointId) -> Mapping[str, Json]:
        """Return the sealed part of a point (needs an identity).

        Raises:
            MissingObjectError, NoIdentityError, WrongIdentityError, DamagedObjectError, FormatError.
        """
        what = f"recovery point {point}"
        if next(self.store.list(layout.point_key(self.service, point)), None) is None:
            raise MissingObjectError(f"there is no {what} of {self.service}")
        envelope, body = self._read(point)
        data_key = self.keyring.unwrap_inline(envelope.text("wrapped_key"), what)
        plain = b"".join(open_body(data_key, body, scope=self._scope, context=f"point/{point}", where=what))
        try:
            fields = parse_canonical(plain)
        except ValueError as error:
            raise FormatError(f"{what} has an unreadable sealed part: {error}") from error
        if not isinstance(fields, dict):
            raise FormatError(f"{what} has an unreadable sealed part")
        return fields

    def _read(self, point: PointId) -> tuple[Envelope, bytes | memoryview]:
        key = layout.point_key(self.service, point)
        return read_object(
            lambda: self.store.read_versions(key),
            trust=self.trust,
            repository=self._scope.repository,
            key=key,
            kind="point",
        )


def _encode(member: PointMember) -> dict[str, Json]:
    position: Json = None
    if member.position is not None:
        position = {
            "system_id": member.position.system_id,
            "timeline": int(member.position.timeline),
            "lsn": str(member.position.lsn),
        }
    return {
        "component": member.component,
        "kind": member.kind,
        "snapshot": member.snapshot,
        "sha256": member.header_sha256,
        "state": member.state.value,
        "started_at": to_iso(member.started_at),
        "stopped_at": to_iso(member.stopped_at),
        "position": position,
    }


def _decode(envelope: Envelope) -> RecoveryPoint:
    key = envelope.text("key")
    members = envelope.header.get("members")
    if not isinstance(members, list) or not members:
        raise FormatError(f"{key} names no snapshots")
    service, identifier = ServiceName(envelope.text("service")), PointId(envelope.text("id"))
    if layout.point_key(service, identifier) != key:
        raise FormatError(f"{key} describes another recovery point")
    try:
        return RecoveryPoint(
            id=identifier,
            service=service,
            host=envelope.text("host"),
            at=from_iso(envelope.text("at")),
            state=PointState(envelope.text("state")),
            members=tuple(_decode_member(item) for item in members),
            origin=_decode_origin(envelope.header.get("origin")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{key} has an unreadable header: {error}") from error


def _decode_origin(item: Json) -> Origin | None:
    if item is None:
        return None
    if not isinstance(item, Mapping):
        raise TypeError("the origin is no object")
    return Origin.from_json(item)


def _decode_member(item: Json) -> PointMember:
    if not isinstance(item, Mapping):
        raise TypeError("a member is no object")
    position = item["position"]
    return PointMember(
        component=ComponentName(str(item["component"])),
        kind=str(item["kind"]),
        snapshot=SnapshotId(str(item["snapshot"])),
        header_sha256=str(item["sha256"]),
        state=SnapshotState(item["state"]),
        started_at=from_iso(str(item["started_at"])),
        stopped_at=from_iso(str(item["stopped_at"])),
        position=_decode_position(position) if position is not None else None,
    )


def _decode_position(item: Json) -> DatabasePosition:
    if not isinstance(item, Mapping) or not isinstance(item["timeline"], int):
        raise TypeError("a position is no object with a timeline")
    return DatabasePosition(
        system_id=SystemId(str(item["system_id"])),
        timeline=Timeline(item["timeline"]),
        lsn=Lsn.parse(str(item["lsn"])),
    )
