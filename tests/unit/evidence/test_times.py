"""Clocks that are wrong: nothing is written that a verifier would have to refuse for ever after."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drservice.canonical import Json
from drservice.clock import to_iso
from drservice.errors import ExitStatus, LedgerClockError
from drservice.evidence.anchoring import AnchorPlace
from drservice.evidence.ledger import Ledger
from drservice.evidence.listing import entry_key
from drservice.evidence.statements import Statement, sign_statement
from drservice.evidence.times import Dated, KnownEnd
from drservice.evidence.verification import VerificationError
from drservice.model.evidence import CLOCK_TOLERANCE
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.bundles import bundle_files, policy_json
from tests.doubles.clock import ManualClock
from tests.faults.tampering import verify

MINUTE = 60.0


class Hosts:
    """Two hosts with clocks of their own, the store with a third."""

    def __init__(self, folder: Path) -> None:
        self.store_clock = ManualClock(made.START)
        self.store = MemoryStore(clock=self.store_clock)
        self.clocks = [ManualClock(made.START), ManualClock(made.START)]
        self.anchor = AnchorPlace("second", MemoryStore(clock=self.store_clock))
        self.ledgers = [
            made.open_ledger(self.store, folder / f"host{number}", clock, anchors=[self.anchor])
            for number, clock in enumerate(self.clocks)
        ]
        self.ledgers[0].begin(made.occasion(made.START, service=None))
        self.pass_seconds(MINUTE)

    def pass_seconds(self, seconds: float) -> None:
        for clock in (self.store_clock, *self.clocks):
            clock.pass_seconds(seconds)

    def append(self, host: int, number: int) -> int:
        return self.ledgers[host].append(self.probe(host, number)).number

    def probe(self, host: int, number: int) -> Statement:
        return made.probe(self.clocks[host].now(), number)

    def rescue(self, host: int, number: int) -> bool:
        """Append as a backup or restore does: what the ledger does not take is kept aside."""
        statement = self.probe(host, number)
        try:
            self.ledgers[host].append(statement)
        except LedgerClockError:
            self.ledgers[host].keep_aside(statement)
            return False
        return True


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def require_verified(ledger: Ledger) -> tuple[int, ...]:
    """Seal, export and verify; returns the late entries."""
    ledger.checkpoint()
    return verify(bundle_files(ledger)).late_entries


def test_the_tolerance_of_writers_is_the_one_that_policies_ask_for() -> None:
    assert policy_json()["tolerance_ms"] == CLOCK_TOLERANCE // timedelta(milliseconds=1)


def test_a_clock_that_was_set_back_is_refused_with_the_later_record_and_its_host(hosts: Hosts) -> None:
    hosts.append(0, 1)
    hosts.clocks[1].jump(-6 * MINUTE)
    with pytest.raises(LedgerClockError, match=r"6 min 0 s before entry 1 by host db1") as caught:
        hosts.append(1, 2)
    assert (caught.value.code, caught.value.exit_status) == ("DR829", ExitStatus.FAILED)
    assert "clock" in caught.value.hint
    assert hosts.ledgers[0].size() == 2
    hosts.clocks[1].jump(6 * MINUTE)
    assert hosts.append(1, 2) == 2
    assert require_verified(hosts.ledgers[0]) == ()


def test_a_clock_within_the_tolerance_is_not_refused(hosts: Hosts) -> None:
    hosts.append(0, 1)
    hosts.clocks[1].jump(-5 * MINUTE)
    assert hosts.append(1, 2) == 2
    assert require_verified(hosts.ledgers[0]) == ()
    hosts.clocks[0].jump(5 * MINUTE + 1)
    with pytest.raises(LedgerClockError, match="after the"):
        hosts.append(0, 3)
    hosts.clocks[0].jump(-1)
    assert hosts.append(0, 3) == 3


def test_a_record_from_the_future_is_refused_before_it_makes_everybody_else_look_back_dated(hosts: Hosts) -> None:
    hosts.clocks[1].jump(10 * MINUTE)
    with pytest.raises(LedgerClockError, match=r"10 min 0 s after the .* of the store's clock"):
        hosts.append(1, 1)
    assert hosts.append(0, 2) == 1
    assert require_verified(hosts.ledgers[0]) == ()


def test_a_ledger_is_not_begun_in_the_future(tmp_path: Path) -> None:
    store = MemoryStore(clock=ManualClock(made.START))
    ledger = made.open_ledger(store, tmp_path, ManualClock(made.START))
    with pytest.raises(LedgerClockError, match="entry 0"):
        ledger.begin(made.occasion(made.START + timedelta(hours=1), service=None))
    assert list(store.list("")) == []


@pytest.mark.parametrize("minutes", [-600, -7, 7, 600])
def test_a_rescue_under_a_wrong_clock_is_kept_aside_and_spoils_nothing(hosts: Hosts, minutes: int) -> None:
    hosts.append(0, 1)
    hosts.clocks[1].jump(minutes * MINUTE)
    assert not hosts.rescue(1, 2)
    hosts.pass_seconds(MINUTE)
    assert not hosts.rescue(1, 3), "the first one is appended all the same"
    hosts.clocks[1].jump(-minutes * MINUTE)
    hosts.pass_seconds(MINUTE)
    assert hosts.rescue(1, 4)
    assert hosts.append(0, 5) == 5
    assert require_verified(hosts.ledgers[0]) == (2, 3), "listed: their time is the host's word only"


def test_two_hosts_that_differ_by_more_than_the_tolerance_cannot_both_write_at_once(hosts: Hosts) -> None:
    hosts.clocks[0].jump(4 * MINUTE)
    hosts.clocks[1].jump(-4 * MINUTE)
    hosts.append(0, 1)
    hosts.pass_seconds(1)
    hosts.clocks[0].jump(-4 * MINUTE)
    hosts.append(0, 2)  # the newest record is not the one with the latest date
    with pytest.raises(LedgerClockError, match="entry 1 by host db1"):
        hosts.append(1, 3)
    hosts.pass_seconds(4 * MINUTE)
    hosts.append(1, 3)
    assert require_verified(hosts.ledgers[0]) == ()


def test_a_checkpoint_is_signed_neither_in_the_past_nor_in_the_future(hosts: Hosts) -> None:
    hosts.append(1, 1)
    hosts.clocks[0].jump(-6 * MINUTE)
    with pytest.raises(LedgerClockError, match=r"the checkpoint of size 2 would be dated .* before entry 1"):
        hosts.ledgers[0].checkpoint()
    hosts.clocks[0].jump(12 * MINUTE)
    with pytest.raises(LedgerClockError, match="store's clock"):
        hosts.ledgers[0].checkpoint()
    hosts.clocks[0].jump(-6 * MINUTE)
    assert require_verified(hosts.ledgers[0]) == ()


def test_a_record_is_not_dated_before_the_checkpoint_it_lies_behind(hosts: Hosts) -> None:
    hosts.pass_seconds(60 * MINUTE)
    hosts.ledgers[0].checkpoint()
    hosts.clocks[1].jump(-6 * MINUTE)
    with pytest.raises(LedgerClockError, match="before the checkpoint of size 1"):
        hosts.append(1, 1)


def test_a_lost_race_is_compared_again(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.clocks[1].jump(-4 * MINUTE)
    hosts.clocks[0].jump(4 * MINUTE)
    create = hosts.store.create

    def overtaken(key: str, body: bytes) -> None:
        monkeypatch.setattr(hosts.store, "create", create)
        hosts.append(0, 1)
        create(key, body)

    monkeypatch.setattr(hosts.store, "create", overtaken)
    with pytest.raises(LedgerClockError, match="entry 1 by host db1"):
        hosts.append(1, 2)
    assert hosts.ledgers[0].size() == 2


def test_the_same_record_again_is_not_compared_with_what_came_behind_it(hosts: Hosts) -> None:
    statement = hosts.probe(0, 1)
    hosts.ledgers[0].append(statement)
    hosts.pass_seconds(60 * MINUTE)
    hosts.append(0, 2)
    assert hosts.ledgers[0].append(statement).number == 1


def stepped_backup(at: datetime) -> Statement:
    """Return a backup that ended, by the clock it began with, ten minutes after its record is dated."""
    plain = made.backup(at, 1)
    ended: dict[str, Json] = {"ended_at": to_iso(at + timedelta(minutes=10))}
    return replace(plain, predicate={**plain.predicate, **ended})


def test_a_backup_during_which_the_clock_was_set_back_is_kept_aside(hosts: Hosts) -> None:
    statement = stepped_backup(hosts.clocks[0].now())
    with pytest.raises(LedgerClockError, match="set back while it ran"):
        hosts.ledgers[0].append(statement)
    hosts.ledgers[0].keep_aside(statement)
    hosts.append(0, 2)
    assert require_verified(hosts.ledgers[0]) == (1,)


def test_what_writers_refuse_the_verifier_refuses(hosts: Hosts) -> None:
    """The guard is needed: written past it, each of these spoils the ledger."""
    past, future = timedelta(minutes=-6), timedelta(minutes=6)
    now = hosts.clocks[0].now()
    for statement in (made.probe(now + past, 2), made.probe(now + future, 3), stepped_backup(now)):
        store, folder = MemoryStore(clock=hosts.store_clock), hosts.ledgers[0]._folder.parent / statement.identity.hex()
        ledger = made.open_ledger(store, folder, hosts.clocks[0])
        ledger.begin(made.occasion(now, service=None))
        store.create(entry_key(1), sign_statement(statement, [made.HOST]))
        with pytest.raises((VerificationError, LedgerClockError)):
            require_verified(ledger)


ENTRY = st.tuples(st.none() | st.integers(-300, 300), st.integers(0, 40))


@given(entries=st.lists(ENTRY, min_size=1, max_size=30), asked=st.lists(st.integers(-300, 10), min_size=1, max_size=4))
def test_what_is_read_of_the_end_is_enough(entries: list[tuple[int | None, int]], asked: list[int]) -> None:
    """Whatever was ahead by no more than the tolerance when it was stored: the latest date that matters is found."""
    stored, found = made.START, []
    for skew, pause in entries:
        stored += timedelta(seconds=pause)
        at = None if skew is None else stored + timedelta(seconds=skew)
        found.append((None if at is None else Dated(what="", at=at), stored))
    end = KnownEnd()
    for size, seconds in enumerate(asked, max(1, len(entries) - len(asked))):
        known = [each for each, _ in found[:size] if each is not None]
        at = found[min(size, len(found)) - 1][1] + timedelta(seconds=seconds)
        latest = end.latest_of(min(size, len(found)), at, lambda number: found[number])
        refused = any(each.at - at > CLOCK_TOLERANCE for each in known)
        assert (latest is not None and latest.at - at > CLOCK_TOLERANCE) == refused
