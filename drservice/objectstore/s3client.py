"""Requests to one S3 bucket: where it lies, with which credentials, within which times; the only importer of botocore.

What boto3 adds to botocore is not needed here and takes each process 45 ms to load.

Credentials come from the standard chain of the AWS tools and are never seen here. What the chain renews by itself
(roles, web identity, container, instance, process) is renewed by it; when a store says that a token has expired, the
chain is asked once more from its beginning, so that a file whose content was exchanged is read again.

Every error of the library is translated once, here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeAlias

from botocore import exceptions as botocore_errors
from botocore.config import Config
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session

from drservice.clock import Clock
from drservice.errors import DamagedObjectError, ObjectStoreError, StoreDeniedError, StoreUnreachableError
from drservice.model.storing import NO_SETTINGS, StoreSettings
from drservice.objectstore.s3answers import EXPIRED_CODES, error_for

CONNECTIONS = 32

Answer: TypeAlias = "dict[str, Any]"
"""A parsed response; its shape is the service model's, which has no types. It does not leave the modules of S3."""


class Checksum(Enum):
    """What protects a PUT on its way."""

    WHEN_REQUIRED = "when_required"
    """``Content-MD5`` and a signed SHA-256 of the body: understood by every store."""

    WHEN_SUPPORTED = "when_supported"
    """The newer ``x-amz-checksum-*`` headers, which AWS also keeps with the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """Where a repository lies in S3 and how to reach it; holds no secret."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""
    region: str | None = None
    endpoint: str | None = None
    ca_file: Path | None = None
    path_style: bool = False
    checksum: Checksum = Checksum.WHEN_SUPPORTED
    profile: str | None = None
    settings: StoreSettings = NO_SETTINGS

    @property
    def description(self) -> str:
        """A printable address."""
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{where}".rstrip("/")

    @property
    def base(self) -> str:
        """What every key in the bucket begins with."""
        return f"{self.prefix}/" if self.prefix else ""


class S3Client:
    """A session with one bucket; safe for threads.

    Args:
        location: bucket and way to it.
        clock: carries the store's time on from one answer to the next.
    """

    def __init__(self, location: S3Location, *, clock: Clock) -> None:
        self.location = location
        self._clock = clock
        self._renewing = threading.Lock()
        self._client = self._connect()
        self._last_date: tuple[datetime, float] | None = None

    def call(self, operation: str, action: str, **arguments: Any) -> Answer:  # noqa: ANN401 - what botocore takes
        """Send one request and return the parsed answer.

        Args:
            operation: the client's method.
            action: what it does, for messages.
            arguments: of the method; the bucket and its expected owner are added.

        Raises:
            DrError: what the answer means, or that there was none.
        """
        owner = self.location.settings.bucket_owner
        if owner is not None:
            arguments.setdefault("ExpectedBucketOwner", owner)
        if arguments.get("ExpectedBucketOwner") is None:
            arguments.pop("ExpectedBucketOwner", None)
        with self.translated(action):
            client = self._client
            try:
                answer = self._send(client, operation, arguments)
            except botocore_errors.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code"))
                # The answer to a HEAD has no body that could say what it means.
                may_have_expired = code in EXPIRED_CODES or (code == "400" and operation.startswith("head_"))
                if not may_have_expired or not self._renew(client):
                    raise
                body = arguments.get("Body")
                if body is not None and hasattr(body, "seek"):
                    body.seek(0)
                answer = self._send(self._client, operation, arguments)
        date = _date_in(answer)
        if date is not None:
            self._last_date = (date, self._clock.monotonic())
        return answer

    def server_time(self) -> datetime:
        """Return the store's clock, from the ``Date`` header of an answer (whole seconds).

        Raises:
            ObjectStoreError: there is no such header.
        """
        answer = self.call("head_bucket", "ask for the time")
        date = _date_in(answer)
        if date is None:
            text = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
            raise ObjectStoreError(
                f"{self.location.description} answers without a usable Date header ({text!r})",
                hint="Ages are judged by the store's clock only; a proxy may be removing the header.",
            )
        return date

    def recent_time(self) -> datetime:
        """Return the store's clock by its last answer and the time since; it is asked if there was none yet."""
        if self._last_date is None:
            return self.server_time()
        date, at = self._last_date
        return date + timedelta(seconds=self._clock.monotonic() - at)

    def when_sent(self, path: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Call ``notify`` when a PUT to ``path`` is signed and about to go out; returns what undoes this."""

        def handler(request: Any, **_: Any) -> None:  # noqa: ANN401 - botocore's events have no types
            if request.url.partition("?")[0].endswith(path):
                notify()

        events = self._client.meta.events
        events.register("before-send.s3.PutObject", handler)
        return lambda: events.unregister("before-send.s3.PutObject", handler)

    @contextlib.contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Say errors of the library in the words of the catalogue; programming errors pass unchanged."""
        with _translation(action, self.location):
            yield

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _connect(self) -> Any:  # noqa: ANN401 - botocore's clients are made at run time
        with self.translated("open a session"):
            return _make_client(self.location)

    def _send(self, client: Any, operation: str, arguments: dict[str, Any]) -> Answer:  # noqa: ANN401 - see _connect
        answer: Answer = getattr(client, operation)(Bucket=self.location.bucket, **arguments)
        return answer

    def _renew(self, refused: Any) -> bool:  # noqa: ANN401 - see _connect
        """Ask the chain for credentials again; ``False`` if it has only those that were refused."""
        with self._renewing:
            if self._client is refused:
                fresh = self._connect()
                if _same_credentials(fresh, refused):
                    fresh.close()
                    return False
                self._client = fresh  # the old one is left to those that still use it
            return True


def _same_credentials(one: Any, other: Any) -> bool:  # noqa: ANN401 - botocore's clients are made at run time
    held = [client._request_signer._credentials for client in (one, other)]  # noqa: SLF001 - no public way to them
    if None in held:
        return held[0] is held[1]
    return bool(held[0].get_frozen_credentials() == held[1].get_frozen_credentials())


_loader: Final = Loader()
"""Reads descriptions of services once per process; credentials are looked for by a fresh session each time."""


def _make_client(location: S3Location) -> Any:  # noqa: ANN401 - botocore's clients are made at run time
    session = Session(profile=location.profile)
    session.register_component("data_loader", _loader)
    region = location.region or session.get_config_variable("region")
    ca_file = location.settings.ca_file or location.ca_file
    client = session.create_client(
        "s3",
        region_name=region or ("us-east-1" if location.endpoint else None),
        endpoint_url=location.endpoint,
        verify=str(ca_file) if ca_file else None,
        config=Config(
            connect_timeout=location.settings.connect_timeout.total_seconds(),
            read_timeout=location.settings.read_timeout.total_seconds(),
            retries={"total_max_attempts": 1, "mode": "standard"},  # retrying.py retries, with a budget
            signature_version="s3v4",
            s3={"addressing_style": "path" if location.path_style else "auto"},
            request_checksum_calculation=location.checksum.value,
            response_checksum_validation=location.checksum.value,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
        ),
    )
    if (location.endpoint or "https:").startswith("https:") and location.checksum is Checksum.WHEN_REQUIRED:
        client.meta.events.register("before-parameter-build.s3.PutObject", _sign_headers_only)
    return client


def _sign_headers_only(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - see above
    """Keep a body that was given no MD5 from being hashed to be signed, which TLS makes needless.

    botocore does the same by itself for a body with a checksum. One without is read back as a whole (``s3``).
    """
    if "ContentMD5" not in params:
        unsigned = Config(s3={**context["client_config"].s3, "payload_signing_enabled": False})
        context["client_config"] = context["client_config"].merge(unsigned)


def _date_in(answer: Answer) -> datetime | None:
    text = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None


_CREDENTIALS_HINT = (
    "Credentials come from the environment, a profile, a web identity or the role of the container or machine;"
    " they never stand in the url. docs/how-to/s3.md has each way."
)
_OWNER_HINT = (
    "Either this credential may not do that, or the bucket belongs to another account than expected_bucket_owner says."
)
_CA_HINT = (
    "If the store's certificate was signed by an authority of your own, name its certificate: `ca` in repository.store."
    " Otherwise somebody may stand in between. Verification cannot be switched off."
)


@contextlib.contextmanager
def _translation(action: str, location: S3Location) -> Iterator[None]:
    place = f"cannot {action} in {location.description}"
    try:
        yield
    except botocore_errors.ClientError as error:
        answer = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        reason = str(answer.get("Error", {}).get("Message") or "")
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        meaning = error_for(status=status, code=code, message=f"{place}: {status} {code} {reason}".rstrip())
        if isinstance(meaning, StoreDeniedError) and location.settings.bucket_owner and status == _FORBIDDEN:
            meaning.hint = _OWNER_HINT if meaning.hint == StoreDeniedError.hint else meaning.hint
        try:
            raise meaning from error
        finally:
            del meaning  # or error and frame hold each other, and the caller's body with them, until Python looks
    except botocore_errors.CredentialRetrievalError as error:
        # What the program or server said may hold a secret: only who it was is repeated.
        provider = error.kwargs.get("provider", "the chain of credentials")
        raise StoreDeniedError(
            f"{place}: no credentials could be had from {provider}", hint=_CREDENTIALS_HINT
        ) from None
    except (
        botocore_errors.NoCredentialsError,
        botocore_errors.PartialCredentialsError,
        botocore_errors.ProfileNotFound,
        botocore_errors.TokenRetrievalError,
    ) as error:
        raise StoreDeniedError(f"{place}: {error}", hint=_CREDENTIALS_HINT) from error
    except botocore_errors.NoRegionError as error:
        raise ObjectStoreError(f"{place}: no region is known", hint="Add ?region=... to repository.url.") from error
    except botocore_errors.SSLError as error:
        raise ObjectStoreError(f"{place}: {error}", hint=_CA_HINT) from error
    except botocore_errors.FlexibleChecksumError as error:
        raise DamagedObjectError(f"{place}: {error}") from error
    except (
        botocore_errors.ConnectionError,
        botocore_errors.HTTPClientError,
        botocore_errors.IncompleteReadError,
        ResponseParserError,
    ) as error:
        raise StoreUnreachableError(f"{place}: {error}") from error


_FORBIDDEN = 403
