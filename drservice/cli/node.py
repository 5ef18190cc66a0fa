"""``drservice node`` and ``drservice up``: the process of a host, alone or with the pages of the estate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from drservice import telemetry
from drservice.cli.invocation import Invocation
from drservice.clock import SystemClock
from drservice.errors import CatalogueUnreachableError
from drservice.node import logs
from drservice.node.daemon import Node
from drservice.repository.hostkey import host_name
from drservice.settings.watching import WatchedConfiguration

_QUIETEST = "warning"
_RETRY_SECONDS = 2.0
_POOL_SIZE = 20
"""As many requests work on the catalogue at one time; the others wait for a moment."""
_NAME_HELP = "whose runs are taken: what `node:` of a component says (default: this machine's name)"


@click.command(help="Do this host's runs and look at all schedules, until it is stopped (SIGTERM drains).")
@click.option("--name", metavar="HOST", help=_NAME_HELP)
@click.pass_obj
def node(invocation: Invocation, name: str | None) -> None:
    """Run a node."""
    running = _node(invocation, name, command="node")
    with _signals(running, reload=running.reload):
        running.run()


@click.command(help="Everything on this machine: catalogue, node, pages and API, until it is stopped.")
@click.option("--name", metavar="HOST", help=_NAME_HELP)
@click.pass_obj
def up(invocation: Invocation, name: str | None) -> None:
    """Run a node and the pages in one process."""
    running = _node(invocation, name, command="up")
    pages = _Pages(invocation, running)
    pages.start()

    def reload() -> None:
        running.reload()
        pages.reload()

    try:
        with _signals(running, reload=reload):
            running.run()
    finally:
        pages.end()


def _node(invocation: Invocation, name: str | None, *, command: str) -> Node:
    level = _level(invocation)
    logs.configure(level)
    chosen = name or host_name()

    def ready() -> None:
        document = {"host": chosen, "pid": os.getpid()}
        invocation.output.result(command, document, [f"node {chosen} runs (pid {os.getpid()})"])
        invocation.output.flush()

    return Node(
        name=chosen,
        configuration=WatchedConfiguration(invocation.configuration_path()),
        clock=SystemClock(),
        log_level=level,
        ready=ready,
    )


def _level(invocation: Invocation) -> str:
    """Return the log's level: a node tells what it does, unless more was asked for."""
    return "info" if invocation.log_level == _QUIETEST else invocation.log_level


@contextmanager
def _signals(running: Node, *, reload: Callable[[], None]) -> Iterator[None]:
    """Let signals drain the node (a second one hurries) and reload the configuration."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        running.stop()

    def renew(number: int, frame: FrameType | None) -> None:
        del number, frame
        reload()

    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGHUP, renew))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Pages:
    """Pages and API in a thread of the node's process; if they cannot be served the node drains and ends, too."""

    def __init__(self, invocation: Invocation, running: Node) -> None:
        self._configuration = WatchedConfiguration(invocation.configuration_path())
        self._invocation = invocation
        self._running = running
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="web")

    def start(self) -> None:
        """Begin to serve as soon as the catalogue is there."""
        self._thread.start()

    def reload(self) -> None:
        """Read the configuration now. Safe in a signal handler."""
        self._configuration.ask()

    def end(self) -> None:
        """End, and raise what kept the pages from being served."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._serve()
                except CatalogueUnreachableError as error:
                    telemetry.warning("the catalogue is away, pages wait for it", problem=error.message)
                    self._stop.wait(_RETRY_SECONDS)
        except BaseException as error:  # noqa: BLE001 - raised again where the pages are ended
            self._failure = error
            self._running.stop()

    def _serve(self) -> None:
        from drservice.web.serving import serve  # noqa: PLC0415 - a node without pages does not load them
        from drservice.wiring.control_plane import open_control_plane  # noqa: PLC0415 - as above

        web = self._configuration.estate.web
        with open_control_plane(self._configuration.estate, pool_size=_POOL_SIZE) as database:
            serve(
                self._configuration.estate,
                database,
                listen=(web.host, web.port),
                stop=self._stop,
                ready=self._told,
                configuration=self._configuration,
            )

    def _told(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        self._invocation.output.note(f"serving http://{shown}:{port}/")
        self._invocation.output.flush()
