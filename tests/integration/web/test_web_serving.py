"""The server itself, on loopback: it starts, streams to many, ends on demand, and refuses what it cannot serve."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import httpx
import pytest

from drservice.catalogue.runs import Claim, RunRequest
from drservice.errors import ListenError
from drservice.model.runs import RunKind, RunState
from drservice.web.serving import is_loopback, serve
from tests.doubles.website import Website

VIEWERS = 30


@contextmanager
def served(website: Website) -> Iterator[str]:
    stop, ready, address = threading.Event(), threading.Event(), list[str]()

    def told(host: str, port: int) -> None:
        address.append(f"http://{host}:{port}")
        ready.set()

    def work() -> None:
        serve(website.site.estate, website.site.database, listen=("127.0.0.1", 0), stop=stop, ready=told)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(30)
        yield address[0]
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def claimed(website: Website) -> Claim:
    run = website.site.runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by="somebody"))
    assert run is not None
    claim = website.site.runs.claim(run, host="db1", lease=timedelta(minutes=5))
    assert claim is not None
    return claim


def follow(base: str, token: str, run: str, into: list[tuple[str, str, float]], after: str | None = None) -> None:
    headers = {"Authorization": f"Bearer {token}", **({"Last-Event-ID": after} if after else {})}
    with httpx.stream("GET", f"{base}/api/v1/runs/{run}/events", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        kind = identifier = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                identifier = value
            elif not line and kind:
                into.append((kind, identifier, time.monotonic()))
                kind = identifier = ""


def test_many_viewers_get_every_event_once_soon_after_it_happened_and_the_end(website: Website) -> None:
    token, claim = website.token("viewer"), claimed(website)
    seen: list[list[tuple[str, str, float]]] = [[] for _ in range(VIEWERS)]
    with served(website) as base:
        threads = [threading.Thread(target=follow, args=(base, token, claim.run, into)) for into in seen]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not all(seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        told = time.monotonic()
        assert website.site.runs.event(claim, "step", {"name": "upload", "total": 10, "unit": "bytes"})
        assert website.site.runs.progress(claim, {"step": "upload", "done": 5, "total": 10})
        while not all(any(kind == "progress" for kind, _, _ in into) for into in seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert website.site.runs.finish(claim, RunState.SUCCEEDED)
        for thread in threads:
            thread.join(30)
    for into in seen:
        assert [identifier for _, identifier, _ in into if identifier] == ["1", "2", "3", "4"]
        assert [kind for kind, _, _ in into][-1] == "end"
        step = next(at for kind, _, at in into if kind == "step")
        assert step - told < 5


def test_a_viewer_who_comes_back_gets_what_he_missed_and_nothing_twice(website: Website) -> None:
    token, claim = website.token("viewer"), claimed(website)
    with served(website) as base:
        url, headers = f"{base}/api/v1/runs/{claim.run}/events", {"Authorization": f"Bearer {token}"}
        with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
            first = next(line for line in answer.iter_lines() if line.startswith("id: 2"))
        for number in range(3):
            assert website.site.runs.event(claim, "note", {"text": str(number)})
        assert website.site.runs.finish(claim, RunState.FAILED, error={"code": "DR000"})
        into: list[tuple[str, str, float]] = []
        follow(base, token, claim.run, into, after=first.removeprefix("id: "))
    assert [(kind, identifier) for kind, identifier, _ in into] == [
        ("note", "3"),
        ("note", "4"),
        ("note", "5"),
        ("state", "6"),
        ("end", ""),
    ]


def test_a_stream_ends_within_seconds_after_its_token_was_revoked(website: Website) -> None:
    token, claim = website.token("viewer"), claimed(website)
    accounts = website.site.identity.accounts
    with served(website) as base:
        into: list[tuple[str, str, float]] = []
        thread = threading.Thread(target=follow, args=(base, token, claim.run, into))
        thread.start()
        while not into:
            time.sleep(0.05)
        revoked_at = time.monotonic()
        assert accounts.revoke(accounts.tokens()[0].id)
        thread.join(15)
        assert not thread.is_alive()
        assert time.monotonic() - revoked_at < 5
        assert website.site.runs.event(claim, "note", {"text": "secret"})
    assert all(kind != "note" for kind, _, _ in into)


def test_stopping_does_not_wait_for_viewers(website: Website) -> None:
    token, claim = website.token("viewer"), claimed(website)
    into: list[tuple[str, str, float]] = []
    with served(website) as base:
        thread = threading.Thread(target=follow, args=(base, token, claim.run, into))
        thread.start()
        while not into:
            time.sleep(0.05)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    thread.join(10)
    assert not thread.is_alive()


def test_answers_over_one_connection_do_not_wait_for_acknowledgements(website: Website) -> None:
    with served(website) as base, httpx.Client(base_url=base) as client:
        taken = []
        for _ in range(30):
            begun = time.monotonic()
            assert client.get("/healthz").status_code == 200
            taken.append(time.monotonic() - begun)
    # A delayed acknowledgement comes after 40 ms; on a loaded machine the quickest answers tell.
    assert sorted(taken)[10] < 0.03


def test_an_address_in_use_is_told_with_what_to_do(website: Website) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError, match="cannot listen on"):
        serve(
            website.site.estate,
            website.site.database,
            listen=("127.0.0.1", taken.getsockname()[1]),
            stop=threading.Event(),
        )


def test_answers_over_a_socket_carry_the_headers_and_no_word_of_the_server(website: Website) -> None:
    with served(website) as base:
        answer = httpx.get(f"{base}/healthz")
        assert answer.json() == {"status": "ok"}
        assert "server" not in answer.headers
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        with socket.create_connection(tuple(base.removeprefix("http://").split(":"))) as raw:  # type: ignore[arg-type]  # create_connection takes a port in words
            raw.sendall(b"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000)
            raw.settimeout(10)
            assert raw.recv(100).startswith(b"HTTP/1.1 4") or raw.recv(1) == b""
        assert json.loads(httpx.get(f"{base}/api/v1/me").text)["code"] == "DR950"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("erp.example.com", False)],
)
def test_what_only_this_machine_reaches_is_known(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected
