"""The services of other hosts: configuration, and what those hosts would have reported."""

from __future__ import annotations

from typing import Any

SERVICES: dict[str, Any] = {}
