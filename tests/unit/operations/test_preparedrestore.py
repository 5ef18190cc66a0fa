"""What a snapshot has as the file of a Redis is looked at before it is put in place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice.errors import RedisDumpError
from drservice.operations.preparedrestore import check_stored_dump


def test_a_dump_that_is_a_link_or_a_pipe_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    """A Redis that is started over it would read what it leads to on this host."""
    dump = tmp_path / "dump.rdb"
    real = tmp_path / "real.rdb"
    real.write_bytes(b"REDIS0009\xff" + bytes(8))
    assert check_stored_dump(real).version == 9
    dump.symlink_to(real)
    with pytest.raises(RedisDumpError, match="no plain file"):
        check_stored_dump(dump)
    dump.unlink()
    os.mkfifo(dump)
    with pytest.raises(RedisDumpError, match="no plain file"):
        check_stored_dump(dump)
    with pytest.raises(FileNotFoundError):
        check_stored_dump(tmp_path / "absent")
