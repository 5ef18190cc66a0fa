"""Object Lock of a bucket: whether it has it, how long a version is locked, and making that longer.

Locks are of versions. A lock is only ever made longer here; a store that calls a request for an earlier date a refusal
(Amazon S3 and Ceph do) is asked which date it has before the refusal counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum

from drservice.errors import ObjectNotFoundError, ObjectStoreError, StoreDeniedError
from drservice.model.storing import LockMode
from drservice.objectstore.s3client import S3Client

_RIGHT_HINT = (
    "The backup host needs s3:PutObjectRetention, so that what a backup uses again stays locked as long as what it"
    " adds (docs/how-to/s3.md has the policy). Nothing was committed."
)


class BucketLock(Enum):
    """What a bucket says about Object Lock."""

    ON = "on"
    OFF = "off"
    UNTOLD = "untold"
    """It may not be asked, or does not understand the question."""


def bucket_lock(client: S3Client) -> BucketLock:
    """Ask whether the bucket was made with Object Lock.

    Raises:
        StoreUnreachableError: no answer.
    """
    try:
        answer = client.call("get_object_lock_configuration", "ask for Object Lock")
    except ObjectNotFoundError:
        return BucketLock.OFF
    except (StoreDeniedError, ObjectStoreError) as error:
        if type(error) not in (StoreDeniedError, ObjectStoreError):
            raise
        return BucketLock.UNTOLD
    told = answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled")
    return BucketLock.ON if told == "Enabled" else BucketLock.UNTOLD


def locked_until(client: S3Client, full_key: str, *, version: str) -> tuple[LockMode, datetime] | None:
    """Return how a version is locked, ``None`` if it is not or if this credential may not know (s3:GetObjectRetention).

    Raises:
        StoreDeniedError: the object may not be asked for at all.
    """
    answer = client.call("head_object", f"ask for the lock of {full_key}", Key=full_key, VersionId=version)
    mode, until = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
    if not isinstance(mode, str) or mode not in LockMode.__members__ or not isinstance(until, datetime):
        return None
    return LockMode[mode], until.astimezone(UTC)


def extend(client: S3Client, full_key: str, *, version: str, mode: LockMode, until: datetime) -> None:
    """Lock a version until then, unless it is locked for longer already.

    Raises:
        StoreDeniedError: not allowed.
    """
    try:
        set_lock(client, full_key, version=version, mode=mode, until=until)
    except StoreDeniedError as error:
        if is_locked_until(client, full_key, version=version, mode=mode, until=until):
            return
        raise StoreDeniedError(error.message, hint=_RIGHT_HINT) from error


def set_lock(client: S3Client, full_key: str, *, version: str, mode: LockMode, until: datetime) -> None:
    """Ask for a lock, whatever is there.

    Raises:
        StoreDeniedError: not allowed, or it would make a lock weaker.
    """
    client.call(
        "put_object_retention",
        f"lock {full_key} until {until:%Y-%m-%d}",
        Key=full_key,
        VersionId=version,
        Retention={"Mode": mode.name, "RetainUntilDate": until},
    )


def is_locked_until(client: S3Client, full_key: str, *, version: str, mode: LockMode, until: datetime) -> bool:
    """Tell whether a version is known to be locked that long and that hard; not being allowed to ask is no."""
    try:
        found = locked_until(client, full_key, version=version)
    except StoreDeniedError:
        return False
    if found is None or (found[0] is LockMode.GOVERNANCE and mode is LockMode.COMPLIANCE):
        return False
    return found[1] >= until - timedelta(seconds=1)  # stores keep whole seconds
