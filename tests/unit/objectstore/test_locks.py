from __future__ import annotations

import os
from pathlib import Path

import pytest

from drservice import processes
from drservice.clock import SystemClock
from drservice.objectstore.locks import host_lock


@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes turns with another user")
def test_a_folder_of_locks_that_root_makes_belongs_to_whom_the_folder_above_it_belongs_to(tmp_path: Path) -> None:
    account = processes.server_account(None)
    assert account is not None
    state = tmp_path / "run"
    state.mkdir()
    os.chown(state, account.uid, account.gid)
    with host_lock(state / "single-writer" / "e9.lock", clock=SystemClock(), patience_seconds=1):
        assert (state / "single-writer").stat().st_uid == account.uid
