"""Where the passphrase of a protected identity file comes from: a reference, or whoever sits at the terminal."""

from __future__ import annotations

import getpass
import os
import warnings

from drservice.credentials import Secret, resolve
from drservice.errors import KeyProblemError
from drservice.repository.recipients import AskPassphrase, no_passphrase


def passphrase_of(reference: str | None) -> AskPassphrase:
    """Return what answers for a passphrase; a terminal is asked once for each file and process.

    Args:
        reference: the configured one; ``None``: ask the terminal, and refuse where there is none.
    """
    given: dict[str, Secret] = {}

    def ask(what: str) -> Secret:
        if reference is not None:
            return resolve(reference)
        if what not in given:
            given[what] = _ask_terminal(what)
        return given[what]

    return ask


def _ask_terminal(what: str) -> Secret:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return no_passphrase(what)
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would be shown while it is typed
        try:
            return Secret(getpass.getpass(f"Passphrase of {what}: "))
        except (EOFError, getpass.GetPassWarning) as error:
            raise KeyProblemError(f"no passphrase was given for {what}") from error
