"""``drservice documents stream``: captures the documents of a component as they come, until it is stopped.

People see on stderr what changes; ``--json`` writes a line for each state to stdout, at most one a second. SIGTERM or
SIGINT stores what was committed before and ends with 0; what a store that is away does not take waits in the filestore.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drservice.cli.invocation import Invocation
from drservice.cli.output import Colour, Span

if TYPE_CHECKING:
    from drservice.operations.documentstate import DocumentState

_TOLD_SECONDS = 60.0
_LINE_SECONDS = 1.0


@click.command(help="Capture the documents of SERVICE as they come, until stopped.")
@click.argument("service", metavar="SERVICE[/COMPONENT]")
@click.option("--component", help="the filestore, if the service has several")
@click.option("--with-parent", is_flag=True, help="end when standard input does: with the process that started it")
@click.pass_obj
def stream(invocation: Invocation, service: str, component: str | None, *, with_parent: bool) -> None:
    """Run the capture of a component until it is stopped."""
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
    """Capture until ``end``, anew with each changed configuration.

    Raises:
        BusyError: this component's documents are being captured on this host already.
        ConfigurationError, UsageError, UnknownNameError: nothing can be captured by this configuration.
        DrError: repository or store cannot be opened.
    """
    from drservice.cli.longrunning import ConfigurationWatcher, load_settled  # noqa: PLC0415 - pydantic costs 150 ms
    from drservice.operations.documentstream import (  # noqa: PLC0415 - the same
        DocumentContext,
        stream_documents,
    )
    from drservice.wiring.data_plane import open_data_plane  # noqa: PLC0415 - the same

    telling = _Telling(invocation)
    loaded = load_settled(path)
    while not end.is_set():
        renew = threading.Event()
        watcher = ConfigurationWatcher(path, loaded, end=end, renew=renew)
        watcher.start()
        estate = loaded.estate
        service_name, _, component_name = name.partition("/")
        service = estate.service(service_name)
        component = service.filestore(component_name or None)
        with open_data_plane(estate) as plane:
            context = DocumentContext(
                service=service.name, repository=plane.repository, state_dir=estate.state_dir, clock=plane.clock
            )
            stream_documents(context, component, service.database(component.follows), stop=renew, observe=telling.hear)
        loaded = watcher.latest


class _Telling:
    """Tells states: each change to people, a line a second to programs."""

    def __init__(self, invocation: Invocation) -> None:
        self._output = invocation.output
        self._is_json = invocation.json
        self._told: tuple[object, ...] = ()
        self._told_at = 0.0

    def hear(self, state: DocumentState) -> None:
        """Take a state and tell it if it is news."""
        from drservice.operations.documentstate import as_document, describe_documents  # noqa: PLC0415 - loaded by now

        now = state.updated_at.timestamp()
        news = (state.state, state.remedy, state.missing, state.corrupt)
        if news == self._told and 0 <= now - self._told_at < (_LINE_SECONDS if self._is_json else _TOLD_SECONDS):
            return
        is_change, self._told, self._told_at = news != self._told, news, now
        if self._is_json:
            document = {
                "schema": "drservice/documents-stream/v1",
                **as_document(state),
                "lag_seconds": state.lag_seconds(state.updated_at),
            }
            self._output.raw(json.dumps(document))
            self._output.flush()
        elif state.problem is not None and is_change:
            self._output.note((Span(state.state.value, Colour.BAD), f": {state.problem}"))
            self._output.note(f"  remedy: {state.remedy}")
        else:
            self._output.note(f"{state.service}/{state.component}: {describe_documents(state)}")
