"""From an address to a store: parses the url, probes what the store can do, remembers it for a day.

``file:///srv/drservice/repository`` is a directory. ``s3://bucket/prefix`` is a bucket, with these options
after ``?``: ``region``, ``endpoint`` (an http or https address), ``ca`` (a file with certificates),
``path_style=true|false``, ``checksum=when_required|when_supported`` and ``profile`` (of the AWS configuration).
Opening a directory loads neither botocore nor tenacity, because ``wal push`` starts for every segment.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from drservice.clock import Clock, SystemClock, from_iso, to_iso
from drservice.errors import ConfigurationError, StoreDeniedError
from drservice.model.storing import NO_SETTINGS, StoreSettings
from drservice.objectstore.directory import DirectoryStore, make_directory
from drservice.objectstore.interface import Capabilities, CreateMode, ObjectStore
from drservice.objectstore.keys import is_key
from drservice.objectstore.readonly import ReadOnlyStore
from drservice.processes import create_private

if TYPE_CHECKING:
    from drservice.objectstore.retrying import RetryBudget, RetryingStore
    from drservice.objectstore.s3 import S3Store
    from drservice.objectstore.s3client import S3Location

PROBE_MAX_AGE = timedelta(hours=24)
_PROBE_VERSION = 2
_S3_OPTIONS = ("region", "endpoint", "ca", "path_style", "checksum", "profile")
_URL_HINT = (
    "repository.url is file:///path or s3://bucket/prefix?region=...&endpoint=https://..."
    " (options: region, endpoint, ca, path_style, checksum, profile)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The remembered outcome of a probe."""

    capabilities: Capabilities
    probed_at: datetime


def open_store(
    url: str,
    *,
    lock_dir: Path,
    settings: StoreSettings = NO_SETTINGS,
    probe_max_age: timedelta = PROBE_MAX_AGE,
    budget: RetryBudget | None = None,
    clock: Clock | None = None,
) -> ObjectStore:
    """Open a store for writing; one that may not be written opens for reading, and its capabilities say so.

    Args:
        url: see the module.
        lock_dir: a folder of this host for locks among writers and for the outcome of the probe.
        settings: how a bucket is reached and what it is asked for.
        probe_max_age: how old a remembered probe may be; ``timedelta(0)`` probes now.
        budget: how long passing faults of a remote store are waited out; by default as ``settings`` say.
        clock: for tests.

    Raises:
        ConfigurationError: the url makes no sense.
        StoreUnreachableError, StoreDeniedError, ObjectStoreError: the store cannot be used.
    """
    if (root := _directory_of(url)) is not None:
        return DirectoryStore(root)
    location = _s3_location(url, settings)
    return _open_s3(location, lock_dir=lock_dir, max_age=probe_max_age, budget=budget, clock=clock or SystemClock())


def open_store_readonly(
    url: str,
    *,
    lock_dir: Path,
    settings: StoreSettings = NO_SETTINGS,
    budget: RetryBudget | None = None,
    clock: Clock | None = None,
) -> ObjectStore:
    """Open a store for reading: nothing is written, not even a probe, and writes are refused.

    Raises:
        ConfigurationError: the url makes no sense.
        StoreUnreachableError, StoreDeniedError, ObjectStoreError: the store cannot be used.
    """
    if (root := _directory_of(url)) is not None:
        return ReadOnlyStore(DirectoryStore(root))
    location = _s3_location(url, settings)
    return _open_s3_readonly(location, lock_dir=lock_dir, budget=budget, clock=clock or SystemClock())


def load_client(url: str) -> None:
    """Load the modules that opening a store loads when it is opened: processes forked from here need not do it again.

    Raises:
        ConfigurationError: the url makes no sense.
    """
    if _directory_of(url) is None:
        for name in ("probing", "retrying", "s3"):
            import_module(f"drservice.objectstore.{name}")


def prepare_location(url: str) -> None:
    """Make the directory of a new repository; a bucket must exist already.

    Raises:
        ConfigurationError, StoreDeniedError, StoreFullError, ObjectStoreError.
    """
    if (root := _directory_of(url)) is not None:
        make_directory(root)


# --- addresses ------------------------------------------------------------------------------------------


def _directory_of(url: str) -> Path | None:
    """Return the directory of a ``file`` url, ``None`` for an ``s3`` url."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"repository.url is not a url: {error}", hint=_URL_HINT) from error
    if parts.scheme == "s3":
        return None
    if parts.scheme != "file":
        raise ConfigurationError(f"repository.url has the scheme {parts.scheme!r}", hint=_URL_HINT)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or path == Path("/"):
        raise ConfigurationError("a directory's url is file:// with the absolute path of a directory", hint=_URL_HINT)
    if parts.query or parts.fragment or "\0" in str(path) or ".." in path.parts:
        raise ConfigurationError("a directory's url has a path and nothing else", hint=_URL_HINT)
    return path


def _s3_location(url: str, settings: StoreSettings = NO_SETTINGS) -> S3Location:
    from drservice.objectstore.s3client import Checksum, S3Location  # noqa: PLC0415 - botocore takes 0.15 s to load

    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "credentials do not belong into repository.url", hint="Use a profile or the environment."
        )
    prefix = parts.path.strip("/")
    if not parts.netloc or ":" in parts.netloc or parts.fragment:
        raise ConfigurationError("an S3 url names a bucket: s3://bucket/prefix", hint=_URL_HINT)
    if prefix and (not is_key(prefix) or len(prefix) > 200):
        raise ConfigurationError(
            f"{prefix!r} cannot be the prefix of a repository: letters, digits, '.', '_', '-' and '/' only",
            hint=_URL_HINT,
        )
    options = _options(parts.query)
    endpoint = options.get("endpoint")
    if endpoint is not None and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise ConfigurationError("endpoint is an http:// or https:// address", hint=_URL_HINT)
    ca_file = Path(options["ca"]) if "ca" in options else settings.ca_file
    if ca_file is not None:
        _require_certificates(ca_file)
    # Other stores than Amazon's may not know the newer checksum headers and seldom have a name per bucket.
    checksum = options.get("checksum", "when_supported" if endpoint is None else "when_required")
    if checksum not in {choice.value for choice in Checksum}:
        raise ConfigurationError("checksum is when_required or when_supported", hint=_URL_HINT)
    path_style = options.get("path_style", "false" if endpoint is None else "true")
    if path_style not in ("true", "false"):
        raise ConfigurationError("path_style is true or false", hint=_URL_HINT)
    return S3Location(
        bucket=parts.netloc,
        prefix=prefix,
        region=options.get("region"),
        endpoint=endpoint,
        ca_file=ca_file,
        path_style=path_style == "true",
        checksum=Checksum(checksum),
        profile=options.get("profile"),
        settings=settings,
    )


def _require_certificates(ca_file: Path) -> None:
    import ssl  # noqa: PLC0415 - 10 ms that a directory repository must not pay at every segment

    where = "the certificates to trust: ca= in repository.url, or repository.store.ca"
    hint = "Name a file with the certificate of the authority that signed the store's, in PEM."
    if not ca_file.is_file():
        raise ConfigurationError(f"there is no file {ca_file} ({where})", hint=hint)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"{ca_file} holds no certificates that can be read ({where})", hint=hint) from error


def _options(query: str) -> dict[str, str]:
    try:
        given = parse_qs(query, keep_blank_values=True, strict_parsing=True) if query else {}
    except ValueError as error:
        raise ConfigurationError("the options of repository.url cannot be read", hint=_URL_HINT) from error
    for name, values in given.items():
        if name not in _S3_OPTIONS:
            raise ConfigurationError(f"repository.url has an unknown option {name!r}", hint=_URL_HINT)
        if len(values) != 1 or not values[0]:
            raise ConfigurationError(f"the option {name} of repository.url needs one value", hint=_URL_HINT)
    return {name: values[0] for name, values in given.items()}


# --- S3 -------------------------------------------------------------------------------------------------


def _open_s3(
    location: S3Location, *, lock_dir: Path, max_age: timedelta, budget: RetryBudget | None, clock: Clock
) -> ObjectStore:
    # botocore takes 0.15 s to load; a directory repository must not pay for it at every segment.
    from drservice.objectstore import probing  # noqa: PLC0415 - see above
    from drservice.objectstore.retrying import RetryBudget, RetryingStore, repeat  # noqa: PLC0415 - see above

    budget = budget or RetryBudget(total_seconds=location.settings.retry_for.total_seconds())
    memory = _memory_of(location, lock_dir)
    remembered = _recall(memory, location, now=clock.now(), max_age=max_age)
    if remembered is None:
        novice = _s3_store(location, probing.capabilities_for_reading(versioned=False), lock_dir=lock_dir, clock=clock)
        try:
            capabilities = repeat(
                lambda: probing.probe(novice, clock=clock),
                action=f"probe {location.description}",
                budget=budget,
                clock=clock,
            )
        finally:
            novice.close()
        if capabilities.writable:
            # A refusal is not remembered: once the rights are mended, the next start must see it.
            capabilities = _remember(memory, Probed(capabilities=capabilities, probed_at=clock.now()), location)
    else:
        capabilities = remembered.capabilities
    capabilities = _with_transport_warning(location, capabilities)
    store = RetryingStore(_s3_store(location, capabilities, lock_dir=lock_dir, clock=clock), budget=budget, clock=clock)
    if location.settings.lock is not None and capabilities.lock is None:
        return ReadOnlyStore(store, reason=capabilities.warnings[0])  # what is not locked is not written
    return store


def open_s3(url: str, *, lock_dir: Path, settings: StoreSettings, clock: Clock) -> RetryingStore | None:
    """Open a bucket for writing, without what keeps its own nature hidden; ``None`` for a directory.

    Raises:
        StoreDeniedError: it opens for reading only.
        ConfigurationError, StoreUnreachableError, ObjectStoreError: it cannot be used.
    """
    from drservice.objectstore.retrying import RetryingStore  # noqa: PLC0415 - see _open_s3

    if _directory_of(url) is not None:
        return None
    location = _s3_location(url, settings)
    store = _open_s3(location, lock_dir=lock_dir, max_age=PROBE_MAX_AGE, budget=None, clock=clock)
    if isinstance(store, RetryingStore) and store.capabilities.writable:
        return store
    store.close()
    raise StoreDeniedError(f"{location.description} opens for reading only", hint=" ".join(store.capabilities.warnings))


def _open_s3_readonly(location: S3Location, *, lock_dir: Path, budget: RetryBudget | None, clock: Clock) -> ObjectStore:
    # botocore takes 0.15 s to load; a directory repository must not pay for it.
    from drservice.objectstore import probing  # noqa: PLC0415 - see above
    from drservice.objectstore.retrying import RetryBudget, RetryingStore, repeat  # noqa: PLC0415 - see above

    budget = budget or RetryBudget(total_seconds=location.settings.retry_for.total_seconds())
    novice = _s3_store(location, probing.capabilities_for_reading(versioned=False), lock_dir=lock_dir, clock=clock)

    def ask() -> bool:
        novice.require_bucket()
        probing.require_owner(novice)
        return novice.is_versioned()

    try:
        versioned = repeat(ask, action=f"open {location.description}", budget=budget, clock=clock)
    finally:
        novice.close()
    capabilities = _with_transport_warning(location, probing.capabilities_for_reading(versioned=versioned))
    store = _s3_store(location, capabilities, lock_dir=lock_dir, clock=clock)
    return ReadOnlyStore(RetryingStore(store, budget=budget, clock=clock))


def _s3_store(location: S3Location, capabilities: Capabilities, *, lock_dir: Path, clock: Clock) -> S3Store:
    from drservice.objectstore.s3 import S3Store  # noqa: PLC0415 - botocore takes 0.15 s to load

    return S3Store(location, capabilities=capabilities, lock_folder=lock_dir / "single-writer", clock=clock)


def _with_transport_warning(location: S3Location, capabilities: Capabilities) -> Capabilities:
    endpoint = urlsplit(location.endpoint or "https://")
    if endpoint.scheme == "https":
        return capabilities
    warning = (
        f"The store is reached over http ({endpoint.netloc}): objects are encrypted, but anybody on the"
        " network can see, hold back and replay requests. Use https."
    )
    return replace(capabilities, warnings=(*capabilities.warnings, warning))


# --- remembering ----------------------------------------------------------------------------------------


def _memory_of(location: S3Location, lock_dir: Path) -> Path:
    return lock_dir / f"probe-{hashlib.sha256(location.description.encode()).hexdigest()[:24]}.json"


def _asked_for(location: S3Location) -> str:
    """Return what of the settings an outcome depends on: another wish is probed anew."""
    lock = location.settings.lock
    asked = f"lock {lock.mode.value} {lock.days}" if lock is not None else "no lock"
    return f"{asked}, owner {location.settings.bucket_owner}"


def _recall(memory: Path, location: S3Location, *, now: datetime, max_age: timedelta) -> Probed | None:
    """Return the remembered outcome, or ``None`` when there is none that may be relied on.

    A file that cannot be read or understood is as good as none: the store is asked again.
    """
    try:
        record = json.loads(memory.read_bytes())
        probed = Probed(
            probed_at=from_iso(record["probed_at"]),
            capabilities=Capabilities(
                create_mode=CreateMode(record["create_mode"]),
                versioned=record["versioned"] is True,
                writable=True,
                warnings=tuple(str(warning) for warning in record["warnings"]),
                lock=location.settings.lock,  # an outcome without it opens for reading and is not kept
            ),
        )
        is_ours = (record["version"], record["url"], record["asked_for"]) == (
            _PROBE_VERSION,
            location.description,
            _asked_for(location),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A time in the future comes from a clock that was set back since; it proves no age.
    return probed if is_ours and timedelta(0) <= now - probed.probed_at < max_age else None


def _remember(memory: Path, probed: Probed, location: S3Location) -> Capabilities:
    """Keep the outcome for other processes; where that fails, the capabilities say so."""
    capabilities = probed.capabilities
    record = {
        "version": _PROBE_VERSION,
        "url": location.description,
        "asked_for": _asked_for(location),
        "probed_at": to_iso(probed.probed_at),
        "create_mode": capabilities.create_mode.value,
        "versioned": capabilities.versioned,
        "warnings": list(capabilities.warnings),
    }
    temporary = memory.with_name(f"{memory.name}.{secrets.token_hex(6)}")
    try:
        memory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with os.fdopen(create_private(temporary, 0o644), "w", encoding="utf-8") as stream:
            stream.write(json.dumps(record))
        temporary.replace(memory)
    except OSError as error:
        warning = (
            f"The outcome of the probe cannot be kept in {memory.parent} ({error.strerror}):"
            " every start of drservice probes the store again, which takes seconds."
        )
        return replace(capabilities, warnings=(*capabilities.warnings, warning))
    return capabilities
