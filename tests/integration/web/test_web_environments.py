"""Environments over HTTP: listed as their hosts tell, and ended once, by a run on the host that has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from drservice.catalogue.environments import Environments
from drservice.catalogue.runs import RunRequest
from drservice.model.runs import RunKind, RunState
from tests.doubles.website import Website, csrf, tell_environment


def test_a_service_lists_its_environments_with_state_end_and_how_to_connect(website: Website) -> None:
    identifier = tell_environment(website.site.database)
    tell_environment(website.site.database, "reporting", host="db2")
    (item,) = website.client(website.token("viewer")).get("/api/v1/services/erp/environments").json()["items"]
    assert (item["id"], item["state"], item["host"]) == (identifier, "running", "db1")
    assert item["dsn"].startswith("host=/run/")
    assert item["created_at"] < item["expires_at"]
    Environments(website.site.database).tell("db1", [])
    assert website.client(website.token("viewer")).get("/api/v1/services/erp/environments").json()["items"] == []


def test_two_that_end_an_environment_at_once_get_the_one_run_of_its_host(website: Website) -> None:
    identifier = tell_environment(website.site.database)
    path = f"/api/v1/services/erp/environments/{identifier}"
    clients = [website.client(website.token("restorer")) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda client: client.delete(path), clients))
    assert {answer.status_code for answer in answers} == {202}
    (run,) = website.site.runs.list()
    assert {answer.headers["location"] for answer in answers} == {f"/api/v1/runs/{run.id}"}
    assert (run.kind, run.host, run.parameters) == (RunKind.DESTROY, "db1", {"environment": identifier})


def test_a_failed_end_may_be_tried_again_and_one_that_is_done_is_told(website: Website) -> None:
    identifier, client = tell_environment(website.site.database), website.client(website.token("operator"))
    path = f"/api/v1/services/erp/environments/{identifier}"
    ids = []
    for state in (RunState.FAILED, RunState.SUCCEEDED):
        ids.append(client.delete(path).json()["run"])
        claim = website.site.runs.claim(ids[-1], host="db1", lease=timedelta(minutes=1))
        assert claim is not None
        assert website.site.runs.finish(claim, state)
    assert len(set(ids)) == 2
    Environments(website.site.database).tell("db1", [])
    assert client.delete(path).json() == {"run": ids[-1], "state": "succeeded"}


def test_an_environment_that_a_run_is_still_at_work_in_is_not_ended(website: Website) -> None:
    run = website.site.queue.enqueue(RunRequest(service="erp", kind=RunKind.DRILL, requested_by="schedule"))
    assert run is not None
    claim = website.site.runs.claim(run, host="db1", lease=timedelta(minutes=1))
    assert claim is not None
    path = f"/api/v1/services/erp/environments/{tell_environment(website.site.database)}"
    client = website.client(website.token("operator"))
    refused = client.delete(path)
    assert (refused.status_code, run in refused.json()["detail"]) == (409, True)
    assert website.site.runs.finish(claim, RunState.SUCCEEDED)
    assert client.delete(path).status_code == 202


def test_an_environment_is_not_reached_through_another_service(website: Website) -> None:
    identifier = tell_environment(website.site.database, "reporting", host="db2")
    client = website.client(website.token("restorer", services=("erp",)))
    assert client.delete(f"/api/v1/services/erp/environments/{identifier}").status_code == 404
    assert client.delete(f"/api/v1/services/reporting/environments/{identifier}").status_code == 404
    assert website.site.runs.list() == []


def test_the_page_ends_an_environment_once_the_name_of_its_service_was_typed(website: Website) -> None:
    identifier, browser = tell_environment(website.site.database), website.browser("restorer")
    text = browser.get("/services/erp").text
    assert f"host=/run/{identifier} dbname=x" in text
    assert "on db1" in text
    action = f"/services/erp/environments/{identifier}/destroy"
    assert f'action="{action}"' in text
    form = {"csrf": csrf(browser), "key": "k1", "confirm": "reporting"}
    assert browser.post(action, data=form).status_code == 422
    assert browser.post(action, data=form | {"csrf": "no", "confirm": "erp"}).status_code == 403
    assert website.site.runs.list() == []
    done = browser.post(action, data=form | {"confirm": "erp"})
    (run,) = website.site.runs.list()
    assert (done.status_code, done.headers["location"]) == (303, f"/runs/{run.id}")
    assert f'href="/runs/{run.id}"' in browser.get("/services/erp").text
    assert f'action="{action}"' not in browser.get("/services/erp").text
    assert f'action="{action}"' not in website.browser("viewer").get("/services/erp").text
