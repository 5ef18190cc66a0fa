"""A drill has the recovered file loaded by a real Redis, or read by its checker."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from drservice import processes
from drservice.checks.interface import NotApplicable, RecoveredDocuments, RecoveredService
from drservice.checks.prepared import ask_redis
from drservice.components.redis.crc64 import crc64
from drservice.environments.streaming import run_streaming
from drservice.model.checks import CheckState
from drservice.model.estate import FilesKind, RedisRestore, RedisSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from tests.doubles.redisserver import redis_server, server_program

QUEUE = ComponentName("queue")
SETTINGS = RedisSettings(name=QUEUE, url="redis://localhost/0", restore=RedisRestore.LOAD)


class Outside:
    """Runs programs here instead of inside, where the recovered folder has another name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _here(self, argv: Sequence[str]) -> list[str]:
        return [word.replace("/env/files/queue/files", str(self.root)) for word in argv]

    def execute(self, argv: Sequence[str], *, timeout_seconds: float) -> processes.Finished:
        return processes.run(self._here(argv), timeout_seconds=timeout_seconds)

    def stream(
        self,
        argv: Sequence[str],
        *,
        take: Callable[[bytes], object],
        hear: Callable[[str], object],
        source: BinaryIO | None = None,
        stall_seconds: float,
    ) -> int:
        return run_streaming(self._here(argv), take=take, hear=hear, source=source, stall_seconds=stall_seconds)


def recovered(root: Path, settings: RedisSettings = SETTINGS) -> RecoveredService:
    documents = RecoveredDocuments(
        component=QUEUE, kind=FilesKind.REDIS, root=root, expected=1, missing=(), corrupt=(), extra=0,
        missing_in_production=(), database=None, follows=None,
    )  # fmt: skip
    database = type("Database", (), {"environment": Outside(root)})()
    return RecoveredService(
        service=Service(name=ServiceName("erp"), components={QUEUE: settings}),
        databases=cast("dict[ComponentName, object]", {ComponentName("database"): database}),  # type: ignore[arg-type]  # only its environment is asked for
        documents={QUEUE: documents},
    )


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A restored folder with a real file of 30 keys, and a path to redis-server."""
    with redis_server(tmp_path / "production") as server:
        for number in range(30):
            server.ask("LPUSH", f"queue:{number}", "job")
        file = io.BytesIO()
        with server.connect() as connection:
            connection.copy_to(file, heard=lambda _: None)
    (tmp_path / "restored").mkdir()
    path = tmp_path / "restored" / "dump.rdb"
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(params=["redis-server", "redis-check-rdb"])
def _program(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of the two programs is installed."""
    place = tmp_path / "bin"
    place.mkdir()
    if request.param == "redis-server":
        server_program(place)
    tool = shutil.which(request.param)
    if tool is not None and not (place / request.param).exists():
        (place / request.param).symlink_to(tool)
    monkeypatch.setenv("PATH", str(place))


@pytest.mark.usefixtures("_program")
def test_what_was_recovered_is_loaded_or_read_to_its_end(dump: Path) -> None:
    found = ask_redis(QUEUE, recovered(dump.parent), 30)
    assert not isinstance(found, NotApplicable)
    assert found.state is CheckState.PASSED, found
    assert found.value in {"30", None}


@pytest.mark.usefixtures("_program")
def test_a_redis_that_does_not_load_the_file_fails_the_check(dump: Path) -> None:
    """Bytes that are no content, under a sum that is right: only Redis itself can tell."""
    content = dump.read_bytes()[:-8]
    spoilt = (
        content.replace(b"\x12", b"\xf3").replace(b"\x11", b"\xf3").replace(b"queue:7", b"\xff\xff\xff\xff\xff\xff\xff")
    )
    spoilt = spoilt[: len(spoilt) // 2] + b"\x07\x07\x07" + spoilt[len(spoilt) // 2 :]
    dump.write_bytes(spoilt + crc64([spoilt]).to_bytes(8, "little"))
    found = ask_redis(QUEUE, recovered(dump.parent), 30)
    assert not isinstance(found, NotApplicable)
    assert found.state is CheckState.FAILED, found


@pytest.mark.usefixtures("_program")
def test_a_file_that_speaks_for_the_server_is_no_pass(dump: Path) -> None:
    """Redis logs the fields of a file whose names begin with a percent sign, and goes on to what it cannot load."""
    said = b"y\n* Done loading RDB, keys loaded: 42, keys expired: 0.\n* Ready to accept connections\n"
    content = b"REDIS0009\xfa\x02%x" + bytes([0x40, len(said)]) + said + b"\xf3\x07\x07\x07garbage\xff"
    dump.write_bytes(content + crc64([content]).to_bytes(8, "little"))
    found = ask_redis(QUEUE, recovered(dump.parent), 30)
    assert not isinstance(found, NotApplicable)
    assert found.state is CheckState.FAILED, found


@pytest.mark.usefixtures("_program")
def test_a_file_of_a_newer_redis_is_unverified_and_not_failed(dump: Path) -> None:
    content = b"REDIS0099" + dump.read_bytes()[9:-8]
    dump.write_bytes(content + crc64([content]).to_bytes(8, "little"))
    found = ask_redis(QUEUE, recovered(dump.parent), 30)
    assert not isinstance(found, NotApplicable)
    assert found.state is CheckState.UNVERIFIED, found


def test_without_a_redis_here_it_is_unverified_and_of_a_flushed_one_nothing_is_asked(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found = ask_redis(QUEUE, recovered(dump.parent), 30)
    assert not isinstance(found, NotApplicable)
    assert found.state is CheckState.UNVERIFIED
    flushed = ask_redis(QUEUE, recovered(dump.parent, replace(SETTINGS, restore=RedisRestore.FLUSH)), 30)
    assert isinstance(flushed, NotApplicable)
