"""The file system of a directory repository is unmounted while something runs that has it open: nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drservice.errors import ObjectNotFoundError, StoreUnreachableError
from drservice.objectstore.directory import DirectoryStore
from tests.doubles.repositories import Site
from tests.doubles.walhelpers import HelperWorld


def exchange(path: Path, other: Path | None = None) -> Path:
    """Put an empty folder, or ``other``, in a folder's place, as unmounting does; return where it is."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    if other is None:
        path.mkdir()
    else:
        other.rename(path)
    return away


def files(path: Path) -> list[str]:
    return sorted(item.name for item in path.rglob("*") if item.is_file())


def test_nothing_is_stored_nor_absent_where_the_file_system_was_unmounted(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    Site.create(tmp_path, folder=root)
    store = DirectoryStore(root)
    with pytest.raises(ObjectNotFoundError):
        store.stat("s/erp/nothing")
    away = exchange(root)
    for call in (
        lambda: store.create("s/erp/object", [b"bytes"]),
        lambda: store.stat("s/erp/nothing"),
        lambda: store.read("drservice-repository.json"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreUnreachableError, match="another directory"):
            call()
    assert files(root) == []
    root.rmdir()
    away.rename(root)
    store.create("s/erp/object", [b"bytes"])


def test_mounted_again_it_is_the_same_and_another_repository_there_is_not(tmp_path: Path) -> None:
    root, copy, other = tmp_path / "repository", tmp_path / "copy", tmp_path / "other"
    Site.create(tmp_path, folder=root)
    Site.create(tmp_path / "elsewhere", folder=other)
    shutil.copytree(root, copy)
    store = DirectoryStore(root)
    exchange(root, copy).rename(tmp_path / "first")
    store.create("s/erp/object", [b"bytes"])
    assert "object" in files(root)
    exchange(root, other)
    with pytest.raises(StoreUnreachableError, match="another directory"):
        store.create("s/erp/second", [b"bytes"])
    assert "second" not in files(root)


def test_the_wal_helper_calls_nothing_durable_that_lies_under_the_mount_point(tmp_path: Path) -> None:
    world = HelperWorld.create(tmp_path, folder=tmp_path / "repository")
    with world.helper():
        assert world.ask(world.segment(1)) == ""
        away = exchange(tmp_path / "repository")
        assert "another directory" in world.ask(world.segment(2))
        assert files(tmp_path / "repository") == []
        (tmp_path / "repository").rmdir()
        away.rename(tmp_path / "repository")
