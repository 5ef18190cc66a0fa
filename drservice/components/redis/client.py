"""The little of Redis' protocol that a backup needs: commands with short answers, and a replica's first copy.

A Redis hands out its whole content to whoever asks as a replica does (``PSYNC``): it forks, writes an RDB into the
connection, and goes on. That needs no program on this host, no access to the server's disk, and no password in any
argument list. What the server says is foreign: answers are bounded, and nothing it says about ``AUTH`` is repeated,
because some servers repeat the words they were given.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias
from urllib.parse import unquote, urlsplit

from drservice.credentials import Secret
from drservice.errors import RedisDumpError, RedisError, RedisUnreachableError

Reply: TypeAlias = "bytes | int | list[Reply] | None"

_PORT = 6379
_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 120.0
"""A server that makes a copy writes an empty line every few seconds meanwhile."""
_WHOLE_SECONDS = 4 * 3600.0
"""A server that says a little now and then, or never comes to an end, is hung up on after that."""
_LINE_BYTES = 64 << 10
_ANSWER_BYTES = 4 << 20
_ANSWER_ITEMS = 4096
_DEPTH = 4
_MARK_BYTES = 40
_PIECE_BYTES = 256 << 10
_SHOWN = 200
_REFUSALS = frozenset({b"ERR", b"WRONGPASS", b"NOAUTH", b"NOPERM", b"LOADING", b"MASTERDOWN", b"DENIED"})
"""First words of an answer to ``AUTH`` that are repeated; any other one may be the password."""


class RedisServer:
    """One connection to a Redis."""

    def __init__(
        self,
        url: str,
        *,
        password: Secret | None,
        ca_file: Path | None = None,
        connect_seconds: float = _CONNECT_SECONDS,
        silence_seconds: float = _SILENCE_SECONDS,
        whole_seconds: float = _WHOLE_SECONDS,
    ) -> None:
        """Connect and sign in.

        Args:
            url: ``redis://`` or ``rediss://`` without a password; a user may stand before ``@``.
            password: of that user, or of the default one.
            ca_file: certificates that are trusted instead of the system's.
            connect_seconds: how long a connection may take.
            silence_seconds: how long the server may say nothing.
            whole_seconds: how long the connection may last.

        Raises:
            RedisUnreachableError: nobody answers, or not as a Redis, or TLS is not as it must be.
            RedisError: it refuses user and password.
        """
        parts = urlsplit(url)
        self._password = password
        self._is_overdue = False
        self.place = f"{parts.hostname}:{parts.port or _PORT}"
        try:
            self._socket = self._connect(parts.hostname or "", parts.port or _PORT, connect_seconds)
            # A descriptor of its own: TLS takes the socket's, and when the timer fires it may be closed already.
            self._line_end = self._socket.dup()
            self._timer = threading.Timer(whole_seconds, self._hang_up_late)
            self._timer.daemon = True
            self._timer.start()
        except OSError as error:
            raise RedisUnreachableError(f"no connection to Redis at {self.place}: {error}") from error
        try:
            if parts.scheme == "rediss":
                context = ssl.create_default_context(cafile=ca_file)
                self._socket = context.wrap_socket(self._socket, server_hostname=parts.hostname)
            self._socket.settimeout(silence_seconds)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self._hang_up()
            raise RedisUnreachableError(f"no connection to Redis at {self.place}: {error}") from error
        self._file = io.BufferedReader(self._socket.makefile("rb", buffering=0), _PIECE_BYTES)
        try:
            self._sign_in(unquote(parts.username) if parts.username else None, password)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self.close()

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self._file.close()
        self._hang_up()

    def _hang_up(self) -> None:
        self._timer.cancel()
        self._timer.join()
        with suppress(OSError):
            self._socket.close()
        self._line_end.close()

    def _hang_up_late(self) -> None:
        self._is_overdue = True
        with suppress(OSError):  # the server was faster
            self._line_end.shutdown(socket.SHUT_RDWR)

    def ask(self, *words: str) -> Reply:
        """Send a command and return its answer.

        Raises:
            RedisError: it is refused.
            RedisUnreachableError: the connection broke.
        """
        self._send(words)
        return self._reply(words[0])

    def info(self, section: str) -> dict[str, str]:
        """Return a section of ``INFO``.

        Raises:
            RedisError, RedisUnreachableError: as :meth:`ask`.
        """
        answer = self.ask("INFO", section)
        if not isinstance(answer, bytes):
            raise RedisError(f"Redis at {self.place} gives no INFO")
        pairs = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
        return {name: value for name, colon, value in pairs if colon}

    def copy_to(self, file: BinaryIO, *, heard: Callable[[int], None]) -> int:
        """Have the server make a copy of its content and write it to ``file``; return its length.

        The connection is of no other use afterwards.

        Args:
            file: takes the RDB; not checked here.
            heard: hears of bytes that came.

        Raises:
            RedisError: the server does not give its content away.
            RedisDumpError: it ended before the end.
            RedisUnreachableError: the connection broke.
            OSError: the file cannot be written.
        """
        # The copy comes straight from memory then: with a file on the way the server would leave a dump behind, and
        # one that keeps nothing on disk would find it at its next start. Older servers do not know `rdb-only`.
        for words in (("REPLCONF", "capa", "eof"), ("REPLCONF", "rdb-only", "1")):
            with suppress(RedisError):
                self.ask(*words)
        self._send(("PSYNC", "?", "-1"))
        started = self._line_after_waiting()
        if not started.startswith(b"+FULLRESYNC"):
            raise RedisError(f"Redis at {self.place} gives no copy of its content: {self._shown(started)}")
        begin = self._line_after_waiting()
        if not begin.startswith(b"$"):
            raise RedisError(f"Redis at {self.place} could not make a copy of its content: {self._shown(begin)}")
        if begin.startswith(b"$EOF:"):
            return self._until_mark(begin[5:], file, heard)
        if not begin[1:].isdigit():
            raise RedisDumpError(f"Redis at {self.place} announces a copy without a length")
        return self._so_many(int(begin[1:]), file, heard)

    @staticmethod
    def _connect(host: str, port: int, seconds: float) -> socket.socket:
        return socket.create_connection((host, port), timeout=seconds)

    def _sign_in(self, user: str | None, password: Secret | None) -> None:
        if password is None:
            return
        given = (password.reveal(),) if user is None else (user, password.reveal())
        self._send(("AUTH", *given))
        line = self._line()
        if line != b"+OK":
            refusal = line[1:].split(b" ", 1)[0] if line.startswith(b"-") else b""
            word = refusal.decode("ascii") if refusal in _REFUSALS else "no proper answer"
            raise RedisError(
                f"Redis at {self.place} does not accept the password ({word})",
                hint="Correct what `password` refers to, and the user in url.",
            )

    def _send(self, words: tuple[str, ...]) -> None:
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            raw = word.encode("utf-8", "surrogateescape")
            parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
        try:
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            raise self._broken(error) from error

    def _reply(self, command: str, depth: int = 0) -> Reply:
        line = self._line()
        sort, rest = line[:1], line[1:]
        if sort == b"+":
            return rest
        if sort == b"-":
            raise RedisError(f"Redis at {self.place} refuses {command}: {self._shown(rest)}")
        try:
            number = int(rest)
        except ValueError:
            raise RedisUnreachableError(f"what answers at {self.place} is no Redis") from None
        if sort == b":":
            return number
        if sort == b"$" and number <= _ANSWER_BYTES:
            return None if number < 0 else self._exactly(number + 2)[:-2]
        if sort == b"*" and number <= _ANSWER_ITEMS and depth < _DEPTH:
            return None if number < 0 else [self._reply(command, depth + 1) for _ in range(number)]
        raise RedisUnreachableError(f"what answers at {self.place} is no Redis, or says too much")

    def _line(self) -> bytes:
        try:
            line = self._file.readline(_LINE_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        if not line.endswith(b"\n"):
            raise self._broken(None)
        return line.rstrip(b"\r\n")

    def _line_after_waiting(self) -> bytes:
        """Return the next line that says something; empty ones only tell that the server is at work."""
        while not (line := self._line()):
            pass
        return line

    def _exactly(self, count: int) -> bytes:
        found = self._read(count)
        if len(found) != count:
            raise self._broken(None)
        return found

    def _read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise self._broken(error) from error

    def _so_many(self, length: int, file: BinaryIO, heard: Callable[[int], None]) -> int:
        left = length
        while left:
            piece = self._read(min(left, _PIECE_BYTES))
            if not piece:
                if self._is_overdue:
                    raise self._broken(None)
                raise RedisDumpError(f"Redis at {self.place} ended its copy {left} bytes before its end")
            file.write(piece)
            heard(len(piece))
            left -= len(piece)
        return length

    def _until_mark(self, mark: bytes, file: BinaryIO, heard: Callable[[int], None]) -> int:
        """Take a copy whose length the server does not know yet: it ends with a mark of 40 random letters."""
        if len(mark) != _MARK_BYTES:
            raise RedisDumpError(f"Redis at {self.place} announces a copy without the mark of its end")
        held, length = b"", 0
        while held[-_MARK_BYTES:] != mark:
            if len(held) > _MARK_BYTES:
                file.write(held[:-_MARK_BYTES])
                length += len(held) - _MARK_BYTES
                held = held[-_MARK_BYTES:]
            try:
                piece = self._file.read1(_PIECE_BYTES)  # what has come: after the mark nothing follows
            except OSError as error:
                raise self._broken(error) from error
            if not piece:
                if self._is_overdue:
                    raise self._broken(None)
                raise RedisDumpError(f"Redis at {self.place} ended its copy before its end")
            heard(len(piece))
            held += piece
        file.write(held[:-_MARK_BYTES])
        return length + len(held) - _MARK_BYTES

    def _broken(self, error: OSError | None) -> RedisUnreachableError:
        why = "it said nothing for too long" if isinstance(error, TimeoutError) else str(error or "it hung up")
        if self._is_overdue:
            why = "it came to no end for too long"
        return RedisUnreachableError(f"the connection to Redis at {self.place} broke: {why}")

    def _shown(self, line: bytes) -> str:
        """Return what a server said so that it can be printed and recorded, whatever it repeats."""
        text = line.decode("utf-8", "replace")
        if self._password is not None and self._password.reveal():
            text = text.replace(self._password.reveal(), "***")
        return "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN])
