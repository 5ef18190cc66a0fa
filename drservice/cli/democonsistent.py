"""The other way back after the demo's machine has died: to the newest instant that rows and documents share.

``restore --to latest`` brings every row there is, the newest ones without their document; ``--to consistent`` goes as
far as the documents do, and leaves out what is newer. Both are real recoveries from the same repository; this one runs
as a process of its own beside the other, is asked in its sandbox, and is destroyed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drservice import processes
from drservice.cli import demosite
from drservice.cli.plant import DATABASE, sales_in
from drservice.cli.plantdocuments import Filestore, documents_in
from drservice.components.postgres.connection import connect
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError
from drservice.model.estate import FilesKind

WORDS = ("restore", demosite.SERVICE, "--to", "consistent", "--start")

_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentCopy:
    """What came back."""

    orders: Mapping[str, int]
    documents: Mapping[str, str | None]
    told_missing: int
    """The restore's own count of rows without a document."""
    seconds: float
    """Until the recovered server ran."""


def recover_consistent(site: demosite.Site) -> ConsistentCopy:
    """Restore, ask for orders and documents, and destroy the copy.

    Raises:
        DrError: it cannot be restored, or something else listens in its place.
    """
    mark = time.monotonic()
    argv: list[str | Path] = [*demosite.recovery_program(site), "--json", *WORDS]
    done = processes.run(argv, timeout_seconds=_SECONDS)
    seconds = time.monotonic() - mark
    answer = _answer(done)
    environment = answer["environment"]
    sandbox = open_sandbox(Path(environment["path"]))
    try:
        sandbox.require_own_socket()
        filestore = next(item for item in answer["files"] if item["kind"] == FilesKind.ODOO_FILESTORE.value)
        dsn = f"{environment['dsn']} dbname={DATABASE}"
        with connect(dsn, application_name="drservice demo") as session:
            orders, documents = sales_in(session), documents_in(session, Filestore(Path(filestore["path"])))
    finally:
        sandbox.destroy()
    return ConsistentCopy(
        orders=orders, documents=documents, told_missing=int(answer["documents"]["missing"]), seconds=seconds
    )


def _answer(done: processes.Finished) -> dict[str, Any]:
    """Return what the restore says of itself; one that is not whole says so, too.

    Raises:
        DrError: it failed.
    """
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "environment" in answer:
        return answer
    said = answer["error"]["message"] if isinstance(answer, dict) and "error" in answer else done.last_line()
    raise DrError(f"`drservice {' '.join(WORDS)}` ended with status {done.status}: {said}")
