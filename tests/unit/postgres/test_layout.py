"""What belongs into a copy, by place alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.components.postgres.layout import FileRule, Fork, classify, list_cluster, relation_part


@pytest.mark.parametrize(
    "path",
    [
        "postgresql.auto.conf.tmp", "current_logfiles.tmp", "backup_label", "backup_label.old", "tablespace_map",
        "backup_manifest", "postmaster.pid", "postmaster.opts", "recovery.signal", "standby.signal",
        "global/pg_internal.init", "base/5/pg_internal.init.4711", "pg_tblspc/16400/PG_15_202209061/5/pg_internal.init",
        "base/5/t3_16393", "base/5/t3_16393_fsm", "base/5/t3_16393.1", "base/pgsql_tmp1.0",
        "pg_wal/000000010000000000000001", "pg_wal/archive_status/x.ready", "pg_replslot/s/state", "pg_stat_tmp/x",
    ],
)  # fmt: skip
def test_t8_what_postgresql_rebuilds_is_left_out(path: str) -> None:
    assert classify(path, is_directory=False) is FileRule.SKIP


@pytest.mark.parametrize(
    "path",
    [
        "PG_VERSION", "postgresql.conf", "postgresql.auto.conf", "current_logfiles", "base/5/16393",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map", "mine/backup_label", "mine/t1_2", "mine/pgsql_tmp", "base/backup_label", "t1_2",
        "base/t1_2", "pg_internal.init", "pg_wal", "mine/pg_wal/x", "pg_xact/0000", "global/pg_filenode.map", "signal",
    ],
)  # fmt: skip
def test_t8_nothing_is_left_out_by_base_name_elsewhere(path: str) -> None:
    assert classify(path, is_directory=False) is FileRule.COPY


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("pg_wal", FileRule.EMPTY_DIRECTORY),
        ("pg_wal/archive_status", FileRule.EMPTY_DIRECTORY),
        ("pg_wal/summaries", FileRule.EMPTY_DIRECTORY),
        ("pg_replslot", FileRule.EMPTY_DIRECTORY),
        ("pg_replslot/slot", FileRule.SKIP),
        ("base/pgsql_tmp", FileRule.SKIP),
        ("pg_tblspc/16400/PG_15_202209061/pgsql_tmp", FileRule.SKIP),
        ("mine/pgsql_tmp", FileRule.COPY),
        ("mine/pg_wal", FileRule.COPY),
        ("base/5", FileRule.COPY),
        ("pg_logical/snapshots", FileRule.COPY),
    ],
)
def test_t8_directories_are_kept_emptied_or_left_out(path: str, rule: FileRule) -> None:
    assert classify(path, is_directory=True) is rule


def test_t12_pg_control_goes_last() -> None:
    assert classify("global/pg_control", is_directory=False) is FileRule.COPY_LAST


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("base/5/16393", (None, 5, 16393, Fork.MAIN, 0)),
        ("base/5/16393.2", (None, 5, 16393, Fork.MAIN, 2)),
        ("base/5/16393_vm", (None, 5, 16393, Fork.VISIBILITY, 0)),
        ("base/5/16393_fsm.1", (None, 5, 16393, Fork.FREE_SPACE, 1)),
        ("base/5/16393_init", (None, 5, 16393, Fork.INIT, 0)),
        ("global/1262", (None, 0, 1262, Fork.MAIN, 0)),
        ("pg_tblspc/16400/PG_15_202209061/5/16401", (16400, 5, 16401, Fork.MAIN, 0)),
    ],
)
def test_t14_relation_files_are_known_by_their_place(path: str, expected: tuple[object, ...]) -> None:
    part = relation_part(path)
    assert part is not None
    assert (part.tablespace, part.database, part.file_node, part.fork, part.segment) == expected
    assert part.first_block(131072) == part.segment * 131072


@pytest.mark.parametrize(
    "path",
    [
        "global/pg_control", "base/5/pg_filenode.map", "base/5/PG_VERSION", "pg_xact/0000", "mine/16393", "base/16393",
        "base/5/16393_xyz", "base/5/16393.0", "base/5/t3_16393", "pg_multixact/members/0000", "pg_wal/0000",
    ],
)  # fmt: skip
def test_t14_files_without_pages_are_never_judged(path: str) -> None:
    assert relation_part(path) is None


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list_cluster(tmp_path / "nothing", version_directory="PG_15_202209061")
