"""Memory does not grow with the number of documents, or only by what a list of their names takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site, noise


def peaks(base: Path, files: int) -> list[int]:
    """Return the peaks after the first capture, the second, and the restore."""
    base.mkdir()
    filestore = Filestore(site=Site(base=base, **_UNUSED))  # type: ignore[arg-type]  # only its folder is used
    filestore.folder.mkdir()
    filestore.fill(files, largest=60)
    filestore.add(noise(2 << 20))  # a pack takes its 32 MiB when it outgrows the first one: here it does, always
    script = Path(__file__).with_name("measured_filestore.py")
    done = subprocess.run([sys.executable, script, base], capture_output=True, text=True, check=True)
    return [int(peak) for peak in done.stdout.split()]


_UNUSED = dict.fromkeys(("store", "open_store", "host", "secret_identity", "recipient"))


def test_ten_times_the_documents_take_little_more_memory(tmp_path: Path) -> None:
    few, many = peaks(tmp_path / "few", 1_000), peaks(tmp_path / "many", 10_000)
    first, second, restore = (more - less for less, more in zip(few, many, strict=True))
    # 2.7 KiB a document, and 3.6 with the restore.
    assert first < 24, "what was read waits for its pack to have a name: 32,768 files at most"
    assert second < 24
    assert restore < 32, "a restore plans 32,768 files at once, about 0.5 KiB each, and knows the names that are wanted"
    assert max(many) < 250
