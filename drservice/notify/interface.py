"""What people are told, and the protocol of what tells it.

A notice is about one event. Its words are for a person at night: what happened to which service, whether the business
is in danger or only the machinery, and the command to type next. A notifier hands it to one place or raises.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from drservice.model.estate import NotifyKind

_TITLE_LETTERS = 200
_BODY_LETTERS = 4_000
_CUT = " …"


class Severity(Enum):
    """Who has to get up."""

    BUSINESS_CRITICAL = "business-critical"
    """Something promised to the business is broken or about to be."""
    TECHNICAL = "technical"
    """The machinery needs a hand; what is promised holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to tell."""

    event: str
    """Names the event once and for all: each place is told once."""
    kind: NotifyKind
    severity: Severity
    title: str
    body: str
    service: str | None = None
    next_command: str | None = None

    def subject(self) -> str:
        """Return the line to show first: one line, nothing in it that a terminal or a mail header obeys."""
        about = f"{self.service}: " if self.service is not None else ""
        return _bounded(_printable(f"[{self.severity.value}] {about}{self.title}", keep=""), _TITLE_LETTERS)

    def text(self) -> str:
        """Return the rest, and at its end the command to type next: that one is never cut."""
        command = "" if self.next_command is None else f"\n\nNext: {_printable(self.next_command, keep='')}"
        return _bounded(_printable(self.body, keep="\n"), _BODY_LETTERS) + command


class Notifier(Protocol):
    """Tells one place."""

    def send(self, notice: Notice) -> None:
        """Tell it; on return the place has taken it.

        Raises:
            NotifyPlaceError: as it is configured, the place can be told nothing.
            NotifyDeliveryError: the place did not take it, or nobody knows whether it did. No message of these errors
                holds any part of the place's URL.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An entry of ``notify`` with what tells it."""

    name: str
    """May be shown, as nothing of its URL may."""
    on: Collection[NotifyKind]
    notifier: Notifier


def _printable(text: str, *, keep: str) -> str:
    """Return the text with a blank for each character that is none to read (control, format, surrogate)."""
    return "".join(letter if letter.isprintable() or letter in keep else " " for letter in text)


def _bounded(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - len(_CUT)] + _CUT
