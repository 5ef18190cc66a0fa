"""The configuration in force, watched: a changed file takes effect when it is valid, else the old one stays."""

from __future__ import annotations

from pathlib import Path

from drservice import telemetry
from drservice.errors import ConfigurationError
from drservice.model.estate import Estate
from drservice.settings.loading import load

_Stamp = tuple[int, int, int, int] | None


class WatchedConfiguration:
    """One file and what was last valid in it.

    Raises:
        ConfigurationError: there is nothing valid to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._is_asked = False
        self.estate = load(path).estate
        self._served = self.estate.web
        self.problem: str | None = None
        """Why the file as it stands now is not in force."""

    def ask(self) -> None:
        """Let the next look read the file whether it has changed or not. Safe in a signal handler."""
        self._is_asked = True

    def look(self, *, force: bool = False) -> Estate | None:
        """Read the file if it has changed; returns the estate if another one is in force now."""
        stamp = _stamp(self._path)
        if stamp == self._stamp and not force and not self._is_asked:
            return None
        self._stamp, self._is_asked = stamp, False
        try:
            estate = load(self._path).estate
            self._require_same_place(estate)
        except ConfigurationError as error:
            self.problem = error.message
            telemetry.error("the configuration is refused, the one before stays in force", problem=error.message)
            return None
        self.problem = None
        if estate == self.estate:
            return None
        self.estate = estate
        telemetry.info("a changed configuration is in force", file=str(self._path))
        self._tell_what_waits(estate)
        return estate

    def _require_same_place(self, estate: Estate) -> None:
        """Refuse what a running process cannot change: where its state and the catalogue are."""
        for name in ("state_dir", "catalogue"):
            before, after = getattr(self.estate, name), getattr(estate, name)
            if before != after:
                raise ConfigurationError(
                    f"{name} has changed from {before} to {after}", hint="Restart the program for this change."
                )

    def _tell_what_waits(self, estate: Estate) -> None:
        """Tell what takes effect when pages are served anew: where they listen, and whom they believe."""
        for name in ("host", "port", "trusted_proxies"):
            if getattr(self._served, name) != getattr(estate.web, name):
                telemetry.warning("where pages answer and which proxies are believed changes with the next start")
                return


def _stamp(path: Path) -> _Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None  # reading it says what is wrong
    return (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode)
