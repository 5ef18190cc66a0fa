"""Nodes as processes: runs happen by themselves, and survive what happens to nodes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from drservice.catalogue.hosts import Hosts
from drservice.catalogue.reading import Reading
from drservice.catalogue.runs import RunRequest, Runs
from drservice.jobs.queue import Queue
from drservice.model.runs import RunKind, RunState
from tests.doubles.cluster import ClusterMaker
from tests.doubles.nodes import LEASE_SECONDS, NodeBench
from tests.doubles.notifiers import HookServer


@pytest.fixture
def bench(tmp_path: Path, template_cache: Path) -> Iterator[NodeBench]:
    maker = ClusterMaker(cache=template_cache)
    made = NodeBench.make(maker, tmp_path)
    yield made
    made.close()
    maker.close()


def test_a_scheduled_backup_happens_by_itself(bench: NodeBench) -> None:
    bench.open_gate()
    bench.configure(schedule={"backup": "* * * * *"})
    node = bench.start()
    # Slots are full minutes; the catalogue's clock is put shortly before one, and the node notices that.
    bench.shift_clock(55 - datetime.now(UTC).second)
    bench.wait_for(lambda: len(Runs(bench.database).list(kind=RunKind.BACKUP)) > 0, "the slot", 20)
    run = bench.wait_state(Runs(bench.database).list(kind=RunKind.BACKUP)[-1].id, RunState.SUCCEEDED)
    assert run.requested_by == "schedule"
    assert run.scheduled_for is not None
    assert run.scheduled_for.second == 0
    assert run.result is not None
    assert run.result["point"] == bench.points()[0].id
    kinds = [event.kind for event in Runs(bench.database).events(run.id)]
    assert kinds.count("step") > 2
    assert run.progress["step"]
    bench.wait_for(lambda: len(Reading(bench.database).points("erp")) == 1, "the projection of the point")
    assert node.stop() == 0
    assert not Hosts(bench.database).list()[0].is_held


def test_a_backup_whose_node_is_killed_is_resumed_by_another_and_commits_once(bench: NodeBench) -> None:
    alpha = bench.start("alpha")
    run = bench.request()
    bench.wait_at_gate(run)
    alpha.kill9()
    bench.start("beta")
    resumed = bench.wait_run(run, lambda found: found.epoch == 2 and found.claimed_by == "beta", "another claim")
    assert resumed.state is RunState.RUNNING
    bench.wait_at_gate(run)
    bench.open_gate()
    done = bench.wait_state(run, RunState.SUCCEEDED)
    assert done.epoch == 2
    assert len(bench.points()) == len(bench.snapshots()) == 1
    states = [event.data["state"] for event in Runs(bench.database).events(run) if event.kind == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]


def test_a_backup_that_committed_before_its_node_died_is_not_taken_again(bench: NodeBench) -> None:
    alpha = bench.start("alpha")
    run = bench.request()
    bench.wait_at_gate(run)
    # The node is stopped, its run goes on: what it commits is told to nobody.
    alpha.signal(signal.SIGSTOP)
    bench.open_gate()
    bench.wait_for(lambda: len(bench.points()) == 1, "the commit")
    alpha.kill9()
    bench.start("beta")
    done = bench.wait_state(run, RunState.SUCCEEDED)
    assert done.epoch == 2
    assert done.result is not None
    assert done.result["point"] == bench.points()[0].id
    assert len(bench.snapshots()) == 1


def test_a_node_that_slept_past_its_lease_changes_nothing_when_it_wakes(bench: NodeBench) -> None:
    alpha = bench.start("alpha")
    bench.start("beta")
    run = bench.request(host=None)
    first = bench.wait_at_gate(run)
    sleeper, other = bench.nodes if first.claimed_by == "alpha" else bench.nodes[::-1]
    sleeper.signal(signal.SIGSTOP)
    bench.wait_run(run, lambda found: found.epoch == 2 and found.claimed_by == other.name, "the other's claim")
    bench.wait_at_gate(run)
    sleeper.signal(signal.SIGCONT)
    sleeper.wait_said("no longer this node's")
    after = bench.run(run)
    assert (after.epoch, after.claimed_by, after.state) == (2, other.name, RunState.RUNNING)
    bench.open_gate()
    done = bench.wait_state(run, RunState.SUCCEEDED)
    assert (done.epoch, done.claimed_by) == (2, other.name)
    assert len(bench.points()) == len(bench.snapshots()) == 1
    epochs = [event.epoch for event in Runs(bench.database).events(run)]
    assert epochs == sorted(epochs), "nothing of the first claim was written after the second began"
    assert alpha.process.poll() is None


def test_a_second_node_with_a_name_is_refused_on_this_machine_and_on_another(bench: NodeBench) -> None:
    bench.start("alpha")
    second = bench.start("alpha", wait=False)
    assert second.process.wait(60) == 6
    assert second.said("DR940")
    # Another machine has another state_dir: only the catalogue knows.
    other = bench.estate.write_configuration(bench.folder / "other.yaml", state=bench.folder / "state")
    here, bench.estate.root = bench.estate.root, other.parent
    (bench.folder / "drservice.yaml").write_bytes(other.read_bytes())
    bench.configure()
    third = bench.start("alpha", wait=False)
    bench.estate.root = here
    assert third.process.wait(60) == 6
    assert third.said("running elsewhere")


@pytest.mark.long
def test_a_node_whose_name_was_taken_ends_and_its_run_goes_elsewhere(bench: NodeBench) -> None:
    node = bench.start("alpha")
    run = bench.request()
    bench.wait_at_gate(run)
    with bench.database.connection() as connection:
        connection.execute(text("UPDATE host SET incarnation = 'another process'"))
    assert node.process.wait(60) == 6
    assert node.said("another node took the name alpha")
    assert bench.run(run).state is RunState.QUEUED
    bench.open_gate()
    bench.start("beta")
    assert bench.wait_state(run, RunState.SUCCEEDED).claimed_by == "beta"
    assert len(bench.points()) == 1


def test_a_killed_node_is_back_under_its_name_at_once(bench: NodeBench) -> None:
    alpha = bench.start("alpha")
    alpha.kill9()
    bench.start("alpha").wait_said("node alpha runs", LEASE_SECONDS - 1)


def test_an_invalid_configuration_is_told_and_the_old_one_stays_in_force(bench: NodeBench) -> None:
    node = bench.start()
    good = bench.estate.config.read_text()
    bench.estate.config.write_text(good.replace('"services"', '"servces"'))
    node.wait_said("the configuration is refused")
    bench.wait_state(bench.request(RunKind.VERIFY), RunState.SUCCEEDED)
    bench.estate.config.write_text(good)
    bench.configure(schedule={"verify": "* * * * *"})
    node.wait_said("a changed configuration is in force")
    bench.shift_clock(58 - datetime.now(UTC).second)
    bench.wait_for(lambda: len(Runs(bench.database).list(kind=RunKind.VERIFY)) > 1, "a slot of the new schedule", 60)


def test_a_node_that_drains_lets_its_run_end_and_takes_no_other(bench: NodeBench) -> None:
    node = bench.start()
    run = bench.request()
    bench.wait_at_gate(run)
    node.signal(signal.SIGTERM)
    node.wait_said("node drains")
    waiting = bench.request()
    bench.open_gate()
    assert node.process.wait(60) == 0
    assert bench.run(run).state is RunState.SUCCEEDED
    assert bench.run(waiting).state is RunState.QUEUED


@pytest.mark.long
def test_a_run_that_outlasts_the_drain_goes_back_into_the_queue_and_is_resumed(bench: NodeBench) -> None:
    bench.configure(drain="2s")
    node = bench.start()
    run = bench.request()
    bench.wait_at_gate(run)
    assert node.stop() == 0
    back = bench.run(run)
    assert (back.state, back.epoch, back.claimed_by) == (RunState.QUEUED, 1, None)
    bench.open_gate()
    bench.start()
    assert bench.wait_state(run, RunState.SUCCEEDED).epoch == 2
    assert len(bench.points()) == 1


def test_a_cancelled_run_ends_and_its_node_goes_on(bench: NodeBench) -> None:
    bench.start()
    run = bench.request()
    bench.wait_at_gate(run)
    Runs(bench.database).cancel(run, "ops")
    ended = bench.wait_state(run, RunState.CANCELLED)
    assert ended.error is not None
    assert ended.error["code"] == "DR942"
    bench.open_gate()
    bench.wait_state(bench.request(), RunState.SUCCEEDED)


@pytest.mark.long
def test_a_catalogue_that_is_away_ends_no_backup_and_hears_of_it_later(bench: NodeBench) -> None:
    node = bench.start()
    run = bench.request()
    bench.wait_at_gate(run)
    bench.database.close()
    bench.catalogue_cluster.stop()
    node.wait_said("the catalogue is away")
    bench.open_gate()
    bench.wait_for(lambda: len(bench.points()) == 1, "the commit without a catalogue")
    bench.wait_for(lambda: node.said("told later"), "the node to keep the outcome", 2 * LEASE_SECONDS + 20)
    bench.catalogue_cluster.start()
    done = bench.wait_state(run, RunState.SUCCEEDED)
    assert (done.epoch, done.claimed_by) == (1, "alpha")
    bench.wait_state(bench.request(RunKind.VERIFY), RunState.SUCCEEDED)


@pytest.mark.long
def test_a_verification_that_finds_damage_fails_loudly_with_what_it_found(bench: NodeBench) -> None:
    bench.open_gate()
    bench.start()
    bench.wait_state(bench.request(), RunState.SUCCEEDED)
    pack = next(path for path in bench.estate.repository.rglob("*") if path.is_file() and "/packs/" in str(path))
    pack.unlink()
    run = bench.wait_state(bench.request(RunKind.VERIFY), RunState.FAILED)
    assert run.error is not None
    assert (run.error["code"], run.error["exit_status"]) == ("DR944", 5)
    assert run.result is not None
    assert run.result["components"][0]["findings"]


def test_a_run_of_a_service_that_is_gone_fails_with_the_reason(bench: NodeBench) -> None:
    bench.start()
    gone = Queue(bench.database).enqueue(RunRequest(service="crm", kind=RunKind.BACKUP, requested_by="ops"))
    assert gone is not None
    failed = bench.wait_state(gone, RunState.FAILED)
    assert failed.error is not None
    assert "there is no service crm" in failed.error["message"]


@pytest.mark.long
def test_a_run_whose_process_is_killed_is_resumed_and_after_three_deaths_fails_loudly(bench: NodeBench) -> None:
    node = bench.start()
    run = bench.request()
    for epoch in (1, 2, 3):
        bench.wait_run(run, lambda found, epoch=epoch: found.epoch == epoch, f"claim {epoch}")  # type: ignore[misc]  # bound
        bench.wait_at_gate(run)
        bench.kill_run_process(node)
    failed = bench.wait_state(run, RunState.FAILED)
    assert failed.error is not None
    assert failed.error["code"] == "DR910"
    assert failed.epoch == 3
    bench.open_gate()
    bench.wait_state(bench.request(), RunState.SUCCEEDED)


@pytest.mark.long
def test_a_node_tells_people_of_a_broken_promise_and_of_its_end(bench: NodeBench) -> None:
    bench.open_gate()
    with HookServer() as hook:
        secret = bench.folder / "hook"
        secret.write_text(hook.url("secret"))
        secret.chmod(0o600)
        bench.configure(objectives={"rpo": "5m"}, notify=[{"url": f"file:{secret}", "on": ["objective"]}])
        bench.start()
        bench.wait_state(bench.request(), RunState.SUCCEEDED)
        bench.wait_for(lambda: any(facts_of(bench)), "the projection")
        bench.shift_clock(3600)
        bench.wait_for(lambda: len(hook.heard()) == 1, "a notice", 90)
        (subject, body) = hook.heard()[0]
        assert subject.startswith("[business-critical] erp: work since ")
        assert "drservice info erp" in body
        bench.shift_clock(0)
        bench.shift_clock(120)  # the next look is due by a clock that went back, too
        bench.wait_for(lambda: len(hook.heard()) == 2, "the end", 90)
        assert hook.heard()[1][0].startswith("[technical] erp: all clear: work since ")
    with bench.database.session() as session:
        assert set(session.scalars(text("SELECT name FROM duty"))) == {"watch", "history"}


def facts_of(bench: NodeBench) -> list[object]:
    with bench.database.session() as session:
        return list(session.scalars(text("SELECT to_time FROM wal_window WHERE to_time IS NOT NULL")))


def test_a_node_without_a_catalogue_waits_for_it_and_can_be_stopped(bench: NodeBench) -> None:
    bench.database.close()
    bench.catalogue_cluster.stop()
    node = bench.start(wait=False)
    node.wait_said("the node waits for it")
    bench.catalogue_cluster.start()
    node.wait_said("node alpha runs")
    bench.database.close()
    bench.catalogue_cluster.stop()
    assert node.stop() == 0
