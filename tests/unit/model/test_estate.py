"""What a service says of its components."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.errors import UnknownNameError
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.ids import ComponentName, ServiceName


def test_who_asks_a_service_without_a_cluster_for_one_is_told_its_folders() -> None:
    folders = [
        FilesSettings(name=ComponentName(name), kind=FilesKind.DIRECTORY, path=Path("/srv") / name)
        for name in ("certificates", "stack")
    ]
    service = Service(name=ServiceName("network"), components={item.name: item for item in folders})
    with pytest.raises(UnknownNameError, match="has 0 PostgreSQL components") as caught:
        service.database()
    assert "--component certificates|stack" in (caught.value.hint or "")
