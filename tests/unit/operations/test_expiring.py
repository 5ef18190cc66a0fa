from __future__ import annotations

from pathlib import Path

import pytest

from drservice.model.retention import Period, RetentionPolicy
from drservice.operations.expiring import newly_expired
from tests.doubles.retained import RetainedService


@pytest.fixture
def service(tmp_path: Path) -> RetainedService:
    """Four nights, 40, 30, 20 and 10 days ago; 35 days are kept, so the first may go anyway."""
    made = RetainedService.create(tmp_path)
    for segment in (10, 20, 30, 40):
        made.night(segment=segment, pause_days=10)
    return made.with_policy("35d")


def within(text: str) -> RetentionPolicy:
    return RetentionPolicy(within=Period.parse(text))


def test_only_what_would_expire_beyond_what_may_go_already_is_told(service: RetainedService) -> None:
    before = service.listing()
    expiring = newly_expired(service.context(), service.service, within("15d"))
    ages = [snapshot.id for snapshot, _ in service.inspect().plan.snapshots]
    assert list(expiring.snapshots) == ages[1:3]
    assert (len(expiring.points), expiring.kept_snapshots) == (2, 1)
    assert service.listing() == before, "asking changes nothing"


def test_a_longer_retention_lets_nothing_go(service: RetainedService) -> None:
    expiring = newly_expired(service.context(), service.service, within("60d"))
    assert (expiring.points, expiring.snapshots, expiring.kept_snapshots) == ((), (), 4)


def test_what_recovery_was_last_proved_with_is_not_told_as_lost(tmp_path: Path) -> None:
    made = RetainedService.create(tmp_path)
    proved = made.night(segment=10, pause_days=10)
    made.proved(proved)
    made.night(segment=20, pause_days=10)
    expiring = newly_expired(made.context(), made.with_policy("60d").service, within("1d"))
    assert expiring.snapshots == ()
