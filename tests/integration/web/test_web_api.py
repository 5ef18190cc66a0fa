"""The API over a real catalogue: work is enqueued once, lists have cursors, what has changed is not changed blindly."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import insert

from drservice.catalogue.runs import RunRequest
from drservice.catalogue.streams import ToldDocuments, tell_documents
from drservice.catalogue.tables import Point, RunEvent
from drservice.clock import from_iso, to_iso
from drservice.jobs.queue import queue_of
from drservice.model.runs import RunKind, RunState
from tests.doubles.catalogue import CatalogueServer
from tests.doubles.website import Website, set_clock, ulid


def post(client: httpx.Client, path: str, body: object, key: str | None = "k1") -> httpx.Response:
    return client.post(path, json=body, headers={"Idempotency-Key": key} if key is not None else {})


@pytest.mark.parametrize(
    ("path", "body", "kind", "parameters"),
    [
        ("backups", {}, RunKind.BACKUP, {}),
        ("drills", {"plan": "erp-quarterly"}, RunKind.DRILL, {}),
        ("drills", {}, RunKind.DRILL, {}),
        ("restores", {}, RunKind.RESTORE, {"to": "latest"}),
        ("restores", {"to": "2026-11-26T03:00:00+01:00"}, RunKind.RESTORE, {"to": "2026-11-26T02:00:00.000000Z"}),
    ],
)
def test_work_is_enqueued_and_answered_with_where_to_look(
    website: Website, path: str, body: dict[str, str], kind: RunKind, parameters: dict[str, str]
) -> None:
    client = website.client(website.token("operator", "restorer"))
    answer = post(client, f"/api/v1/services/erp/{path}", body)
    assert answer.status_code == 202, answer.text
    run = client.get(answer.headers["location"]).json()
    assert (run["kind"], run["state"], run["parameters"]) == (kind.value, "queued", parameters)
    job = website.site.queue.take([queue_of(kind, None)])
    assert job is not None
    assert job.run == run["id"]


def test_a_repeated_request_gets_the_first_answer_and_another_one_with_its_key_is_refused(website: Website) -> None:
    client = website.client(website.token("operator", "restorer"))
    first = post(client, "/api/v1/services/erp/restores", {"to": "latest"})
    again = post(client, "/api/v1/services/erp/restores", {"to": "latest"})
    assert (again.status_code, again.json(), again.headers["location"]) == (
        first.status_code,
        first.json(),
        first.headers["location"],
    )
    assert again.headers["idempotent-replayed"] == "true"
    other = post(client, "/api/v1/services/erp/restores", {"to": "2026-11-26T03:00:00Z"})
    assert (other.status_code, other.json()["code"]) == (422, "DR955")
    elsewhere = post(client, "/api/v1/services/erp/backups", {})
    assert elsewhere.json()["code"] == "DR955"
    somebody = website.client(website.token("operator", "restorer"))
    assert post(somebody, "/api/v1/services/erp/restores", {"to": "latest"}).json() != first.json()
    assert len(website.site.runs.list()) == 2


def test_the_same_request_sent_ten_times_at_once_is_one_run(website: Website) -> None:
    token = website.token("operator")
    answers: list[str] = []

    def send() -> None:
        answers.append(post(website.client(token), "/api/v1/services/erp/backups", {}).json()["run"])

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10
    assert len(set(answers)) == len(website.site.runs.list()) == 1


@pytest.mark.parametrize("key", [None, "", "a b", "x" * 65, "ä".encode().decode("latin-1")])
def test_a_request_without_a_usable_key_changes_nothing(website: Website, key: str | None) -> None:
    client = website.client(website.token("operator"))
    headers = {} if key is None else {b"Idempotency-Key": key.encode("latin-1")}
    answer = client.post("/api/v1/services/erp/backups", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "DR954")
    assert website.site.runs.list() == []


def test_a_refused_request_does_not_use_its_key_up(website: Website) -> None:
    client = website.client(website.token("operator"))
    assert post(client, "/api/v1/services/erp/drills", {"plan": "no-such-plan"}).status_code == 404
    assert post(client, "/api/v1/services/erp/drills", {}).status_code == 202


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/services/erp/restores", {"to": "2026-11-26T03:00:00"}),
        ("/api/v1/services/erp/restores", {"to": "yesterday"}),
        ("/api/v1/services/erp/restores", {"in_place": True}),
        ("/api/v1/services/erp/backups", {"component": "database"}),
        ("/api/v1/services/erp/backups", []),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_problem_document(website: Website, path: str, body: object) -> None:
    answer = post(website.client(website.token("operator", "restorer")), path, body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("DR957", 422)
    assert problem["mistakes"]


def test_lists_are_read_page_by_page_without_a_hole_or_a_double(website: Website) -> None:
    now = datetime.now(UTC)
    with website.site.database.session() as session:
        for number in range(7):
            at = now - timedelta(hours=number // 2)  # two at one instant
            session.execute(
                insert(Point).values(
                    id=ulid(at, number), service="erp", created_at=at, state="complete", members={}, verified_at=None
                )
            )
    for number in range(5):
        website.site.runs.request(RunRequest(service="erp", kind=RunKind.BACKUP, requested_by=f"n{number}"))
    client = website.client(website.token("viewer"))
    for path, cursor, count in (
        ("/api/v1/services/erp/points", "before", 7),
        ("/api/v1/runs", "before", 5),
        ("/api/v1/services", "after", 3),
    ):
        seen: list[str] = []
        following: str | None = None
        while True:
            page = client.get(path, params={"limit": 2, **({cursor: following} if following else {})}).json()
            seen += [item.get("id") or item["name"] for item in page["items"]]
            following = page["next"]
            if following is None:
                break
        assert len(seen) == len(set(seen)) == count, path
    assert client.get("/api/v1/services/erp/points", params={"before": "nonsense"}).status_code == 422


def test_a_run_is_cancelled_only_as_it_was_seen(website: Website) -> None:
    client = website.client(website.token("operator"))
    run = post(client, "/api/v1/services/erp/backups", {}).json()["run"]
    seen = client.get(f"/api/v1/runs/{run}")
    etag = seen.headers["etag"]
    assert client.get(f"/api/v1/runs/{run}", headers={"If-None-Match": etag}).status_code == 304
    assert website.site.runs.claim(run, host="db1", lease=timedelta(minutes=1)) is not None
    headers = {"If-Match": etag, "Idempotency-Key": "c1"}
    stale = client.post(f"/api/v1/runs/{run}/cancel", headers=headers)
    assert (stale.status_code, stale.json()["code"]) == (412, "DR956")
    headers["If-Match"] = client.get(f"/api/v1/runs/{run}").headers["etag"]
    asked = client.post(f"/api/v1/runs/{run}/cancel", headers=headers)
    assert asked.status_code == 200
    assert asked.json()["cancel_requested_by"] is not None


def test_a_run_that_has_ended_cannot_be_cancelled(website: Website) -> None:
    client = website.client(website.token("operator"))
    run = post(client, "/api/v1/services/erp/backups", {}).json()["run"]
    first = client.post(f"/api/v1/runs/{run}/cancel", headers={"Idempotency-Key": "c1"})
    assert first.json()["state"] == "cancelled"
    again = client.post(f"/api/v1/runs/{run}/cancel", headers={"Idempotency-Key": "c2"})
    assert (again.status_code, again.json()["code"]) == (409, "DR960")


def test_restores_are_not_cancelled_by_operators(website: Website) -> None:
    restorer, operator = website.client(website.token("restorer")), website.client(website.token("operator"))
    run = post(restorer, "/api/v1/services/erp/restores", {}).json()["run"]
    headers = {"Idempotency-Key": "c1"}
    assert operator.post(f"/api/v1/runs/{run}/cancel", headers=headers).status_code == 403
    assert restorer.post(f"/api/v1/runs/{run}/cancel", headers=headers).status_code == 200


def test_the_window_has_its_gap_and_a_service_its_numbers(website: Website) -> None:
    website.fill()
    client = website.client(website.token("viewer"))
    window = client.get("/api/v1/services/erp/window").json()
    assert len(window["clusters"]) == len(window["reachable"]) == 2
    assert len(window["gaps"]) == 1
    assert window["gaps"][0]["from_time"] == window["reachable"][0]["to_time"]
    service = client.get("/api/v1/services/erp").json()
    assert service["rto"] == {"promised_seconds": 1800.0, "measured_seconds": 372.0}
    assert 0 < service["seconds_at_risk"] < 60
    assert service["condition"] == "promise kept"
    assert service["effective_rpo_seconds"] == service["documents_seconds_at_risk"] > service["seconds_at_risk"]
    assert (service["documents"], service["documents_promised_seconds"]) == ([], None)


def test_a_service_tells_how_its_documents_are_captured(website: Website) -> None:
    website.fill()
    client = website.client(website.token("viewer"))
    until = datetime.now(UTC)
    told = ToldDocuments(
        service="erp", component="documents", state="streaming", durable_until=until, seconds_at_risk=1.5, pending=2,
        missing=3, corrupt=4, in_database=5, not_covered=6,
    )  # fmt: skip
    tell_documents(website.site.database, "db1", [told])
    service = client.get("/api/v1/services/erp").json()
    [found] = service["documents"]
    assert from_iso(found.pop("durable_until")) == until
    assert found.pop("told_at")
    assert found == {
        "component": "documents", "state": "streaming", "seconds_at_risk": 1.5, "pending": 2,
        "missing_in_production": 3, "corrupt_in_production": 4, "in_database": 5, "not_covered": 6, "problem": None,
        "remedy": None,
    }  # fmt: skip
    assert service["documents_seconds_at_risk"] <= 1.5
    assert service["effective_rpo_seconds"] == service["seconds_at_risk"]
    listed = {item["name"]: item["documents"] for item in client.get("/api/v1/services").json()["items"]}
    assert [item["pending"] for item in listed["erp"]] == [2]
    assert listed["reporting"] == []
    set_clock(website.site.database, timedelta(minutes=2))
    [silent] = client.get("/api/v1/services/erp").json()["documents"]
    assert (silent["state"], silent["seconds_at_risk"], silent["pending"]) == ("silent", None, 2)


def test_the_next_slots_are_told_in_order(website: Website) -> None:
    slots = website.client(website.token("viewer")).get("/api/v1/schedules", params={"count": 2}).json()["items"]
    assert {(slot["kind"], slot["plan"]) for slot in slots} == {("backup", ""), ("drill", "erp-quarterly")}
    assert [slot["at"] for slot in slots] == sorted(slot["at"] for slot in slots)


def test_the_next_slots_are_read_page_by_page_without_a_hole_or_a_double(website: Website) -> None:
    client = website.client(website.token("viewer"))
    whole = client.get("/api/v1/schedules", params={"count": 4}).json()
    assert whole["next"] is None
    read: list[dict[str, Any]] = []
    after: str | None = None
    while after is not None or not read:
        page = client.get("/api/v1/schedules", params={"count": 4, "limit": 3, **({"after": after} if after else {})})
        read += page.json()["items"]
        after = page.json()["next"]
    assert read == whole["items"]
    for nonsense in ("x", "2026-11-26T00:00:00Z", "2026-11-26~erp~backup~", "0000~erp~backup~"):
        assert client.get("/api/v1/schedules", params={"after": nonsense}).status_code == 422, nonsense


def test_a_body_that_is_too_long_is_refused(website: Website) -> None:
    client = website.client(website.token("operator"))
    answer = client.post(
        "/api/v1/services/erp/drills", content=b'{"plan": "' + b"x" * 100_000 + b'"}',
        headers={"Content-Type": "application/json", "Idempotency-Key": "k"},
    )  # fmt: skip
    assert answer.status_code == 413


def test_events_are_told_once_and_in_order_also_to_who_comes_back(website: Website) -> None:
    client = website.client(website.token("operator"))
    run = post(client, "/api/v1/services/erp/backups", {}).json()["run"]
    claim = website.site.runs.claim(run, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    for number in range(5):
        assert website.site.runs.event(claim, "note", {"text": f"line {number}\r\ndata: forged\n\n\x1b[0m"})
    assert website.site.runs.finish(claim, RunState.SUCCEEDED)
    whole = client.get(f"/api/v1/runs/{run}/events")
    assert whole.headers["content-type"].startswith("text/event-stream")
    numbers = [int(line[4:]) for line in whole.text.splitlines() if line.startswith("id: ")]
    assert numbers == list(range(1, 9))
    assert "event: end" in whole.text
    assert "\ndata: forged" not in whole.text
    rest = client.get(f"/api/v1/runs/{run}/events", headers={"Last-Event-ID": "6"})
    assert [int(line[4:]) for line in rest.text.splitlines() if line.startswith("id: ")] == [7, 8]
    polled = client.get(f"/api/v1/runs/{run}/log", params={"after": 6}).json()
    assert [item["number"] for item in polled["items"]] == [7, 8]
    assert polled["over"] is True


def test_a_stream_of_more_events_than_are_read_at_once_is_whole(website: Website) -> None:
    client = website.client(website.token("operator"))
    run = post(client, "/api/v1/services/erp/backups", {}).json()["run"]
    claim = website.site.runs.claim(run, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    with website.site.database.session() as session:
        rows = [
            {"run": run, "number": number, "epoch": 1, "kind": "note", "data": {"text": "x"}}
            for number in range(3, 1401)
        ]
        session.execute(insert(RunEvent), rows)
    assert website.site.runs.finish(claim, RunState.SUCCEEDED)
    for after in (0, 700, 1400):
        text = client.get(f"/api/v1/runs/{run}/events", headers={"Last-Event-ID": str(after)}).text
        numbers = [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]
        assert numbers == list(range(after + 1, 1402))
        assert text.count("event: end") == 1


def test_an_absent_catalogue_is_told_and_is_no_internal_error(website: Website, catalogues: CatalogueServer) -> None:
    token = website.token("viewer")
    name = urlsplit(website.site.database.url).path.lstrip("/")
    catalogues.cluster.sql(f"alter database {name} allow_connections false")
    catalogues.cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
    api = website.client(token).get("/api/v1/services")
    assert (api.status_code, api.json()["code"]) == (503, "DR921")
    assert website.client().get("/healthz").status_code == 200
    assert website.client().get("/readyz").status_code == 503
    page = website.client().get("/overview", headers={"Cookie": "__Host-drservice=x"})
    assert page.status_code == 503
    assert "go on without it" in page.text


def test_health_needs_nobody_and_leaves_no_row(website: Website) -> None:
    assert website.client().get("/healthz").json() == {"status": "ok"}
    assert website.client().get("/readyz").json() == {"status": "ok", "configuration": "in force"}


def test_times_of_the_api_are_utc(website: Website) -> None:
    client = website.client(website.token("operator"))
    run = client.get(post(client, "/api/v1/services/erp/backups", {}).headers["location"]).json()
    assert run["requested_at"].endswith("Z")
    assert to_iso(datetime.fromisoformat(run["requested_at"]))
