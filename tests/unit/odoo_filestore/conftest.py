"""A repository in memory for every test that asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.repositories import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.create(tmp_path)
