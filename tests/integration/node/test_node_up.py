"""Everything on one machine: one process tree with catalogue, node and pages."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice.catalogue.database import open_catalogue
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.catalogue.runs import RunRequest
from drservice.jobs.queue import Queue
from drservice.model.runs import RunKind, RunState
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import SERVICE
from tests.doubles.nodes import NodeBench


@pytest.fixture
def bench(tmp_path: Path, template_cache: Path) -> Iterator[NodeBench]:
    maker = ClusterMaker(cache=template_cache)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    made = NodeBench.make(maker, tmp_path, catalogue="embedded", listen=address)
    yield made
    made.close()
    maker.close()


def postmaster(bench: NodeBench) -> int:
    text = (bench.estate.state / "catalogue" / "data" / "postmaster.pid").read_text()
    return int(text.split("\n", 1)[0])


def test_up_serves_pages_runs_backups_and_leaves_nothing_behind(bench: NodeBench) -> None:
    bench.open_gate()
    node = bench.start(command="up")
    node.wait_said("serving http://")
    address = re.search(r"serving (http://127\.0\.0\.1:\d+)/", node.log.read_text())
    assert address is not None
    with urllib.request.urlopen(f"{address[1]}/healthz") as answer:
        assert answer.status == 200
    # A file that is not valid stops neither part, and the next one that is takes effect in both.
    valid = bench.estate.config.read_text()
    bench.estate.config.write_text("services: [nonsense")
    bench.wait_for(lambda: configuration(address[1]) == "refused", "the pages' refusal")
    bench.estate.config.write_text(valid)
    node.signal(signal.SIGHUP)
    bench.wait_for(lambda: configuration(address[1]) == "in force", "the valid file")
    # Another process of the host uses the same server.
    with EmbeddedCluster(bench.estate.state) as url:
        bench.database.close()
        bench.database = open_catalogue(url)
        run = Queue(bench.database).enqueue(RunRequest(service=SERVICE, kind=RunKind.BACKUP, requested_by="ops"))
        assert run is not None
        bench.wait_state(run, RunState.SUCCEEDED)
        # The embedded server is killed: it is started again, and the node goes on.
        before = postmaster(bench)
        os.kill(before, signal.SIGKILL)
        node.wait_said("the catalogue is back")
        assert postmaster(bench) != before
        assert node.stop() == 0
        bench.database.close()
    assert not (bench.estate.state / "catalogue" / "data" / "postmaster.pid").exists()
    assert len(bench.points()) == 1


def configuration(base: str) -> object:
    with urllib.request.urlopen(f"{base}/readyz") as answer:
        return json.load(answer)["configuration"]


def test_up_ends_with_the_reason_if_the_pages_cannot_be_served(bench: NodeBench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bench.configure(catalogue="embedded", listen=f"127.0.0.1:{taken.getsockname()[1]}")
        node = bench.start(command="up", wait=False)
        assert node.process.wait(60) == 1
    assert node.said("cannot listen on")
