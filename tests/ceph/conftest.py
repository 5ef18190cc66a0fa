"""Nothing here is collected where no Ceph may be started; `make test-ceph` names its folder."""

from __future__ import annotations

import pytest

from tests.ceph.cluster import Ceph, folder, running

collect_ignore_glob = [] if folder() is not None else ["test_*.py"]


@pytest.fixture(scope="session")
def ceph() -> Ceph:
    """The one gateway of this run."""
    return running()
