"""Memory for replay: an eighth of the least that is known, never more than 2 GB."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.environments.limits import Limits
from drservice.operations.replaymemory import buffers_option


@pytest.mark.parametrize(
    ("available_mib", "group", "limit_mib", "expected_mib"),
    [
        (32_000, "max", None, 2048),
        (8_000, "max", None, 1000),
        (1_600, "max", None, 200),
        (32_000, str(800 << 20), None, 100),
        (32_000, "max", 512, 64),
        (64, "max", None, 16),
        (None, None, None, 16),
    ],
)
def test_the_least_that_is_known_decides(
    tmp_path: Path, available_mib: int | None, group: str | None, limit_mib: int | None, expected_mib: int
) -> None:
    memory, groups = tmp_path / "meminfo", tmp_path / "memory.max"
    if available_mib is not None:
        memory.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_mib << 10} kB\n")
    if group is not None:
        groups.write_text(group + "\n")
    limits = Limits(memory_bytes=None if limit_mib is None else limit_mib << 20)
    assert buffers_option(limits, memory=memory, group=groups) == ("shared_buffers", f"{expected_mib << 10}kB")


def test_on_this_host_it_is_a_setting_a_server_takes() -> None:
    name, value = buffers_option(Limits())
    assert name == "shared_buffers"
    assert 16 << 10 <= int(value.removesuffix("kB")) <= 2048 << 10
