"""Credentials come from the standard chain, each link of it tried on a server that checks signatures."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest

from drservice.errors import ExitStatus, StoreDeniedError
from drservice.objectstore.interface import Capabilities, CreateMode, ObjectStore
from drservice.objectstore.opening import _s3_location, open_store_readonly
from drservice.objectstore.retrying import RetryBudget, RetryingStore
from drservice.objectstore.s3 import S3Store
from tests.doubles.repositories import Site, noise
from tests.doubles.s3server import (
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    MotoBehaviour,
    MotoBuckets,
    S3Server,
    moto_server,
    rclone_server,
)
from tests.faults.faultproxy import Behaviour, FaultProxy, fault_proxy

TOKEN = "a-token-of-the-container"
BUDGET = RetryBudget(total_seconds=3, first_wait_seconds=0.01, longest_wait_seconds=0.05)


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("rclone") / "buckets"
    (folder / "bucket/p").mkdir(parents=True)
    (folder / "bucket/p/k").write_bytes(b"body")
    with rclone_server(folder) as server:
        yield server


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Have these AWS variables and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    nothing = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, {**kept, **nothing, **variables}, clear=True):
        yield


def read_through(server: S3Server, tmp_path: Path, options: str = "") -> bytes:
    """Open the bucket for reading and read an object: works only with the right signature."""
    url = f"s3://bucket/p?region={REGION}&endpoint={server.endpoint}{options}"
    store = open_store_readonly(url, lock_dir=tmp_path / "run", budget=BUDGET)
    try:
        return store.read("k")
    finally:
        store.close()


@contextmanager
def answering(answer: Callable[[str, Mapping[str, str]], str | None]) -> Iterator[str]:
    """Serve what ``answer`` makes of path and headers on loopback (``None``: 401); yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._serve()

        def _serve(self) -> None:
            text = answer(self.path, dict(self.headers.items()))
            body = (text or "").encode()
            self.send_response(401 if text is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def role_document(access: str, secret: str, *, lasts: timedelta) -> str:
    """Say credentials as the metadata endpoint of a container does."""
    ends = (datetime.now(UTC) + lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({"AccessKeyId": access, "SecretAccessKey": secret, "Token": "session", "Expiration": ends})


def credential_process(tmp_path: Path, *, code: str) -> Path:
    """Write an AWS configuration whose default profile asks a program."""
    program = tmp_path / "give-credentials"
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n")
    return config


def test_credentials_of_the_environment(rclone: S3Server, tmp_path: Path) -> None:
    with environment(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY):
        assert read_through(rclone, tmp_path) == b"body"


def test_wrong_credentials_are_denied_and_not_repeated(rclone: S3Server, tmp_path: Path) -> None:
    wrong = "x" * 40
    with (
        environment(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=wrong),
        pytest.raises(StoreDeniedError) as caught,
    ):
        read_through(rclone, tmp_path)
    assert wrong not in caught.value.message + caught.value.hint
    assert caught.value.exit_status is ExitStatus.NOT_AUTHORISED


def test_credentials_of_a_shared_file_and_of_a_profile_in_it(rclone: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    pair = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    file.write_text(f"[default]\n{pair}")
    with environment(AWS_SHARED_CREDENTIALS_FILE=str(file)):
        assert read_through(rclone, tmp_path) == b"body"
    file.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = wrong\n[backup]\n{pair}")
    with environment(AWS_SHARED_CREDENTIALS_FILE=str(file)):
        assert read_through(rclone, tmp_path, "&profile=backup") == b"body"
        with pytest.raises(StoreDeniedError, match="nobody"):
            read_through(rclone, tmp_path, "&profile=nobody")


def test_credentials_of_a_program(rclone: S3Server, tmp_path: Path) -> None:
    document = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY}
    config = credential_process(tmp_path, code=f"print({json.dumps(json.dumps(document))})")
    with environment(AWS_CONFIG_FILE=str(config)):
        assert read_through(rclone, tmp_path) == b"body"


def test_what_a_failing_program_says_is_not_repeated(rclone: S3Server, tmp_path: Path) -> None:
    config = credential_process(tmp_path, code="import sys\nprint('secret is hunter2', file=sys.stderr)\nsys.exit(1)")
    with environment(AWS_CONFIG_FILE=str(config)), pytest.raises(StoreDeniedError) as caught:
        read_through(rclone, tmp_path)
    shown = repr(caught.value) + caught.value.hint + repr(caught.value.__cause__)
    assert "hunter2" not in shown
    assert "custom-process" in caught.value.message


def test_credentials_of_a_container(rclone: S3Server, tmp_path: Path) -> None:
    def answer(path: str, headers: Mapping[str, str]) -> str | None:
        is_ours = path == "/creds" and headers.get("Authorization") == TOKEN
        return role_document(ACCESS_KEY, SECRET_KEY, lasts=timedelta(hours=1)) if is_ours else None

    with answering(answer) as address:
        variables = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{address}/creds"}
        with environment(**variables, AWS_CONTAINER_AUTHORIZATION_TOKEN=TOKEN):
            assert read_through(rclone, tmp_path) == b"body"


def test_credentials_by_web_identity(rclone: S3Server, tmp_path: Path) -> None:
    """The token of a file is exchanged at STS (moto); the session it gives is used for the bucket."""
    (tmp_path / "token").write_text("a.web.token")
    with (
        moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as moto,
        fault_proxy(moto.endpoint) as proxy,
        environment(
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
            AWS_ROLE_ARN="arn:aws:iam::123456789012:role/backup",
            AWS_ENDPOINT_URL_STS=moto.endpoint,
            AWS_DEFAULT_REGION=REGION,
        ),
    ):
        moto.make_bucket("bucket")
        moto.plant("bucket", "p/k", b"by web identity")
        asked: list[str] = []

        def remember(_method: str, _path: str, _number: int) -> Behaviour:
            asked.append(proxy.signed_by)
            return Behaviour.PASS

        proxy.reset(remember)
        url = f"s3://bucket/p?region={REGION}&endpoint={proxy.endpoint}"
        store = open_store_readonly(url, lock_dir=tmp_path / "run", budget=BUDGET)
        assert store.read("k") == b"by web identity"
        store.close()
        assert asked
        assert all(key.startswith("ASIA") for key in asked), "keys of a session that STS began"
    assert rclone.endpoint != moto.endpoint


def test_no_credentials_at_all_is_told_with_where_they_may_come_from(rclone: S3Server, tmp_path: Path) -> None:
    with environment(), pytest.raises(StoreDeniedError) as caught:
        read_through(rclone, tmp_path)
    assert "docs/how-to/s3.md" in caught.value.hint


# --- credentials that run out -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    """A proxy before moto, which takes any signature: who signed is what the proxy looks at."""
    with moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as server, fault_proxy(server.endpoint) as made:
        server.make_bucket("expiring")
        yield made


def store_through(proxy: FaultProxy, tmp_path: Path, prefix: str) -> ObjectStore:
    location = _s3_location(f"s3://expiring/{prefix}?region={REGION}&endpoint={proxy.endpoint}")
    capabilities = Capabilities(create_mode=CreateMode.CONDITIONAL, versioned=False, writable=True)
    return RetryingStore(S3Store(location, capabilities=capabilities, lock_folder=tmp_path), budget=BUDGET)


def expired_after(proxy: FaultProxy, puts: int) -> Callable[[str, str, int], Behaviour]:
    """Refuse the first key once it has signed so many PUTs."""
    seen = [0]

    def decide(method: str, _path: str, _number: int) -> Behaviour:
        if proxy.signed_by != "FIRST":
            return Behaviour.PASS
        seen[0] += method == "PUT"
        return Behaviour.EXPIRED if seen[0] > puts else Behaviour.PASS

    return decide


def test_credentials_that_expire_in_the_middle_of_a_backup_are_asked_for_again(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    given: list[str] = []

    def answer(_path: str, _headers: Mapping[str, str]) -> str:
        given.append("FIRST" if not given else "SECOND")
        return role_document(given[-1], "secret", lasts=timedelta(hours=6))

    with answering(answer) as address, environment(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{address}/creds"):
        proxy.reset(lambda _method, _path, _number: Behaviour.PASS)
        site = Site.create(tmp_path, store=store_through(proxy, tmp_path, "renewed"))
        site.write({f"base/{number}": noise(2 << 20, number) for number in range(3)})
        proxy.reset(expired_after(proxy, 2))
        record = site.capture()
        assert proxy.did[Behaviour.EXPIRED] >= 1
        assert given == ["FIRST", "SECOND"]
        assert site.restore(record.id, tmp_path / "out")["base/1"] == noise(2 << 20, 1)


def test_credentials_are_renewed_before_they_expire(proxy: FaultProxy, tmp_path: Path) -> None:
    given: list[str] = []

    def answer(_path: str, _headers: Mapping[str, str]) -> str:
        given.append(f"KEY{len(given)}")
        return role_document(given[-1], "secret", lasts=timedelta(minutes=5 if len(given) == 1 else 300))

    signed: set[str] = set()

    def remember(_method: str, _path: str, _number: int) -> Behaviour:
        signed.add(proxy.signed_by)
        return Behaviour.PASS

    with answering(answer) as address, environment(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{address}/creds"):
        proxy.reset(remember)
        store = store_through(proxy, tmp_path, "early")
        store.create("a", b"1")
        store.create("b", b"2")
        store.close()
    assert "KEY1" in signed, "credentials with five minutes left are exchanged before they are needed"


def test_a_file_of_credentials_that_was_exchanged_is_read_again(proxy: FaultProxy, tmp_path: Path) -> None:
    file = tmp_path / "credentials"

    def write(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\naws_session_token=t\n")

    write("FIRST")
    with environment(AWS_SHARED_CREDENTIALS_FILE=str(file)):
        proxy.reset(expired_after(proxy, 1))
        store = store_through(proxy, tmp_path, "exchanged")
        store.create("a", b"1")
        write("SECOND")
        store.create("b", [b"2", b"3"])
        assert store.read("b") == b"23"
        store.close()
    assert proxy.did[Behaviour.EXPIRED] == 1


def test_credentials_that_cannot_be_renewed_are_told_as_expired(proxy: FaultProxy, tmp_path: Path) -> None:
    with environment(AWS_ACCESS_KEY_ID="FIRST", AWS_SECRET_ACCESS_KEY="hunter2", AWS_SESSION_TOKEN="hunter3"):
        proxy.reset(expired_after(proxy, 0))
        store = store_through(proxy, tmp_path, "static")
        with pytest.raises(StoreDeniedError, match="ExpiredToken") as caught:
            store.create("a", b"1")
        store.close()
    assert "run out" in caught.value.hint
    assert "hunter" not in caught.value.message + caught.value.hint
    assert proxy.did[Behaviour.EXPIRED] == 1, "a refusal is not repeated"


def test_a_clock_that_is_wrong_is_told_as_that(proxy: FaultProxy, tmp_path: Path) -> None:
    with environment(AWS_ACCESS_KEY_ID="ANY", AWS_SECRET_ACCESS_KEY="s"):
        proxy.reset(lambda _method, _path, _number: Behaviour.SKEWED)
        store = store_through(proxy, tmp_path, "skewed")
        with pytest.raises(StoreDeniedError, match="RequestTimeTooSkewed") as caught:
            store.create("a", b"1")
        store.close()
    assert "clock" in caught.value.hint
    assert proxy.did[Behaviour.SKEWED] == 1
