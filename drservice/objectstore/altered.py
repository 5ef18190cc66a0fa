"""A store as it would look after an accident or an attack: for drills that must fail.

A verifier that never failed is unproven. So drills are repeated on a view of the real store in which an object is gone
or a byte of it is another one. Nothing is ever changed in the store itself: this view cannot write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from drservice.errors import ObjectNotFoundError
from drservice.objectstore.interface import ObjectInfo, ObjectStore
from drservice.objectstore.readonly import ReadOnlyStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Alteration:
    """What is different: objects that are gone, and bytes that are flipped (key to offset). Picklable."""

    hidden: frozenset[str] = frozenset()
    flipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlteredOpener:
    """Opens the altered view of a store; picklable, so that worker processes see the same."""

    opener: Callable[[], ObjectStore]
    alteration: Alteration

    def __call__(self) -> ObjectStore:
        """Open the store and alter the view of it."""
        return AlteredStore(self.opener(), self.alteration)


class AlteredStore(ReadOnlyStore):
    """A store in which something is missing or damaged."""

    def __init__(self, inner: ObjectStore, alteration: Alteration) -> None:
        super().__init__(inner)
        self._alteration = alteration

    @property
    def description(self) -> str:
        """A printable address without secrets."""
        return f"{self._inner.description} (altered for a drill that must fail)"

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object's bytes, or exactly ``length`` bytes from ``offset``, as they are after the accident."""
        self._require(key)
        return self._flip(key, self._inner.read(key, offset=offset, length=length), offset)

    def stat(self, key: str) -> ObjectInfo:
        """Return size and store time of an object."""
        self._require(key)
        return self._inner.stat(key)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by key, without those that are gone."""
        return (
            info
            for info in self._inner.list(prefix, start_after=start_after)
            if info.key not in self._alteration.hidden
        )

    def read_versions(self, key: str) -> Iterator[bytes]:
        """Yield the bodies of all versions, oldest first: every version is struck by the accident."""
        if key in self._alteration.hidden:
            return
        for body in self._inner.read_versions(key):
            yield self._flip(key, body, 0)

    def _require(self, key: str) -> None:
        if key in self._alteration.hidden:
            raise ObjectNotFoundError(f"{key} is not in {self.description}")

    def _flip(self, key: str, data: bytes, offset: int) -> bytes:
        place = self._alteration.flipped.get(key)
        if place is None or not offset <= place < offset + len(data):
            return data
        changed = bytearray(data)
        changed[place - offset] ^= 0xFF
        return bytes(changed)
