"""The keeper: a small process that owns one sandbox, so that the caller may end or crash.

``python -m drservice.environments.keeper ROOT`` reads ``ROOT/keeper/launch.json``, leaves the caller's session,
starts bwrap and waits for it, watching what it uses. bwrap runs with ``--die-with-parent``, which follows the
starting *thread*; the keeper has only one. If the keeper dies, everything inside dies with it; if the caller
dies, the keeper stays, and ``environment destroy`` or the reaper ends it.

In ``ROOT/keeper/`` it leaves ``state.json`` (its identity, and the server's once that runs), ``exit.json``
(how the server ended, and for which broken limit if for one; durable), ``usage.json`` (what was used so far) and
``server.log`` (what the server wrote). A broken limit ends everything inside at once, the end of the lifetime
after a fast shutdown. Signals to the keeper: SIGINT and
SIGTERM ask the server for a fast shutdown, SIGQUIT for an immediate one (PostgreSQL's meaning of SIGINT and
SIGQUIT).

It starts fast: standard library only, besides ``processes``, which starts programs, and its neighbours that need
no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from drservice import processes
from drservice.environments import proc, seccomp
from drservice.environments.limits import BrokenLimit, LimitKind
from drservice.environments.watch import PERIOD_SECONDS, Bounds, Watch

LAUNCH = "launch.json"
STATE = "state.json"
EXIT = "exit.json"
BROKEN = "broken.json"
"""Which limit was broken, from before anything is killed for it: whoever is killed may be asked at once why."""
SERVER_LOG = "server.log"
KEEPER_LOG = "keeper.log"

_STARTED_DESCRIPTOR = 9
"""The same number as in ``bubblewrap.STARTED_DESCRIPTOR`` (that module takes longer to load; a test compares)."""
_FILTER_DESCRIPTOR = 8
"""Likewise ``bubblewrap.FILTER_DESCRIPTOR``."""
_START_SECONDS = 30.0
_LAST_ORDERS_SECONDS = 10.0
_KILL_SECONDS = 15.0
_KILL_PERIOD_SECONDS = 0.01
_FORWARDED = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGINT,
    signal.SIGQUIT: signal.SIGQUIT,
}


def main(arguments: list[str]) -> int:
    """Become the keeper of the environment in ``arguments[0]``; returns 0 to the caller once the server began."""
    if len(arguments) != 1:
        sys.stderr.write("usage: keeper ROOT\n")
        return 2
    folder = Path(arguments[0]) / "keeper"
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        os._exit(_keep(folder, write_end))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        report = stream.read()
    if report == b"started":
        return 0
    sys.stderr.write(report.decode("utf-8", "replace") or "the keeper ended before the server began\n")
    return 1


def read_log(root: Path, *, offset: int, length: int = -1) -> bytes:
    """Return what the server wrote: from ``offset`` on, from the end if it is negative; nothing if there is no log."""
    try:
        with (root / "keeper" / SERVER_LOG).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(offset if offset >= 0 else max(0, size + offset))
            return stream.read(length)
    except FileNotFoundError:
        return b""


def write_durably(path: Path, value: object) -> None:
    """Write a JSON file so that after a crash it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep(folder: Path, report: int) -> int:
    os.setsid()
    _leave_callers_streams(folder)
    launch = json.loads((folder / LAUNCH).read_text(encoding="utf-8"))
    watch = Watch(folder.parent, Bounds(**launch["bounds"]))
    own = proc.identity_of(os.getpid())
    assert own is not None
    _note(folder, {"keeper": dataclasses.asdict(own)})
    # Only now: with neither note for a moment, a reaper could take a restart for a leftover.
    for name in (EXIT, BROKEN):
        (folder / name).unlink(missing_ok=True)
    read_end, write_end = os.pipe()
    os.dup2(write_end, _STARTED_DESCRIPTOR)
    os.close(write_end)
    os.dup2(seccomp.open_filter(), _FILTER_DESCRIPTOR)
    with (folder / SERVER_LOG).open("ab") as log:
        bwrap = processes.start(
            launch["argv"], stdout=log, stderr=log, pass_fds=(_STARTED_DESCRIPTOR, _FILTER_DESCRIPTOR)
        )
    os.close(_STARTED_DESCRIPTOR)
    os.close(_FILTER_DESCRIPTOR)
    # Blocked only now: what is blocked before would stay blocked inside.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD, signal.SIGHUP})
    if not _began(read_end):
        _give_up(folder, bwrap, report)
        return 1
    os.close(read_end)
    server = _server_of(bwrap.pid)
    if server is not None:
        _note(folder, {"keeper": dataclasses.asdict(own), "server": dataclasses.asdict(server)})
    os.write(report, b"started")
    os.close(report)
    broken = _watch_until_its_end(folder.parent, watch, bwrap, server)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    watch.note(cpu_ms=int((usage.ru_utime + usage.ru_stime) * 1000))
    status = 128 - bwrap.returncode if bwrap.returncode < 0 else bwrap.returncode
    write_durably(folder / EXIT, {"status": status, "broken": _as_note(broken) if broken else None})
    return 0


def _leave_callers_streams(folder: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder / KEEPER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


def _note(folder: Path, state: dict[str, object]) -> None:
    temporary = folder / f".{STATE}.new"
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(folder / STATE)


def _began(read_end: int) -> bool:
    ready, _, _ = select.select([read_end], [], [], _START_SECONDS)
    return bool(ready) and os.read(read_end, 1) == b"s"


def _give_up(folder: Path, bwrap: subprocess.Popen[bytes], report: int) -> None:
    bwrap.kill()
    status = bwrap.wait()
    tail = (folder / SERVER_LOG).read_bytes()[-2000:]
    write_durably(folder / EXIT, {"status": 128 - status if status < 0 else status})
    os.write(report, b"the sandbox could not be made: " + (tail.strip() or b"bwrap said nothing"))
    os.close(report)


def _server_of(bwrap_pid: int) -> proc.ProcessIdentity | None:
    """Return the program's process: the only child of process 1 inside, which is the only child of bwrap."""
    for first in proc.children_of(bwrap_pid):
        for server in proc.children_of(first.pid):
            return server
    return None  # it has ended already


def _watch_until_its_end(
    root: Path, watch: Watch, bwrap: subprocess.Popen[bytes], server: proc.ProcessIdentity | None
) -> BrokenLimit | None:
    """Wait for the end, passing signals on, or bring it about; returns the limit that was broken."""
    broken: BrokenLimit | None = None
    kill_at = 0.0
    while bwrap.poll() is None:
        received = signal.sigtimedwait({*_FORWARDED, signal.SIGCHLD, signal.SIGHUP}, PERIOD_SECONDS)
        forwarded = _FORWARDED.get(signal.Signals(received.si_signo)) if received is not None else None
        if forwarded is not None and server is not None:
            proc.send_signal(server, forwarded)
        found = watch.look()
        if broken is None and found is not None:
            broken = found
            with contextlib.suppress(OSError):  # it is told again at the end
                write_durably(root / "keeper" / BROKEN, _as_note(broken))
            if broken.limit is LimitKind.LIFETIME and server is not None:
                kill_at = time.monotonic() + _LAST_ORDERS_SECONDS
                proc.send_signal(server, signal.SIGINT)
        if broken is not None and time.monotonic() >= kill_at:
            _kill_everything(root, bwrap)
    if broken is not None:
        _kill_everything(root, bwrap)  # programs beside the server
    return broken


def _as_note(broken: BrokenLimit) -> dict[str, object]:
    return {"limit": broken.limit.value, "detail": broken.detail}


def _kill_everything(root: Path, bwrap: subprocess.Popen[bytes]) -> None:
    """Kill all that lives in the environment; what hangs in the disk is left to the reaper."""
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := proc.processes_of(root)) and time.monotonic() < deadline:
        for identity in left:
            proc.send_signal(identity, signal.SIGKILL)
        bwrap.poll()
        time.sleep(_KILL_PERIOD_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
