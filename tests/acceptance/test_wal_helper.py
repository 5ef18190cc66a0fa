"""The WAL helper as a process beside a real server, whose archiver runs the line that `check` prints.

The server's user archives, root (as whom CI runs) has the helper; whatever becomes of the helper, archiving goes on.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drservice import processes
from drservice.components.postgres.controlfile import read_control_file
from drservice.model.wal import WalFileName
from drservice.node.companions import Companions
from drservice.node.walhelpers import HELPING
from drservice.operations.healthwal import archive_lines, restore_line
from drservice.operations.walsocket import helper_state, socket_path
from drservice.operations.walspool import spool_path
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.doubles.estate import PROGRAM, TempEstate, as_user, wait_for

ROOT = Path(__file__).parents[2]

# The program, with a store that kills it at a chosen call; everything else is the real thing.
DYING = """
import os, signal, sys
from drservice.cli.main import run
from drservice.wiring import opener

class Dying:
    def __init__(self, inner): self._inner = inner
    def __getattr__(self, name): return getattr(self._inner, name)
    def create(self, key, body, **how):
        word, when = os.environ["DIES"].split()
        if word in key and when == "before": os.kill(os.getpid(), signal.SIGKILL)
        self._inner.create(key, body, **how)
        if word in key and when == "after": os.kill(os.getpid(), signal.SIGKILL)

real = opener.open_store
opener.open_store = lambda url, **how: Dying(real(url, **how))
sys.exit(run(sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server that archives with the client."""

    estate: TempEstate

    @property
    def cluster(self) -> Cluster:
        return self.estate.cluster

    @property
    def socket(self) -> Path:
        service, component = self.estate.parts()
        return socket_path(self.estate.state, service.name, component.name)

    @contextmanager
    def helper(
        self,
        *,
        account: processes.Account | None = None,
        program: tuple[str, ...] = PROGRAM,
        variables: dict[str, str] | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run the helper for the block and end it with SIGTERM, unless it has ended already."""
        words = [*program, "--config", str(self.estate.config), "wal", "helper", "erp"]
        with (self.estate.root / "helper.log").open("ab") as log:
            environment = processes.clean_environment(variables)
            process = processes.start(words, account=account, environment=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: helper_state(self.socket) is not None or process.poll() is not None, "the helper")
            assert process.poll() is None, self.log()
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)

    def log(self) -> str:
        path = self.estate.root / "helper.log"
        return path.read_text() if path.exists() else ""

    def archived_name(self) -> str:
        """Finish a segment, wait until PostgreSQL calls it archived, and return its name."""
        name = self.cluster.switch_wal()
        done = self.cluster.data / "pg_wal" / "archive_status" / f"{name}.done"
        wait_for(done.exists, f"{name}; server:\n{self.cluster.log_text()[-1500:]}\nhelper:\n{self.log()[-1500:]}")
        return name

    def archived(self) -> dict[str, Any]:
        """Finish a segment, wait until it is archived, and return the header of its object."""
        name = self.archived_name()
        [stored] = self.estate.repository.rglob(f"wal/*/*/{name}")
        raw = stored.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[4:8], "big")])
        back = self.estate.root / f"{name}.back"
        with self.estate.plane() as plane:
            service, component = self.estate.parts()
            archive = plane.repository.wal(plane.repository.scope(service.name, component.name))
            back.write_bytes(archive.fetch(WalFileName.parse(name), system_id=header["system_id"]))
        assert back.read_bytes() == (self.cluster.data / "pg_wal" / name).read_bytes()
        assert isinstance(header, dict)
        return header


def by_helper(header: dict[str, Any]) -> bool:
    """Tell who archived: the helper seals with the key of the day, the slow way with one in the header."""
    return "key_id" in header


@pytest.fixture(scope="module")
def site(template_cache: Path) -> Iterator[Site]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    estate = TempEstate.over(cluster)
    try:
        estate.initialise()
        cluster.configure(wal_keep_size="'64MB'")
        service, component = estate.parts()
        line = next(line for line in archive_lines(estate.estate(), service, component) if "archive_command" in line)
        cluster.configure(archive_mode="on", archive_command=line.partition(" = ")[2])
        cluster.start()
        yield Site(estate=estate)
    finally:
        maker.close()


@pytest.mark.parametrize("user", [None, "postgres"])
def test_the_server_archives_by_the_helper_of_root_and_of_its_own_user(site: Site, user: str | None) -> None:
    with site.helper(account=as_user(user) if user else None) as process:
        assert by_helper(site.archived())
        assert by_helper(site.archived())
        process.terminate()
        assert process.wait(30) == 0, site.log()
    assert not site.socket.exists()
    assert "internal error" not in site.log()


def test_check_says_whether_a_helper_runs(site: Site) -> None:
    def told() -> dict[str, str]:
        document = json.loads(site.estate.run("check", "--json").stdout)
        return next(item for item in document["checks"] if item["name"] == "erp/database: WAL helper")

    absent = told()
    assert (absent["state"], "absent, 0 ready segments" in absent["detail"]) == ("warning", True)
    with site.helper() as process:
        running = told()
    assert running["detail"] == f"running (pid {process.pid}), 0 ready segments waiting"


def test_a_helper_that_is_killed_stops_nothing_and_another_takes_over(site: Site) -> None:
    with site.helper() as process:
        assert by_helper(site.archived())
        process.kill()
        process.wait()
        assert site.socket.exists()
        assert not by_helper(site.archived())
        with site.helper():
            assert by_helper(site.archived())


LATER = [pytest.param(step, marks=pytest.mark.long) for step in ("/wal/ after", "keys/ before")]


@pytest.mark.parametrize("step", ["/wal/ before", "keys/ after", *LATER])
def test_a_helper_that_is_killed_at_any_step_of_a_segment_loses_nothing(site: Site, tmp_path: Path, step: str) -> None:
    driver = tmp_path / "dying.py"
    driver.write_text(DYING)
    variables = {"PYTHONPATH": str(ROOT), "DIES": step}
    with site.helper(program=(sys.executable, str(driver)), variables=variables) as process:
        header = site.archived()
        assert process.wait(30) == -signal.SIGKILL
        assert by_helper(header) == (step == "/wal/ after")


@pytest.mark.long  # the client's patience
def test_a_helper_that_is_stopped_by_sigstop_is_waited_for_for_seconds_only(site: Site) -> None:
    with site.helper() as process:
        assert by_helper(site.archived())
        process.send_signal(signal.SIGSTOP)
        assert not by_helper(site.archived())
        process.send_signal(signal.SIGCONT)
        assert by_helper(site.archived())


def test_a_changed_configuration_is_in_force_a_moment_later(site: Site) -> None:
    with site.helper():
        assert by_helper(site.archived())
        site.estate.config.write_text(site.estate.config.read_text() + "\n")
        wait_for(lambda: "a changed configuration is in force" in site.log(), "the helper to see it")
        wait_for(lambda: helper_state(site.socket) is not None, "the helper to serve again")
        assert by_helper(site.archived())
        assert len(list((site.estate.repository / "keys").rglob("*.age"))) >= 2


def test_the_slow_way_asks_the_helper_unless_told_not_to(site: Site) -> None:
    with site.helper():
        site.archived()
        site.cluster.sql("alter system set archive_command = ''")
        site.cluster.sql("select pg_reload_conf()")
        try:
            segment = site.cluster.data / "pg_wal" / site.cluster.switch_wal()
            first = site.estate.json("wal", "push", "--service", "erp", segment)
            second = site.estate.json("wal", "push", "--without-helper", "--service", "erp", segment)
        finally:
            site.cluster.sql("alter system reset archive_command")
            site.cluster.sql("select pg_reload_conf()")
    assert (first["outcome"], second["outcome"]) == ("durable", "already there")


def test_t16_t18_the_client_never_ends_with_more_than_125_nor_with_0_for_what_is_not_archived(
    site: Site, tmp_path: Path
) -> None:
    service, component = site.estate.parts()
    line = next(line for line in archive_lines(site.estate.estate(), service, component) if "archive_command" in line)
    words = shlex.split(line.partition(" = ")[2].strip("'").replace("''", "'"))[:-1]
    lie = tmp_path / "000000010000000000000009"
    lie.write_bytes(b"no segment")
    for ending in ([str(lie)], [str(tmp_path / "missing")], [], [str(lie), "more"]):
        done = subprocess.run([*words, *ending], capture_output=True, check=False, env={}, timeout=60)
        assert (done.returncode, b"error" in done.stderr) == (1, True), done.stderr
    assert list(tmp_path.iterdir()) == [lie]


# --- the node's -------------------------------------------------------------------------------------------------


@contextmanager
def hosted(site: Site) -> Iterator[Companions]:
    """Keep the helpers of a host for the block, as its node does."""
    helpers = Companions(HELPING, estate=site.estate.estate, host="db1", log_level="info", first_seconds=0.0)
    helpers.start()
    try:
        wait_for(lambda: helper_state(site.socket) is not None, "the helper of the node")
        yield helpers
    finally:
        helpers.stop()


def test_a_node_keeps_a_helper_and_starts_it_again_when_it_was_killed(site: Site) -> None:
    with hosted(site) as helpers:
        [first] = helpers.running.values()
        assert by_helper(site.archived())
        os.kill(first, signal.SIGKILL)
        assert not by_helper(site.archived())
        wait_for(lambda: helper_state(site.socket) is not None, "another helper")
        assert by_helper(site.archived())
        assert first not in helpers.running.values()
    assert helpers.running == {}
    assert helper_state(site.socket) is None


def test_a_node_leaves_a_component_to_a_helper_that_is_there(site: Site) -> None:
    with site.helper() as process, hosted(site) as helpers:
        time.sleep(0.3)
        assert helpers.running == {}
        assert process.poll() is None


def test_a_helper_ends_with_the_node_that_started_it_however_that_ends(site: Site) -> None:
    with hosted(site) as helpers:
        [helper] = helpers._companions.values()
        assert helper.process is not None
        assert helper.process.stdin is not None
        helper.process.stdin.close()  # what becomes of it when a node is killed
        assert helper.process.wait(30) == 0


# --- fetching ahead ---------------------------------------------------------------------------------------------


@contextmanager
def following(site: Site, data: Path) -> Iterator[Callable[[str], int]]:
    """Run the restore_command that `check` prints as a server in ``data`` does; ends the process that fetches ahead."""
    service, component = site.estate.parts()
    system_id = str(read_control_file(site.cluster.data).system_id)
    line = restore_line(site.estate.estate(), service, component, system_id)
    command = line.partition(" = ")[2].strip("'").replace("''", "'").replace("%p", "RECOVERYXLOG")

    def ask(name: str) -> int:
        words = ["/bin/sh", "-c", command.replace("%f", name)]
        return subprocess.run(words, cwd=data, check=False, capture_output=True, env={}, timeout=60).returncode

    try:
        yield ask
    finally:
        for about in spool_path(site.estate.state, service.name, component.name).glob("*/about"):
            os.kill(int(about.read_text().splitlines()[2]), signal.SIGTERM)
            wait_for(lambda: not about.exists(), "the spool to be gone")  # noqa: B023 - called at once


def test_t27_what_follows_is_fetched_ahead_and_absence_and_errors_keep_their_statuses(
    site: Site, tmp_path: Path
) -> None:
    with site.helper():
        names = [site.archived_name() for _ in range(4)]
    with following(site, tmp_path) as ask:
        assert ask(names[0]) == 0
        service, component = site.estate.parts()
        spool = spool_path(site.estate.state, service.name, component.name)
        wait_for(lambda: list(spool.glob(f"*/{names[3]}.*")), "what follows")
        moved = {path.name[:24]: path.stat().st_ino for path in spool.glob("*/0*")}
        for name in names[1:]:
            assert ask(name) == 0
            placed = tmp_path / "RECOVERYXLOG"
            assert placed.read_bytes() == (site.cluster.data / "pg_wal" / name).read_bytes()
            if placed.stat().st_dev == spool.stat().st_dev:
                assert placed.stat().st_ino == moved[name], "it was fetched ahead"
        assert ask(f"{int(names[-1], 16) + 1:024X}") == 1
        shutil.move(site.estate.repository, f"{site.estate.repository}.away")
        try:
            assert ask(f"{int(names[-1], 16) + 1:024X}") == 127
        finally:
            shutil.move(f"{site.estate.repository}.away", site.estate.repository)


@pytest.mark.long
def test_a_standby_follows_the_archive_by_what_is_fetched_ahead(site: Site) -> None:
    follower = Cluster(root=site.cluster.root / "follower", bin=site.cluster.bin, data=site.cluster.root / "standby")
    copy = ("-D", follower.data, "-X", "none", "-h", site.cluster.sock, "-U", "postgres")
    done = site.cluster.run("pg_basebackup", *copy)
    assert done.status == 0, done.stderr
    site.cluster.sql("create table followed as select i from generate_series(1, 200000) i")
    site.archived_name()
    service, component = site.estate.parts()
    system_id = str(read_control_file(site.cluster.data).system_id)
    name, _, line = restore_line(site.estate.estate(), service, component, system_id).partition(" = ")
    follower.configure(**{name: line, "archive_mode": "off"})
    (follower.data / "standby.signal").touch()
    follower.sock.mkdir(parents=True)
    for folder in (follower.root, follower.data):
        hand_over(folder)
    with following(site, follower.data):
        follower.start()
        try:
            wait_for(lambda: follower.value("select to_regclass('followed') is not null"), "the table")
            assert follower.value("select count(*) from followed") == 200000
        finally:
            follower.stop()
    assert "exit code 127" not in follower.log_text()
    assert follower.log_text().count("restored log file") > 10
