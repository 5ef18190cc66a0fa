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
    StoreUnreachableError,
)

_FULL = frozenset({"QuotaExceeded", "InsufficientCapacity", "ServiceQuotaExceeded", "StorageFull", "XMinioStorageFull"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_PASSING = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
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


class ConflictError(StoreUnreachableError):
    """Another request for the same key was in flight and neither is known to have won: ask again."""


def error_for(*, status: int, code: str, message: str) -> DrError:
    """Return the error that an answer means.

    Args:
        status: the HTTP status.
        code: the answer's error code; for an answer without a body the status in digits.
        message: what to say, with action and place.
    """
    match code:
        case "RequestTimeTooSkewed":
            return StoreDeniedError(message, hint="This host's clock differs from the store's; set it right.")
        case "NoSuchBucket":
            hint = "Check repository.url; drservice makes no buckets, because their settings are yours."
            return ObjectStoreError(message, hint=hint)
        case _ if code in _DAMAGED_ON_THE_WAY:
            return StoreUnreachableError(message, hint="The body arrived changed; the store refused it.")
        case _ if code in _WRONG_PLACE:
            return ObjectStoreError(message, hint="Check region and endpoint in repository.url.")
        case _:
            kinds = ((_FULL, StoreFullError), (_DENIED, StoreDeniedError), (_PASSING, StoreUnreachableError))
            kind = next((kind for codes, kind in kinds if code in codes), None)
            return kind(message) if kind else _by_status(status, message)


def _by_status(status: int, message: str) -> DrError:
    kinds: dict[int, type[DrError]] = {
        401: StoreDeniedError,
        403: StoreDeniedError,
        404: ObjectNotFoundError,
        409: ConflictError,
        412: ObjectExistsError,
        416: DamagedObjectError,
        429: StoreUnreachableError,
        501: ObjectStoreError,  # "not implemented" does not pass
        507: StoreFullError,
    }
    return kinds.get(status, StoreUnreachableError if status >= 500 else ObjectStoreError)(message)
