"""What is at risk, by a receiver's word: as far as the window reaches what it says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from drservice.model.ids import ComponentName, ServiceName
from drservice.model.reach import WalInventory
from drservice.model.recovery import windows_of
from drservice.operations import info
from drservice.operations.info import AtRisk, StreamInfo, WindowInfo
from drservice.operations.streamstate import StreamPhase, StreamState
from tests.unit.model.test_reach import with_tails
from tests.unit.model.test_recovery import MONDAY, NOON, archive, at

STATE = StreamState(
    service=ServiceName("erp"),
    component=ComponentName("database"),
    system_id=MONDAY.postgres.system_id,
    timeline=MONDAY.postgres.timeline,
    slot="s",
    state=StreamPhase.STREAMING,
    received_lsn=at(6.5),
    durable_lsn=at(6.5),
    server_lsn=at(6.5),
    durable_server_time=NOON,
    server_time=NOON,
    synchronous=False,
    problem=None,
    remedy=None,
    pid=1,
    updated_at=NOON,
)


def believed(inventory: WalInventory, state: StreamState = STATE) -> AtRisk | None:
    windows = tuple(
        WindowInfo(window=window, from_time=NOON, to_time=NOON) for window in windows_of([MONDAY], inventory)
    )
    stream = StreamInfo(name="s", is_alive=True, state=state, problem=None, heartbeat=None)
    return info._streamed_at_risk(stream, MONDAY, windows, (), NOON + timedelta(seconds=1))


def test_a_receiver_is_believed_where_the_window_reaches_what_it_made_durable() -> None:
    found = believed(with_tails(archive(*range(2, 6)), {1: {6: 6.5}}))
    assert found is not None
    assert (found.bytes, found.seconds) == (0, 0.0)


@pytest.mark.parametrize("pieces", [{}, {6: 6.25}])
def test_a_receiver_is_not_believed_where_what_it_made_durable_is_not_there_any_more(pieces: dict[int, float]) -> None:
    assert believed(with_tails(archive(*range(2, 6)), {1: pieces})) is None


def test_a_receiver_that_has_made_nothing_durable_says_nothing() -> None:
    held = with_tails(archive(*range(2, 6)), {1: {6: 6.5}})
    assert believed(held, replace(STATE, durable_lsn=None)) is None


@pytest.mark.parametrize("phase", [StreamPhase.CONNECTING, StreamPhase.FAILED, StreamPhase.STALLED])
def test_a_receiver_that_does_not_get_on_says_nothing_of_what_its_server_does_now(phase: StreamPhase) -> None:
    held = with_tails(archive(*range(2, 6)), {1: {6: 6.5}})
    assert believed(held, replace(STATE, state=phase)) is None, "the server may have gone on for hours"
