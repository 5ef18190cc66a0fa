"""Who reads: recipients (public) and identities (secret) of age, X25519 and SSH, parsed here and nowhere else.

A recipient is written in one way only, because writers compare them as text: an SSH public key without its comment.
An identity file may be protected by a passphrase as ``age -p`` does it. There are no passphrase *recipients*: a host
that knows the passphrase it writes for could read all that was written for it, and hosts that write hold no such key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyrage
from cryptography.exceptions import UnsupportedAlgorithm

from drservice.credentials import Secret
from drservice.errors import ConfigurationError, KeyProblemError

AskPassphrase = Callable[[str], Secret]
"""Returns the passphrase of what is named; raises KeyProblemError where nobody can be asked."""

_SSH_RECIPIENTS = ("ssh-ed25519 ", "ssh-rsa ")
_SSH_IDENTITIES = (b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----BEGIN RSA PRIVATE KEY-----")
_PROTECTED = (b"age-encryption.org/v1", b"-----BEGIN AGE ENCRYPTED FILE-----")
_NATIVE = "AGE-SECRET-KEY-1"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoadedIdentity:
    """An identity in memory, and the recipient it opens for."""

    identity: object
    recipient: str


def normal_recipient(text: str) -> str:
    """Return a recipient in its one spelling.

    Raises:
        ConfigurationError: it is no recipient that this version can write for.
    """
    words = text.split()
    spelled = " ".join(words[:2]) if text.startswith(_SSH_RECIPIENTS) else text
    parse_recipient(spelled)
    return spelled


def parse_recipient(text: str) -> object:
    """Return what the library encrypts to.

    Raises:
        ConfigurationError: it is no recipient that this version can write for.
    """
    try:
        if text.startswith(_SSH_RECIPIENTS):
            return pyrage.ssh.Recipient.from_str(text)
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise ConfigurationError(
            f"{text} is no age recipient", hint="It is age1..., ssh-ed25519 ... or ssh-rsa ..., without options."
        ) from error


def is_protected(content: bytes) -> bool:
    """Tell whether an identity file is of use only with its passphrase."""
    return content.lstrip().startswith(_PROTECTED)


def no_passphrase(what: str) -> Secret:
    """Refuse to guess: nobody can be asked here.

    Raises:
        KeyProblemError: always.
    """
    raise KeyProblemError(
        f"{what} is protected by a passphrase, and there is nobody to ask for it",
        hint="Set repository.identity_passphrase to a reference, or run the command on a terminal.",
    )


def read_identities(content: bytes, what: str, ask: AskPassphrase) -> list[LoadedIdentity]:
    """Read an identity file: age secret keys with comments, or one SSH private key; either may be inside ``age -p``.

    Args:
        content: of the file.
        what: how messages call it.
        ask: for the passphrase of a protected one.

    Raises:
        KeyProblemError: it is none of these, or the passphrase is wrong.
    """
    if is_protected(content):
        content = _unprotected(content, what, ask)
    if content.lstrip().startswith(_SSH_IDENTITIES):
        return [_ssh_identity(content.lstrip(), what)]
    found = list(_native_identities(content, what))
    if not found:
        raise KeyProblemError(f"{what} holds no age identity")
    return found


def _unprotected(content: bytes, what: str, ask: AskPassphrase) -> bytes:
    passphrase = ask(what)
    if not passphrase.reveal():
        raise KeyProblemError(
            f"the passphrase of {what} is empty", hint="Look at what repository.identity_passphrase leads to."
        )
    sealed = content.strip() if content.lstrip().startswith(_PROTECTED[1]) else content
    try:
        opened: bytes = pyrage.passphrase.decrypt(sealed, passphrase.reveal())
    except (pyrage.DecryptError, ValueError) as error:
        raise KeyProblemError(
            f"the passphrase does not open {what}",
            hint="It is another one, or the file was cut off or changed: compare it with the sealed copy.",
        ) from error
    if opened.lstrip().startswith(_PROTECTED):
        raise KeyProblemError(f"{what} is protected twice", hint="Protect the identity itself, once: age -p.")
    return opened


def _native_identities(content: bytes, what: str) -> Iterator[LoadedIdentity]:
    try:
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise KeyProblemError(f"{what} is no identity file") from error
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        try:
            identity = pyrage.x25519.Identity.from_str(line)
        except pyrage.IdentityError as error:
            hint = f"A line is {_NATIVE} and 58 letters and digits; one that was cut off or mistyped does not hold."
            if line.startswith(("age1", *_SSH_RECIPIENTS)):
                hint = "That is the public half, a recipient; the identity is the secret one, in a file of its own."
            raise KeyProblemError(f"line {number} of {what} is no age identity", hint=hint) from error
        yield LoadedIdentity(identity=identity, recipient=str(identity.to_public()))


def _ssh_identity(content: bytes, what: str) -> LoadedIdentity:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # nothing else here needs its 20 modules

    try:
        if content.startswith(_SSH_IDENTITIES[0]):
            key = serialization.load_ssh_private_key(content, password=None)
        else:
            private = serialization.load_pem_private_key(content, password=None)
            assert not isinstance(private, bytes)
            key = private  # type: ignore[assignment]  # a PEM of this header is an RSA key
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        identity = pyrage.ssh.Identity.from_buffer(content)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise KeyProblemError(
            f"{what} is an SSH key with a passphrase of its own, which this version does not open",
            hint="Take that passphrase off a copy (ssh-keygen -p) and protect the copy with age -p instead.",
        ) from error
    except (ValueError, pyrage.IdentityError) as error:
        raise KeyProblemError(
            f"{what} is no SSH key that age can use", hint="It can use ssh-ed25519 and ssh-rsa."
        ) from error
    return LoadedIdentity(identity=identity, recipient=public.decode("ascii"))
