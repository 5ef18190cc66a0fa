"""Data keys: made fresh, wrapped for the recipients, forgotten; opened only where an identity is.

Backup hosts hold public keys only: what they wrote yesterday they cannot decrypt today (docs/format.md, section 4).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import pyrage

from drservice import telemetry
from drservice.canonical import Json
from drservice.credentials import resolve_bytes
from drservice.errors import (
    ConfigurationError,
    DamagedObjectError,
    DrError,
    FormatError,
    KeyProblemError,
    MissingObjectError,
    NoIdentityError,
    ObjectNotFoundError,
    SecretError,
    WrongDataKeyError,
    WrongIdentityError,
)
from drservice.model.ids import KeyId, RepositoryId, ServiceName, make_ulid
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import Envelope, HostKey, Trust, read_object, write_envelope
from drservice.repository.recipients import (
    AskPassphrase,
    LoadedIdentity,
    no_passphrase,
    parse_recipient,
    read_identities,
)
from drservice.repository.records import Scope, open_body

DATA_KEY_BYTES = 32
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DataKey:
    """A data key in memory."""

    id: KeyId
    secret: bytes


def make_data_key(now: datetime) -> DataKey:
    """Make a fresh 256-bit data key."""
    return DataKey(id=KeyId(make_ulid(now, os.urandom(10))), secret=os.urandom(DATA_KEY_BYTES))


def wrap(secret: bytes, recipients: Sequence[str]) -> bytes:
    """Encrypt a data key to all recipients (age).

    Raises:
        ConfigurationError: no recipient, or one that is none.
    """
    if not recipients:
        raise ConfigurationError(
            "no recipients are configured", hint="Set repository.recipients; `drservice init` makes a pair."
        )
    wrapped: bytes = pyrage.encrypt(secret, [parse_recipient(recipient) for recipient in recipients])
    return wrapped


def make_identity() -> tuple[str, str]:
    """Make an age identity and return (secret text, recipient)."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


class Identities:
    """The age identities configured here. Without any, nothing can be read.

    They are loaded when something is to be read for the first time: a WAL push runs as PostgreSQL's user, who must not
    need the identity file to write. Of several, one that cannot be loaded does not keep the others from reading.
    """

    def __init__(self, references: Iterable[str] = (), *, passphrase: AskPassphrase = no_passphrase) -> None:
        self._references = tuple(references)
        self._passphrase = passphrase
        self._items: list[LoadedIdentity] | None = None
        self._problems: list[DrError] = []

    @classmethod
    def load(cls, references: Iterable[str], *, passphrase: AskPassphrase = no_passphrase) -> Identities:
        """Load identities from secret references now; a file may hold several, with comments.

        Raises:
            SecretError: a reference cannot be resolved.
            KeyProblemError: the content is no age identity.
        """
        made = cls(references, passphrase=passphrase)
        made._loaded()
        if made._problems:
            raise made._problems[0]
        return made

    def each(self) -> tuple[tuple[str, Identities], ...]:
        """Return every reference with its identities alone, not loaded yet."""
        return tuple((item, Identities([item], passphrase=self._passphrase)) for item in self._references)

    def only(self, recipient: str) -> Identities:
        """Return those of these that open for a recipient."""
        chosen = Identities(self._references, passphrase=self._passphrase)
        chosen._items = [item for item in self._loaded() if item.recipient == recipient]
        return chosen

    @property
    def configured(self) -> bool:
        """Whether this host is meant to read."""
        return bool(self._references)

    @property
    def recipients(self) -> tuple[str, ...]:
        """The recipients these identities open for.

        Raises:
            SecretError, KeyProblemError: none of them can be loaded.
        """
        return tuple(item.recipient for item in self._loaded())

    def unwrap(self, wrapped: bytes | memoryview, what: str) -> bytes:
        """Open a wrapped data key.

        Raises:
            NoIdentityError: no identity here.
            WrongIdentityError: none of them opens it.
            FormatError: it opens, but is no data key.
            SecretError, KeyProblemError: none of them can be loaded.
        """
        items = [item.identity for item in self._loaded()]
        if not items:
            raise NoIdentityError(f"{what} can only be read with an identity, and none is configured here")
        try:
            secret: bytes = pyrage.decrypt(bytes(wrapped), items)
        except pyrage.DecryptError as error:
            others = "".join(f"; not tried: {problem.message}" for problem in self._problems)
            raise WrongIdentityError(f"none of the {len(items)} identities here opens {what}{others}") from error
        if len(secret) != DATA_KEY_BYTES:
            raise FormatError(f"{what} holds {len(secret)} bytes instead of a 32-byte data key")
        return secret

    def _loaded(self) -> list[LoadedIdentity]:
        """Return what can be loaded; a problem counts only if nothing can."""
        if self._items is None:
            items: list[LoadedIdentity] = []
            self._problems.clear()
            for reference in self._references:
                try:
                    items += read_identities(resolve_bytes(reference), _told(reference), self._passphrase)
                except (SecretError, KeyProblemError) as error:
                    self._problems.append(error)
            if self._problems and not items:
                raise self._problems[0]
            self._items = items
        return self._items


def _told(reference: str) -> str:
    """Return how messages call a reference: a command without what it is given."""
    return f"{reference.split(maxsplit=1)[0]} ..." if reference.startswith("command:") else reference


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Wrapping:
    """A stored wrapping of a data key that is believed and whole, and what it holds."""

    object_key: str
    host: str
    """Who signed it."""
    recipients: frozenset[str]
    """For whom it is, by its header: that they can open it, and what they find, only opening shows."""
    secret: bytes | None
    """``None`` if no identity here opens it."""
    problem: DrError | None = None
    """Why not."""


@dataclass(slots=True)
class Keyring:
    """The data keys of a repository: stores wrappings, opens and remembers them for this process.

    A signature says who made a wrapping, not that what it holds is the data key. That shows only by what was sealed
    with it, so everything is opened through :meth:`use`, which goes on to the next wrapping when one holds a false key.
    """

    store: ObjectStore
    repository: RepositoryId
    trust: Trust
    identities: Identities
    _open: dict[KeyId, tuple[bytes, ...]] = field(default_factory=dict)
    """The distinct secrets found for a key so far; the one that opened something last comes first."""
    _wrapped_for: dict[str, frozenset[str]] = field(default_factory=dict)
    """By object key: for whom a stored wrapping is. Objects never change, so each is read once per process."""

    def publish(
        self, key: DataKey, *, service: ServiceName, recipients: Sequence[str], signer: HostKey, now: datetime
    ) -> None:
        """Store the wrapping of a new data key; call it before the first object that uses the key.

        Raises:
            ConfigurationError: no usable recipient.
            ObjectStoreError: it could not be stored.
        """
        object_key = layout.data_key_key(service, key.id, make_ulid(now, os.urandom(10)))
        fields: dict[str, Json] = {"key_id": key.id, "service": service, "recipients": list(recipients)}
        self.store.create(
            object_key,
            write_envelope(
                signer=signer,
                repository=self.repository,
                key=object_key,
                kind="key",
                fields=fields,
                body=[wrap(key.secret, recipients)],
                now=now,
            ),
        )

    def remember(self, key: DataKey) -> None:
        """Keep a key made here for the rest of this process."""
        self._open[key.id] = (key.secret,)

    def adopt(self, secrets: Iterable[tuple[str, bytes]]) -> None:
        """Take over data keys that another process of this run has opened: for each key every secret it found."""
        for key_id, secret in secrets:
            self._note(KeyId(key_id), secret)

    def exists(self, key_id: KeyId, *, service: ServiceName) -> bool:
        """Tell whether at least one wrapping of the key is stored."""
        return next(self.store.list(layout.data_key_prefix(service, key_id)), None) is not None

    def recipients_of(self, key_id: KeyId, *, service: ServiceName) -> frozenset[str]:
        """Return for whom a data key is; see :meth:`recipients_of_each`."""
        return self.recipients_of_each({key_id}, service=service)[key_id]

    def recipients_of_each(self, key_ids: Collection[KeyId], *, service: ServiceName) -> Mapping[KeyId, frozenset[str]]:
        """Return for whom data keys are, by the headers of all their stored wrappings that are believed and whole.

        Empty for a key without any: what is sealed with it is lost to everybody. Needs no identity, so it is what the
        signers say; :meth:`wrappings` looks at what an identity can look at. One listing from the oldest key to the
        newest, however many there are, and one small read for each wrapping not seen before.

        Raises:
            ObjectStoreError: the store did not answer; nothing is known.
        """
        found: dict[KeyId, frozenset[str]] = dict.fromkeys(key_ids, frozenset())
        if not found:
            return found
        prefix, first, last = layout.data_key_prefix(service), min(found), max(found)
        # A single key's listing needs no end; several keys are listed with those that were made between them.
        chosen = layout.data_key_prefix(service, first) if first == last else prefix
        for info in self.store.list(chosen, start_after=layout.data_key_prefix(service, first)):
            key_id = KeyId(info.key[len(prefix) :].partition("/")[0])
            if key_id > last:
                break
            if key_id in found:
                found[key_id] |= self._believed_recipients(info.key, key_id, service)
        return found

    def _believed_recipients(self, object_key: str, key_id: KeyId, service: ServiceName) -> frozenset[str]:
        if object_key not in self._wrapped_for:
            try:
                envelope, _ = self._read_wrapping(object_key, key_id, service)
                self._wrapped_for[object_key] = _recipients_in(envelope, object_key)
            except (FormatError, DamagedObjectError, KeyProblemError, ObjectNotFoundError):
                return frozenset()  # nobody can be promised that this wrapping opens
        return self._wrapped_for[object_key]

    def _read_wrapping(
        self, object_key: str, key_id: KeyId, service: ServiceName
    ) -> tuple[Envelope, bytes | memoryview]:
        envelope, body = read_object(
            lambda: self.store.read_versions(object_key),
            trust=self.trust,
            repository=self.repository,
            key=object_key,
            kind="key",
        )
        if (envelope.text("key_id"), envelope.text("service")) != (key_id, service):
            raise FormatError(f"{object_key} wraps another key ({envelope.text('key_id')})")
        return envelope, body

    def use(self, key_id: KeyId, opening: Callable[[bytes], Made], *, service: ServiceName) -> Made:
        """Return what ``opening`` makes of the data key.

        Args:
            key_id: which data key.
            opening: opens something with a secret; raises :class:`WrongDataKeyError` if it was not sealed with it.
            service: whose key it is.

        Raises:
            WrongDataKeyError: wrappings open, and what none of them holds was it sealed with.
            MissingObjectError: no wrapping is stored.
            NoIdentityError, WrongIdentityError: none can be opened here.
        """
        problems: list[DrError] = []
        refused: dict[bytes, WrongDataKeyError] = {}
        for secret in self._secrets(key_id, service, problems):
            try:
                made = opening(secret)
            except WrongDataKeyError as error:
                refused[secret] = error
                continue
            if refused:
                telemetry.warning("a wrapping holds a false data key; another one is right", key_id=key_id)
                self._open[key_id] = (secret, *(other for other in self._open[key_id] if other != secret))
            return made
        if not refused:
            raise (
                problems[0]
                if problems
                else MissingObjectError(f"data key {key_id} of service {service} is not in the repository")
            )
        others = "".join(f"; not opened: {problem.message}" for problem in problems)
        first = next(iter(refused.values()))
        raise WrongDataKeyError(
            f"{first.message}; no wrapping of data key {key_id} holds another one: what they hold is false, or this"
            f" object is not where it was written{others}"
        ) from first

    def open_body(
        self, key_id: KeyId, body: bytes | memoryview, *, scope: Scope, context: str, where: str
    ) -> Iterator[bytes | memoryview]:
        """Return the plain pieces of a body that was sealed with a data key.

        Raises:
            As :meth:`use` and :func:`~drservice.repository.records.open_body`.
        """
        return self.use(
            key_id,
            lambda secret: open_body(secret, body, scope=scope, context=context, where=where),
            service=scope.service,
        )

    def secrets(self, key_id: KeyId, *, service: ServiceName) -> tuple[bytes, ...]:
        """Return every distinct secret that the wrappings of a data key hold; more than one means that some are false.

        Raises:
            MissingObjectError: no wrapping is stored.
            NoIdentityError, WrongIdentityError: none can be opened here.
        """
        problems: list[DrError] = []
        found = tuple(self._secrets(key_id, service, problems))
        if found:
            return found
        raise (
            problems[0]
            if problems
            else MissingObjectError(f"data key {key_id} of service {service} is not in the repository")
        )

    def wrappings(self, key_id: KeyId, *, service: ServiceName) -> list[Wrapping]:
        """Open every stored wrapping of a data key that is believed and whole; the others promise nothing.

        Raises:
            ObjectStoreError: the store did not answer.
        """
        found: list[Wrapping] = []
        for info in self.store.list(layout.data_key_prefix(service, key_id)):
            try:
                envelope, body = self._read_wrapping(info.key, key_id, service)
                recipients = _recipients_in(envelope, info.key)
            except (FormatError, DamagedObjectError, KeyProblemError, ObjectNotFoundError):
                continue
            secret, problem = None, None
            try:
                secret = self.identities.unwrap(body, f"data key {key_id}")
            except (FormatError, KeyProblemError) as error:
                problem = error
            found.append(
                Wrapping(
                    object_key=info.key,
                    host=envelope.text("host"),
                    recipients=recipients,
                    secret=secret,
                    problem=problem,
                )
            )
        return found

    def _secrets(self, key_id: KeyId, service: ServiceName, problems: list[DrError]) -> Iterator[bytes]:
        """Yield the distinct secrets of a key: those known first, then what further wrappings hold.

        A process that was given its keys and has no identity knows all there is to know.
        """
        given = self._open.get(key_id, ())
        yield from given
        if given and not self.identities.configured:
            return
        seen = set(given)
        for info in self.store.list(layout.data_key_prefix(service, key_id)):
            try:
                _, body = self._read_wrapping(info.key, key_id, service)
                secret = self.identities.unwrap(body, f"data key {key_id}")
            except (FormatError, DamagedObjectError, KeyProblemError) as error:
                problems.append(error)  # any wrapping that opens counts: the next one may
                continue
            if secret not in seen:
                seen.add(secret)
                self._note(key_id, secret)
                yield secret

    def _note(self, key_id: KeyId, secret: bytes) -> None:
        """Remember a secret of a key."""
        known = self._open.get(key_id, ())
        if secret not in known:
            self._open[key_id] = (*known, secret)

    def unwrap_inline(self, encoded: str, what: str) -> bytes:
        """Open a data key that travels base64-encoded in an object's own header."""
        try:
            wrapped = base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise FormatError(f"{what} has an unreadable wrapped key") from error
        return self.identities.unwrap(wrapped, what)


def _recipients_in(envelope: Envelope, object_key: str) -> frozenset[str]:
    recipients = envelope.header.get("recipients")
    if not isinstance(recipients, list):
        raise FormatError(f"the header of {object_key} lacks the list of recipients")
    return frozenset(item for item in recipients if isinstance(item, str))
