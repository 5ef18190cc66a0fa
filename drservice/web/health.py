"""Health for load balancers and supervisors: alive, and ready."""

from __future__ import annotations

from drservice.web.routes import Route
from drservice.web.schemas import Health, Readiness
from drservice.web.site import Here


def healthz() -> Health:
    """Say that the process lives."""
    return Health(status="ok")


def readyz(site: Here) -> Readiness:
    """Say that the catalogue answers, too (503 if it does not), and whether the file as it stands is in force.

    Why it is not stands in the log: health is for everybody.
    """
    site.reading.now()
    return Readiness(status="ok", configuration="in force" if site.configuration_problem is None else "refused")


HEALTH = (
    Route(name="healthz", method="GET", path="/healthz", endpoint=healthz),
    Route(name="readyz", method="GET", path="/readyz", endpoint=readyz),
)
