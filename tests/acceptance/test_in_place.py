"""``restore --in-place`` through the command line: what it asks, what it shows, and what a kill leaves."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice import processes
from tests.acceptance.conftest import archived, order
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import PROGRAM, TempEstate, tree, wait_for

IN_PLACE = ("restore", "erp", "--to", "latest", "--in-place")


@pytest.fixture
def estate(clusters: ClusterMaker) -> Iterator[TempEstate]:
    """A service that crashed: order 1 is archived, order 2 is in its pg_wal only."""
    cluster = clusters.make(wal_segment_mb=1)
    made = TempEstate.over(cluster)
    made.json("init")
    made.hand_over_repository()
    made.archive_with_the_program()
    cluster.start()
    cluster.sql("create table orders (id int primary key, note text)")
    made.json("backup", "erp")
    order(cluster, 1, "commit")
    archived(cluster, cluster.switch_wal())
    order(cluster, 2, "commit")
    cluster.kill9()
    yield made
    made.close()


def orders(estate: TempEstate) -> list[int]:
    estate.cluster.start()
    return [row[0] for row in estate.cluster.sql("select id from orders order by id")]


def typing(estate: TempEstate, words: tuple[str, ...], answer: str) -> tuple[int, str]:
    """Run the program on a terminal, type an answer, and return its status and what was shown."""
    ours, theirs = pty.openpty()
    environment = processes.clean_environment({"HOME": str(estate.root)})
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(estate.config), *words],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    shown = bytearray()
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # Linux tells the end of a terminal like this
    os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_a_person_sees_what_would_happen_names_the_service_and_loses_nothing(estate: TempEstate) -> None:
    data = estate.cluster.data
    before = tree(data)
    plan = estate.json(*IN_PLACE, "--dry-run")["in_place"]
    assert [item["archived_as"].endswith(".partial") for item in plan["salvage"]] == [True]
    assert all(room["free_bytes"] > room["needed_bytes"] > 0 for room in plan["space"])
    unasked = estate.refusal(*IN_PLACE, status=2)
    assert "--confirm erp" in unasked["hint"]
    assert estate.refusal(*IN_PLACE, "--confirm", "epr", status=2)["hint"] == "Nothing was changed."
    assert tree(data) == before
    status, shown = typing(estate, IN_PLACE, "epr")
    assert (status, tree(data) == before) == (2, True), shown
    status, shown = typing(estate, IN_PLACE, "erp")
    assert status == 0, shown
    assert "Type the service's name to restore over" in shown
    assert f"in place: {data}, shut down cleanly" in shown
    assert re.search(r"salvaged before: [0-9A-F]{24}\.partial", shown)
    assert orders(estate) == [1, 2]
    record = estate.json("evidence", "list", "erp", "--kind", "restore")["records"][0]
    predicate = estate.json("evidence", "show", str(record["record"]))["statement"]["predicate"]
    assert (predicate["outcome"], predicate["in_place"]) == ("restored", True)


@pytest.mark.long
def test_killed_while_it_replays_the_same_command_ends_what_was_left_and_completes_it(estate: TempEstate) -> None:
    data = estate.cluster.data
    words = [*PROGRAM, "--config", str(estate.config), *IN_PLACE, "--confirm", "erp"]
    process = processes.start(words, environment=processes.clean_environment({"HOME": str(estate.root)}))
    wait_for((data / "global" / "pg_control").is_symlink, "the directory to be taken")
    wait_for((data / "postmaster.pid").exists, "the server inside")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert estate.refusal(*IN_PLACE, "--dry-run", status=2)["code"] == "DR314", "its server still runs in the sandbox"
    done = estate.json(*IN_PLACE, "--confirm", "erp")
    assert done["in_place"]["set_aside"] == []
    assert orders(estate) == [1, 2]
    assert not list(Path(estate.state / "in-place").iterdir())


@pytest.mark.long
def test_a_person_looks_at_a_paused_server_and_promotes_it(estate: TempEstate) -> None:
    taken = estate.json("info", "erp")["services"][0]["snapshots"][-1]
    snapshot = taken.get("snapshot") or taken["id"]
    words = ("restore", "erp", "--snapshot", snapshot, "--start", "--action", "pause")
    shown = estate.run(*words).stdout.decode()
    found = re.search(r"^promote: drservice environment promote (\S+) ", shown, re.MULTILINE)
    assert found is not None, shown
    try:
        promoted = estate.json("environment", "promote", found[1])
        assert promoted["timeline"] > 1
        refused = estate.refusal("environment", "promote", found[1], status=2)
        assert "not paused" in refused["message"]
        assert estate.refusal("environment", "promote", "nothing", status=2)["code"] == "DR103"
    finally:
        estate.json("environment", "destroy", found[1])
