"""What commands share that run until they are stopped: signals, the parent's end, and a configuration that changes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from drservice import telemetry
from drservice.errors import ConfigurationError
from drservice.model.estate import Estate
from drservice.settings.loading import load
from drservice.walclient import protocol

_CONFIGURATION_SECONDS = 1.0


class Loaded:
    """A configuration and which state of the file it was read from."""

    def __init__(self, estate: Estate, stamp: str) -> None:
        self.estate = estate
        self.stamp = stamp


def load_settled(path: Path) -> Loaded:
    """Read the configuration; what is written meanwhile is read again.

    Raises:
        ConfigurationError: it is invalid.
    """
    while True:
        stamp = _stamp(path)
        estate = load(path).estate
        if stamp == _stamp(path):
            return Loaded(estate, stamp)


def _stamp(path: Path) -> str:
    try:
        return protocol.configuration(path.stat())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error


class ConfigurationWatcher(threading.Thread):
    """Ends a round of serving when the command is to end, or another valid configuration is there."""

    def __init__(self, path: Path, loaded: Loaded, *, end: threading.Event, renew: threading.Event) -> None:
        super().__init__(name="configuration", daemon=True)
        self._path = path
        self._end = end
        self._renew = renew
        self._refused = ""
        self.latest = loaded

    def run(self) -> None:
        """Look until the round ends."""
        while not self._end.wait(_CONFIGURATION_SECONDS):
            try:
                if _stamp(self._path) in {self.latest.stamp, self._refused}:
                    continue
                self.latest = load_settled(self._path)
            except ConfigurationError as error:
                telemetry.error("the configuration is refused, the one before stays", problem=error.message)
                self._refused = _stamp_if_any(self._path)
                continue
            except Exception as error:  # noqa: BLE001 - without this thread the command would not hear that it is to end
                telemetry.error("the configuration cannot be judged, the one before stays", exception=error)
                self._refused = _stamp_if_any(self._path)
                continue
            telemetry.info("a changed configuration is in force", file=str(self._path))
            break
        self._renew.set()


def _stamp_if_any(path: Path) -> str:
    try:
        return _stamp(path)
    except ConfigurationError:
        return ""


def end_with_parent(end: threading.Event) -> None:
    """Wait for the end of standard input, which a parent that died has closed."""
    while os.read(0, 4096):
        pass
    end.set()


def log_form() -> telemetry.Form:
    """Return how a process that stays logs: for people at a terminal, else for what collects logs."""
    return telemetry.Form.CONSOLE if sys.stderr.isatty() else telemetry.Form.JSON


@contextmanager
def ending_signals(end: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the command in order; a second one ends it like any other command."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        end.set()
        for again, handler in before.items():
            signal.signal(again, handler)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
