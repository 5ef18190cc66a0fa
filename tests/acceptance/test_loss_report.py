"""What a restore of Odoo lost, as the program tells it: at the restore, again later, in the ledger, and in a drill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.doubles.cluster import ClusterMaker
from tests.doubles.odoobusiness import create_business
from tests.doubles.plant import DATABASE, Plant

SERVICE = "erp"
# What was done behind the instant, before the second recovery point.
LATER = """
insert into account_move (name, state, journal_id, move_type, sequence_prefix, sequence_number)
    select 'INV/2026/' || lpad(i::text, 5, '0'), 'posted', 1, 'out_invoice', 'INV/2026/', i
    from generate_series(31, 34) i;
insert into account_move (name, state, journal_id, move_type, sequence_prefix, sequence_number)
    values ('BILL/2026/00001', 'posted', 2, 'in_invoice', 'BILL/2026/', 1);
select setval('ir_sequence_001', 9);
update ir_sequence set number_next = 15 where implementation = 'no_gap';
update mrp_production set state = 'done', write_date = '2090-11-27 10:11:12' where id = 2;
update mail_mail set state = 'sent';
delete from sale_order_line;
insert into sale_order (name, state) values ('S00009', 'sale');
"""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A plant that was backed up, went on, was backed up again, and went on: and the instant in between."""

    plant: Plant
    instant: str
    second: dict[str, Any]


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=3)
    plant.sql("drop table ir_attachment, account_move_line, stock_move")
    with plant.cluster.connect(DATABASE) as connection:
        create_business(connection)
    plant.json("backup", SERVICE)
    plant.sql("insert into res_partner (name) values ('in time')")
    instant = plant.now().isoformat()
    for statement in filter(str.strip, LATER.split(";")):
        plant.sql(statement)
    second = plant.json("backup", SERVICE)
    plant.sql("insert into res_partner (name) values ('behind every point')")
    plant.archive()
    yield Story(plant=plant, instant=instant, second=second)
    plant.estate.close()
    maker.close()


@pytest.fixture(scope="module")
def restored(story: Story) -> dict[str, Any]:
    return story.plant.json("restore", SERVICE, "--to", story.instant, "--start")


def by_name(report: dict[str, Any], part: str, key: str) -> dict[str, Any]:
    return {item[key]: item for item in report[part]}


def test_a_restore_tells_what_the_newest_point_behind_its_target_had(story: Story, restored: dict[str, Any]) -> None:
    (report,) = restored["losses"]
    assert report["lossy"] is True
    assert report["known_behind"]["point"] == story.second["point"]
    assert report["window"]["from"][:19] == story.instant[:19]
    assert report["window"]["seconds"] >= 0
    assert report["window"]["to"] >= report["known_behind"]["measured_at"]
    tables = by_name(report, "tables", "table")
    assert tables["account_move"]["states"] == {"posted": {"here": 30, "in_production": 35}}
    assert tables["mrp_production"]["states"]["done"] == {"here": 1, "in_production": 2}
    assert tables["mrp_production"]["newest_in_production"] == "2090-11-27T10:11:12Z"
    assert (tables["sale_order"]["here"], tables["sale_order"]["in_production"]) == (3, 4)
    assert report["rows_lost"] == 6
    assert "res_partner" not in tables, "what came behind every point nobody counted"
    assert report["problems"] == []


def test_numbers_that_would_be_given_out_twice_are_named_with_what_prevents_it(restored: dict[str, Any]) -> None:
    numbers = by_name(restored["losses"][0], "numbers", "name")
    invoices = numbers["INV/2026/ of journal 1"]
    assert (invoices["last_here"], invoices["last_in_production"], invoices["proposed_next"]) == (30, 34, 35)
    assert (invoices["certain"], invoices["sql"]) == (True, None)
    bills = numbers["BILL/2026/ of journal 2"]
    assert (bills["last_here"], bills["last_in_production"], bills["proposed_next"]) == (0, 1, 2)
    assert (numbers["WH/MO/"]["last_here"], numbers["WH/MO/"]["last_in_production"]) == (2, 9)
    assert numbers["Cheques (2)"]["last_in_production"] == 14


def test_the_offered_statements_run_as_they_are_printed_and_do_what_they_say(
    story: Story, restored: dict[str, Any]
) -> None:
    script = story.plant.estate.run("environment", "loss", "--sql").stdout.decode()
    assert "-- INV/2026/ of journal 1: last one here 30, in production 34\n--   by hand, in Odoo" in script
    statements = [line for line in script.splitlines() if not line.startswith("--")]
    assert len(statements) == 2, "only what is certain is no comment"
    with psycopg.connect(f"{restored['environment']['dsn']} dbname={DATABASE}", autocommit=True) as copy:
        for _ in range(2):  # repeating it does no harm
            copy.execute(script.encode())
        assert copy.execute("select nextval('ir_sequence_001')").fetchone() == (110,)
        assert copy.execute("select number_next from ir_sequence where implementation = 'no_gap'").fetchone() == (15,)


def test_what_waits_in_the_copy_is_that_of_its_instant(restored: dict[str, Any]) -> None:
    (report,) = restored["losses"]
    queues = by_name(report, "queues", "table")
    assert queues["mail_mail"] == {"table": "mail_mail", "what": "mails", "count": 2, "ids": [1, 3]}
    assert queues["sms_sms"]["count"] == 1
    assert report["overdue_actions"]["count"] == 1
    assert report["overdue_actions"]["first"][0]["name"] == "Autovacuum"
    subjects = by_name(report, "outside", "subject")
    assert set(subjects) == {"incoming mail server 1 (pop)", "payment provider demo", "module mrp"}
    assert "were deleted there" in subjects["incoming mail server 1 (pop)"]["effect"]


def test_the_report_is_shown_again_by_its_environment_and_as_the_newest(story: Story, restored: dict[str, Any]) -> None:
    environment = restored["environment"]["id"]
    again = story.plant.json("environment", "loss", environment)
    assert again["losses"] == restored["losses"]
    assert story.plant.json("environment", "loss")["environment"] == environment
    told = story.plant.estate.run("environment", "loss", environment).stdout.decode()
    assert "NUMBERS GIVEN OUT TWICE: INV/2026/ of journal 1 31 to 34 are outside already; go on with 35" in told
    assert "WAITING TO BE SENT, AGAIN PERHAPS: 2 mails (mail_mail 1, 3)" in told
    assert (
        "offered, not done: update public.ir_sequence set number_next = greatest(number_next, 15) where id = 2;" in told
    )
    assert "production was last heard of by" in told
    refused = story.plant.estate.refusal("environment", "loss", "01JZZZZZZZZZZZZZZZZZZZZZZZ", status=2)
    assert refused["code"] == "DR103"


@pytest.mark.usefixtures("restored")
def test_the_record_of_the_restore_has_the_losses_in_numbers(story: Story) -> None:
    newest = story.plant.json("evidence", "list", SERVICE, "--kind", "restore")["records"][-1]
    entry = story.plant.json("evidence", "show", str(newest["record"]))
    (losses,) = entry["statement"]["predicate"]["losses"]
    assert losses["known_behind"] == story.second["point"]
    assert (losses["rows_lost"], losses["numbers_at_risk"], losses["queued"], losses["overdue_actions"]) == (6, 4, 3, 1)
    assert any(item["name"] == "artefact/losses.json" for item in entry["statement"]["subject"])


@pytest.mark.long
def test_a_drill_to_the_latest_position_loses_nothing_and_still_tells_what_waits(story: Story) -> None:
    drill = story.plant.json("drill", SERVICE, "--plan", "latest")
    (report,) = drill["losses"]
    assert (report["lossy"], report["known_behind"], report["rows_lost"]) == (False, None, 0)
    assert [item["table"] for item in report["queues"]] == ["sms_sms"], "the mails were sent before the latest position"
    assert not [item for item in report["numbers"] if item["certain"]]
    assert json.dumps(report)
