"""What a host tells of its receivers and captures: as they say, unless they are dead, silent, or cannot be read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.catalogue.streams import ToldDocuments, ToldWal
from drservice.model.estate import (
    ComponentSettings,
    Estate,
    FilesKind,
    FilesSettings,
    PostgresSettings,
    RepositorySettings,
    Service,
    WalMode,
    WalSettings,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn
from drservice.node.streamtelling import told_documents, told_streams
from drservice.operations import documentstate, streamstate
from drservice.operations.documentstate import DocumentPhase, DocumentState
from drservice.operations.streamstate import StreamPhase, StreamState
from drservice.processes import make_folder, open_private

ERP, DATABASE, DOCUMENTS = ServiceName("erp"), ComponentName("database"), ComponentName("documents")
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CAPTURE = DocumentState(
    service=ERP,
    component=DOCUMENTS,
    state=DocumentPhase.STREAMING,
    durable_server_time=NOON - 5 * SECOND,
    looked_at=NOON - 3 * SECOND,
    server_time=NOON - 3 * SECOND,
    pending=2,
    missing=3,
    corrupt=1,
    stored=7,
    in_database=5,
    not_covered=4,
    problem=None,
    remedy=None,
    pid=42,
    updated_at=NOON - SECOND,
)
RECEIVER = StreamState(
    service=ERP,
    component=DATABASE,
    system_id=None,
    timeline=None,
    slot="s",
    state=StreamPhase.STREAMING,
    received_lsn=None,
    durable_lsn=Lsn(7),
    server_lsn=Lsn(9),
    durable_server_time=NOON - 2 * SECOND,
    server_time=NOON - SECOND,
    synchronous=True,
    problem=None,
    remedy=None,
    pid=42,
    updated_at=NOON - SECOND,
)


@pytest.fixture
def estate(tmp_path: Path) -> Estate:
    """Return one with a cluster and a filestore that are streamed on ``db1``."""
    make_folder(tmp_path / "run")
    components: dict[ComponentName, ComponentSettings] = {
        DATABASE: PostgresSettings(
            name=DATABASE, dsn="", node="db1", wal=WalSettings(mode=WalMode.STREAM, synchronous=True)
        ),
        DOCUMENTS: FilesSettings(
            name=DOCUMENTS,
            kind=FilesKind.ODOO_FILESTORE,
            path=tmp_path / "filestore",
            database="plant",
            follows=DATABASE,
            node="db1",
            stream=True,
            interval=2 * SECOND,
        ),
    }
    return Estate(
        source=tmp_path / "c",
        state_dir=tmp_path,
        repository=RepositorySettings(url="file:///r"),
        services={ERP: Service(name=ERP, components=components)},
    )


@contextmanager
def living(path: Path) -> Iterator[None]:
    """Hold a lock as the process does that lives."""
    file = open_private(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(file)


def capture_of(estate: Estate, state: DocumentState | None, *, now: datetime = NOON) -> ToldDocuments:
    """Return what is told of a capture that lives."""
    if state is not None:
        documentstate.write_state(estate.state_dir, state)
    with living(documentstate.lock_path(estate.state_dir, ERP, DOCUMENTS)):
        [told] = told_documents(estate, "db1", now)
    return told


def test_a_capture_is_told_as_it_says(estate: Estate) -> None:
    assert capture_of(estate, CAPTURE) == ToldDocuments(
        service="erp",
        component="documents",
        state="streaming",
        durable_until=NOON - 5 * SECOND,
        seconds_at_risk=3.0,
        pending=2,
        missing=3,
        corrupt=1,
        in_database=5,
        not_covered=4,
    )
    assert told_documents(estate, "db2", NOON) == [], "it is another host's"


def test_one_that_ended_has_made_durable_what_it_did_and_says_nothing_of_the_present(estate: Estate) -> None:
    capture_of(estate, CAPTURE)
    [told] = told_documents(estate, "db1", NOON)
    assert (told.state, told.durable_until, told.missing) == ("absent", CAPTURE.durable_server_time, 3)
    assert (told.seconds_at_risk, told.pending) == (None, None)


def test_what_was_counted_before_everything_was_compared_is_not_known(estate: Estate) -> None:
    begun = replace(CAPTURE, state=DocumentPhase.STARTING, durable_server_time=None, looked_at=None, missing=0)
    told = capture_of(estate, begun)
    assert (told.state, told.pending) == ("starting", 2)
    assert {told.durable_until, told.missing, told.corrupt, told.in_database, told.not_covered} == {None}


def test_one_that_never_ran_is_absent_and_one_that_lives_without_a_word_is_starting(estate: Estate) -> None:
    [never] = told_documents(estate, "db1", NOON)
    assert never.state == "absent"
    assert capture_of(estate, None).state == "starting"


def test_a_state_that_cannot_be_read_is_told_with_what_to_do(estate: Estate) -> None:
    path = documentstate.state_path(estate.state_dir, ERP, DOCUMENTS)
    make_folder(path.parent)
    path.write_text("{")
    told = capture_of(estate, None)
    assert told.state == "absent"
    assert told.problem is not None
    assert "describes no capture of documents" in told.problem
    assert told.remedy == "Remove the file; it is made anew."


def test_a_capture_that_lives_and_says_nothing_is_stalled(estate: Estate) -> None:
    limit = CAPTURE.updated_at + documentstate.patience(2 * SECOND)
    assert capture_of(estate, CAPTURE, now=limit).state == "streaming"
    told = capture_of(estate, CAPTURE, now=limit + SECOND)
    assert (told.state, told.problem) == ("stalled", "alive (pid 42) and silent for 61 s")
    assert (told.seconds_at_risk, told.durable_until) == (None, CAPTURE.durable_server_time)


def test_one_that_looks_seldom_may_be_silent_for_longer() -> None:
    assert documentstate.patience(timedelta(hours=1)) == timedelta(hours=2)


def receiver_of(estate: Estate, state: StreamState = RECEIVER, *, now: datetime) -> ToldWal:
    """Return what is told of a receiver that lives."""
    streamstate.write_state(estate.state_dir, state)
    with living(streamstate.lock_path(estate.state_dir, ERP, DATABASE)):
        [told] = told_streams(estate, "db1", now)
    return told


def test_a_receiver_that_lives_and_says_nothing_has_nothing_safe_behind_its_last_word(estate: Estate) -> None:
    told = receiver_of(estate, now=NOON)
    assert (told.state, told.seconds_at_risk, told.bytes_at_risk, told.is_synchronous) == ("streaming", 1.0, 2, True)
    told = receiver_of(estate, now=RECEIVER.updated_at + timedelta(seconds=streamstate.STALE_SECONDS + 1))
    assert (told.state, told.seconds_at_risk, told.durable_until) == ("stalled", None, NOON - 2 * SECOND)
    [ended] = told_streams(estate, "db1", NOON)
    assert (ended.state, ended.durable_lsn, ended.seconds_at_risk) == ("absent", 7, None)


@pytest.mark.parametrize("phase", [StreamPhase.CONNECTING, StreamPhase.FAILED, StreamPhase.STALLED])
def test_a_receiver_that_does_not_get_on_tells_no_figure_of_the_past_as_one_of_now(
    estate: Estate, phase: StreamPhase
) -> None:
    idle = replace(RECEIVER, state=phase, server_lsn=RECEIVER.durable_lsn)
    assert idle.seconds_at_risk == 0, "when it last heard of its server"
    told = receiver_of(estate, idle, now=NOON)
    assert (told.state, told.seconds_at_risk, told.bytes_at_risk) == (phase.value, None, None)
    assert told.durable_until == RECEIVER.server_time, "which grows older"


def test_what_a_database_whose_clock_is_ahead_says_of_documents_is_no_younger_than_the_look(estate: Estate) -> None:
    ahead = replace(CAPTURE, durable_server_time=NOON + 3600 * SECOND)
    assert capture_of(estate, ahead).durable_until == CAPTURE.looked_at
