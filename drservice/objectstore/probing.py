"""Finds out by experiment how far an S3 bucket can be trusted with ``create``.

What a store claims is not asked; two writers are let loose on one key and the outcome is counted:

1. a second conditional create, in sequence, must be refused;
2. of two at the same time exactly one must win, several times;
3. of a slow one, whose body stops half-way, and a quick one that begins and ends meanwhile, the quick one must
   win: a store that looks for the key only when a request begins passes 1 and often 2, and lets both win here.

A store that fails any of these has no conditional creates. If it keeps versions, the slow and the quick writer
are sent again, unconditionally: only where the version that was *finished* first is also *listed* as the oldest
may the first version win, because otherwise a slow writer could slip below one that already knows it has won.

Two things more are found out before anything is written: whether the bucket is of the account it should be of, and
whether it locks objects if that is asked for. What is not known to be so is not believed: a bucket of another account
is refused, and one that does not lock opens for reading.

Probe objects lie below ``probe/`` and are deleted where that is allowed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from drservice.clock import Clock
from drservice.errors import (
    ObjectExistsError,
    ObjectStoreError,
    StoreDeniedError,
    StoreFullError,
    StoreUnreachableError,
)
from drservice.model.ids import make_ulid
from drservice.model.storing import LockSettings
from drservice.objectstore.bodies import PausingBody
from drservice.objectstore.interface import Capabilities, CreateMode
from drservice.objectstore.s3 import S3Store
from drservice.objectstore.s3answers import ConflictError
from drservice.objectstore.s3locks import BucketLock, bucket_lock

T = TypeVar("T")

_ORDER_RACES = 3
"""A busy server may take up the slow upload late and so look right by chance once; not three times."""
_RACES = 3
_CONFLICTS = 4
_PATIENCE_SECONDS = 20.0
_SLOW_BYTES = 256 * 1024


def probe(store: S3Store, *, clock: Clock) -> Capabilities:
    """Return what the bucket behind ``store`` can do; a bucket that may not be written opens for reading.

    Raises:
        ObjectStoreError: no such bucket, or no use of it.
        StoreUnreachableError: no answer; nothing is known then, and nothing is assumed.
    """
    store.require_bucket()
    require_owner(store)
    versioned = store.is_versioned()
    keys: list[str] = []

    def new_key() -> str:
        keys.append(f"probe/{make_ulid(clock.now(), os.urandom(10))}")
        return keys[-1]

    try:
        capabilities = _probe_writing(store, versioned=versioned, new_key=new_key)
        if (lock := store.location.settings.lock) is not None:
            capabilities = _with_lock(store, capabilities, lock)
    except (StoreDeniedError, StoreFullError) as error:
        return capabilities_for_reading(
            versioned=versioned,
            warning=f"The store refuses writes, nothing can be backed up to it: {error.message}",
        )
    finally:
        _clean_up(store.delete_versions if versioned else store.delete, keys)
    return capabilities


def require_owner(store: S3Store) -> None:
    """Make sure that the bucket is of the account that the settings name, if they name one.

    Stores that pass over the header are found out by naming an account that cannot be right; their access list is
    compared instead.

    Raises:
        StoreDeniedError: it is of another, or of whom is not told.
    """
    owner, client = store.location.settings.bucket_owner, store.client
    if owner is None:
        return
    stranger = "111111111111" if owner != "111111111111" else "222222222222"
    try:
        client.call("head_bucket", "open the bucket of a stranger", ExpectedBucketOwner=stranger)
    except StoreDeniedError:
        return  # the header is looked at, and with the right account the bucket has been opened
    untold = StoreDeniedError(
        f"{store.description} passes over expected_bucket_owner and does not tell who owns the bucket",
        hint="Allow s3:GetBucketAcl, or take expected_bucket_owner out: this store cannot keep the promise.",
    )
    try:
        found = client.call("get_bucket_acl", "ask for the owner").get("Owner", {}).get("ID")
    except StoreDeniedError as error:
        raise untold from error
    if not found:
        raise untold
    if found != owner:
        raise StoreDeniedError(
            f"the bucket of {store.description} belongs to {found}, not to {owner}",
            hint="Check bucket and expected_bucket_owner: somebody else's bucket may have taken the name.",
        )


def _with_lock(store: S3Store, capabilities: Capabilities, lock: LockSettings) -> Capabilities:
    """Add the lock to what the bucket can do, or open it for reading if it cannot do that."""
    told = bucket_lock(store.client) if capabilities.versioned else BucketLock.OFF
    if told is BucketLock.ON:
        return replace(capabilities, lock=lock)
    why = "has none" if told is BucketLock.OFF else "does not tell whether it has it"
    return capabilities_for_reading(
        versioned=capabilities.versioned,
        warning=f"Object Lock is configured ({lock.describe()}) and the bucket {why}: nothing is written to it. Make a"
        " bucket with Object Lock, allow s3:GetBucketObjectLockConfiguration, or take `lock` out of the configuration.",
    )


def capabilities_for_reading(*, versioned: bool, warning: str = "") -> Capabilities:
    """Return the capabilities of a bucket that nobody has probed by writing.

    On a versioned bucket the oldest version is read, which is right whatever the writers relied on.
    """
    return Capabilities(
        create_mode=CreateMode.FIRST_VERSION_WINS if versioned else CreateMode.SINGLE_WRITER,
        versioned=versioned,
        writable=False,
        warnings=(warning,) if warning else (),
    )


def _probe_writing(store: S3Store, *, versioned: bool, new_key: Callable[[], str]) -> Capabilities:
    if _honours_conditions(store, new_key):
        return Capabilities(create_mode=CreateMode.CONDITIONAL, versioned=versioned, writable=True)
    if versioned and all(_version_order_is_link_order(store, new_key()) for _ in range(_ORDER_RACES)):
        return Capabilities(
            create_mode=CreateMode.FIRST_VERSION_WINS,
            versioned=True,
            writable=True,
            warnings=(
                (
                    "The store does not honour If-None-Match: drservice lets the oldest version of a key"
                    " win instead, which costs a listing with every write and read."
                ),
            ),
        )
    return Capabilities(
        create_mode=CreateMode.SINGLE_WRITER,
        versioned=versioned,
        writable=True,
        warnings=(
            (
                "The store cannot keep two writers apart (no If-None-Match, no reliable order of versions):"
                " only one host may write to this repository; its writers exclude each other by a lock."
            ),
        ),
    )


def _honours_conditions(store: S3Store, new_key: Callable[[], str]) -> bool:
    try:
        key = new_key()
        if [_wins(store, key, b"first"), _wins(store, key, b"second")] != [True, False]:
            return False
        if not all(_one_of_two_wins(store, new_key()) for _ in range(_RACES)):
            return False
        return _slow_or_quick_wins(store, new_key())
    except (StoreDeniedError, StoreFullError, StoreUnreachableError):
        raise
    except ObjectStoreError:
        return False  # the store refuses the header itself (501, 400): it has no such feature


def _wins(store: S3Store, key: str, body: bytes | PausingBody) -> bool:
    """Create conditionally; a conflict that leaves no object behind is no outcome and is asked again."""
    for _ in range(_CONFLICTS - 1):
        try:
            store.create_conditionally(key, body)
        except ConflictError:
            continue
        except ObjectExistsError:
            return False
        return True
    try:
        store.create_conditionally(key, body)
    except ObjectExistsError:
        return False
    return True


def _one_of_two_wins(store: S3Store, key: str) -> bool:
    start = threading.Barrier(2)

    def writer(body: bytes) -> bool:
        start.wait(_PATIENCE_SECONDS)
        return _wins(store, key, body)

    with ThreadPoolExecutor(max_workers=2) as pool:
        outcomes = list(pool.map(writer, (b"left", b"right")))
    return outcomes.count(True) == 1


def _slow_or_quick_wins(store: S3Store, key: str) -> bool:
    """Tell whether exactly one of a slow and a quick conditional writer wins."""
    quick, slow = _overtake(slow=lambda body: _wins(store, key, body), quick=lambda: _wins(store, key, b"quick"))
    return [quick, slow].count(True) == 1


def _version_order_is_link_order(store: S3Store, key: str) -> bool:
    quick, slow = _overtake(
        slow=lambda body: store.put_version(key, body), quick=lambda: store.put_version(key, b"quick")
    )
    return store.version_ids(key) == (quick, slow)


def _overtake(*, slow: Callable[[PausingBody], T], quick: Callable[[], T]) -> tuple[T, T]:
    """Begin ``slow``, do all of ``quick`` while its body stands still, finish ``slow``; (quick, slow)."""
    half_sent, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        half_sent.set()
        go_on.wait(_PATIENCE_SECONDS)

    with ThreadPoolExecutor(max_workers=1) as pool:
        outcome = pool.submit(slow, PausingBody(os.urandom(_SLOW_BYTES), pause=pause))
        outcome.add_done_callback(lambda _: half_sent.set())  # refused before it was half sent
        try:
            half_sent.wait(_PATIENCE_SECONDS)
            overtaker = quick()
        finally:
            go_on.set()
        return overtaker, outcome.result()


def _clean_up(delete: Callable[[str], None], keys: Sequence[str]) -> None:
    for key in keys:
        # Left behind where deleting is not allowed, which is how a backup host should be: some bytes.
        with contextlib.suppress(StoreDeniedError):
            delete(key)
