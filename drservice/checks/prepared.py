"""Checks of clones and of a Redis' content. Git and Redis run inside, beside the recovered server.

What they read may come from a hostile host; what they say is foreign.
"""

from __future__ import annotations

import re
import shutil

from drservice.checks.filestore import documents_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredService,
    failed,
    listed,
    passed,
    spoken,
    unverified,
)
from drservice.components.git.program import FENCE, program
from drservice.components.git.rebuilding import read_record
from drservice.components.git.record import CloneRecord
from drservice.environments.interface import Environment
from drservice.errors import UnansweredError
from drservice.model.estate import GitSettings, RedisRestore, RedisSettings
from drservice.model.ids import ComponentName

_INSIDE = "/env/files/{component}/files"
_FOLDERS = re.compile(r"[A-Za-z0-9._-]+")
_LOADED = re.compile(r"Done loading RDB, keys loaded: ([0-9]+)")
_READY = "eady to accept connections"
_FILES_OWN = "RDB '%"
"""Before what a server logs of a field of the file with such a name; no Redis makes one, and it may say anything."""
_OLDER = "Can't handle RDB format version"
_SAID_BYTES = 64 << 10


def ask_clones(component: ComponentName, service: RecoveredService, seconds: float) -> Finding:
    """Ask git for the refs, HEAD and all objects of each clone, and compare them with what production recorded."""
    root = documents_of(service, component).root
    settings = service.service.component(component)
    records = [read_record(path) for path in sorted(root.glob("*.json"))]
    environment = _environment(service)
    # A snapshot is partial where a clone could not be taken: what is not there cannot differ.
    named = settings.clones if isinstance(settings, GitSettings) else ()
    there = {record.path for record in records}
    wrong = [f"{path} is not in the snapshot" for path in map(str, named) if path not in there]
    for record in records:
        if _FOLDERS.fullmatch(record.folder) is None:
            raise UnansweredError("a record names a folder that no restore makes")
        wrong += [f"{record.folder}: {text}" for text in _compare(environment, component, record, seconds)]
    if wrong:
        return failed(f"{len(wrong)} things are not as recorded: {listed(wrong)}", value=str(len(wrong)))
    count = sum(len(record.refs) for record in records)
    return passed(
        f"{count} refs of {len(records)} clones are what was recorded, and their objects are there", value="0"
    )


def _compare(environment: Environment, component: ComponentName, record: CloneRecord, seconds: float) -> list[str]:
    folder = f"{_INSIDE.format(component=component)}/{record.folder}"
    git = (
        str(program()),
        *FENCE,
        "-c",
        "safe.directory=*",
        f"--git-dir={folder if record.bare else folder + '/.git'}",
    )

    def ask(*words: str) -> bytes:
        finished = environment.execute([*git, *words], timeout_seconds=seconds)
        if finished.status != 0:
            said = finished.stderr.decode("utf-8", "replace")
            raise _NotAsRecordedError(f"git {words[0]} ended with {finished.status}: {spoken(said, most=200)}")
        return finished.stdout

    try:
        refs = ask("for-each-ref", "--format=%(objectname) %(refname)").decode("utf-8", "surrogateescape")
        found = {name: commit for commit, _, name in (line.partition(" ") for line in refs.split("\n") if line)}
        wrong = [
            f"{name} differs" for name in sorted({*found, *record.refs}) if found.get(name) != record.refs.get(name)
        ]
        if record.head is not None and ask("rev-parse", "--verify", "HEAD^{commit}").decode().strip() != record.head:
            wrong.append("HEAD differs")
        if record.head is not None or record.refs:
            ask("fsck", "--connectivity-only", "--no-dangling", "--no-progress")
    except _NotAsRecordedError as error:
        return [str(error)]
    return wrong


class _NotAsRecordedError(Exception):
    """Git refused a question about a clone."""


def ask_redis(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Have a Redis load the recovered file; without one here, have its checker read it."""
    settings = service.service.component(component)
    if isinstance(settings, RedisSettings) and settings.restore is RedisRestore.FLUSH:
        return NotApplicable(reason="it begins empty after a restore (restore: flush)")
    dump = documents_of(service, component).root / "dump.rdb"
    if not dump.exists():
        return failed(f"{dump.name} was not recovered")
    folder = _INSIDE.format(component=component)
    environment = _environment(service)
    server = shutil.which("redis-server")
    if server is not None:
        return _loads(environment, server, folder, seconds)
    return _reads(environment, f"{folder}/{dump.name}", seconds)


def _reads(environment: Environment, path: str, seconds: float) -> Finding:
    checker = shutil.which("redis-check-rdb")
    if checker is None:
        return unverified("neither redis-server nor redis-check-rdb is installed here; the sum of the file is right")
    finished = environment.execute([checker, path], timeout_seconds=seconds)
    said = finished.stdout.decode("utf-8", "replace")
    if _OLDER in said:
        return unverified("the Redis here is older than the one that made the file")
    if finished.status != 0:
        return failed(f"redis-check-rdb ended with {finished.status}: {spoken(said[-300:])}")
    return passed("redis-check-rdb read it to its end")


class _LoadedError(Exception):
    """The server said what was to be known: it is ended."""


def _loads(environment: Environment, server: str, folder: str, seconds: float) -> Finding:
    said = bytearray()

    def take(piece: bytes) -> None:
        said.extend(piece)
        del said[:-_SAID_BYTES]
        if _READY.encode() in said:
            raise _LoadedError

    try:
        status: int | None = environment.stream(
            [
                server, "--dir", folder, "--dbfilename", "dump.rdb", "--port", "0", "--unixsocket", "/tmp/redis.sock",  # noqa: S108 - inside
                "--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", "",
            ],
            take=take,
            hear=lambda _: None,
            stall_seconds=seconds,
        )  # fmt: skip
    except _LoadedError:
        status = None
    text = said.decode("utf-8", "replace")
    if _FILES_OWN in text:
        return failed(
            "the file has the server print text of its own: what it says cannot be told from what the file says"
        )
    loaded = _LOADED.search(text)
    if status is None and loaded is not None:
        return passed(f"a Redis loaded {loaded[1]} keys", value=loaded[1])
    if status is None and "DB loaded from disk" in text:
        return passed("a Redis loaded it")
    if _OLDER in text:
        return unverified("the Redis here is older than the one that made the file")
    if status is None:
        return failed("a Redis started, and loaded nothing from it")
    return failed(f"a Redis does not load it (it ended with {status}): {spoken(text[-300:])}")


def _environment(service: RecoveredService) -> Environment:
    found = next(iter(service.databases.values()), None)
    if found is None:
        raise UnansweredError("there is no environment to look from")
    return found.environment
