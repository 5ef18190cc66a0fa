"""What the code can do is documented, and what the documents show works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drservice import errors
from drservice.cli import reference
from drservice.cli.table import COMMANDS, GROUPS
from drservice.errors import ConfigurationError
from drservice.settings.building import NOT_ACTED_ON
from drservice.settings.loading import load

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "config" / "drservice.example.yaml"
FILLED = {
    "REPLACE-WITH-RECIPIENT-OF-RECOVERY-SITE": "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex",
    "REPLACE-WITH-RECIPIENT-IN-THE-SAFE": "age1kwrdtzyswvnhjhly8mzxm3y6tgpwvak30n2hsmwr9fccf9ve7ykq62nea7",
}
GLOSSARY_WORDS = (
    "estate",
    "service",
    "component",
    "repository",
    "snapshot",
    "backup",
    "pack",
    "chunk",
    "segment",
    "tail",
    "environment",
    "check",
    "drill",
    "run",
    "job",
    "host",
    "record",
    "ledger",
    "objective",
    "measured",
    "RPO",
    "RTO",
    "identity",
    "recipient",
    "signer",
    "recovery point",
    "tree node",
)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def filled(text: str) -> str:
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    return text


@pytest.mark.parametrize("name", ["configuration.md", "errors.md", "cli.md"])
def test_the_reference_is_what_the_code_says(name: str) -> None:
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored == reference.pages()[name], "run `python -m drservice.cli.reference`"


def test_every_error_code_is_documented_once_with_its_hint() -> None:
    page = reference.errors_page()
    kinds = reference.error_classes()
    assert len(kinds) > 30
    codes = [kind.code for kind in kinds]
    assert sorted(codes) == sorted(set(codes)), "two errors share a code"
    for kind in kinds:
        assert f"| {kind.code} | {int(kind.exit_status)} | " in page
        assert kind.__doc__
        assert re.fullmatch(r"DR\d{3}", kind.code)
        if kind is not errors.DrError:
            assert kind.hint.endswith((".", "`"))


def test_every_exit_status_is_documented() -> None:
    for status in errors.ExitStatus:
        assert f"\n| {int(status)} | " in reference.errors_page()


def test_every_setting_is_documented_with_its_meaning() -> None:
    settings = reference.settings()
    assert len(settings) > 80
    page = reference.configuration_page()
    assert "| `repository.lock` | mapping | " in page
    for path, node, _ in settings:
        assert node.get("description") or path.endswith(".kind"), f"{path} has no description"
        assert f"| `{path}` | " in page


def test_each_setting_that_is_not_acted_on_exists() -> None:
    known = {re.sub(r"\([a-z-]+\)|\[\]", "", path).replace("NAME", "*") for path, _, _ in reference.settings()}
    assert set(NOT_ACTED_ON) <= known


def test_every_command_is_documented_and_every_group_has_words() -> None:
    page = reference.cli_page()
    for entry in COMMANDS:
        assert f"\n## drservice {entry.name}\n" in page
        assert " " not in entry.name or entry.name.split()[0] in GROUPS


def test_the_example_is_refused_until_it_is_filled_in_and_then_has_no_notice(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    path = tmp_path / "drservice.yaml"
    path.write_text(text)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    mistakes = caught.value.message.splitlines()[1:]
    marked = [number for number, line in enumerate(text.splitlines(), 1) if any(word in line for word in FILLED)]
    assert [int(line.split(":")[1]) for line in mistakes] == marked
    path.write_text(filled(text))
    loaded = load(path)
    assert loaded.notices == ()
    assert list(loaded.estate.services) == ["erp"]


def test_every_configuration_shown_in_a_document_is_valid(tmp_path: Path) -> None:
    for document in DOCUMENTS:
        for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            if re.search(r"^version: ", block, re.MULTILINE) is None:
                continue
            path = tmp_path / "drservice.yaml"
            path.write_text(filled(block))
            path.chmod(0o640)
            try:
                load(path)
            except ConfigurationError as error:
                pytest.fail(f"{document.relative_to(ROOT)} shows a configuration that is refused: {error}")


def test_the_glossary_has_every_word() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for word in GLOSSARY_WORDS:
        assert f"\n| **{word}** | " in text


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" in target or target.startswith("mailto:"):
                continue
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
