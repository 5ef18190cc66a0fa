"""``restore --in-place``: production's own data directory goes back to an instant, and nothing that is in it is lost.

Order. First everything that can refuse: no server runs on it, it is this cluster in this version, a plan stands, there
is room. Then the salvage: WAL that only the directory has is archived, and the plan is made again with it, so after a
crash ``--to latest`` loses nothing. Only then is the directory taken: ``pg_control`` is set aside, must be what it was
before the salvage (a server that ran meanwhile has written WAL), and ``pg_wal``, today's configuration and whatever
else is not data move into a folder beside it. What differs from the snapshot is fetched and written, recovery runs in
the sandbox and is proved, and the last step of all puts ``pg_control`` in place. Before it no server starts on the
directory, whoever tries (:mod:`~drservice.components.postgres.withholding`).

Killed at any point, the same command completes it: a note in ``state_dir`` names the folder, and what was salvaged is
in the archive or in that folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from drservice.clock import to_iso
from drservice.components.postgres.controlfile import parse_control
from drservice.components.postgres.existing import Existing, control_of, examine, put_back, set_aside
from drservice.components.postgres.presence import listener_of
from drservice.components.postgres.recovery import TargetAction
from drservice.components.postgres.server import find_programs
from drservice.components.postgres.withholding import is_cluster, unveil_control
from drservice.environments.marks import is_marked_directory
from drservice.environments.sandbox import list_sandboxes, open_sandbox
from drservice.errors import (
    DrError,
    NeutralizedCopyError,
    RecoveryError,
    SegmentConflictError,
    ServerRunningError,
    TargetDirectoryError,
    TargetOutsideWindowError,
    UnsupportedClusterError,
    UsageError,
    WalGapError,
)
from drservice.model.ids import SystemId
from drservice.model.recovery import TargetKind
from drservice.model.snapshot import SnapshotRecord
from drservice.objectstore.locks import host_lock
from drservice.operations.asidefolder import AsideFolder, begin_aside, copied_bytes, find_aside
from drservice.operations.inventory import Archived, archive_of, newest_lineage
from drservice.operations.restore import run_restore
from drservice.operations.restoreplan import plan_restore
from drservice.operations.restorerequest import (
    Afterwards,
    InPlaceOutcome,
    Planned,
    RestoreContext,
    RestoreRequest,
    RestoreResult,
)
from drservice.operations.salvage import Salvageable, Salvaged, Unsaved, find_salvageable, salvage
from drservice.repository.records import Scope
from drservice.repository.target import free_bytes

_REPLAY_SEGMENTS = 6
"""What replay keeps in ``pg_wal`` beside what it has just got."""
_EXCHANGE_SEGMENTS = 40
"""What the feeder keeps and reads ahead, below ``state_dir``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a restore in place needs at most, and what there is."""

    directory: Path
    needed_bytes: int
    free_bytes: int

    def require(self) -> None:
        """Refuse to begin what cannot end.

        Raises:
            RecoveryError: with the bytes that are free and needed.
        """
        if self.free_bytes < self.needed_bytes:
            raise RecoveryError(
                f"{self.directory} has {self.free_bytes:,} bytes free, and {self.needed_bytes:,} are needed",
                hint="Free space on that file system; nothing was changed.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a restore in place would do; nothing was changed yet."""

    existing: Existing
    control: bytes
    """``pg_control`` of before anything else was looked at."""
    record: SnapshotRecord
    """The newest snapshot: whose cluster this is."""
    archived: Archived
    planned: Planned | None
    """``None`` if the target can at best be reached with what is salvaged."""
    refusal: DrError | None
    """Why there is no plan without it."""
    source: Path | None
    """Where the WAL is that may be salvaged; ``None`` if an earlier attempt left nothing to find."""
    items: tuple[Salvageable, ...]
    rooms: tuple[Room, ...]
    aside: AsideFolder | None
    """Of an earlier attempt that was not completed."""


def prepare_in_place(context: RestoreContext, request: RestoreRequest) -> Prepared:
    """Look at everything that can refuse, and at what would be done; changes nothing.

    Raises:
        UsageError, TargetDirectoryError, ServerRunningError, UnsupportedClusterError: it may not be done there.
        ProgramMissingError: PostgreSQL's programs of the cluster's version are not installed here.
        TargetOutsideWindowError, WalGapError: the target cannot be reached, and nothing is there to salvage.
    """
    scope = context.repository.scope(request.service.name, request.component.name)
    directory = _require_sensible(request)
    record = newest_lineage(context.repository.snapshots(scope).records)
    if record is None:
        raise TargetOutsideWindowError(
            f"{scope.service}/{scope.component} has no readable snapshot", hint="Take one: drservice backup."
        )
    aside = find_aside(context.state_dir, scope, directory)
    existing = _examine(directory, record, is_continued=aside is not None and not is_cluster(directory))
    control = control_of(existing)
    find_programs(record.postgres.server_version)
    archived = archive_of(context.repository, record)
    source = _source(directory, aside)
    items: tuple[Salvageable, ...] = ()
    if source is not None:
        items = find_salvageable(
            source,
            archived=archived.files,
            system_id=record.postgres.system_id,
            segment_bytes=record.postgres.segment_bytes,
            oldest_needed=_oldest_needed(context, scope, record.postgres.system_id),
        )
    planned: Planned | None = None
    refusal: DrError | None = None
    try:
        planned = plan_restore(context, request)
    except (TargetOutsideWindowError, WalGapError) as error:
        if not items:
            raise
        refusal = error
    used = planned.resolved.plan.snapshot if planned is not None else record
    rooms = _rooms(context, directory, used)
    return Prepared(
        existing=existing,
        control=control,
        record=record,
        archived=archived,
        planned=planned,
        refusal=refusal,
        source=source,
        items=items,
        rooms=rooms,
        aside=aside,
    )


def run_in_place(context: RestoreContext, request: RestoreRequest) -> RestoreResult:
    """Salvage, restore over the component's data directory, prove it, and make it a cluster again.

    A failure before the directory is taken leaves it as it was; one after it leaves a directory on which no server
    starts, and names the folder that has what was taken out. The same command completes it.

    Raises:
        BusyError: another restore in place of this component is running.
        As :func:`prepare_in_place` and :func:`~drservice.operations.restore.run_restore`.
    """
    scope = context.repository.scope(request.service.name, request.component.name)
    with _alone(context, scope):
        _end_leftovers(context, request)
        prepared = prepare_in_place(context, request)
        for room in prepared.rooms:
            room.require()
        salvaged = _salvage(context, request, scope, prepared)
        taken: list[AsideFolder] = []

        def take(planned: Planned) -> None:
            _require_same_path(planned, request, salvaged.unsaved)
            _require_own_timeline(planned, request, prepared)
            aside = prepared.aside or begin_aside(context.state_dir, scope, prepared.existing, now=context.clock.now())
            taken.append(aside)
            _take(prepared, aside)

        try:
            result = run_restore(
                context, replace(request, into=prepared.existing.path, delta=True, in_place=True, before_writing=take)
            )
        except DrError as error:
            if taken and not is_cluster(prepared.existing.path):
                raise _naming(error, taken[0], salvaged) from error
            raise
        except KeyboardInterrupt:
            if taken and not is_cluster(prepared.existing.path):
                context.progress.note(f"WARNING: {_unfinished(taken[0], salvaged)}")
            raise
        left = taken[0].tidy(keep={item.item.name.name for item in salvaged.unsaved})
        if left.foreign:
            context.progress.note(f"not PostgreSQL's, and kept in {taken[0].wal}: {', '.join(left.foreign)}")
        outcome = InPlaceOutcome(
            directory=prepared.existing.path,
            aside=taken[0].path,
            salvaged=tuple(item.name.name for item in salvaged.saved),
            set_aside=left.unsaved,
        )
        return replace(result, in_place=outcome)


def end_killed_attempt(context: RestoreContext, request: RestoreRequest) -> None:
    """End what an attempt that was killed left running on the directory; without one nothing happens.

    Raises:
        BusyError: the attempt is alive.
    """
    with _alone(context, context.repository.scope(request.service.name, request.component.name)):
        _end_leftovers(context, request)


def _alone(context: RestoreContext, scope: Scope) -> AbstractContextManager[None]:
    lock = context.state_dir / "run" / f"in-place-{scope.service}-{scope.component}.lock"
    return host_lock(lock, clock=context.clock, patience_seconds=0.0)


def _require_sensible(request: RestoreRequest) -> Path:
    """Return the directory, if what is asked for can be done in place at all.

    Raises:
        UsageError: it cannot.
        NeutralizedCopyError: it is a neutralized copy, or would become one.
    """
    directory = request.component.data_directory
    if directory is None:
        raise UsageError(
            f"{request.component.name} has no data_directory in the settings",
            hint="In place means over that directory: set it, or use --into DIR.",
        )
    if request.neutralize:
        raise NeutralizedCopyError(
            "--in-place brings production back, and --neutralize takes its mail, keys and scheduled actions away"
        )
    if is_marked_directory(directory):
        raise NeutralizedCopyError(
            f"{directory} is a neutralized copy, and no production",
            hint="Correct data_directory; a neutralized copy is ended with its folder, not restored over.",
        )
    if request.files:
        raise UsageError(
            f"{request.service.name} has files beside the cluster, and --in-place restores the cluster alone",
            hint=f"Say so with --component {request.component.name}. Documents: restore them into a folder of their own"
            " (--component DOCUMENTS --into DIR) and put back what is missing.",
        )
    if request.database is not None or request.tablespaces:
        raise UsageError("--in-place restores the whole cluster where it is: without --database and --tablespace")
    if request.afterwards is not Afterwards.STOP or request.action is not TargetAction.PROMOTE:
        raise UsageError(
            "--in-place leaves a cluster that was proved and shut down cleanly, for its own service to start",
            hint="To look first: --start (with --action pause) without --in-place; then --in-place to that instant.",
        )
    return directory


def _examine(directory: Path, record: SnapshotRecord, *, is_continued: bool) -> Existing:
    existing = examine(directory, system_id=record.postgres.system_id)
    if existing is None:
        raise UsageError(
            f"{directory} is not there or empty: nothing is in place that could be restored over",
            hint="Use --into DIR with the path of the data directory.",
        )
    version = _first_line(directory / "PG_VERSION")
    if version != str(record.postgres.server_version):
        raise TargetDirectoryError(
            f"{directory} is of PostgreSQL {version}, the newest snapshot of {record.postgres.server_version}",
            hint="A snapshot restores with its own major version only. Use --into a new directory.",
        )
    listens = listener_of(directory)
    if listens is not None:
        raise ServerRunningError(f"a server may run on {directory}: {listens}")
    for path, what in ((directory / "pg_wal", "pg_wal"), (directory / "global", "global")):
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(path.lstat().st_mode):
                raise UnsupportedClusterError(
                    f"{what} in {directory} is a symbolic link to {path.readlink()}",
                    hint="In place is for directories that hold their WAL. Restore --into a new directory, and link"
                    " pg_wal there again.",
                )
    if not is_continued and any((directory / "pg_tblspc").glob("*")):  # else they are the attempt's, of the snapshot
        raise UnsupportedClusterError(
            f"{directory} has tablespaces beside it, which --in-place does not restore over",
            hint="Restore --into a new directory.",
        )
    return existing


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise TargetDirectoryError(f"cannot read {path}: {error}") from error


def _source(directory: Path, aside: AsideFolder | None) -> Path | None:
    """Return the ``pg_wal`` that production wrote: once the directory was taken, never the one of the attempt."""
    if aside is not None:
        return aside.wal if aside.wal.is_dir() else directory / "pg_wal"
    return directory / "pg_wal" if is_cluster(directory) else None


def _oldest_needed(context: RestoreContext, scope: Scope, system_id: SystemId) -> int:
    """Return the number of the segment in which the oldest snapshot of this cluster begins."""
    facts = [item.postgres for item in context.repository.snapshots(scope).records]
    return min(item.start_lsn.segment_number(item.segment_bytes) for item in facts if item.system_id == system_id)


def _rooms(context: RestoreContext, directory: Path, record: SnapshotRecord) -> tuple[Room, ...]:
    """Return what is needed where: a file that is there is written over, so only what comes on top counts."""
    segment = record.postgres.segment_bytes
    grows = max(0, record.source_bytes - _occupied(directory)) + _REPLAY_SEGMENTS * segment
    exchange = _EXCHANGE_SEGMENTS * segment + copied_bytes(directory)
    state = context.state_dir
    if state.stat().st_dev == directory.stat().st_dev:
        return (Room(directory=directory, needed_bytes=grows + exchange, free_bytes=free_bytes(directory)),)
    return (
        Room(directory=directory, needed_bytes=grows, free_bytes=free_bytes(directory)),
        Room(directory=state, needed_bytes=exchange, free_bytes=free_bytes(state)),
    )


def _occupied(directory: Path) -> int:
    """Return the bytes of what may be written over: everything but the WAL, which moves aside and stays for a while."""
    total = 0
    for folder, folders, files, descriptor in os.fwalk(directory, follow_symlinks=False):
        if Path(folder) == directory and "pg_wal" in folders:
            folders.remove("pg_wal")
        for name in files:
            with suppress(FileNotFoundError):
                facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                total += min(facts.st_blocks * 512, facts.st_size)
    return total


def _salvage(context: RestoreContext, request: RestoreRequest, scope: Scope, prepared: Prepared) -> Salvaged:
    if prepared.source is None:
        context.progress.note(
            "WARNING: an earlier restore has begun on this directory and its notes are gone: no WAL is salvaged from it"
        )
        return Salvaged(saved=(), unsaved=())
    if not prepared.items:
        return Salvaged(saved=(), unsaved=())
    done = salvage(
        prepared.source,
        prepared.items,
        context.repository.wal(scope),
        archived=prepared.archived.files,
        system_id=prepared.record.postgres.system_id,
        progress=context.progress,
    )
    for item in done.unsaved:
        context.progress.note(f"WARNING: not archived: {item.item.file}: {item.error.message}")
    if done.unsaved and prepared.planned is None:
        raise _not_saved(done.unsaved, request, prepared.source)
    return done


def _require_same_path(planned: Planned, request: RestoreRequest, unsaved: tuple[Unsaved, ...]) -> None:
    """Refuse to go to the latest position without WAL of its timeline, or a later one, that could not be archived.

    Raises:
        RecoveryError: naming it; the directory was not touched.
    """
    if not planned.resolved.plan.target.is_latest:
        return
    lacking = tuple(item for item in unsaved if item.item.name.timeline >= planned.resolved.plan.timeline)
    if lacking:
        assert request.component.data_directory is not None, "checked before"
        raise _not_saved(lacking, request, request.component.data_directory / "pg_wal")


def _require_own_timeline(planned: Planned, request: RestoreRequest, prepared: Prepared) -> None:
    """Refuse to leave the timeline production was on, unless that was asked for.

    The highest timeline in the archive may be that of a copy somebody promoted, which nobody took for production: to
    its latest position all that production committed since would be lost.

    Raises:
        RecoveryError: naming both; the directory was not touched.
    """
    if not prepared.control:
        return  # an attempt left it: production's own is gone
    control = parse_control(prepared.control)
    own = max(control.timeline, control.min_recovery_timeline)  # which is ahead between a promotion and its checkpoint
    plan = planned.resolved.plan
    inventory = planned.archived.inventory
    if request.target.timeline is not None or request.target.kind is TargetKind.SNAPSHOT or plan.timeline == own:
        return
    if plan.timeline in {entry.timeline for entry in inventory.histories.get(own, ())}:
        return  # an ancestor's: the target lies before production's timeline began
    raise RecoveryError(
        f"{prepared.existing.path} is on timeline {own}, and {request.target.describe()} would be reached on timeline"
        f" {plan.timeline}, which left it",
        hint=f"Say which is meant: --timeline {own} for what this directory committed, --timeline {plan.timeline} for"
        " the server that was promoted to it. Nothing was changed.",
    )


def _not_saved(unsaved: tuple[Unsaved, ...], request: RestoreRequest, source: Path) -> RecoveryError:
    names = ", ".join(item.item.file for item in unsaved[:5])
    error = unsaved[0].error
    again = error.hint if isinstance(error, SegmentConflictError) else "Run it again when the store takes them."
    return RecoveryError(
        f"{len(unsaved)} WAL file(s) of {source} could not be archived ({names}): {error.message}",
        hint=f"{request.target.describe()} needs them. The directory was not touched. {again} Or name an instant that"
        " the archive reaches (drservice info): then they are set aside and named.",
    )


def _take(prepared: Prepared, aside: AsideFolder) -> None:
    """Make the directory one that no server starts on, and move out of it what is only there.

    Raises:
        ServerRunningError: one was started since the WAL was looked at; the directory is as it was.
        RecoveryError: it cannot be moved.
    """
    existing = prepared.existing
    unveil_control(existing.path)  # of an attempt that was killed: it must not take the place of the real one
    was_cluster = is_cluster(existing.path)
    set_aside(existing)
    listens = listener_of(existing.path)
    ran = control_of(existing) != prepared.control
    if listens is not None or ran:
        if was_cluster:
            put_back(existing)  # a server that runs would end at its next checkpoint without it
        raise ServerRunningError(
            f"a server may have been started on {existing.path}: {listens}"
            if listens is not None
            else f"a server ran on {existing.path} while its WAL was archived, and may have written more",
            hint="Stop it, and what starts it again (the service manager). Then run the same command; nothing was"
            " changed.",
        )
    aside.take_from(existing.path)


def _end_leftovers(context: RestoreContext, request: RestoreRequest) -> None:
    """End the sandbox of an attempt that was killed: it still holds the directory."""
    for item in list_sandboxes(context.environments_dir):
        sandbox = open_sandbox(item.path)
        if request.component.data_directory is not None and sandbox.data == request.component.data_directory:
            context.progress.note(f"an earlier attempt is ended: {item.id} of {to_iso(item.created_at)}")
            sandbox.destroy()


def _naming(error: DrError, aside: AsideFolder, salvaged: Salvaged) -> DrError:
    """Return the error with what became of the directory, and how to go on."""
    error.hint = f"{error.hint} {_unfinished(aside, salvaged)}"
    return error


def _unfinished(aside: AsideFolder, salvaged: Salvaged) -> str:
    kept = f" {len(salvaged.saved)} WAL file(s) were archived." if salvaged.saved else ""
    return (
        f"No server starts on the directory until the same command has completed it.{kept} What was in it and is"
        f" nowhere else is in {aside.path}."
    )


def preview(prepared: Prepared) -> Mapping[str, object]:
    """Return what would happen beside the plan, as the JSON contract of ``--dry-run`` spells it."""
    return {
        "directory": str(prepared.existing.path),
        "salvage": [{"file": item.file, "archived_as": item.name.name, "bytes": item.bytes} for item in prepared.items],
        "space": [
            {"path": str(room.directory), "needed_bytes": room.needed_bytes, "free_bytes": room.free_bytes}
            for room in prepared.rooms
        ],
        "reachable_after_salvage_only": prepared.refusal.message if prepared.refusal is not None else None,
        "continues": str(prepared.aside.path) if prepared.aside is not None else None,
    }
