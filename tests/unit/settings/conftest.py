from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.errors import ConfigurationError
from drservice.settings.loading import load


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a configuration file and return its path."""

    def write_file(text: str | bytes) -> Path:
        path = tmp_path / "drservice.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o640)
        return path

    return write_file


@pytest.fixture
def refusal(write: Callable[[str | bytes], Path]) -> Callable[[str | bytes], list[str]]:
    """Load a file that must be refused; return the lines of the message without the file's folder."""

    def refuse(text: str | bytes) -> list[str]:
        path = write(text)
        with pytest.raises(ConfigurationError) as caught:
            load(path)
        assert caught.value.exit_status == 2
        first, *lines = caught.value.message.splitlines()
        assert first.startswith("the configuration has")
        return [line.replace(f"{path.parent}/", "") for line in lines]

    return refuse
