"""How the processes of a node log: lines for a person at a terminal, JSON for what collects logs."""

from __future__ import annotations

import logging
import sys

from drservice import telemetry
from drservice.telemetry import Form

_TALKATIVE = ("alembic", "apscheduler")
"""Libraries that tell each of their steps on ``info``."""


def configure(level: str) -> None:
    """Set up the log of this process; libraries log there too."""
    form = Form.CONSOLE if sys.stderr.isatty() else Form.JSON
    telemetry.configure(level=level, form=form, libraries=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
