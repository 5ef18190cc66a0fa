"""The base backup protocol in both of its forms, spoken by a server that is a script (trap T10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import pq

from drservice.components.postgres.backupsession import CheckpointSpeed
from drservice.components.postgres.basestream import BaseBackup
from drservice.components.postgres.servernotices import FileNotice
from drservice.components.postgres.tarstream import TarStream
from drservice.errors import CaptureError, DrError, StandbyPromotedError, WalTimeoutError


def header(name: bytes, size: int = 0, letter: bytes = b"0", target: bytes = b"") -> bytes:
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[100:107] = b"0000600"
    raw[124:135] = b"%011o" % size
    raw[156:157] = letter
    raw[157 : 157 + len(target)] = target
    raw[148:156] = b" " * 8
    raw[148:154] = b"%06o" % sum(raw)
    raw[154:156] = b"\0 "
    return bytes(raw)


FAR = header(b"PG_15_1", letter=b"5") + header(b"PG_15_1/1", 3) + b"abc".ljust(512, b"\0")
BASE = header(b"backup_label", 2) + b"xy".ljust(512, b"\0")
END = bytes(1024)


class Result:
    def __init__(self, status: pq.ExecStatus, *rows: tuple[bytes | None, ...], **fields: bytes) -> None:
        self.status = status
        self.rows = rows
        self.fields = fields

    @property
    def ntuples(self) -> int:
        return len(self.rows)

    def get_value(self, row: int, column: int) -> bytes | None:
        return self.rows[row][column]

    def error_field(self, name: pq.DiagnosticField) -> bytes | None:
        return self.fields.get(pq.DiagnosticField(name).name.lower())


TUPLES, COPY, OK, FATAL = (
    pq.ExecStatus.TUPLES_OK,
    pq.ExecStatus.COPY_OUT,
    pq.ExecStatus.COMMAND_OK,
    pq.ExecStatus.FATAL_ERROR,
)


class Server:
    """Answers with results, and the data of each COPY; ``None`` in data is silence."""

    def __init__(self, version: int, *answers: Result | list[bytes | None]) -> None:
        self.server_version = version
        self.answers = list(answers)
        self.copying: list[bytes | None] = []
        self.asked = b""
        self.notice_handler: Callable[[Any], None] = lambda _: None
        self.socket, self._other = os.pipe()
        self.finished = False

    def send_query(self, command: bytes) -> None:
        self.asked = command

    def flush(self) -> int:
        return 0

    def is_busy(self) -> int:
        return 0

    def consume_input(self) -> None:
        raise AssertionError("there was nothing to read")

    def get_result(self) -> Result | None:
        answer = self.answers.pop(0) if self.answers else None
        assert not isinstance(answer, list)
        if answer is not None and answer.status == COPY:
            data = self.answers.pop(0)
            assert isinstance(data, list)
            self.copying = data
        return answer

    def get_copy_data(self, _: int) -> tuple[int, memoryview]:
        if not self.copying:
            return -1, memoryview(b"")
        data = self.copying.pop(0)
        return (0, memoryview(b"")) if data is None else (len(data), memoryview(data))

    def finish(self) -> None:
        if not self.finished:
            os.close(self.socket)
            os.close(self._other)
        self.finished = True


START = Result(TUPLES, (b"0/2000028", b"1"))
SPACES = Result(TUPLES, (b"16385", b"/disk/far", None), (None, None, None))
STOP = Result(TUPLES, (b"0/2000100", b"1"))


def old(*last: Result) -> Server:
    """Return a server of version 14: a COPY for each archive, no blocks of zeros, then one for the manifest."""
    return Server(
        140005, START, SPACES, Result(COPY), [FAR[:700], FAR[700:]], Result(COPY), [BASE], Result(COPY), [b"{", b"}"],
        *(last or (STOP, Result(OK))),
    )  # fmt: skip


def new(*last: Result, version: int = 150004) -> Server:
    """Return a server since version 15: one COPY of typed messages."""
    return Server(
        version, START, SPACES, Result(COPY),
        [
            b"n16385.tar\0/disk/far\0", b"d" + FAR[:700], b"p\0\0\0\0\0\0\0\1", b"d" + FAR[700:], b"d" + END,
            b"nbase.tar\0\0", b"d" + BASE + END, b"m", b"d{", b"p\0\0\0\0\0\0\0\2", b"d}",
        ],
        *(last or (STOP, Result(OK))),
    )  # fmt: skip


def opened(server: Server) -> BaseBackup:
    connection: Any = server
    return BaseBackup(connection, close=server.finish, silence_seconds=0.02)


def taken(backup: BaseBackup) -> Iterator[tuple[int | None, bytes, bytes]]:
    backup.begin("test", checkpoint=CheckpointSpeed.FAST)
    for space, archive in backup.archives():
        stream = TarStream(archive, is_terminated=backup.is_terminated)
        for member in stream.members():
            yield space.oid if space is not None else None, member.path, stream.read_all(1000)
        stream.drain()


@pytest.mark.parametrize("server", [old(), new()], ids=["14", "15"])
def test_t10_every_archive_and_the_manifest_arrive_in_both_forms_of_the_protocol(server: Server) -> None:
    with opened(server) as backup:
        assert list(taken(backup)) == [
            (16385, b"PG_15_1", b""),
            (16385, b"PG_15_1/1", b"abc"),
            (None, b"backup_label", b"xy"),
        ]
        assert backup.finish() == b"{}"
    assert server.finished


@pytest.mark.parametrize(
    ("version", "command"),
    [
        (130008, b"BASE_BACKUP LABEL 'test' FAST NOWAIT MANIFEST 'yes' MANIFEST_CHECKSUMS 'NONE'"),
        (150004, b"TABLESPACE_MAP false)"),
        (160001, b"TABLESPACE_MAP true)"),
    ],
)
def test_each_version_is_asked_in_its_own_words(version: int, command: bytes) -> None:
    server = Server(version, START, SPACES)
    with opened(server) as backup:
        [space] = backup.begin("test", checkpoint=CheckpointSpeed.FAST)
    assert (space.oid, space.location) == (16385, "/disk/far")
    assert server.asked.endswith(command)


def notice(text: str) -> Result:
    return Result(OK, message_primary=text.encode())


def test_t14_damaged_pages_are_named_by_their_place_in_the_data_directory() -> None:
    server = new(STOP, Result(FATAL, sqlstate=b"XX001", message_primary=b"checksum verification failure"))
    with opened(server) as backup:
        list(taken(backup))
        for path, block in (("./base/5/1259", 3), ("/disk/far/PG_15_1/5/16390", 7)):
            text = f'checksum verification failed in file "{path}", block {block}: calculated 1 but expected 2'
            server.notice_handler(notice(text))
        backup.finish()
        assert backup.notices() == [
            FileNotice(path="base/5/1259", block=3),
            FileNotice(path="pg_tblspc/16385/PG_15_1/5/16390", block=7),
        ]


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (new(STOP, Result(FATAL, sqlstate=b"XX001", message_primary=b"no page was named")), CaptureError),
        (new(STOP, Result(FATAL, sqlstate=b"57P01", message_primary=b"terminating connection")), CaptureError),
        (new(STOP), CaptureError),
        (old(Result(FATAL, message_primary=b"the standby was promoted during online backup")), StandbyPromotedError),
        (Server(150004, Result(FATAL, message_primary=b"too many WAL senders")), CaptureError),
        (Server(150004, START, SPACES, Result(OK)), CaptureError),
        (
            Server(150004, START, SPACES, Result(COPY), [b"n99.tar\0/x\0", b"d" + FAR + END], STOP, Result(OK)),
            CaptureError,
        ),
        (Server(150004, START, SPACES, Result(COPY), [b"?"]), CaptureError),
        (Server(140004, START, SPACES, Result(COPY), [FAR[:600]]), CaptureError),
        (Server(140004, START, SPACES, Result(COPY), [FAR], Result(FATAL)), CaptureError),
        (Server(150004, START, SPACES, Result(COPY), [b"n16385.tar\0/x\0", None]), WalTimeoutError),
    ],
    ids=["corrupt", "ended", "no-end", "promoted", "refused", "no-copy", "unknown", "type", "cut", "broke", "silent"],
)
def test_a_backup_that_is_not_whole_is_an_error(server: Server, error: type[DrError]) -> None:
    def whole(backup: BaseBackup) -> None:
        list(taken(backup))
        backup.finish()

    with opened(server) as backup, pytest.raises(error):
        whole(backup)
    assert server.finished, "the server ends the backup with the connection"
