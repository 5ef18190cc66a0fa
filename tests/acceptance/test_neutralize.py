"""Copies of Odoo that do nothing outside any more, as the program makes them, and what is never done with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.odooshape import MODULES, SCRIPTS, create_odoo, write_addons
from tests.doubles.plant import DATABASE, Plant

SERVICE = "erp"
PRODUCTION = {
    "database.uuid": "production-uuid",
    "database.secret": "production-secret",
    "web.base.url": "https://erp.example.com",
}


@dataclass(frozen=True, kw_only=True)
class Odoo:
    """A plant with Odoo's tables, owned by Odoo's own role, and folders with its modules."""

    plant: Plant
    addons: Path
    backup: dict[str, Any]

    def script(self, module: str) -> Path:
        return self.addons / module / "data" / "neutralize.sql"

    def configure(self, **drill: Any) -> None:
        """Write the settings again: with the folders of modules, and one drill."""
        document = self.plant.document()
        document["services"][SERVICE]["components"]["documents"]["addons"] = [str(self.addons)]
        document["services"][SERVICE]["checks"] = []
        document["drills"] = {"latest": {"service": SERVICE, "target": "latest", **drill}}
        self.plant.estate.config.write_text(json.dumps(document))

    def with_script(self, module: str, text: str | bytes) -> None:
        """Give a module a script and back the documents up with it."""
        self.script(module).write_bytes(text.encode() if isinstance(text, str) else text)
        self.plant.json("backup", SERVICE, "--component", "documents")

    def reset(self) -> None:
        """Have the scripts of before in the newest snapshot again."""
        write_addons(self.addons)
        for module in MODULES:
            if module not in SCRIPTS:
                self.script(module).unlink(missing_ok=True)
        self.plant.json("backup", SERVICE, "--component", "documents")


@pytest.fixture(scope="module")
def odoo(template_cache: Path) -> Iterator[Odoo]:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=0)
    plant.sql("create role odoo login")
    plant.sql("drop table ir_attachment, account_move_line, stock_move")
    plant.sql("grant all on schema public to odoo")
    with psycopg.connect(plant.cluster.dsn(DATABASE, "odoo"), autocommit=True) as connection:
        create_odoo(connection)
    plant.upload(b"a drawing")
    plant.cluster.sql(f"create database second template {DATABASE}")
    addons = write_addons(plant.root / "addons")
    hand_over(addons)
    made = Odoo(plant=plant, addons=addons, backup={})
    made.configure()
    backup = plant.json("backup", SERVICE)
    yield Odoo(plant=plant, addons=addons, backup=backup)
    plant.estate.close()
    maker.close()


@pytest.fixture(scope="module")
def neutralized(odoo: Odoo) -> dict[str, Any]:
    return odoo.plant.json("restore", SERVICE, "--to", "latest", "--start", "--neutralize")


@pytest.fixture(scope="module")
def copy(neutralized: dict[str, Any]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(f"{neutralized['environment']['dsn']} dbname={DATABASE}", autocommit=True) as connection:
        yield connection


def rows(connection: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()


def test_modules_scripts_are_run_and_what_they_leave_is_done_too(
    neutralized: dict[str, Any], copy: psycopg.Connection[Any]
) -> None:
    (done,) = neutralized["neutralized"]
    assert (done["database"], done["is_odoo"]) == (DATABASE, True)
    assert done["scripts"] == ["base", "mail", "payment_demo"]
    assert done["without_code"] == []
    assert done["other_databases"] == ["second"]
    assert done["unknown"] is None
    assert rows(copy, "select id from ir_cron where active") == [(1,)], "the vacuum"
    assert rows(copy, "select smtp_host, smtp_user, smtp_pass from ir_mail_server where active") == [
        ("invalid", None, None)
    ]
    assert rows(copy, "select count(*) from ir_mail_server where smtp_pass is not null or smtp_user is not null") == [
        (0,)
    ]
    assert rows(copy, "select bool_or(active), count(password) from fetchmail_server") == [(False, 0)]
    assert rows(copy, "select state from payment_provider where code = 'demo'") == [("disabled",)]
    assert rows(copy, "select state, count(*) from mail_mail group by 1 order by 1") == [("cancel", 2), ("sent", 1)]
    assert rows(copy, "select state from sms_sms") == [("canceled",)]
    assert rows(copy, "select count(*) from res_users_apikeys union all select count(*) from auth_totp_device") == [
        (0,),
        (0,),
    ]
    assert rows(copy, "select totp_secret from res_users") == [(None,)]
    assert rows(copy, "select webhook_url from ir_act_server where state = 'webhook'") == [(None,)]
    assert done["http_actions"] == ['1: {"en_US": "Tell the MES"}']


def test_a_neutralized_copy_has_an_identity_of_its_own_and_bears_its_marks(
    odoo: Odoo, neutralized: dict[str, Any], copy: psycopg.Connection[Any]
) -> None:
    values = dict(rows(copy, "select key, value from ir_config_parameter"))
    assert not [key for key, value in PRODUCTION.items() if values[key] == value]
    assert values["web.base.url"] == "http://localhost:8069"
    assert values["database.is_neutralized"] == "true"
    environment = neutralized["environment"]["id"]
    assert values["drservice.neutralized"].startswith(f"{environment} ")
    listed = {item["id"]: item for item in odoo.plant.json("environment", "list")["environments"]}
    assert listed[environment]["neutralized"] is True
    assert dict(odoo.plant.sql("select key, value from ir_config_parameter")) == PRODUCTION, "production is as it was"
    assert odoo.plant.sql("select count(*) from ir_cron where active") == [(2,)]


def test_of_two_databases_in_a_cluster_the_one_without_documents_is_named_and_not_touched(
    neutralized: dict[str, Any],
) -> None:
    with psycopg.connect(f"{neutralized['environment']['dsn']} dbname=second") as second:
        assert rows(second, "select count(*) from ir_cron where active") == [(2,)]
        assert not rows(second, "select 1 from ir_config_parameter where key = 'drservice.neutralized'")


def test_a_neutralized_copy_is_never_promoted_nor_restored_over(odoo: Odoo, neutralized: dict[str, Any]) -> None:
    refused = odoo.plant.estate.refusal("environment", "promote", neutralized["environment"]["id"], status=1)
    assert refused["code"] == "DR781"
    refused = odoo.plant.estate.refusal(
        "restore", SERVICE, "--component", "database", "--to", "latest", "--neutralize", "--in-place", status=2
    )
    assert "--neutralize" in refused["message"]
    refused = odoo.plant.estate.refusal(
        "restore", SERVICE, "--to", "latest", "--neutralize", "--start", "--action", "pause", status=2
    )
    assert "--neutralize" in refused["message"]


@pytest.mark.long
def test_a_copy_in_a_directory_says_loudly_that_it_is_none(odoo: Odoo) -> None:
    into = odoo.plant.root / "copy"
    shown = odoo.plant.estate.run("restore", SERVICE, "--to", "latest", "--into", into, "--neutralize")
    assert f"NEUTRALIZED: {DATABASE} is a copy that must never become production" in shown.stdout.decode()
    assert (into / "database" / "DRSERVICE_NEUTRALIZED").is_file()
    # Taken for production it is refused; a delta restore makes it what the repository has, without the mark.
    document = odoo.plant.document()
    document["services"][SERVICE]["components"]["database"]["data_directory"] = str(into / "database")
    wrong = odoo.plant.root / "wrong.yaml"
    wrong.write_text(json.dumps(document))
    refused = odoo.plant.estate.refusal(
        "restore",
        SERVICE,
        "--to",
        "latest",
        "--component",
        "database",
        "--in-place",
        "--confirm",
        SERVICE,
        config=wrong,
        status=1,
    )
    assert refused["code"] == "DR781"
    refused = odoo.plant.estate.refusal(
        "restore", SERVICE, "--to", "latest", "--component", "database", "--into", into / "database", "--delta",
        "--neutralize", config=wrong, status=1,
    )  # fmt: skip
    assert refused["code"] == "DR781", "production's own directory, as far as the settings know"
    odoo.plant.json(
        "restore", SERVICE, "--to", "latest", "--component", "database", "--into", into / "database", "--delta"
    )
    assert not (into / "database" / "DRSERVICE_NEUTRALIZED").exists()


@pytest.mark.long
def test_a_script_that_fails_leaves_nothing_to_start_and_is_named(odoo: Odoo) -> None:
    try:
        odoo.with_script("sale", "update sale_order set nowhere = 1;")
        before = len(odoo.plant.json("environment", "list")["environments"])
        refused = odoo.plant.estate.refusal("restore", SERVICE, "--to", "latest", "--start", "--neutralize", status=1)
        assert refused["code"] == "DR780"
        assert "module sale" in refused["message"]
        assert 'column "nowhere"' in refused["message"]
        assert len(odoo.plant.json("environment", "list")["environments"]) == before
        odoo.plant.json("restore", SERVICE, "--to", "latest", "--start")  # without it nothing is in the way
    finally:
        odoo.reset()


def test_a_drill_neutralizes_by_itself_and_asks_whether_it_held(odoo: Odoo) -> None:
    drill = odoo.plant.json("drill", SERVICE)
    states = {item["name"]: item["state"] for item in drill["checks"] if "/neutralized" in item["name"]}
    assert states.pop("documents/neutralized-other-databases") == "failed", "a warning: there is a second one"
    assert states == {
        f"documents/neutralized{name}": "passed"
        for name in (
            "", "-no-active-cron", "-only-dummy-mail-server", "-no-payment-provider", "-no-fetchmail", "-no-outgoing",
            "-no-keys", "-scripts", "-http-actions",
        )
    }  # fmt: skip
    assert drill["verdict"] == "passed"
    assert drill["neutralized"][0]["scripts"] == ["base", "mail", "payment_demo"]


@pytest.mark.long
def test_a_drill_fails_with_a_script_that_fails(odoo: Odoo) -> None:
    try:
        odoo.with_script("mrp", "select 1/0;")
        drill = odoo.plant.json("drill", SERVICE, status=1)
        assert drill["verdict"] == "failed"
        assert drill["error"]["code"] == "DR780"
        assert "module mrp" in drill["error"]["message"]
    finally:
        odoo.reset()


@pytest.mark.long
def test_a_drill_that_leaves_it_out_says_so(odoo: Odoo) -> None:
    try:
        odoo.configure(neutralize=False)
        drill = odoo.plant.json("drill", SERVICE)
        assert not [item for item in drill["checks"] if "/neutralized" in item["name"]]
        assert any("leaves neutralizing out" in text for text in drill["not_tested"])
        assert drill["neutralized"] == []
    finally:
        odoo.configure()


@pytest.mark.long
def test_a_neutralized_database_is_no_source_and_production_neutralized_by_accident_is_found(odoo: Odoo) -> None:
    name = "erp/documents: not neutralized"
    try:
        odoo.plant.sql("insert into ir_config_parameter (key, value) values ('database.is_neutralized', 'True')")
        answers = {item["name"]: item for item in odoo.plant.json("check", SERVICE, status=1)["checks"]}
        assert answers[name]["state"] == "failed"
        odoo.plant.json("backup", SERVICE)  # accident or not, it is production's content
        odoo.plant.sql("insert into ir_config_parameter (key, value) values ('drservice.neutralized', 'X of noon')")
        refused = odoo.plant.estate.refusal("backup", SERVICE, status=1)
        assert refused["code"] == "DR782"
        for alone in ("database", "documents"):
            refused = odoo.plant.estate.refusal("backup", SERVICE, "--component", alone, status=1)
            assert refused["code"] == "DR782"
    finally:
        odoo.plant.sql(
            "delete from ir_config_parameter where key in ('database.is_neutralized', 'drservice.neutralized')"
        )
        odoo.plant.json("backup", SERVICE)
