from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drservice.errors import ConfigurationError, ObjectStoreError, StoreDeniedError
from drservice.objectstore.memory import MemoryStore
from drservice.objectstore.metered import MeteredStore, Operation
from drservice.objectstore.opening import _s3_location, open_store, open_store_readonly, prepare_location
from drservice.objectstore.s3answers import error_for


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/x",
        "ftp://host/x",
        "file://host/x",
        "file:relative",
        "file:///",
        "file:///a/../b",
        "file:///a?x=1",
        "s3:///prefix",
        "s3://key:secret@bucket/p",
        "s3://bucket/p p",
        "s3://bucket/../p",
        "s3://bucket/p?unknown=1",
        "s3://bucket/p?region=",
        "s3://bucket/p?region=a&region=b",
        "s3://bucket/p?path_style=maybe",
        "s3://bucket/p?checksum=never",
        "s3://bucket/p?endpoint=ftp://x",
        "s3://bucket/p?endpoint=localhost",
        "s3://bucket/p?ca=/no/such/file",
        "s3://bucket/p#fragment",
    ],
)
def test_a_bad_url_is_a_configuration_error_without_secrets(tmp_path: Path, url: str) -> None:
    for opener in (open_store, open_store_readonly):
        with pytest.raises(ConfigurationError) as caught:
            opener(url, lock_dir=tmp_path)
        assert "secret" not in str(caught.value)
        assert caught.value.hint


def test_a_directory_url_opens_a_directory(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/new%20place/repository"
    prepare_location(url)
    open_store(url, lock_dir=tmp_path).create("a/b", b"x")
    reading = open_store_readonly(url, lock_dir=tmp_path)
    assert reading.read("a/b") == b"x"
    assert not reading.capabilities.writable
    with pytest.raises(StoreDeniedError):
        reading.create("c", b"x")
    assert (tmp_path / "new place" / "repository" / "a" / "b").read_bytes() == b"x"


def test_defaults_differ_between_amazon_and_other_stores() -> None:
    amazon = _s3_location("s3://bucket/a/b/?region=eu-central-1")
    other = _s3_location("s3://bucket?endpoint=https%3A%2F%2Fs3.example.com")
    assert (amazon.prefix, amazon.path_style, amazon.checksum.value) == ("a/b", False, "when_supported")
    assert (other.prefix, other.path_style, other.checksum.value) == ("", True, "when_required")


@pytest.mark.parametrize(("url", "loaded"), [("file:///srv/repository", b"[]"), ("s3://bucket", b"['botocore']")])
def test_what_opening_will_load_can_be_loaded_before(url: str, loaded: bytes) -> None:
    program = (
        "import sys; from drservice.objectstore.opening import load_client;"
        f"load_client({url!r}); print([name for name in ('boto3', 'botocore') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert result.stdout.strip() == loaded


def test_opening_a_directory_loads_neither_boto3_nor_tenacity(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from drservice.objectstore.opening import open_store;"
        f"open_store('file://{tmp_path}', lock_dir=Path('/nowhere'));"
        "print([name for name in ('boto3', 'botocore', 'tenacity') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert result.stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", "DR502"),
        (404, "404", "DR502"),
        (404, "NoSuchBucket", "DR500"),
        (403, "AccessDenied", "DR504"),
        (403, "403", "DR504"),
        (400, "ExpiredToken", "DR504"),
        (403, "RequestTimeTooSkewed", "DR504"),
        (403, "QuotaExceeded", "DR505"),
        (507, "507", "DR505"),
        (412, "PreconditionFailed", "DR501"),
        (409, "ConditionalRequestConflict", "DR503"),
        (416, "InvalidRange", "DR411"),
        (503, "SlowDown", "DR507"),
        (500, "InternalError", "DR503"),
        (429, "429", "DR507"),
        (400, "RequestTimeout", "DR503"),
        (400, "BadDigest", "DR503"),
        (501, "NotImplemented", "DR500"),
        (301, "PermanentRedirect", "DR500"),
        (400, "InvalidArgument", "DR500"),
    ],
)
def test_every_answer_has_one_meaning(status: int, code: str, expected: str) -> None:
    assert error_for(status=status, code=code, message="m").code == expected


def test_the_meter_counts_calls_bytes_and_failures() -> None:
    store = MeteredStore(MemoryStore())
    store.create("a", [b"12", b"345"])
    store.create("b", b"")
    with pytest.raises(ObjectStoreError):
        store.create("a", b"9")
    store.read("a")
    list(store.list(""))
    usage = store.usage()
    create = usage[Operation.CREATE]
    assert (create.calls, create.failures, create.sent_bytes) == (3, 1, 5)
    assert (usage[Operation.READ].calls, usage[Operation.READ].received_bytes) == (1, 5)
    assert (usage[Operation.LIST].calls, usage[Operation.LIST].objects) == (1, 2)
    assert usage[Operation.DELETE].calls == 0
