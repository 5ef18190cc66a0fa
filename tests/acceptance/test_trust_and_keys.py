"""Whose word counts: hosts that nobody lists, links planted in a state_dir of another user, disks that are full."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drservice import processes
from drservice.errors import ConfigurationError, RepositoryError
from drservice.model.ids import KeyId
from drservice.operations import measured
from drservice.operations.lineage import Lineage
from drservice.operations.measured import Measured
from drservice.repository.hostkey import load_host_key, make_host_key
from drservice.repository.journal import JournalWriter
from drservice.repository.keys import make_identity
from tests.doubles.repositories import SYSTEM_ID, Site, noise

PROGRAM = (sys.executable, "-m", "drservice")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="links endanger whoever may write everywhere")
PROVED = Measured(
    restored_at="2026-01-01T00:00:00Z",
    snapshot="01ARZ3NDEKTSV4RRFFQ69G5FAV",
    target="latest",
    restored_bytes=1,
    fetch_seconds=1.0,
    wal_segments=1,
    replay_seconds=1.0,
    other_seconds=1.0,
)


# --- hosts that nobody lists ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """A host with a configuration and a state of its own; all use one directory repository."""

    folder: Path
    repository: Path
    recipient: str

    def configure(self, signers: dict[str, str]) -> None:
        self.folder.mkdir(exist_ok=True)
        repository: dict[str, Any] = {"url": f"file://{self.repository}", "recipients": [self.recipient]}
        if signers:
            repository["signers"] = {name: {"key": key} for name, key in signers.items()}
        component = {"kind": "postgres", "dsn": f"host={self.folder}/none dbname=x", "method": "pg_basebackup"}
        document = {
            "version": 1,
            "state_dir": str(self.folder / "state"),
            "repository": repository,
            "services": {"erp": {"components": {"database": component}}},
        }
        (self.folder / "drservice.yaml").write_text(json.dumps(document))

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        argv = [*PROGRAM, "--config", str(self.folder / "drservice.yaml"), *words, "--json"]
        environment = processes.clean_environment({"HOME": str(self.folder)})
        done = processes.run(argv, environment=environment, timeout_seconds=60)
        assert done.stdout, done.stderr.decode()
        return done.status, json.loads(done.stdout)

    def may_write(self) -> dict[str, Any]:
        """Return the answer of `check` to the question whether this host may write."""
        _, document = self.run("check", "erp")
        [answer] = [one for one in document["checks"] if one["name"] == "this host may write"]
        assert isinstance(answer, dict)
        return answer

    def line(self) -> str:
        key = load_host_key(self.folder / "state")
        assert key is not None
        return key.signer_line


def test_a_second_host_is_told_its_signer_line_and_cannot_write_before_it_is_listed(tmp_path: Path) -> None:
    recipient = make_identity()[1]
    first = Machine(tmp_path / "db1", tmp_path / "repository", recipient)
    second = Machine(tmp_path / "db2", tmp_path / "repository", recipient)
    first.configure({})
    status, made = first.run("init")
    assert status == 0
    assert first.may_write()["state"] == "ok", "the host that made the repository is listed in it"
    signer = {made["signer"]["name"]: made["signer"]["key"]}

    for trusted in ({}, signer):
        second.configure(trusted)
        status, document = second.run("init")
        assert (status, document["error"]["code"]) == (2, "DR402")
        assert "may not write there yet" in document["error"]["message"]
        assert second.line() in document["error"]["hint"]
    answer = second.may_write()
    assert answer["state"] == "failed"
    assert second.line() in answer["remedy"]

    name, _, value = second.line().partition(": ")
    second.configure({**signer, f"{name}-2": value.split('"')[1]})
    assert second.may_write()["state"] == "ok"
    status, document = second.run("init")
    assert (status, document["error"]["code"]) == (2, "DR402")
    assert "repository.signers" not in document["error"]["hint"]


# --- planted links ----------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's that nobody else may change."""
    path = tmp_path / "victim"
    path.write_bytes(b"root:x:0:0\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose state folder belongs to another user, as PostgreSQL's does."""
    made = Site.create(tmp_path / "site")
    made.write({"f": noise(1000)})
    made.state_dir.mkdir()
    if os.geteuid() == 0:
        give_away(made.state_dir)
    return made


def give_away(path: Path) -> None:
    nobody = processes.account_named("nobody")
    for one in (path, *path.rglob("*")):
        os.chown(one, nobody.uid, nobody.gid, follow_symlinks=False)


def plant(path: Path, target: Path) -> None:
    """Do what the owner of the state folder can: put a link where root will write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def require_untouched(victim: Path) -> None:
    assert victim.read_bytes() == b"root:x:0:0\n"
    facts = victim.stat()
    assert (facts.st_uid, facts.st_mode & 0o777) == (0, 0o600)


@as_root
@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
@pytest.mark.parametrize(
    "name",
    [
        "cache/erp/database.sqlite",
        "cache/erp/database.staged",
        "cache/erp/database.sums",
        "cache/erp/database.sums.staged",
        "journal/erp/database/resume.sqlite",
        "journal/erp/database/old.journal",
    ],
)
def test_a_backup_as_root_never_writes_through_a_planted_link(site: Site, victim: Path, name: str, hard: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    site.capture()
    with site.writing() as writer:  # an interrupted run leaves a journal, so that the index is made
        writer.add_bytes(b"g", 0o600, b"g")
    plant(site.state_dir / name, victim)
    if hard:
        (site.state_dir / name).unlink()
        (site.state_dir / name).hardlink_to(victim)
    give_away_links_only(site.state_dir, victim)
    record = site.capture()
    require_untouched(victim)
    assert len(site.repository().snapshots(site.scope).records) == 2
    assert record.files == 1


def give_away_links_only(state: Path, victim: Path) -> None:
    """Give everything to the state folder's owner; a hard link to the victim cannot change its owner."""
    nobody = processes.account_named("nobody")
    for one in (state, *state.rglob("*")):
        if one.is_symlink() or not one.samefile(victim):
            os.chown(one, nobody.uid, nobody.gid, follow_symlinks=False)


@as_root
def test_a_lock_that_is_a_link_is_refused(site: Site, victim: Path) -> None:
    plant(site.state_dir / "run/erp-database.lock", victim)
    with pytest.raises(ConfigurationError, match=r"erp-database\.lock is a symbolic link"):
        site.capture()
    require_untouched(victim)


@as_root
@pytest.mark.parametrize("name", ["run", "cache", "cache/erp", "journal", "journal/erp", "journal/erp/database"])
def test_a_folder_that_leads_elsewhere_is_refused(site: Site, tmp_path: Path, name: str) -> None:
    site.capture()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(site.state_dir / name, elsewhere)
    give_away(site.state_dir)
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        site.capture()
    assert list(elsewhere.iterdir()) == []
    assert elsewhere.stat().st_uid == 0


@as_root
@pytest.mark.parametrize(
    ("name", "act"),
    [
        (
            "pins/erp-database.PID",
            lambda site: Lineage(site.repository(), site.scope, site.state_dir).pin(SYSTEM_ID),
        ),
        ("measured/erp-database.PID", lambda site: measured.remember(site.state_dir, site.scope, PROVED)),
        ("signing.key.PID", lambda site: make_host_key(site.state_dir)),
        (
            "journal/x.journal",
            lambda site: JournalWriter(
                site.state_dir / "journal/x.journal", KeyId("01ARZ3NDEKTSV4RRFFQ69G5FAK")
            ).close(),
        ),
    ],
    ids=["pin", "measured", "signing key", "journal"],
)
def test_small_files_are_made_anew_and_never_written_through_a_link(
    site: Site, victim: Path, name: str, act: Callable[[Site], None]
) -> None:
    planted = site.state_dir / name.replace("PID", str(os.getpid()))
    plant(planted, victim)
    give_away(site.state_dir)
    act(site)
    require_untouched(victim)
    made = [path for path in planted.parent.iterdir() if path.is_file()]
    assert [path.is_symlink() for path in made] == [False]
    assert made[0].stat().st_uid == processes.account_named("nobody").uid


# --- what a full or closed disk costs -----------------------------------------------------------------------------


def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no small file be made any more: root is not stopped by rights."""

    def full(path: Path) -> int:
        raise OSError(28, "No space left on device", str(path))

    for module in ("lineage", "measured"):
        monkeypatch.setattr(f"drservice.operations.{module}.create_private", full)


def test_a_pin_that_cannot_be_written_costs_a_look_into_the_repository_and_no_push(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = site.capture()
    lineage = Lineage(site.repository(), site.scope, site.state_dir)
    closed(monkeypatch)
    assert lineage.pinned() == record.postgres.system_id
    lineage.pin(SYSTEM_ID)
    assert "pin not written" in capsys.readouterr().err
    with pytest.raises(RepositoryError, match="No space left"):
        lineage.adopt()
    assert lineage.pinned() == record.postgres.system_id


def test_a_proven_restore_that_cannot_be_remembered_is_still_proven(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed(monkeypatch)
    measured.remember(site.state_dir, site.scope, PROVED)
    assert "measured restore not kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert measured.recall(site.state_dir, site.scope) is None
    measured.remember(site.state_dir, site.scope, PROVED)
    assert measured.recall(site.state_dir, site.scope) == PROVED
