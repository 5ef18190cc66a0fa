"""Which components a host has WAL helpers and receivers for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from drservice.model.estate import Estate
from drservice.node.companions import Companions
from drservice.node.walhelpers import wanted_helpers
from drservice.node.walstreams import RECEIVING, wanted_receivers
from drservice.operations.streamstate import lock_path
from drservice.processes import open_private
from drservice.settings.loading import load

CONFIGURATION = """
version: 1
state_dir: {base}/state
repository: {{url: "file://{base}/repository", recipients: [{recipient}]}}
services:
  erp:
    components:
      database:
        {{kind: postgres, dsn: "host=/nowhere", data_directory: {base}/data, node: {node}, wal: {{mode: {mode}}}}}
      elsewhere: {{kind: postgres, dsn: "host=db9", method: pg_basebackup, wal: {{mode: {remote}}}}}
"""
RECIPIENT = "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex"


def configured(base: Path, *, node: str = "null", mode: str = "archive", remote: str = "archive") -> Path:
    config = base / "drservice.yaml"
    config.write_text(CONFIGURATION.format(base=base, node=node, mode=mode, remote=remote, recipient=RECIPIENT))
    return config


def give_disks(base: Path) -> None:
    control = base / "data" / "global" / "pg_control"
    control.parent.mkdir(parents=True)
    control.touch()


@pytest.mark.parametrize(("node", "wanted"), [("null", ["erp/database"]), ("db1", ["erp/database"]), ("db2", [])])
def test_a_host_has_helpers_for_the_clusters_whose_disks_it_has(tmp_path: Path, node: str, wanted: list[str]) -> None:
    estate = load(configured(tmp_path, node=node)).estate
    assert list(wanted_helpers(estate, "db1")) == []
    give_disks(tmp_path)
    assert list(wanted_helpers(estate, "db1")) == wanted
    assert list(wanted_receivers(estate, "db1")) == []


@pytest.mark.parametrize(("mode", "helped", "received"), [("archive", 1, 0), ("both", 1, 1), ("stream", 0, 1)])
def test_the_mode_says_whether_wal_is_helped_along_received_or_both(
    tmp_path: Path, mode: str, helped: int, received: int
) -> None:
    give_disks(tmp_path)
    estate = load(configured(tmp_path, mode=mode)).estate
    assert (len(wanted_helpers(estate, "db1")), len(wanted_receivers(estate, "db1"))) == (helped, received)


def test_a_receiver_is_where_it_is_named_to_be_or_where_the_disks_are_or_anywhere(tmp_path: Path) -> None:
    estate = load(configured(tmp_path, mode="stream", remote="stream")).estate
    assert list(wanted_receivers(estate, "db1")) == ["erp/elsewhere"], "the disks of the other are not here"
    give_disks(tmp_path)
    assert list(wanted_receivers(estate, "db1")) == ["erp/database", "erp/elsewhere"]
    named = load(configured(tmp_path, mode="stream", node="db2")).estate
    assert list(wanted_receivers(named, "db1")) == []
    assert list(wanted_receivers(named, "db2")) == ["erp/database"]


def test_wal_may_be_received_on_another_host_than_backups_are_made(tmp_path: Path) -> None:
    give_disks(tmp_path)
    for node in ("null", "db1"):
        estate = load(configured(tmp_path, node=node, mode="both, node: vault1")).estate
        assert list(wanted_receivers(estate, "db1")) == []
        assert list(wanted_receivers(estate, "vault1")) == ["erp/database"]
        assert list(wanted_helpers(estate, "db1")) == ["erp/database"], "the helper stays where the disks are"
        assert list(wanted_helpers(estate, "vault1")) == (["erp/database"] if node == "null" else [])


def test_a_component_that_has_a_receiver_gets_no_second_one(tmp_path: Path) -> None:
    estate = load(configured(tmp_path, mode="stream")).estate
    assert not RECEIVING.is_served(estate, "erp/database")
    service = estate.service("erp")
    path = lock_path(estate.state_dir, service.name, service.databases()[0].name)
    path.parent.mkdir(parents=True)
    file = open_private(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert RECEIVING.is_served(estate, "erp/database")
    finally:
        os.close(file)


def test_a_component_that_cannot_be_looked_at_leaves_the_others_their_receivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_disks(tmp_path)
    estate = load(configured(tmp_path, mode="stream", remote="stream")).estate
    started: list[str] = []

    def is_served(_: Estate, name: str) -> bool:
        if name == "erp/database":
            raise PermissionError(name)
        return False

    def begin(command: Sequence[str], **_: object) -> NoReturn:
        started.append(command[-2])
        raise OSError("enough is seen")

    monkeypatch.setattr("drservice.node.companions.start", begin)
    receivers = Companions(
        replace(RECEIVING, is_served=is_served), estate=lambda: estate, host="db1", log_level="info", first_seconds=0.0
    )
    receivers.look()
    assert started == ["erp/elsewhere"]
