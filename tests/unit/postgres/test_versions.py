"""Version gates of PostgreSQL's programs: refused before anything begins, by name and with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.components.postgres.server import find_programs, require_tool
from drservice.components.postgres.versions import KNOWN_PROBLEMS, known_problems, package_of, rule_for
from drservice.errors import ExitStatus, ProgramMissingError, ProgramVersionError, UnsupportedClusterError


def install(folder: Path, program: str, version: str) -> Path:
    """Put a program there that tells a version."""
    folder.mkdir(exist_ok=True)
    path = folder / program
    path.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
    path.chmod(0o755)
    return folder


def test_a_pg_basebackup_older_than_the_server_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    folder = install(tmp_path / "bin", "pg_basebackup", "14.20 (Debian 14.20-1)")
    with pytest.raises(ProgramVersionError) as caught:
        require_tool("pg_basebackup", server=15, directory=folder)
    assert caught.value.message == (
        f"pg_basebackup of PostgreSQL 15 or newer is needed here, but installed is 14.20 in {folder}"
    )
    assert "postgresql-client-15" in caught.value.hint
    assert caught.value.exit_status is ExitStatus.USAGE


@pytest.mark.parametrize("program", ["pg_basebackup", "pg_dump", "pg_restore"])
def test_a_client_newer_than_the_server_is_taken(tmp_path: Path, program: str) -> None:
    found = require_tool(program, server=15, directory=install(tmp_path / "bin", program, "17.6"))
    assert (found.major, found.minor) == (17, 6)


@pytest.mark.parametrize("program", ["postgres", "pg_waldump", "pg_checksums"])
@pytest.mark.parametrize("version", ["14.20", "16.4"])
def test_what_opens_the_clusters_files_must_be_of_its_very_version(tmp_path: Path, program: str, version: str) -> None:
    with pytest.raises(ProgramVersionError, match="PostgreSQL 15 is needed") as caught:
        require_tool(program, server=15, directory=install(tmp_path / "bin", program, version))
    assert "apt-get install postgresql-15 " in caught.value.hint


def test_a_client_of_the_very_version_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ProgramVersionError):
        find_programs(15, program="pg_dump", directory=install(tmp_path / "bin", "pg_dump", "16.4"))


def test_a_program_that_is_not_there_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match="pg_restore of PostgreSQL 16 or newer is not installed") as caught:
        require_tool("pg_restore", server=16, directory=tmp_path)
    assert not isinstance(caught.value, ProgramVersionError)
    assert "postgresql-client-16" in caught.value.hint


@pytest.mark.parametrize("major", [12, 19])
def test_a_server_newer_or_older_than_what_is_supported_is_refused(major: int) -> None:
    with pytest.raises(UnsupportedClusterError, match=f"PostgreSQL {major} is not supported"):
        require_tool("pg_basebackup", server=major)


@pytest.mark.parametrize(
    ("program", "version", "names"),
    [
        ("pg_dump", (15, 13), {"CVE-2025-8714", "CVE-2025-8715", "CVE-2026-6477", "CVE-2026-18408"}),
        ("pg_dump", (15, 18), {"CVE-2026-18408"}),
        ("pg_restore", (17, 5), {"CVE-2025-8714", "CVE-2025-8715", "CVE-2026-18408"}),
        ("pg_dump", (15, 19), set()),
        ("pg_dump", (13, 23), {"CVE-2026-6477", "CVE-2026-18408"}),
        ("pg_dump", (18, 6), set()),
        ("pg_basebackup", (15, 3), set()),
        ("postgres", (14, 3), {"indexes of 14.0 to 14.3"}),
        ("postgres", (14, 4), set()),
    ],
)
def test_known_problems_are_those_of_the_minor_version(program: str, version: tuple[int, int], names: set[str]) -> None:
    found = known_problems(program, *version)
    assert {problem.name for problem in found} == names
    for problem in found:
        assert f"{version[0]}." in problem.describe(version[0]) or "got no fix" in problem.describe(version[0])


def test_every_known_problem_has_a_source() -> None:
    assert all(problem.source.startswith("https://") and problem.fixed for problem in KNOWN_PROBLEMS)


def test_packages_are_debians() -> None:
    assert package_of("pg_dump", 15) == "postgresql-client-15"
    assert package_of("pg_waldump", 15) == "postgresql-15"
    assert rule_for("pg_dump") is not rule_for("pg_controldata")
