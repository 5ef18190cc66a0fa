"""Which version of one of PostgreSQL's programs may touch which cluster, and which minor versions have known problems.

Pure tables, each row with its source. A program that opens a cluster's files or WAL must be of the cluster's own major
version; a client may be newer than the server, never older: ``pg_basebackup`` and ``pg_dump`` end by themselves then
("incompatible server version" in ``pg_basebackup.c``, "aborting because of server version mismatch" in
``pg_backup_db.c``), but only when they run. Asked here, a backup is refused before it begins.

Left out on purpose: CVE-2026-6475 (``pg_basebackup`` follows symbolic links of a hostile server) concerns the plain
format; drservice takes the tar format and extracts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

SUPPORTED_MAJORS = range(13, 19)


class VersionRule(Enum):
    """How the major version of a program must relate to the server's."""

    SAME = "same"
    """It opens files or WAL of the cluster."""
    SAME_OR_NEWER = "same or newer"
    """It speaks to a server; newer programs know older servers."""

    def allows(self, *, program: int, server: int) -> bool:
        """Tell whether a program's major version will do for a server's."""
        return program == server or (self is VersionRule.SAME_OR_NEWER and program > server)

    def needs(self, server: int) -> str:
        """Return what is needed, in words."""
        return f"PostgreSQL {server}" if self is VersionRule.SAME else f"PostgreSQL {server} or newer"


_CLIENTS = frozenset({"pg_basebackup", "pg_dump", "pg_dumpall", "pg_restore", "psql"})
"""Debian has these in ``postgresql-client-N``, all others in ``postgresql-N``."""


def rule_for(program: str) -> VersionRule:
    """Return the rule of a program; one that is not known as a client must be of the very version."""
    return VersionRule.SAME_OR_NEWER if program in _CLIENTS else VersionRule.SAME


def package_of(program: str, major: int) -> str:
    """Return the Debian package that holds a program."""
    return f"postgresql-client-{major}" if program in _CLIENTS else f"postgresql-{major}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProblem:
    """A fault of some minor versions that concerns backups, dumps or what is recovered."""

    name: str
    programs: frozenset[str]
    fixed: Mapping[int, int]
    """Major version -> the first minor version without the problem."""
    never_fixed: frozenset[int] = frozenset()
    """Major versions that had reached their end before the problem was found."""
    says: str
    source: str

    def concerns(self, program: str, major: int, minor: int) -> bool:
        """Tell whether this version of a program has the problem."""
        if program not in self.programs:
            return False
        return major in self.never_fixed or (major in self.fixed and minor < self.fixed[major])

    def describe(self, major: int) -> str:
        """Return the problem and its remedy in words."""
        if major in self.never_fixed:
            return f"{self.name}: {self.says}; PostgreSQL {major} got no fix"
        return f"{self.name}: {self.says}; fixed in {major}.{self.fixed[major]}"


_DUMPS = frozenset({"pg_dump", "pg_dumpall", "pg_restore"})

KNOWN_PROBLEMS: Sequence[KnownProblem] = (
    KnownProblem(
        name="CVE-2024-7348",
        programs=frozenset({"pg_dump", "pg_dumpall"}),
        fixed={13: 16, 14: 13, 15: 8, 16: 4},
        says="whoever may create objects in the database runs SQL as the user that dumps it",
        source="https://www.postgresql.org/support/security/CVE-2024-7348/",
    ),
    KnownProblem(
        name="CVE-2025-8714",
        programs=_DUMPS,
        fixed={13: 22, 14: 19, 15: 14, 16: 10, 17: 6},
        says="a superuser of the dumped server runs programs on the machine that loads a plain dump with psql",
        source="https://www.postgresql.org/support/security/CVE-2025-8714/",
    ),
    KnownProblem(
        name="CVE-2025-8715",
        programs=_DUMPS,
        fixed={13: 22, 14: 19, 15: 14, 16: 10, 17: 6},
        says="a line break in a name runs programs or SQL where the dump is loaded",
        source="https://www.postgresql.org/support/security/CVE-2025-8715/",
    ),
    KnownProblem(
        name="CVE-2026-6477",
        programs=frozenset({"pg_dump", "psql"}),
        fixed={14: 23, 15: 18, 16: 14, 17: 10, 18: 4},
        never_fixed=frozenset({13}),
        says="a hostile server writes into the memory of a client that reads large objects",
        source="https://www.postgresql.org/support/security/CVE-2026-6477/",
    ),
    KnownProblem(
        name="CVE-2026-18408",
        programs=_DUMPS,
        fixed={14: 24, 15: 19, 16: 15, 17: 11, 18: 6},
        never_fixed=frozenset({13}),
        says="the guard against CVE-2025-8714 can be left again: as there, with a plain dump",
        source="https://www.suse.com/security/cve/CVE-2026-18408/",
    ),
    KnownProblem(
        name="indexes of 14.0 to 14.3",
        programs=frozenset({"postgres"}),
        fixed={14: 4},
        says="CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY made indexes that miss rows; a backup keeps them",
        source="https://www.postgresql.org/docs/14/release-14-4.html",
    ),
)


def known_problems(program: str, major: int, minor: int) -> tuple[KnownProblem, ...]:
    """Return the known problems of a program's version; none is no promise that there are none."""
    return tuple(problem for problem in KNOWN_PROBLEMS if problem.concerns(program, major, minor))
