"""``drservice wal check``: which WAL is missing in the archive, and filling what this host still has of it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drservice.cli.invocation import Invocation
from drservice.errors import ExitStatus
from drservice.model.estate import PostgresSettings, Service
from drservice.model.recovery import describe_timelines
from drservice.operations.continuity import ArchiveWatch, Continuity
from drservice.operations.walcare import local_directory
from drservice.wiring.data_plane import DataPlane, open_data_plane

_AGAIN_SECONDS = 2.0


@click.command(help="Find WAL that is missing in the archive; with --fill archive what this host still has of it.")
@click.argument("service", required=False, metavar="[SERVICE[/COMPONENT]]")
@click.option("--fill", is_flag=True, help="archive what pg_wal still has and nobody offers")
@click.pass_obj
def check(invocation: Invocation, service: str | None, *, fill: bool) -> ExitStatus:
    """Compare the archive with what snapshots need; exit 5 if something is missing."""
    estate = invocation.load().estate
    name, _, component = (service or "").partition("/")
    documents: list[dict[str, object]] = []
    lines: list[str] = []
    is_whole = True
    with open_data_plane(estate) as plane:
        for chosen in estate.selected(name or None):
            for cluster in [chosen.database(component)] if component else chosen.databases():
                found = _look(plane, chosen, cluster, fill=fill)
                is_whole = is_whole and not found.holes and not found.unread_histories
                documents.append(_document(chosen, cluster, found))
                lines += _lines(chosen, cluster, found, fill=fill)
    invocation.output.result("wal-check", {"components": documents}, lines)
    return ExitStatus.OK if is_whole else ExitStatus.INTEGRITY


def _look(plane: DataPlane, service: Service, cluster: PostgresSettings, *, fill: bool) -> Continuity:
    """Look; what is missing is looked for again, because segments may arrive out of order."""
    watch = ArchiveWatch(
        plane.repository,
        plane.repository.scope(service.name, cluster.name),
        directory=local_directory(cluster),
        state_dir=plane.estate.state_dir,
        clock=plane.clock,
    )
    found = watch.look(fill=fill, whole=True)
    if not found.holes:
        return found
    plane.clock.sleep(_AGAIN_SECONDS)
    again = watch.look(fill=fill)
    return Continuity(
        system_id=again.system_id,
        inventory=again.inventory,
        holes=again.holes,
        filled=(*found.filled, *again.filled),
        waiting=again.waiting,
        refused=again.refused,
        unread_histories=again.unread_histories,
    )


def _document(service: Service, cluster: PostgresSettings, found: Continuity) -> dict[str, object]:
    return {
        "service": service.name,
        "component": cluster.name,
        "system_id": found.system_id,
        "holes": [
            {
                "timeline": int(hole.timeline),
                "first": hole.first_name,
                "segments": len(hole.numbers),
                "from_lsn": str(hole.gap.begin),
                "to_lsn": str(hole.gap.end),
                "latest_unreachable": hole.is_open,
                "inconsistent_snapshots": list(hole.spoilt),
                "cut_snapshots": list(hole.cut),
            }
            for hole in found.holes
        ],
        "filled": list(found.filled),
        "offered": list(found.waiting),
        "refused": dict(found.refused),
        "unread_histories": list(found.unread_histories),
    }


def _lines(service: Service, cluster: PostgresSettings, found: Continuity, *, fill: bool) -> Iterator[str]:
    yield f"{service.name}/{cluster.name}"
    if found.inventory is None:
        yield "  there is no snapshot: nothing is needed yet"
        return
    yield from (f"  timeline {line}" for line in describe_timelines(found.inventory))
    yield from (f"  filled: {name}" for name in found.filled)
    yield from (f"  NOT FILLED {name}: {problem}" for name, problem in found.refused.items())
    yield from (f"  not judged without an identity: timeline of {name}" for name in found.unread_histories)
    yield from (f"  HOLE: {hole.describe()}" for hole in found.holes)
    if found.waiting:
        yield f"  {len(found.waiting)} of the missing are offered by PostgreSQL: its archiver is not that far"
    if not found.holes:
        yield "  nothing is missing"
    elif not fill:
        yield f"next: drservice wal check {service.name} --fill (on the database's host)"
    elif any(hole.is_open for hole in found.holes):
        yield f"next: drservice backup {service.name}"
