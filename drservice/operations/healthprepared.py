"""What ``check`` asks about clones and about a Redis before a backup has to find out."""

from __future__ import annotations

import os
from pathlib import Path

from drservice import processes
from drservice.components.git.locating import locate
from drservice.components.git.program import program
from drservice.components.redis.client import RedisServer
from drservice.credentials import resolve
from drservice.errors import GitCloneError, RedisError
from drservice.model.estate import GitSettings, RedisRestore, RedisSettings, Service
from drservice.operations.checklist import Checklist
from drservice.processes import files_as


def check_clones(component: GitSettings, prefix: str, checklist: Checklist) -> None:
    """Ask whether git is there, and whether each folder is a clone that its owner can read."""
    with checklist.asking(f"{prefix}: git"):
        checklist.ok(f"{prefix}: git", str(program()))
    for path in component.clones:
        name = f"{prefix}: clone {path}"
        with checklist.asking(name):
            located = _locate(path)
            checklist.ok(name, "a bare repository" if located else "a clone with a working tree")


def _locate(path: Path) -> bool:
    """Tell whether a clone is bare."""
    owner = path.stat().st_uid
    try:
        account = processes.account_of(path) if os.geteuid() == 0 and owner != 0 else None
    except KeyError:
        raise GitCloneError(f"{path} belongs to user {owner}, whom this host does not know") from None
    with files_as(account):
        return locate(path).work_tree is None


def check_redis(service: Service, component: RedisSettings, prefix: str, checklist: Checklist) -> None:
    """Ask whether Redis answers, and whether anything is promised of it that it cannot keep.

    A Redis is captured at backups and nowhere between them. With ``restore: load`` a restore brings back what it held
    then: what was written since is lost, and no objective for lost work can be promised for it.
    """
    name = f"{prefix}: redis"
    with checklist.asking(name):
        password = resolve(component.password) if component.password is not None else None
        with RedisServer(
            component.url, password=password, ca_file=component.ca_file, silence_seconds=20, whole_seconds=60
        ) as server:
            version = server.info("server").get("redis_version", "an unknown version")
            shown = version[:40] if version.isprintable() else "an unknown version"
            checklist.ok(name, f"version {shown} at {server.place}")
            keeps = _what_it_keeps(server)
        _judge_durability(service, component, prefix, keeps, checklist)


def _judge_durability(
    service: Service, component: RedisSettings, prefix: str, keeps: str | None, checklist: Checklist
) -> None:
    name = f"{prefix}: durability"
    if component.restore is RedisRestore.FLUSH:
        checklist.ok(name, "restore: flush: nothing in it is relied upon")
        return
    promised = service.objectives.rpo
    if promised is not None:
        checklist.fail(
            name,
            f"restore: load, and the service promises an RPO of {promised.total_seconds():.0f} s: what is written to"
            " Redis between two backups is lost",
            "Declare `restore: flush` if it can be made anew; keep what must not be lost in the database; or give this"
            " Redis a service of its own without `rpo`.",
        )
    elif keeps is None:
        checklist.fail(
            name,
            "restore: load, and this Redis keeps nothing on disk (no AOF, no save points): when it stops, everything"
            " since the last backup is lost",
            "Set `appendonly yes` or `save` in redis.conf, or declare `restore: flush`.",
        )
    else:
        checklist.warn(
            name,
            f"restore: load brings back what the last backup took; what was written since is lost (it keeps {keeps})",
            "Nobody can promise an RPO for it; back up as often as that loss may be.",
        )


def _what_it_keeps(server: RedisServer) -> str | None:
    """Return how Redis itself keeps its content on disk; ``None`` = not at all."""
    if server.info("persistence").get("aof_enabled") == "1":
        return "an append-only file"
    try:
        found = server.ask("CONFIG", "GET", "save")
    except RedisError:
        return "nothing that this user may ask for"
    if isinstance(found, list) and found[1:2] not in ([b""], []):
        return "RDB files by its save points"
    return None
