"""``drservice wal stream``: ships the WAL of a component as it is written, until it is stopped.

People see on stderr what changes; ``--json`` writes a line for each state to stdout, at most one a second. SIGTERM or
SIGINT stores what was received and ends with 0; what a store that is away does not take waits in the server's slot.
"""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drservice.cli.formatting import format_bytes
from drservice.cli.invocation import Invocation
from drservice.cli.output import Colour, Span

if TYPE_CHECKING:
    from drservice.operations.streamstate import StreamState

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Of ``mallopt(3)``."""
_LARGE_BYTES, _ARENAS = 512 << 10, 2
_TOLD_SECONDS = 60.0
_LINE_SECONDS = 1.0


@click.command(help="Ship the WAL of SERVICE as it is written, through a replication slot, until stopped.")
@click.argument("service", metavar="SERVICE[/COMPONENT]")
@click.option("--component", help="the cluster, if the service has several")
@click.option("--with-parent", is_flag=True, help="end when standard input does: with the process that started it")
@click.pass_obj
def stream(invocation: Invocation, service: str, component: str | None, *, with_parent: bool) -> None:
    """Run the receiver of a component until it is stopped."""
    from drservice import telemetry  # noqa: PLC0415 - read with the command alone
    from drservice.cli.longrunning import end_with_parent, ending_signals, log_form  # noqa: PLC0415 - the same

    if invocation.log_level == "warning" and (with_parent or invocation.json):
        telemetry.configure(level="info", libraries=True, form=log_form())
    elif invocation.log_level == "warning":
        telemetry.configure(level="error")  # what is told on stderr says the rest
    name = f"{service}/{component}" if component is not None else service
    end = threading.Event()
    if with_parent:
        threading.Thread(target=end_with_parent, args=(end,), name="parent", daemon=True).start()
    with ending_signals(end):
        _run(invocation, invocation.configuration_path(), name, end)


def _run(invocation: Invocation, path: Path, name: str, end: threading.Event) -> None:
    """Receive until ``end``, anew with each changed configuration.

    Raises:
        BusyError: this component has a receiver on this host already.
        ConfigurationError, UsageError, UnknownNameError: nothing can be streamed by this configuration.
        DrError: repository or store cannot be opened.
    """
    from drservice.cli.longrunning import ConfigurationWatcher, load_settled  # noqa: PLC0415 - pydantic costs 150 ms
    from drservice.errors import UsageError  # noqa: PLC0415 - the same
    from drservice.model.estate import WalMode  # noqa: PLC0415 - the same
    from drservice.operations.walcare import cared_for  # noqa: PLC0415 - the same
    from drservice.operations.walstream import StreamContext, stream_wal  # noqa: PLC0415 - the same
    from drservice.wiring.data_plane import open_data_plane  # noqa: PLC0415 - the same

    telling = _Telling(invocation)
    loaded = load_settled(path)
    _keep_memory_low()
    while not end.is_set():
        renew = threading.Event()
        watcher = ConfigurationWatcher(path, loaded, end=end, renew=renew)
        watcher.start()
        estate = loaded.estate
        service_name, _, component_name = name.partition("/")
        service = estate.service(service_name)
        component = service.database(component_name or None)
        if component.wal.mode is WalMode.ARCHIVE:
            raise UsageError(
                f"the WAL of {service.name}/{component.name} is not streamed: wal.mode is archive",
                hint="Set wal.mode: stream (or both, to keep archive_command as well) in the configuration.",
            )
        with open_data_plane(estate) as plane:
            context = StreamContext(
                service=service.name, repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock
            )
            scope = plane.repository.scope(service.name, component.name)
            _look_at_no_more()
            with cared_for(plane.repository, scope, component, state_dir=estate.state_dir, clock=plane.clock):
                stream_wal(context, component, stop=renew, observe=telling.hear)
        loaded = watcher.latest


def _keep_memory_low() -> None:
    """Give large buffers back at once, and make looking for what nobody refers to cheap: this process stays for months.

    What compresses hardly comes in frames a little shorter than those that do not compress at all: large begins at half
    a frame (docs/adr/0027-the-receiver.md).
    """
    _look_at_no_more()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_ARENA_MAX, _ARENAS)


def _look_at_no_more() -> None:
    """Let what is loaded by now never be looked at again for what nobody refers to.

    That is asked behind each segment (``walshipping``), and took as long as sealing one, most of it for the client of a
    bucket.
    """
    gc.collect()
    gc.freeze()


class _Telling:
    """Tells states: each change to people, a line a second to programs."""

    def __init__(self, invocation: Invocation) -> None:
        self._output = invocation.output
        self._is_json = invocation.json
        self._told: tuple[object, ...] = ()
        self._told_at = 0.0

    def hear(self, state: StreamState) -> None:
        """Take a state and tell it if it is news."""
        from drservice.operations.streamstate import as_document  # noqa: PLC0415 - loaded by now

        now = state.updated_at.timestamp()
        news = (state.state, state.remedy, state.timeline)
        if news == self._told and 0 <= now - self._told_at < (_LINE_SECONDS if self._is_json else _TOLD_SECONDS):
            return
        is_change, self._told, self._told_at = news != self._told, news, now
        if self._is_json:
            document = {
                "schema": "drservice/wal-stream/v1",
                **as_document(state),
                "bytes_at_risk": state.bytes_at_risk,
                "seconds_at_risk": state.seconds_at_risk,
            }
            self._output.raw(json.dumps(document))
            self._output.flush()
            return
        if state.problem is not None and is_change:
            self._output.note((Span(state.state.value, Colour.BAD), f": {state.problem}"))
            self._output.note(f"  remedy: {state.remedy}")
        else:
            self._output.note(_line(state))


def _line(state: StreamState) -> str:
    if state.durable_lsn is None or state.bytes_at_risk is None:
        return f"{state.service}/{state.component}: {state.state.value}"
    age = state.seconds_at_risk
    risk = "nothing" if not state.bytes_at_risk else format_bytes(state.bytes_at_risk)
    since = "" if not age else f" of {age:.1f} s"
    return (
        f"{state.service}/{state.component}: {state.state.value}, timeline {state.timeline},"
        f" durable to {state.durable_lsn}, at risk: {risk}{since}"
    )
