"""Tells a place through apprise: the only owner of that library.

A place's URL is its password. apprise logs URLs (shortened, and on its lowest level whole), waits as long as a URL says
and follows redirects; a place that sends one byte a second would hold its caller for ever. So each delivery is a
process of its own with a deadline: the URL goes in by a pipe, one word of outcome comes out, and whatever else the
library says goes nowhere. A node that has nothing to tell does not load it either.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drservice
from drservice import credentials, processes
from drservice.errors import NotifyDeliveryError, NotifyPlaceError
from drservice.model.estate import NotifyPlace
from drservice.notify.interface import Notice, Place, Severity

if TYPE_CHECKING:
    from apprise import NotifyBase

SCHEMES = frozenset(
    {
        "discord",
        "form",
        "forms",
        "gotify",
        "gotifys",
        "json",
        "jsons",
        "mailto",
        "mailtos",
        "matrix",
        "matrixs",
        "mmost",
        "mmosts",
        "ntfy",
        "ntfys",
        "opsgenie",
        "pagerduty",
        "pover",
        "rocket",
        "rockets",
        "slack",
        "tgram",
        "workflows",
        "xml",
        "xmls",
        "zulip",
    }
)
"""What a URL may begin with: places that people read, reached over the network. Nothing that acts on this machine."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_STATUS = re.compile(r"\berror=(\d{3})\b")
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Environment variables that name a site's own certificate authorities; nothing else is inherited."""
_STEP_SECONDS = 10.0
_SEVERITY_TYPES = {Severity.BUSINESS_CRITICAL: "failure", Severity.TECHNICAL: "warning"}


class Outcome(Enum):
    """How a delivery ended, as the process that did it says."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The place answered, or its connection failed."""
    UNUSABLE = "unusable"
    """apprise makes nothing of the URL."""
    UNVERIFIED = "unverified"
    """The URL turns the verification of certificates off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppriseNotifier:
    """Tells one place.

    Args:
        name: the place's name, for messages.
        reference: secret reference of the URL; read anew with each delivery, so that a changed secret is used.
        deadline: a delivery that takes longer is ended and counts as failed.
    """

    name: str
    reference: str
    deadline: timedelta = timedelta(seconds=30)

    def send(self, notice: Notice) -> None:
        """Tell the place.

        Raises:
            SecretError: the reference cannot be resolved.
            NotifyPlaceError: the URL is none that may be used.
            NotifyDeliveryError: the place did not take it.
        """
        self._ask(
            {
                "title": notice.subject(),
                "body": notice.text(),
                "type": _SEVERITY_TYPES[notice.severity],
            }
        )

    def check(self) -> None:
        """Find out whether the URL can be used at all, without telling the place anything.

        Raises:
            SecretError: the reference cannot be resolved.
            NotifyPlaceError: the URL is none that may be used.
        """
        self._ask(None)

    def _ask(self, message: dict[str, str] | None) -> None:
        url = credentials.resolve(self.reference).reveal()
        require_scheme(url, self.name)
        finished = processes.run(
            [sys.executable, "-s", "-P", "-m", __name__],
            environment=_environment(),
            stdin=json.dumps({"url": url, "message": message}).encode(),
            timeout_seconds=self.deadline.total_seconds(),
        )
        if finished.status != 0:
            raise NotifyDeliveryError(
                f"{self.name} did not take a message within {self.deadline.total_seconds():g} s"
                if finished.timed_out
                else f"{self.name} was not told: the delivering process ended with status {finished.status}"
            )
        outcome, status = self._answer(finished.stdout)
        if outcome is Outcome.UNVERIFIED:
            raise NotifyPlaceError(f"the URL of {self.name} turns off the verification of certificates")
        if outcome is Outcome.UNUSABLE:
            raise NotifyPlaceError(f"the URL of {self.name} is not complete or not valid for its scheme")
        if outcome is Outcome.REFUSED:
            raise NotifyDeliveryError(
                f"{self.name} answered with status {status}"
                if status is not None
                else f"{self.name} was not reached, or did not answer in time"
            )

    def _answer(self, stdout: bytes) -> tuple[Outcome, int | None]:
        try:
            document = json.loads(stdout)
            return Outcome(document["outcome"]), document["status"]
        except (ValueError, KeyError, TypeError):
            problem = f"{self.name}: the delivering process did not say how it went"
        # Raised outside of the handler: what could not be read is no part of the error.
        raise NotifyDeliveryError(problem)


def places(entries: Iterable[NotifyPlace]) -> tuple[Place, ...]:
    """Return what tells each place of a configuration."""
    return tuple(
        Place(name=entry.name, on=entry.on, notifier=AppriseNotifier(name=entry.name, reference=entry.url))
        for entry in entries
    )


def require_scheme(url: str, name: str) -> None:
    """Refuse a URL that is none of the kinds in :data:`SCHEMES`.

    Raises:
        NotifyPlaceError: names the place; not even the URL's beginning is repeated.
    """
    found = _SCHEME.match(url)
    if found is None or found[1].lower() not in SCHEMES:
        raise NotifyPlaceError(
            f"the URL of {name} begins with nothing that may be used",
            hint=f"It may begin with {', '.join(sorted(SCHEMES))}.",
        )


def _environment() -> dict[str, str]:
    trust = {name: os.environ[name] for name in _TRUST if name in os.environ}
    return processes.clean_environment({"PYTHONPATH": str(Path(drservice.__path__[0]).parent), **trust})


def deliver(url: str, message: dict[str, str] | None) -> tuple[Outcome, int | None]:
    """Deliver in this process (the one made for it); returns the outcome and the place's HTTP status if it is known."""
    import apprise  # noqa: PLC0415 - only the process made for it pays for the library

    heard = _Statuses()
    log = logging.getLogger("apprise")
    log.handlers, log.propagate = [heard], False
    log.setLevel(logging.WARNING)
    asset = apprise.AppriseAsset(app_id="drservice", app_desc="drservice", secure_logging=True)
    place: NotifyBase | None = apprise.Apprise.instantiate(url, asset=asset)
    if place is None:
        return Outcome.UNUSABLE, None
    if not place.verify_certificate:
        return Outcome.UNVERIFIED, None
    if message is None:
        return Outcome.DELIVERED, None
    # What a URL says about waiting and redirects is not for the URL to decide.
    settings: Any = place
    settings.socket_connect_timeout = settings.socket_read_timeout = _STEP_SECONDS
    settings.redirects = False
    taken = place.notify(
        title=message["title"],
        body=message["body"],
        notify_type=apprise.NotifyType(message["type"]),
        body_format=apprise.NotifyFormat.TEXT,
    )
    return (Outcome.DELIVERED, None) if taken is True else (Outcome.REFUSED, heard.last)


class _Statuses(logging.Handler):
    """Keeps the last HTTP status that apprise complained about, and nothing else of what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.last: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Look for a status in a line of the library's log."""
        found = _STATUS.search(record.getMessage())
        if found is not None:
            self.last = int(found[1])


def main() -> None:
    """Read a delivery from stdin, do it, and write its outcome to stdout."""
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        outcome, status = deliver(asked["url"], asked["message"])
    sys.stdout.write(json.dumps({"outcome": outcome.value, "status": status}))


if __name__ == "__main__":
    main()
