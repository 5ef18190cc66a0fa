"""What every kind of environment promises; one suite, run on each kind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from drservice.clock import SystemClock
from drservice.environments import folder, proc
from drservice.environments.interface import Environment, EnvironmentState
from drservice.environments.isolation import require_isolated
from drservice.environments.sandbox import Sandbox, list_sandboxes, open_sandbox, prepare_sandbox
from drservice.errors import EnvironmentFailedError, IsolationError, ProgramMissingError
from tests.contract.env_fixtures import (
    assert_nothing_left,
    eventually,
    init_cluster,
    make_sandbox,
    make_spec,
    postgres_argv,
    ready,
    root_of,
    tool,
)

Prepare = Callable[[], Sandbox]


@pytest.fixture(params=["sandbox"])
def prepare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Prepare]:
    assert request.param == "sandbox"
    made: list[Sandbox] = []

    def make() -> Sandbox:
        made.append(make_sandbox(tmp_path / "environments"))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.destroy()


@pytest.fixture
def environment(prepare: Prepare) -> Sandbox:
    return prepare()


def test_a_prepared_environment_describes_itself(environment: Sandbox) -> None:
    kept: Environment = environment
    about = kept.describe()
    assert (about.service, about.purpose, about.kind) == ("erp", "drill", "sandbox")
    assert about.state is EnvironmentState.PREPARED
    assert about.created_at <= datetime.now(UTC) < about.expires_at
    assert about.dsn == kept.dsn
    assert kept.data.is_dir()
    assert kept.wal.is_dir()
    assert not kept.running()
    assert kept.exit_status() is None
    assert kept.server_log() == ""


def test_the_isolation_self_test_passes_and_is_quick(environment: Sandbox) -> None:
    begin = time.monotonic()
    probes = environment.self_test()
    assert time.monotonic() - begin < 1.0
    require_isolated(probes)
    assert len(probes) >= 15


def test_a_server_starts_within_a_second_and_stops_in_an_orderly_way(prepare: Prepare) -> None:
    begin = time.monotonic()
    environment = prepare()
    environment.start(["sh", "-c", "trap 'echo asked; exit 7' INT; echo up; while :; do sleep 0.05; done"])
    assert time.monotonic() - begin < 1.0
    assert environment.running()
    assert environment.describe().state is EnvironmentState.RUNNING
    assert environment.exit_status() is None
    eventually(lambda: "up" in environment.server_log())
    environment.stop()
    assert not environment.running()
    assert environment.exit_status() == 7
    assert environment.server_log() == "up\nasked\n"
    assert environment.describe().state is EnvironmentState.STOPPED


def test_a_real_postgresql_is_reached_over_its_socket_from_the_host(environment: Sandbox) -> None:
    init_cluster(environment)
    environment.start(postgres_argv())
    eventually(lambda: _connects(environment))
    environment.require_own_socket()
    with psycopg.connect(environment.dsn) as connection:
        row = connection.execute("select current_setting('data_directory'), inet_server_addr()").fetchone()
    assert row == ("/env/data", None)
    environment.stop()
    assert environment.exit_status() == 0
    assert "database system is shut down" in environment.server_log()


def test_a_program_runs_beside_the_server_and_shares_its_files(environment: Sandbox) -> None:
    finished = environment.execute(["sh", "-c", "cat > /env/data/seen; exit 3"], timeout_seconds=10, stdin=b"hello")
    assert finished.status == 3
    assert (environment.data / "seen").read_bytes() == b"hello"


def test_tools_check_the_cluster_with_the_server_running_stopped_and_started_again(environment: Sandbox) -> None:
    init_cluster(environment)
    reach = ("-h", "/env/sock", "-U", "postgres")
    question = "select count(*) from pg_class where relname = 'kept'"
    for _ in range(2):
        environment.start(postgres_argv())
        eventually(lambda: ready(environment))
        made = tool(environment, "psql", *reach, "-XAtq", "-c", "create table if not exists kept (); " + question)
        assert made.stdout == b"1\n"
        checked = tool(environment, "pg_amcheck", *reach, "--install-missing", "-d", "postgres")
        assert checked.status == 0, checked
        online = tool(environment, "pg_checksums", "--check", "-D", "/env/data")
        assert online.status != 0
        assert b"cluster must be shut down" in online.stderr
        environment.stop()
        offline = tool(environment, "pg_checksums", "--check", "-D", "/env/data")
        assert offline.status == 0, offline
        assert b"Bad checksums:  0" in offline.stdout


def test_an_environment_is_ready_within_a_second(
    prepare: Prepare, record_property: Callable[[str, object], None]
) -> None:
    """Prepared and proven isolated; the bound is lenient, the figure is printed."""
    seconds: list[float] = []
    for _ in range(5):
        begin = time.monotonic()
        environment = prepare()
        require_isolated(environment.self_test())
        seconds.append(time.monotonic() - begin)
    best = min(seconds)
    record_property("sandbox_ready_ms", round(best * 1000))
    sys.stdout.write(f"sandbox ready: best of 5 {best * 1000:.0f} ms, worst {max(seconds) * 1000:.0f} ms\n")
    assert best < 1.0
    assert max(seconds) < 3.0


def test_a_program_that_does_not_end_is_killed_at_its_timeout(environment: Sandbox) -> None:
    finished = environment.execute(["sleep", "600"], timeout_seconds=0.3)
    assert finished.status == -signal.SIGKILL
    eventually(lambda: not _inside(environment))


def test_nothing_of_the_caller_is_inside(environment: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRSERVICE_TEST_SECRET", "s3cret")
    with Path("/etc/hostname").open(encoding="utf-8") as leaked:
        os.set_inheritable(leaked.fileno(), True)  # noqa: FBT003 - the os module's own signature
        finished = environment.execute(
            ["sh", "-c", "env; cat /proc/*/environ; echo; ls /proc/self/fd | wc -l; pwd; hostname"], timeout_seconds=10
        )
    text = finished.stdout.decode()
    assert "s3cret" not in text
    assert text.splitlines()[-3:] == ["4", "/", "drservice"]  # 0, 1, 2 and the one ls reads with


def test_configuration_can_be_read_but_not_written_inside(environment: Sandbox) -> None:
    path = environment.write_configuration("pg_hba.conf", "local all all trust\n")
    finished = environment.execute(["sh", "-c", f"cat {path}; echo x >> {path}"], timeout_seconds=10)
    assert finished.stdout == b"local all all trust\n"
    assert finished.status != 0


def test_a_folder_of_files_can_be_read_but_not_written_or_replaced_inside(environment: Sandbox) -> None:
    environment.start(["sleep", "600"])
    kept: Environment = environment
    documents = kept.folder("documents")  # made after the start: it appears in the running sandbox all the same
    (documents / "a").write_bytes(b"content")
    (documents / "a").chmod(0o666)
    tries = (
        "echo x >> a",
        "echo x > b",
        "rm a",
        "ln -s / link",
        "mkdir d",
        "mv ../documents ../gone",
        "rmdir ../documents",
    )
    finished = environment.execute(
        ["sh", "-c", "cd /env/files/documents && cat a; " + "".join(f"{line} && echo managed; " for line in tries)],
        timeout_seconds=10,
    )
    assert finished.stdout == b"content", finished
    assert finished.stderr.count(b"Read-only file system") == len(tries)
    assert kept.folder("documents") == documents
    assert [path.name for path in documents.iterdir()] == ["a"]


def test_a_bound_folder_of_files_is_read_only_inside_and_outlives_the_environment(tmp_path: Path) -> None:
    outside = tmp_path / "restored"
    spec = replace(make_spec(), folders={"documents": outside})
    environment = prepare_sandbox(spec, environments_dir=tmp_path / "environments", clock=SystemClock())
    try:
        assert environment.folder("documents") == outside
        assert open_sandbox(root_of(environment)).folder("documents") == outside
        (outside / "a").write_bytes(b"content")
        finished = environment.execute(
            ["sh", "-c", "touch /env/files/documents/b || ls /env/files/documents"], timeout_seconds=10
        )
        assert finished.stdout == b"a\n"
    finally:
        environment.destroy()
    assert (outside / "a").read_bytes() == b"content"


def test_a_link_in_place_of_a_folder_of_files_is_refused(environment: Sandbox, tmp_path: Path) -> None:
    (root_of(environment) / "files" / "documents").symlink_to(tmp_path)
    with pytest.raises(IsolationError, match="not a folder"):
        environment.folder("documents")


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a\n"])
def test_a_folder_name_that_leads_elsewhere_is_refused(environment: Sandbox, name: str) -> None:
    with pytest.raises(EnvironmentFailedError, match="cannot name"):
        environment.folder(name)


@pytest.mark.parametrize("name", ["../x", "etc", "", "a/b", ".hidden"])
def test_a_configuration_name_that_leads_elsewhere_is_refused(environment: Sandbox, name: str) -> None:
    with pytest.raises(EnvironmentFailedError, match="cannot name"):
        environment.write_configuration(name, "x")


def test_a_crashed_server_is_noticed_with_its_status(environment: Sandbox) -> None:
    environment.start(["sh", "-c", "echo oops >&2; kill -SEGV $$"])
    eventually(lambda: not environment.running())
    assert environment.exit_status() == 128 + signal.SIGSEGV
    assert "oops" in environment.server_log()
    environment.stop()
    assert environment.describe().state is EnvironmentState.STOPPED


def test_a_server_that_ignores_requests_is_stopped_by_force(environment: Sandbox) -> None:
    environment.start(["sh", "-c", "trap '' INT QUIT TERM; while :; do sleep 0.05; done"])
    environment.stop(timeout_seconds=0.2)
    assert not environment.running()
    assert environment.exit_status() == 128 + signal.SIGKILL
    assert environment.describe().state is EnvironmentState.STOPPED
    assert not _inside(environment)


def test_a_stopped_server_can_be_started_again_but_not_twice_at_once(environment: Sandbox) -> None:
    environment.start(["sh", "-c", "exit 5"])
    eventually(lambda: environment.exit_status() == 5)
    environment.start(["sleep", "600"])
    assert environment.running()
    assert environment.exit_status() is None
    with pytest.raises(EnvironmentFailedError, match="already"):
        environment.start(["sleep", "600"])


@pytest.mark.parametrize("program", ["no-such-program", "/opt/tool", "/usr/bin/no-such-program"])
def test_a_program_that_is_not_inside_is_named(environment: Sandbox, program: str) -> None:
    with pytest.raises(ProgramMissingError):
        environment.start([program])
    with pytest.raises(ProgramMissingError):
        environment.execute([program], timeout_seconds=5)


def test_a_link_in_place_of_the_socket_is_refused(environment: Sandbox) -> None:
    with pytest.raises(EnvironmentFailedError, match="no socket yet"):
        environment.require_own_socket()
    environment.execute(["ln", "-s", "/run/postgresql/.s.PGSQL.5432", "/env/sock/.s.PGSQL.5432"], timeout_seconds=5)
    with pytest.raises(IsolationError):
        environment.require_own_socket()


def test_two_environments_live_side_by_side(prepare: Prepare) -> None:
    first, second = prepare(), prepare()
    first.start(["sleep", "600"])
    second.start(["sleep", "600"])
    first.execute(["touch", "/env/data/mine"], timeout_seconds=5)
    assert list(second.data.iterdir()) == []
    assert {about.id for about in list_sandboxes(root_of(first).parent)} == {first.id, second.id}
    first.destroy()
    assert second.running()


def test_destroy_leaves_nothing_and_may_be_repeated(environment: Sandbox) -> None:
    root = root_of(environment)
    environment.start(["sh", "-c", "trap '' INT TERM; setsid sleep 600 & sleep 600"])
    environment.execute(
        ["sh", "-c", "mkdir -p /env/data/a/b; chmod 000 /env/data/a; ln -s / /env/wal/host"], timeout_seconds=5
    )
    environment.destroy()
    assert_nothing_left(root)
    environment.destroy()
    with pytest.raises(EnvironmentFailedError):
        open_sandbox(root)
    assert list_sandboxes(root.parent) == []


def test_one_that_goes_while_the_list_is_made_is_left_out_and_a_broken_one_is_not(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = prepare(), prepare()
    root = root_of(first)
    read = folder.read_description

    def go_first(path: Path) -> folder.Description:
        if path == root:
            (path / folder.DESCRIPTION).unlink(missing_ok=True)
        return read(path)

    about = (root / folder.DESCRIPTION).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_description", go_first)
        assert [item.id for item in list_sandboxes(root.parent)] == [second.id]
    (root / folder.DESCRIPTION).write_bytes(b"{}")
    with pytest.raises(EnvironmentFailedError, match=str(first.id)):
        list_sandboxes(root.parent)
    (root / folder.DESCRIPTION).write_bytes(about)


def _connects(environment: Sandbox) -> bool:
    try:
        psycopg.connect(environment.dsn, connect_timeout=5).close()
    except psycopg.OperationalError:
        assert environment.running(), environment.server_log()
        return False
    return True


def _inside(environment: Sandbox) -> bool:
    return bool(proc.processes_of(root_of(environment)))
