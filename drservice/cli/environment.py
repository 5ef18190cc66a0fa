"""``drservice environment``: what ``restore --start`` left running."""

from __future__ import annotations

from pathlib import Path

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.cli.losslines import loss_lines, number_statements
from drservice.clock import SystemClock, to_iso
from drservice.environments.marks import is_marked
from drservice.environments.sandbox import list_sandboxes, open_sandbox, reap
from drservice.errors import FormatError, UnknownNameError, UsageError
from drservice.model.ids import EnvironmentId
from drservice.operations.lossreport import kept_reports, read_report, reports_of
from drservice.operations.promoting import promote_paused


@click.command(name="list", help="List the environments on this host.")
@click.pass_obj
def list_environments(invocation: Invocation) -> None:
    """List environments."""
    estate = invocation.load().estate
    found = list_sandboxes(estate.state_dir / "environments")
    document = {
        "environments": [
            {
                "id": item.id,
                "kind": item.kind,
                "service": item.service,
                "purpose": item.purpose,
                "state": item.state.value,
                "path": str(item.path),
                "dsn": item.dsn,
                "neutralized": is_marked(item.path),
                "created_at": to_iso(item.created_at),
                "expires_at": to_iso(item.expires_at),
                "broken_limit": (
                    {"limit": item.broken_limit.limit.value, "detail": item.broken_limit.detail}
                    if item.broken_limit is not None
                    else None
                ),
            }
            for item in found
        ]
    }
    rows = [(i.id, i.service, i.purpose, i.state.value, to_iso(i.expires_at)[:19] + "Z") for i in found]
    lines = format_table(("ENVIRONMENT", "SERVICE", "PURPOSE", "STATE", "EXPIRES"), rows) if rows else ["none"]
    lines += [f"neutralized, never to become production: {item.id}" for item in found if is_marked(item.path)]
    lines += [f"ended {item.id}: {item.broken_limit.detail}" for item in found if item.broken_limit is not None]
    lines = [*lines, *(f'connect {item.id}: psql "{item.dsn}"' for item in found if item.state.value == "running")]
    invocation.output.result("environment-list", document, lines)


@click.command(help="Promote the paused server of restore --action pause, where it stands; it goes on in its sandbox.")
@click.argument("environment")
@click.pass_obj
def promote(invocation: Invocation, environment: str) -> None:
    """Promote a paused server."""
    path = _path_of(invocation, environment)
    reached = promote_paused(open_sandbox(path), clock=SystemClock())
    document = {
        "environment": environment,
        "reached_lsn": str(reached.lsn),
        "reached_time": to_iso(reached.time) if reached.time else None,
        "timeline": int(reached.timeline),
    }
    invocation.output.result("environment-promote", document, [f"{environment}: {text}" for text in reached.evidence])


@click.command(help="Show the loss report of a restore again: its environment's, or the newest one of this host.")
@click.argument("environment", required=False)
@click.option("--sql", "as_sql", is_flag=True, help="only the offered statements on numbers, to look through and run")
@click.pass_obj
def loss(invocation: Invocation, environment: str | None, *, as_sql: bool) -> None:
    """Show a loss report again."""
    state_dir = invocation.load().estate.state_dir
    kept = kept_reports(state_dir)
    if environment is None and not kept:
        raise UnknownNameError(
            "no loss report is kept on this host",
            hint="Each restore of a service with Odoo's documents makes one; its record in the ledger has it too.",
        )
    wanted = kept[-1] if environment is None else EnvironmentId(environment)
    if wanted not in kept:
        raise UnknownNameError(
            f"there is no loss report of {environment}", hint=f"Kept on this host: {', '.join(kept[-5:]) or 'none'}."
        )
    document = read_report(state_dir, wanted)
    try:
        if as_sql:
            lines = list(number_statements(reports_of(document)))
        else:
            head = f"restore {document['environment']} of {document['service']} to {document['target']}"
            made_at = f"{str(document['made_at'])[:19]}Z"
            lines = [f"{head}, reported at {made_at}", *loss_lines(reports_of(document))]
    except (KeyError, ValueError) as error:
        raise FormatError(f"the loss report of {wanted} cannot be read: {error!r}") from error
    invocation.output.result("environment-loss", dict(document), lines)


def _path_of(invocation: Invocation, environment: str) -> Path:
    """Return the folder of an environment.

    Raises:
        UnknownNameError: there is none of this name.
    """
    known = {str(item.id): item.path for item in list_sandboxes(invocation.load().estate.state_dir / "environments")}
    if environment not in known:
        raise UnknownNameError(
            f"there is no environment {environment}", hint="`drservice environment list` shows them."
        )
    return known[environment]


@click.command(help="End an environment and remove it; one with --into keeps its data directory.")
@click.argument("environment", required=False)
@click.option("--expired", is_flag=True, help="all that have expired or whose keeper died")
@click.pass_obj
def destroy(invocation: Invocation, environment: str | None, *, expired: bool) -> None:
    """Destroy an environment."""
    estate = invocation.load().estate
    folder = estate.state_dir / "environments"
    if expired == (environment is not None):
        raise UsageError("name one environment, or give --expired", hint="`drservice environment list` shows them.")
    if environment is None:
        destroyed = [str(item) for item in reap(folder, SystemClock())]
    else:
        open_sandbox(_path_of(invocation, environment)).destroy()
        destroyed = [environment]
    lines = [f"destroyed {item}" for item in destroyed] or ["nothing to destroy"]
    invocation.output.result("environment-destroy", {"destroyed": destroyed}, lines)
