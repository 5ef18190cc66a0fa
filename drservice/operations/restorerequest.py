"""What is asked of a restore, what it works with, and what it brings: the values of the verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from drservice.clock import Clock
from drservice.components.postgres.recovery import TargetAction
from drservice.components.postgres.server import PostgresPrograms
from drservice.components.postgres.tablespaces import Moved
from drservice.environments.interface import EnvironmentDescription, Probe
from drservice.environments.limits import Limits
from drservice.model.estate import FilesComponent, PostgresSettings, Service
from drservice.model.ids import EnvironmentId, SnapshotId
from drservice.model.losses import LossReport
from drservice.model.neutralized import Neutralized
from drservice.model.recovery import Target
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.filesrestore import RestoredFiles
from drservice.operations.inventory import Archived
from drservice.operations.locate import Resolved
from drservice.operations.progress import Progress
from drservice.operations.replay import Reached
from drservice.operations.selection import Selected, SideRestore
from drservice.operations.sharedinstant import Ends
from drservice.operations.tablespaces import RestoredTablespace
from drservice.repository.records import Scope
from drservice.repository.repository import Repository


class Afterwards(Enum):
    """What becomes of the recovered server."""

    STOP = "stop"
    LEAVE_RUNNING = "leave running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreContext:
    """What a restore works with."""

    repository: Repository
    state_dir: Path
    clock: Clock
    progress: Progress

    @property
    def environments_dir(self) -> Path:
        """Where environments are made."""
        return self.state_dir / "environments"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """What is asked for."""

    service: Service
    component: PostgresSettings
    target: Target
    into: Path | None
    """A directory that keeps what is restored; ``None`` = inside the environment. New or empty, unless ``delta``."""
    delta: bool = False
    """Restore onto the cluster's directory if there is one of the same cluster: only what differs is fetched."""
    afterwards: Afterwards
    files: tuple[FilesComponent, ...] = ()
    """Folders to restore with the cluster. With any, ``into`` gets a folder for each component, by its name."""
    tablespaces: Mapping[str, Path] = field(default_factory=dict)
    """Which extra tablespaces (location or OID) go into new or empty folders of their own, instead of ``pg_tblspc``."""
    without: frozenset[SnapshotId] = frozenset()
    """Snapshots not to start from, because they are known to be damaged."""
    database: str | None = None
    """Bring back only this database of the cluster; the content of the others is left out, and no files follow it."""
    purpose: str = "restore"
    limits: Limits = field(default_factory=Limits)
    action: TargetAction = TargetAction.PROMOTE
    """What the recovered server does at the target."""
    neutralize: bool = False
    """Make the copies of Odoo's databases do nothing outside, before anything of Odoo starts on them."""
    in_place: bool = False
    """``into`` is production's own directory; see :mod:`~drservice.operations.inplace`, which alone sets it."""
    made: Callable[[EnvironmentId], None] = lambda _: None
    """Hears which environment was made before anything runs in it."""
    before_writing: Callable[[Planned], None] = lambda _: None
    """Hears the plan when nothing is left that could refuse, before anything is written; may refuse."""

    @property
    def cluster_directory(self) -> Path | None:
        """Where the cluster is kept; ``None`` = inside the environment."""
        return self.into / self.component.name if self.into is not None and self.files else self.into


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan with all it was made from."""

    resolved: Resolved
    archived: Archived
    scope: Scope
    records: tuple[SnapshotRecord, ...]
    """The snapshots that were considered, oldest first."""
    unreadable: tuple[str, ...]
    """Snapshots that could not be considered, with the reason."""
    selected: Selected | None = None
    """What of the snapshot is placed; ``None`` = all of it."""
    moved: tuple[Moved, ...] = ()
    """Tablespaces that go into folders of their own."""
    ends: Ends | None = None
    """Where rows and documents end along the way; asked for ``consistent``, and for ``latest`` with documents."""

    @property
    def placed_bytes(self) -> int:
        """The size of what is placed."""
        return self.resolved.plan.snapshot.source_bytes if self.selected is None else self.selected.wanted_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceOutcome:
    """What became of production's own directory beside the restore."""

    directory: Path
    aside: Path
    """The folder with what was in it and is nowhere else: its configuration, WAL that could not be archived."""
    salvaged: tuple[str, ...]
    """Names of the WAL files that were archived before anything was written."""
    set_aside: tuple[str, ...]
    """Names of WAL files that are in no archive, in ``pg_wal`` of ``aside``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What a restore brought."""

    planned: Planned
    reached: Reached
    phases: dict[str, float]
    rto_seconds: float
    environment: EnvironmentDescription
    kept: bool
    """Whether the environment still runs."""
    into: Path | None
    isolation: Sequence[Probe]
    restored_bytes: int
    fetched_bytes: int
    wal_segments: int
    stripped_settings: tuple[str, ...]
    programs: PostgresPrograms
    data_checksums: bool
    database: str | None
    """The one database that was brought back, else the one that production's dsn names."""
    files: tuple[RestoredFiles, ...] = ()
    side: SideRestore | None = None
    """Set if only one database was brought back."""
    tablespaces: tuple[RestoredTablespace, ...] = ()
    """Where the extra ones lie now, also those created after the snapshot."""
    action: TargetAction = TargetAction.PROMOTE
    in_place: InPlaceOutcome | None = None
    """Set if production's own directory was restored."""
    losses: tuple[LossReport, ...] = ()
    """What was lost, of each database that Odoo's documents follow."""
    neutralized: tuple[Neutralized, ...] = ()
    """What was done to each database that Odoo's documents follow, if that was asked for."""

    @property
    def used_records(self) -> tuple[SnapshotRecord, ...]:
        """Every snapshot that something was placed from, the cluster's first."""
        return (self.planned.resolved.plan.snapshot, *(record for item in self.files for record in item.records))

    @property
    def is_partial(self) -> bool:
        """Whether something is missing that the rows refer to, or that was there."""
        return any(item.problems() for item in self.files)
