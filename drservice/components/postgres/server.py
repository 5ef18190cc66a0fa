"""Finding PostgreSQL's own programs and refusing versions nobody tested."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.errors import ProgramMissingError, UnsupportedClusterError

SUPPORTED_MAJORS = range(13, 19)

_PLACES = ("/usr/lib/postgresql/{major}/bin", "/usr/pgsql-{major}/bin", "/usr/local/pgsql/bin")
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresPrograms:
    """The programs of one installed major version."""

    major: int
    minor: int
    directory: Path

    def path(self, program: str) -> Path:
        """Return the path of a program.

        Raises:
            ProgramMissingError: the installation lacks it.
        """
        found = self.directory / program
        if not found.is_file():
            raise ProgramMissingError(
                f"{self.directory} has no {program}",
                hint=f"Install it: apt-get install postgresql-{self.major} postgresql-client-{self.major}",
            )
        return found


def require_supported(major: int) -> None:
    """Refuse a PostgreSQL version that is not supported.

    Raises:
        UnsupportedClusterError: outside 13 to 18.
    """
    if major not in SUPPORTED_MAJORS:
        raise UnsupportedClusterError(
            f"PostgreSQL {major} is not supported",
            hint=f"Supported are {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}.",
        )


def find_programs(major: int, *, program: str = "postgres", directory: Path | None = None) -> PostgresPrograms:
    """Find the programs of exactly one major version.

    Looked for in ``directory`` alone if given, else in the system's usual places, then on the PATH. A binary
    of another major version cannot read the cluster and is never taken instead.

    Args:
        major: the version of the cluster.
        program: the one whose ``--version`` is asked and that must be there (a host that only drives
            ``pg_basebackup`` has no ``postgres``).
        directory: overrides the search.

    Raises:
        UnsupportedClusterError: a version outside the supported ones.
        ProgramMissingError: not installed in this version.
    """
    require_supported(major)
    seen: list[str] = []
    for candidate in _candidates(major, program, directory):
        if not (candidate / program).is_file():
            continue
        version = version_of(candidate / program)
        if version[0] == major:
            return PostgresPrograms(major=major, minor=version[1], directory=candidate)
        seen.append(f"{candidate} has {version[0]}")
    raise ProgramMissingError(
        f"PostgreSQL {major} ({program}) is not installed here" + (f"; {', '.join(seen)}" if seen else ""),
        hint=f"Install it: apt-get install postgresql-{major} (PostgreSQL's own archive has what Debian lacks).",
    )


def version_of(program: Path) -> tuple[int, int]:
    """Return major and minor version as the program tells; a beta has minor 0.

    Raises:
        ProgramMissingError: it does not run or is not PostgreSQL's.
    """
    result = processes.run([program, "--version"], timeout_seconds=30)
    match = _VERSION.search(result.stdout.decode("utf-8", "replace"))
    if result.status != 0 or match is None:
        raise ProgramMissingError(f"{program} --version failed: {result.last_line() or 'no answer'}")
    return int(match[1]), int(match[2] or 0)


def _candidates(major: int, program: str, directory: Path | None) -> list[Path]:
    if directory is not None:
        return [directory]
    found = [Path(place.format(major=major)) for place in _PLACES]
    on_path = shutil.which(program)
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return found
