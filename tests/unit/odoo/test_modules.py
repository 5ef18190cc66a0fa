"""Collecting the scripts of modules: from the given folders and from nowhere else, whatever lies there."""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import pytest

from drservice.components.odoo.gathering import Module
from drservice.components.odoo.modules import (
    SCRIPT_BYTES,
    SCRIPTS_BYTES,
    ModuleRecord,
    collect_modules,
    decode_modules_record,
    encode_modules_record,
)
from drservice.errors import FormatError
from tests.doubles.odooshape import write_addons

SECRET = "update secret set gone = true;"


def installed(*names: str, state: str = "installed") -> dict[str, Module]:
    return {name: Module(state=state, version="19.0.1.0") for name in names}


def scripts_of(record: ModuleRecord) -> dict[str, str]:
    return {item.module: item.sql for item in record.scripts}


def reason(record: ModuleRecord) -> str:
    (refused,) = record.refused
    assert record.scripts == ()
    return refused[1]


def test_scripts_of_installed_modules_are_taken_base_first_and_the_first_folder_counts(tmp_path: Path) -> None:
    mine = write_addons(tmp_path / "mine", ["sale"], {"sale": "select 'mine';"})
    odoos = write_addons(tmp_path / "odoo", ["account", "base", "sale", "stock"], {
        "account": "select 1;", "base": "select 2;", "sale": "select 'odoo';", "stock": "select 3;",
    })  # fmt: skip
    modules = {
        **installed("account", "base", "sale"),
        **installed("mrp", state="to upgrade"),
        **installed("stock", state="uninstalled"),
        **installed("crm", state="to install"),
    }
    record = collect_modules([mine, odoos], modules)
    assert [item.module for item in record.scripts] == ["base", "account", "sale"]
    assert scripts_of(record)["sale"] == "select 'mine';"
    assert record.missing == ("mrp",), "its code is nowhere, and it is installed"
    assert [name for name, _ in record.versions] == ["account", "base", "mrp", "sale"]
    assert "1 installed modules have no code in the folders of addons: mrp" in record.notes()


def test_a_module_without_a_script_is_neither_missing_nor_refused(tmp_path: Path) -> None:
    record = collect_modules([write_addons(tmp_path, ["sale"])], installed("sale"))
    assert (record.scripts, record.missing, record.refused) == ((), (), ())


@pytest.mark.parametrize("name", ["../outside", "/etc", "..", ".", "", "a/b", "a\0b", ".hidden", "x" * 300, "naïve"])
def test_a_module_whose_name_is_a_path_is_looked_for_nowhere(tmp_path: Path, name: str) -> None:
    write_addons(tmp_path / "outside", ["data"], {"data": SECRET})
    (tmp_path / "outside" / "__manifest__.py").touch()
    (tmp_path / "outside" / "data" / "neutralize.sql").write_text(SECRET)
    addons = write_addons(tmp_path / "addons", ["base"])
    record = collect_modules([addons], installed(name))
    assert record.missing == (name[:200],)
    assert (record.scripts, record.refused) == ((), ())


@pytest.mark.parametrize("linked", ["module", "data", "script"])
def test_a_link_out_of_the_folders_is_not_followed_and_recorded(tmp_path: Path, linked: str) -> None:
    outside = write_addons(tmp_path / "outside", ["evil"], {"evil": SECRET}) / "evil"
    addons = write_addons(tmp_path / "addons", [] if linked == "module" else ["evil"], {})
    match linked:
        case "module":
            (addons / "").mkdir()
            (addons / "evil").symlink_to(outside)
        case "data":
            (addons / "evil" / "data").rmdir()
            (addons / "evil" / "data").symlink_to(outside / "data")
        case _:
            (addons / "evil" / "data" / "neutralize.sql").symlink_to(outside / "data" / "neutralize.sql")
    assert "leads out of the folders of addons" in reason(collect_modules([addons], installed("evil")))
    # The same link is right where it leads from one of the folders to another.
    assert scripts_of(collect_modules([addons, outside.parent], installed("evil"))) == {"evil": SECRET}


def test_a_script_that_is_too_large_is_refused_without_being_read(tmp_path: Path) -> None:
    addons = write_addons(tmp_path, ["sale"])
    with (addons / "sale" / "data" / "neutralize.sql").open("wb") as file:
        file.truncate(50 << 20)
    assert str(SCRIPT_BYTES) in reason(collect_modules([addons], installed("sale")))


def test_all_scripts_together_are_bounded(tmp_path: Path) -> None:
    names = [f"module_{number}" for number in range(10)]
    text = "-- " + "x" * (SCRIPT_BYTES - 3)
    record = collect_modules([write_addons(tmp_path, names, dict.fromkeys(names, text))], installed(*names))
    assert len(record.scripts) == SCRIPTS_BYTES // SCRIPT_BYTES
    assert {why for _, why in record.refused} == {f"all scripts together are larger than {SCRIPTS_BYTES} bytes"}


@pytest.mark.parametrize(("content", "told"), [(b"select '\xff';", "no UTF-8"), (b"select 1;\0", "NUL")])
def test_a_script_that_is_no_text_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    addons = write_addons(tmp_path, ["sale"], {"sale": ""})
    (addons / "sale" / "data" / "neutralize.sql").write_bytes(content)
    assert told in reason(collect_modules([addons], installed("sale")))


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    addons = write_addons(tmp_path, ["sale"])
    path = addons / "sale" / "data" / "neutralize.sql"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    assert "no plain file" in reason(collect_modules([addons], installed("sale")))


def test_the_record_is_read_as_it_was_written() -> None:
    record = ModuleRecord(
        versions=(("base", "19.0.1.3"), ("sale", "")),
        scripts=(),
        missing=("sale",),
        refused=(("base", "it is no UTF-8: invalid start byte"),),
    )
    assert decode_modules_record(encode_modules_record(record), "it") == record


@pytest.mark.parametrize(
    "changed",
    [
        {"v": 2},
        {"modules": [["base"]]},
        {"scripts": [["base", b"select 1"]]},
        {"missing": [1]},
        {"refused": None},
    ],
)
def test_a_record_of_another_shape_is_refused(changed: dict[str, object]) -> None:
    fields = {"v": 1, "modules": [], "scripts": [], "missing": [], "refused": [], **changed}
    with pytest.raises(FormatError):
        decode_modules_record(msgpack.packb(fields), "it")
