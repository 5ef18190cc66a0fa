"""What Odoo is told when it is started in an environment."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from drservice.components.odoo.starting import configuration, odoo_places
from drservice.errors import UnansweredError
from drservice.model.estate import OdooProgram
from drservice.model.ids import ComponentName

PLACES = odoo_places(
    ComponentName("documents"), OdooProgram(program=Path("/opt/odoo/odoo-bin")), (Path("/srv/addons"),)
)


def test_what_is_ours_cannot_be_overridden() -> None:
    read = configparser.RawConfigParser()
    read.read_string(configuration(PLACES, database="erp", owner="o'd%oo", options={"db_host": "db1", "limit": "5"}))
    assert (read["options"]["db_host"], read["options"]["db_user"], read["options"]["limit"]) == (
        "/env/sock",
        "o'd%oo",
        "5",
    )


@pytest.mark.parametrize("name", ["odoo\nupgrade_path = /env/data/evil", "odoo\r", "odoo\u2028x", "o\x85x"], ids=ascii)
def test_an_owner_whose_name_is_a_line_of_its_own_is_not_written(name: str) -> None:
    with pytest.raises(UnansweredError, match="db_user"):
        configuration(PLACES, database="erp", owner=name, options={})
