"""The WAL helper: what it calls durable is, is this very file, and nobody but the right ones hears it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import BusyError, ConfigurationError, StoreUnreachableError, WalError
from drservice.model.ids import SystemId
from drservice.operations import walahead
from drservice.operations.walready import ReadyFolder
from drservice.operations.walsocket import helper_state
from drservice.repository import layout
from drservice.walclient import client, protocol
from tests.doubles.estate import wait_for
from tests.doubles.repositories import SYSTEM_ID
from tests.doubles.stores import RecordingStore, SlowStore
from tests.doubles.walhelpers import ERP, HelperWorld, name_of, segment_content

OTHER_CLUSTER = SystemId("7345678901234567891")


@pytest.fixture
def world(tmp_path: Path) -> HelperWorld:
    return HelperWorld.create(tmp_path)


# --- what it says is so -----------------------------------------------------------------------------------------


def test_what_is_ready_is_archived_ahead_and_answered_at_once(world: HelperWorld) -> None:
    paths = [world.segment(number) for number in range(1, 6)]
    with world.helper():
        assert world.ask(paths[0]) == ""
        wait_for(lambda: len(world.archived_names()) == 5, "the others to be archived unasked")
        begin = time.monotonic()
        assert [world.ask(path) for path in paths] == [""] * 5
        assert time.monotonic() - begin < 0.5
    assert [world.archived(path) for path in paths] == [path.read_bytes() for path in paths]


def test_nothing_is_archived_before_somebody_asks_or_long_after(
    world: HelperWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever pauses archive_command wants nothing to be archived."""
    paths = [world.segment(number) for number in range(1, 4)]
    with world.helper() as running:
        wait_for(lambda: running.ahead.state().ready == 3, "the helper to look")
        time.sleep(0.1)
        assert world.archived_names() == []
        monkeypatch.setattr(walahead, "_ASKING_SECONDS", 0.0)
        assert world.ask(paths[1]) == ""
        time.sleep(0.1)
        assert world.archived_names() == [paths[1].name]


def test_one_key_of_the_day_is_stored_before_what_it_seals_and_nothing_is_listed_for_a_segment(
    world: HelperWorld,
) -> None:
    # Whoever lists is not done before the other threads have begun.
    slow = SlowStore(world.site.store, wait=lambda operation: time.sleep(0.1 if operation == "list" else 0))
    store = RecordingStore(slow)
    paths = [world.segment(number) for number in range(1, 5)]
    with world.helper(store=store):
        assert [world.ask(path) for path in paths] == [""] * 4
    created = [key for operation, key in store.calls if operation == "create"]
    assert [key.split("/")[0] for key in created] == ["keys", "s", "s", "s", "s"]
    listed = [key for operation, key in store.calls if operation == "list"]
    assert [key for key in listed if "/wal/" in key] == []
    assert len(listed) <= 1, "for the snapshot that would tell which cluster is believed"


class Shifting:
    """A clock whose day is set by the test."""

    def __init__(self) -> None:
        self.shift = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def test_a_day_that_changes_or_a_clock_that_jumps_makes_a_new_key_and_all_of_it_is_readable(
    world: HelperWorld,
) -> None:
    clock = Shifting()
    with world.helper(clock=clock):
        for number, days in enumerate((0, 0, 1, -3, -3), start=1):
            clock.shift = timedelta(days=days)
            assert world.ask(world.segment(number)) == ""
    keys = list(world.site.store.list(layout.data_key_prefix(ERP)))
    assert len(keys) == 3
    for number in range(1, 6):
        assert world.archived(world.wal / name_of(number)) == segment_content(number)


def test_a_key_that_cannot_be_stored_lets_nothing_be_sealed_with_it(world: HelperWorld) -> None:
    def refuse(operation: str) -> None:
        if operation == "create":
            raise StoreUnreachableError("away")

    path = world.segment(1)
    with world.helper(store=SlowStore(world.site.store, wait=refuse)) as running:
        assert "away" in world.ask(path)
        assert "away" in running.ahead.state().problem
        world.done(path)  # in another way
        wait_for(lambda: running.ahead.state().ready == 0, "the helper to look")
        assert running.ahead.state().problem == ""
    assert list(world.site.store.list("s/")) == []


# --- T18: answers about another file ----------------------------------------------------------------------------


def test_t18_a_recycled_file_is_never_covered_by_the_answer_about_its_predecessor(world: HelperWorld) -> None:
    """The same name, the same inode even: what was written since is another file, and its bytes conflict."""
    path = world.segment(1)
    with world.helper():
        assert world.ask(path) == ""
        with path.open("r+b") as stream:
            stream.seek(5000)
            stream.write(b"changed")
        os.utime(path)
        assert "other content" in world.ask(path)
    assert world.archived(path) == segment_content(1)


def test_t18_the_answer_of_an_earlier_cluster_is_not_believed_for_a_new_one(world: HelperWorld) -> None:
    path = world.segment(1)
    with world.helper():
        assert world.ask(path) == ""
        path = world.segment(1, system_id=OTHER_CLUSTER)  # initdb in the same place: the same name again
        assert world.ask(path) == ""
    assert world.archived(path, system_id=OTHER_CLUSTER) == path.read_bytes()
    assert world.archived(path, system_id=SYSTEM_ID) == segment_content(1)


@pytest.mark.parametrize("field", ["identity", "head", "config", "service", "name", "system_id", "version"])
def test_t18_a_helper_that_answers_for_something_else_is_not_believed(world: HelperWorld, field: str) -> None:
    path = world.segment(1)

    def lie(question: dict[str, str]) -> bytes:
        answer = {**question, "repository": "R", "system_id": str(SYSTEM_ID), field: "1:2"}
        return protocol.encode(protocol.DURABLE, answer)

    with answering(world.socket, lie):
        assert "another" in world.ask(path) or "version" in world.ask(path)


def test_t18_a_helper_that_answers_rightly_is_believed(world: HelperWorld) -> None:
    """The other half of the test above: it fails for the field that lies, and for nothing else."""
    answer = {"repository": "R", "system_id": str(SYSTEM_ID)}
    with answering(world.socket, lambda question: protocol.encode(protocol.DURABLE, {**question, **answer})):
        assert world.ask(world.segment(1)) == ""


@contextmanager
def answering(path: Path, answer: Callable[[dict[str, str]], bytes]) -> Iterator[None]:
    """Be a helper that says what a test lets it say."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                _, question = protocol.receive(connection)
                connection.sendall(answer(question))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        path.unlink()


# --- T16, T17, T20: what is not archived ------------------------------------------------------------------------


def test_t17_a_recycled_segment_that_lies_about_its_position_is_not_archived(world: HelperWorld) -> None:
    path = world.segment(7, position=3)
    with world.helper():
        assert "the name says" in world.ask(path)
    assert world.archived_names() == []


def test_t20_of_two_clusters_that_are_copies_the_second_is_refused_where_they_differ_and_told(
    world: HelperWorld, tmp_path: Path
) -> None:
    """A cloned machine has the same system identifier: what both have is fine, what differs is not."""
    clone = HelperWorld(site=world.site, data=tmp_path / "clone", config=world.config)
    (clone.wal / "archive_status").mkdir(parents=True)
    same, ours = world.segment(1), world.segment(2)
    with world.helper():
        assert [world.ask(same), world.ask(ours)] == ["", ""]
    theirs = [clone.segment(1), clone.segment(2, seed=1)]
    with clone.helper() as running:
        assert clone.ask(theirs[0]) == ""
        assert "other content" in clone.ask(theirs[1])
        assert "other content" in running.ahead.state().problem
    assert world.archived(ours) == ours.read_bytes()


def test_t20_a_second_helper_of_a_component_on_one_host_is_refused(world: HelperWorld) -> None:
    with world.helper(), pytest.raises(BusyError, match="is running already"), world.helper():
        pass


def test_t19_histories_go_first_and_labels_and_partial_files_keep_their_names(world: HelperWorld) -> None:
    segment = world.segment(4)
    partial = world.file(f"{name_of(5)}.partial", segment_content(5))
    history = world.file("00000002.history", b"1\t0/500000\tno recovery target specified\n")
    assert ReadyFolder(world.data).names() == [history.name, segment.name, partial.name]
    with world.helper():
        assert [world.ask(path) for path in (history, segment, partial)] == ["", "", ""]
    assert sorted(world.archived_names()) == sorted([history.name, segment.name, partial.name])


def test_a_file_that_is_not_ready_is_left_to_the_slow_way(world: HelperWorld) -> None:
    path = world.segment(1)
    with world.helper():
        assert world.ask(path) == ""
        world.done(path)
        path = world.segment(2)
        (world.wal / "archive_status" / f"{path.name}.ready").unlink()
        assert "not ready" in world.ask(path)
    assert world.archived_names() == [name_of(1)]


def test_a_file_that_is_written_while_it_is_read_is_not_archived(
    world: HelperWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.segment(1)
    folder = ReadyFolder(world.data)
    real, calls = os.readv, 0

    def slow(file: int, buffers: list[memoryview]) -> int:
        nonlocal calls
        calls += 1
        with path.open("r+b") as stream:
            stream.write(b"\x00")
        return real(file, buffers)

    monkeypatch.setattr(os, "readv", slow)
    with pytest.raises(WalError, match="changed while it was read"):
        folder.read(path.name, bytearray())
    assert calls == 1


def test_a_file_that_is_archived_otherwise_while_it_is_read_is_left_alone(
    world: HelperWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on PostgreSQL may use the file again, under another name and with other content."""
    path = world.segment(1)
    real = os.readv

    def done_meanwhile(file: int, buffers: list[memoryview]) -> int:
        if ReadyFolder(world.data).is_ready(path.name):
            world.done(path)
        return real(file, buffers)

    monkeypatch.setattr(os, "readv", done_meanwhile)
    assert ReadyFolder(world.data).read(path.name, bytearray()) is None


def test_a_link_in_pg_wal_is_not_followed(world: HelperWorld, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(segment_content(1))
    (world.wal / name_of(1)).symlink_to(outside)
    world.mark(name_of(1))
    with pytest.raises(WalError, match="cannot read"):
        ReadyFolder(world.data).read(name_of(1), bytearray())


def test_a_name_that_is_a_path_is_not_opened(world: HelperWorld) -> None:
    path = world.segment(1)
    with world.helper():
        question = client._question(str(world.config), "erp", str(path)) | {"name": "../pg_wal/" + path.name}
        connection = client.connect(str(world.socket))
        connection.sendall(protocol.encode(protocol.PUSH, question))
        word, answer = protocol.receive(connection)
        connection.close()
    assert (word, answer["reason"]) == (protocol.OTHER, "a name is asked for, not a path")


# --- who is heard -----------------------------------------------------------------------------------------------


def test_a_changed_configuration_and_another_service_get_no_answer(world: HelperWorld, tmp_path: Path) -> None:
    path = world.segment(1)
    with world.helper():
        assert "is the helper of erp" in world.ask(path, service="crm")
        other = tmp_path / "other.yaml"
        other.write_text("version: 1\n")
        assert "another configuration" in world.ask(path, config=other)
        world.config.write_text("version: 1  # changed\n")
        assert "another configuration" in world.ask(path)


def test_a_user_who_is_not_believed_gets_no_answer(world: HelperWorld) -> None:
    path = world.segment(1)
    with world.helper(believed={12345}):
        assert world.ask(path) != ""
    assert world.archived_names() == []


def test_a_socket_of_a_user_who_is_not_believed_is_not_asked(
    world: HelperWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.segment(1)
    with world.helper():
        assert world.ask(path) == ""
        monkeypatch.setattr(client, "_peer", lambda _: os.geteuid() + 4711)
        assert "not to be believed" in world.ask(path)


def test_the_socket_is_for_its_group_only_and_gone_at_the_end(world: HelperWorld) -> None:
    with world.helper():
        assert world.socket.stat().st_mode & 0o777 == 0o660
    assert not world.socket.exists()


def test_a_socket_that_a_killed_helper_left_is_taken_over_and_anything_else_is_not(world: HelperWorld) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(world.socket))
    left.close()
    path = world.segment(1)
    with world.helper():
        assert world.ask(path) == ""
    world.socket.write_text("planted")
    with pytest.raises(ConfigurationError, match="is no socket"), world.helper():
        pass
    assert world.socket.read_text() == "planted"


def test_a_path_that_is_too_long_for_a_socket_is_served_all_the_same(tmp_path: Path) -> None:
    base = tmp_path / ("a" * 100)
    base.mkdir()
    world = HelperWorld.create(base)
    with world.helper():
        assert world.ask(world.segment(1)) == ""


# --- stores and helpers that fail -------------------------------------------------------------------------------


def test_a_store_that_is_away_is_asked_later_and_clients_are_sent_the_slow_way_at_once(world: HelperWorld) -> None:
    away = threading.Event()
    away.set()

    def fail(operation: str) -> None:
        if away.is_set() and operation == "create":
            raise StoreUnreachableError("the store is away")

    for number in range(1, 30):
        world.segment(number)
    path = world.wal / name_of(1)
    with world.helper(store=SlowStore(world.site.store, wait=fail)) as running:
        assert "the store is away" in world.ask(path)
        begin = time.monotonic()
        assert "waits before it tries again" in world.ask(path)
        assert time.monotonic() - begin < 0.5
        assert running.ahead.state().ready == 29
        away.clear()
        wait_for(lambda: world.ask(path) == "", "the helper to try again")
        wait_for(lambda: len(world.archived_names()) == 29, "everything to be archived", timeout_seconds=20)


def test_a_helper_that_hangs_costs_its_patience_and_no_more(
    world: HelperWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE_SECONDS", 0.2)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(world.socket))
    listener.listen()  # connects, and says nothing
    try:
        assert "TimeoutError" in world.ask(world.segment(1))
    finally:
        listener.close()


def test_a_helper_that_works_without_an_end_is_left(world: HelperWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MOST_SECONDS", 0.3)
    free = threading.Event()

    def hang(operation: str) -> None:
        if operation == "create":
            free.wait(30)

    path = world.segment(1)
    with world.helper(store=SlowStore(world.site.store, wait=hang)):
        assert "without an end" in world.ask(path)
        free.set()


def test_no_helper_is_a_reason_and_no_error(world: HelperWorld) -> None:
    assert "FileNotFoundError" in world.ask(world.segment(1))
    assert helper_state(world.socket) is None


def test_it_says_how_it_is(world: HelperWorld) -> None:
    with world.helper():
        assert world.ask(world.segment(1)) == ""
        state = helper_state(world.socket)
    assert state is not None
    assert (state.pid, state.ready, state.problem) == (os.getpid(), 0, "")


def test_what_is_on_its_way_ends_when_the_helper_does(tmp_path: Path) -> None:
    world = HelperWorld.create(tmp_path)
    store = SlowStore(world.site.store, wait=lambda operation: time.sleep(0.3 if operation == "create" else 0))
    path = world.segment(1)
    answers: list[str] = []
    with world.helper(store=store):
        thread = threading.Thread(target=lambda: answers.append(world.ask(path)))
        thread.start()
        time.sleep(0.15)
    thread.join()
    assert world.archived(path) == path.read_bytes()
    assert answers == [""]


def test_memory_is_bounded_by_what_is_on_its_way(world: HelperWorld) -> None:
    """A hundred ready segments are names, not bytes: no more are read than are in flight."""
    inside, most = [0], [0]
    lock = threading.Lock()

    def count(operation: str) -> None:
        if operation == "create":
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    for number in range(1, 21):
        world.segment(number)
    with world.helper(store=SlowStore(world.site.store, wait=count), in_flight=3):
        assert world.ask(world.wal / name_of(1)) == ""
        wait_for(lambda: len(world.archived_names()) == 20, "all to be archived")
    assert 1 < most[0] <= 3
