"""Keeping loss reports on a host."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.errors import FormatError
from drservice.model.ids import EnvironmentId, make_ulid
from drservice.operations.lossreport import keep_report, kept_reports, read_report, reports_of

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def environment(number: int) -> EnvironmentId:
    return EnvironmentId(make_ulid(NOW + timedelta(seconds=number), bytes(10)))


def test_reports_are_kept_for_their_reader_alone_and_the_oldest_go(tmp_path: Path) -> None:
    assert kept_reports(tmp_path) == []
    for number in range(60):
        keep_report(tmp_path, environment(number), {"losses": [{"database": f"plant {number}"}]})
    assert kept_reports(tmp_path) == [environment(number) for number in range(10, 60)]
    newest = read_report(tmp_path, environment(59))
    assert reports_of(newest) == [{"database": "plant 59"}]
    files = list((tmp_path / "losses").iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "losses").stat().st_mode & 0o777 == 0o700
    assert len(files) == 50


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    keep_report(tmp_path, environment(1), {"losses": []})
    (tmp_path / "losses" / f"{environment(1)}.json").write_text(text)
    with pytest.raises(FormatError):
        read_report(tmp_path, environment(1))


def test_a_document_without_reports_is_refused() -> None:
    for spoilt in ({}, {"losses": "x"}, {"losses": ["x"]}, {"losses": None}):
        with pytest.raises((KeyError, ValueError)):
            reports_of(spoilt)
