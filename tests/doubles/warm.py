"""The program without the half second that it takes to load: how it works and what differs, see :mod:`warmserver`."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent


@functools.cache
def warm_program() -> tuple[str, ...]:
    """Return the words that stand for ``python -m drservice`` in an argv; the first call starts what they need."""
    folder = Path(tempfile.mkdtemp(prefix="drs-warm-"))
    folder.chmod(0o755)
    place = folder / "socket"
    client = shutil.copy(_HERE / "warmclient.py", folder)  # PostgreSQL's user may not read the checkout
    argv = [sys.executable, "-P", str(_HERE / "warmserver.py"), str(place)]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True)
    assert server.stdin is not None
    assert server.stdout is not None

    def end() -> None:
        server.communicate(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    assert server.stdout.readline() == b"ready\n", "the program could not be loaded"
    return (sys.executable, "-I", "-S", str(client), str(place))
