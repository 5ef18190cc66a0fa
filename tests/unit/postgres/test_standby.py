"""Where a copy of a standby is consistent, and what its pg_control must not say (trap T5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drservice.components.postgres.controlfile import ClusterState, ControlFile, WalLevel, parse_control
from drservice.components.postgres.standby import standby_end
from drservice.errors import CaptureError
from drservice.model.wal import Lsn, Timeline
from tests.unit.postgres.test_controlfile import control_bytes

START = Lsn(0x2000028)
GOOD = replace(
    parse_control(control_bytes(15)),
    state=ClusterState.IN_ARCHIVE_RECOVERY,
    redo=START,
    checkpoint=Lsn(0x2000060),
    timeline=Timeline(1),
    min_recovery_point=Lsn(0x3000140),
    min_recovery_timeline=Timeline(1),
    full_page_writes=True,
    wal_level=WalLevel.REPLICA,
)


def test_t5_a_copy_of_a_standby_is_consistent_at_its_min_recovery_point() -> None:
    assert standby_end(GOOD, start=START, timeline=Timeline(1)) == Lsn(0x3000140)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": ClusterState.IN_PRODUCTION}, "in production"),
        ({"state": ClusterState.SHUT_DOWN_IN_RECOVERY}, "shut down in recovery"),
        ({"full_page_writes": False}, "full_page_writes = off"),
        ({"wal_level": WalLevel.MINIMAL}, "wal_level = minimal"),
        ({"min_recovery_timeline": Timeline(2)}, "gone on to 2"),
        ({"timeline": Timeline(2), "min_recovery_timeline": Timeline(2)}, "gone on to 2"),
        ({"min_recovery_point": Lsn(0)}, "not of this backup"),
        ({"min_recovery_point": Lsn(0x2000050)}, "before its own checkpoint"),
    ],
)
def test_t5_a_pg_control_that_spoils_the_copy_is_refused(change: dict[str, Any], says: str) -> None:
    control: ControlFile = replace(GOOD, **change)
    with pytest.raises(CaptureError, match=says):
        standby_end(control, start=START, timeline=Timeline(1))
