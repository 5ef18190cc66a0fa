"""Each limit is broken for real: what one process may not is refused, what the whole may not ends the environment."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from drservice.environments import folder
from drservice.environments.interface import EnvironmentState
from drservice.environments.limits import LimitKind, Limits
from drservice.environments.sandbox import Sandbox, open_sandbox
from drservice.errors import EnvironmentLimitError
from tests.contract.env_fixtures import (
    LONG,
    assert_nothing_left,
    eventually,
    init_cluster,
    make_sandbox,
    postgres_argv,
    ready,
    root_of,
)

_FILL = """
do $$ begin
  create unlogged table filler (x text);
  for n in 1..1000 loop
    insert into filler select repeat('x', 1000) from generate_series(1, 200);
    commit;
    perform pg_sleep(0.002);
  end loop;
end $$
"""

Make = Callable[..., Sandbox]
MIB = 1 << 20
KILLED = 137

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    def run(limits: Limits | None = None, *, lives: timedelta = LONG, below: Path = tmp_path) -> Sandbox:
        return make_sandbox(below / "environments", limits=limits, lives=lives)

    yield run
    for root in folder.folders(tmp_path / "environments"):
        open_sandbox(root).destroy()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", str(place)], check=True)
    yield place
    for root in folder.folders(place / "environments"):
        open_sandbox(root).destroy()
    subprocess.run(["umount", str(place)], check=True)


def perl(program: str) -> list[str]:
    return ["/usr/bin/perl", "-e", f"$SIG{{INT}} = 'IGNORE'; {program}"]


def holding(mebibytes: int) -> str:
    return f"my $x = 'x' x ({mebibytes} << 20); sleep 600;"


def assert_ended(sandbox: Sandbox, limit: LimitKind, *, seconds: float = 10.0) -> None:
    """Nothing runs any more, and everybody who asks is told why."""
    eventually(lambda: sandbox.describe().broken_limit is not None, seconds=seconds)
    about = sandbox.describe()
    assert about.broken_limit is not None
    assert about.broken_limit.limit is limit
    assert about.state is EnvironmentState.STOPPED
    assert not sandbox.running()
    assert sandbox.measure().processes == 0
    for ask in (
        sandbox.require_within_limits,
        sandbox.require_own_socket,
        lambda: sandbox.start(["sleep", "600"]),
        lambda: sandbox.execute(["true"], timeout_seconds=5),
        open_sandbox(about.path).require_within_limits,
    ):
        with pytest.raises(EnvironmentLimitError) as caught:
            ask()
        assert about.broken_limit.detail in caught.value.message
    sandbox.destroy()
    assert_nothing_left(about.path)


def test_processes_that_share_out_the_memory_among_them_end_the_environment(make: Make) -> None:
    sandbox = make(Limits(memory_bytes=200 * MIB))
    sandbox.start(perl(f"for (1..3) {{ if (!fork) {{ {holding(90)} }} }} sleep 600;"))
    eventually(lambda: not sandbox.running())
    assert sandbox.exit_status() == KILLED
    assert_ended(sandbox, LimitKind.MEMORY)


def test_memory_file_systems_count_as_memory(make: Make) -> None:
    sandbox = make(Limits(memory_bytes=100 * MIB))
    sandbox.start(["sh", "-c", "head -c 70M /dev/zero > /tmp/a; head -c 70M /dev/zero > /dev/shm/b; sleep 600"])
    assert_ended(sandbox, LimitKind.MEMORY)


def test_memory_that_processes_share_counts_once(make: Make) -> None:
    sandbox = make(Limits(memory_bytes=200 * MIB))
    sandbox.start(perl("my $x = 'x' x (60 << 20); for (1..6) { if (!fork) { sleep 600 } } sleep 600;"))
    eventually(lambda: (sandbox.measure().peak_memory_bytes or 0) > 60 * MIB)
    time.sleep(1.0)
    assert sandbox.running()
    assert (sandbox.measure().peak_memory_bytes or 0) < 200 * MIB


def test_a_program_beside_the_server_counts_and_its_caller_is_told(make: Make) -> None:
    sandbox = make(Limits(memory_bytes=100 * MIB))
    sandbox.start(["sleep", "600"])
    with pytest.raises(EnvironmentLimitError, match="bytes of memory are used"):
        sandbox.execute(
            ["sh", "-c", "head -c 90M /dev/zero > /tmp/a; head -c 90M /dev/zero > /dev/shm/b; sleep 60"],
            timeout_seconds=30,
        )
    assert_ended(sandbox, LimitKind.MEMORY)


@pytest.mark.parametrize(
    "program", ["while :; do :; done", "while :; do perl -e 'for (1..1e6) {}'; done"], ids=["one", "many short ones"]
)
def test_processor_time_has_an_end(make: Make, program: str) -> None:
    sandbox = make(Limits(cpu_seconds=1))
    sandbox.start(["sh", "-c", f"trap '' INT; {program}"])
    eventually(lambda: not sandbox.running(), seconds=30)
    assert (sandbox.measure().cpu_ms or 0) >= 1000
    assert_ended(sandbox, LimitKind.CPU)


def test_a_sleeping_server_uses_no_processor_time(make: Make) -> None:
    sandbox = make(Limits(cpu_seconds=1))
    sandbox.start(["sleep", "600"])
    time.sleep(1.5)
    assert sandbox.running()
    assert (sandbox.measure().cpu_ms or 0) < 500


def test_many_files_break_the_bound_of_the_disk(make: Make) -> None:
    sandbox = make(Limits(disk_bytes=40 * MIB))
    sandbox.start(["sh", "-c", "n=0; while :; do n=$((n+1)); head -c 4M /dev/zero > /env/data/$n; sleep 0.1; done"])
    assert_ended(sandbox, LimitKind.DISK, seconds=20)


def test_one_file_beyond_the_bound_of_the_disk_is_refused(make: Make) -> None:
    sandbox = make(Limits(disk_bytes=4 * MIB))
    finished = sandbox.execute(
        perl(
            "$SIG{XFSZ} = 'IGNORE'; open F, '>', '/env/log/a'; for (1..9) { syswrite(F, 'x' x 1e6) or die qq($!\\n) }"
        ),
        timeout_seconds=10,
    )
    assert finished.last_line() == "File too large"


@as_root
def test_a_full_disk_ends_the_environment_and_leaves_the_host_its_reserve(make: Make, small_disk: Path) -> None:
    sandbox = make(Limits(reserve_bytes=40 * MIB), below=small_disk)
    sandbox.start(["sh", "-c", "while :; do head -c 1M /dev/zero >> /env/wal/a; sleep 0.005; done"])
    eventually(lambda: not sandbox.running())
    with pytest.raises(EnvironmentLimitError, match=f"{40 * MIB} must stay free"):
        sandbox.require_within_limits()
    facts = os.statvfs(small_disk)
    assert facts.f_bavail * facts.f_frsize > 20 * MIB
    assert_ended(sandbox, LimitKind.SPACE)


@as_root
def test_postgresql_that_fills_the_disk_ends_with_the_reason_on_record(make: Make, small_disk: Path) -> None:
    sandbox = make(Limits(reserve_bytes=30 * MIB), below=small_disk)
    init_cluster(sandbox)
    sandbox.start(postgres_argv("max_wal_size=32MB", "min_wal_size=32MB"))
    eventually(lambda: ready(sandbox))
    with psycopg.connect(sandbox.dsn, autocommit=True) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute(_FILL)
    assert_ended(sandbox, LimitKind.SPACE)


def test_an_environment_ends_by_itself_when_its_life_is_over(make: Make) -> None:
    sandbox = make(lives=timedelta(seconds=4))
    init_cluster(sandbox)
    sandbox.start(postgres_argv())
    eventually(lambda: not sandbox.running(), seconds=10)
    assert sandbox.exit_status() == 0
    assert "database system is shut down" in sandbox.server_log()
    assert_ended(sandbox, LimitKind.LIFETIME)


@pytest.mark.long
def test_a_server_that_does_not_want_to_end_is_killed_when_its_life_is_over(make: Make) -> None:
    sandbox = make(lives=timedelta(seconds=1))
    sandbox.start(perl("sleep 600"))
    eventually(lambda: not sandbox.running(), seconds=20)
    assert sandbox.exit_status() == KILLED
    assert_ended(sandbox, LimitKind.LIFETIME)


def test_what_is_nice_is_the_first_to_die_when_the_host_runs_out_of_memory(make: Make) -> None:
    sandbox = make(Limits(niceness=10))
    finished = sandbox.execute(["sh", "-c", "nice; cat /proc/self/oom_score_adj"], timeout_seconds=5)
    assert finished.stdout.split() == [str(min(19, os.nice(0) + 10)).encode(), b"500"]


def test_what_was_not_measured_is_unknown_and_what_was_is_not(make: Make) -> None:
    sandbox = make()
    before = sandbox.measure()
    assert (before.peak_memory_bytes, before.cpu_ms, before.processes) == (None, None, 0)
    init_cluster(sandbox)
    sandbox.start(postgres_argv())
    eventually(lambda: ready(sandbox))
    sandbox.folder("documents").joinpath("a").write_bytes(b"x" * MIB)
    eventually(lambda: (sandbox.measure().peak_memory_bytes or 0) > 5 * MIB)
    usage = sandbox.measure()
    assert usage.processes is not None
    assert usage.processes >= 5
    assert usage.cpu_ms is not None
    assert usage.data_bytes is not None
    assert usage.data_bytes > 20 * MIB
    assert usage.files_bytes is not None
    assert MIB <= usage.files_bytes < 2 * MIB
    sandbox.stop()
    ended = sandbox.measure()
    assert ended.cpu_ms is not None
    assert ended.cpu_ms > 0
    sandbox.destroy()
    gone = sandbox.measure()
    assert (gone.peak_memory_bytes, gone.data_bytes, gone.wal_bytes, gone.files_bytes, gone.log_bytes) == (None,) * 5


def test_a_restart_adds_to_what_was_used_before(make: Make) -> None:
    sandbox = make()
    for _ in range(2):
        sandbox.start(["perl", "-e", "my $t = times; while (times - $t < 0.3) {}"])
        eventually(lambda: not sandbox.running())
        sandbox.exit_status()
    assert (sandbox.measure().cpu_ms or 0) >= 600


def test_a_tree_as_deep_as_something_hostile_makes_it_is_removed(make: Make) -> None:
    sandbox = make()
    root = root_of(sandbox)
    finished = sandbox.execute(
        ["perl", "-e", "chdir '/env/data'; for (1..5000) { mkdir 'd'; chdir 'd' or die $! }"], timeout_seconds=30
    )
    assert finished.status == 0
    assert sandbox.measure().data_bytes is not None
    sandbox.destroy()
    assert_nothing_left(root)
