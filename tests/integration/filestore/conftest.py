"""A filestore of a site whose repository is in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.model.estate import FilesKind
from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site


@pytest.fixture
def filestore(tmp_path: Path) -> Filestore:
    return Filestore(site=Site.create(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Filestore:
    return Filestore(site=Site.create(tmp_path), kind=FilesKind.DIRECTORY)
