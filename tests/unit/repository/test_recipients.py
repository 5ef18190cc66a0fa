"""Recipients and identities of age: X25519 and SSH, one spelling each, identity files with a passphrase."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from drservice.credentials import Secret
from drservice.errors import ConfigurationError, KeyProblemError, WrongIdentityError
from drservice.repository.keys import Identities, make_identity, wrap
from drservice.repository.recipients import no_passphrase, normal_recipient, read_identities
from tests.doubles.agefiles import protected

SECRET = bytes(range(32))
OPENSSH = serialization.PrivateFormat.OpenSSH
PEM = serialization.PrivateFormat.TraditionalOpenSSL
SshKey = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def ssh_key(kind: str) -> SshKey:
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def private(kind: str, how: serialization.PrivateFormat = OPENSSH) -> bytes:
    return ssh_key(kind).private_bytes(serialization.Encoding.PEM, how, serialization.NoEncryption())


def public(kind: str) -> str:
    key = ssh_key(kind).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def says(passphrase: str) -> Callable[[str], Secret]:
    return lambda _: Secret(passphrase)


@pytest.mark.parametrize(
    ("kind", "how"), [("ed25519", OPENSSH), ("rsa", OPENSSH), ("rsa", PEM)], ids=["ed25519", "rsa", "rsa as PEM"]
)
def test_an_ssh_key_opens_what_was_wrapped_for_it(tmp_path: Path, kind: str, how: serialization.PrivateFormat) -> None:
    path = tmp_path / "key"
    path.write_bytes(private(kind, how))
    identities = Identities.load([f"file:{path}"])
    assert identities.recipients == (public(kind),)
    assert identities.unwrap(wrap(SECRET, [public(kind)]), "a key") == SECRET


def test_an_ssh_recipient_has_one_spelling() -> None:
    assert normal_recipient(f"{public('ed25519')} somebody@host") == public("ed25519")
    assert normal_recipient(make_identity()[1]).startswith("age1")


@pytest.mark.parametrize("text", ["ssh-ed25519 AAAA", "ssh-dss AAAA", "age1xyz", "", "scrypt"])
def test_what_is_no_recipient_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        normal_recipient(text)
    with pytest.raises(ConfigurationError):
        wrap(SECRET, [text])


@pytest.mark.parametrize("armored", [False, True])
def test_a_file_made_with_a_passphrase_opens_with_it_and_nothing_else(tmp_path: Path, *, armored: bool) -> None:
    secret, recipient = make_identity()
    path = tmp_path / "identity.age"
    path.write_bytes(protected(f"# mine\n{secret}\n".encode(), "open sesame", armored=armored))
    assert Identities.load([f"file:{path}"], passphrase=says("open sesame")).recipients == (recipient,)
    with pytest.raises(KeyProblemError, match="the passphrase does not open"):
        Identities.load([f"file:{path}"], passphrase=says("wrong"))
    with pytest.raises(KeyProblemError, match="nobody to ask"):
        Identities.load([f"file:{path}"])
    with pytest.raises(KeyProblemError, match=r"the passphrase of .* is empty"):
        Identities.load([f"file:{path}"], passphrase=says(""))


def test_a_protected_file_may_hold_an_ssh_key_and_nothing_protected_again() -> None:
    sealed = protected(private("ed25519"), "pw")
    assert read_identities(sealed, "it", says("pw"))[0].recipient == public("ed25519")
    with pytest.raises(KeyProblemError, match="protected twice"):
        read_identities(protected(sealed, "pw"), "it", says("pw"))


@pytest.mark.parametrize(
    "content",
    [b"", b"# nothing\n", b"AGE-SECRET-KEY-1XYZ\n", b"\xff\xfe", b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"],
    ids=["empty", "comments", "mistyped", "binary", "cut"],
)
def test_what_is_no_identity_is_refused(content: bytes) -> None:
    with pytest.raises(KeyProblemError):
        read_identities(content, "it", no_passphrase)


@pytest.mark.parametrize(
    ("line", "hint"),
    [("AGE-SECRET-KEY-1XYZ", "cut off"), (make_identity()[1], "public half"), ("ssh-ed25519 AAAA", "public half")],
    ids=["cut", "recipient", "ssh public key"],
)
def test_a_line_that_is_no_identity_is_told_by_its_number_and_never_shown(line: str, hint: str) -> None:
    with pytest.raises(KeyProblemError, match="line 3 of it is no age identity") as caught:
        read_identities(f"# mine\n\n{line}\n".encode(), "it", no_passphrase)
    assert hint in caught.value.hint
    assert line not in caught.value.message + caught.value.hint


def test_an_ssh_key_that_age_cannot_use_is_told() -> None:
    with pytest.raises(KeyProblemError, match="no SSH key that age can use"):
        read_identities(private("ecdsa"), "it", no_passphrase)


def test_one_identity_that_cannot_be_loaded_does_not_keep_the_others_from_reading(tmp_path: Path) -> None:
    secret, recipient = make_identity()
    (tmp_path / "good").write_text(secret)
    references = [f"file:{tmp_path / 'away'}", f"file:{tmp_path / 'good'}"]
    several = Identities(references)
    assert several.unwrap(wrap(SECRET, [recipient]), "a key") == SECRET
    with pytest.raises(WrongIdentityError, match="not tried: cannot read the secret file"):
        several.unwrap(wrap(SECRET, [make_identity()[1]]), "a key")
    assert [reference for reference, _ in several.each()] == references
