"""Runs one command and turns whatever happens into words and an exit status.

The only catch-all of the command line is here. Exit statuses: 0 ok, 1 failed, 2 usage or configuration,
3 partial, 4 objective or policy breached, 5 integrity, 6 busy, 7 not authorised, 8 unreachable,
130 interrupted. A command may return an ``ExitStatus``; everything else that returns is a success.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

import click

from drservice.cli.groups import LazyGroup
from drservice.cli.invocation import Invocation
from drservice.cli.table import COMMANDS, GROUPS, Entry
from drservice.errors import DrError, ExitStatus, InterruptedRunError, UsageError

_COMPLETION = "_DRSERVICE_COMPLETE"
_SUMMARY = "Back up Odoo/PostgreSQL estates, restore them, and prove that it works."


class StoppedError(KeyboardInterrupt):
    """A signal asked the program to end; unwinds like Ctrl-C, so that every ``finally`` runs."""


def root(entries: Sequence[Entry] = COMMANDS) -> LazyGroup:
    """Return the root of the command line for a table of commands."""
    return LazyGroup(name="drservice", summary=_SUMMARY, entries=entries, groups=GROUPS)


def run(arguments: Sequence[str], entries: Sequence[Entry] = COMMANDS) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the words after the program's name.
        entries: the table of commands.
    """
    if os.environ.get(_COMPLETION):
        return _complete(entries)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    invocation = Invocation()
    try:
        status = _guarded(list(arguments), invocation, entries)
        invocation.output.flush()
    except BrokenPipeError:
        _discard_output()
        return ExitStatus.FAILED
    except DrError as error:
        _discard_output()
        return _told(error, invocation)
    return status


def _guarded(arguments: list[str], invocation: Invocation, entries: Sequence[Entry]) -> int:
    try:
        with root(entries).make_context("drservice", arguments, obj=invocation) as context:
            outcome = context.command.invoke(context)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except BrokenPipeError:
        raise
    except click.ClickException as error:
        invocation.json = invocation.json or "--json" in arguments
        if isinstance(error, click.exceptions.NoArgsIsHelpError) and not invocation.json:
            invocation.output.raw(error.format_message())
            return ExitStatus.USAGE
        return _told(_usage_error(error), invocation)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one catch-all: defects end in words too
        if invocation.log_level == "debug":
            invocation.output.traceback(traceback.format_exc())
        return _told(_translate(error), invocation)
    return outcome if isinstance(outcome, int) and not isinstance(outcome, bool) else ExitStatus.OK


def _translate(error: Exception | KeyboardInterrupt) -> DrError:
    if isinstance(error, DrError):
        return error
    if isinstance(error, StoppedError):
        return InterruptedRunError(str(error))
    if isinstance(error, KeyboardInterrupt | click.Abort) or _was_interrupted(error):
        return InterruptedRunError("interrupted")
    return DrError(f"internal error: {type(error).__name__}: {error}")


def _was_interrupted(error: BaseException) -> bool:
    """Tell whether it went wrong while an interrupted program unwound: a library in mid-call may object to that."""
    cause = error.__context__
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


def _told(error: DrError, invocation: Invocation) -> int:
    invocation.output.error(error)
    return error.exit_status


def _usage_error(error: click.ClickException) -> DrError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return UsageError("a command is missing", hint="`drservice --help` lists the commands.")
    path = context.command_path if context is not None else "drservice"
    return UsageError(error.format_message().rstrip("."), hint=f"`{path} --help` shows how to call it.")


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise once; further signals of this kind do not disturb the clean-up."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    raise StoppedError(f"stopped by {signal.Signals(number).name}")


def _discard_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _complete(entries: Sequence[Entry]) -> int:
    from click.shell_completion import shell_complete  # noqa: PLC0415 - only for the shell's completion

    return shell_complete(root(entries), {"obj": Invocation()}, "drservice", _COMPLETION, os.environ[_COMPLETION])
