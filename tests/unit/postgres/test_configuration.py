"""Configuration outside the data directory as a snapshot keeps it, and as it is handed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from drservice.components.postgres.configuration import (
    LARGEST_FILE_BYTES,
    Configuration,
    ConfigurationFile,
    decode_configuration,
    encode_configuration,
)
from drservice.components.postgres.supplying import supply_configuration
from drservice.errors import FormatError, RecoveryError

HBA = ConfigurationFile(path="/etc/pg/pg_hba.conf", role="hba_file", mode=0o640, content=b"local all all peer\n")
MAIN = ConfigurationFile(path="/etc/pg/postgresql.conf", role="config_file", mode=0o644, content=b"port = 1\n")
KEPT = Configuration(
    data_directory="/var/lib/pg\udcff",
    files=(HBA, MAIN),
    missing=(("/etc/pg/secret.conf", "Permission denied"),),
    left_out=(("/etc/ssl/key.pem", "ssl_key_file: keys are not taken"),),
)


def test_what_is_encoded_is_decoded() -> None:
    assert decode_configuration(encode_configuration(KEPT), "it") == KEPT
    shuffled = replace(KEPT, files=(MAIN, HBA))
    assert decode_configuration(encode_configuration(shuffled), "it") == KEPT


@pytest.mark.parametrize(
    "path",
    [b"etc/pg.conf", b"/etc/../root/.ssh/id", b"//etc/x", b"/etc/./x", b"/etc/x/", b"/", b"", b"/etc/\0", b"/etc//x"],
)
def test_a_path_that_leads_elsewhere_is_refused(path: bytes) -> None:
    files = [{"p": path, "r": "x", "m": 0o600, "c": b""}]
    raw = msgpack.packb({"v": 1, "data_directory": b"", "files": files, "missing": [], "left_out": []})
    with pytest.raises(FormatError, match="path that is none"):
        decode_configuration(raw, "it")


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"files": None},
        {"missing": [["text", "reason"]]},
        {"left_out": {}},
        {"data_directory": "text"},
        {"files": [{"p": b"/a", "r": "x", "m": 0o1777, "c": b""}]},
        {"files": [{"p": b"/a", "r": "x", "m": True, "c": b""}]},
        {"files": [{"p": b"/a", "r": "x", "m": 0, "c": bytes(LARGEST_FILE_BYTES + 1)}]},
        {"files": [{"p": path, "r": "x", "m": 0, "c": b""} for path in (b"/b", b"/a")]},
        {"files": [{"p": path, "r": "x", "m": 0, "c": b""} for path in (b"/a", b"/a")]},
        {"files": [{"p": path, "r": "x", "m": 0, "c": b""} for path in (b"/a", b"/a-b", b"/a/b")]},
    ],
)
def test_what_does_not_follow_the_format_is_refused(change: dict[str, object]) -> None:
    fields = {"v": 1, "data_directory": b"", "files": [], "missing": [], "left_out": []}
    assert decode_configuration(msgpack.packb(fields), "it").is_empty
    with pytest.raises(FormatError, match="it "):
        decode_configuration(msgpack.packb(fields | change), "it")


def test_files_are_handed_over_under_their_paths_and_told_where_they_came_from(tmp_path: Path) -> None:
    folder = supply_configuration(KEPT, tmp_path, snapshot="01ABC", account=None)
    assert folder == tmp_path / "configuration"
    assert (folder / "etc/pg/postgresql.conf").read_bytes() == MAIN.content
    assert (folder / "etc/pg/pg_hba.conf").stat().st_mode & 0o777 == 0o600
    told = (folder / "ORIGIN.txt").read_text()
    assert "/etc/pg/pg_hba.conf  (mode 0640, hba_file)" in told
    assert "/etc/pg/secret.conf  (Permission denied)" in told
    assert "/etc/ssl/key.pem" in told
    assert "\\xdcff" in told


def test_what_is_there_is_neither_followed_nor_written_over(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.mkdir()
    (target / "configuration").symlink_to(elsewhere)
    assert supply_configuration(KEPT, target, snapshot="01ABC", account=None).name == "configuration-01ABC"
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(RecoveryError, match="File exists"):
        supply_configuration(KEPT, target, snapshot="01ABC", account=None)
