"""What commits pay for the cheapest shipper of WAL that one could write: the floor that the receiver is compared with.

    python benchmarks/streamfloor.py [--seconds 20] [--rounds 5] [--output FILE]

It reads ``pg_wal`` on the server's own host, four times a second, compresses each byte once, encrypts it and puts it
away with one request of a plain HTTPS connection: no replication slot, no segments, no hashes, no checks, nothing that
a restore could use. It is compared in turns with the receiver, pgBackRest's asynchronous archiving and nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from racepeers import Bucket, cache_folder
from stream import Bench, cpu_seconds, prepared
from streampeer import AsyncArchiver

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SEGMENT = 16 << 20
_PIECE = 4 << 20
_INTERVAL_SECONDS = 0.25
_TURNS = ("floor", "receiver", "pgbackrest", "nobody")


class Shipper:
    """Ships what was flushed, until it is told to end."""

    def __init__(self, *, dsn: str, wal: Path, bucket: dict[str, str]) -> None:
        self._wal, self._bucket = wal, bucket
        self._session = psycopg.connect(dsn, autocommit=True)
        self._compressor = zstd.ZstdCompressor(1)
        self._cipher = AESGCM(os.urandom(32))
        self._auth = S3SigV4Auth(Credentials(bucket["key"], bucket["secret"]), "s3", "us-east-1")
        host, port = bucket["address"].split(":")
        context = ssl.create_default_context(cafile=bucket["certificate"])
        self._connection = http.client.HTTPSConnection(host, int(port), context=context)
        self._count = 0
        self.shipped = 0
        self.is_ending = False

    def run(self) -> None:
        """Ship from where the server's WAL ends now."""
        done, _ = self._flushed()
        print("ready", flush=True)
        due = time.monotonic()
        while not self.is_ending:
            due = max(due + _INTERVAL_SECONDS, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            end, timeline = self._flushed()
            while done < end:
                stop = min(end, done + _PIECE, (done // _SEGMENT + 1) * _SEGMENT)
                self._put(self._read(done, stop, timeline))
                self.shipped += stop - done
                done = stop

    def _flushed(self) -> tuple[int, int]:
        row = self._session.execute(
            "select (pg_current_wal_flush_lsn() - '0/0')::bigint,"
            " ('x' || left(pg_walfile_name('0/1'), 8))::bit(32)::int"
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def _read(self, begin: int, end: int, timeline: int) -> bytes:
        number = begin // _SEGMENT
        per_log = (1 << 32) // _SEGMENT
        path = self._wal / f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), end - begin, begin % _SEGMENT)

    def _compressed(self, plain: bytes) -> bytes:
        return self._compressor.compress(plain, zstd.ZstdCompressor.FLUSH_FRAME)

    def _put(self, plain: bytes) -> None:
        self._count += 1
        body = self._cipher.encrypt(self._count.to_bytes(12, "big"), self._compressed(plain), None)
        path = f"/{self._bucket['name']}/floor/{os.getpid()}-{self._count:08d}"
        request = AWSRequest("PUT", f"https://{self._bucket['address']}{path}")
        request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
        self._auth.add_auth(request)
        self._connection.request("PUT", path, body=body, headers=dict(request.headers.items()))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != http.client.OK:
            raise SystemExit(f"the bucket answered {answer.status}: {text[:500]!r}")


def ship(given: dict[str, Any]) -> None:
    """Be the process that ships; what it shipped goes to standard output when it is told to end."""
    shipper = Shipper(dsn=given["dsn"], wal=Path(given["wal"]), bucket=given["bucket"])
    signal.signal(signal.SIGTERM, lambda *_: setattr(shipper, "is_ending", True))
    shipper.run()
    print(shipper.shipped, flush=True)


@contextlib.contextmanager
def shipping(bench: Bench, bucket: Bucket, told: dict[str, Any]) -> Iterator[None]:
    """Run the shipper for the block; ``told`` gets what it shipped and used."""
    names = ("name", "address", "key", "secret")
    given = {
        "dsn": bench.cluster.dsn(),
        "wal": str(bench.cluster.data / "pg_wal"),
        "bucket": {name: getattr(bucket, name) for name in names} | {"certificate": str(bucket.certificate)},
    }
    argv = [sys.executable, __file__, "--ship", json.dumps(given)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the shipper did not begin")
        before = cpu_seconds(process.pid)
        yield
        used = cpu_seconds(process.pid) - before
        process.send_signal(signal.SIGTERM)
        shipped, _ = process.communicate(timeout=60)
        if process.returncode:
            raise SystemExit(f"the shipper ended with {process.returncode}")
        told |= {"floor_mb": round(int(shipped) / 1e6), "floor_cpu_ms_per_mb": round(used * 1e9 / int(shipped), 2)}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def turn(bench: Bench, who: str, seconds: int, bucket: Bucket, peer: AsyncArchiver) -> dict[str, Any]:
    """Return the transactions per second with one of them."""
    bench.settle()
    told: dict[str, Any] = {}
    if who == "floor":
        with shipping(bench, bucket, told):
            tps = bench.pgbench(seconds)
    elif who == "receiver":
        with bench.receiver() as process:
            bench.await_receiver()
            begin, before = bench.position(), cpu_seconds(process.pid)
            tps = bench.pgbench(seconds)
            used, megabytes = cpu_seconds(process.pid) - before, (bench.position() - begin) / 1e6
            told["receiver_cpu_ms_per_mb"] = round(used * 1000 / megabytes, 2)
    elif who == "pgbackrest":
        tps = bench.peer_archives(seconds, peer)
    else:
        tps = bench.pgbench(seconds)
    return told | {f"{who}_tps": round(tps, 1)}


def _summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    median: Callable[[str], float] = lambda name: statistics.median(row[name] for row in rounds)  # noqa: E731 - four uses
    return {f"{who}_to_pgbackrest": round(median(f"{who}_tps") / median("pgbackrest_tps"), 3) for who in _TURNS}


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="of load in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--peers", type=Path, default=cache_folder(), help="where pgBackRest is kept once fetched")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--ship", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.ship is not None:
        ship(chosen.ship)
        return
    rounds: list[dict[str, Any]] = []
    with prepared(chosen.peers, scale=chosen.scale, seconds=chosen.seconds) as (bench, bucket, peer):
        for number in range(chosen.rounds):
            first = number % len(_TURNS)
            told: dict[str, Any] = {"first": _TURNS[first]}
            for who in (*_TURNS[first:], *_TURNS[:first]):
                told |= turn(bench, who, chosen.seconds, bucket, peer)
            rounds.append(told)
            print(json.dumps(told), flush=True)
    document = {"rounds": rounds} | _summary(rounds)
    if chosen.output:
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
