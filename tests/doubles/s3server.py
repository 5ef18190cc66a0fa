"""Real S3 servers on loopback for tests.

``rclone serve s3`` is a program of its own on a temporary directory: it ignores ``If-None-Match``, so it stands
for the weakest stores. moto runs in a thread of this process behind a small gate that makes it stricter or
weaker than it is (see :class:`MotoBehaviour`).

    with rclone_server(folder) as server:
        url = server.url_for("bucket", "prefix")      # the bucket exists now
        with server.credentials(): ...                # AWS_* variables for this process

Everything is ended by its own handle.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, urlencode

import boto3
from botocore.config import Config

ACCESS_KEY = "AKIAIOSFODNN7TESTING"
SECRET_KEY = "wJalrXUtnFEMI7K7MDENGbPxRfiCYTESTINGKEY0"  # 20 and 40 characters: servers check the lengths
REGION = "us-east-1"
_READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running server.

    Args:
        endpoint: its address.
        make_bucket: makes a bucket unless it exists; called by :meth:`url_for`.
        plant: stores an object behind the store's back: (bucket, full key, body).
    """

    endpoint: str
    make_bucket: Callable[[str], None]
    plant: Callable[[str, str, bytes], None]
    environment: Mapping[str, str] = field(
        default_factory=lambda: {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
    )
    """What a process needs to use the server through the standard chain of credentials."""

    def url_for(self, bucket: str, prefix: str = "", **options: str) -> str:
        """Return a repository url; the bucket exists afterwards."""
        self.make_bucket(bucket)
        query = "".join(f"&{name}={quote(value, safe='')}" for name, value in options.items())
        return f"s3://{bucket}/{prefix}?region={REGION}&endpoint={quote(self.endpoint, safe='')}{query}"

    @contextlib.contextmanager
    def credentials(self) -> Iterator[None]:
        """Set the variables in this process for a while."""
        with mock.patch.dict(os.environ, self.environment):
            yield


# --- rclone ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rclone_server(
    folder: Path,
    *,
    keys: str = f"{ACCESS_KEY},{SECRET_KEY}",
    tls: tuple[Path, Path] | None = None,
    tells_md5: bool = True,
) -> Iterator[S3Server]:
    """Run ``rclone serve s3`` on ``folder``; a bucket is a directory in it.

    Args:
        folder: is made if it is not there.
        keys: access and secret key that requests must be signed with.
        tls: files with certificate and key; buckets must be there as directories then.
        tells_md5: the ETag of an object is its MD5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = folder.parent / f"{folder.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                Path(sys.executable).parent / "rclone",
                "serve",
                "s3",
                f"--addr=127.0.0.1:{port}",
                f"--auth-key={keys}",
                "--vfs-cache-mode=off",
                "--dir-cache-time=100ms",  # planted files show soon; at 0 rclone spins and takes seconds a call
                "--config=/dev/null",
                *([f"--cert={tls[0]}", f"--key={tls[1]}"] if tls is not None else []),
                *([] if tells_md5 else ["--etag-hash="]),
                str(folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_it_answers(port, is_alive=lambda: process.poll() is None, log=log)
        yield S3Server(
            endpoint=f"http{'s' if tls is not None else ''}://127.0.0.1:{port}",
            make_bucket=lambda bucket: _make_bucket(f"http://127.0.0.1:{port}", folder, bucket),
            plant=lambda bucket, key, body: _plant_file(folder / bucket / key, body),
        )
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _make_bucket(endpoint: str, folder: Path, bucket: str) -> None:
    """Make a bucket through the server: rclone sees a directory made behind its back only later."""
    if (folder / bucket).is_dir():
        return
    client = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION).client(
        "s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"})
    )
    with contextlib.closing(client):
        client.create_bucket(Bucket=bucket)


def _plant_file(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


# --- moto -----------------------------------------------------------------------------------------------


class MotoBehaviour(Enum):
    """What the gate makes of moto."""

    CONDITIONAL = auto()
    """Honours ``If-None-Match``, also in a race (moto alone looks and stores in two steps)."""

    IGNORES_CONDITIONS = auto()
    """Drops ``If-None-Match`` without a word, as some gateways do."""

    REFUSES_CONDITIONS = auto()
    """Answers 501 to ``If-None-Match``."""

    CHECKS_EARLY = auto()
    """Looks for the key when the request begins, not when the object is linked: two writers can win."""

    ORDERS_BY_BEGINNING = auto()
    """Drops ``If-None-Match`` and orders versions by when their upload began, not by when it ended."""


class MotoBuckets(Enum):
    """What buckets are made like."""

    PLAIN = auto()
    VERSIONED = auto()
    LOCKING = auto()
    """With versions and Object Lock; moto keeps the dates and lets nobody delete, but lets anybody shorten them."""


@contextlib.contextmanager
def moto_server(behaviour: MotoBehaviour, buckets: MotoBuckets) -> Iterator[S3Server]:
    """Run moto in a thread of this process, one request after the other behind the gate."""
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415 - a second to load, only where it is used
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server  # noqa: PLC0415 - as above

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    gate = _Gate(DomainDispatcherApplication(create_backend_app), behaviour)
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    made: set[str] = set()

    def make_bucket(bucket: str) -> None:
        made.add(bucket)
        _make_moto_bucket(bucket, buckets)

    try:
        _wait_until_it_answers(server.server_port, is_alive=thread.is_alive, log=None)
        yield S3Server(
            endpoint=f"http://127.0.0.1:{server.server_port}",
            make_bucket=make_bucket,
            plant=lambda bucket, key, body: _moto_backend().put_object(bucket, key, body),
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        _forget_moto_buckets(made)


def _forget_moto_buckets(names: set[str]) -> None:
    """Let go of every object that was ever in these buckets: moto keeps them, deleted ones too, as long as it lives."""
    from moto.s3.models import FakeKey, s3_backends  # noqa: PLC0415 - a second to load, only where it is used

    for name in names:
        _moto_backend().buckets.pop(name, None)
        s3_backends.bucket_accounts.pop(name, None)
    objects: Any = FakeKey
    for key in objects.instances_tracked:
        if key.bucket_name in names:
            key.dispose()
    objects.instances_tracked = [key for key in objects.instances_tracked if key.bucket_name not in names]


def _moto_backend() -> Any:
    from moto.core.models import DEFAULT_ACCOUNT_ID  # noqa: PLC0415 - a second to load, only where it is used
    from moto.s3.models import s3_backends  # noqa: PLC0415 - as above

    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


def _make_moto_bucket(bucket: str, buckets: MotoBuckets) -> None:
    backend = _moto_backend()
    if bucket in backend.buckets:
        return
    backend.create_bucket(bucket, REGION)
    if buckets is MotoBuckets.VERSIONED:
        backend.put_bucket_versioning(bucket, "Enabled")
    if buckets is MotoBuckets.LOCKING:
        made = backend.buckets[bucket]
        made.object_lock_enabled, made.versioning_status = True, "Enabled"


class _Gate:
    """WSGI middleware: takes a whole request, then lets moto handle one at a time.

    Taking the whole body first makes "when the object is linked" the end of the upload, as in a real store.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], behaviour: MotoBehaviour) -> None:
        self._app = app
        self._behaviour = behaviour
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        began_at = datetime.now(UTC).replace(tzinfo=None)
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        is_put = environ["REQUEST_METHOD"] == "PUT" and bool(key)
        was_taken = is_put and _moto_backend().get_object(bucket, key) is not None
        condition = environ.get("HTTP_IF_NONE_MATCH")
        if is_put and condition is not None and self._behaviour is not MotoBehaviour.CONDITIONAL:
            if self._behaviour is MotoBehaviour.REFUSES_CONDITIONS:
                return _refuse(environ, start_response, "501 Not Implemented", "NotImplemented")
            if self._behaviour is MotoBehaviour.CHECKS_EARLY and was_taken:
                return _refuse(environ, start_response, "412 Precondition Failed", "PreconditionFailed")
            del environ["HTTP_IF_NONE_MATCH"]
        if "versions" in parse_qs(environ["QUERY_STRING"], keep_blank_values=True):
            environ["QUERY_STRING"] = _mend_marker(bucket, environ["QUERY_STRING"])
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        if len(body) < length:
            return _refuse(environ, start_response, "400 Bad Request", "IncompleteBody")
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            answer = [b"".join(self._app(environ, start_response))]
            if is_put and self._behaviour is MotoBehaviour.ORDERS_BY_BEGINNING:
                versions = _moto_backend().buckets[bucket].keys.getlist(key)
                versions[-1].last_modified = began_at
            return answer


def _mend_marker(bucket: str, query: str) -> str:
    """Replace a ``key-marker`` that is no key by the greatest key before it.

    moto passes over the first key behind such a marker as well; S3 begins with it (ListObjectVersions).
    """
    options = parse_qs(query, keep_blank_values=True)
    if "key-marker" in options and "version-id-marker" not in options:
        before = [name for name in _moto_backend().buckets[bucket].keys if name <= options["key-marker"][0]]
        del options["key-marker"]
        if before:
            options["key-marker"] = [max(before)]
    return urlencode(options, doseq=True)


def _refuse(environ: dict[str, Any], start_response: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = f"<Error><Code>{code}</Code><Message>refused by the gate</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


# --- waiting --------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(port: int, *, is_alive: Callable[[], bool], log: Path | None) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            if not is_alive():
                break
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    output = log.read_text(errors="replace")[-2000:] if log is not None else ""
    raise AssertionError(f"the server on port {port} does not answer\n{output}")
