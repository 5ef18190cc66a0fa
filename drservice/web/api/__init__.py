"""``/api/v1``: the routes of the API, one module per kind of thing."""

from __future__ import annotations

from drservice.web.api.environments import ENVIRONMENTS
from drservice.web.api.evidence import EVIDENCE
from drservice.web.api.gate import GATE
from drservice.web.api.runs import RUNS
from drservice.web.api.schedules import SCHEDULES
from drservice.web.api.services import SERVICES
from drservice.web.api.starting import STARTING
from drservice.web.api.tokens import TOKENS
from drservice.web.routes import Route

API: tuple[Route, ...] = (*SERVICES, *SCHEDULES, *RUNS, *STARTING, *ENVIRONMENTS, *GATE, *EVIDENCE, *TOKENS)
