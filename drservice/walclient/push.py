"""The program in archive_command: 0 if the helper has the file durably, else it becomes ``drservice wal push``.

    python -I -S .../walclient/push.py --config FILE --service S[/COMPONENT] --socket SOCKET %p

``drservice check`` prints the whole line. Started with ``-I -S`` it reads neither the environment nor site-packages.
Without a helper, and for every question the helper has no good answer to, the slow way decides: exit 0 = durable,
1 = not, never above 125, which PostgreSQL would not count as a failed attempt.
"""

from __future__ import annotations

import posix  # what ``os`` is made of, which costs a fifth of the start
import sys

_OPTIONS = ("--config", "--service", "--socket")


def main(words: list[str]) -> int:
    """Archive one WAL file and return the exit status, unless the slow way takes over this process."""
    from drservice.walclient.client import ask  # noqa: PLC0415 - found only when the caller has set the path

    given = dict(zip(words[0:-1:2], words[1:-1:2], strict=False))
    if len(words) != 7 or sorted(given) != sorted(_OPTIONS):
        posix.write(2, b"error: push.py --config FILE --service S --socket SOCKET PATH; see `drservice check`\n")
        return 1
    config, service, socket = (given[name] for name in _OPTIONS)
    reason = ask(socket=socket, config=config, service=service, path=words[-1])
    if not reason:
        return 0
    from drservice.walclient.slow import become  # noqa: PLC0415 - only where it is needed

    words = ["--config", config, "wal", "push", "--without-helper", "--service", service, words[-1]]
    return become(*words, failed=1, reason=f"the helper: {reason}")


if __name__ == "__main__":
    # Last, so that nothing there stands before the standard library. Nothing is buffered, so nothing is taken apart.
    sys.path.append(__file__.rsplit("/", 3)[0])
    posix._exit(main(sys.argv[1:]))  # noqa: SLF001 - it is os._exit
