"""The program in archive_command: 0 if the helper has the file durably, else it becomes ``drservice wal push``.

    python -I -S .../walclient/push.py --config FILE --service S[/COMPONENT] --socket SOCKET %p

``drservice check`` prints the whole line. Started with ``-I -S`` it reads neither the environment nor site-packages.
Without a helper, and for every question the helper has no good answer to, the slow way decides: exit 0 = durable,
1 = not, never above 125, which PostgreSQL would not count as a failed attempt.
"""

from __future__ import annotations

import os
import sys

_OPTIONS = ("--config", "--service", "--socket")


def main(words: list[str]) -> int:
    """Archive one WAL file and return the exit status, unless the slow way takes over this process."""
    from drservice.walclient.client import ask  # noqa: PLC0415 - found only when the caller has set the path
    from drservice.walclient.slow import become  # noqa: PLC0415 - as above

    given = dict(zip(words[0:-1:2], words[1:-1:2], strict=False))
    if len(words) != 7 or sorted(given) != sorted(_OPTIONS):
        os.write(2, b"error: walclient/push.py --config FILE --service S --socket SOCKET PATH; see `drservice check`\n")
        return 1
    config, service, socket = (given[name] for name in _OPTIONS)
    reason = ask(socket=socket, config=config, service=service, path=words[-1])
    if not reason:
        return 0
    words = ["--config", config, "wal", "push", "--without-helper", "--service", service, words[-1]]
    return become(*words, failed=1, reason=f"the helper: {reason}")


if __name__ == "__main__":
    # Last, so that nothing there stands before the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - pathlib takes 10 ms to import
    sys.exit(main(sys.argv[1:]))
