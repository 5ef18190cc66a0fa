"""The journal of drills under way: an orphan is taken once, and never from a drill that runs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from drservice.errors import LedgerError
from drservice.model.ids import EnvironmentId
from drservice.operations import drilljournal
from drservice.operations.drilljournal import UnderWay, orphans, under_way


def drill(obligation: str) -> UnderWay:
    return UnderWay(
        obligation=obligation,
        known_size=7,
        service="erp",
        plan="latest",
        plan_sha256="ab" * 32,
        requested="latest",
        kind="random",
        seed="cd" * 32,
        mutation=None,
        rto_ms=None,
        rpo_ms=None,
    )


def died(state_dir: Path, name: str, *environments: str) -> None:
    """Leave what a drill leaves whose process ends in the middle."""
    with suppress(KeyboardInterrupt), under_way(state_dir, drill(name)) as journal:
        for environment in environments:
            journal.note(EnvironmentId(environment))
        raise KeyboardInterrupt


def test_a_drill_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    with under_way(tmp_path, drill("A")), orphans(tmp_path) as found:
        assert found == [], "it runs"
    assert list((tmp_path / "drills").iterdir()) == []


def test_a_drill_that_died_is_an_orphan_with_its_seed_and_environments_until_it_is_taken(tmp_path: Path) -> None:
    died(tmp_path, "B", "one", "two")
    died(tmp_path, "A")
    with orphans(tmp_path) as found:
        assert [orphan.drill for orphan in found] == [drill("A"), drill("B")]
        assert [orphan.environments for orphan in found] == [(), ("one", "two")]
        with orphans(tmp_path) as again:
            assert again == [], "somebody is at it"
    with orphans(tmp_path) as found:
        assert found == []


def test_an_orphan_that_could_not_be_dealt_with_stays(tmp_path: Path) -> None:
    died(tmp_path, "A")
    with pytest.raises(OSError, match="ledger"), orphans(tmp_path):
        raise OSError("the ledger is away")
    with orphans(tmp_path) as found:
        assert len(found) == 1


def test_an_orphan_that_somebody_else_has_put_on_record_meanwhile_is_not_taken_again(tmp_path: Path) -> None:
    died(tmp_path, "A")
    with (tmp_path / "drills" / "A.json").open("r+") as opened_before:
        with orphans(tmp_path) as found:
            assert len(found) == 1
            assert not drilljournal._take(opened_before.fileno()), "somebody is at it"
        assert not drilljournal._take(opened_before.fileno()), "it is on record"


def test_a_drill_that_is_about_to_be_noted_is_no_orphan(tmp_path: Path) -> None:
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "A.new").write_text("")
    with orphans(tmp_path) as found:
        assert found == []
    assert (tmp_path / "drills" / "A.new").exists()


@pytest.mark.parametrize(
    "text", ["[]\n", '{"obligation": "A"}\n', '{"obligation": "A", "new": 1}\n{"environment": "x"}\n']
)
def test_a_note_that_cannot_be_understood_is_kept_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "A.json").write_text(text)
    with pytest.raises(LedgerError, match=r"A\.json cannot be understood"), orphans(tmp_path):
        pytest.fail("what another version wrote was taken for nothing")
    assert (tmp_path / "drills" / "A.json").read_text() == text


@pytest.mark.parametrize("text", ["", '{"obligation": "A"'])
def test_a_file_without_a_whole_first_line_promised_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "A.json").write_text(text)
    with orphans(tmp_path) as found:
        assert found == []
    assert list((tmp_path / "drills").iterdir()) == []


def test_a_last_line_that_was_cut_off_hides_nothing_else(tmp_path: Path) -> None:
    died(tmp_path, "A", "one")
    path = tmp_path / "drills" / "A.json"
    path.write_text(path.read_text() + json.dumps({"environment": "two"})[:10])
    with orphans(tmp_path) as found:
        assert found[0].environments == ("one",)
