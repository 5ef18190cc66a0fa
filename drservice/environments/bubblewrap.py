"""The command line that makes a sandbox: pure, so that server, programs and self-test share one.

Made by bubblewrap (bwrap(1)): namespaces of its own for network, processes, IPC and host name; a root that
holds ``/usr`` (read-only), a made-up ``/etc``, ``/proc``, a minimal ``/dev`` and the environment's folders
below ``/env``, and is itself read-only; no inherited environment; no controlling terminal; no capability and
no way to regain one; a filter for system calls. As root the server account is entered with setpriv(1), otherwise
the user namespace is unshared and closed for further nesting.

bwrap stays process 1 inside. It reaps orphans there: as process 1 PostgreSQL would take the failure of an
orphan of ``COPY ... PROGRAM`` for a crashed backend and restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drservice.environments.limits import Limits
from drservice.processes import Account

STARTED_DESCRIPTOR = 9
"""Where the shell inside tells the keeper that everything stands; one digit, dash knows no others."""

FILTER_DESCRIPTOR = 8
"""Where bwrap of a server reads its system-call filter."""

INSIDE_VARIABLES: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108 - a private tmpfs inside, not the host's
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
"""All that a program inside finds in its environment."""

WRITABLE = ("/env/data", "/env/wal", "/env/sock", "/env/log", "/tmp", "/dev/shm")  # noqa: S108 - inside
"""All that can be written inside, but for folders that are shared with the host under their own paths."""

_FIRST_TO_DIE = "500"
"""oom_score_adj (proc(5)): the host's out-of-memory killer prefers what is inside to production."""

_SHELL_TELLS_KEEPER = f'printf s >&{STARTED_DESCRIPTOR}; exec {STARTED_DESCRIPTOR}>&-; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is bound where, and who runs inside.

    ``account`` is ``None`` when not root: then everything runs as the present user in a user namespace.
    ``usr_merged`` says which of /bin, /sbin, /lib, /lib64 are links below /usr on this host (name -> target);
    ``usr_folders`` names those that are folders of their own; ``etc_extras`` are read-only files and folders
    of the host's /etc without secrets that the loader needs.
    """

    data: Path
    wal: Path
    sock: Path
    log: Path
    conf: Path
    files: Path
    account: Account | None
    limits: Limits
    usr_merged: Mapping[str, str] = field(default_factory=dict)
    usr_folders: Sequence[str] = ()
    etc_extras: Sequence[str] = ()
    folders: Mapping[str, Path] = field(default_factory=dict)
    """What is bound read-only below /env/files from elsewhere."""
    shared: Sequence[Path] = ()
    """What is bound writable under its own path."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links to stand inside: path -> where it leads."""
    filter_descriptor: int = FILTER_DESCRIPTOR
    """Where bwrap reads the system-call filter (seccomp.py)."""
    present_processes: int = 0
    """As root RLIMIT_NPROC counts the account's processes on the whole host; these are there already."""


def sandbox_argv(layout: Layout, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the argv that runs ``argv`` inside; nothing of the caller's environment goes along.

    Mounts happen in order: what is bound later hides what was there, and the two ``--remount-ro`` come last.
    """
    return [
        "bwrap",
        *_namespaces(layout.account),
        *_variables({**INSIDE_VARIABLES, **(environment or {})}),
        *_system(layout),
        *_devices(layout.limits),
        *_folders(layout),
        "--remount-ro", "/dev",
        "--remount-ro", "/",
        "--chdir", "/",
        "--seccomp", str(layout.filter_descriptor),
        "--",
        *_bounds(layout),
        *_become(layout.account),
        *argv,
    ]  # fmt: skip


def telling_argv(argv: Sequence[str]) -> list[str]:
    """Wrap ``argv`` so that the keeper hears one byte just before the program begins."""
    return ["/bin/sh", "-c", _SHELL_TELLS_KEEPER, "sh", *argv]


def _namespaces(account: Account | None) -> list[str]:
    shared = [
        "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "drservice",
        "--die-with-parent",
        "--new-session",
    ]  # fmt: skip
    if account is None:
        return ["--unshare-user", "--disable-userns", *shared]
    # What setpriv needs to leave root for good, and nothing else.
    keep = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
    return [*shared, "--cap-drop", "ALL", *(word for cap in keep for word in ("--cap-add", cap))]


def _variables(values: Mapping[str, str]) -> list[str]:
    return ["--clearenv", *(word for name, value in values.items() for word in ("--setenv", name, value))]


def _system(layout: Layout) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name, target in layout.usr_merged.items():
        words += ["--symlink", target, f"/{name}"]
    for name in layout.usr_folders:
        words += ["--ro-bind", f"/{name}", f"/{name}"]
    words += ["--ro-bind", str(layout.conf / "etc"), "/etc"]
    for name in layout.etc_extras:
        words += ["--ro-bind", f"/etc/{name}", f"/etc/{name}"]
    return words


def _devices(limits: Limits) -> list[str]:
    size = ["--size", str(limits.memory_bytes)] if limits.memory_bytes is not None else []
    # PostgreSQL's dynamic shared memory lives in /dev/shm; the one that --dev makes belongs to root.
    return [
        "--proc", "/proc",
        "--dev", "/dev",
        "--perms", "1777", *size, "--tmpfs", "/dev/shm",  # noqa: S108 - a path inside
        "--perms", "1777", *size, "--tmpfs", "/tmp",  # noqa: S108 - a path inside
    ]  # fmt: skip


def _folders(layout: Layout) -> list[str]:
    bound: list[str] = []
    for name, path in layout.folders.items():
        bound += ["--ro-bind", str(path), f"/env/files/{name}"]
    # Folders on the way that bwrap makes by itself are closed to the account inside.
    ways = {way for place in (*layout.shared, *map(Path, layout.links)) for way in place.parents if way != Path("/")}
    bound += [word for way in sorted(ways) for word in ("--perms", "0755", "--dir", str(way))]
    for path in layout.shared:
        bound += ["--bind", str(path), str(path)]
    for place, target in layout.links.items():
        bound += ["--symlink", target, place]
    return [
        "--perms", "0755", "--dir", "/env",
        "--bind", str(layout.data), "/env/data",
        "--bind", str(layout.wal), "/env/wal",
        "--bind", str(layout.sock), "/env/sock",
        "--bind", str(layout.log), "/env/log",
        "--ro-bind", str(layout.conf), "/env/conf",
        "--ro-bind", str(layout.files), "/env/files",
        *bound,
    ]  # fmt: skip


def _bounds(layout: Layout) -> list[str]:
    limits = layout.limits
    words: list[str] = []
    if limits.niceness:
        words += ["nice", "-n", str(limits.niceness), "choom", "-n", _FIRST_TO_DIE, "--"]
    bounds = []
    if limits.memory_bytes is not None:
        # RLIMIT_AS would count shared memory once per backend; RLIMIT_DATA counts what is private.
        bounds.append(f"--data={limits.memory_bytes}:{limits.memory_bytes}")
    if limits.processes is not None:
        most = limits.processes + layout.present_processes
        bounds.append(f"--nproc={most}:{most}")
    if limits.open_files is not None:
        bounds.append(f"--nofile={limits.open_files}:{limits.open_files}")
    if limits.disk_bytes is not None:
        bounds.append(f"--fsize={limits.disk_bytes}:{limits.disk_bytes}")
    bounds.append("--core=0:0")
    return [*words, "prlimit", *bounds]


def _become(account: Account | None) -> list[str]:
    if account is None:
        return []
    return [
        "setpriv",
        f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups",
        "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all",
        "--",
    ]  # fmt: skip
