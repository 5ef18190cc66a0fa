"""The script inside and the feeder's side outside, together, with a real dash."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice import processes
from drservice.environments.exchange import RESTORE_COMMAND, Exchange, fetch_script

SEGMENT = "000000010000000000000003"


class Fetch:
    """Runs the script as PostgreSQL would: through ``RESTORE_COMMAND``, with the paths of this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "wal"
        self.folder.mkdir()
        self.destination = folder / "RECOVERYXLOG"
        self.script = folder / "fetch"
        self.script.write_text(fetch_script(folder=str(self.folder), stale_seconds=2), encoding="utf-8")

    def start(self, name: str = SEGMENT, *, path: str | None = None) -> subprocess.Popen[bytes]:
        line = RESTORE_COMMAND.replace("/env/conf/fetch", str(self.script))
        line = line.replace("%f", name).replace("%p", str(self.destination))
        return processes.start(
            ["/bin/dash", "-c", line],
            environment={"PATH": path or "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def raw_status(self, *arguments: str) -> int:
        return processes.run(["/bin/dash", self.script, *arguments], timeout_seconds=20).status


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path)


@pytest.fixture
def feeder(fetch: Fetch) -> Iterator[Exchange]:
    with Exchange(fetch.folder) as exchange:
        exchange.beat()
        yield exchange


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output.decode()


def asked(feeder: Exchange) -> list[str]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        names = feeder.requests()
        if names:
            return names
        time.sleep(0.01)
    raise AssertionError("nothing was asked for")


def test_a_served_file_is_placed(fetch: Fetch, feeder: Exchange) -> None:
    process = fetch.start()
    assert asked(feeder) == [SEGMENT]
    feeder.serve(SEGMENT, b"wal" * 1000)
    assert ended(process) == (0, "")
    assert fetch.destination.read_bytes() == b"wal" * 1000
    assert feeder.requests() == []


def test_a_file_served_ahead_is_placed_at_once_and_still_reported(fetch: Fetch, feeder: Exchange) -> None:
    feeder.serve(SEGMENT, fetch.script)
    begin = time.monotonic()
    assert ended(fetch.start())[0] == 0
    assert time.monotonic() - begin < 1
    assert fetch.destination.read_bytes() == fetch.script.read_bytes()
    assert feeder.requests() == [SEGMENT]
    assert ended(fetch.start())[0] == 0, "PostgreSQL asks for the last one again"


def test_proven_absence_is_1_for_postgresql(fetch: Fetch, feeder: Exchange) -> None:
    process = fetch.start("00000002.history")
    assert asked(feeder) == ["00000002.history"]
    feeder.absent("00000002.history")
    assert ended(process) == (1, "")


def test_an_old_absence_answers_no_new_question(fetch: Fetch, feeder: Exchange) -> None:
    feeder.absent(SEGMENT)
    process = fetch.start()
    assert asked(feeder) == [SEGMENT]
    feeder.serve(SEGMENT, b"now it is there")
    assert ended(process)[0] == 0


def test_a_refusal_is_127_with_its_reason(fetch: Fetch, feeder: Exchange) -> None:
    process = fetch.start()
    asked(feeder)
    feeder.refuse(SEGMENT, "a hole in the archive")
    status, output = ended(process)
    assert status == 127
    assert "a hole in the archive" in output


@pytest.mark.usefixtures("feeder")
def test_a_dead_feeder_is_127_never_the_end_of_wal(fetch: Fetch) -> None:
    old = time.time() - 60
    os.utime(fetch.folder / "HEARTBEAT", (old, old))
    status, output = ended(fetch.start())
    assert status == 127
    assert "silent" in output


def test_a_feeder_that_never_lived_or_lives_in_the_future_is_127(fetch: Fetch) -> None:
    assert ended(fetch.start())[0] == 127
    heartbeat = fetch.folder / "HEARTBEAT"
    heartbeat.touch()
    future = time.time() + 3600
    os.utime(heartbeat, (future, future))
    assert ended(fetch.start())[0] == 127


def test_a_feeder_that_was_only_late_is_waited_for(fetch: Fetch, feeder: Exchange) -> None:
    old = time.time() - 60
    os.utime(fetch.folder / "HEARTBEAT", (old, old))
    process = fetch.start()
    time.sleep(0.5)
    feeder.beat()
    time.sleep(2.5)
    assert process.poll() is None
    feeder.absent(SEGMENT)
    assert ended(process)[0] == 1


def test_a_beating_feeder_is_waited_for_longer_than_the_heartbeat_lasts(fetch: Fetch, feeder: Exchange) -> None:
    process = fetch.start()
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.5):
            feeder.beat()

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        time.sleep(5)
        assert process.poll() is None
        feeder.serve(SEGMENT, b"x")
        assert ended(process)[0] == 0
    finally:
        stop.set()
        beating.join()


def test_a_short_copy_is_127(fetch: Fetch, feeder: Exchange, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cp").write_text('#!/bin/sh\nhead -c 10 "$1" > "$2"\n', encoding="utf-8")
    (programs / "cp").chmod(0o755)
    feeder.serve(SEGMENT, bytes(1000))
    status, output = ended(fetch.start(path=f"{programs}:/usr/bin:/bin"))
    assert status == 127
    assert "10 of 1000" in output


@pytest.mark.parametrize("missing", ["cp", "stat", "sleep"])
def test_a_missing_program_is_127(fetch: Fetch, feeder: Exchange, tmp_path: Path, missing: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"cp", "stat", "rm", "date", "sleep", "cat", "sh"} - {missing}:
        (programs / name).symlink_to(f"/usr/bin/{name}")
    if missing != "sleep":  # which is needed only to wait
        feeder.serve(SEGMENT, b"x")
    assert ended(fetch.start(path=str(programs)))[0] == 127


def test_a_destination_that_cannot_be_written_is_127(fetch: Fetch, feeder: Exchange) -> None:
    fetch.destination = Path("/dev/full")
    feeder.serve(SEGMENT, b"x" * 100)
    assert ended(fetch.start())[0] == 127


def test_a_script_that_is_missing_or_broken_is_127(fetch: Fetch, feeder: Exchange) -> None:
    feeder.serve(SEGMENT, b"x")
    fetch.script.write_text("if then fi ((\n", encoding="utf-8")
    assert ended(fetch.start())[0] == 127
    fetch.script.unlink()
    assert ended(fetch.start())[0] == 127


def test_an_exchange_folder_that_cannot_be_written_is_127(fetch: Fetch, tmp_path: Path) -> None:
    fetch.script.write_text(fetch_script(folder=str(tmp_path / "gone")), encoding="utf-8")
    assert ended(fetch.start())[0] == 127


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "00000001000000000000000", "00000001000000000000000G", "backup_label",
     "000000010000000000000003.tmp", "00000002.history.x", SEGMENT.lower().replace("3", "a"), f"{SEGMENT}\n{SEGMENT}"],
)  # fmt: skip
@pytest.mark.usefixtures("feeder")
def test_what_is_no_wal_file_is_never_asked_for(fetch: Fetch, name: str) -> None:
    assert fetch.raw_status(name, str(fetch.destination)) == 127
    assert not list(fetch.folder.glob("*.want"))


def test_the_script_itself_wants_two_arguments(fetch: Fetch) -> None:
    assert fetch.raw_status() == 127
    assert fetch.raw_status(SEGMENT) == 127


@pytest.mark.parametrize("name", [SEGMENT, f"{SEGMENT}.partial", f"{SEGMENT}.00000028.backup", "0000000A.history"])
def test_every_kind_of_wal_file_can_be_asked_for(fetch: Fetch, feeder: Exchange, name: str) -> None:
    feeder.serve(name, b"")
    assert ended(fetch.start(name))[0] == 0
