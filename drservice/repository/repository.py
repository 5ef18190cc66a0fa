"""The repository as the rest of the program sees it: created, opened, and asked for its parts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from drservice.canonical import Json, canonical_bytes, parse_canonical
from drservice.clock import Clock, to_iso
from drservice.errors import (
    FormatError,
    KeyProblemError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryExistsError,
    RepositoryMissingError,
)
from drservice.model.estate import SignerSettings
from drservice.model.ids import (
    ComponentName,
    RepositoryId,
    ServiceName,
    SnapshotId,
    is_ulid,
    make_ulid,
)
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import HostKey, Trust
from drservice.repository.keys import Identities, Keyring
from drservice.repository.reader import SnapshotReader
from drservice.repository.records import Scope
from drservice.repository.snapshots import (
    OpenedSnapshot,
    SnapshotListing,
    list_snapshots,
    open_snapshot,
)

if TYPE_CHECKING:  # a backup needs one of these or none, and loading all takes a tenth of one that finds nothing new
    from drservice.repository.clocks import ClockArchive
    from drservice.repository.daykey import DayKeys
    from drservice.repository.documentsets import DocumentSets
    from drservice.repository.points import PointArchive
    from drservice.repository.tail import TailArchive
    from drservice.repository.walarchive import WalArchive
    from drservice.repository.writer import SnapshotWriter

FORMAT = 1
_CONTEXT = b"drservice repository v1\n"
_SIGNER_KEY = re.compile("ed25519:([0-9a-f]{64})")
_ALGORITHMS: dict[str, Json] = {
    "cipher": "aes-256-gcm",
    "compression": "zstd",
    "chunk": "blake3",
    "pack": "sha256",
    "signature": "ed25519",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """What ``init`` tells people to keep: the id, and the hashes of the break-glass files."""

    repository: RepositoryId
    script_sha256: str
    text_sha256: str


def create_repository(
    store: ObjectStore, *, signer: HostKey, signers: Sequence[SignerSettings], clock: Clock
) -> Created:
    """Create a repository: break-glass files first, the repository file last (from then on it exists).

    The host that creates it may always write there: its key is listed even if ``signers`` lacks it.

    Raises:
        RepositoryExistsError: there is one already; nothing was changed.
    """
    if next(store.list(layout.REPOSITORY_FILE), None) is not None:
        raise RepositoryExistsError(f"{store.description} holds a repository already")
    now = clock.now()
    if all(item.public_key != signer.public_key for item in signers):
        signers = [SignerSettings(name=signer.host, public_key=signer.public_key), *signers]
    identifier = RepositoryId(make_ulid(now, os.urandom(10)))
    hashes = []
    for name in (layout.BREAKGLASS_SCRIPT, layout.BREAKGLASS_TEXT):
        content = resources.files("drservice.repository.breakglass").joinpath(name).read_bytes()
        hashes.append(hashlib.sha256(content).hexdigest())
        try:
            store.create(name, content)
        except ObjectExistsError:
            if store.read(name) != content:
                raise RepositoryExistsError(
                    f"{store.description} is not empty: it has another {name}",
                    hint="Use an empty bucket, prefix or folder.",
                ) from None
    document: dict[str, Json] = {
        "format": FORMAT,
        "repository": identifier,
        "created_at": to_iso(now),
        "algorithms": _ALGORITHMS,
        "features": {"read": [], "write": [], "gc": []},
        "signers": [
            {"name": s.name, "key": f"ed25519:{s.public_key.hex()}", "services": list(s.services)} for s in signers
        ],
    }
    signature = signer.private_key.sign(_CONTEXT + canonical_bytes(document))
    document["signature"] = {"signer": signer.fingerprint, "value": signature.hex()}
    try:
        store.create(layout.REPOSITORY_FILE, canonical_bytes(document))
    except ObjectExistsError as error:
        raise RepositoryExistsError(f"{store.description} was made a repository by somebody else just now") from error
    return Created(repository=identifier, script_sha256=hashes[0], text_sha256=hashes[1])


class Repository:
    """An opened repository."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        open_store: Callable[[], ObjectStore],
        identifier: RepositoryId,
        trust: Trust,
        identities: Identities,
        host_key: HostKey | None,
        recipients: tuple[str, ...],
        clock: Clock,
    ) -> None:
        self.store = store
        self.open_store = open_store
        self.id = identifier
        self.trust = trust
        self.identities = identities
        self.keyring = Keyring(store, identifier, trust, identities)
        self._host_key = host_key
        self._recipients = recipients
        self._clock = clock

    @property
    def host_key(self) -> HostKey:
        """The signing key of this host.

        Raises:
            KeyProblemError: this host has none, or one that no signer list names, and so cannot write.
        """
        if self._host_key is None:
            raise KeyProblemError(
                "this host has no signing key and cannot write",
                hint="`drservice init` makes it; then add the line it prints to repository.signers.",
            )
        self._host_key.require_listed()
        return self._host_key

    def seen_as(
        self, *, store: ObjectStore, open_store: Callable[[], ObjectStore], identities: Identities
    ) -> Repository:
        """Return the same repository through another view of its store, or with other identities; it cannot write."""
        return Repository(
            store=store,
            open_store=open_store,
            identifier=self.id,
            trust=self.trust,
            identities=identities,
            host_key=None,
            recipients=self._recipients,
            clock=self._clock,
        )

    def scope(self, service: ServiceName, component: ComponentName) -> Scope:
        """Return the scope of a component."""
        return Scope(repository=self.id, service=service, component=component)

    def snapshots(self, scope: Scope) -> SnapshotListing:
        """Read the headers of all snapshots of a component, oldest first."""
        return list_snapshots(self.store, trust=self.trust, scope=scope)

    def open_snapshot(self, scope: Scope, snapshot: SnapshotId) -> OpenedSnapshot:
        """Read one snapshot object as a whole (no identity needed)."""
        return open_snapshot(self.store, snapshot, trust=self.trust, scope=scope)

    def reader(self, scope: Scope, snapshot: SnapshotId) -> SnapshotReader:
        """Open a snapshot for reading (needs an identity)."""
        return SnapshotReader(self.store, scope=scope, keyring=self.keyring, opened=self.open_snapshot(scope, snapshot))

    def secrets(self, scope: Scope, opened: OpenedSnapshot) -> list[tuple[str, bytes]]:
        """Open every data key a snapshot needs, for worker processes; twice and more where wrappings differ."""
        return [
            (key_id, secret)
            for key_id in opened.record.key_ids
            for secret in self.keyring.secrets(key_id, service=scope.service)
        ]

    def writer(self, scope: Scope, *, state_dir: Path, workers: int, level: int) -> SnapshotWriter:
        """Begin a snapshot.

        Raises:
            BusyError: another run on this host is writing one.
            KeyProblemError: this host has no signing key, or one that no signer list names.
        """
        from drservice.repository.writer import SnapshotWriter, WriterContext  # noqa: PLC0415 - see above

        return SnapshotWriter(
            WriterContext(
                scope=scope,
                store=self.store,
                open_store=self.open_store,
                keyring=self.keyring,
                signer=self.host_key,
                recipients=self._recipients,
                state_dir=state_dir,
                clock=self._clock,
                workers=workers,
                level=level,
            )
        )

    @property
    def recipients(self) -> tuple[str, ...]:
        """Who can read what is written from here."""
        return self._recipients

    def points(self, service: ServiceName) -> PointArchive:
        """Return the recovery points of a service."""
        from drservice.repository.points import PointArchive  # noqa: PLC0415  # see above

        return PointArchive(
            store=self.store,
            service=service,
            trust=self.trust,
            keyring=self.keyring,
            recipients=self._recipients,
        )

    def wal(self, scope: Scope) -> WalArchive:
        """Return the WAL archive of a component."""
        from drservice.repository.walarchive import WalArchive  # noqa: PLC0415  # see above

        return WalArchive(
            self.store,
            scope=scope,
            trust=self.trust,
            keyring=self.keyring,
            signer=self._host_key,
            recipients=self._recipients,
            clock=self._clock,
        )

    def tail(self, scope: Scope) -> TailArchive:
        """Return the pieces of WAL of a component; each call is a writer's run of its own."""
        from drservice.repository.tail import TailArchive  # noqa: PLC0415  # see above

        return TailArchive(
            self.store,
            scope=scope,
            trust=self.trust,
            keyring=self.keyring,
            signer=self._host_key,
            clock=self._clock,
        )

    def document_sets(self, scope: Scope) -> DocumentSets:
        """Return the document sets of a component."""
        from drservice.repository.documentsets import DocumentSets  # noqa: PLC0415  # see above

        return DocumentSets(
            self.store,
            scope=scope,
            trust=self.trust,
            keyring=self.keyring,
            signer=self._host_key,
            clock=self._clock,
        )

    def clocks(self, scope: Scope) -> ClockArchive:
        """Return what the server's clock said, for a component."""
        from drservice.repository.clocks import ClockArchive  # noqa: PLC0415  # see above

        return ClockArchive(self.store, scope=scope, trust=self.trust, signer=self._host_key, clock=self._clock)

    def day_keys(self, service: ServiceName) -> DayKeys:
        """Return the keys of a process that ships WAL of a service day after day."""
        from drservice.repository.daykey import DayKeys  # noqa: PLC0415  # see above

        return DayKeys(
            self.keyring, service=service, recipients=self._recipients, signer=self._host_key, clock=self._clock
        )


def open_repository(
    store: ObjectStore,
    *,
    open_store: Callable[[], ObjectStore],
    signers: Sequence[SignerSettings],
    host_key: HostKey | None,
    identities: Identities,
    recipients: tuple[str, ...],
    clock: Clock,
) -> Repository:
    """Open a repository and check that it is one we may believe.

    Believed are the configured signers and this host's own key; with them the repository file is checked, and the
    signers that stand in it are believed too. A host whose own key is in neither list may read and cannot write.

    Raises:
        RepositoryMissingError: there is none at this address.
        FormatError: written by a newer version, or unreadable.
        UnknownSignerError, BadSignatureError: nobody we trust made it.
    """
    try:
        raw = next(iter(store.read_versions(layout.REPOSITORY_FILE)), None)
    except ObjectNotFoundError:
        raw = None
    if raw is None:
        raise RepositoryMissingError(f"there is no repository at {store.description}")
    document = _parse(raw)
    own = [SignerSettings(name=host_key.host, public_key=host_key.public_key)] if host_key is not None else []
    configured = [*signers, *own]
    _verify(document, Trust(configured))
    listed = _listed_signers(document)
    if host_key is not None:
        known = any(item.public_key == host_key.public_key for item in (*signers, *listed))
        host_key = replace(host_key, unlisted=not known)
    return Repository(
        store=store,
        open_store=open_store,
        identifier=RepositoryId(str(document["repository"])),
        trust=Trust([*configured, *listed]),
        identities=identities,
        host_key=host_key,
        recipients=recipients,
        clock=clock,
    )


def _parse(raw: bytes) -> Mapping[str, Json]:
    try:
        document = parse_canonical(raw)
    except ValueError as error:
        raise FormatError(f"{layout.REPOSITORY_FILE} is unreadable: {error}") from error
    if not isinstance(document, dict) or not is_ulid(str(document.get("repository"))):
        raise FormatError(f"{layout.REPOSITORY_FILE} describes no repository")
    version = document.get("format")
    if version != FORMAT:
        raise FormatError(
            f"the repository has format {version!r}, and this program reads format {FORMAT}",
            hint="Use the version of drservice that wrote it, or a newer one.",
        )
    features = document.get("features")
    if not isinstance(features, dict) or features.get("read") or features.get("write"):
        raise FormatError("the repository uses features this version does not know", hint="Use a newer drservice.")
    return document


def _verify(document: Mapping[str, Json], trust: Trust) -> None:
    signature = document.get("signature")
    if not isinstance(signature, Mapping):
        raise FormatError(f"{layout.REPOSITORY_FILE} is not signed")
    try:
        value = bytes.fromhex(str(signature.get("value")))
    except ValueError as error:
        raise FormatError(f"{layout.REPOSITORY_FILE} has an unreadable signature") from error
    unsigned = {name: item for name, item in document.items() if name != "signature"}
    trust.verify(
        signer=str(signature.get("signer")),
        service=None,
        signature=value,
        message=_CONTEXT + canonical_bytes(unsigned),
        what=layout.REPOSITORY_FILE,
    )


def _listed_signers(document: Mapping[str, Json]) -> list[SignerSettings]:
    found: list[SignerSettings] = []
    items = document.get("signers")
    if not isinstance(items, list):
        raise FormatError(f"{layout.REPOSITORY_FILE} lists no signers")
    for item in items:
        if not isinstance(item, Mapping):
            raise FormatError(f"{layout.REPOSITORY_FILE} has an unreadable list of signers")
        services, key = item.get("services"), _SIGNER_KEY.fullmatch(str(item.get("key")))
        if key is None:
            raise FormatError(f"{layout.REPOSITORY_FILE} lists an unreadable key")
        if not isinstance(services, list) or not all(isinstance(service, str) for service in services):
            # Never guessed: no list must not become the empty list, which means every service.
            raise FormatError(f"{layout.REPOSITORY_FILE} does not say which services a signer may write for")
        found.append(
            SignerSettings(
                name=str(item.get("name")),
                public_key=bytes.fromhex(key[1]),
                services=tuple(ServiceName(str(service)) for service in services),
            )
        )
    return found
