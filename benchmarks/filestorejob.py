"""One job of ``filestore.py``: what is timed, with the start of the interpreter and all that is loaded.

    python benchmarks/filestorejob.py first|unchanged|restore BASE SOURCE [told]

It loads what the component needs and no more, and has workers at hand where the command line has them: for a restore.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drservice.clock import SystemClock
from drservice.model.estate import FilesKind, FilesSettings
from drservice.model.ids import ComponentName, ServiceName
from drservice.objectstore.directory import DirectoryStore
from drservice.repository.envelope import HostKey
from drservice.repository.keys import Identities
from drservice.repository.repository import Repository, open_repository

WORKERS = 2


class Silent:
    """Hears of progress and says nothing."""

    def advance(self, amount: int, /) -> None:
        """Bytes are done."""


def referred_to(base: Path) -> dict[str, int]:
    """Return what production's database would: every document, with a size that nobody asks for here."""
    with (base / "wanted").open() as names:
        return {name.rstrip("\n"): -1 for name in names}


def opened(base: Path, identities: Identities) -> Repository:
    """Open the repository as the host that writes there."""
    opener = partial(DirectoryStore, base / "repo")
    return open_repository(
        opener(),
        open_store=opener,
        signers=[],
        host_key=HostKey("bench", Ed25519PrivateKey.from_private_bytes((base / "host").read_bytes())),
        identities=identities,
        recipients=((base / "recipient").read_text(),),
        clock=SystemClock(),
    )


def back_up(base: Path, component: FilesSettings, *, told: bool) -> None:
    """Take a snapshot; ``told`` of what rows refer to."""
    from drservice.components.odoo_filestore.capture import capture_files  # noqa: PLC0415  # of this job

    repository = opened(base, Identities())
    scope = repository.scope(ServiceName("erp"), component.name)
    referred = referred_to(base) if told else None
    with repository.writer(scope, state_dir=base / "state", workers=WORKERS, level=1) as writer:
        captured = capture_files(writer, component=component, referred=referred, clock=SystemClock(), progress=Silent())
        writer.commit(captured.commit_facts())


def restore(base: Path, component: FilesSettings) -> None:
    """Restore every document of the newest snapshot."""
    from drservice.components.odoo_filestore.placing import (  # noqa: PLC0415  # of this job
        PlaceContext,
        place_documents,
    )
    from drservice.repository.pool import early_workers  # noqa: PLC0415  # of this job

    with early_workers(WORKERS):
        repository = opened(base, Identities.load([f"file:{base}/identity"]))
        scope = repository.scope(ServiceName("erp"), component.name)
        wanted = referred_to(base)
        context = PlaceContext(repository=repository, scope=scope, account=None, workers=WORKERS, progress=Silent())
        newest = repository.snapshots(scope).records[-1].id
        placed = place_documents(context, [newest], base / "out", wanted=wanted)
        assert placed.placed == placed.expected == len(wanted), placed


def main() -> None:
    """Do the job."""
    job, base, source, *told = sys.argv[1:]
    component = FilesSettings(name=ComponentName("documents"), kind=FilesKind.ODOO_FILESTORE, path=Path(source))
    if job == "restore":
        restore(Path(base), component)
    else:
        back_up(Path(base), component, told=bool(told))


if __name__ == "__main__":
    main()
