"""Checking pages while a relation file is captured (trap T14). Picklable, so that worker processes can do it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

_REREADS = 5
_REREAD_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class PageChecker:
    """Checks batches of one relation segment file; ``first_block`` is the file's first block within the fork."""

    first_block: int
    block_bytes: int

    def __call__(self, descriptor: int, offset: int, data: memoryview) -> Sequence[int]:
        """Return the byte offsets in the file of damaged pages.

        A page that does not fit its checksum is read again: if it is right then, the first read met a write half done
        and WAL replay repairs the copy; if it stays wrong, it is damaged on disk.
        """
        # numpy comes only into the processes that check pages; it costs a tenth of a second to load
        from drservice.components.postgres.pagechecksum import verify_pages  # noqa: PLC0415  # see above

        first = self.first_block + offset // self.block_bytes
        suspects = verify_pages(data, first_block=first, block_bytes=self.block_bytes).bad_blocks
        bad: list[int] = []
        for block in suspects:
            begin = (block - first) * self.block_bytes
            if self._is_damaged(descriptor, offset + begin, block):
                bad.append(offset + begin)
        return bad

    def _is_damaged(self, descriptor: int, offset: int, block: int) -> bool:
        from drservice.components.postgres.pagechecksum import verify_pages  # noqa: PLC0415  # as above

        for _ in range(_REREADS):
            again = os.pread(descriptor, self.block_bytes, offset)
            if len(again) < self.block_bytes:
                return False  # truncated away meanwhile
            if not verify_pages(again, first_block=block, block_bytes=self.block_bytes).bad_blocks:
                return False
            time.sleep(_REREAD_PAUSE_SECONDS)
        return True
