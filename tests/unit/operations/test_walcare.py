"""Who has a heartbeat: servers whose WAL is streamed, as often as the configuration says, unless it says off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.model.estate import PostgresSettings, WalMode, WalSettings
from drservice.model.ids import ComponentName
from drservice.operations import walcare
from tests.doubles.repositories import Site


@pytest.mark.parametrize(
    ("mode", "every", "beaten"),
    [
        (WalMode.STREAM, timedelta(seconds=1), [("dbname=x", 1.0)]),
        (WalMode.BOTH, timedelta(milliseconds=500), [("dbname=x", 0.5)]),
        (WalMode.STREAM, None, []),
        (WalMode.ARCHIVE, timedelta(seconds=1), []),
    ],
)
def test_a_streamed_server_is_given_a_heartbeat_as_often_as_its_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: WalMode, every: timedelta | None, beaten: list[object]
) -> None:
    begun: list[object] = []

    @contextmanager
    def beating(dsn: str, *, seconds: float) -> Iterator[None]:
        begun.append((dsn, seconds))
        yield

    monkeypatch.setattr(walcare, "beating", beating)
    monkeypatch.setattr(walcare, "keep_continuous", lambda _watch, _stop: None)
    site = Site.create(tmp_path)
    component = PostgresSettings(
        name=ComponentName("database"), dsn="dbname=x", wal=WalSettings(mode=mode, heartbeat=every)
    )
    with walcare.cared_for(site.repository(), site.scope, component, state_dir=tmp_path, clock=SystemClock()):
        assert begun == beaten
