"""What PostgreSQL relies on when it calls `wal push` and `wal fetch`: exit statuses, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drservice import processes
from tests.acceptance.conftest import World
from tests.doubles.estate import PROGRAM, copy_tree, tree, wait_for

SEGMENT = 1 << 20
ROOT = Path(__file__).parents[2]

# The program, with an object store that fails in a chosen way; everything else is the real thing.
DRIVER = """
import os, sys, time
from drservice.cli.main import run
from drservice.errors import StoreDeniedError, StoreUnreachableError
from drservice.wiring import opener
from tests.doubles.stores import Fault, FaultyStore, MissingStore, SlowStore, When, truncating_store

def fail(error):
    def wait(operation):
        if operation in {"stat", "read_versions"}:
            raise error
    return wait

def hang(operation):
    if operation in {"stat", "read_versions"}:
        open(os.environ["HANGS"], "w").close()
        time.sleep(600)

class NotListed(MissingStore):
    "Objects are there, and every listing lacks them."
    def _require(self, key): pass
    def read_versions(self, key): return self._inner.read_versions(key)

in_wal = lambda key: "/wal/" in key
FAULTS = {
    "denied": lambda store: SlowStore(store, wait=fail(StoreDeniedError("403"))),
    "timeout": lambda store: SlowStore(store, wait=fail(StoreUnreachableError("timed out"))),
    "defect": lambda store: SlowStore(store, wait=fail(KeyError("a defect"))),
    "out of memory": lambda store: SlowStore(store, wait=fail(MemoryError())),
    "cut listing": lambda store: FaultyStore(store, Fault(at=1, operations={"list"}, when=When.AFTER, times=9)),
    "stale listing": lambda store: NotListed(store, chooses=in_wal),
    "truncated body": lambda store: truncating_store(store, chooses=in_wal, lost_bytes=1000),
    "hang": lambda store: SlowStore(store, wait=hang),
    "none": lambda store: store,
}
real = opener.open_store
opener.open_store = lambda url, **how: FAULTS[os.environ["FAULT"]](real(url, **how))
sys.exit(run(sys.argv[1:]))
"""


def fetching(world: World, driver: Path, fault: str, name: str, destination: Path) -> tuple[list[str], dict[str, str]]:
    """Return the words of a `wal fetch` with a failing store, and its environment."""
    words = [sys.executable, str(driver), "--config", str(world.estate.config), "wal", "fetch", name, str(destination)]
    variables = {"PYTHONPATH": str(ROOT), "FAULT": fault, "HANGS": str(driver.with_suffix(".hangs"))}
    return words, processes.clean_environment(variables)


def restore_command(words: list[str]) -> list[str]:
    """Wrap `wal fetch` in the shell line of the design, as PostgreSQL runs it."""
    line = f"{shlex.join(words)}; s=$?; case $s in 0) exit 0;; 44) exit 1;; *) exit 127;; esac"
    return ["/bin/sh", "-c", line]


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    return path


def segments(world: World) -> list[str]:
    """Return the names of the archived segments, oldest first."""
    return sorted(path.name for path in world.estate.repository.rglob("wal/*/*/*") if len(path.name) == 24)


def after(name: str, count: int = 1) -> str:
    return f"{int(name, 16) + count:024X}"


# --- fetch ------------------------------------------------------------------------------------------------------


def test_t27_fetch_places_the_very_bytes_or_proves_absence(world: World, driver: Path, tmp_path: Path) -> None:
    last = segments(world)[-1]
    destination = tmp_path / "RECOVERYXLOG"
    for name, inner, outer in ((last, 0, 0), (after(last), 44, 1), ("00000007.history", 44, 1)):
        words, environment = fetching(world, driver, "none", name, destination)
        assert subprocess.run(words, env=environment, check=False, capture_output=True).returncode == inner
        shell = subprocess.run(restore_command(words), env=environment, check=False, capture_output=True)
        assert shell.returncode == outer
        if inner == 0:
            assert destination.stat().st_size == SEGMENT
            destination.unlink()
    assert list(tmp_path.glob("*RECOVERYXLOG*")) == []


FAULTS = (
    "denied", "timeout", "defect", "out of memory", "cut listing", "truncated body",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_t27_t28_an_error_is_never_the_end_of_wal_and_leaves_nothing_at_the_destination(
    world: World, driver: Path, tmp_path: Path, fault: str
) -> None:
    """A cut listing meets a name that is proven absent otherwise; all others a segment that is there."""
    last = segments(world)[-1]
    name = after(last) if fault == "cut listing" else last
    destination = tmp_path / "RECOVERYXLOG"
    words, environment = fetching(world, driver, fault, name, destination)
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 127, done.stderr
    assert "Traceback" not in done.stderr
    assert subprocess.run(restore_command(words), env=environment, check=False, capture_output=True).returncode == 127
    assert list(tmp_path.glob("*RECOVERYXLOG*")) == []


def test_t27_a_lagging_listing_hides_neither_a_segment_nor_a_hole(world: World, driver: Path, tmp_path: Path) -> None:
    last = segments(world)[-1]
    destination = tmp_path / "RECOVERYXLOG"
    words, environment = fetching(world, driver, "stale listing", last, destination)
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert destination.stat().st_size == SEGMENT
    folder = copy_tree(world.estate.repository, world.cluster.root / f"repository-{tmp_path.name}")
    [hole] = folder.rglob(world.middle)
    hole.unlink()
    config = world.another_machine(f"stale-{tmp_path.name}", url=f"file://{folder}")
    words[words.index(str(world.estate.config))] = str(config)
    words[-2:] = [world.middle, str(destination)]
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, "DR213" in done.stderr) == (127, True), done.stderr


def test_t27_a_hole_is_127(world: World, tmp_path: Path) -> None:
    folder = copy_tree(world.estate.repository, world.cluster.root / f"repository-{tmp_path.name}")
    [hole] = folder.rglob(world.middle)
    hole.unlink()
    config = world.another_machine(f"hole-{tmp_path.name}", url=f"file://{folder}")
    destination = tmp_path / "RECOVERYXLOG"
    done = world.estate.run("wal", "fetch", world.middle, destination, "--json", config=config)
    assert done.status == 127
    assert json.loads(done.stdout)["error"]["code"] == "DR213"
    assert not destination.exists()


@pytest.mark.parametrize("how", ["kill -9", "not installed", "a broken installation", "no configuration"])
def test_t27_a_program_that_dies_is_127_for_postgresql(world: World, driver: Path, tmp_path: Path, how: str) -> None:
    last = segments(world)[-1]
    words, environment = fetching(world, driver, "hang", last, tmp_path / "RECOVERYXLOG")
    if how == "not installed":
        words[0] = str(tmp_path / "nowhere")
    elif how == "a broken installation":
        driver.write_text("import no_such_module_anywhere\n")  # the interpreter itself exits 1
    elif how == "no configuration":
        words[words.index(str(world.estate.config))] = str(tmp_path / "none.yaml")
    shell = subprocess.Popen(restore_command(words), env=environment, stderr=subprocess.DEVNULL)
    if how == "kill -9":
        wait_for(Path(environment["HANGS"]).exists, "the program to hang")
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGKILL)
    assert shell.wait(60) == 127
    assert list(tmp_path.glob("*RECOVERYXLOG*")) == []


def test_t28_a_destination_that_cannot_be_written_is_127_and_what_is_there_is_replaced_whole_or_not_at_all(
    world: World, tmp_path: Path
) -> None:
    last = segments(world)[-1]
    assert world.estate.run("wal", "fetch", last, tmp_path / "no" / "where").status == 127
    destination = tmp_path / "RECOVERYXLOG"
    destination.write_bytes(b"half of another")
    assert world.estate.run("wal", "fetch", after(last), destination).status == 44
    assert destination.read_bytes() == b"half of another"
    assert world.estate.run("wal", "fetch", last, destination).status == 0
    assert destination.stat().st_size == SEGMENT


# --- push -------------------------------------------------------------------------------------------------------


def pushable(world: World, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a repository without its last segment, its configuration, and that segment as a plain file."""
    last = segments(world)[-1]
    segment = tmp_path / last
    assert world.estate.run("wal", "fetch", last, segment).status == 0
    folder = copy_tree(world.estate.repository, world.cluster.root / f"repository-{tmp_path.name}")
    [stored] = folder.rglob(last)
    stored.unlink()
    config = world.estate.write_configuration(
        world.cluster.root / f"{tmp_path.name}.yaml", url=f"file://{folder}", identity=None
    )
    return folder, config, segment


def pushing(config: Path, segment: Path) -> subprocess.Popen[bytes]:
    words = [*PROGRAM, "--config", str(config), "wal", "push", "--service", "erp", str(segment)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=processes.clean_environment())


def altered(segment: Path, folder: Path) -> Path:
    """Write the same segment with one byte of its contents changed; its headers stay right."""
    folder.mkdir()
    content = bytearray(segment.read_bytes())
    content[5000] ^= 0xFF
    (folder / segment.name).write_bytes(content)
    return folder / segment.name


def test_t16_identical_is_0_different_is_not_and_nothing_is_overwritten(world: World, tmp_path: Path) -> None:
    folder, config, segment = pushable(world, tmp_path)
    other = altered(segment, tmp_path / "other")
    outcomes = []
    for path in (segment, segment, other, segment):
        done = world.estate.run("wal", "push", "--service", "erp", path, "--json", config=config)
        document = json.loads(done.stdout)
        outcomes.append((done.status, document.get("outcome") or document["error"]["code"]))
        [stored] = folder.rglob(segment.name)
        if len(outcomes) == 1:
            first = stored.read_bytes()
        assert stored.read_bytes() == first
    assert outcomes == [(0, "stored"), (0, "already there"), (1, "DR210"), (0, "already there")]
    back = tmp_path / "back"
    reader = world.another_machine(f"r-{tmp_path.name}", url=f"file://{folder}")
    assert world.estate.run("wal", "fetch", segment.name, back, config=reader).status == 0
    assert back.read_bytes() == segment.read_bytes()


def test_t16_of_many_that_push_at_once_all_identical_ones_succeed(world: World, tmp_path: Path) -> None:
    folder, config, segment = pushable(world, tmp_path)
    together = [pushing(config, segment) for _ in range(4)]
    assert [process.wait(60) for process in together] == [0, 0, 0, 0], [p.stderr.read() for p in together if p.stderr]
    for process in together:
        process.communicate()
    assert len(list(folder.rglob(f"{segment.name}*"))) == 1


def test_t16_of_two_different_ones_at_once_exactly_one_succeeds_and_is_what_is_archived(
    world: World, tmp_path: Path
) -> None:
    folder, config, segment = pushable(world, tmp_path)
    other = altered(segment, tmp_path / "other")
    race = {path: pushing(config, path) for path in (segment, other)}
    statuses = {path: process.wait(60) for path, process in race.items()}
    for process in race.values():
        process.communicate()
    assert sorted(statuses.values()) == [0, 1]
    [winner] = [path for path, status in statuses.items() if status == 0]
    reader = world.another_machine(f"r-{tmp_path.name}", url=f"file://{folder}")
    back = tmp_path / "back"
    assert world.estate.run("wal", "fetch", segment.name, back, config=reader).status == 0
    assert back.read_bytes() == winner.read_bytes()


def test_t17_t18_what_cannot_be_archived_is_1_and_leaves_no_object(world: World, tmp_path: Path) -> None:
    """Never more than 125: PostgreSQL would not count that as a failed attempt."""
    folder, config, segment = pushable(world, tmp_path)
    before = tree(folder)
    lies = tmp_path / "lies" / after(segment.name)
    lies.parent.mkdir()
    lies.write_bytes(segment.read_bytes())
    short = tmp_path / "short" / segment.name
    short.parent.mkdir()
    short.write_bytes(segment.read_bytes()[:-8192])
    missing = tmp_path / "missing" / segment.name
    for path in (lies, short, missing):
        began = time.monotonic()
        done = world.estate.run("wal", "push", "--service", "erp", path, config=config)
        assert done.status == 1, path
        assert time.monotonic() - began < 30
    assert world.estate.run("wal", "push", "--service", "nobody", segment, config=config).status == 1
    assert tree(folder) == before


def test_t27_a_broken_installation_is_never_the_end_of_the_wal(tmp_path: Path) -> None:
    (tmp_path / "pyrage.py").write_text('raise ImportError("half an upgrade")\n')
    (tmp_path / "pydantic.py").write_text('raise ImportError("half an upgrade")\n')
    environment = {**processes.clean_environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    segment = "000000010000000000000001"
    program = [sys.executable, "-m", "drservice", "--config", "/nowhere.yaml", "wal"]
    for words, status in (
        (["fetch", "--service", "erp", segment, str(tmp_path / segment)], 127),
        (["push", "--service", "erp", str(tmp_path / segment)], 1),
    ):
        done = subprocess.run([*program, *words], env=environment, capture_output=True, timeout=60, check=False)
        assert (done.returncode, b"half an upgrade" in done.stderr) == (status, True), done.stderr
