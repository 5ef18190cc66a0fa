"""Options of restore that contradict each other are refused by their names."""

from __future__ import annotations

import pytest

from drservice.cli.restorechoices import require_compatible, require_plain
from drservice.errors import UsageError


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"--in-place", "--into"}, "--in-place does not go with --into"),
        ({"--in-place", "--delta", "--tablespace"}, "--in-place does not go with --delta, --tablespace"),
        ({"--in-place", "--database"}, "--in-place does not go with --database"),
        ({"--database", "--action"}, "--database does not go with --action"),
        ({"--delta"}, "--delta belongs to --into"),
        ({"--confirm", "--into"}, "--confirm belongs to --in-place"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: set[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        require_compatible(frozenset(given))


@pytest.mark.parametrize(
    "given", [set(), {"--into", "--delta"}, {"--in-place", "--confirm"}, {"--database", "--into"}, {"--action"}]
)
def test_options_that_go_together_pass(given: set[str]) -> None:
    require_compatible(frozenset(given))


def test_a_folder_of_files_takes_a_directory_and_nothing_else() -> None:
    require_plain(frozenset({"--into"}))
    with pytest.raises(UsageError, match="without --action, --delta"):
        require_plain(frozenset({"--into", "--delta", "--action"}))
