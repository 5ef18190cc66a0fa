"""``drservice evidence access``: the days of the access log, and a day's lines beside their digest in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.clock import to_iso
from drservice.errors import UsageError, VerificationFailedError
from drservice.evidence.ledger import Entry
from drservice.model.evidence import EvidenceKind
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

if TYPE_CHECKING:
    from drservice.catalogue.accesslog import ClosedDay, DayDigest


@click.command(
    help="List the closed days of the access log; or count the lines of DAY (YYYY-MM-DD, UTC) again and compare them"
    " with their digest in the ledger (exit status 5 if they are not the same)."
)
@click.argument("day", required=False)
@click.pass_obj
def access(invocation: Invocation, day: str | None) -> None:
    """List days, or compare one."""
    # The help of this command is asked for by people who have no catalogue.
    from drservice.catalogue.accesslog import AccessLog  # noqa: PLC0415 - see above
    from drservice.wiring.control_plane import open_control_plane  # noqa: PLC0415 - see above

    estate = invocation.load().estate
    if day is None:
        with open_control_plane(estate) as database:
            _list(invocation, AccessLog(database).days())
        return
    with open_control_plane(estate) as database:
        found = AccessLog(database).digest(day)
    if found is None:
        raise UsageError(f"no day {day} of the access log was closed", hint="`drservice evidence access` lists them.")
    digest, closed = found
    if closed.entry is None:
        raise UsageError(
            f"the digest of {day} is not on record yet", hint="A node puts it there; see `drservice evidence list`."
        )
    with open_data_plane(estate) as plane, open_evidence(plane) as evidence:
        entry = evidence.ledger.entry(closed.entry)
    differences = list(differences_of(digest, entry))
    if differences:
        raise VerificationFailedError(
            f"the lines of {day} are not those of record {entry.number}: {differences[0]}",
            hint="Lines were changed, added or removed since; a backup of the catalogue may have them as they were.",
        )
    document = {"day": day, "record": entry.number, "sha256": digest.sha256, "lines": digest.lines, "agrees": True}
    lines = [
        f"{digest.lines} lines of {day} are those of record {entry.number}",
        f"  sha256 {digest.sha256}",
        f"next: drservice evidence show {entry.number}",
    ]
    invocation.output.result("evidence-access-day", document, lines)


def differences_of(digest: DayDigest, entry: Entry) -> Iterator[str]:
    """Yield in what the lines as they stand differ from what the ledger says of the day."""
    statement = entry.signed.statement
    if statement.kind is not EvidenceKind.ACCESS:
        yield f"record {entry.number} is no day of an access log"
        return
    for name, value in digest.fields().items():
        said = statement.predicate[name]
        if said != value:
            yield f"{name} is {_words(value)}, the record says {_words(said)}"


def _words(value: object) -> str:
    return ", ".join(f"{name} {item}" for name, item in value.items()) if isinstance(value, Mapping) else str(value)


def _list(invocation: Invocation, days: tuple[ClosedDay, ...]) -> None:
    rows = [
        (closed.day, "waits" if closed.entry is None else str(closed.entry), to_iso(closed.closed_at)[:19] + "Z")
        for closed in days
    ]
    document = {
        "days": [{"day": closed.day, "record": closed.entry, "closed_at": to_iso(closed.closed_at)} for closed in days]
    }
    lines = format_table(("DAY", "RECORD", "CLOSED"), rows) if rows else ["no day is closed yet"]
    if rows:
        lines.append("next: drservice evidence access DAY")
    invocation.output.result("evidence-access", document, lines)
