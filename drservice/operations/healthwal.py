"""What ``check`` says about archiving: the lines for postgresql.conf, and whether a helper archives ahead."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from drservice.components.postgres.controlfile import read_control_file
from drservice.errors import WalError
from drservice.model.estate import Estate, PostgresSettings, Service
from drservice.operations.checklist import Checklist
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import helper_state, socket_path
from drservice.operations.walspool import spool_path
from drservice.walclient import fetch, push

_CLIENT = "walclient/push.py"
_AHEAD = 8
"""Segments that a server which replays finds ready: more than it replays while one is fetched."""


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


def restore_line(estate: Estate, service: Service, component: PostgresSettings, system_id: str) -> str:
    """Return the restore_command of a server that follows or recovers by itself.

    PostgreSQL takes any status from 1 to 125 for the end of the WAL: only proven absence (44) may become one.
    """
    words = [
        *(sys.executable, "-I", "-S", str(Path(fetch.__file__).absolute())),
        *("--config", str(estate.source.absolute()), "--service", name_of(service, component)),
        *("--system-id", system_id, "--ahead", str(_AHEAD)),
        *("--spool", str(spool_path(estate.state_dir.absolute(), service.name, component.name))),
    ]
    command = f"{shlex.join(words)} %f %p; s=$?; case $s in 0) exit 0;; 44) exit 1;; *) exit 127;; esac"
    return f"restore_command = '{command.replace(chr(39), chr(39) * 2)}'"


def is_ours(command: str) -> bool:
    """Tell whether an archive_command calls this program."""
    return "wal push" in command or _CLIENT in command


def name_of(service: Service, component: PostgresSettings) -> str:
    """Return how a component is called on the command line."""
    return f"{service.name}/{component.name}" if len(service.databases()) > 1 else service.name


def check_helper(
    estate: Estate, service: Service, component: PostgresSettings, archive_command: str | None, checklist: Checklist
) -> None:
    """Say whether a helper archives ahead, how much is ready and waits, and how a standby would follow."""
    name = f"{service.name}/{component.name}: WAL helper"
    if component.data_directory is None or archive_command is None or not is_ours(archive_command):
        return
    with checklist.asking(f"{service.name}/{component.name}: standbys"):
        system_id = read_control_file(component.data_directory).system_id
        line = restore_line(estate, service, component, system_id)
        checklist.ok(f"{service.name}/{component.name}: standbys", f"may follow the archive by {line}")
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
