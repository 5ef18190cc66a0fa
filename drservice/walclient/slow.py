"""The slow way: this process becomes ``drservice wal push`` or ``wal fetch``. Only here the client starts a program.

``processes.py`` starts programs elsewhere; loading it takes longer than all of the client.
"""

from __future__ import annotations

import os
import sys


def become(*words: str, failed: int, reason: str) -> int:
    """Become ``drservice WORDS``; returns ``failed`` only if that cannot be started.

    Args:
        words: the command line.
        failed: the exit status of an error in the protocol of the command.
        reason: why the fast way was not taken, for the message.
    """
    try:
        os.execv(sys.executable, [sys.executable, "-m", "drservice", *words])  # noqa: S606 - without a shell is what is wanted
    except OSError as error:
        os.write(2, f"error: cannot start {sys.executable}: {error.strerror} ({reason})\n".encode())
    return failed
