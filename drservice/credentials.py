"""Secrets are references in the configuration and unprintable objects in memory.

A reference is ``file:PATH``, ``env:NAME`` or ``command:PROGRAM ARG ...``; a literal is refused, so that no
secret lands in git with the configuration.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from drservice import processes
from drservice.errors import SecretError


class Secret:
    """A value that never shows itself: not in logs, not in tracebacks, not in JSON."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value; call it only where it is handed to the library that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not pickled")


def resolve(reference: str) -> Secret:
    """Resolve a secret reference.

    Raises:
        SecretError: for a literal, an unknown scheme, or a source that cannot be read. The message names
            the reference, never the value.
    """
    content = resolve_bytes(reference)
    try:
        return Secret(content.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise SecretError(f"what {_shown(reference)} leads to is no text") from error


def resolve_bytes(reference: str) -> bytes:
    """Resolve a secret reference to its bytes as they are; hand them on at once and never show them.

    Raises:
        SecretError: as :func:`resolve`.
    """
    scheme, colon, rest = reference.partition(":")
    if not colon or scheme not in {"file", "env", "command"}:
        raise SecretError("a secret must be a reference, not a literal")
    if scheme == "env":
        value = os.environb.get(os.fsencode(rest))
        if value is None:
            raise SecretError(f"the environment variable {rest} is not set")
        return value
    if scheme == "file":
        try:
            return Path(rest).read_bytes()
        except OSError as error:
            raise SecretError(f"cannot read the secret file {rest}: {error}") from error
    result = processes.run(shlex.split(rest), timeout_seconds=30)
    if result.status != 0:
        raise SecretError(f"the command of {_shown(reference)} ended with status {result.status}")
    return result.stdout


def _shown(reference: str) -> str:
    """Return a reference without what a command is given."""
    return f"{reference.split(maxsplit=1)[0]} ..." if reference.startswith("command:") else reference
