"""Which PostgreSQL cluster a component is: pinned by its first snapshot, changed only on purpose.

The truth is in the repository (the newest snapshot's system identifier; an imported one pins nothing, because no server
has that cluster). A small file in ``state_dir`` remembers it, so that a WAL push needs no listing; ``init --adopt``
writes there that the next cluster is to be believed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from drservice import telemetry
from drservice.errors import RepositoryError, SystemIdentifierError
from drservice.model.ids import SystemId
from drservice.model.origin import own_snapshots
from drservice.processes import create_private, make_folder
from drservice.repository.records import Scope
from drservice.repository.repository import Repository

_ADOPT = "adopt"


@dataclass(frozen=True, slots=True)
class Lineage:
    """The pin of one component on this host."""

    repository: Repository
    scope: Scope
    state_dir: Path

    @property
    def _path(self) -> Path:
        return self.state_dir / "pins" / f"{self.scope.service}-{self.scope.component}.json"

    def pinned(self) -> SystemId | None:
        """Return the system identifier that is believed, ``None`` before the first snapshot or after ``adopt``."""
        known = self._read()
        if known == _ADOPT:
            return None
        if known is not None:
            return SystemId(known)
        records = own_snapshots(self.repository.snapshots(self.scope).records)
        if not records:
            return None
        newest = records[-1].postgres.system_id
        self._remember(newest)
        return newest

    def require(self, system_id: SystemId) -> None:
        """Check that a cluster is the one this component was created with.

        Raises:
            SystemIdentifierError: it is another.
        """
        pinned = self.pinned()
        if pinned is not None and pinned != system_id:
            raise SystemIdentifierError(
                f"{self.scope.service}/{self.scope.component} is cluster {pinned}, but this server is {system_id}"
            )

    def pin(self, system_id: SystemId) -> None:
        """Remember the cluster; call it after its first snapshot is committed."""
        if self._read() != system_id:
            self._remember(system_id)

    def adopt(self) -> None:
        """Believe whichever cluster comes next: a new lineage begins, the old one stays restorable.

        Raises:
            RepositoryError: it cannot be written down, so nothing changed.
        """
        try:
            self._write(_ADOPT)
        except OSError as error:
            raise RepositoryError(
                f"cannot write {self._path}: {error.strerror}",
                hint="Run as the user that owns state_dir, and see that it has space left.",
            ) from error

    def _read(self) -> str | None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RepositoryError(
                f"cannot read {self._path}: {error}", hint="Remove the file; it is made anew."
            ) from error
        found = content.get("system_id") if isinstance(content, dict) else None
        return found if isinstance(found, str) else None

    def _remember(self, system_id: str) -> None:
        """Write the pin, if this host's disk takes it: without it the repository is asked each time."""
        if not os.access(self.state_dir, os.W_OK):
            return  # a reader without a state directory of its own
        try:
            self._write(system_id)
        except OSError as error:
            telemetry.warning("pin not written", path=str(self._path), problem=str(error))

    def _write(self, system_id: str) -> None:
        make_folder(self._path.parent)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            with os.fdopen(create_private(temporary), "w", encoding="utf-8") as stream:
                stream.write(json.dumps({"system_id": system_id}))
                stream.flush()
                os.fsync(stream.fileno())  # an empty file after a power cut would stop archiving until somebody looks
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
