"""The state of a document stream is read as it was written, and `check` says what it means."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import FormatError
from drservice.model.estate import Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.documentstate import (
    DocumentPhase,
    DocumentState,
    describe_documents,
    is_alive,
    lock_path,
    read_state,
    state_path,
    write_state,
)
from drservice.operations.healthdocuments import check_documents
from drservice.processes import open_private
from drservice.settings.loading import load
from tests.doubles.clock import ManualClock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ERP, DOCUMENTS = ServiceName("erp"), ComponentName("documents")
STATE = DocumentState(
    service=ERP,
    component=DOCUMENTS,
    state=DocumentPhase.STREAMING,
    durable_server_time=NOON - timedelta(seconds=3),
    looked_at=NOON - timedelta(seconds=2),
    server_time=NOON,
    pending=0,
    missing=0,
    corrupt=0,
    stored=7,
    in_database=1,
    not_covered=0,
    problem=None,
    remedy=None,
    pid=12,
    updated_at=NOON,
)


@contextmanager
def living(state_dir: Path) -> Iterator[None]:
    path = lock_path(state_dir, ERP, DOCUMENTS)
    path.parent.mkdir(exist_ok=True)
    file = open_private(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(file)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(tmp_path, ERP, DOCUMENTS) is None
    for state in (STATE, replace(STATE, durable_server_time=None, looked_at=None, problem="p", remedy="r")):
        write_state(tmp_path, state)
        assert read_state(tmp_path, ERP, DOCUMENTS) == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"service": 1}', "\x00"])
def test_what_no_stream_wrote_is_refused(tmp_path: Path, text: str) -> None:
    write_state(tmp_path, STATE)
    state_path(tmp_path, ERP, DOCUMENTS).write_text(text)
    with pytest.raises(FormatError):
        read_state(tmp_path, ERP, DOCUMENTS)


def test_who_holds_the_lock_lives(tmp_path: Path) -> None:
    assert not is_alive(tmp_path, ERP, DOCUMENTS)
    with living(tmp_path):
        assert is_alive(tmp_path, ERP, DOCUMENTS)
    assert not is_alive(tmp_path, ERP, DOCUMENTS)


def test_the_lag_is_the_age_of_the_last_look_that_found_everything_stored() -> None:
    assert STATE.lag_seconds(NOON + timedelta(seconds=1)) == 3
    assert replace(STATE, looked_at=None).lag_seconds(NOON) is None


def test_words_say_what_waits_what_is_lost_and_what_is_not_covered() -> None:
    told = describe_documents(replace(STATE, pending=2, missing=1, corrupt=1, not_covered=5))
    assert "2 pending" in told
    assert "2 lost or damaged in production" in told
    assert "5 attachments NOT COVERED" in told


CONFIGURATION = """
version: 1
state_dir: {base}
repository: {{url: "file://{base}/repository", recipients: [{recipient}]}}
services:
  erp:
    components:
      database: {{kind: postgres, dsn: "host=/nowhere", method: pg_basebackup}}
      documents: {{kind: odoo-filestore, path: {base}/filestore, database: erp}}
"""
RECIPIENT = "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex"


def asked(base: Path) -> dict[str, tuple[CheckState, str]]:
    config = base / "drservice.yaml"
    config.write_text(CONFIGURATION.format(base=base, recipient=RECIPIENT))
    estate = load(config).estate
    service: Service = estate.service("erp")
    checklist = Checklist()
    for component in service.files():
        check_documents(estate, service, component, clock=ManualClock(NOON), checklist=checklist)
    return {item.name.removeprefix("erp/documents: "): (item.state, item.detail) for item in checklist.results}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CheckState.OK),
        ({"state": DocumentPhase.STARTING}, CheckState.WARNING),
        ({"state": DocumentPhase.STALLED, "problem": "the store is away", "remedy": "look"}, CheckState.FAILED),
        ({"updated_at": NOON - timedelta(minutes=5)}, CheckState.FAILED),
    ],
)
def test_check_says_how_a_stream_is(tmp_path: Path, changes: dict[str, object], expected: CheckState) -> None:
    write_state(tmp_path, replace(STATE, **changes))  # type: ignore[arg-type]  # named by the test
    with living(tmp_path):
        assert asked(tmp_path)["document stream"][0] is expected


def test_check_warns_of_a_stream_that_does_not_run_and_of_what_production_lost(tmp_path: Path) -> None:
    write_state(tmp_path, replace(STATE, missing=3))
    assert asked(tmp_path)["document stream"][0] is CheckState.WARNING
    with living(tmp_path):
        found = asked(tmp_path)
    assert found["lost documents"][0] is CheckState.WARNING
    assert "3 documents" in found["lost documents"][1]
