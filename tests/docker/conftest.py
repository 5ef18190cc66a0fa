"""One engine for all tests here, and the images built in it from this checkout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import ROOT, Docker, engine, missing, remove_tree

PLUGINS = "DRSERVICE_DOCKER_PLUGINS"
"""Where `deploy/offline/install-engine` put Compose."""
FOLDER = "DRSERVICE_DOCKER_FOLDER"
"""If set, where the engine's images are kept for the next run; otherwise they go with it."""
OFFLINE = ("compose", "--file", "docker-compose.yml", "--file", "deploy/offline/compose.yaml")


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    if PLUGINS not in os.environ:
        pytest.skip("run by make test-docker")
    if (problem := missing()) is not None:
        pytest.fail(problem)  # who asked for these tests must not be told that they are fine
    kept = os.environ.get(FOLDER)
    folder = Path(kept or tempfile.mkdtemp(prefix="drs-"))
    try:
        with engine(folder, plugins=Path(os.environ[PLUGINS])) as started:
            yield started
    finally:
        if kept is None:
            remove_tree(folder)


@pytest.fixture(scope="session")
def images(docker: Docker) -> Docker:
    """Build every image from this checkout."""
    docker.program(str(ROOT / "deploy" / "offline" / "base-images"))
    docker(*OFFLINE, "build", "--quiet")
    return docker
