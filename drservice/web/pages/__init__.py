"""The pages: rendered here, from the catalogue and the configuration only; they work without scripts, and live with."""

from __future__ import annotations

from drservice.web.pages.evidence import EVIDENCE_PAGES
from drservice.web.pages.overview import OVERVIEW_PAGES
from drservice.web.pages.runs import RUN_PAGES
from drservice.web.pages.service import SERVICE_PAGES
from drservice.web.pages.signing import SIGNING_PAGES
from drservice.web.routes import Route

PAGES: tuple[Route, ...] = (*SIGNING_PAGES, *OVERVIEW_PAGES, *SERVICE_PAGES, *RUN_PAGES, *EVIDENCE_PAGES)
