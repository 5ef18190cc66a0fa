"""Finding PostgreSQL's own programs and refusing versions that cannot do what is asked (rules in ``versions``)."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.components.postgres.versions import (
    SUPPORTED_MAJORS,
    KnownProblem,
    VersionRule,
    known_problems,
    package_of,
    rule_for,
)
from drservice.errors import ProgramMissingError, ProgramVersionError, UnsupportedClusterError

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
                hint=f"Install it: apt-get install {package_of(program, self.major)}",
            )
        return found

    def problems(self, program: str) -> tuple[KnownProblem, ...]:
        """Return the known problems of one of these programs."""
        return known_problems(program, self.major, self.minor)


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
    """Find the programs of exactly one major version, whatever the program.

    A binary of another major version cannot read the cluster and is never taken instead. As :func:`require_tool`
    otherwise.

    Args:
        major: the version of the cluster.
        program: the one whose ``--version`` is asked and that must be there (a host that only drives
            ``pg_basebackup`` has no ``postgres``).
        directory: overrides the search.

    Raises:
        UnsupportedClusterError: a version outside the supported ones.
        ProgramMissingError: not installed.
        ProgramVersionError: installed in other versions only.
    """
    return _find(program, server=major, rule=VersionRule.SAME, directory=directory)


def require_tool(program: str, *, server: int, directory: Path | None = None) -> PostgresPrograms:
    """Find a program in a version that may be used on a cluster, before anything is begun with it.

    What opens the cluster's files (``postgres``, ``pg_waldump``, ...) must be of its own major version; a client
    (``pg_basebackup``, ``pg_dump``, ``pg_restore``, ``psql``) may be newer, and the nearest version is taken. Looked
    for in ``directory`` alone if given, else in the system's usual places, then on the PATH. For known problems of the
    minor version found ask :meth:`PostgresPrograms.problems`; they are told, not refused.

    Args:
        program: its name.
        server: the cluster's major version.
        directory: overrides the search.

    Raises:
        UnsupportedClusterError: a cluster outside the supported versions.
        ProgramMissingError: not installed; the hint names the package.
        ProgramVersionError: installed in versions only that cannot serve; names what is needed and what is there.
    """
    return _find(program, server=server, rule=rule_for(program), directory=directory)


def _find(program: str, *, server: int, rule: VersionRule, directory: Path | None) -> PostgresPrograms:
    require_supported(server)
    seen: list[str] = []
    for candidate in _candidates(program, server, directory):
        if not (candidate / program).is_file():
            continue
        major, minor = version_of(candidate / program)
        if rule.allows(program=major, server=server):
            return PostgresPrograms(major=major, minor=minor, directory=candidate)
        seen.append(f"{major}.{minor} in {candidate}")
    remedy = f"apt-get install {package_of(program, server)} (PostgreSQL's own archive has what Debian lacks)."
    if seen:
        raise ProgramVersionError(
            f"{program} of {rule.needs(server)} is needed here, but installed is {', '.join(dict.fromkeys(seen))}",
            hint=f"Install it beside the other: {remedy}",
        )
    raise ProgramMissingError(f"{program} of {rule.needs(server)} is not installed here", hint=f"Install it: {remedy}")


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


def _candidates(program: str, server: int, directory: Path | None) -> list[Path]:
    """Return where a program may be: the server's own version first, then newer ones, then older ones to be named."""
    if directory is not None:
        return [directory]
    newer = range(server + 1, SUPPORTED_MAJORS.stop)
    majors = (server, *newer, *range(SUPPORTED_MAJORS.start, server))
    found = [Path(place.format(major=major)) for major in majors for place in _PLACES]
    on_path = shutil.which(program)
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return list(dict.fromkeys(found))
