"""What the system refuses while a cluster is placed is told as such, and never leaves a directory that starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from drservice.components.postgres import placing
from drservice.components.postgres.placing import finish_cluster, place_cluster, require_empty
from drservice.errors import RecoveryError, TargetDirectoryError
from drservice.repository.target import sync_folder

REFUSALS = {errno.ENOSPC: "no space left", errno.EROFS: "Read-only", errno.EACCES: "Permission denied"}
READER: Any = SimpleNamespace(
    record=SimpleNamespace(id="01"), secret=SimpleNamespace(attachments={"backup_label": b"START\n"})
)
PLACED: Any = SimpleNamespace(held_back={b"global/pg_control": b"control"})


def refusing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, code: int) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, refuse)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with everything but the label files and pg_control."""
    folder = tmp_path / "data"
    (folder / "global").mkdir(parents=True)
    (folder / "postgresql.auto.conf").write_text("restore_command = 'old'\n")
    return folder


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize(
    "name",
    ["fsync", "open", "rename", "unlink", "fdopen"],
)
def test_a_refusal_while_the_cluster_is_finished_is_a_recovery_error(
    target: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    refusing(monkeypatch, os, name, code)
    with pytest.raises(RecoveryError, match=REFUSALS[code]):
        finish_cluster(READER, target, PLACED, account=None)
    assert not (target / "global" / "pg_control").exists()


def test_without_refusals_it_is_finished(target: Path) -> None:
    assert finish_cluster(READER, target, PLACED, account=None) == ("restore_command",)
    assert (target / "global" / "pg_control").read_bytes() == b"control"


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("name", ["mkdir", "chmod"])
def test_a_target_that_cannot_be_made_is_a_recovery_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    refusing(monkeypatch, Path, name, code)
    not_reached: Any = None
    with pytest.raises(RecoveryError, match=REFUSALS[code]):
        place_cluster(
            not_reached,
            tmp_path / "data",
            open_store=not_reached,
            scope=not_reached,
            secrets=(),
            account=None,
            workers=1,
            progress=not_reached,
        )


def test_a_target_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecoveryError, match="Not a directory"):
        placing.make_target(tmp_path / "file" / "data", None)


@pytest.mark.parametrize("name", ["is_symlink", "iterdir"])
def test_a_target_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refusing(monkeypatch, Path, name, errno.EACCES)
    with pytest.raises(TargetDirectoryError, match="Permission denied"):
        require_empty(tmp_path)


def test_a_folder_that_vanished_is_not_synced(tmp_path: Path) -> None:
    with pytest.raises(RecoveryError, match="No such file"):
        sync_folder(tmp_path / "gone")
