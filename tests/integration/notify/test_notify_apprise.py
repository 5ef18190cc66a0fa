"""Delivery through apprise against a real server: what it believes, what it refuses, and that no URL is ever shown."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from drservice import processes, telemetry
from drservice.errors import DrError, NotifyDeliveryError, NotifyPlaceError, SecretError
from drservice.model.estate import NotifyKind, NotifyPlace
from drservice.notify import apprise
from drservice.notify.apprise import AppriseNotifier, places
from drservice.notify.interface import Notice, Severity
from tests.doubles.notifiers import Behaviour, HookServer

CANARY = "CANARY7f3a"
NOTICE = Notice(
    event="run:1",
    kind=NotifyKind.FAILURE,
    severity=Severity.BUSINESS_CRITICAL,
    service="erp",
    title="backup failed",
    body="the disk is full",
)


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with HookServer() as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return tmp_path / "url"


def notifier(secret: Path, *, seconds: float = 20.0) -> AppriseNotifier:
    return AppriseNotifier(name="ops", reference=f"file:{secret}", deadline=timedelta(seconds=seconds))


def shown_of(error: BaseException) -> str:
    """Return all that an error could show of itself and of what led to it."""
    parts = []
    current: BaseException | None = error
    while current is not None:
        parts += [repr(current), str(current), repr(current.args), getattr(current, "hint", "")]
        current = current.__cause__ or current.__context__
    return "\n".join([*parts, *traceback.format_exception(error)])


def test_the_password_goes_to_the_place_and_the_changed_one_is_used_next(hook: HookServer, secret: Path) -> None:
    told = notifier(secret)
    for password in ("first", "second"):
        secret.write_text(hook.url(password))
        told.send(NOTICE)
    wanted = [f"Basic {base64.b64encode(f'user:{word}'.encode()).decode()}" for word in ("first", "second")]
    assert [authorization for _, authorization, _ in hook.requests] == wanted


def test_the_severity_is_in_what_is_sent(hook: HookServer, secret: Path) -> None:
    secret.write_text(hook.url("x"))
    notifier(secret).send(NOTICE)
    assert json.loads(hook.requests[0][2])["type"] == "failure"


def test_the_status_of_a_refusal_is_told(hook: HookServer, secret: Path) -> None:
    secret.write_text(hook.url(CANARY))
    hook.behave(Behaviour.REFUSE)
    with pytest.raises(NotifyDeliveryError, match=r"^ops answered with status 500$"):
        notifier(secret).send(NOTICE)


def test_a_place_that_nobody_listens_at_is_told_as_not_reached(secret: Path) -> None:
    secret.write_text(f"json://user:{CANARY}@127.0.0.1:1/")
    with pytest.raises(NotifyDeliveryError, match=r"^ops was not reached"):
        notifier(secret).send(NOTICE)


def test_a_redirect_is_not_followed_even_if_the_url_asks_for_it(hook: HookServer, secret: Path) -> None:
    secret.write_text(hook.url(CANARY, more="?redirect=yes"))
    hook.behave(Behaviour.REDIRECT)
    with pytest.raises(NotifyDeliveryError):
        notifier(secret).send(NOTICE)
    assert [path.partition("?")[0] for path, _, _ in hook.requests] == ["/hook"]


def test_a_url_cannot_lengthen_the_wait(hook: HookServer, secret: Path) -> None:
    secret.write_text(hook.url(CANARY, more="?rto=900&cto=900&retry=50&wait=60"))
    hook.behave(Behaviour.HANG)
    with pytest.raises(NotifyDeliveryError, match="within 2 s"):
        notifier(secret, seconds=2).send(NOTICE)


def test_verification_of_certificates_cannot_be_turned_off(secret: Path) -> None:
    secret.write_text(f"jsons://user:{CANARY}@127.0.0.1:1/?verify=no")
    for act in (notifier(secret).check, lambda: notifier(secret).send(NOTICE)):
        with pytest.raises(NotifyPlaceError, match="certificates"):
            act()


def test_a_good_url_is_good_without_anything_being_sent(hook: HookServer, secret: Path) -> None:
    secret.write_text(hook.url(CANARY))
    notifier(secret).check()
    assert hook.requests == []


UNUSABLE = [
    f"json://user:{CANARY}@",
    f"slack://{CANARY}",
    f"mailto://u:{CANARY}@",
    f"tgram://{CANARY}/",
    f"dbus://{CANARY}",
    f"https://{CANARY}@example.com/",
    f"{CANARY}",
]


@pytest.mark.parametrize("url", UNUSABLE)
def test_a_url_that_cannot_be_used_is_refused_and_never_shown(
    url: str, secret: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret.write_text(url)
    for act in (notifier(secret).check, lambda: notifier(secret).send(NOTICE)):
        with pytest.raises(NotifyPlaceError) as caught:
            act()
        assert CANARY not in shown_of(caught.value)
    out, err = capfd.readouterr()
    assert CANARY not in out + err


def test_the_library_itself_logs_passwords_on_its_lowest_level() -> None:
    """Why a delivery is a process of its own, whose log goes nowhere."""
    url = f"json://user:{CANARY}@127.0.0.1:1/"
    script = f"import logging; logging.basicConfig(level=1); import apprise; apprise.Apprise.instantiate('{url}')"
    spoken = processes.run([sys.executable, "-W", "ignore", "-c", script], timeout_seconds=60)
    assert CANARY in spoken.stderr.decode()


@pytest.mark.parametrize("behaviour", list(Behaviour))
def test_the_password_is_in_no_output_log_or_error(
    behaviour: Behaviour, hook: HookServer, secret: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    telemetry.configure(level="debug")
    try:
        secret.write_text(hook.url(CANARY))
        hook.behave(behaviour)
        shown = ""
        try:
            notifier(secret, seconds=2).send(NOTICE)
        except DrError as error:
            shown = shown_of(error)
            telemetry.error("not told", exception=error)
    finally:
        telemetry.configure()
    out, err = capfd.readouterr()
    assert len(hook.requests) == 1, "the secret was used"
    assert CANARY not in shown + out + err


def test_the_password_is_on_no_command_line_and_in_no_environment(hook: HookServer, secret: Path) -> None:
    seen: list[bytes] = []

    def look() -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                for part in ("cmdline", "environ"):
                    try:
                        seen.append((entry / part).read_bytes())
                    except OSError:
                        continue

    secret.write_text(hook.url(CANARY))
    hook.during(look)
    notifier(secret).send(NOTICE)
    assert any(b"drservice.notify.apprise" in line for line in seen)
    assert not any(CANARY.encode() in line for line in seen)


def test_a_secret_that_is_not_there_is_told_with_its_reference(secret: Path) -> None:
    with pytest.raises(SecretError, match=str(secret)):
        notifier(secret).send(NOTICE)


def test_a_delivery_that_does_not_say_how_it_went_has_failed(
    hook: HookServer, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.write_text(hook.url(CANARY))
    for status, stdout in ((0, b""), (0, CANARY.encode()), (0, b'{"outcome": "perhaps"}'), (1, b""), (-9, b"")):
        finished = processes.Finished(status=status, stdout=stdout, stderr=CANARY.encode())
        monkeypatch.setattr(processes, "run", lambda *_, answer=finished, **__: answer)
        with pytest.raises(NotifyDeliveryError) as caught:
            notifier(secret).send(NOTICE)
        assert CANARY not in shown_of(caught.value)


def test_a_delivery_that_was_killed_is_not_told_as_a_place_that_was_slow(hook: HookServer, secret: Path) -> None:
    def kill() -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and apprise.__name__ in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)

    hook.during(kill)
    secret.write_text(hook.url("x"))
    with pytest.raises(NotifyDeliveryError, match="the delivering process ended with status -9"):
        notifier(secret).send(NOTICE)
    hook.during(lambda: None)
    hook.behave(Behaviour.HANG)
    with pytest.raises(NotifyDeliveryError, match="did not take a message within 2 s"):
        notifier(secret, seconds=2).send(NOTICE)


def test_a_site_s_own_authorities_are_believed_and_nothing_else_is_inherited(
    hook: HookServer, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/site/ca.pem")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    seen: list[dict[str, str]] = []
    real = processes.run

    def run(argv: list[str], *, environment: dict[str, str], stdin: bytes, timeout_seconds: float) -> object:
        seen.append(environment)
        return real(argv, environment=environment, stdin=stdin, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(processes, "run", run)
    secret.write_text(hook.url("x"))
    notifier(secret).send(NOTICE)
    assert seen[0]["SSL_CERT_FILE"] == "/etc/site/ca.pem"
    assert "HTTP_PROXY" not in seen[0]


def test_each_place_of_a_configuration_gets_its_own_notifier() -> None:
    entries = [NotifyPlace(name="ops", url="env:OPS"), NotifyPlace(name="cio", url="env:CIO", on=frozenset())]
    made = places(entries)
    assert [(place.name, place.on) for place in made] == [("ops", frozenset(NotifyKind)), ("cio", frozenset())]
    assert [place.notifier for place in made] == [
        AppriseNotifier(name="ops", reference="env:OPS"),
        AppriseNotifier(name="cio", reference="env:CIO"),
    ]


def test_the_library_is_not_loaded_by_who_has_nothing_to_tell() -> None:
    module = apprise.__name__
    script = f"import sys, {module}; sys.exit('apprise' in sys.modules)"
    environment = processes.clean_environment({"PYTHONPATH": os.pathsep.join(sys.path)})
    assert processes.run([sys.executable, "-c", script], environment=environment, timeout_seconds=60).status == 0
