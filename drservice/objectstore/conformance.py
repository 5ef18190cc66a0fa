"""Tries what a bucket must refuse: losing a locked object, weaker locks, changed bodies, a second create.

What a store claims is not asked. Two objects of a few bytes are written below ``probe/``, one of them locked for a day,
and what must be refused is tried on them with this host's own credentials. The locked one is left behind; it can go
when its day is over. A refusal counts whatever its reason: that this credential may not delete anything at all is a
protection, too, and is told as that.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from drservice.clock import Clock, SystemClock
from drservice.errors import DrError, ObjectExistsError, ObjectStoreError, StoreDeniedError, StoreUnreachableError
from drservice.model.ids import make_ulid
from drservice.model.storing import LockMode, StoreSettings
from drservice.objectstore.opening import open_s3
from drservice.objectstore.retrying import RetryingStore
from drservice.objectstore.s3 import S3Store
from drservice.objectstore.s3locks import extend, is_locked_until, set_lock

_LOCKED_FOR = timedelta(days=1)
_STEP = timedelta(hours=1)
_BODY = b"drservice probes whether this can be deleted\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was tried, whether it went as it must, and how it went."""

    name: str
    passed: bool
    detail: str


def try_store(url: str, *, lock_dir: Path, settings: StoreSettings, clock: Clock | None = None) -> tuple[Tried, ...]:
    """Try everything on the bucket behind an address; a directory has nothing to try.

    Raises:
        ConfigurationError: the url makes no sense.
        StoreDeniedError: the bucket opens for reading only.
        ObjectStoreError, StoreUnreachableError: it cannot be used; nothing is known then.
    """
    chosen = clock or SystemClock()
    store = open_s3(url, lock_dir=lock_dir, settings=settings, clock=chosen)
    if store is None:
        return ()
    try:
        return _try_all(store, chosen)
    finally:
        store.close()


def _try_all(store: RetryingStore, clock: Clock) -> tuple[Tried, ...]:
    inner = store.inner
    assert isinstance(inner, S3Store)

    def new_key() -> str:
        return f"probe/{make_ulid(clock.now(), os.urandom(10))}"

    plain = new_key()
    store.create(plain, _BODY)
    tried = [_second_create(store, plain), _changed_body(inner, new_key())]
    if inner.capabilities.lock is not None:
        locked = new_key()
        version = inner.put_locked(locked, _BODY, until=inner.client.recent_time() + _LOCKED_FOR)
        tried += _try_lock(inner, locked, version)
    with contextlib.suppress(StoreDeniedError):
        store.delete(plain)
    return tuple(tried)


def _second_create(store: RetryingStore, key: str) -> Tried:
    name = "a second create of a key is refused"
    try:
        store.create(key, b"something else")
    except ObjectExistsError:
        return Tried(name=name, passed=True, detail=f"refused ({store.capabilities.create_mode.value})")
    return Tried(name=name, passed=False, detail="accepted: two writers can overwrite each other")


def _changed_body(store: S3Store, key: str) -> Tried:
    name = "a body that does not match its checksum is refused"
    other = base64.b64encode(hashlib.md5(b"another body", usedforsecurity=False).digest()).decode("ascii")
    try:
        store.client.call(
            "put_object", "store a changed body", Key=store.location.base + key, Body=_BODY, ContentMD5=other
        )
    except StoreUnreachableError as error:
        if "BadDigest" in error.message or "InvalidDigest" in error.message:
            return Tried(name=name, passed=True, detail="refused")
        raise
    with contextlib.suppress(StoreDeniedError):
        store.delete(key)
    return Tried(name=name, passed=False, detail="accepted: what is changed on its way is found when it is read only")


def _try_lock(store: S3Store, key: str, version: str) -> list[Tried]:
    full_key, client = store.location.base + key, store.client
    lock = store.capabilities.lock
    assert lock is not None
    until = client.recent_time() + _LOCKED_FOR

    def delete(**more: object) -> Callable[[], object]:
        return lambda: client.call("delete_object", f"delete {key}", Key=full_key, VersionId=version, **more)

    def weaker(mode: LockMode, by: timedelta) -> Callable[[], object]:
        return lambda: set_lock(client, full_key, version=version, mode=mode, until=until + by)

    tried = [_extend(store, full_key, version, lock.mode)]
    tried.append(_refused("shortening a lock is refused", weaker(lock.mode, -_STEP)))
    if lock.mode is LockMode.COMPLIANCE:
        tried.append(_refused("weakening a lock is refused", weaker(LockMode.GOVERNANCE, 2 * _STEP)))
        tried.append(_refused("deleting past a lock is refused", delete(BypassGovernanceRetention=True)))
    tried.append(_refused("deleting a locked version is refused", delete()))
    still = store.version_ids(key) == (version,)
    detail = "it is there" if still else "it is gone"
    tried.append(Tried(name="what is locked is still there", passed=still, detail=detail))
    return tried


def _extend(store: S3Store, full_key: str, version: str, mode: LockMode) -> Tried:
    name = "making a lock longer is allowed"
    later = store.client.recent_time() + _LOCKED_FOR + _STEP
    try:
        extend(store.client, full_key, version=version, mode=mode, until=later)
    except StoreDeniedError as error:
        return Tried(name=name, passed=False, detail=f"{error.message}: what is used again cannot be kept locked")
    if not is_locked_until(store.client, full_key, version=version, mode=mode, until=later):
        return Tried(name=name, passed=True, detail="allowed; the date may not be read back")
    return Tried(name=name, passed=True, detail="allowed, and the date is there")


def _refused(name: str, attempt: Callable[[], object]) -> Tried:
    try:
        attempt()
    except StoreUnreachableError:
        raise  # no answer is no refusal
    except StoreDeniedError:
        return Tried(name=name, passed=True, detail="refused")
    except ObjectStoreError as error:
        return Tried(name=name, passed=True, detail=f"refused: {_short(error)}")
    return Tried(name=name, passed=False, detail="accepted")


def _short(error: DrError) -> str:
    return error.message.rsplit(": ", 1)[-1]
