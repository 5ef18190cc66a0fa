"""The isolation self-test: before anything recovered runs, ask from inside what can be reached.

The tester opens real listeners on the host (TCP on loopback for plain TCP, SMTP and HTTP, UDP for DNS, an
abstract Unix socket), lays out a canary file, and runs one program inside that tries to reach all of them
and looks around. A probe passes only if it was answered from inside and the host's listener heard nothing.
What was not answered is not isolated; what could not run at all is an error. Never a pass by default.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drservice.environments.bubblewrap import INSIDE_VARIABLES, WRITABLE
from drservice.environments.interface import Endpoint, Probe
from drservice.environments.isolation_probe import PROBE_NAMES, PROBE_PERL
from drservice.errors import EnvironmentFailedError, IsolationError
from drservice.processes import Finished

_PERL = "/usr/bin/perl"
_CANARY_VARIABLE = "DRSERVICE_CANARY"
_OUTSIDE = ("192.0.2.1", "1.1.1.1", "2606:4700:4700::1111")
"""A documentation address (RFC 5737) and two that answer everywhere; the kernel must have no route to any."""
_METADATA = ("169.254.169.254:80", "fd00:ec2::254:80")
_HIDDEN = (
    "/root", "/home", "/var", "/srv", "/opt", "/mnt", "/media", "/boot", "/run", "/sys",
    "/etc/shadow", "/etc/ssh", "/etc/ssl", "/etc/resolv.conf", "/etc/drservice", "/etc/machine-id",
)  # fmt: skip
_NAMESPACES = ("net", "pid", "ipc", "uts", "mnt")


class RunInside(Protocol):
    """Runs a program in a sandbox made like the server's; ``canary`` goes into the *outer* environment."""

    def __call__(self, argv: Sequence[str], stdin: bytes, canary: Mapping[str, str]) -> Finished:
        """Return how the program ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listeners:
    """Real listeners on the host that must hear nothing; a probe's name -> its socket."""

    streams: Mapping[str, socket.socket]
    dns: socket.socket
    abstract_name: str

    def words(self) -> list[str]:
        words = [f"{name}=127.0.0.1:{self.streams[name].getsockname()[1]}" for name in ("tcp", "smtp", "http")]
        return [*words, f"dns=127.0.0.1:{self.dns.getsockname()[1]}", f"abstract={self.abstract_name}"]

    def heard(self) -> set[str]:
        """Return the names of the probes whose listener was reached."""
        reached: set[str] = set()
        for name, listener in self.streams.items():
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                reached.add(name)
        with contextlib.suppress(BlockingIOError):
            self.dns.recv(512)
            reached.add("dns")
        return reached


def run_self_test(run_inside: RunInside, *, production: Sequence[Endpoint], hidden: Sequence[Path]) -> list[Probe]:
    """Run the self-test and return every probe, in a fixed order.

    Args:
        run_inside: runs a program inside.
        production: servers that must be out of reach; without any there is no probe ``production``.
        hidden: paths of the host that must not be visible, beside the usual ones.

    Raises:
        EnvironmentFailedError: the program could not run or did not finish: nothing was proved.
    """
    canary = secrets.token_hex(16)
    with _listeners() as listeners, tempfile.NamedTemporaryFile(prefix="drservice-canary-") as file:
        words = [
            *listeners.words(),
            *_outside_words(),
            *_production_words(production),
            *(f"hidden={path}" for path in (*_HIDDEN, file.name, *hidden)),
            *(f"variable={name}" for name in INSIDE_VARIABLES),
            *(f"writable={path}" for path in WRITABLE),
            *(f"namespace={kind}:{Path('/proc/self/ns', kind).readlink()}" for kind in _NAMESPACES),
            f"canary={canary}",
        ]
        finished = run_inside([_PERL, "-", *words], PROBE_PERL.encode(), {_CANARY_VARIABLE: canary})
        heard = listeners.heard()
    expected = [*PROBE_NAMES, *(["production"] if production else [])]
    return judge(finished, expected=expected, heard=heard)


def judge(finished: Finished, *, expected: Sequence[str], heard: set[str]) -> list[Probe]:
    """Turn what the program inside wrote and what the listeners heard into probes.

    Raises:
        EnvironmentFailedError: the program did not run to its end.
    """
    lines = finished.stdout.decode("utf-8", "replace").splitlines()
    if finished.status != 0 or not lines or lines[-1] != "end":
        raise EnvironmentFailedError(
            f"the isolation self-test could not run (status {finished.status}): {finished.last_line()}",
            hint=f"It needs {_PERL} (Debian: perl-base) and a working bubblewrap. Without it nothing is started.",
        )
    answers: dict[str, tuple[bool, str]] = {}
    for line in lines[:-1]:
        name, _, rest = line.partition("\t")
        verdict, _, detail = rest.partition("\t")
        answers[name] = (verdict == "1" and name not in answers, detail)
    probes: list[Probe] = []
    for name in expected:
        isolated, detail = answers.get(name, (False, "was not answered"))
        if name in heard:
            isolated, detail = False, "; ".join(part for part in ("a listener of the host heard it", detail) if part)
        probes.append(Probe(name=name, isolated=isolated, detail=detail or "out of reach"))
    return probes


def require_isolated(probes: Sequence[Probe]) -> None:
    """Refuse to go on unless every probe says isolated.

    Raises:
        IsolationError: naming each probe that does not, or that there was none.
    """
    if not probes:
        raise IsolationError("the isolation self-test asked nothing")
    failed = [f"{probe.name} ({probe.detail})" for probe in probes if not probe.isolated]
    if failed:
        raise IsolationError("the environment is not isolated: " + ", ".join(failed))


@contextlib.contextmanager
def _listeners() -> Iterator[_Listeners]:
    name = f"drservice-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        streams: dict[str, socket.socket] = {}
        for probe in ("tcp", "smtp", "http"):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            listener.bind(("127.0.0.1", 0))
            streams[probe] = listener
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        abstract.bind(f"\0{name}")
        streams["abstract-socket"] = abstract
        for listener in streams.values():
            listener.listen(8)
            listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        dns = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        dns.bind(("127.0.0.1", 0))
        dns.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        yield _Listeners(streams=streams, dns=dns, abstract_name=name)


def _outside_words() -> list[str]:
    ports = {"dns": 53, "tcp": 443, "smtp": 25, "http": 80}
    words = [f"{probe}={address}:{port}" for probe, port in ports.items() for address in _OUTSIDE]
    return [*words, *(f"metadata={address}" for address in _METADATA)]


def _production_words(production: Sequence[Endpoint]) -> list[str]:
    """Name production for the program inside: by name, and by every address the host finds for it now.

    A name that does not resolve on the host either (production may be gone) is asked by name only.
    """
    words: list[str] = []
    for endpoint in production:
        if endpoint.host.startswith("/"):
            words.append(f"production_socket={endpoint.host}/.s.PGSQL.{endpoint.port}")
            continue
        if not _is_address(endpoint.host):
            words.append(f"production_name={endpoint.host}")
        with contextlib.suppress(socket.gaierror):
            found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            words += sorted({f"production={address[4][0]}:{endpoint.port}" for address in found})
    return words


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
