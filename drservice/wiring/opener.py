"""Opening the object store again in worker processes: a module of its own, because each of them loads it first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drservice.model.storing import NO_SETTINGS, StoreSettings
from drservice.objectstore.interface import ObjectStore
from drservice.objectstore.opening import open_store
from drservice.objectstore.paced import PacedStore


@dataclass(frozen=True, slots=True)
class StoreOpener:
    """Opens the estate's object store; picklable, so that worker processes open their own."""

    url: str
    lock_dir: Path
    bytes_per_second: int | None = None
    settings: StoreSettings = NO_SETTINGS

    def __call__(self) -> ObjectStore:
        """Open the store."""
        store = open_store(self.url, lock_dir=self.lock_dir, settings=self.settings)
        return store if self.bytes_per_second is None else PacedStore(store, bytes_per_second=self.bytes_per_second)
