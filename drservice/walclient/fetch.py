"""The program in restore_command: places what was fetched ahead, else it becomes ``drservice wal fetch``.

    python -I -S .../walclient/fetch.py --config FILE --service S[/COMPONENT] --system-id ID --spool FOLDER --ahead N
        %f %p

``drservice check`` prints the whole line, with the shell's part that tells PostgreSQL the end of the WAL (status 44,
which only the slow way gives) from everything else. Exit 0 = placed, 127 = an error; never anything between.
"""

from __future__ import annotations

import os
import sys

_OPTIONS = ("--config", "--service", "--system-id", "--spool", "--ahead")
_FAILED = 127


def main(words: list[str]) -> int:
    """Place one WAL file and return the exit status, unless the slow way takes over this process."""
    from drservice.walclient.slow import become  # noqa: PLC0415 - found only when the caller has set the path
    from drservice.walclient.spool import take  # noqa: PLC0415 - as above

    given = dict(zip(words[0:-2:2], words[1:-2:2], strict=False))
    if len(words) != 12 or sorted(given) != sorted(_OPTIONS):
        os.write(2, b"error: walclient/fetch.py is called as `drservice check` prints it\n")
        return _FAILED
    config, service, system_id, spool, ahead = (given[name] for name in _OPTIONS)
    name, destination = words[-2:]
    reason = take(spool=spool, system_id=system_id, config=config, name=name, destination=destination)
    if not reason:
        return 0
    which = ["--service", service, "--system-id", system_id, "--ahead", ahead]
    words = ["--config", config, "wal", "fetch", *which, name, destination]
    return become(*words, failed=_FAILED, reason=f"the spool: {reason}")


if __name__ == "__main__":
    # Last, so that nothing there stands before the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - pathlib takes 10 ms to import
    sys.exit(main(sys.argv[1:]))
