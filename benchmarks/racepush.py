"""The row of archived WAL: 200 segments that are ready, given to each program by PostgreSQL's own archiver.

The server of :mod:`walpush` has the same segments ready again and again. drservice works as ``check`` recommends, with
helper and small client, pgBackRest asynchronously with two processes; both answer only for what is durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from racepeers import Bucket
from racers import Asked, pgbackrest_configuration
from racewatch import quietly
from walpush import Ours, ReadyServer, push_ready_segments

_IN_FLIGHT = 3
"""What the helper does by itself: threads of one process. A third process does not make pgBackRest faster (tried)."""


class PushRace:
    """The server with its segments, made when the first round needs it."""

    def __init__(self, base: Path, segments: int, program: Path) -> None:
        self.base, self.segments, self.program = base, segments, program
        self._server: ReadyServer | None = None
        self._rounds = 0

    def server(self) -> ReadyServer:
        """Return the server; the first call writes the WAL, which takes a while."""
        if self._server is None:
            self.base.mkdir()
            self.base.chmod(0o755)
            self._server = ReadyServer(self.base, self.segments)
        return self._server

    def drservice(self, bucket: Bucket | None) -> Mapping[str, float]:
        """Let drservice archive everything once."""
        self._rounds += 1
        number = self._rounds
        variables = bucket.environment if bucket else {}
        asked = Asked(bucket)
        ours = Ours(
            self.server(),
            _IN_FLIGHT,
            lambda folder: bucket.url(f"push-{number}") if bucket else f"file://{folder}",
            variables,
            counting=asked.counting,
        )
        measured = ours()
        return {
            **self._rate(measured["seconds"]),
            **asked.requests,
            "client_ms_p50": measured["client_ms_p50"],
            "client_ms_p99": measured["client_ms_p99"],
            "largest_process_bytes": measured["memory_kib"] * 1024,
        }

    def pgbackrest(self, bucket: Bucket | None) -> Mapping[str, float]:
        """Let pgBackRest archive everything once."""
        self._rounds += 1
        server = self.server()
        base = server.folder(self.base / f"pgbackrest-{self._rounds}")
        for name in ("repo", "log", "lock", "spool"):
            server.folder(base / name)
        config = base / "pgbackrest.conf"
        config.write_text(
            pgbackrest_configuration(
                base, self.program, data=server.data, sock=server.sock, bucket=bucket, asynchronous=True
            )
        )
        command = f"{self.program} --config={config} --stanza=main"
        user = server.user.pw_name if server.user else None
        quietly([*command.split(), "stanza-create"], user=user, folder=base)
        asked = Asked(bucket)
        with asked.counting():
            seconds = push_ready_segments(server, f"{command} archive-push %p")
        return {**self._rate(seconds), **asked.requests}

    def _rate(self, seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "segments_per_second": self.segments / seconds}

    def close(self) -> None:
        """Stop the server if it was made."""
        if self._server is not None:
            self._server.close()
