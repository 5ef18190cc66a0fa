"""What was compressed of a segment for its pieces, to be used again when it is stored as a whole.

Compressing is a third of what storing WAL costs a processor, and every byte is stored twice: soon, in a piece, and then
in its segment. A sealed body is made of frames that are compressed each by itself, so those of the pieces serve.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from drservice.repository.records import CODEC_RAW, FRAME_BYTES, PackedFrame, packed_frames

_LEAST_BYTES = FRAME_BYTES
"""Small pieces compress badly by themselves: what a server wrote in a day's small pieces is compressed anew."""
_MOST_BYTES = 4 << 20
"""Kept compressed of one segment at most; what was not worth compressing is not kept but where it lies."""


class Packing:
    """The frames of one segment, by where in it they begin; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stretches: dict[int, tuple[PackedFrame, ...]] = {}
        self._kept_bytes = 0

    def piece(self, begin: int, plain: memoryview) -> tuple[PackedFrame, ...]:
        """Return the frames of a piece that begins at ``begin`` of the segment; kept if there is room for them."""
        with self._lock:
            known = self._stretches.get(begin)
        if known is not None and sum(frame.plain_bytes for frame in known) == len(plain):
            return known
        frames = tuple(packed_frames(plain))
        kept = sum(len(frame.content) for frame in frames if frame.codec != CODEC_RAW)
        with self._lock:
            if len(plain) >= _LEAST_BYTES and begin not in self._stretches and self._kept_bytes + kept <= _MOST_BYTES:
                self._stretches[begin] = frames
                self._kept_bytes += kept
        return frames

    def whole(self, plain: memoryview) -> Iterator[PackedFrame]:
        """Yield the frames of the whole segment; what no piece brought is compressed here."""
        with self._lock:
            stretches = sorted(self._stretches.items())
        end = 0
        for begin, frames in stretches:
            if begin >= end:
                yield from packed_frames(plain[end:begin])
                yield from frames
                end = begin + sum(frame.plain_bytes for frame in frames)
        yield from packed_frames(plain[end:])
