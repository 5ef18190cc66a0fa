"""A Ceph gateway of the tests' own: a monitor, one OSD and radosgw on loopback, gone with this process.

``install-ceph`` makes the folder it runs from; ``DRSERVICE_CEPH`` names that folder (`make test-ceph` does both).
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.doubles.s3server import REGION, S3Server, free_port

SCRIPT = Path(__file__).with_name("run-ceph")
OWNER = ("AKIAIOSFODNN7CEPHOWN", "wJalrXUtnFEMI7K7MDENGbPxRfiCYCEPHOWNER00")
HOST = ("AKIAIOSFODNN7CEPHHST", "wJalrXUtnFEMI7K7MDENGbPxRfiCYCEPHHOST000")
"""Another account, which may do only what a bucket's policy allows."""
_READY_SECONDS = 180.0


class Buckets(Enum):
    """What buckets are made like."""

    PLAIN = "plain"
    VERSIONED = "versioned"
    LOCKING = "locking"


def folder() -> Path | None:
    """Return where Ceph is installed, ``None`` where no test may start it."""
    named = os.environ.get("DRSERVICE_CEPH")
    return Path(named) if named else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceph:
    """A running gateway."""

    endpoint: str
    version: str

    def client(self, account: tuple[str, str] = OWNER) -> Any:
        """Return a client of an account, for what is done behind the program's back."""
        return boto3.session.Session(*account, region_name=REGION).client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def server(self, buckets: Buckets, account: tuple[str, str] = OWNER) -> S3Server:
        """Return the gateway as a server whose buckets are made like that, by their owner, for one account."""
        client = self.client()

        def make_bucket(name: str) -> None:
            if name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                return
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=buckets is Buckets.LOCKING)
            if buckets is Buckets.VERSIONED:
                client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

        return S3Server(
            endpoint=self.endpoint,
            make_bucket=make_bucket,
            plant=lambda bucket, key, body: client.put_object(Bucket=bucket, Key=key, Body=body),
            environment=environment(account),
        )


def environment(account: tuple[str, str]) -> Mapping[str, str]:
    """Return what a process needs to be an account."""
    return {
        "AWS_ACCESS_KEY_ID": account[0],
        "AWS_SECRET_ACCESS_KEY": account[1],
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@functools.cache
def running() -> Ceph:
    """Start the gateway, once per process; it ends with the process."""
    root = folder()
    assert root is not None, "DRSERVICE_CEPH names the folder that install-ceph made"
    assert (root / ".ready").exists(), f"{root} is not ready: run tests/ceph/install-ceph {root}"
    port = free_port()
    log = root.with_name(f"{root.name}.run.log")
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [SCRIPT, root, str(free_port()), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    atexit.register(_end, process, root)
    timer = threading.Timer(_READY_SECONDS, process.kill)
    timer.start()
    assert process.stdout is not None
    said = process.stdout.readline()
    timer.cancel()
    assert said == b"ready\n", log.read_text(errors="replace")[-4000:]
    chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin") or "chroot"
    told = subprocess.run([chroot, root, "ceph", "--version"], capture_output=True, text=True, check=True).stdout
    return Ceph(endpoint=f"http://127.0.0.1:{port}", version=told.split()[2])


def _end(process: subprocess.Popen[bytes], root: Path) -> None:
    """Kill the namespace's first process: the kernel kills the rest and takes the mounts along."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(root / "var/lib/ceph-tests", ignore_errors=True)
