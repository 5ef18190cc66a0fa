"""What a receiver says of itself is read back as it was written, and nothing else is taken for it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import FormatError
from drservice.model.ids import ComponentName, ServiceName, SystemId
from drservice.model.wal import Lsn, Timeline
from drservice.operations.streamstate import (
    StreamPhase,
    StreamState,
    is_alive,
    lock_path,
    read_state,
    state_path,
    write_state,
)
from drservice.processes import make_folder, open_private

ERP, DATABASE = ServiceName("erp"), ComponentName("database")
NOON = datetime(2026, 11, 27, 12, 0, 0, 250000, tzinfo=UTC)
STATE = StreamState(
    service=ERP,
    component=DATABASE,
    system_id=SystemId("7345678901234567890"),
    timeline=Timeline(3),
    slot="drservice_erp_database",
    state=StreamPhase.STREAMING,
    received_lsn=Lsn.parse("0/3000100"),
    durable_lsn=Lsn.parse("0/3000080"),
    server_lsn=Lsn.parse("0/3000200"),
    durable_server_time=NOON - timedelta(milliseconds=120),
    server_time=NOON,
    synchronous=False,
    problem=None,
    remedy=None,
    pid=42,
    updated_at=NOON,
    covered_lsn=None,
    slot_status="reserved",
    safe_wal_bytes=1 << 30,
)
UNKNOWN = replace(
    STATE,
    system_id=None,
    timeline=None,
    state=StreamPhase.FAILED,
    received_lsn=None,
    durable_lsn=None,
    server_lsn=None,
    durable_server_time=None,
    server_time=None,
    problem="no connection",
    remedy="start the server",
    slot_status=None,
    safe_wal_bytes=None,
)


@pytest.mark.parametrize("state", [STATE, UNKNOWN])
def test_a_state_is_read_as_it_was_written(tmp_path: Path, state: StreamState) -> None:
    write_state(tmp_path, UNKNOWN)
    write_state(tmp_path, state)
    assert read_state(tmp_path, ERP, DATABASE) == state
    assert [path.name for path in (tmp_path / "streams").iterdir()] == ["erp.database.json"]


def test_behind_a_clock_that_was_set_back_no_age_is_claimed() -> None:
    assert STATE.seconds_at_risk == pytest.approx(0.12)
    back = replace(STATE, server_time=NOON - timedelta(hours=1))
    assert back.seconds_at_risk is None
    assert replace(back, durable_lsn=back.server_lsn).seconds_at_risk == 0.0, "nothing is at risk by any clock"


def test_no_receiver_ever_is_no_state_and_not_alive(tmp_path: Path) -> None:
    assert read_state(tmp_path, ERP, DATABASE) is None
    assert not is_alive(tmp_path, ERP, DATABASE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "asleep"),
        ("durable_lsn", "12"),
        ("updated_at", None),
        ("pid", "42"),
        ("synchronous", "no"),
        ("timeline", True),
        ("slot", 7),
        ("server_time", "2026-11-27T12:00:00"),
    ],
)
def test_what_no_receiver_wrote_is_refused(tmp_path: Path, name: str, value: object) -> None:
    write_state(tmp_path, STATE)
    path = state_path(tmp_path, ERP, DATABASE)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, name: value}))
    with pytest.raises(FormatError):
        read_state(tmp_path, ERP, DATABASE)
    path.write_text(json.dumps({key: item for key, item in document.items() if key != name}))
    with pytest.raises(FormatError):
        read_state(tmp_path, ERP, DATABASE)
    path.write_text("{")
    with pytest.raises(FormatError):
        read_state(tmp_path, ERP, DATABASE)


def test_it_is_alive_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    path = lock_path(tmp_path, ERP, DATABASE)
    make_folder(path.parent)
    file = open_private(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    assert is_alive(tmp_path, ERP, DATABASE)
    os.close(file)
    assert not is_alive(tmp_path, ERP, DATABASE)


def test_seconds_at_risk_are_the_servers_and_nothing_is_at_risk_once_all_is_durable() -> None:
    assert (STATE.bytes_at_risk, STATE.seconds_at_risk) == (0x180, 0.12)
    done = replace(STATE, durable_lsn=STATE.server_lsn)
    assert (done.bytes_at_risk, done.seconds_at_risk) == (0, 0.0)
    idle = replace(STATE, covered_lsn=STATE.server_lsn)
    assert (idle.bytes_at_risk, idle.seconds_at_risk) == (0, 0.0)
    assert (UNKNOWN.bytes_at_risk, UNKNOWN.seconds_at_risk) == (None, None)
