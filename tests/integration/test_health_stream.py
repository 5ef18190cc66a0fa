"""What `check` says about streaming: the primary that waits for nobody first, then slot, receiver and room."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import cluster_facts
from drservice.components.postgres.slots import SlotFacts, SlotStatus
from drservice.model.estate import WalMode, WalSettings
from drservice.model.wal import Lsn
from drservice.operations import healthstream
from drservice.operations.checklist import Checklist, CheckResult, CheckState
from drservice.operations.healthstream import check_stream, names_standby
from drservice.operations.streamstate import StreamPhase, StreamState, lock_path, write_state
from drservice.operations.walboard import stream_name
from drservice.processes import open_private
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.estate import TempEstate

CLOCK = SystemClock()


@dataclass(kw_only=True)
class Bench:
    estate: TempEstate
    cluster: Cluster

    @property
    def name(self) -> str:
        service, component = self.estate.parts()
        return stream_name(service.name, component.name)

    def ask(
        self,
        *,
        synchronous: bool = False,
        mode: WalMode = WalMode.STREAM,
        heartbeat: float | None = 1.0,
        rpo: float | None = None,
        node: str | None = None,
    ) -> dict[str, CheckResult]:
        service, component = self.estate.parts()
        every, promised = (None if each is None else timedelta(seconds=each) for each in (heartbeat, rpo))
        service = replace(service, objectives=replace(service.objectives, rpo=promised))
        wal = WalSettings(mode=mode, synchronous=synchronous, heartbeat=every, node=node)
        component = replace(component, wal=wal)
        checklist = Checklist()
        with connect(self.cluster.dsn()) as session:
            facts = cluster_facts(session)
            check_stream(self.estate.estate(), service, component, session, facts, clock=CLOCK, checklist=checklist)
        return {result.name.removeprefix("erp/database: "): result for result in checklist.results}

    @contextmanager
    def receiver(self, **changes: object) -> Iterator[None]:
        """Do as a receiver that lives and has said this."""
        service, component = self.estate.parts()
        now = CLOCK.now()
        state = StreamState(
            service=service.name,
            component=component.name,
            system_id=None,
            timeline=None,
            slot=self.name,
            state=StreamPhase.STREAMING,
            received_lsn=Lsn(7),
            durable_lsn=Lsn(5),
            server_lsn=Lsn(7),
            durable_server_time=now - timedelta(seconds=1),
            server_time=now,
            synchronous=False,
            problem=None,
            remedy=None,
            pid=os.getpid(),
            updated_at=now,
        )
        write_state(self.estate.state, replace(state, **changes))  # type: ignore[arg-type]  # named by the test
        path = lock_path(self.estate.state, service.name, component.name)
        path.parent.mkdir(exist_ok=True)
        file = open_private(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(file)

    @contextmanager
    def set(self, **settings: str) -> Iterator[None]:
        for name, value in settings.items():
            self.cluster.sql(f"alter system set {name} = {value}")
        self.reload()
        try:
            yield
        finally:
            for name in settings:
                self.cluster.sql(f"alter system reset {name}")
            self.reload()

    def reload(self) -> None:
        self.cluster.sql("select pg_reload_conf()")
        self.cluster.sql("select pg_sleep(0.1)")

    @contextmanager
    def slot(self) -> Iterator[None]:
        self.cluster.sql("select pg_create_physical_replication_slot(%s, true)", (self.name,))
        try:
            yield
        finally:
            self.cluster.sql("select pg_drop_replication_slot(%s)", (self.name,))


@pytest.fixture(scope="module")
def bench(template_cache: Path) -> Iterator[Bench]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1, settings={"max_replication_slots": "2"})
    estate = TempEstate.over(cluster)
    cluster.start()
    yield Bench(estate=estate, cluster=cluster)
    maker.close()


def states(found: dict[str, CheckResult]) -> dict[str, str]:
    return {name: result.state.value for name, result in found.items()}


def test_nothing_is_asked_where_wal_is_archived_alone(bench: Bench) -> None:
    assert bench.ask(mode=WalMode.ARCHIVE) == {}


@pytest.mark.parametrize(
    ("heartbeat", "rpo", "state", "told"),
    [
        (1.0, 60.0, CheckState.OK, "each 1 s"),
        (60.0, 5.0, CheckState.WARNING, "each 60 s, and objectives.rpo is 5 s"),
        (None, None, CheckState.OK, "ends with its last WAL"),
        (None, 60.0, CheckState.WARNING, "ends with its last WAL"),
    ],
)
def test_how_late_an_idle_server_can_be_proved_is_told_and_what_was_promised_beyond_that_warned_of(
    bench: Bench, heartbeat: float | None, rpo: float | None, state: CheckState, told: str
) -> None:
    result = bench.ask(heartbeat=heartbeat, rpo=rpo)["heartbeat"]
    assert (result.state, told in result.detail) == (state, True), result


def test_a_receiver_that_streams_from_its_slot_is_as_it_should_be(bench: Bench) -> None:
    with bench.slot(), bench.receiver(), bench.set(max_slot_wal_keep_size="'4GB'"):
        found = bench.ask(mode=WalMode.BOTH)
    assert set(states(found).values()) == {"ok"}, states(found)
    assert "2 bytes are not, the oldest for 1.00 s" in found["WAL receiver"].detail
    assert "until it may be lost" in found["replication slot"].detail


def test_without_slot_and_receiver_both_are_named_with_what_to_do(bench: Bench) -> None:
    found = bench.ask()
    assert states(found)["replication slot"] == states(found)["WAL receiver"] == "failed"
    assert "drservice wal stream erp" in found["WAL receiver"].remedy
    assert "not there" in found["replication slot"].detail
    assert "The node of vault1 runs one" in bench.ask(node="vault1")["WAL receiver"].remedy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"state": StreamPhase.STALLED, "problem": "the store is away", "remedy": "Look."},
            "stalled: the store is away",
        ),
        ({"updated_at": CLOCK.now() - timedelta(minutes=5)}, "silent"),
    ],
)
def test_a_receiver_that_does_not_get_on_is_told_in_its_own_words(
    bench: Bench, changes: dict[str, object], told: str
) -> None:
    with bench.slot(), bench.receiver(**changes):
        result = bench.ask()["WAL receiver"]
    assert result.state is CheckState.FAILED
    assert told in result.detail


def test_a_primary_that_waits_for_a_receiver_that_does_not_run_is_told_loudly(bench: Bench) -> None:
    with bench.slot(), bench.set(synchronous_standby_names=f"'{bench.name}'"):
        result = bench.ask(synchronous=True)["commits wait for the repository"]
        assert result.state is CheckState.FAILED
        assert "COMMITS MAY WAIT FOR EVER" in result.detail
        assert "ALTER SYSTEM SET synchronous_standby_names = ''" in result.remedy
        with bench.receiver():
            assert bench.ask(synchronous=True)["commits wait for the repository"].state is CheckState.OK
            undeclared = bench.ask(synchronous=False)["commits wait for the repository"]
            assert undeclared.state is CheckState.WARNING
            with bench.set(synchronous_commit="remote_apply"):
                result = bench.ask(synchronous=True)["commits wait for the repository"]
                assert (result.state, "applies nothing" in result.detail) == (CheckState.FAILED, True)
            with bench.set(synchronous_commit="local"):
                result = bench.ask(synchronous=True)["commits wait for the repository"]
                assert (result.state, "they do not" in result.detail) == (CheckState.WARNING, True)
    with bench.slot(), bench.receiver():
        result = bench.ask(synchronous=True)["commits wait for the repository"]
        assert (result.state, "they do not" in result.detail) == (CheckState.WARNING, True)


def test_a_spool_without_a_bound_or_with_a_small_one_is_warned_of(bench: Bench) -> None:
    with bench.slot(), bench.receiver():
        assert "its disk is full" in bench.ask()["WAL kept for the slot"].detail
        with bench.set(max_slot_wal_keep_size="'64MB'"):
            result = bench.ask()["WAL kept for the slot"]
    assert (result.state, "a short time" in result.detail) == (CheckState.WARNING, True)


def test_a_slot_that_is_lost_or_about_to_be_is_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench.slot(), bench.set(max_slot_wal_keep_size="'1MB'", max_wal_size="'2MB'", min_wal_size="'2MB'"):
        for _ in range(5):
            bench.cluster.switch_wal()
        bench.cluster.sql("checkpoint")
        result = bench.ask()["replication slot"]
    assert (result.state, "is lost" in result.detail) == (CheckState.FAILED, True)
    assert "drservice backup erp" in result.remedy
    # A server is in this state only until its next checkpoint.
    leaving = SlotFacts(restart_lsn=Lsn(1 << 20), status=SlotStatus.UNRESERVED, safe_bytes=-5, active_pid=1)
    monkeypatch.setattr(healthstream, "slot_facts", lambda *_: leaving)
    result = bench.ask()["replication slot"]
    assert (result.state, "may remove WAL" in result.detail) == (CheckState.FAILED, True)


def test_slots_that_are_used_up_are_a_failure_for_who_has_none(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.cluster.sql("select pg_create_physical_replication_slot(%s)", (name,))
    try:
        result = bench.ask()["max_replication_slots"]
        assert (result.state, "all 2 are in use" in result.detail) == (CheckState.FAILED, True)
    finally:
        for name in ("one", "two"):
            bench.cluster.sql("select pg_drop_replication_slot(%s)", (name,))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("", False),
        ("drservice_erp_database", True),
        ("DRSERVICE_ERP_DATABASE, other", True),
        ("FIRST 1 (other, drservice_erp_database)", True),
        ('ANY 2 ("other", "drservice_erp_database")', True),
        ("2 (other, another)", False),
        ("*", True),
        ("drservice_erp_database2", False),
    ],
)
def test_a_standby_is_found_in_every_form_of_the_setting(setting: str, *, named: bool) -> None:
    assert names_standby(setting, "drservice_erp_database") is named
