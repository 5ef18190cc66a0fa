"""A file that appears under its name whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Never

import pytest

from drservice.errors import OutputFileError, OutputTakenError
from drservice.operations.outputfile import OutputFile


def test_nothing_is_under_the_name_before_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "x.dump"
    with OutputFile(path) as output:
        output.write(b"one ")
        output.write(b"two")
        assert not path.exists()
        assert output.reread().read() == b"one two"
        output.publish()
    assert path.read_bytes() == b"one two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert output.written_bytes == 7
    assert output.tail == b"one two"
    assert [item.name for item in tmp_path.iterdir()] == ["x.dump"]


def test_what_is_not_published_is_removed_even_after_an_error(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "x") as output:
        output.write(b"one")
    with pytest.raises(KeyboardInterrupt), OutputFile(tmp_path / "x") as output:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_a_name_that_is_taken_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputTakenError):
        OutputFile(path)
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
    with pytest.raises(OutputTakenError, match="no folder"):
        OutputFile(tmp_path / "none" / "x")


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with OutputFile(path) as output:
        output.write(b"dump")
        path.write_text("mine")
        with pytest.raises(OutputTakenError):
            output.publish()
    assert path.read_text() == "mine"
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


def test_without_hard_links_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(_source: object, _target: object) -> Never:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x"
    with OutputFile(path) as output:
        output.write(b"dump")
        output.publish()
    assert path.read_bytes() == b"dump"
    with OutputFile(tmp_path / "y") as output:
        (tmp_path / "y").write_text("mine")
        with pytest.raises(OutputTakenError):
            output.publish()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x", "y"]


def test_a_full_disk_is_told_with_how_far_it_came(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "x") as output:
        output._stream.close()
        output._stream = open("/dev/full", "w+b", buffering=0)  # noqa: SIM115, PTH123 - closed by the block
        with pytest.raises(OutputFileError, match="no space left") as caught:
            output.write(b"dump")
    assert caught.value.code == "DR321"
