"""Serves pages and API: one process, one event loop, on loopback unless the configuration says otherwise.

TLS is a proxy's work. Sessions need it anyway: browsers send their cookie over HTTPS and to this machine only.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import uvicorn

from drservice import telemetry
from drservice.catalogue.database import Database
from drservice.errors import ListenError
from drservice.model.estate import Estate
from drservice.settings.watching import WatchedConfiguration
from drservice.web.app import make_app
from drservice.web.site import Site

_BACKLOG = 512
_MOST_CONNECTIONS = 1000
"""Further ones get 503: memory is bounded, whoever comes."""
_LOOK_SECONDS = 0.2
_CONFIGURATION_SECONDS = 2.0
_LAST_WORDS_SECONDS = 5


def serve(
    estate: Estate,
    database: Database,
    *,
    listen: tuple[str, int],
    stop: threading.Event,
    ready: Callable[[str, int], None] | None = None,
    configuration: WatchedConfiguration | None = None,
) -> None:
    """Serve until ``stop`` is set; requests under way get a few seconds to end.

    Call it in any thread: it handles no signals. ``ready`` is told the address once requests are answered (port 0 takes
    a free one). What changes in ``configuration`` takes effect while requests are answered, all but where it listens
    and which proxies are believed.

    Raises:
        ListenError: the address cannot be listened on.
        UnguardedRouteError: a route has no permission; nothing was served.
    """
    site = Site(estate=estate, database=database)
    site.queue.install()
    app = make_app(site)
    # Modules, templates and the estate stay for good. Walking over them again and again in search of cycles took a
    # tenth of a second at a time with 1,000 services, in the middle of some request (benchmarks/web.py: p95).
    gc.collect()
    gc.freeze()
    with closing(_listen(listen)) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=bool(estate.web.trusted_proxies),
            forwarded_allow_ips=list(estate.web.trusted_proxies),
            backlog=_BACKLOG,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        )
        asyncio.run(_run(_Server(config), site, listener, stop, ready, configuration))


class _Server(uvicorn.Server):
    """Leaves signals to whoever owns the process: in `up` that is not us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _run(
    server: uvicorn.Server,
    site: Site,
    listener: socket.socket,
    stop: threading.Event,
    ready: Callable[[str, int], None] | None,
    configuration: WatchedConfiguration | None,
) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    watching = asyncio.ensure_future(_watch(site, configuration)) if configuration is not None else None
    told = ready is None
    while not serving.done():
        if server.started and not told and ready is not None:
            ready(*listener.getsockname()[:2])
            told = True
        if stop.is_set() and not server.should_exit:
            telemetry.info("web stops")
            server.should_exit = True
            if watching is not None:
                watching.cancel()  # there are no threads to look in from here on
            site.live.close()  # the server waits for its streams
        await asyncio.wait({serving}, timeout=_LOOK_SECONDS)
    if watching is not None:
        watching.cancel()
    await serving


async def _watch(site: Site, configuration: WatchedConfiguration) -> None:
    """Put changed configurations in force, for ever; a file that is not valid changes nothing and is told."""
    while True:
        await asyncio.sleep(_CONFIGURATION_SECONDS)
        try:
            estate = await asyncio.to_thread(configuration.look)
        except Exception as error:  # noqa: BLE001 - a defect in reading a file ends no pages
            telemetry.error("the configuration cannot be looked at", exception=error)
            continue
        site.configuration_problem = configuration.problem
        if estate is not None:
            site.estate = estate


def _listen(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # Connections inherit it. Without it head and body of an answer, which are two writes, are 40 ms apart: the
        # second waits for the client's delayed acknowledgement. asyncio sets it only on sockets with a protocol number.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, OverflowError) as error:
        raise ListenError(f"cannot listen on {host} port {port}: {error}") from error
    if not is_loopback(host):
        telemetry.warning("web listens beyond this machine: put TLS before it", host=host, port=port)
    return listener


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
