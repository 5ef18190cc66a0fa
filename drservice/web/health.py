"""Health for load balancers and supervisors: alive, and ready."""

from __future__ import annotations

from drservice.web.routes import Route
from drservice.web.schemas import Health
from drservice.web.site import Here


def healthz() -> Health:
    """Say that the process lives."""
    return Health(status="ok")


def readyz(site: Here) -> Health:
    """Say that the catalogue answers, too; 503 if it does not."""
    site.reading.now()
    return Health(status="ok")


HEALTH = (
    Route(name="healthz", method="GET", path="/healthz", endpoint=healthz),
    Route(name="readyz", method="GET", path="/readyz", endpoint=readyz),
)
