"""pgBackRest's asynchronous archiving into the same bucket, for the comparison of what commits pay for protection."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from racepeers import Bucket
from racers import pgbackrest_configuration

from tests.doubles.cluster import Cluster, hand_over


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncArchiver:
    """A stanza of pgBackRest for one server; everything of it lies in ``base``."""

    base: Path
    program: Path
    cluster: Cluster

    @property
    def archive_command(self) -> str:
        """What PostgreSQL runs for each segment: it answers at once for what was pushed ahead."""
        return f"{self.program} --config={self.base}/pgbackrest.conf --stanza=main archive-push %p"

    def prepare(self, bucket: Bucket) -> None:
        """Make configuration and repository."""
        for name in ("log", "lock", "spool"):
            (self.base / name).mkdir(parents=True)
        text = pgbackrest_configuration(
            self.base, self.program, data=self.cluster.data, sock=self.cluster.sock, bucket=bucket, asynchronous=True
        )
        (self.base / "pgbackrest.conf").write_text(text)
        self.base.chmod(0o755)
        hand_over(self.base)
        self._run("stanza-create")

    def stop(self) -> None:
        """End the process that pushes ahead."""
        self._run("stop")

    def _run(self, command: str) -> None:
        owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        done = subprocess.run(
            [str(self.program), f"--config={self.base}/pgbackrest.conf", "--stanza=main", command],
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            cwd="/",
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"pgbackrest {command}: {(done.stdout + done.stderr).decode()[-2000:]}")
