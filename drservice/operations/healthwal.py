"""What ``check`` says about archiving: the lines for postgresql.conf, and whether a helper archives ahead."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from drservice.errors import WalError
from drservice.model.estate import Estate, PostgresSettings, Service
from drservice.operations.checklist import Checklist
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import helper_state, socket_path
from drservice.walclient import push

_CLIENT = "walclient/push.py"


def archive_lines(estate: Estate, service: Service, component: PostgresSettings) -> list[str]:
    """Return the exact lines for postgresql.conf; drservice never edits it.

    The program named there asks the helper, and is ``drservice wal push`` where there is none.
    """
    socket = socket_path(estate.state_dir.absolute(), service.name, component.name)
    words = [
        *(sys.executable, "-I", "-S", str(Path(push.__file__).absolute())),
        *("--config", str(estate.source.absolute()), "--service", name_of(service, component)),
        *("--socket", str(socket)),
    ]
    command = f"{shlex.join(words)} %p".replace("'", "''")
    return [
        "    archive_mode = on",
        f"    archive_command = '{command}'",
        "    archive_timeout = 60s",
    ]


def is_ours(command: str) -> bool:
    """Tell whether an archive_command calls this program."""
    return "wal push" in command or _CLIENT in command


def name_of(service: Service, component: PostgresSettings) -> str:
    """Return how a component is called on the command line."""
    return f"{service.name}/{component.name}" if len(service.databases()) > 1 else service.name


def check_helper(
    estate: Estate, service: Service, component: PostgresSettings, archive_command: str | None, checklist: Checklist
) -> None:
    """Say whether a helper archives ahead, and how much is ready and waits."""
    name = f"{service.name}/{component.name}: WAL helper"
    if component.data_directory is None or archive_command is None or not is_ours(archive_command):
        return
    state = helper_state(socket_path(estate.state_dir, service.name, component.name))
    if state is not None and state.problem:
        checklist.fail(
            name,
            f"running (pid {state.pid}), {_files(state.ready)}: {state.problem}",
            "PostgreSQL keeps its WAL meanwhile. Look at the helper's log and remove what is wrong.",
        )
    elif state is not None:
        checklist.ok(name, f"running (pid {state.pid}), {_files(state.ready)}")
    else:
        try:
            waiting = _files(len(ReadyFolder(component.data_directory).names()))
        except WalError as error:
            waiting = error.message
        remedy = f"A node of this host runs one; or: drservice wal helper {name_of(service, component)}"
        if _CLIENT in archive_command:
            checklist.warn(name, f"absent, {waiting}: a program is started for each segment", remedy)
        else:
            checklist.ok(name, f"absent, {waiting}")


def _files(count: int) -> str:
    return f"{count} ready segment{'' if count == 1 else 's'} waiting"
