"""Which version of a module's code is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.components.odoo.manifests import Code, read_code, series_of


def put(folder: Path, name: str, manifest: str | bytes) -> None:
    path = folder / name / "__manifest__.py"
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())


@pytest.mark.parametrize(
    ("version", "series"),
    [("19.0.1.3", "19.0"), ("saas~18.2.1.0", "saas~18.2"), ("1", None), ("", None), ("x19.0.1", None)],
)
def test_the_series_is_what_the_version_of_base_begins_with(version: str, series: str | None) -> None:
    assert series_of(version) == series


@pytest.mark.parametrize(
    ("manifest", "version"),
    [
        ("{'version': '1.3'}", "19.0.1.3"),
        ("{'version': '19.0.1.3'}", "19.0.1.3"),
        ("{'version': '19.0'}", "19.0.19.0"),  # so does Odoo
        ("{'name': 'without'}", "19.0.1.0"),
        ("# a comment\n{'version': '2' '.0', 'depends': ['base'], 'installable': True}", "19.0.2.0"),
    ],
)
def test_a_version_is_completed_as_odoo_does_it(tmp_path: Path, manifest: str, version: str) -> None:
    put(tmp_path, "sale", manifest)
    assert read_code([tmp_path], ["sale"], series="19.0") == {"sale": Code(version=version)}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (b"open('/tmp/x')", "cannot be read"),
        (b"{'version': ", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"['1.0']", "is no dictionary"),
        (b"#" * ((1 << 20) + 1), "more than"),
        (b"(" * 100_000, "cannot be read"),
        (b"{[]: 1}", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_is_told_and_never_run(tmp_path: Path, manifest: bytes, problem: str) -> None:
    put(tmp_path, "sale", manifest)
    found = read_code([tmp_path], ["sale"], series="19.0")["sale"]
    assert found.version is None
    assert problem in (found.problem or "")


def test_the_first_folder_counts_and_a_hostile_name_leads_nowhere(tmp_path: Path) -> None:
    put(tmp_path / "one", "sale", "{'version': '2.0'}")
    put(tmp_path / "two", "sale", "{'version': '1.0'}")
    found = read_code([tmp_path / "one", tmp_path / "two"], ["sale", "../two/sale", "", "gone"], series="19.0")
    assert found == {
        "sale": Code(version="19.0.2.0"),
        "../two/sale": Code(version=None),
        "": Code(version=None),
        "gone": Code(version=None),
    }
