"""A zip that a real Odoo makes becomes a recovery point that a drill passes; its server is never reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drservice import processes
from drservice.repository.keys import make_identity
from tests.odoo.production import DATABASE, Code, Production, folder, odoo_variables, odoo_words

pytestmark = [pytest.mark.odoo, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Code]]:
    """Have Odoo back itself up with its own command while it works; its host is gone before anything is imported."""
    place = folder()
    assert place is not None, "without it nothing here is collected"
    code = Code(root=place)
    production = Production.begin(code, tmp_path_factory.getbasetemp())
    path = production.maker.folder("zip") / "plant.zip"
    try:
        path.parent.chmod(0o777)
        done = processes.run(
            odoo_words(code, "db", "dump", DATABASE, path),
            account=production.cluster.account,
            environment={**odoo_variables(code), "ODOO_RC": str(production.configuration / "odoo.conf")},
            timeout_seconds=300,
        )
        assert done.status == 0, done.stderr.decode()[-3000:]
        production.lose()
        yield path, code
    finally:
        production.close()


def configured(root: Path, code: Code) -> Path:
    """Write the configuration of a site that has the zip and nothing else of the company."""
    secret, recipient = make_identity()
    identity = root / "identity.age"
    identity.touch(mode=0o600)
    identity.write_text(f"{secret}\n")
    documents = {"kind": "odoo-filestore", "path": "/nowhere/filestore", "database": DATABASE}
    document = {
        "version": 1,
        "state_dir": str(root / "state"),
        "repository": {"url": f"file://{root}/repository", "recipients": [recipient], "identity": f"file:{identity}"},
        "services": {
            "erp": {
                "objectives": {"rpo": "365d", "rto": "30m"},  # the demo company's newest rows are as old as its making
                "components": {
                    "database": {"kind": "postgres", "dsn": f"host=/nowhere dbname={DATABASE} user=drservice"},
                    "documents": {**documents, "addons": [str(code.addons)]},
                },
            }
        },
        "drills": {"nightly": {"service": "erp", "target": "latest"}},
    }
    path = root / "drservice.json"
    path.write_text(json.dumps(document))
    return path


def run(configuration: Path, *words: str | Path) -> dict[str, Any]:
    argv = [sys.executable, "-m", "drservice", "--config", str(configuration), *map(str, words), "--json"]
    done = subprocess.run(argv, check=False, capture_output=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_zip_that_odoo_made_is_drilled_with_every_check_of_odoo(
    zipped: tuple[Path, Code], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, code = zipped
    root = tmp_path_factory.mktemp("site")
    for parent in (root, *root.parents[:2]):
        parent.chmod(0o755)  # what runs inside is not root
    configuration = configured(root, code)
    run(configuration, "init")
    imported = run(configuration, "import", "erp", path)
    assert imported["state"] == "complete"
    assert imported["documents"]["expected"] > 0
    assert imported["left_out"].keys() <= {"privileges"}
    assert imported["origin"]["version"].startswith("19.0")
    drill = run(configuration, "drill", "erp", "--plan", "nightly")
    assert drill["verdict"] == "passed"
    assert drill["documents"] == {**drill["documents"], "expected": imported["documents"]["expected"], "missing": 0}
    passed = {check["name"].rpartition("/")[2] for check in drill["checks"] if check["state"] == "passed"}
    assert {"odoo-modules", "odoo-code"} <= passed, passed
