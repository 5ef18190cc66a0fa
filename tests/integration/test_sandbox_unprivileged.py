"""The same sandbox made by an ordinary user, in a user namespace."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drservice import processes

_DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from drservice.clock import SystemClock
from drservice.environments import keeper, proc
from drservice.environments.limits import Limits
from drservice.environments.sandbox import list_sandboxes, reap
from tests.contract.env_fixtures import (
    assert_nothing_left, eventually, init_cluster, make_sandbox, postgres_argv, ready, root_of, tool)

environments = Path(sys.argv[2])
sandbox = make_sandbox(environments)
root = root_of(sandbox)
begin = time.monotonic()
probes = sandbox.self_test()
seconds = time.monotonic() - begin
init_cluster(sandbox)
sandbox.start(postgres_argv())
eventually(lambda: ready(sandbox))
sandbox.require_own_socket()
status = sandbox.execute(
    ["sh", "-c", "cat /proc/1/environ /proc/self/environ; chmod 000 /env/data/pg_notify; unshare -U true"],
    timeout_seconds=10)
reach = ("-h", "/env/sock", "-U", "postgres")
tools = [tool(sandbox, "psql", *reach, "-XAtqc", "select 1").status,
    tool(sandbox, "pg_amcheck", *reach, "--install-missing", "-d", "template1").status]
documents = sandbox.folder("documents")
(documents / "a").write_text("x")
planted = sandbox.execute(["sh", "-c", "cd /env/files/documents && cat a && touch b"], timeout_seconds=10)
eventually(lambda: (sandbox.measure().peak_memory_bytes or 0) > 5 << 20)
usage = sandbox.measure()
sandbox.execute(["chmod", "700", "/env/data/pg_notify"], timeout_seconds=10)
sandbox.stop()
tools.append(tool(sandbox, "pg_checksums", "--check", "-D", "/env/data").status)
stopped = sandbox.exit_status()
sandbox.start(["sleep", "600"])
noted = json.loads((root / "keeper" / keeper.STATE).read_text())
proc.send_signal(proc.ProcessIdentity(**noted["keeper"]), signal.SIGKILL)
eventually(lambda: proc.processes_of(root) == [], seconds=5)
reaped = reap(environments, SystemClock())
assert_nothing_left(root)
bounded = make_sandbox(environments, limits=Limits(memory_bytes=100 << 20))
bounded.start(["sh", "-c", "head -c 70M /dev/zero > /tmp/a; head -c 70M /dev/zero > /dev/shm/b; sleep 600"])
eventually(lambda: bounded.describe().broken_limit is not None)
limit = bounded.describe().broken_limit.limit.value
bounded_root = root_of(bounded)
bounded.destroy()
assert_nothing_left(bounded_root)
print(json.dumps({
    "tools": tools, "limit": limit, "planted": planted.status == 0, "read": planted.stdout.decode(),
    "measured": None not in (usage.cpu_ms, usage.data_bytes, usage.files_bytes) and usage.processes >= 5,
    "uid": os.getuid(), "failed": [p.name + ": " + p.detail for p in probes if not p.isolated],
    "probes": len(probes), "seconds": seconds, "stopped": stopped, "reaped": reaped == [sandbox.id],
    "secret": "s3cret" in status.stdout.decode(),
    "nested": status.status == 0, "left": len(list_sandboxes(environments)),
}))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the user can reach (pytest's own are closed to others)."""
    account = processes.account_named("postgres")
    path = Path(tempfile.mkdtemp(prefix="drservice-test-"))
    path.chmod(0o711)
    environments = path / "environments"
    environments.mkdir()
    os.chown(environments, account.uid, account.gid)
    yield environments
    shutil.rmtree(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user the whole suite takes this path")
def test_an_ordinary_user_gets_the_same_isolation(open_folder: Path) -> None:
    account = processes.account_named("postgres")
    repository = Path(__file__).parents[2]
    allowed = processes.run(["bwrap", "--unshare-user", "--ro-bind", "/", "/", "true"], account=account)
    if allowed.status != 0:
        pytest.skip(f"no unprivileged user namespaces here: {allowed.last_line()}")
    reachable = processes.run(
        [sys.executable, "-c", "import os, sys; os.listdir(sys.argv[1])", repository], account=account
    )
    if reachable.status != 0:
        pytest.skip(f"the checkout is closed to {account.name}")
    finished = processes.run(
        [sys.executable, "-c", _DRIVER, repository, open_folder],
        account=account,
        environment=processes.clean_environment({"SECRET": "s3cret"}),
        timeout_seconds=120,
    )
    assert finished.status == 0, finished.stderr.decode()
    seen = json.loads(finished.stdout)
    assert seen.pop("seconds") < 1.0
    assert seen.pop("probes") >= 15
    assert seen == {
        "uid": account.uid, "failed": [], "stopped": 0, "reaped": True, "secret": False, "nested": False, "left": 0,
        "tools": [0, 0, 0], "limit": "memory", "planted": False, "read": "x", "measured": True,
    }  # fmt: skip
