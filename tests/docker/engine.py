"""A Docker engine of the tests' own: started by hand, on a socket of its own, with nothing left when it is stopped.

    with engine(folder, plugins=...) as docker:
        docker("run", "--rm", IMAGE, "true")

No registry is asked for anything: deploy/offline makes the images. What an engine leaves in the kernel goes, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEBIAN_CLIENT = Path("/usr/bin/docker")
_READY_SECONDS = 60.0
_STOP_SECONDS = 60.0
_BRIDGE = Path("/sys/class/net/docker0")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """A client of one engine.

    Args:
        environment: for every program that shall find this engine.
    """

    environment: Mapping[str, str]

    def __call__(
        self, *words: str, folder: Path = ROOT, given: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the client and return what it said; one that fails shows its output."""
        return self.program(str(DEBIAN_CLIENT), *words, folder=folder, given=given, check=check)

    def program(
        self, *words: str, folder: Path = ROOT, given: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run any program with this engine in its environment."""
        done = subprocess.run(
            words, cwd=folder, env=self.environment, input=given, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def lines(self, *words: str) -> list[str]:
        """Return the lines that the client prints."""
        return self(*words).stdout.split("\n")[:-1]


def missing() -> str | None:
    """Tell what keeps an engine from being started here, ``None`` if nothing does."""
    if os.geteuid() != 0:
        return "an engine is started by root"
    programs = ("dockerd", "debootstrap", "iptables")
    absent = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (make test-docker installs them)"
    return "another engine runs on this machine" if _BRIDGE.exists() else None


@contextmanager
def engine(folder: Path, *, plugins: Path) -> Iterator[Docker]:
    """Run an engine whose images, state and socket are in ``folder``.

    Args:
        folder: with a short path, for the socket in it.
        plugins: a client's configuration folder with Compose in it.
    """
    socket, log = folder / "socket", folder / "log"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))},
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": str(plugins),
        "DOCKER_BUILDKIT": "1",
        "COMPOSE_PROGRESS": "plain",
    }
    before = _Kernel.now()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "dockerd",
                f"--data-root={folder}/data",
                f"--exec-root={folder}/exec",
                f"--pidfile={folder}/pid",
                f"--host=unix://{socket}",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    docker = Docker(environment=environment)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while docker("info", check=False).returncode != 0:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield docker
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            before.again()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """What an engine changes in the kernel and does not change back: filter rules, a bridge, forwarding."""

    rules: str
    forwarding: str

    @classmethod
    def now(cls) -> _Kernel:
        saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
        return cls(rules=saved, forwarding=_FORWARDING.read_text())

    def again(self) -> None:
        """Be as before."""
        if _BRIDGE.exists():
            subprocess.run(["ip", "link", "delete", _BRIDGE.name], check=True)
        for table in ("nat", "filter"):
            subprocess.run(["iptables", "-t", table, "-F"], check=True)
            subprocess.run(["iptables", "-t", table, "-X"], check=True)
        subprocess.run(["iptables", "-P", "FORWARD", "ACCEPT"], check=True)
        subprocess.run(["iptables-restore"], input=self.rules, text=True, check=True)
        _FORWARDING.write_text(self.forwarding)


def wait_until(what: str, is_so: object, *, seconds: float) -> None:
    """Ask until something is so.

    Args:
        what: said when it is not in time.
        is_so: called without arguments.
    """
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)


def remove_tree(folder: Path) -> None:
    """Remove an engine's folder; an overlay that is still mounted would be somebody's data, so it stays."""
    with suppress(FileNotFoundError):
        assert not any(str(folder) in line for line in Path("/proc/mounts").read_text().splitlines())
        shutil.rmtree(folder)
