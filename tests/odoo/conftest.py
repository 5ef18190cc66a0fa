"""Nothing here is collected where no Odoo is installed; `make test-odoo` names its folder."""

from __future__ import annotations

import pytest

from tests.odoo.production import folder
from tests.odoo.table import lines

collect_ignore_glob = [] if folder() is not None else ["test_*.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the story measured."""
    if lines():
        terminalreporter.section("a real Odoo, lost and recovered")
        for line in lines():
            terminalreporter.write_line(line)
