"""Logs: one form, the run that was bound, and no secret in any of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from drservice import telemetry
from drservice.credentials import Secret
from drservice.telemetry import Form, redact

CANARY = "CANARY7f3a"
AGE = "AGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQ"
PEM = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    telemetry.configure()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://drservice:{CANARY}@db1/catalogue",
        f"postgresql://drservice:with/{CANARY}?@db1/catalogue",
        f"jsons://user:{CANARY}@hooks.example/path",
        f"slack://{CANARY}/B/C/#ops",
        f"tgram://{CANARY}",
        f"https://{CANARY}@example.com/x",
        f"https://example.com/x?a=1&access_token={CANARY}&b=2",
        f"https://bucket.example/key?X-Amz-Signature={CANARY}",
        f"host=db1 password={CANARY} dbname=erp",
        f"host=db1 password='a b\\'{CANARY} c' dbname=erp",
        f"host=db1 password = '{CANARY}",
        f'{{"client_secret": "{CANARY}", "ok": 1}}',
        f"{{'token': '{CANARY}'}}",
        f"Authorization: Bearer {CANARY}",
        f"Cookie: {CANARY}",
        f"aws_secret_access_key={CANARY}",
        f"eyJhbGciOi.eyJzdWIi{CANARY}.{CANARY}",
        PEM,
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}",
    ],
)
def test_a_secret_in_a_text_is_blotted_out(text: str) -> None:
    assert CANARY in text
    assert CANARY not in redact(text)
    assert CANARY not in redact(f"it failed: {text}, so it was tried again ({text})")


def test_a_token_of_our_own_is_blotted_out_wherever_it_stands() -> None:
    secret = "drs_" + "aB3-_" * 8 + "xyz"
    for text in (secret, f"/api/v1/{secret}/x", f"who sent '{secret}'?", f"[{secret}]"):
        assert "aB3" not in redact(text)


def test_an_age_secret_key_is_blotted_out_in_either_case() -> None:
    for text in (AGE, AGE.lower(), f"identity {AGE}."):
        assert "QYQSZQ" not in redact(text).upper()


@pytest.mark.parametrize(
    "text",
    [
        "the catalogue postgresql://drservice@db1/catalogue does not answer",
        "s3://bucket/prefix?region=eu-central-1",
        "file:///srv/repository",
        "https://example.com/path?page=2",
        "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex",
        "cannot read the secret file /etc/drservice/slack: permission denied",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("unit", ["a.", "a-", "a", "://", "password=", "https://", "'", "eyJ", "AGE-SECRET-KEY-"])
def test_a_hostile_text_is_read_in_a_moment(unit: str) -> None:
    began = time.monotonic()
    redact(unit * (200_000 // len(unit)))
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("form", list(Form))
def test_no_part_of_an_event_shows_a_secret(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="info", form=form)
    dsn = f"host=db1 password={CANARY}"
    with telemetry.bound(run="01RUN", url=f"json://{CANARY}"):
        telemetry.warning(
            f"went wrong with {dsn}",
            dsn=dsn,
            token=CANARY,
            inner={"password": CANARY, "list": [f"json://u:{CANARY}@x", (dsn,)]},
            error=ValueError(dsn),
            secret_object=Secret(CANARY),
        )
    telemetry.error("broke", exception=ValueError(dsn))
    shown = capsys.readouterr().err
    assert "went wrong with" in shown
    assert "ValueError" in shown
    assert CANARY not in shown


def test_without_the_redacting_step_the_secret_would_show(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "redact", str)
    telemetry.configure(level="info", form=Form.JSON)
    telemetry.info("asked", dsn=f"password={CANARY}")
    assert CANARY in capsys.readouterr().err


def test_a_daemon_writes_one_json_object_a_line_with_run_and_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="info", form=Form.JSON)
    with telemetry.bound(run="01RUN", epoch=3):
        telemetry.info("step\nwith a break", files=2, ratio=0.5, done=True, nothing=None)
        with telemetry.bound(epoch=4):
            telemetry.info("inner")
    telemetry.info("after")
    first, inner, after = lines(capsys)
    assert first["event"] == "step\nwith a break"
    assert first["level"] == "info"
    assert (first["run"], first["epoch"], inner["epoch"]) == ("01RUN", 3, 4)
    assert (first["files"], first["ratio"], first["done"], first["nothing"]) == (2, 0.5, True, None)
    assert first["timestamp"].endswith("Z")
    assert "run" not in after


def test_what_is_bound_in_one_thread_is_not_told_by_another(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="info", form=Form.JSON)
    with telemetry.bound(run="01RUN"):
        other = threading.Thread(target=telemetry.info, args=("other",))
        other.start()
        other.join()
        telemetry.info("this")
    assert ["run" in line for line in lines(capsys)] == [False, True]


def test_a_name_can_neither_begin_a_line_nor_colour_it(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="info")
    telemetry.info("named \x1b[31mred", path="a\nb 2026-01-01 [info] all is well\u202egnp", more={"x": "\x07\x1b"})
    telemetry.error("broke", exception=ValueError("\x1b[2J"))
    shown = capsys.readouterr().err
    first = shown.splitlines()[0]
    assert "\\x1b[31mred" in first
    assert "all is well" in first
    assert "\\u202e" in first
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_libraries_speak_in_the_same_form_and_never_on_debug(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="debug", form=Form.JSON, libraries=True)
    library = logging.getLogger("some.library")
    library.debug("content of a request")
    library.warning("sent to %s", f"https://u:{CANARY}@example.com")
    try:
        int(f"password={CANARY}")
    except ValueError:
        library.exception("broke")
    sent, broke = lines(capsys)
    assert (sent["logger"], sent["level"]) == ("some.library", "warning")
    assert sent["event"] == "sent to https://u:***@example.com"
    assert "ValueError: invalid literal for int() with base 10: 'password=***" in broke["exception"]


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(level="warning", form=Form.JSON)
    telemetry.info("quiet")
    telemetry.error("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]
