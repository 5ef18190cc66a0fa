"""Each annotated example is refused as it stands, and is whole once its blanks are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from drservice.model.due import StartKind
from drservice.model.preview import preview
from drservice.model.timetable import timetable
from drservice.settings.loading import json_schema, load

FOLDER = Path(__file__).parents[3] / "config"
EXAMPLES = ("single-host.yaml", "two-hosts-s3.yaml", "plant-group.yaml")
RECIPIENTS = (
    "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex",
    "age1kwrdtzyswvnhjhly8mzxm3y6tgpwvak30n2hsmwr9fccf9ve7ykq62nea7",
)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BLANK = re.compile(r"REPLACE-WITH-(RECIPIENT|KEY)-[A-Z0-9-]+")
Write = Callable[[str], Path]


def text_of(name: str, *, after_init: bool = False) -> str:
    """Return an example as it stands, or with what waits for the keys that `drservice init` prints."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    waiting = r"^( *)# (?=signers:|  \w+: \{key: REPLACE|evidence: |log_keys:)"
    return re.sub(waiting, r"\1", text, flags=re.MULTILINE) if after_init else text


def filled(name: str, *, after_init: bool = True) -> str:
    recipients = iter(RECIPIENTS)

    def fill(blank: re.Match[str]) -> str:
        return next(recipients) if blank[1] == "RECIPIENT" else f"'ed25519:{bytes(range(32)).hex()}'"

    return BLANK.sub(fill, text_of(name, after_init=after_init))


@pytest.mark.parametrize("after_init", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_refused_at_each_blank_and_nowhere_else(
    name: str, refusal: Callable[[str], list[str]], *, after_init: bool
) -> None:
    text = text_of(name, after_init=after_init)
    lines = enumerate(text.splitlines(), 1)
    blanks = [number for number, line in lines if BLANK.search(line) and not line.strip().startswith("#")]
    assert [int(line.split(":")[1]) for line in refusal(text)] == blanks
    assert len(blanks) == 2 if not after_init else len(blanks) > 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_filled_example_is_valid_for_the_program_and_for_editors(name: str, write: Write) -> None:
    estate = load(write(filled(name))).estate
    yaml = YAML(typ="safe", pure=True)
    yaml.constructor.yaml_constructors.pop("tag:yaml.org,2002:timestamp")  # as editors and drservice: days are text
    yaml.constructor.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))
    Draft202012Validator(json_schema()).validate(yaml.load(filled(name)))
    backed_up = {planned.service.name for planned in timetable(estate) if planned.kind.value == "backup"}
    assert backed_up == set(estate.services), "every service of an example is backed up by itself"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_first_init_needs_recipients_only(name: str, write: Write) -> None:
    before = load(write(filled(name, after_init=False))).estate
    assert (len(before.repository.recipients), before.repository.signers, before.evidence.log_keys) == (2, (), ())
    after = load(write(filled(name))).estate
    assert after.repository.signers
    assert len(after.evidence.log_keys) == 1


def test_every_annotated_file_is_tested() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} - {"drservice.example.yaml", "drservice.yaml"} == set(EXAMPLES)


def test_the_plants_of_the_group_run_as_their_comments_say(write: Write) -> None:
    estate = load(write(filled("plant-group.yaml"))).estate
    plans = {planned.key: planned for planned in timetable(estate)}
    labels = preview(plans["labels", "backup", ""], now=NOW)
    assert {slot.start.kind for slot in labels.slots} == {StartKind.NOW, StartKind.THROTTLED}
    suzhou = preview(plans["erp-suzhou", "verify", ""], now=NOW)
    assert {slot.start.kind for slot in suzhou.slots} == {StartKind.THROTTLED}
    toledo = preview(plans["erp-toledo", "backup", ""], now=NOW)
    assert {slot.local.hour for slot in toledo.slots} == {1}
