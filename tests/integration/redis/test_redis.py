"""The content of a real Redis is taken as a replica takes it, compared with its sum, and loaded by another one."""

from __future__ import annotations

import io
import itertools
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.components.redis.client import RedisServer
from drservice.components.redis.rdb import check_rdb
from drservice.credentials import Secret
from drservice.errors import RedisDumpError, RedisError, RedisUnreachableError
from drservice.model.estate import Objectives, RedisRestore, RedisSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.healthprepared import check_redis
from tests.doubles.redisserver import PASSWORD, LocalRedis, redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRedis]:
    with redis_server(tmp_path_factory.mktemp("redis") / "data", password=PASSWORD) as running:
        for number in range(200):
            running.ask("SET", f"session:{number}", "x" * number)
        yield running


def copied(server: LocalRedis) -> bytes:
    file = io.BytesIO()
    heard: list[int] = []
    with server.connect() as connection:
        length = connection.copy_to(file, heard=heard.append)
    assert length == len(file.getvalue())
    assert sum(heard) >= length
    return file.getvalue()


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_what_was_taken_is_loaded_by_another_redis(server: LocalRedis, tmp_path: Path, diskless: str) -> None:
    server.ask("CONFIG", "SET", "repl-diskless-sync", diskless)
    content = copied(server)
    assert check_rdb(io.BytesIO(content)).has_sum
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dump.rdb").write_bytes(content)
    with redis_server(tmp_path / "data") as other:
        assert other.ask("DBSIZE") == 200
        assert other.ask("GET", "session:42") == b"x" * 42


def test_a_server_that_keeps_nothing_on_disk_is_left_without_a_dump(server: LocalRedis) -> None:
    server.ask("CONFIG", "SET", "repl-diskless-sync", "yes")
    (server.folder / "dump.rdb").unlink(missing_ok=True)
    copied(server)
    assert not (server.folder / "dump.rdb").exists()


def test_a_wrong_password_is_refused_and_never_repeated(server: LocalRedis) -> None:
    with pytest.raises(RedisError, match="WRONGPASS") as caught:
        RedisServer(server.url, password=Secret("the wrong secret"))
    assert "wrong secret" not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(RedisError, match="NOAUTH"), RedisServer(server.url, password=None) as connection:
        connection.copy_to(io.BytesIO(), heard=lambda _: None)


def test_a_user_without_the_right_is_told_which_one_it_needs(server: LocalRedis) -> None:
    server.ask("ACL", "SETUSER", "weak", "on", ">weak", "+info", "+replconf")
    url = server.url.replace("redis://", "redis://weak@")
    with RedisServer(url, password=Secret("weak")) as connection, pytest.raises(RedisError, match="psync") as caught:
        connection.copy_to(io.BytesIO(), heard=lambda _: None)
    assert "+psync" in caught.value.hint


def test_nobody_at_the_address_is_told_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RedisUnreachableError, match=f"127.0.0.1:{port}"):
            RedisServer(f"redis://127.0.0.1:{port}/0", password=None)


def answering(*pieces: bytes) -> str:
    """Run a server that answers each connection with the pieces, one after each request, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            for piece in pieces:
                connection.recv(4096)
                connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()
    return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"\n\n+FULLRESYNC abc 0\r\n\n$100\r\nREDIS0010", RedisDumpError, "91 bytes before its end"),
        (b"+FULLRESYNC abc 0\r\n$EOF:" + b"m" * 40 + b"\r\nREDIS0010", RedisDumpError, "before its end"),
        (b"+FULLRESYNC abc 0\r\n$EOF:short\r\n", RedisDumpError, "without the mark"),
        (b"+FULLRESYNC abc 0\r\n$-1\r\n", RedisDumpError, "without a length"),
        (b"-NOMASTERLINK Can't SYNC\r\n", RedisError, "NOMASTERLINK"),
        (b"+CONTINUE\r\n", RedisError, "no copy"),
        (b"", RedisUnreachableError, "hung up"),
    ],
)
def test_an_answer_that_is_cut_or_foreign_is_never_a_copy(answer: bytes, kind: type[Exception], text: str) -> None:
    url = answering(b"+OK\r\n", b"+OK\r\n", answer)
    with RedisServer(url, password=None) as connection, pytest.raises(kind, match=text):
        connection.copy_to(io.BytesIO(), heard=lambda _: None)


def test_a_server_that_repeats_the_password_in_its_refusal_does_not_get_it_shown() -> None:
    url = answering(b"-ERR `hunter2` is no argument of AUTH\r\n")
    with pytest.raises(RedisError) as caught:
        RedisServer(url, password=Secret("hunter2"))
    assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize("answer", [b"-hunter2\r\n", b"-hunter2 is wrong\r\n", b"-\x1b[2J no\r\n"])
def test_the_first_word_of_a_refusal_is_not_repeated_unless_it_is_known(answer: bytes) -> None:
    with pytest.raises(RedisError, match="no proper answer") as caught:
        RedisServer(answering(answer), password=Secret("hunter2"))
    assert "hunter2" not in repr(caught.value)
    assert "\x1b" not in caught.value.message


def test_a_server_that_knows_the_password_and_repeats_it_later_does_not_get_it_shown() -> None:
    url = answering(b"+OK\r\n", b"+OK\r\n", b"+OK\r\n", b"-NOPERM user with hunter2 may not\r\n")
    with RedisServer(url, password=Secret("hunter2")) as connection, pytest.raises(RedisError) as caught:
        connection.copy_to(io.BytesIO(), heard=lambda _: None)
    assert "hunter2" not in repr(caught.value)
    assert "NOPERM user with *** may not" in caught.value.message


@pytest.mark.parametrize(
    "endless",
    [
        itertools.chain([b"+OK\r\n", b"+OK\r\n"], itertools.repeat(b"\n")),
        itertools.chain([b"+OK\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n$99999999999999\r\n"], itertools.repeat(b"x")),
        itertools.chain(
            [b"+OK\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n$EOF:" + b"m" * 40 + b"\r\n"], itertools.repeat(b"x")
        ),
        itertools.repeat(b"+"),
    ],
    ids=("empty-lines", "length", "mark", "letters"),
)
def test_a_server_that_comes_to_no_end_is_hung_up_on(endless: Iterator[bytes]) -> None:
    """It is never silent for long, so that silence alone would not end it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection, suppress(OSError):
            connection.settimeout(0.05)
            for piece in endless:
                with suppress(TimeoutError):
                    connection.recv(4096)
                connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    with (
        RedisServer(url, password=None, whole_seconds=0.6) as connection,
        pytest.raises(RedisUnreachableError, match="no end for too long"),
    ):
        connection.copy_to(io.BytesIO(), heard=lambda _: None)
    thread.join(5)
    assert not thread.is_alive()


def test_tls_is_verified_with_the_certificates_that_are_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    options = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with redis_server(tmp_path / "data", "--tls-port", str(port), *options):
        url = f"rediss://localhost:{port}/0"
        with RedisServer(url, password=None, ca_file=certificate) as connection:
            file = io.BytesIO()
            connection.copy_to(file, heard=lambda _: None)
        check_rdb(file)
        with pytest.raises(RedisUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            RedisServer(url, password=None)


def judged(server: LocalRedis, restore: RedisRestore, rpo_seconds: int | None) -> tuple[CheckState, str]:
    checklist = Checklist()
    secret = server.folder.parent / "password"
    secret.write_text(PASSWORD)
    settings = RedisSettings(name=ComponentName("queue"), url=server.url, password=f"file:{secret}", restore=restore)
    promised = Objectives(rpo=timedelta(seconds=rpo_seconds) if rpo_seconds is not None else None)
    service = Service(name=ServiceName("erp"), objectives=promised)
    check_redis(service, settings, "erp/queue", checklist)
    answers, durability = checklist.results
    assert answers.state is CheckState.OK
    assert PASSWORD not in repr(checklist)
    return durability.state, durability.detail


def test_a_plan_that_relies_on_redis_for_what_it_cannot_keep_fails_the_check(server: LocalRedis) -> None:
    assert judged(server, RedisRestore.FLUSH, 60)[0] is CheckState.OK
    state, detail = judged(server, RedisRestore.LOAD, 60)
    assert state is CheckState.FAILED
    assert "RPO of 60 s" in detail
    state, detail = judged(server, RedisRestore.LOAD, None)
    assert state is CheckState.FAILED
    assert "keeps nothing on disk" in detail
    server.ask("CONFIG", "SET", "save", "60 1")
    state, detail = judged(server, RedisRestore.LOAD, None)
    server.ask("CONFIG", "SET", "save", "")
    assert state is CheckState.WARNING
    assert "what was written since is lost" in detail


def test_what_a_foreign_server_calls_its_version_writes_nothing_to_the_terminal() -> None:
    told = b"redis_version:7\x1b]0;title\x07\r\n"
    answer = b"$%d\r\n%s\r\n" % (len(told), told)
    settings = RedisSettings(name=ComponentName("queue"), url=answering(answer, b"$0\r\n\r\n", b"*0\r\n"))
    checklist = Checklist()
    check_redis(Service(name=ServiceName("erp")), settings, "erp/queue", checklist)
    assert checklist.results[0].detail.startswith("version an unknown version at ")
