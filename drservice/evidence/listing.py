"""Which entries a ledger has, asked of the store: a listing may leave something out, and never decides alone."""

from __future__ import annotations

import re

from drservice.errors import LedgerGapError, LedgerRollbackError, ObjectNotFoundError
from drservice.evidence.leafcache import LeafCache
from drservice.objectstore.interface import ObjectInfo, ObjectStore

PREFIX = "ledger/"

_NUMBER = re.compile("[0-9]{12}")


def entry_key(number: int) -> str:
    """Return the key of an entry."""
    return f"{PREFIX}{number:012d}"


class EntryListing:
    """The entries in a store, beside those that this host has seen.

    Raises:
        LedgerGapError: a number is missing and later ones are there.
        LedgerRollbackError: an entry that this host has seen is gone.
    """

    def __init__(self, store: ObjectStore, seen: LeafCache) -> None:
        self._store = store
        self._seen = seen

    def tail(self) -> int:
        """Return the next free number, by a listing that begins at the last entry this host has seen."""
        seen = self._seen.highest
        expected = max(seen, 0)
        start_after = entry_key(seen - 1) if seen > 0 else ""
        for info in self._store.list(PREFIX, start_after=start_after):
            name = info.key.removeprefix(PREFIX)
            if not name[:1].isdigit():
                break  # checkpoints and artefacts: behind every entry
            if _NUMBER.fullmatch(name) is None:
                continue
            for number in range(expected, int(name)):
                self._require_present(number)
            expected = int(name) + 1
        if expected <= seen:
            self._require_present(seen)
            expected = seen + 1
        return expected

    def all(self) -> list[ObjectInfo]:
        """Return what a complete listing says of every entry."""
        found: list[ObjectInfo] = []
        for info in self._store.list(PREFIX):
            name = info.key.removeprefix(PREFIX)
            if not name[:1].isdigit():
                break
            if _NUMBER.fullmatch(name) is None:
                continue
            self._fill(found, int(name))
            found.append(info)
        self._fill(found, self._seen.highest + 1)
        return found

    def _fill(self, found: list[ObjectInfo], size: int) -> None:
        """Ask for each entry below ``size`` that a listing left out."""
        while len(found) < size:
            self._require_present(len(found))
            found.append(self._store.stat(entry_key(len(found))))

    def _require_present(self, number: int) -> None:
        """Return if an entry that a listing left out is there after all."""
        try:
            self._store.stat(entry_key(number))
        except ObjectNotFoundError as error:
            if number == self._seen.highest:
                raise LedgerRollbackError(f"entry {number}, which this host has seen, is gone") from error
            raise LedgerGapError(f"entry {number} is missing in the ledger, and later ones are there") from error
