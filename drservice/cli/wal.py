"""``drservice wal push`` and ``wal fetch``: what PostgreSQL's archive_command and restore_command call.

Their exit statuses are a protocol of their own. Push: 0 = durable, 1 = not (never above 125, which PostgreSQL would
not count as a failed attempt). Fetch: 0 = placed, 44 = proven absent, 127 = anything else, a defect of this program
included: PostgreSQL reads 1 to 125 as "end of WAL" and would promote.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from drservice.cli.invocation import Invocation
from drservice.errors import DrError, SegmentAbsentError

if TYPE_CHECKING:
    from drservice.cli.walwork import Answered

PROVEN_ABSENT_STATUS = 44
PUSH_FAILED_STATUS = 1
FETCH_FAILED_STATUS = 127
Answer = TypeVar("Answer")


@click.command(help="Archive one WAL file: archive_command = 'drservice wal push --service S %p'.")
@click.option("--service", required=True, metavar="S[/COMPONENT]", help="service, and component if it has several")
@click.option("--without-helper", is_flag=True, help="do not ask the service's helper first")
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_obj
def push(invocation: Invocation, service: str, path: Path, *, without_helper: bool) -> None:
    """Archive one WAL file; exit 0 only when it is durable."""

    def work() -> Answered:
        from drservice.cli.walwork import push_file, pushed_by_helper  # noqa: PLC0415 - a failing import must end inside the guard

        estate = invocation.load().estate
        helped = None if without_helper else pushed_by_helper(estate, service, path)
        return helped or push_file(estate, service, path)

    pushed = _guarded(invocation, work, failed=PUSH_FAILED_STATUS)
    document = {"name": pushed.name, "outcome": pushed.outcome, "bytes": pushed.bytes}
    invocation.output.result("wal-push", document, [f"{pushed.name}: {pushed.outcome}"])


@click.command(help="Archive ahead, in parallel, what PostgreSQL has ready, and answer archive_command at once.")
@click.argument("service", metavar="SERVICE[/COMPONENT]")
@click.option("--in-flight", type=click.IntRange(1, 8), default=3, show_default=True, help="files at one time")
@click.option("--with-parent", is_flag=True, help="end when standard input does: with the process that started it")
@click.pass_obj
def helper(invocation: Invocation, service: str, in_flight: int, *, with_parent: bool) -> None:
    """Run the helper of a service until it is stopped (SIGTERM lets what is on its way end)."""
    from drservice.cli.walhelping import run_helper  # noqa: PLC0415 - a push does not load it

    run_helper(invocation, service, in_flight, with_parent=with_parent)


@click.command(help="Bring one WAL file back: for restore_command. Exit 44: proven absent; 127: any error.")
@click.option("--service", metavar="S[/COMPONENT]", help="service (default: the only one)")
@click.option("--system-id", metavar="ID", help="cluster lineage (default: the newest snapshot's)")
@click.option("--ahead", type=click.IntRange(0, 64), default=0, help="keep so many segments behind it ready in a spool")
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path))
@click.pass_obj
def fetch(
    invocation: Invocation, service: str | None, system_id: str | None, ahead: int, name: str, destination: Path
) -> None:
    """Fetch one WAL file."""

    def work() -> int:
        from drservice.cli.walwork import fetch_file  # noqa: PLC0415 - a failing import must end inside the guard

        return fetch_file(invocation.load().estate, service, system_id, name, destination, ahead=ahead)

    size = _guarded(invocation, work, failed=FETCH_FAILED_STATUS, absent=PROVEN_ABSENT_STATUS)
    invocation.output.result("wal-fetch", {"name": name, "bytes": size}, [f"{name}: {size} bytes"])


@click.command(help="Fetch ahead of a server that replays; `wal fetch --ahead` starts it, and it ends by itself.")
@click.option("--service", required=True, metavar="S[/COMPONENT]", help="whose WAL")
@click.option("--system-id", required=True, metavar="ID", help="cluster lineage")
@click.option("--segment-bytes", required=True, type=click.IntRange(1 << 20, 1 << 30), help="size of its segments")
@click.option("--ahead", required=True, type=click.IntRange(1, 64), help="segments to keep ready")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def prefetch(
    invocation: Invocation,
    service: str,
    system_id: str,
    segment_bytes: int,
    ahead: int,
    name: str,
    folder: Path,
) -> None:
    """Keep the spool in FOLDER filled with what follows NAME."""
    from drservice.cli.walwork import fetch_ahead  # noqa: PLC0415 - a push does not load it

    estate = invocation.load().estate
    fetch_ahead(estate, service, system_id, name, folder, ahead=ahead, segment_bytes=segment_bytes)


def _guarded(invocation: Invocation, work: Callable[[], Answer], *, failed: int, absent: int | None = None) -> Answer:
    """Run ``work`` and turn every error, defects included, into the status of this protocol."""
    try:
        return work()
    except SegmentAbsentError as error:
        invocation.output.error(error)
        raise click.exceptions.Exit(absent if absent is not None else failed) from error
    except DrError as error:
        invocation.output.error(error)
        raise click.exceptions.Exit(failed) from error
    except Exception as error:
        # PostgreSQL must never read a defect of this program as "end of WAL" or as "archived".
        invocation.output.error(DrError(f"internal error: {type(error).__name__}: {error}"))
        raise click.exceptions.Exit(failed) from error
