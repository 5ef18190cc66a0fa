"""Secrets are references outside and unprintable inside."""

from __future__ import annotations

import json
import pickle
import traceback
from pathlib import Path

import pytest

from drservice.credentials import Secret, resolve
from drservice.errors import ProgramMissingError, SecretError

VALUE = "correct horse battery staple"


def test_references_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(VALUE + "\n")
    monkeypatch.setenv("TEST_SECRET", VALUE)
    for reference in (f"file:{tmp_path / 'secret'}", "env:TEST_SECRET", f"command:cat '{tmp_path / 'secret'}'"):
        assert resolve(reference).reveal() == VALUE


@pytest.mark.parametrize("literal", [VALUE, "", "vault:x", "AGE-SECRET-KEY-1QQQ", "FILE:/x"])
def test_a_literal_is_refused_and_not_repeated(literal: str) -> None:
    with pytest.raises(SecretError) as caught:
        resolve(literal)
    assert not literal or literal not in caught.value.message


def test_a_source_that_fails_is_named_and_its_content_is_not(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + VALUE.encode())
    for reference in (
        f"file:{tmp_path / 'none'}",
        f"file:{tmp_path / 'binary'}",
        "env:NO_SUCH_VARIABLE",
        "command:false",
    ):
        with pytest.raises(SecretError) as caught:
            resolve(reference)
        assert VALUE not in caught.value.message
    with pytest.raises(ProgramMissingError):
        resolve("command:no-such-program-here")


def test_a_command_is_no_shell_line(tmp_path: Path) -> None:
    assert resolve(f"command:echo $HOME; touch {tmp_path / 'made'}").reveal().startswith("$HOME;")
    assert not (tmp_path / "made").exists()


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret(VALUE)
    assert VALUE not in f"{secret} {secret!r} {secret!s} {[secret]}"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps({"secret": secret})
    with pytest.raises(AttributeError):
        secret.extra = 1  # type: ignore[attr-defined]  # that is the point
    shown = "".join(traceback.format_exception(ValueError(secret)))
    assert VALUE not in shown
    assert "Secret(***)" in shown
