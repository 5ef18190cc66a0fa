"""A count of everything that an environment could leave behind on the host, taken before and after.

The machine is shared with other tests, so it counts what belongs to one folder of environments: what is named by
their path or by their ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from drservice.environments import proc

_SHORT_SOCKETS = (Path("/run/drservice"), Path(f"/tmp/drservice-{os.getuid()}"))
_KINDS = ("net", "pid", "mnt", "ipc", "uts", "user", "cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What there is of one folder of environments."""

    processes: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    """Namespaces that outlive their processes: bound to a file, or held open by this process or a child of it."""
    folders: frozenset[str]
    cgroups: frozenset[str]
    loop_devices: frozenset[str]

    def more_than(self, before: Census) -> dict[str, list[str]]:
        """Return what is new, by kind; empty if nothing is."""
        new = {field.name: sorted(getattr(self, field.name) - getattr(before, field.name)) for field in fields(self)}
        return {name: left for name, left in new.items() if left}


def take_census(environments_dir: Path, ids: Iterable[str] = ()) -> Census:
    """Count what there is now; ``ids`` are the environments made so far, to know their traces elsewhere."""
    needles = [os.fsencode(environments_dir), *(name.encode() for name in ids)]
    mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return Census(
        processes=frozenset(f"{pid}: {what}" for pid, what in _processes(needles)),
        mounts=frozenset(line.decode() for line in mounts if _mentions(line, needles)),
        namespaces=frozenset([*(line.decode() for line in mounts if b" - nsfs " in line), *_held_namespaces()]),
        folders=frozenset(map(str, _folders(environments_dir, ids))),
        cgroups=frozenset(str(path) for path in _cgroups() if _mentions(os.fsencode(path.name), needles)),
        loop_devices=frozenset(
            str(path)
            for path in Path("/sys/block").glob("loop*/loop/backing_file")
            if _mentions(path.read_bytes(), needles)
        ),
    )


def namespaces_of(root: Path) -> frozenset[str]:
    """Return the namespaces in which the processes of an environment live and this process does not."""
    own = {_link(Path(f"/proc/self/ns/{kind}")) for kind in _KINDS}
    found: set[str] = set()
    for identity in proc.processes_of(root):
        found.update(_namespaces(identity.pid))
    return frozenset(found - own)


def holders_of(namespaces: frozenset[str]) -> list[str]:
    """Return the processes in one of these namespaces.

    The kernel gives a number anew as soon as it is free: processes of other environments are left out.
    """
    return [
        f"{pid}: {_read(pid, 'cmdline')!r}"
        for pid in _pids()
        if namespaces & _namespaces(pid) and b" /env/" not in _read(pid, "mountinfo")
    ]


def _processes(needles: list[bytes]) -> Iterator[tuple[int, str]]:
    for pid in _pids():
        if pid == os.getpid() or proc.identity_of(pid) is None:
            continue
        for name in ("cmdline", "mountinfo", "environ"):
            if _mentions(_read(pid, name), needles):
                # Everybody sees a mount that a test itself made; inside are those with one of their own.
                if name == "mountinfo" and b" /env/" not in _read(pid, name):
                    continue
                yield pid, name
                break


def _folders(environments_dir: Path, ids: Iterable[str]) -> Iterator[Path]:
    if environments_dir.is_dir():
        yield from environments_dir.iterdir()
    for base in _SHORT_SOCKETS:
        yield from (base / name for name in ids if (base / name).exists())


def _cgroups() -> Iterator[Path]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        yield from (Path(folder, name) for name in names)


def _held_namespaces() -> Iterator[str]:
    for pid in (os.getpid(), *(child.pid for child in proc.children_of(os.getpid()))):
        try:
            links = [_link(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue  # it has ended
        yield from (link for link in links if link.startswith(tuple(f"{kind}:[" for kind in _KINDS)))


def _namespaces(pid: int) -> frozenset[str]:
    found: set[str] = set()
    for kind in _KINDS:
        try:
            found.add(_link(Path(f"/proc/{pid}/ns/{kind}")))
        except OSError:
            continue  # it has ended, or is another user's
    return frozenset(found)


def _link(path: Path) -> str:
    return os.fspath(path.readlink())


def _mentions(text: bytes, needles: list[bytes]) -> bool:
    return any(needle in text for needle in needles)


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
