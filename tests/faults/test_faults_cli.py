"""The same faults through the program: exit statuses, where a mistake stands, and what a signal leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drservice.repository.keys import Identities
from tests.doubles.s3server import MotoBehaviour, MotoBuckets, free_port, moto_server
from tests.faults.doomed import ROOT
from tests.faults.faultproxy import Behaviour, fault_proxy
from tests.faults.world import Site, World

CONFIGURATION = """\
version: 1
state_dir: {state}
repository:
  url: "{url}"
  recipients: [{recipient}]
  identity: file:{identity}
services:
  erp:
    components:
      database:
        kind: postgres
        dsn: "{dsn}"
        data_directory: {data}
        method: local
        wal: {{mode: archive, archive_wait: 60s}}
        workers: 1
"""
PROGRAM = (sys.executable, "-m", "drservice")


def configure(site: Site, *, url: str | None = None, text: str = CONFIGURATION) -> Path:
    """Write the configuration of a site."""
    path = site.root / "drservice.yaml"
    path.write_text(
        text.format(
            state=site.state_dir,
            url=url or site.repository_dir.as_uri(),
            recipient=Identities.load([f"file:{site.identity_file}"]).recipients[0],
            identity=site.identity_file,
            dsn=site.dsn,
            data=site.data_directory,
        )
    )
    return path


def call(
    configuration: Path, *words: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*PROGRAM, "--config", str(configuration), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )


# --- configuration ----------------------------------------------------------------------------------------

MISTAKES = {
    "unknown setting": (("state_dir:", "state_dri:"), ":2:1:"),
    "unknown method": (("method: local", "method: telepathy"), ":14:17:"),
    "bad duration": (("archive_wait: 60s", "archive_wait: soonish"), ":15:44:"),
    "no recipient": (("recipients: [{recipient}]", "recipients: [age1nobody]"), ":5:16:"),
    "a secret in the file": (("identity: file:{identity}", "identity: AGE-SECRET-KEY-1ABC"), ":6:13:"),
    "no yaml": (("  erp:", "  erp: ["), ":"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_the_configuration_is_shown_with_line_and_column(site: Site, kind: str) -> None:
    (right, wrong), place = MISTAKES[kind]
    assert right in CONFIGURATION
    path = configure(site, text=CONFIGURATION.replace(right, wrong))
    done = call(path, "backup", "erp")
    assert done.returncode == 2, done.stderr
    assert re.search(re.escape(f"{path}{place}") + (r"\d+:\d+:" if place == ":" else ""), done.stderr), done.stderr
    assert "SECRET-KEY-1ABC" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["missing", "a folder", "not readable"])
def test_a_configuration_that_cannot_be_read_is_exit_2(site: Site, kind: str) -> None:
    path = configure(site)
    if kind == "missing":
        path.unlink()
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    else:  # root reads everything, so the way there is closed by a loop
        path.unlink()
        path.symlink_to(path)
    done = call(path, "restore", "erp", "--to", "latest", "--into", site.target_dir)
    assert done.returncode == 2, done.stderr
    assert str(path) in done.stderr
    assert not site.target_dir.exists()


def test_bad_references_and_names_are_exit_2(site: Site) -> None:
    path = configure(site)
    identity = site.identity_file.read_text()
    site.identity_file.unlink()
    done = call(path, "restore", "erp", "--to", "latest", "--into", site.target_dir)
    assert done.returncode == 2, done.stderr
    assert str(site.identity_file) in done.stderr
    site.identity_file.write_text(identity)
    for words in (("backup", "payroll"), ("backup", "erp", "--component", "queue"), ("restore", "erp")):
        assert call(path, *words).returncode == 2
    site.require_sound(snapshots=2)


# --- stores -----------------------------------------------------------------------------------------------


@pytest.fixture
def read_only_bucket(site: Site) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The site's repository in a bucket whose credentials may only read: url and environment."""
    with (
        moto_server(MotoBehaviour.CONDITIONAL, MotoBuckets.PLAIN) as server,
        server.credentials(),
        fault_proxy(server.endpoint) as proxy,
    ):
        server.make_bucket("readonly")
        for object_path in site.objects():
            server.plant("readonly", site.key_of(object_path), object_path.read_bytes())
        proxy.reset(lambda method, _path, _number: Behaviour.DENIED if method in {"PUT", "DELETE"} else Behaviour.PASS)
        yield f"s3://readonly/?region=us-east-1&endpoint={proxy.endpoint}", server.environment
        assert proxy.did[Behaviour.DENIED] > 0


def test_a_read_only_bucket_is_exit_7_for_backup_and_fine_for_restore(
    world: World, site: Site, read_only_bucket: tuple[str, Mapping[str, str]]
) -> None:
    url, environment = read_only_bucket
    path = configure(site, url=url)
    done = call(path, "--json", "backup", "erp", environment=environment)
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)["error"]["exit_status"] == 7
    done = call(path, "--json", "restore", "erp", "--to", "latest", "--into", site.target_dir, environment=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["snapshot"] == world.newer.id
    site.require_sound(snapshots=2)


def test_an_absent_store_is_exit_8_and_an_empty_one_exit_2(site: Site) -> None:
    path = configure(site, url=(site.root / "not-mounted").as_uri())
    assert call(path, "backup", "erp").returncode == 8
    (site.root / "not-mounted").mkdir()
    assert call(path, "backup", "erp").returncode == 2
    assert not any((site.root / "not-mounted").iterdir())


@pytest.mark.long  # the program's own patience is 90 s
def test_a_closed_endpoint_is_exit_8_in_bounded_time(site: Site) -> None:
    path = configure(site, url=f"s3://bucket/?region=us-east-1&endpoint=http://127.0.0.1:{free_port()}")
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_EC2_METADATA_DISABLED": "true"}
    began = time.monotonic()
    done = call(path, "restore", "erp", "--to", "latest", "--into", site.target_dir, environment=keys)
    assert done.returncode == 8, done.stderr
    assert time.monotonic() - began < 115


# --- integrity, WAL, and being busy -------------------------------------------------------------------------


def test_a_missing_pack_is_exit_5_names_it_and_the_hint_works(world: World, site: Site) -> None:
    path = configure(site)
    repository = site.repository()
    older, newer = (repository.open_snapshot(site.scope(), r.id).packs.data for r in (world.older, world.newer))
    name = min({use.name for use in newer} - {use.name for use in older})
    site.objects(name)[0].unlink()
    done = call(path, "restore", "erp", "--to", "latest", "--into", site.target_dir)
    assert done.returncode == 5, done.stderr
    assert name[:16] in done.stderr
    assert f"--without-snapshot {world.newer.id}" in done.stderr
    site.require_not_restored()
    other = site.root / "other"
    again = call(
        path, "--json", "restore", "erp", "--to", "latest", "--into", other, "--without-snapshot", world.newer.id
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["snapshot"] == world.older.id
    assert call(path, "verify", "erp").returncode == 5


def test_a_target_directory_in_use_is_exit_2_and_a_target_in_the_future_exit_1(site: Site) -> None:
    path = configure(site)
    site.target_dir.mkdir()
    (site.target_dir / "precious").touch()
    assert call(path, "restore", "erp", "--to", "latest", "--into", site.target_dir).returncode == 2
    assert (site.target_dir / "precious").exists()
    done = call(path, "restore", "erp", "--to", "2099-01-01T00:00:00Z", "--into", site.root / "other")
    assert done.returncode == 1, done.stderr
    assert "Reachable" in done.stderr


def test_the_wal_commands_speak_postgresqls_language_about_faults(world: World, site: Site, tmp_path: Path) -> None:
    path = configure(site)
    hole, damaged = world.tail[1], world.tail[2]
    site.objects(hole)[0].unlink()
    with site.objects(damaged)[0].open("r+b") as stream:
        stream.truncate(1000)
    beyond = f"{world.tail[-1][:8]}{'00000000'}000000F0"
    expected = {world.tail[0]: 0, hole: 127, damaged: 127, beyond: 44, "00000009.history": 44, "nonsense": 127}
    for name, status in expected.items():
        destination = tmp_path / name
        assert call(path, "wal", "fetch", name, destination).returncode == status, name
        assert destination.exists() is (status == 0)
    foreign = tmp_path / world.tail[-1]
    foreign.write_bytes(b"\0" * (1 << 20))
    assert call(path, "wal", "push", "--service", "erp", foreign).returncode == 1
    assert call(path, "wal", "push", "--service", "erp", site.spool / hole).returncode == 0
    assert call(path, "wal", "fetch", hole, tmp_path / "filled").returncode == 0


def start(configuration: Path, *words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, "--config", str(configuration), *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def await_line(process: subprocess.Popen[str], part: str) -> None:
    """Read stderr until a line contains ``part``."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if part in line:
            return
    raise AssertionError("".join(seen))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stderr is not None
    text = process.stderr.read()
    process.stderr.close()
    return process.wait(60), text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_backup_with_130_and_a_second_backup_meanwhile_is_exit_6(
    site: Site, number: signal.Signals
) -> None:
    path = configure(site)
    process = start(path, "backup", "erp")  # nobody archives: it waits for its WAL
    await_line(process, "wait for the WAL")
    busy = call(path, "backup", "erp")
    assert busy.returncode == 6, busy.stderr
    process.send_signal(number)
    status, text = ended(process)
    assert status == 130, text
    site.require_sound(snapshots=2)
    site.backup()
    site.require_sound(snapshots=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_restore_with_130_and_nothing_is_left_running(site: Site, number: signal.Signals) -> None:
    path = configure(site)
    process = start(path, "restore", "erp", "--to", "latest", "--into", site.target_dir)
    await_line(process, "fetch and place")
    process.send_signal(number)
    status, text = ended(process)
    assert status == 130, text
    site.require_no_environment()
