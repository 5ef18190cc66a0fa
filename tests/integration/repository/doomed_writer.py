"""A process that captures and kills itself, without warning, before the Nth object would be created.

    python doomed_writer.py BASE N

BASE is what ``Site.create(BASE, folder=BASE / "repository")`` made, with the host's key beside it.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.objectstore.directory import DirectoryStore
from drservice.repository.envelope import HostKey
from tests.doubles.repositories import Site
from tests.doubles.stores import SlowStore


def main(base: Path, number: int) -> None:
    """Capture until the end comes."""
    folder = base / "repository"
    left = number

    def wait(operation: str) -> None:
        nonlocal left
        left -= operation == "create"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    recipient = (base / "recipient").read_text()
    site = Site(
        base=base,
        store=DirectoryStore(folder),
        open_store=partial(DirectoryStore, folder),
        host=HostKey("db1", Ed25519PrivateKey.from_private_bytes((base / "host").read_bytes())),
        secret_identity="",
        recipient=recipient,
    )
    site.capture(store=SlowStore(DirectoryStore(folder), wait=wait))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
