"""Which components a host has WAL helpers for."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.node.walhelpers import wanted_helpers
from drservice.settings.loading import load

CONFIGURATION = """
version: 1
state_dir: {base}/state
repository: {{url: "file://{base}/repository", recipients: [{recipient}]}}
services:
  erp:
    components:
      database: {{kind: postgres, dsn: "host=/nowhere", data_directory: {base}/data, node: {node}}}
      elsewhere: {{kind: postgres, dsn: "host=db9", method: pg_basebackup}}
"""
RECIPIENT = "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex"


@pytest.mark.parametrize(("node", "wanted"), [("null", ["erp/database"]), ("db1", ["erp/database"]), ("db2", [])])
def test_a_host_has_helpers_for_the_clusters_whose_disks_it_has(tmp_path: Path, node: str, wanted: list[str]) -> None:
    config = tmp_path / "drservice.yaml"
    config.write_text(CONFIGURATION.format(base=tmp_path, node=node, recipient=RECIPIENT))
    estate = load(config).estate
    assert list(wanted_helpers(estate, "db1")) == []
    control = tmp_path / "data" / "global" / "pg_control"
    control.parent.mkdir(parents=True)
    control.touch()
    assert list(wanted_helpers(estate, "db1")) == wanted
