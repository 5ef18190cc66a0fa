"""Which filestores a host captures documents of."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.model.estate import Estate
from drservice.node.documentstreams import wanted_captures
from drservice.settings.loading import load

CONFIGURATION = """
version: 1
state_dir: {base}/state
repository: {{url: "file://{base}/repository", recipients: [{recipient}]}}
services:
  erp:
    components:
      database: {{kind: postgres, dsn: "host=/nowhere", method: pg_basebackup}}
      documents: {{kind: odoo-filestore, path: {base}/filestore, database: erp, node: {node}, stream: {stream}}}
      folder: {{kind: directory, path: {base}}}
"""
RECIPIENT = "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex"


def estate(base: Path, *, node: str = "null", stream: str = "true") -> Estate:
    config = base / "drservice.yaml"
    config.write_text(CONFIGURATION.format(base=base, node=node, stream=stream, recipient=RECIPIENT))
    return load(config).estate


def test_the_host_that_has_the_folder_captures_unless_another_is_named(tmp_path: Path) -> None:
    assert list(wanted_captures(estate(tmp_path), "db1")) == []
    (tmp_path / "filestore").mkdir()
    assert list(wanted_captures(estate(tmp_path), "db1")) == ["erp/documents"]
    assert list(wanted_captures(estate(tmp_path, node="db2"), "db1")) == []


def test_a_named_host_captures_also_while_its_folder_is_away(tmp_path: Path) -> None:
    assert list(wanted_captures(estate(tmp_path, node="db1"), "db1")) == ["erp/documents"]


def test_what_is_not_to_be_streamed_is_not(tmp_path: Path) -> None:
    (tmp_path / "filestore").mkdir()
    assert list(wanted_captures(estate(tmp_path, stream="false"), "db1")) == []


@pytest.mark.parametrize("interval", ["500ms", "2h"])
def test_an_interval_is_between_a_second_and_an_hour(tmp_path: Path, interval: str) -> None:
    from drservice.errors import ConfigurationError  # noqa: PLC0415 - only this test needs it

    with pytest.raises(ConfigurationError):
        estate(tmp_path, stream=f"true, interval: {interval}")
