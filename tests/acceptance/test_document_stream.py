"""``drservice documents stream`` as a process: what it calls durable is restored, and it ends in order or at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drservice import processes
from drservice.model.ids import ComponentName, ServiceName
from drservice.node.companions import Companions
from drservice.node.documentstreams import CAPTURING
from drservice.node.streamtelling import told_documents
from drservice.operations.documentstate import is_alive
from drservice.settings.loading import load
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, as_user
from tests.doubles.plant import Plant, placed

pytestmark = pytest.mark.long

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "stream-documents.md"


@pytest.fixture(scope="module")
def plant(template_cache: Path) -> Iterator[Plant]:
    maker = ClusterMaker(cache=template_cache)
    made = Plant.over(maker.make(wal_segment_mb=1), documents=5)
    made.json("backup", "erp", account=as_user("postgres"))
    yield made
    maker.close()


@contextmanager
def streaming(plant: Plant, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command as somebody who may not read everything; it is killed at the end unless it has ended."""
    process = processes.start(
        [*PROGRAM, "--config", str(plant.estate.config), "documents", "stream", "erp", *words, "--json"],
        account=as_user("postgres"),
        environment={**os.environ, **plant.estate.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def state(plant: Plant) -> dict[str, Any]:
    path = plant.estate.state / "documents" / "erp.documents.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def wait_state(plant: Plant, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not (found := state(plant)) or not holds(found):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def wait_streaming(plant: Plant, process: subprocess.Popen[bytes]) -> None:
    wait_state(plant, lambda found: found["pid"] == process.pid and found["state"] == "streaming")


def check_of(plant: Plant) -> dict[str, Any]:
    answers = json.loads(plant.estate.run("check", "erp", "--json").stdout)["checks"]
    (found,) = [item for item in answers if item["name"] == "erp/documents: document stream"]
    assert isinstance(found, dict)
    return found


def test_what_the_process_calls_durable_is_restored_and_it_ends_in_order(plant: Plant) -> None:
    with streaming(plant) as process:
        wait_streaming(plant, process)
        begun = time.monotonic()
        name = plant.upload(b"filed between two backups")
        told = wait_state(plant, lambda s: s["stored"] == 1)
        assert time.monotonic() - begun < 5
        assert (told["pending"], told["problem"]) == (0, None)
        assert check_of(plant)["state"] == "ok"
        service = plant.json("info", "erp")["services"][0]
        (documents,) = service["documents"]
        assert (documents["state"], documents["pending"]) == ("streaming", 0)
        assert service["effective_rpo_seconds"] >= documents["lag_seconds"]
        last = plant.upload(b"filed just before the end")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert {line["schema"] for line in lines} == {"drservice/documents-stream/v1"}
    assert check_of(plant)["state"] == "warning"
    plant.archive()
    plant.json("restore", "erp", "--to", "latest", "--into", plant.cluster.root / "out")
    assert {name, last} <= set(placed(plant.cluster.root / "out" / "documents"))


def test_a_document_that_may_not_be_read_is_told_and_nothing_is_promised_beyond_it(plant: Plant) -> None:
    name = plant.put_file(b"closed to us")
    os.chown(plant.filestore / name, 0, 0)
    (plant.filestore / name).chmod(0)
    plant.put_row(name, b"closed to us")
    with streaming(plant) as process:
        told = wait_state(plant, lambda s: s["pid"] == process.pid and s["state"] == "stalled")
        assert "Permission denied" in told["problem"]
        assert told["durable_server_time"] is None
        assert check_of(plant)["state"] == "failed"
        (plant.filestore / name).chmod(0o644)
        wait_state(plant, lambda s: s["state"] == "streaming" and s["pending"] == 0)


def test_killed_at_any_moment_it_goes_on_where_it_was(plant: Plant) -> None:
    for number in range(3):
        with streaming(plant) as process:
            wait_streaming(plant, process)
            plant.upload(b"before a kill %d" % number)
            time.sleep(0.7 * number)
            process.send_signal(signal.SIGKILL)
    with streaming(plant) as process:
        wait_streaming(plant, process)
    into = plant.cluster.root / "killed"
    plant.archive()
    plant.json("restore", "erp", "--to", "latest", "--into", into)
    assert set(placed(into / "documents")) == set(plant.acknowledged)


def test_the_commands_of_the_how_to_work(plant: Plant) -> None:
    text = HOW_TO.read_text(encoding="utf-8")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    drservice ")]
    with streaming(plant) as process:
        wait_streaming(plant, process)
        done = 0
        for command in commands:
            words = command.split("#")[0].replace("SERVICE", "erp").split()[1:]
            if words[0] == "documents":
                continue  # it runs
            assert json.loads(plant.estate.run(*words, "--json").stdout)["schema"].startswith("drservice/")
            done += 1
        assert done >= 2


def test_a_node_keeps_one_running_and_ends_it(plant: Plant) -> None:
    estate = load(plant.estate.config).estate
    companions = Companions(CAPTURING, estate=lambda: estate, host="db1", log_level="info", first_seconds=0.0)
    companions.start()
    try:
        first = wait_state(plant, lambda s: s["pid"] in companions.running.values() and s["state"] == "streaming")
        os.kill(first["pid"], signal.SIGKILL)
        again = wait_state(plant, lambda s: s["pid"] != first["pid"] and s["state"] == "streaming")
        assert again["pid"] in companions.running.values()
        [told] = told_documents(estate, "db1", datetime.now(UTC))
        assert (told.state, told.pending, told.problem) == ("streaming", 0, None)
    finally:
        companions.stop()
    assert companions.running == {}
    assert not is_alive(plant.estate.state, ServiceName("erp"), ComponentName("documents"))
    assert [told.state for told in told_documents(estate, "db1", datetime.now(UTC))] == ["absent"]
