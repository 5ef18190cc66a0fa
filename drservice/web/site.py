"""What one web process works with, and what every endpoint asks of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from drservice.catalogue.accounts import Accounts
from drservice.catalogue.database import Database
from drservice.catalogue.environments import Environments
from drservice.catalogue.reading import Reading
from drservice.catalogue.requests import Requests
from drservice.catalogue.runs import RunInfo, Runs
from drservice.clock import Clock, SystemClock
from drservice.errors import AbsentError, UnknownNameError
from drservice.jobs.queue import Queue
from drservice.model.agenda import Agenda
from drservice.model.estate import Estate, Service
from drservice.web.auth.identity import Identity, Principal
from drservice.web.auth.passwords import Passwords
from drservice.web.limits import Limiter
from drservice.web.live import Live
from drservice.web.schemas import Name, Ulid


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How many requests are answered: per address, per account, and tries to sign in per address."""

    address_per_second: float = 20.0
    address_burst: int = 200
    account_per_second: float = 20.0
    account_burst: int = 200
    sign_in_per_second: float = 0.2
    sign_in_burst: int = 20


@dataclass(slots=True, kw_only=True)
class Site:
    """The estate, the catalogue and what stands before them."""

    estate: Estate
    database: Database
    clock: Clock = field(default_factory=SystemClock)
    rates: Rates = field(default_factory=Rates)
    passwords: Passwords = field(default_factory=Passwords)
    configuration_problem: str | None = None
    """Why the configuration file as it stands is not in force; the one before is."""
    runs: Runs = field(init=False)
    queue: Queue = field(init=False)
    reading: Reading = field(init=False)
    environments: Environments = field(init=False)
    requests: Requests = field(init=False)
    identity: Identity = field(init=False)
    live: Live = field(init=False)
    addresses: Limiter = field(init=False)
    accounts: Limiter = field(init=False)
    sign_ins: Limiter = field(init=False)
    _agenda: Agenda = field(init=False)

    def __post_init__(self) -> None:
        self._agenda = Agenda(self.estate)
        self.runs = Runs(self.database)
        self.queue = Queue(self.database, self.runs)
        self.reading = Reading(self.database)
        self.environments = Environments(self.database)
        self.requests = Requests(self.database)
        self.identity = Identity(Accounts(self.database), self.passwords)
        self.live = Live(self.database, self.runs, self.identity)
        rates = self.rates
        self.addresses = Limiter(self.clock, per_second=rates.address_per_second, burst=rates.address_burst)
        self.accounts = Limiter(self.clock, per_second=rates.account_per_second, burst=rates.account_burst)
        self.sign_ins = Limiter(self.clock, per_second=rates.sign_in_per_second, burst=rates.sign_in_burst)

    @property
    def agenda(self) -> Agenda:
        """What the schedules of the present estate ask for, worked out once."""
        if self._agenda.estate is not self.estate:
            self._agenda = Agenda(self.estate)
        return self._agenda

    def service(self, name: str) -> Service:
        """Return a service of the estate.

        Raises:
            AbsentError: in the same words as for one that the caller may not see.
        """
        try:
            return self.estate.service(name)
        except UnknownNameError as error:
            raise AbsentError(f"there is no service {name}") from error

    def services_of(self, principal: Principal) -> Sequence[Service]:
        """Return the services that somebody sees, by name."""
        return sorted(
            (service for service in self.estate.services.values() if principal.sees(service.name)),
            key=lambda service: service.name,
        )


def site_of(request: Request) -> Site:
    """Return the site that a request came to."""
    return cast("Site", request.app.state.site)


def principal_of(request: Request) -> Principal:
    """Return who asks; the guard has put it there before any endpoint of a guarded route runs."""
    return cast("Principal", request.state.principal)


Here = Annotated[Site, Depends(site_of)]
Who = Annotated[Principal, Depends(principal_of)]


def service_of(service: Name, site: Here) -> Service:
    """Return the service in the path (the guard has looked at the scope)."""
    return site.service(service)


def run_of(run: Ulid, request: Request, site: Here, principal: Who) -> RunInfo:
    """Return the run in the path.

    Raises:
        AbsentError: there is none, or it is of a service out of scope.
    """
    found = site.runs.get(run)
    if found is None or not principal.sees(found.service):
        raise AbsentError(f"there is no run {run}")
    request.state.service = found.service
    return found


TheService = Annotated[Service, Depends(service_of)]
TheRun = Annotated[RunInfo, Depends(run_of)]


def etag_of(*parts: object) -> str:
    """Return an ETag for what these parts describe."""
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'
