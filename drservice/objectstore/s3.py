"""S3 buckets as object stores.

One call of this module is one request or a short fixed sequence; nothing is retried here (``retrying`` does
that, around calls that can be repeated). Requests and the meaning of errors are ``s3client``'s.

How ``create`` excludes a second writer depends on what the store honours (:class:`CreateMode`), as found by
``probing``. On a versioned bucket, listings and ``stat`` speak of the oldest version of a key, so that
neither an overwrite nor a delete marker hides an object. Where objects are to be locked, every one is stored with
its lock, whose end is reckoned by the store's clock.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from drservice.clock import Clock, SystemClock
from drservice.errors import (
    DamagedObjectError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreDeniedError,
    StoreUnreachableError,
)
from drservice.model.storing import is_locked, is_writers_own, kind_of
from drservice.objectstore.bodies import BodyReader, PausingBody, buffers_of, md5_of, same_pieces, size_of
from drservice.objectstore.interface import Body, Capabilities, CreateMode, ObjectInfo
from drservice.objectstore.keys import is_key, split_key, split_prefix
from drservice.objectstore.locks import host_lock
from drservice.objectstore.s3answers import ConflictError
from drservice.objectstore.s3client import Answer, Checksum, S3Client, S3Location
from drservice.objectstore.s3locks import extend

_LOCK_PATIENCE_SECONDS = 300.0
_LOCK_STRIPES = 256
_KNOWN_VERSIONS = 1 << 12
_PIECE_BYTES = 1 << 20
_NOTHING: Final[Mapping[str, object]] = {}
_AT_ONCE_BYTES = 2 << 20
"""What is sent without asking first whether it is wanted: a round trip costs more than sending it in vain."""


class S3Store:
    """Objects in one bucket below one prefix; safe for threads.

    Args:
        location: bucket and way to it.
        capabilities: what the store can do, as probed.
        lock_folder: where this host's writers exclude each other (:attr:`CreateMode.SINGLE_WRITER`).
        clock: measures how long a writer waits for the lock, and carries the store's time on.
    """

    def __init__(
        self,
        location: S3Location,
        *,
        capabilities: Capabilities,
        lock_folder: Path,
        clock: Clock | None = None,
    ) -> None:
        self._location = location
        self._capabilities = replace(capabilities, distant=True)
        self._lock_folder = lock_folder
        self._clock = clock or SystemClock()
        self._base = location.base
        self._oldest_ids: OrderedDict[str, str] = OrderedDict()
        self._tells_md5: bool | None = None
        """Whether an ETag is the MD5 of the object; ``None`` until one was seen."""
        self.client = S3Client(location, clock=self._clock)

    @property
    def location(self) -> S3Location:
        """Bucket and way to it."""
        return self._location

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return self._location.description

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do, as probed when it was opened."""
        return self._capabilities

    def create(self, key: str, body: Body) -> None:
        """Store ``body`` under ``key``: durable on return, all or nothing.

        Where a name is its writer's own and the store has no conditions, nothing is asked before or afterwards: one
        PUT, whose body the store checks. There is nobody to exclude, and a writer puts the same content again at most.

        Raises:
            ObjectExistsError: the key is taken. After a lost reply that may be our own object: compare.
            InvalidKeyError, StoreFullError, StoreDeniedError, StoreUnreachableError, BusyError.
        """
        match self._capabilities.create_mode:
            case CreateMode.FIRST_VERSION_WINS if is_writers_own(key):
                self._put_version(key, body)
            case CreateMode.SINGLE_WRITER if is_writers_own(key):
                split_key(key)
                self._put(key, body)
            case CreateMode.CONDITIONAL:
                self.create_conditionally(key, body)
            case CreateMode.FIRST_VERSION_WINS:
                self._create_first_version(key, body)
            case CreateMode.SINGLE_WRITER:
                self._create_alone(key, body)

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``.

        With :attr:`CreateMode.FIRST_VERSION_WINS` the oldest version is read, because that one won. With
        conditional creates the present version is read (one request); readers of signed objects on a
        versioned bucket use :meth:`read_versions`. Behind a delete marker the oldest version is read.

        Raises:
            ObjectNotFoundError, DamagedObjectError, StoreDeniedError, StoreUnreachableError.
        """
        split_key(key)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError(f"no range begins at {offset} with length {length}")
        if self._capabilities.create_mode is CreateMode.FIRST_VERSION_WINS:
            return self._get_oldest(key, offset=offset, length=length)
        try:
            return self._get(key, offset=offset, length=length, version=None)
        except ObjectNotFoundError:
            if not self._capabilities.versioned:
                raise
            return self._get_oldest(key, offset=offset, length=length)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object (of its oldest version on a versioned bucket).

        Raises:
            ObjectNotFoundError, StoreDeniedError, StoreUnreachableError.
        """
        split_key(key)
        if self._capabilities.versioned:
            return self._info(key, self._oldest(key))
        answer = self._head(key)
        return ObjectInfo(key=key, stored_bytes=answer["ContentLength"], modified_at=_instant(answer["LastModified"]))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix`` and is greater than ``start_after``, by key.

        Names that no key can have are passed over. A store that lists out of order, repeats itself or ends
        without saying so is an error, never a shorter list.

        Raises:
            StoreDeniedError, StoreUnreachableError, ObjectStoreError.
        """
        split_prefix(prefix)
        entries = (
            self._oldest_versions(prefix, start_after)
            if self._capabilities.versioned
            else self._objects(prefix, start_after)
        )
        return self._in_order(entries, start_after)

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions of ``key``, oldest first; delete markers are passed over."""
        split_key(key)
        if self._capabilities.versioned:
            for version in reversed(self._versions(key)):
                yield self._get(key, offset=0, length=None, version=version["VersionId"])
            return
        try:
            body = self._get(key, offset=0, length=None, version=None)
        except ObjectNotFoundError:
            return
        yield body

    def extend_lock(self, key: str, until: datetime) -> None:
        """Keep the true version of an object locked until then at least (``s3locks``).

        Raises:
            StoreDeniedError: not allowed.
            ObjectNotFoundError, StoreUnreachableError.
        """
        split_key(key)
        lock = self._capabilities.lock
        if lock is None:
            raise ObjectStoreError(f"{self.description} was opened without locks")
        extend(self.client, self._base + key, version=self._oldest(key)["VersionId"], mode=lock.mode, until=until)

    def delete(self, key: str) -> None:
        """Remove an object with all its versions and delete markers; an absent one is fine.

        Raises:
            StoreDeniedError: not allowed, or still locked.
        """
        split_key(key)
        if self._capabilities.versioned:
            self.delete_versions(key)
        else:
            self.client.call("delete_object", f"delete {key}", Key=self._base + key)

    def server_time(self) -> datetime:
        """Return the store's clock, from the ``Date`` header of an answer (whole seconds)."""
        return self.client.server_time()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    # --- what probing needs beside the contract -----------------------------------------------------------

    def require_bucket(self) -> None:
        """Make sure that the bucket is there and answers.

        Raises:
            ObjectStoreError: there is no such bucket.
            StoreDeniedError: not allowed, or the bucket is not of the account that the settings name.
            StoreUnreachableError: no answer.
        """
        try:
            self.client.call("head_bucket", "open the bucket")
        except ObjectNotFoundError as error:
            raise self._no_bucket() from error
        except StoreDeniedError as error:
            if self._location.settings.bucket_owner is None:
                raise
            self.client.call("head_bucket", "open the bucket", ExpectedBucketOwner=None)  # refused as well?
            raise StoreDeniedError(
                f"the bucket of {self.description} does not belong to {self._location.settings.bucket_owner}",
                hint="Check bucket and expected_bucket_owner: somebody else's bucket may have taken the name.",
            ) from error

    def is_versioned(self) -> bool:
        """Tell whether the bucket keeps versions now.

        Where asking is not allowed, a version with a real id in the listing is the answer.

        Raises:
            StoreDeniedError: neither question is allowed.
        """
        try:
            answer = self.client.call("get_bucket_versioning", "ask whether versions are kept")
        except StoreDeniedError:
            page = self.client.call("list_object_versions", "list versions", Prefix=self._base, MaxKeys=1)
            return any(entry["VersionId"] != "null" for entry in page.get("Versions", ()))
        return bool(answer.get("Status") == "Enabled")

    def create_conditionally(self, key: str, body: Body | PausingBody) -> None:
        """Store ``body`` with ``If-None-Match: *``, whatever was probed.

        Raises:
            ObjectExistsError: the store says that the key is taken.
            ConflictError: another request was in flight and no object is there: try again.
        """
        split_key(key)
        try:
            self._put(key, body, {"IfNoneMatch": "*"})
        except ConflictError as error:
            # A conflict says only that another request was in flight (Amazon S3 API, PutObject, 409
            # ConditionalRequestConflict); whether it won is another question.
            if self._is_taken(key):
                raise ObjectExistsError(f"{key} exists in {self.description}") from error
            raise

    def put_version(self, key: str, body: Body | PausingBody) -> str:
        """Store ``body`` as a further version of ``key`` and return the version's id.

        Raises:
            ObjectStoreError: the store keeps no versions.
        """
        return self._put_version(key, body)

    def _put_version(self, key: str, body: Body | PausingBody, **more: object) -> str:
        split_key(key)
        answer = self._put(key, body, more)
        version = answer.get("VersionId")
        if not version or version == "null":
            raise ObjectStoreError(
                f"{self.description} stored {key} without a version",
                hint="Versioning was switched off. Switch it on again; `drservice check` probes the store.",
            )
        return str(version)

    def put_locked(self, key: str, body: bytes, *, until: datetime) -> str:
        """Store ``body`` as a further version of ``key``, locked until then, and return the version's id.

        Raises:
            ObjectStoreError: the store keeps no versions, or no locks.
        """
        lock = self._capabilities.lock
        if lock is None:
            raise ObjectStoreError(f"{self.description} was opened without locks")
        return self._put_version(key, body, ObjectLockMode=lock.mode.name, ObjectLockRetainUntilDate=until)

    def version_ids(self, key: str) -> tuple[str, ...]:
        """Return the ids of the versions of ``key``, oldest first, without delete markers."""
        return tuple(str(version["VersionId"]) for version in reversed(self._versions(key)))

    def delete_versions(self, key: str) -> None:
        """Remove every version and delete marker of ``key``, by id.

        Raises:
            StoreDeniedError: not allowed, or still locked.
        """
        for version in self._all_versions(key):
            self.client.call("delete_object", f"delete {key}", Key=self._base + key, VersionId=version["VersionId"])

    # --- creating ---------------------------------------------------------------------------------------

    def _create_first_version(self, key: str, body: Body) -> None:
        split_key(key)
        if self._versions(key):
            raise ObjectExistsError(f"{key} exists in {self.description}")
        mine = self.put_version(key, body)
        versions = self.version_ids(key)
        if mine not in versions:
            raise StoreUnreachableError(f"the listing of {key} does not show the version just stored")
        if versions[0] != mine:
            raise ObjectExistsError(f"{key} exists in {self.description}: another writer was first")

    def _create_alone(self, key: str, body: Body) -> None:
        split_key(key)
        with self._writer_lock(key):
            if self._is_taken(key, put_follows=True):
                raise ObjectExistsError(f"{key} exists in {self.description}")
            # What is read back and compared needs no MD5 on its way, which costs more than sending it does.
            digest = md5_of(body) if self._tells_md5 is not False else None
            known = {} if digest is None else {"ContentMD5": _encoded(digest)}
            self._put(key, body, known, is_compared=True)
            if not (digest and self._tells(key, digest, size_of(body))) and not self._holds(key, body):
                raise ObjectExistsError(
                    f"{key} in {self.description} is not what was just stored: another host writes here",
                    hint="This store cannot exclude a second host. Let one host alone write to it.",
                )

    def _writer_lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        digest = hashlib.sha256(f"{self.description}\n{key}".encode()).digest()
        stripe = digest[0] % _LOCK_STRIPES
        return host_lock(
            self._lock_folder / f"{stripe:02x}.lock",
            clock=self._clock,
            patience_seconds=_LOCK_PATIENCE_SECONDS,
        )

    def _is_taken(self, key: str, *, put_follows: bool = False) -> bool:
        try:
            if put_follows:  # which names a missing bucket by itself: a request less for each object
                self.client.call("head_object", f"stat {key}", Key=self._base + key)
            else:
                self._head(key)
        except ObjectNotFoundError:
            return False
        return True

    def _put(
        self, key: str, body: Body | PausingBody, more: Mapping[str, object] = _NOTHING, *, is_compared: bool = False
    ) -> Answer:
        content = body.content if isinstance(body, PausingBody) else body
        arguments: dict[str, object] = {"Key": self._base + key, **more}
        storage_class = self._location.settings.storage_classes.get(kind_of(key))
        if storage_class is not None:
            arguments["StorageClass"] = storage_class
        if (lock := self._capabilities.lock) is not None and is_locked(key):
            arguments["ObjectLockMode"] = lock.mode.name
            arguments["ObjectLockRetainUntilDate"] = lock.end_for(key, self.client.recent_time())
        is_checked = self._location.checksum is Checksum.WHEN_REQUIRED and not is_compared
        if (is_checked or "ObjectLockMode" in arguments) and "ContentMD5" not in arguments:
            arguments["ContentMD5"] = _encoded(md5_of(content))
        arguments["Body"] = body if isinstance(body, PausingBody) else _sendable(body)
        with contextlib.ExitStack() as cleanup:
            if isinstance(body, PausingBody):
                # A quick PUT of the same key may be the one that is seen; the slow one was seen before it then.
                cleanup.callback(self.client.when_sent(f"/{self._base}{key}", body.arm))
            return self.client.call("put_object", f"create {key} ({size_of(content)} bytes)", **arguments)

    # --- reading ----------------------------------------------------------------------------------------

    def _get_oldest(self, key: str, *, offset: int, length: int | None) -> bytes:
        """Read from the oldest version; which one it is, is listed once: nothing can come to lie below it."""
        known = self._oldest_ids.get(key)
        if known is not None:
            with contextlib.suppress(ObjectNotFoundError):  # deleted since: whatever is the oldest now
                return self._get(key, offset=offset, length=length, version=known)
        version = self._oldest_ids[key] = str(self._oldest(key)["VersionId"])
        while len(self._oldest_ids) > _KNOWN_VERSIONS:
            with contextlib.suppress(KeyError):  # another thread was quicker
                self._oldest_ids.popitem(last=False)
        return self._get(key, offset=offset, length=length, version=version)

    def _get(self, key: str, *, offset: int, length: int | None, version: str | None) -> bytes:
        if length == 0 or (offset and length is None):
            # HTTP has no range of no bytes, and the store refuses one that begins at the end (RFC 9110, 14).
            size = self._head(key, version=version)["ContentLength"]
            length = size - offset if length is None else length
            if length < 0 or offset + length > size:
                raise self._too_short(key, size, offset, length)
            if length == 0:
                return b""
        arguments: dict[str, str] = {"Key": self._base + key}
        if version is not None:
            arguments["VersionId"] = version
        if length is not None:
            arguments["Range"] = f"bytes={offset}-{offset + length - 1}"
        answer = self.client.call("get_object", f"read {key}", **arguments)
        with contextlib.closing(answer["Body"]) as stream, self.client.translated(f"read {key}"):
            data: bytes = stream.read()
        if length is not None and "ContentRange" not in answer:
            # A store may ignore the range (RFC 9110, 14.2). The status does not tell: rclone says 200 to both.
            data = data[offset : offset + length]
        if length is not None and len(data) != length:
            raise self._too_short(key, offset + len(data), offset, length)
        return data

    def _tells(self, key: str, digest: bytes, size: int) -> bool:
        """Tell whether the store says that it holds a body of this MD5: no other object has the same one by chance.

        One that tells something else as the ETag (what it does not say at the PUT) is not asked again.
        """
        told = self._head(key)
        self._tells_md5 = told.get("ETag", "").strip('"') == digest.hex()
        return self._tells_md5 and bool(told["ContentLength"] == size)

    def _holds(self, key: str, body: Body) -> bool:
        """Tell whether ``body`` is what is stored: read in pieces, because a copy of it has no room in a worker."""
        answer = self.client.call("get_object", f"read {key}", Key=self._base + key)
        with contextlib.closing(answer["Body"]) as stream, self.client.translated(f"read {key}"):
            return same_pieces(body, iter(lambda: bytes(stream.read(_PIECE_BYTES)), b""))

    def _head(self, key: str, *, version: str | None = None) -> Answer:
        arguments = {"Key": self._base + key}
        if version is not None:
            arguments["VersionId"] = version
        try:
            return self.client.call("head_object", f"stat {key}", **arguments)
        except ObjectNotFoundError:
            # A HEAD has no body that could tell a missing bucket from a missing object.
            self.require_bucket()
            raise

    # --- listing ----------------------------------------------------------------------------------------

    def _objects(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        start = {"StartAfter": self._base + start_after} if start_after else {}
        token: str | None = None
        while True:
            follow = {"ContinuationToken": token} if token else start
            page = self.client.call("list_objects_v2", f"list {prefix}", Prefix=self._base + prefix, **follow)
            for entry in page.get("Contents", ()):
                yield self._info(entry["Key"].removeprefix(self._base), entry)
            if not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not following or following == token:
                raise self._broken_listing(prefix)
            token = following

    def _oldest_versions(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        oldest: Answer | None = None
        for entry in self._version_entries(self._base + prefix, start_after=start_after):
            if entry["IsDeleteMarker"]:
                continue
            if oldest is not None and oldest["Key"] != entry["Key"]:
                yield self._info(oldest["Key"].removeprefix(self._base), oldest)
            oldest = entry
        if oldest is not None:
            yield self._info(oldest["Key"].removeprefix(self._base), oldest)

    def _version_entries(self, full_prefix: str, *, start_after: str = "") -> Iterator[Answer]:
        """Yield versions and delete markers, by key; within a key its versions are newest first."""
        marker = {"KeyMarker": self._base + start_after} if start_after else {}
        while True:
            page = self.client.call("list_object_versions", "list versions", Prefix=full_prefix, **marker)
            entries = [{**entry, "IsDeleteMarker": False} for entry in page.get("Versions", ())]
            entries += [{**entry, "IsDeleteMarker": True} for entry in page.get("DeleteMarkers", ())]
            # A stable sort: the order within a key is the store's own.
            yield from sorted(entries, key=lambda entry: str(entry["Key"]))
            if not page.get("IsTruncated"):
                return
            following = {"KeyMarker": page.get("NextKeyMarker", "")}
            if page.get("NextVersionIdMarker"):
                following["VersionIdMarker"] = page["NextVersionIdMarker"]
            if not following["KeyMarker"] or following == marker:
                raise self._broken_listing(full_prefix)
            marker = following

    def _all_versions(self, key: str) -> tuple[Answer, ...]:
        found = []
        for entry in self._version_entries(self._base + key):
            if entry["Key"] != self._base + key:
                break  # the key itself sorts before everything it is a prefix of
            found.append(entry)
        return tuple(found)

    def _versions(self, key: str) -> tuple[Answer, ...]:
        """Return the versions of ``key``, newest first, without delete markers."""
        return tuple(entry for entry in self._all_versions(key) if not entry["IsDeleteMarker"])

    def _oldest(self, key: str) -> Answer:
        versions = self._versions(key)
        if not versions:
            raise ObjectNotFoundError(f"there is no {key} in {self.description}")
        return versions[-1]

    def _in_order(self, entries: Iterator[ObjectInfo], start_after: str) -> Iterator[ObjectInfo]:
        last = ""
        for entry in entries:
            if last and entry.key <= last:
                raise self._broken_listing(entry.key)
            last = entry.key
            if is_key(entry.key) and entry.key > start_after:
                yield entry

    def _info(self, key: str, entry: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(key=key, stored_bytes=entry["Size"], modified_at=_instant(entry["LastModified"]))

    # --- saying what is wrong --------------------------------------------------------------------------------

    def _too_short(self, key: str, size: int, offset: int, length: int) -> DamagedObjectError:
        return DamagedObjectError(
            f"{key} in {self.description} has {size} bytes; {length} bytes from {offset} were expected"
        )

    def _broken_listing(self, where: str) -> ObjectStoreError:
        return ObjectStoreError(
            f"{self.description} lists out of order or does not end, near {where}",
            hint="The store does not follow the S3 interface; nothing that relies on this listing was done.",
        )

    def _no_bucket(self) -> ObjectStoreError:
        # Not ObjectNotFoundError: a reader would take it for "this object was never written".
        return ObjectStoreError(
            f"there is no bucket {self._location.bucket} (asked for {self.description})",
            hint="Check repository.url; drservice makes no buckets, because their settings are yours.",
        )


def _sendable(body: Body) -> bytes | BodyReader:
    """Return a body as it is sent best: of a file-like one only when the store says so (``Expect: 100-continue``)."""
    if isinstance(body, bytes):
        return body
    return b"".join(buffers_of(body)) if size_of(body) <= _AT_ONCE_BYTES else BodyReader(body)


def _encoded(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def _instant(modified_at: datetime) -> datetime:
    """Return a store time in whole seconds: some stores tell fractions in listings only."""
    return modified_at.astimezone(UTC).replace(microsecond=0)
