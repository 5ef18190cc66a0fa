"""Errors over HTTP: our error classes as statuses, and as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from drservice.errors import (
    AbsentError,
    BusyError,
    CatalogueUnreachableError,
    CrossSiteError,
    DrError,
    EvidenceIncompleteError,
    ForbiddenError,
    IdempotencyKeyError,
    IdempotencyReuseError,
    InvalidRequestError,
    NotSignedInError,
    OverError,
    RestorePointNameError,
    StaleError,
    StoreUnreachableError,
    TooManyRequestsError,
    UnknownNameError,
)

MEDIA_TYPE = "application/problem+json"
_STATUSES: Mapping[type[DrError], HTTPStatus] = {
    NotSignedInError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    CrossSiteError: HTTPStatus.FORBIDDEN,
    AbsentError: HTTPStatus.NOT_FOUND,
    UnknownNameError: HTTPStatus.NOT_FOUND,
    OverError: HTTPStatus.CONFLICT,
    BusyError: HTTPStatus.CONFLICT,
    EvidenceIncompleteError: HTTPStatus.CONFLICT,
    StaleError: HTTPStatus.PRECONDITION_FAILED,
    InvalidRequestError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RestorePointNameError: HTTPStatus.UNPROCESSABLE_ENTITY,
    IdempotencyKeyError: HTTPStatus.BAD_REQUEST,
    IdempotencyReuseError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyRequestsError: HTTPStatus.TOO_MANY_REQUESTS,
    CatalogueUnreachableError: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreUnreachableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_MOST_MISTAKES = 20


def status_of(error: DrError) -> HTTPStatus:
    """Return the status of an error: that of its nearest class in the table, else 500."""
    for kind in type(error).__mro__:
        if kind in _STATUSES:
            return _STATUSES[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def problem(error: DrError, status: HTTPStatus, *, mistakes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the problem document of an error."""
    document: dict[str, Any] = {
        "type": f"urn:drservice:error:{error.code}",
        "title": status.phrase,
        "status": int(status),
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "exit_status": int(error.exit_status),
    }
    if mistakes:
        document["mistakes"] = list(mistakes[:_MOST_MISTAKES])
    return document


def mistakes_of(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a validation found, as "place: what", without repeating what was sent."""
    return [f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors]
