"""``drservice web``: pages and API from this machine, until it is stopped."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import click

from drservice.cli.invocation import Invocation
from drservice.errors import UsageError
from drservice.settings.watching import WatchedConfiguration
from drservice.web.serving import serve
from drservice.wiring.control_plane import open_control_plane

_POOL_SIZE = 20
"""As many requests work on the catalogue at one time; the others wait for a moment."""


@click.command(help="Serve pages and API (on this machine only, unless the configuration says otherwise).")
@click.option("--listen", metavar="HOST:PORT", help="instead of web.host and web.port; port 0 takes a free one")
@click.pass_obj
def web(invocation: Invocation, listen: str | None) -> None:
    """Serve until a signal comes."""
    configuration = WatchedConfiguration(invocation.configuration_path())
    estate = configuration.estate
    address = _address(listen) if listen is not None else (estate.web.host, estate.web.port)
    stop, failures = threading.Event(), list[BaseException]()

    def ready(host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}/"
        lines = [f"serving {url}", "next: drservice account add NAME --role viewer, then sign in there"]
        invocation.output.result("web", {"url": url}, lines)
        invocation.output.flush()

    with open_control_plane(estate, pool_size=_POOL_SIZE) as database:

        def work() -> None:
            try:
                serve(estate, database, listen=address, stop=stop, ready=ready, configuration=configuration)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                failures.append(error)

        def renew(number: int, frame: FrameType | None) -> None:
            del number, frame
            configuration.ask()

        before = signal.signal(signal.SIGHUP, renew)
        # In a thread, so that a signal ends the waiting here and the server ends in its own time.
        thread = threading.Thread(target=work, name="web")
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            invocation.output.note("stopping")  # the ordinary end of a server
        finally:
            stop.set()
            thread.join()
            signal.signal(signal.SIGHUP, before)
    if failures:
        raise failures[0]


def _address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address to listen on", hint="Write it as 127.0.0.1:8484 or [::1]:8484.")
    return host.removeprefix("[").removesuffix("]"), int(port)
