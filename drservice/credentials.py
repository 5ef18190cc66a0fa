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
    scheme, colon, rest = reference.partition(":")
    if not colon or scheme not in {"file", "env", "command"}:
        raise SecretError("a secret must be a reference, not a literal")
    if scheme == "env":
        value = os.environ.get(rest)
        if value is None:
            raise SecretError(f"the environment variable {rest} is not set")
        return Secret(value)
    if scheme == "file":
        try:
            return Secret(Path(rest).read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(f"cannot read the secret file {rest}: {error}") from error
    result = processes.run(shlex.split(rest), timeout_seconds=30)
    if result.status != 0:
        raise SecretError(f"the command of {reference.split(maxsplit=1)[0]} ... ended with status {result.status}")
    return Secret(result.stdout.decode("utf-8").strip())
