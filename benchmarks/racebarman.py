"""barman-cloud in the race: a first backup into a bucket and its restore, all that it has in common with the others.

In a bucket it makes no incremental backups and restores into empty folders only, encrypts nothing by itself (a store
may do so), looks at no page checksums and knows no zstd; its snappy crashes as Debian 13 has it, and fails as Debian 12
has it. So it runs as it is fastest here: without compression, with two processes. Its bytes say more than its time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from racecluster import Cluster
from racepeers import Bucket
from racers import Asked, Backup, Restored, recovered
from racewatch import Cost, quietly, timed


class BarmanCloud:
    """The three programs of barman-cloud that are needed, run as the server's user."""

    name = "barman-cloud"
    rows: Collection[str] = ("full", "restore")

    def __init__(self, base: Path, cluster: Cluster, bucket: Bucket, *, root: Path) -> None:
        self.base, self.cluster, self.bucket, self.root = base, cluster, bucket, root
        self.asked = Asked(bucket)
        self.program = base / "barman-cloud"
        self.place = ("--endpoint-url", f"https://{bucket.address}")
        self.target = (f"s3://{bucket.name}/barman", "erp")

    @property
    def archive_command(self) -> str:
        """Return what PostgreSQL runs for each segment."""
        return " ".join((str(self.program), "wal-archive", *self.place, *self.target, "%p"))

    @contextmanager
    def helping(self) -> Iterator[None]:
        """Run nothing."""
        yield

    def prepare(self) -> None:
        """Make the program: PostgreSQL passes no variables to what it starts."""
        self.cluster.own(self.base)
        libraries = next((self.root / "usr/lib").glob("*-linux-gnu"))
        loader = next(libraries.glob("ld-linux-*.so.*"))
        python = f"{self.root}/usr/bin/python3"
        variables = {
            **self.bucket.environment,
            "AWS_CA_BUNDLE": str(self.bucket.certificate),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # the server of the bucket refuses the newer way
            "PYTHONHOME": f"{self.root}/usr",
            "PYTHONWARNINGS": "ignore",
            "HOME": str(self.base),
        }
        lines = [
            "#!/bin/sh",
            *(f"export {name}='{value}'" for name, value in variables.items()),
            "tool=$1; shift",
            f'exec {loader} --library-path {libraries} {python} {self.root}/usr/bin/barman-cloud-$tool "$@"',
        ]
        self.program.write_text("\n".join(lines) + "\n")
        self.program.chmod(0o755)

    def backup(self, *, full: bool) -> Backup:
        """Take a full backup."""
        if not full:
            raise ValueError("barman-cloud makes no incremental backups in a bucket")
        where = ("-h", str(self.cluster.sock), "-U", "postgres", "-d", "postgres")
        cost, _ = self._timed("backup", *where, "--immediate-checkpoint", "-J", "2", *self.place, *self.target)
        listed = json.loads(self._quietly("backup-list", "--format", "json", *self.place, *self.target))
        return Backup(label=listed["backups_list"][-1]["backup_id"], cost=cost, phases={})

    def restore(self, label: str | None, into: Path, *, delta: bool) -> Restored:
        """Restore a backup, start the server, which fetches its WAL from the bucket, and wait for it."""
        if label is None or delta:
            raise ValueError("barman-cloud restores a backup, into an empty folder")
        self.cluster.own(into, mode=0o700)
        began = time.monotonic()
        cost, _ = self._timed("restore", *self.place, *self.target, label, str(into))
        placed = time.monotonic() - began
        fetch = " ".join((str(self.program), "wal-restore", *self.place, *self.target, "%f", "%p"))
        with (into / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"restore_command = '{fetch}'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n"
                "archive_mode = off\n"
            )
        (into / "recovery.signal").touch()
        started, fingerprint = recovered(self.cluster, into)
        return Restored(
            placed_seconds=cost.seconds,
            answering_seconds=cost.seconds + started,
            cost=cost,
            phases={"place": placed, "start and replay": started},
            fingerprint=fingerprint,
        )

    def push(self, segments: Sequence[Path]) -> None:
        """Archive segments that were held, while nobody is timed."""
        for segment in segments:
            self._quietly("wal-archive", *self.place, *self.target, str(segment))

    def stored(self) -> Path:
        """Return where backups lie, and WAL."""
        return self.bucket.folder("barman")

    def is_wal(self, path: Path) -> bool:
        """Tell whether a file of the repository is WAL."""
        return "wals" in path.relative_to(self.stored()).parts

    def version(self) -> str:
        """Return which version it is."""
        said = self._quietly("backup", "-V").decode()
        found = re.search(r"[\d.]+\d", said)
        return f"barman-cloud {found[0] if found else said}"

    def _timed(self, tool: str, *words: str) -> tuple[Cost, bytes]:
        with self.asked.counting():
            return timed(
                [str(self.program), tool, *words], environment=_NOTHING, user=self.cluster.user, folder=self.base
            )

    def _quietly(self, tool: str, *words: str) -> bytes:
        return quietly([str(self.program), tool, *words], user=self.cluster.user, folder=self.base)


_NOTHING: Mapping[str, str] = {}
