"""The demo's pages: both nodes run again, ``up`` with the web server on loopback, until somebody has seen enough."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from drservice import processes
from drservice.cli import demosite
from drservice.cli.demostory import Story
from drservice.cli.demoweek import Week
from drservice.errors import DrError
from drservice.web.auth.permissions import Role

USER = "demo"

_ROLES = (Role.OPERATOR, Role.RESTORER, Role.AUDITOR, Role.ADMIN)
_PASSWORD_BYTES = 12
_ACCOUNT_SECONDS = 60.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where the pages are and who may see them."""

    url: str
    user: str
    password: str
    week: Week

    def wait(self) -> None:
        """Wait until somebody says that it is enough: Ctrl-C is the ordinary end.

        Raises:
            DrError: the node has ended by itself.
        """
        try:
            while not self.week.up.has_ended:
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            return
        raise DrError(f"`drservice up` has ended: {self.week.up.last_words()}")

    def lines(self) -> list[str]:
        """Return what to tell about them."""
        return [
            f"pages:    {self.url}",
            f"user:     {self.user}",
            f"password: {self.password}",
            "",
            "Overview: what is promised and what was measured, backed up and verified apart.",
            "erp:      the recovery points of the week and of today; restore one in isolation, in two clicks.",
            "Runs:     what the schedules did since the catalogue was made anew, and what you start.",
            "Evidence: every drill, the one that had to fail too; the bundle for the auditor.",
            "Ctrl-C ends everything and removes it.",
        ]


def open_pages(story: Story, site: demosite.Site, week: Week) -> Pages:
    """Start both nodes by the machine's clock, with an account that may see and do what the pages offer.

    Raises:
        DrError: a node does not start, or the account cannot be made.
    """
    story.chapter("The pages")
    demosite.promise_for_pages(site)
    story.aside("nobody works any more, and the pages learn of WAL every five minutes: objectives.rpo is 10m from here")
    week.catalogue.open()
    week.catalogue.release_clock()
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    argv = [*demosite.program(site), "account", "add", USER]
    for role in _ROLES:
        argv += ["--role", role.value]
    done = processes.run(argv, stdin=f"{password}\n".encode(), timeout_seconds=_ACCOUNT_SECONDS)
    if done.status != 0:
        raise DrError(f"`drservice account add` ended with status {done.status}: {done.last_line()}")
    week.start_nodes()
    return Pages(url=f"http://127.0.0.1:{week.control_plane.web_port}/", user=USER, password=password, week=week)
