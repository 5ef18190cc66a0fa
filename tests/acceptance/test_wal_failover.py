"""Two standbys of one primary that follow the archive alone: one is promoted, the other goes on with it."""

from __future__ import annotations

import os
import signal

import pytest

from drservice.components.postgres.controlfile import read_control_file
from drservice.operations.healthwal import restore_line
from tests.acceptance.test_wal_helper import Site, following, site
from tests.doubles.cluster import Cluster, hand_over
from tests.doubles.estate import wait_for

__all__ = ["site"]


@pytest.mark.long
def test_t27_a_standby_that_hears_late_of_a_failover_goes_on_with_the_new_primary(site: Site) -> None:
    """It asks for a segment of the timeline that was left, when history and WAL of the new one are archived already."""
    with site.helper():
        site.cluster.sql("create table followed (i int)")
        site.archived_name()
        promoted, late = standby(site, "promoted", archive_mode="on"), standby(site, "late", archive_mode="off")
        behind = f"{int(site.archived_name(), 16) + 1:024X}"
        with following(site, late.data), following(site, promoted.data):
            for server in (promoted, late):
                server.start()
            try:
                for server in (promoted, late):
                    wait_for(lambda: f"{behind} is not in" in server.log_text(), "the end of the archive", 60)  # noqa: B023 - called at once
                site.cluster.kill9()
                known = late.log_text().count("00000002.history is not in")
                wait_for(lambda: late.log_text().count("00000002.history is not in") > known + 1, "two looks", 60)
                stopped = late.children()  # between two looks, of which the next begins with the segment
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                promoted.sql("select pg_promote(true, 60)")
                for _ in range(2):
                    promoted.sql("insert into followed values (1)")
                    promoted.switch_wal()
                wait_for(lambda: len(list(site.estate.repository.rglob("wal/*/00000002/*"))) >= 3, "its WAL", 60)
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
                wait_for(lambda: late.value("select count(*) from followed") == 2, late.log_text(), 60)
            finally:
                promoted.stop()
                late.stop("immediate")


def standby(site: Site, name: str, *, archive_mode: str) -> Cluster:
    """Make a standby that restores by the line that `check` prints."""
    made = Cluster(root=site.cluster.root / name, bin=site.cluster.bin, data=site.cluster.root / f"{name}-data")
    done = site.cluster.run("pg_basebackup", "-D", made.data, "-X", "none", "-h", site.cluster.sock, "-U", "postgres")
    assert done.status == 0, done.stderr
    service, component = site.estate.parts()
    system_id = str(read_control_file(site.cluster.data).system_id)
    setting, _, line = restore_line(site.estate.estate(), service, component, system_id).partition(" = ")
    made.configure(**{setting: line, "archive_mode": archive_mode, "wal_retrieve_retry_interval": "'5s'"})
    (made.data / "standby.signal").touch()
    made.sock.mkdir(parents=True)
    for folder in (made.root, made.data):
        hand_over(folder)
    return made
