"""What an S3 error answer means, in the words of the catalogue of errors; pure, no library.

The codes are those of the Amazon S3 API Reference ("Error responses") and of Ceph's gateway.
"""

from __future__ import annotations

from drservice.errors import (
    DamagedObjectError,
    DrError,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStoreError,
    StoreDeniedError,
    StoreFullError,
    StoreThrottledError,
    StoreUnreachableError,
)

_FULL = frozenset({"QuotaExceeded", "InsufficientCapacity", "ServiceQuotaExceeded", "StorageFull", "XMinioStorageFull"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_PASSING = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
    }
)
_DAMAGED_ON_THE_WAY = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_WRONG_PLACE = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "IncorrectEndpoint",
        "MovedPermanently",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)


_ABSENT = frozenset({"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"})
_KINDS: tuple[tuple[frozenset[str], type[DrError], str | None], ...] = (
    (
        frozenset({"RequestTimeTooSkewed"}),
        StoreDeniedError,
        "This host's clock differs from the store's; set it right.",
    ),
    (
        frozenset({"NoSuchBucket"}),
        ObjectStoreError,
        "Check repository.url; drservice makes no buckets, because their settings are yours.",
    ),
    (
        EXPIRED_CODES,
        StoreDeniedError,
        "The credentials have run out and were not renewed; see where the chain finds them (docs/how-to/s3.md).",
    ),
    (_DAMAGED_ON_THE_WAY, StoreUnreachableError, "The body arrived changed; the store refused it."),
    (_WRONG_PLACE, ObjectStoreError, "Check region and endpoint in repository.url."),
    (_ABSENT, ObjectNotFoundError, None),
    (_FULL, StoreFullError, None),
    (_DENIED, StoreDeniedError, None),
    (_THROTTLED, StoreThrottledError, None),
    (_PASSING, StoreUnreachableError, None),
)


class ConflictError(StoreUnreachableError):
    """Another request for the same key was in flight and neither is known to have won: ask again."""


def error_for(*, status: int, code: str, message: str) -> DrError:
    """Return the error that an answer means.

    Args:
        status: the HTTP status.
        code: the answer's error code; for an answer without a body the status in digits.
        message: what to say, with action and place.
    """
    for codes, kind, hint in _KINDS:
        if code in codes:
            return kind(message, hint=hint)
    return _by_status(status, message)


def _by_status(status: int, message: str) -> DrError:
    kinds: dict[int, type[DrError]] = {
        401: StoreDeniedError,
        403: StoreDeniedError,
        404: ObjectNotFoundError,
        409: ConflictError,
        412: ObjectExistsError,
        416: DamagedObjectError,
        429: StoreThrottledError,
        503: StoreThrottledError,
        501: ObjectStoreError,  # "not implemented" does not pass
        507: StoreFullError,
    }
    return kinds.get(status, StoreUnreachableError if status >= 500 else ObjectStoreError)(message)
