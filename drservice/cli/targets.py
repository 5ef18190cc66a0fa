"""Reading recovery targets from the command line."""

from __future__ import annotations

import re
from datetime import datetime

from drservice.clock import from_iso
from drservice.errors import UsageError
from drservice.model.ids import SnapshotId
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Lsn, Timeline

_NEAREST = "Write it as 2026-11-23T02:09:57Z, with Z or an offset, `latest` or `consistent`."
_ENDS = {kind.value: kind for kind in (TargetKind.LATEST, TargetKind.CONSISTENT)}


def parse_target(
    *, to: str | None, lsn: str | None, xid: int | None, name: str | None, snapshot: str | None, timeline: int | None
) -> Target:
    """Return the one target that was given, on the timeline that was given (``None`` = the latest).

    Raises:
        UsageError: none, several, or one that cannot be read.
    """
    given = [value for value in (to, lsn, xid, name, snapshot) if value is not None]
    if len(given) != 1:
        hint = "One of --to TIME|latest|consistent, --lsn, --xid, --name, --snapshot."
        raise UsageError("give exactly one target", hint=hint)
    if timeline is not None and (timeline < 1 or snapshot is not None):
        raise UsageError("--timeline takes a number from 1 and no --snapshot, which has a timeline of its own")
    way = Timeline(timeline) if timeline is not None else None
    if to is not None:
        if to in _ENDS:
            return Target(kind=_ENDS[to], timeline=way)
        return Target(kind=TargetKind.TIME, time=parse_time(to), timeline=way)
    if lsn is not None:
        try:
            return Target(kind=TargetKind.LSN, lsn=Lsn.parse(lsn), timeline=way)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if xid is not None:
        return Target(kind=TargetKind.XID, xid=xid, timeline=way)
    if name is not None:
        return Target(kind=TargetKind.NAME, name=name, timeline=way)
    return Target(kind=TargetKind.SNAPSHOT, snapshot=SnapshotId(str(snapshot)))


def parse_time(text: str) -> datetime:
    """Read an instant; a zone is required, because a guess is wrong by hours exactly when it matters.

    Raises:
        UsageError: no instant, or no zone.
    """
    tidy = re.sub(r"^(\d{4}-\d\d-\d\d) ", r"\1T", text.strip()).replace(" ", "")
    try:
        return from_iso(tidy)
    except ValueError as error:
        raise UsageError(f"{text!r} is no instant with a time zone", hint=_NEAREST) from error
