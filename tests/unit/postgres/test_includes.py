"""Which other files PostgreSQL's configuration files name."""

from __future__ import annotations

import pytest

from drservice.components.postgres.includes import ConfigurationKind, Include, includes_of

SETTINGS, RULES, NAMES = ConfigurationKind.SETTINGS, ConfigurationKind.RULES, ConfigurationKind.NAMES


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("include 'a.conf'", Include(path="a.conf", kind=SETTINGS)),
        (
            "  INCLUDE_IF_EXISTS = '/etc/it''s here.conf' # why",
            Include(path="/etc/it's here.conf", kind=SETTINGS, is_optional=True),
        ),
        ("include_dir='conf.d'", Include(path="conf.d", kind=SETTINGS, is_folder=True)),
        ("include plain.conf", Include(path="plain.conf", kind=SETTINGS)),
        (r"include 'a\'b\\c\101.conf'", Include(path=r"a'b\cA.conf", kind=SETTINGS)),
    ],
)
def test_settings_include_files_and_folders(line: str, expected: Include) -> None:
    assert list(includes_of(SETTINGS, f"port = 5432\n{line}\n".encode())) == [expected]


@pytest.mark.parametrize("line", ["#include 'a.conf'", "included = 'x'", "search_path = 'include'", "include", ""])
def test_other_settings_name_no_file(line: str) -> None:
    assert list(includes_of(SETTINGS, line.encode())) == []


def test_rules_name_lists_of_users_and_databases_and_further_rules() -> None:
    text = b"""# local @none all trust
local @dbs,more +group,@"two words" peer map=@x
include "pg hba.d/a.conf"
include_dir hba.d
host all all \\
  10.0.0.0/8 reject
"""
    found = list(includes_of(RULES, text))
    assert [(item.path, item.kind, item.is_folder) for item in found] == [
        ("dbs", NAMES, False),
        ("two words", NAMES, False),
        ("pg hba.d/a.conf", RULES, False),
        ("hba.d", RULES, True),
    ]
    assert list(includes_of(NAMES, b"alice\nbob, @others # @not\n")) == [Include(path="others", kind=NAMES)]
    assert list(includes_of(ConfigurationKind.OTHER, text)) == []
