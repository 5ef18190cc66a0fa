"""The migrations are part of what is installed, not only of a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drservice.catalogue.database import migrations_folder
from tests.doubles.catalogue import CatalogueServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made of the checkout, installed under a prefix; returns its site-packages."""
    where = tmp_path_factory.mktemp("installed")
    checkout, prefix = where / "checkout", where / "prefix"
    hidden = shutil.ignore_patterns("__pycache__")
    for name in ("drservice", "migrations"):
        shutil.copytree(ROOT / name, checkout / name, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    build = "import sys, setuptools.build_meta as b; sys.stdout.write('\\n' + b.build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(where)], cwd=checkout, check=True, capture_output=True
    )
    wheel = where / made.stdout.decode().splitlines()[-1]
    # Without --ignore-installed pip removes the checkout's own installation from the environment of the tests.
    options = ["-q", "--no-deps", "--no-index", "--ignore-installed", f"--prefix={prefix}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    shutil.rmtree(checkout)
    return next(prefix.glob("lib/python3*/site-packages"))


def test_a_checkout_uses_its_own_migrations() -> None:
    assert migrations_folder() == ROOT / "migrations"


def test_an_installed_package_brings_a_catalogue_to_its_schema(installed: Path, catalogues: CatalogueServer) -> None:
    program = (
        "import sys; from drservice.catalogue import database as d;"
        "d.migrate(sys.argv[1]); d.open_catalogue(sys.argv[1]).close(); sys.stdout.write(str(d.migrations_folder()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, catalogues.empty()],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout) == installed.parents[2] / "share" / "drservice" / "migrations"


def test_an_installation_without_migrations_says_so(installed: Path) -> None:
    program = (
        "import importlib.metadata as m\n"
        "m.files = lambda name: [f for f in m.distribution(name).files if 'migrations' not in f.parts]\n"
        "from drservice.catalogue.database import migrations_folder\n"
        "from drservice.errors import CatalogueError\n"
        "try:\n    migrations_folder()\nexcept CatalogueError as error:\n    raise SystemExit(int(error.exit_status))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env={**os.environ, "PYTHONPATH": str(installed)}, check=False
    )
    assert done.returncode == 2
