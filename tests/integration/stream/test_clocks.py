"""A server whose clock jumps while it is streamed, by a real one whose system calls tell another time."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest

from drservice.model.wal import Timeline
from drservice.operations.streamstate import StreamPhase
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.doubles.walstreams import StreamWorld

_SHIFT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long long *shift;
static long long seconds(void) {
    if (!shift) {
        int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
        void *made = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
        if (file < 0 || made == MAP_FAILED) abort();
        shift = made;
        close(file);
    }
    return *shift;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    long status = syscall(SYS_clock_gettime, id, now);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return (int)status;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftedClock:
    """What a server's processes take for the time; all of them from the next look on."""

    file: Path

    @classmethod
    def under(cls, cluster: Cluster) -> Self:
        """Make a server ask a clock that can be shifted, from its next start on."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler for the clock")
        source, library = cluster.root / "shift.c", cluster.root / "shift.so"
        source.write_text(_SHIFT)
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        made = cls(file=cluster.root / "shift")
        made.set(timedelta(0))
        programs = cluster.root / "bin"
        programs.mkdir()
        for program in cluster.bin.iterdir():
            (programs / program.name).symlink_to(program)
        (programs / "postgres").unlink()
        (programs / "postgres").write_text(
            f'#!/bin/sh\nLD_PRELOAD={library} CLOCK_SHIFT={made.file} exec {cluster.bin}/postgres "$@"\n'
        )
        (programs / "postgres").chmod(0o755)
        cluster.bin = programs
        return made

    def set(self, shift: timedelta) -> None:
        """Show another time."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("q", int(shift.total_seconds())))


@pytest.mark.long
@pytest.mark.parametrize("jump", [timedelta(hours=3), timedelta(hours=-3)], ids=["ahead", "back"])
def test_a_servers_clock_that_jumps_costs_nothing_and_what_is_shown_is_true_again_with_the_next_answer(
    clusters: ClusterMaker, tmp_path: Path, jump: timedelta
) -> None:
    cluster = clusters.make(wal_segment_mb=1, settings={"autovacuum": "off"})
    clock = ShiftedClock.under(cluster)
    cluster.start()
    world = StreamWorld.create(tmp_path, cluster)
    here = world.site.clock
    with world.receiver() as running:
        begin = running.wait_durable(world.write(1500)).durable_lsn
        assert begin is not None
        before = world.flushed()
        clock.set(jump)
        assert abs(cluster.value("select clock_timestamp()") - here.now() - jump) < timedelta(minutes=1)
        told = len(running.states)
        running.wait_durable(world.write(1500))
        end = world.write(1500)
        running.wait_durable(end)
        state = running.wait(
            lambda s: (
                s.state is StreamPhase.STREAMING
                and s.server_time is not None
                and abs(s.server_time - here.now() - jump) < timedelta(minutes=1)
                and s.seconds_at_risk is not None
                and s.seconds_at_risk < 5
            ),
            "what is shown to be true",
        )
        assert state.problem is None
        assert all(s.seconds_at_risk is None or s.seconds_at_risk >= 0 for s in running.states[told:])
    world.require_stored(begin, end)
    size, clocks = world.segment_bytes, world.site.repository().clocks(world.site.scope)
    pairs = [
        pair
        for number in range(before.value // size, end.value // size)
        for pair in clocks.read(system_id=world.system_id, timeline=Timeline(1), segment=number, segment_bytes=size)
        if pair.lsn > before
    ]
    assert pairs, "a search for an instant is led by the new clock at once"
    assert all(abs(pair.server_time - here.now() - jump) < timedelta(minutes=1) for pair in pairs)
