"""PostgreSQL's own verifiers, run inside beside the recovered server: pg_amcheck, and pg_checksums with it stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from drservice.checks.business import database_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredDatabase,
    RecoveredService,
    failed,
    passed,
    spoken,
    unverified,
)
from drservice.checks.postgres import databases
from drservice.components.postgres.asking import cut_after
from drservice.components.postgres.connection import Session, connect
from drservice.errors import EnvironmentFailedError, PostgresError
from drservice.model.checks import CheckState
from drservice.model.ids import ComponentName
from drservice.processes import Finished

Restart: TypeAlias = Callable[[RecoveredDatabase], None]
"""Starts a server that a check stopped, and returns when it takes connections."""

_SCHEMA = "drservice_amcheck"
_SESSION_SECONDS = 60.0
_STOP_SECONDS = 120.0
_RESTART_SECONDS = 30.0
_POLL_SECONDS = 0.1
_CORRUPT = 2
_BAD_CHECKSUMS = re.compile(r"^Bad checksums:\s+([0-9]+)$", re.MULTILINE)
_BLOCKS = re.compile(r"^Blocks scanned:\s+([0-9]+)$", re.MULTILINE)


def ask_amcheck(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Let pg_amcheck read every table and B-tree of every database, and compare each index with its table.

    It needs the extension ``amcheck``. Where a database lacks it, it is created in a schema of its own, and both are
    dropped afterwards: the one thing that a check writes into a copy.
    """
    recovered = database_of(service, component)
    if recovered.programs.major < 14:
        return NotApplicable(reason=f"pg_amcheck exists since PostgreSQL 14, and this is {recovered.programs.major}")
    names = databases(recovered, min(seconds, _SESSION_SECONDS))
    added: list[str] = []
    try:
        for name in names:
            if _install(recovered, name):
                added.append(name)  # noqa: PERF401 - what was added has to be known when the next one fails
        finished = recovered.environment.execute(
            [
                str(recovered.programs.path("pg_amcheck")),
                "--all", "--heapallindexed", "--no-password", "--host=/env/sock", "--port=5432", "--username=postgres",
            ],
            timeout_seconds=seconds,
        )  # fmt: skip
    finally:
        left = _uninstall(recovered, added)
    found = _amcheck_finding(finished, len(names))
    if left is None:
        return found
    if found.state is CheckState.PASSED:
        return unverified(left)
    return replace(found, detail=f"{found.detail}; {left}")


def _amcheck_finding(finished: Finished, count: int) -> Finding:
    if finished.status == 0:
        return passed(f"tables and B-trees of {count} databases are sound")
    if finished.status == _CORRUPT:
        return failed(f"pg_amcheck found damage: {_first_lines(finished.stdout, finished.stderr)}")
    return unverified(f"pg_amcheck ended with {finished.status}: {_first_lines(finished.stderr, finished.stdout)}")


def _install(recovered: RecoveredDatabase, database: str) -> bool:
    """Create the extension where it is not; tell whether it was created."""
    with _session(recovered, database) as session, cut_after(session, 2 * _SESSION_SECONDS):
        if session.rows("select 1 from pg_extension where extname = 'amcheck'"):
            return False
        session.rows("begin")  # both or none
        session.rows(f"create schema {_SCHEMA}")
        session.rows(f"create extension amcheck with schema {_SCHEMA}")
        session.rows("commit")
        return True


def _uninstall(recovered: RecoveredDatabase, added: Sequence[str]) -> str | None:
    """Drop what was created; return what is left and why.

    A damaged page can bring a server process down, and then the server starts anew: that is waited for.
    """
    deadline = time.monotonic() + _RESTART_SECONDS
    for database in added:
        while True:
            try:
                with _session(recovered, database) as session, cut_after(session, 2 * _SESSION_SECONDS):
                    session.rows(f"drop schema {_SCHEMA} cascade")
                break
            except (PostgresError, EnvironmentFailedError) as error:
                if time.monotonic() > deadline or not recovered.environment.running():
                    return f"schema {_SCHEMA} is left in {database!r}: {error.message}"
                time.sleep(_POLL_SECONDS)
    return None


def _session(recovered: RecoveredDatabase, database: str) -> Session:
    recovered.environment.require_own_socket()
    session = connect(recovered.dsn, application_name="drservice check", database=database)
    with cut_after(session, _SESSION_SECONDS):
        for name in ("statement_timeout", "lock_timeout"):
            session.rows("select pg_catalog.set_config(%s, %s, false)", (name, str(int(_SESSION_SECONDS * 1000))))
    return session


def ask_checksums(
    component: ComponentName, service: RecoveredService, seconds: float, *, restart: Restart | None
) -> Finding | NotApplicable:
    """Stop the server, let pg_checksums read every page, and start it again if it is kept."""
    recovered = database_of(service, component)
    if not recovered.data_checksums:
        return NotApplicable(reason="the cluster was made without data checksums")
    program = str(recovered.programs.path("pg_checksums"))
    recovered.environment.stop(timeout_seconds=min(seconds, _STOP_SECONDS))
    try:
        finished = recovered.environment.execute([program, "--check", "--pgdata=/env/data"], timeout_seconds=seconds)
    finally:
        if restart is not None:
            restart(recovered)
    output = finished.stdout.decode("utf-8", "replace")
    bad, blocks = _BAD_CHECKSUMS.search(output), _BLOCKS.search(output)
    if bad is not None and int(bad[1]):
        return failed(f"{bad[1]} pages are damaged: {_first_lines(finished.stderr, finished.stdout)}", value=bad[1])
    if finished.status == 0 and bad is not None and blocks is not None:
        return passed(f"{blocks[1]} pages agree with their checksums", value="0")
    return unverified(f"pg_checksums ended with {finished.status}: {_first_lines(finished.stderr, finished.stdout)}")


def _first_lines(*streams: bytes) -> str:
    """Return the start of what a program said, on one line: of the first stream that holds something."""
    text = next((stream.decode("utf-8", "replace") for stream in streams if stream.strip()), "it said nothing")
    return spoken(" ".join(text[:2000].split()), most=300)
