"""The rules of starting a server on restored files: label, settings, and what its log means. Pure.

A restored origin is hostile input: its configuration may name programs to run and hosts to reach. What is
returned here as options goes on the server's command line, which beats ``postgresql.conf`` and
``postgresql.auto.conf`` of the restored directory. Recovery ends at exactly one target (trap T29).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Literal

from drservice.components.postgres.controlfile import ControlFile
from drservice.errors import FormatError
from drservice.model.wal import Lsn, Timeline

Options = Sequence[tuple[str, str]]


# --- backup_label -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupLabel:
    """What ``backup_label`` says; the file itself is kept byte for byte (trap T2)."""

    start: Lsn
    start_file: str
    checkpoint: Lsn
    method: str
    from_standby: bool
    started: str
    """As the server wrote it, in its own log_timezone."""
    label: str
    timeline: Timeline


_LABEL_START = re.compile(r"([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{24})\)\Z")


def parse_backup_label(content: bytes) -> BackupLabel:
    """Parse ``backup_label``.

    Raises:
        FormatError: a line is missing or cannot be read.
    """
    text = content.decode("utf-8", "surrogateescape")
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    try:
        start = _LABEL_START.match(lines["START WAL LOCATION"])
        if start is None:
            raise FormatError(f"backup_label's start cannot be read: {lines['START WAL LOCATION']!r}")
        return BackupLabel(
            start=Lsn.parse(start[1]),
            start_file=start[2],
            checkpoint=Lsn.parse(lines["CHECKPOINT LOCATION"]),
            method=lines["BACKUP METHOD"],
            from_standby=lines["BACKUP FROM"] == "standby",
            started=lines["START TIME"],
            label=lines.get("LABEL", ""),
            timeline=Timeline(int(lines["START TIMELINE"])),
        )
    except (KeyError, ValueError) as error:
        raise FormatError(f"backup_label cannot be read: {error}") from error


# --- settings -----------------------------------------------------------------------------------------------


class ReplayKind(Enum):
    """What recovery stops at."""

    LATEST = "latest"
    IMMEDIATE = "immediate"
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"


class TargetAction(Enum):
    """What the server does at the target (``recovery_target_action``)."""

    PROMOTE = "promote"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayTarget:
    """Where recovery stops. Make it with one of the ``at_*`` functions."""

    kind: ReplayKind
    value: str = ""
    """As PostgreSQL reads it."""
    inclusive: bool = True

    @classmethod
    def latest(cls) -> ReplayTarget:
        """Replay to the end of the archived WAL."""
        return cls(kind=ReplayKind.LATEST)

    @classmethod
    def immediate(cls) -> ReplayTarget:
        """Stop as soon as the backup is consistent."""
        return cls(kind=ReplayKind.IMMEDIATE, value="immediate")

    @classmethod
    def at_time(cls, instant: datetime, *, inclusive: bool = True) -> ReplayTarget:
        """Stop before the first commit later than ``instant`` (or not earlier, if not inclusive).

        Raises:
            ValueError: for a naive datetime; the server would read it in its own zone.
        """
        if instant.tzinfo is None:
            raise ValueError("a recovery target needs a time zone")
        text = instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
        return cls(kind=ReplayKind.TIME, value=text, inclusive=inclusive)

    @classmethod
    def at_lsn(cls, lsn: Lsn, *, inclusive: bool = True) -> ReplayTarget:
        """Stop after (or before) the record that begins at ``lsn``."""
        return cls(kind=ReplayKind.LSN, value=str(lsn), inclusive=inclusive)

    @classmethod
    def at_xid(cls, xid: int, *, inclusive: bool = True) -> ReplayTarget:
        """Stop after (or before) the end of transaction ``xid``."""
        return cls(kind=ReplayKind.XID, value=str(xid), inclusive=inclusive)

    @classmethod
    def at_name(cls, name: str) -> ReplayTarget:
        """Stop at a restore point."""
        return cls(kind=ReplayKind.NAME, value=name)


_TARGET_SETTINGS = {
    ReplayKind.IMMEDIATE: "recovery_target",
    ReplayKind.TIME: "recovery_target_time",
    ReplayKind.LSN: "recovery_target_lsn",
    ReplayKind.XID: "recovery_target_xid",
    ReplayKind.NAME: "recovery_target_name",
}


def recovery_options(
    target: ReplayTarget,
    *,
    restore_command: str,
    action: TargetAction,
    timeline: Timeline | Literal["current"] | None = None,
) -> Options:
    """Return the options that make a server replay to ``target`` and stop there.

    The other targets are emptied first and the chosen one is set last: PostgreSQL refuses two, and an empty
    value after it would unset it. ``hot_standby`` is on only for ``pause``: with it a parameter raised in the
    WAL pauses recovery for ever or ends it (trap T31); without it such a record is just replayed.

    Args:
        target: the one target.
        restore_command: the shell line with %f and %p.
        action: what to do at the target; with LATEST the server always promotes.
        timeline: the planned one; for that of the backup itself say ``current``, because PostgreSQL refuses a
            number whose history file it cannot get. ``None``: ``current`` for IMMEDIATE (no timeline beyond the
            backup's may be looked at), else ``latest``.
    """
    default = "current" if target.kind is ReplayKind.IMMEDIATE else "latest"
    chosen = _TARGET_SETTINGS.get(target.kind)
    options = [
        ("restore_command", restore_command),
        ("recovery_target_timeline", default if timeline is None else str(timeline)),
        ("recovery_target_inclusive", "on" if target.inclusive else "off"),
        ("recovery_target_action", action.value),
        ("hot_standby", "on" if action is TargetAction.PAUSE else "off"),
        *((name, "") for name in _TARGET_SETTINGS.values() if name != chosen),
    ]
    if chosen is not None:
        options.append((chosen, target.value))
    return tuple(options)


def isolation_options(control: ControlFile, *, major: int) -> Options:
    """Return the options that make a restored cluster inert and able to replay (traps T31, T33).

    Nothing of the origin's configuration runs a program, loads a library, listens on a network, archives,
    follows a primary, waits for a standby, or applies a subscription; capacity is at least the primary's.
    """
    options = [
        ("listen_addresses", ""),
        ("archive_mode", "off"),
        ("archive_command", ""),
        ("archive_cleanup_command", ""),
        ("recovery_end_command", ""),
        ("recovery_min_apply_delay", "0"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("synchronous_standby_names", ""),
        ("shared_preload_libraries", ""),
        ("session_preload_libraries", ""),
        ("local_preload_libraries", ""),
        ("max_logical_replication_workers", "0"),
        ("external_pid_file", ""),
        ("ssl", "off"),
        ("krb_server_keyfile", ""),
        ("bonjour", "off"),
        ("jit", "off"),
        ("autovacuum", "off"),  # what the copy does by itself would be taken for what it was given
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_line_prefix", "%m [%p] "),
        ("log_min_messages", "warning"),
        ("log_error_verbosity", "default"),
        ("log_timezone", "UTC"),
        ("lc_messages", "C"),
        ("cluster_name", "drservice"),
        *capacity_options(control),
    ]
    if major >= 15:
        options.append(("archive_library", ""))
    if major >= 17:
        options += [("event_triggers", "off"), ("summarize_wal", "off"), ("sync_replication_slots", "off")]
    if major >= 18:
        options.append(("io_method", "worker"))  # a sandbox refuses io_uring
    return tuple(options)


def capacity_options(control: ControlFile) -> Options:
    """Return the settings that must not be lower than the primary's were, from ``pg_control`` (T31)."""
    return (
        ("max_connections", str(control.max_connections)),
        ("max_worker_processes", str(control.max_worker_processes)),
        ("max_wal_senders", str(control.max_wal_senders)),
        ("max_prepared_transactions", str(control.max_prepared_transactions)),
        ("max_locks_per_transaction", str(control.max_locks_per_transaction)),
    )


def minimal_postgresql_conf(settings: Mapping[str, str]) -> str:
    """Return a ``postgresql.conf`` that holds ``settings`` and nothing of the origin's."""
    lines = ["# Written for a recovered cluster; the origin's file is not used."]
    lines += [f"{name} = {quote_setting(value)}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def local_trust_hba() -> str:
    """Return a ``pg_hba.conf`` that lets in local sockets only; the socket's folder guards them."""
    return "# Written for a recovered cluster: Unix sockets only.\nlocal all all trust\n"


def empty_ident() -> str:
    """Return a ``pg_ident.conf`` without maps."""
    return "# Written for a recovered cluster: no maps.\n"


def quote_setting(value: str) -> str:
    """Quote a value for a PostgreSQL configuration file.

    Raises:
        ValueError: for a line break or NUL, which the file format cannot hold.
    """
    if any(character in value for character in "\n\r\0"):
        raise ValueError("a setting cannot hold a line break")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


_STALE_EXACT = frozenset(
    {
        "restore_command",
        "recovery_end_command",
        "archive_cleanup_command",
        "archive_mode",
        "archive_command",
        "archive_library",
        "archive_timeout",
        "primary_conninfo",
        "primary_slot_name",
        "promote_trigger_file",
        "trigger_file",
        "standby_mode",
        "hot_standby",
        "hot_standby_feedback",
        "recovery_min_apply_delay",
        "synchronous_standby_names",
        "synchronized_standby_slots",
        "sync_replication_slots",
        "wal_receiver_create_temp_slot",
    }
)
_SETTING_NAME = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.$]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrippedSettings:
    """A configuration text without the settings of earlier lives, and what was taken out."""

    text: str
    removed: tuple[str, ...]
    """Names, in the order of the file."""


ARCHIVING = frozenset({"archive_mode", "archive_command", "archive_library", "archive_timeout"})
"""What makes a server archive: a copy beside production must not, production itself must again."""


def strip_stale_settings(auto_conf: str, *, keep: frozenset[str] = frozenset()) -> StrippedSettings:
    """Take the settings of earlier recoveries, standbys and archiving out of ``postgresql.auto.conf`` (T30).

    A ``recovery_target_*`` left by an earlier restore would be a second target; ``primary_conninfo`` would
    follow the production server.

    Args:
        auto_conf: the file's text.
        keep: names that stay all the same.
    """
    kept: list[str] = []
    removed: list[str] = []
    for line in auto_conf.splitlines(keepends=True):
        match = _SETTING_NAME.match(line)
        name = match[1].lower() if match else ""
        is_stale = name in _STALE_EXACT or name == "recovery_target" or name.startswith("recovery_target_")
        if is_stale and name not in keep:
            removed.append(name)
        else:
            kept.append(line)
    return StrippedSettings(text="".join(kept), removed=tuple(removed))


# --- the server's log ---------------------------------------------------------------------------------------


class StopKind(Enum):
    """On which side of what recovery stopped."""

    AFTER_COMMIT = "after commit"
    BEFORE_COMMIT = "before commit"
    AFTER_ABORT = "after abort"
    BEFORE_ABORT = "before abort"
    BEFORE_LSN = "before LSN"
    AFTER_LSN = "after LSN"
    AT_NAME = "at restore point"
    AT_CONSISTENCY = "at consistency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where the server says it stopped."""

    kind: StopKind
    xid: int | None = None
    at: datetime | None = None
    """``None`` also if the log is not in UTC."""
    lsn: Lsn | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryLog:
    """What a server's log says about its recovery. What is not said is ``None``, never assumed."""

    stop: Stop | None
    consistent_at: Lsn | None
    redo_started_at: Lsn | None
    redo_done_at: Lsn | None
    new_timeline: Timeline | None
    last_transaction_at: datetime | None
    """Of the last commit or abort replayed."""
    target_missed: bool
    """WAL ended before the target."""
    insufficient_parameters: tuple[str, ...]
    """Sentences such as ``max_connections = 10 is a lower setting than on the primary server, ...``."""
    paused: bool
    shut_down_at_target: bool
    ready: bool
    """The server takes connections (read-only or not)."""
    restored_files: tuple[str, ...]
    fatal: tuple[str, ...]
    """Messages of FATAL and PANIC lines, in order, without connections refused while starting up."""


_LSN = r"([0-9A-F]+/[0-9A-F]+)"
_TIME = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?)(\S*) ?(\S*)"
_STOP_TRANSACTION = re.compile(
    r"recovery stopping (after|before) (commit|abort) of (?:prepared )?transaction (\d+), time " + _TIME
)
_STOP_LSN = re.compile(r"recovery stopping (after|before) WAL location \(LSN\) \"" + _LSN + '"')
_STOP_NAME = re.compile(r"recovery stopping at restore point \"(.*)\", time " + _TIME + "$", re.MULTILINE)
_CONSISTENT = re.compile(r"consistent recovery state reached at " + _LSN)
_REDO_STARTS = re.compile(r"redo starts at " + _LSN)
_REDO_DONE = re.compile(r"redo done at " + _LSN)
_NEW_TIMELINE = re.compile(r"selected new timeline ID: (\d+)")
_LAST_TRANSACTION = re.compile(r"last completed transaction was at log time " + _TIME)
_RESTORED = re.compile(r"restored log file \"([^\"]+)\" from archive")
_FATAL = re.compile(r"(?:FATAL|PANIC):  (.*)")
_LOWER = re.compile(r"(?:because )?(\w+ = \d+ is a lower setting than on the (?:primary|master) server.*)")
_STARTING_UP = re.compile(r"the database system is (?:starting up|not yet accepting|not accepting|shutting)")
_PAUSED = re.compile(r"recovery has paused|pausing at the end of recovery")
_READY = re.compile(r"database system is ready to accept (?:read[- ]only )?connections")


def interpret_log(text: str) -> RecoveryLog:
    """Read what a server (13 to 18, ``lc_messages=C``, UTC) logged from its last start on.

    Args:
        text: the log of one start of the server.
    """
    done = _last(_REDO_DONE, text)
    consistent = _last(_CONSISTENT, text)
    starts = _last(_REDO_STARTS, text)
    timeline = _last(_NEW_TIMELINE, text)
    last = _last(_LAST_TRANSACTION, text)
    fatal = tuple(match[1] for match in _FATAL.finditer(text) if not _STARTING_UP.match(match[1]))
    return RecoveryLog(
        stop=_stop(text),
        consistent_at=Lsn.parse(consistent[1]) if consistent else None,
        redo_started_at=Lsn.parse(starts[1]) if starts else None,
        redo_done_at=Lsn.parse(done[1]) if done else None,
        new_timeline=Timeline(int(timeline[1])) if timeline else None,
        last_transaction_at=_utc(last, 1) if last else None,
        target_missed="recovery ended before configured recovery target was reached" in text,
        insufficient_parameters=tuple(dict.fromkeys(match[1] for match in _LOWER.finditer(text))),
        paused=_PAUSED.search(text) is not None,
        shut_down_at_target="shutdown at recovery target" in text,
        ready=_READY.search(text) is not None,
        restored_files=tuple(match[1] for match in _RESTORED.finditer(text)),
        fatal=fatal,
    )


def _stop(text: str) -> Stop | None:
    transaction = _last(_STOP_TRANSACTION, text)
    if transaction:
        return Stop(
            kind=StopKind(f"{transaction[1]} {transaction[2]}"),
            xid=int(transaction[3]),
            at=_utc(transaction, 4),
        )
    position = _last(_STOP_LSN, text)
    if position:
        return Stop(kind=StopKind(f"{position[1]} LSN"), lsn=Lsn.parse(position[2]))
    name = _last(_STOP_NAME, text)
    if name:
        return Stop(kind=StopKind.AT_NAME, name=name[1], at=_utc(name, 2))
    if "recovery stopping after reaching consistency" in text:
        return Stop(kind=StopKind.AT_CONSISTENCY)
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return found


def _utc(match: re.Match[str], first_group: int) -> datetime | None:
    offset, zone = match[first_group + 1], match[first_group + 2]
    if offset not in {"+00", ""} or (not offset and zone not in {"UTC", "GMT"}):
        return None
    return datetime.fromisoformat(match[first_group]).replace(tzinfo=UTC)
