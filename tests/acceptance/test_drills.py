"""Drills from the command line: what is promised, what is found, what stays on record, what is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.clock import from_iso
from drservice.components.odoo.invariants import INVARIANTS
from drservice.model.evidence import seed_commitment, target_from_seed
from drservice.operations.mutation import EXPLANATIONS, Mutation
from tests.doubles.cluster import ClusterMaker
from tests.doubles.plant import DATABASE, Plant, clean_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "mutations.md"


@contextmanager
def working_plant(template_cache: Path) -> Iterator[Plant]:
    """Give a plant with a recovery point and work after it, all archived."""
    maker = ClusterMaker(cache=template_cache)
    made = Plant.over(maker.make(wal_segment_mb=1))
    try:
        made.json("backup", "erp")
        for number in range(4):
            made.sql("insert into stock_move (state, product_qty) values ('draft', %s)", (number,))
            made.sql("select pg_sleep(0.02)")
        made.archive()
        yield made
    finally:
        made.estate.close()
        maker.close()


@pytest.fixture(scope="module")
def plant(template_cache: Path) -> Iterator[Plant]:
    """The plant of most tests. They mend what they break; in its past it stays broken."""
    with working_plant(template_cache) as made:
        yield made


@pytest.fixture(scope="module")
def sound_plant(template_cache: Path) -> Iterator[Plant]:
    """A plant that nothing was ever wrong with, for drills of any instant."""
    with working_plant(template_cache) as made:
        yield made


def record(plant: Plant, number: int) -> dict[str, Any]:
    predicate = plant.json("evidence", "show", str(number))["statement"]["predicate"]
    assert isinstance(predicate, dict)
    return predicate


def changed(plant: Plant, tmp_path: Path, **service: Any) -> Path:
    """Return a configuration whose service has other values."""
    document = plant.document()
    document["services"]["erp"].update(service)
    path = tmp_path / "changed.yaml"
    path.write_text(json.dumps(document))
    return path


def test_a_drill_recovers_asks_judges_records_and_leaves_nothing(plant: Plant) -> None:
    done = plant.json("drill", "erp", "--plan", "latest")
    assert (done["schema"], done["verdict"], done["reasons"]) == ("drservice/drill/v1", "passed", [])
    assert done["documents"] == {"expected": 60, "missing": 0, "corrupt": 0, "extra": 0, "missing_in_production": 0}
    states = {check["name"]: check["state"] for check in done["checks"]}
    assert set(states.values()) == {"passed"}
    assert {
        "database/target-reached",
        "database/watermarks",
        "documents/documents-hash",
        "business:moves-balance",
    } <= set(states)
    assert {"database/pg_amcheck", "database/pg_checksums", "business:posted-lines"} <= set(states)
    assert done["rpo_seconds"] == 0, "everything that was committed is archived"
    assert sum(done["phases"].values()) == pytest.approx(done["rto_seconds"], abs=0.05), "every second has a phase"
    assert done["phases"]["check"] > max(check["seconds"] for check in done["checks"]), "asking is part of the time"
    assert done["environment"] == {"id": None, "kind": "sandbox", "path": None, "dsn": None}
    assert done["destroyed"] is True
    assert plant.estate.environments() == []
    obligation, outcome = record(plant, done["obligation_record"]), record(plant, done["record"])
    planned = {item["name"]: item["severity"] for item in obligation["criteria"]["checks"]}
    assert planned == {check["name"]: check["severity"] for check in outcome["checks"]}
    excused = [check["name"] for check in outcome["checks"] if check["not_applicable"]]
    of_odoo = {f"documents/odoo-{item.name}" for item in INVARIANTS}
    assert {"configuration/files-content", "documents/odoo-modules", *of_odoo} <= set(excused), (
        "what cannot be asked is planned and recorded all the same"
    )
    others = [name for name in excused if not name.startswith(("documents/odoo-", "documents/neutralized"))]
    assert others == ["configuration/files-content"], "the plant is no Odoo, and everything else can be asked"
    assert set(planned) == {*states, *excused}
    assert obligation["criteria"]["documents"] is True
    assert obligation["recorded_at"] < outcome["recorded_at"]
    assert (outcome["obligation"], outcome["outcome"]) == (obligation["obligation"], "passed")
    assert outcome["rto_ms"] >= done["rto_seconds"] * 1000 - 1
    assert len(outcome["isolation"]) > 10
    assert all(probe["isolated"] for probe in outcome["isolation"])


def test_a_random_target_follows_from_a_seed_that_was_committed_to_before(sound_plant: Plant) -> None:
    done = sound_plant.json("drill", "erp", "--plan", "random")
    obligation, outcome = record(sound_plant, done["obligation_record"]), record(sound_plant, done["record"])
    seed = bytes.fromhex(outcome["seed"])
    promised = obligation["target"]
    assert promised["kind"] == "random"
    assert promised["seed_commitment"] == seed_commitment(seed)
    assert "seed" not in obligation, "who knows the seed could choose the target"
    instant = target_from_seed(seed, from_iso(promised["from"]), from_iso(promised["to"]))
    assert from_iso(done["target"]["requested"]) == instant
    assert done["verdict"] == "passed"
    assert done["target_accuracy_seconds"] == 0


def test_a_failed_check_fails_the_drill_and_opens_a_finding_until_it_passes(plant: Plant) -> None:
    plant.sql("update account_move_line set debit = debit + 1 where id = 7")
    plant.archive()
    try:
        failed = plant.json("drill", "erp", "--plan", "latest", status=1)
    finally:
        plant.sql("update account_move_line set debit = debit - 1 where id = 7")
        plant.archive()
    assert failed["verdict"] == "failed"
    assert any("business:moves-balance failed" in reason for reason in failed["reasons"])
    (finding,) = [
        item for item in findings(plant, failed["record"]) if item["check"].startswith("business:moves-balance (")
    ]
    assert (finding["state"], finding["owner"], finding["drill_entry"]) == ("opened", "finance", failed["record"])
    assert finding["finding"] in failed["findings"]
    again = plant.json("drill", "erp", "--plan", "latest", status=1)
    assert finding["finding"] in again["closed_findings"], "the same check passed"
    found = findings(plant, failed["record"])
    states = [item["state"] for item in found if item["finding"] == finding["finding"]]
    assert states == ["opened", "closed"]
    # What was counted before the lines were touched is not what is there now: only a new baseline settles that.
    assert any("posted-lines" in reason for reason in again["reasons"])
    plant.json("backup", "erp")
    mended = plant.json("drill", "erp", "--plan", "latest")
    assert mended["verdict"] == "passed"
    assert len(mended["closed_findings"]) == 1


def findings(plant: Plant, since: int) -> list[dict[str, Any]]:
    """Return the findings behind a record, oldest first; each is read by a command, and other tests leave a hundred."""
    listed = plant.json("evidence", "list", "--kind", "finding", "--most", "100")["records"]
    numbers = [int(item["record"]) for item in reversed(listed)]
    return [record(plant, number) for number in numbers if number > since]


def test_a_check_that_cannot_run_is_a_failure(plant: Plant, tmp_path: Path) -> None:
    broken = {"name": "broken", "component": "database", "sql": "select nothing from nowhere", "expect": "= 0"}
    done = plant.json("drill", "erp", "--plan", "latest", status=1, config=changed(plant, tmp_path, checks=[broken]))
    (check,) = [item for item in done["checks"] if item["name"] == "business:broken"]
    assert check["state"] == "unverified"
    assert "nowhere" in check["detail"]
    assert done["verdict"] == "failed"
    assert any(text.startswith("business:broken") for text in done["not_tested"])


def test_a_warning_is_told_and_fails_nothing(plant: Plant, tmp_path: Path) -> None:
    check = {"name": "odd", "component": "database", "sql": "select 1", "expect": "= 2", "severity": "warning"}
    done = plant.json("drill", "erp", "--plan", "latest", config=changed(plant, tmp_path, checks=[check]))
    assert done["verdict"] == "passed"
    assert any("business:odd" in warning for warning in done["warnings"])


def test_a_promise_that_is_not_kept_is_a_breach(plant: Plant, tmp_path: Path) -> None:
    config = changed(plant, tmp_path, objectives={"rto": "1ms"})
    done = plant.json("drill", "erp", "--plan", "latest", status=4, config=config)
    assert done["verdict"] == "failed"
    assert all("RTO" in reason for reason in done["reasons"])


def test_a_document_without_its_file_fails_the_drill(plant: Plant) -> None:
    content = b"filed after the last pass over the documents"
    name = plant.upload(content)
    plant.archive()
    try:
        done = plant.json("drill", "erp", "--plan", "latest", status=1)
    finally:
        plant.remove(name)
        plant.archive()
    assert done["documents"]["missing"] == 1
    assert "1 documents are missing" in done["reasons"]


def test_work_that_was_committed_behind_the_archive_is_lost_work(plant: Plant) -> None:
    """The rows are archived, the commit is not: the copy knows the transaction and lacks what it did."""
    with plant.cluster.connect(DATABASE) as connection:
        connection.execute("begin")
        connection.execute("insert into stock_move (state, product_qty) select 'draft', 1 from generate_series(1, 50)")
        plant.archive()
        connection.execute("commit")
        done = plant.json("drill", "erp", "--plan", "latest")
        plant.archive()
        connection.execute("checkpoint")
        idle = plant.json("drill", "erp", "--plan", "latest")
    assert done["rpo_seconds"] > 0, "50 rows that were acknowledged are not in the copy"
    assert idle["rpo_seconds"] == 0, "a checkpoint is no work"


@pytest.mark.long
def test_statistics_that_autovacuum_renews_are_nobody_s_work(plant: Plant) -> None:
    """An analysis commits like anything else; behind the archive it must not look like lost work."""
    counted = "select autoanalyze_count from pg_stat_user_tables where relname = 'renewed'"
    with plant.cluster.connect(DATABASE) as connection:

        def every(naptime: str) -> None:
            connection.execute(f"alter system set autovacuum_naptime = '{naptime}'")
            connection.execute("select pg_reload_conf()")

        every("1h")
        try:
            connection.execute("create table renewed with (autovacuum_analyze_threshold = 0) as select 1 as x")
            plant.archive()
            every("1s")  # writes no transaction
            deadline = time.monotonic() + 60
            while connection.execute(counted).fetchone() == (0,):
                assert time.monotonic() < deadline, "autovacuum never came"
                time.sleep(0.1)
            every("1h")
            by_autovacuum = plant.json("drill", "erp", "--plan", "latest")
            connection.execute("analyze renewed")
            by_somebody = plant.json("drill", "erp", "--plan", "latest")
        finally:
            connection.execute("drop table if exists renewed")
            connection.execute("alter system reset autovacuum_naptime")
            connection.execute("select pg_reload_conf()")
            plant.archive()
    assert by_autovacuum["rpo_seconds"] == 0
    assert by_somebody["rpo_seconds"] > 0, "a statement of somebody is work until the opposite is known"


def test_a_failed_drill_takes_the_proof_away_until_one_passes(plant: Plant, tmp_path: Path) -> None:
    plant.json("drill", "erp", "--plan", "latest")
    (service,) = plant.json("info", "erp")["services"]
    assert (service["verified_by"], service["last_drill"]["outcome"]) == ("drill", "passed")
    wrong = {"name": "wrong", "component": "database", "sql": "select 1", "expect": "= 2"}
    config = changed(plant, tmp_path, checks=[wrong])
    plant.json("drill", "erp", "--plan", "latest", status=1, config=config)
    (service,) = plant.json("info", "erp")["services"]
    assert (service["verified_at"], service["last_drill"]["outcome"]) == (None, "failed")
    # The same name, asked for less: another question.
    easier = changed(plant, tmp_path, checks=[{**wrong, "expect": "= 1"}])
    done = plant.json("drill", "erp", "--plan", "latest", config=easier)
    assert done["closed_findings"] == []
    assert plant.json("info", "erp")["services"][0]["verified_by"] == "drill"


@pytest.mark.long
def test_a_hundred_long_answers_cannot_keep_a_failure_off_the_record(plant: Plant, tmp_path: Path) -> None:
    answer = "select repeat('\u00e4', 200)"
    checks = [
        {"name": f"long-{number}", "component": "database", "sql": answer, "expect": "= short"} for number in range(130)
    ]
    done = plant.json("drill", "erp", "--plan", "latest", status=1, config=changed(plant, tmp_path, checks=checks))
    outcome = record(plant, done["record"])
    assert outcome["outcome"] == "failed"
    assert len([check for check in outcome["checks"] if check["state"] == "failed"]) == 130
    subjects = plant.json("evidence", "show", str(done["record"]))["statement"]["subject"]
    assert any(subject["name"] == "artefact/outcome.json" for subject in subjects), "what was cut is stored beside it"


def test_the_names_of_missing_documents_are_stored_beside_the_record(plant: Plant) -> None:
    name = plant.upload(b"another one after the last pass")
    plant.archive()
    try:
        done = plant.json("drill", "erp", "--plan", "latest", status=1)
    finally:
        plant.remove(name)
        plant.archive()
    subjects = plant.json("evidence", "show", str(done["record"]))["statement"]["subject"]
    (listed,) = [subject["digest"]["sha256"] for subject in subjects if subject["name"] == "artefact/documents.json"]
    stored = plant.estate.repository / "ledger" / "artefact" / listed[:2] / listed
    assert json.loads(stored.read_bytes())["missing"] == [name]
    assert record(plant, done["record"])["point"] is not None


def test_what_is_kept_runs_and_can_be_asked(plant: Plant) -> None:
    done = plant.json("drill", "erp", "--plan", "latest", "--keep")
    try:
        assert done["destroyed"] is False
        with psycopg.connect(f"{done['environment']['dsn']} dbname={DATABASE}") as connection:
            row = connection.execute("select count(*) from account_move_line").fetchone()
        assert row == (500,)
        assert record(plant, done["record"])["kept"] is True
    finally:
        plant.json("environment", "destroy", done["environment"]["id"])


def test_verify_by_restore_is_a_drill_without_people(sound_plant: Plant) -> None:
    done = sound_plant.json("verify", "erp", "--restore")
    (drill,) = done["drills"]
    assert (drill["plan"], drill["verdict"], drill["target"]["kind"]) == ("erp-verify", "passed", "random")
    assert sound_plant.json("info", "erp")["services"][0]["verified_by"] == "drill"


def test_without_a_key_that_is_believed_no_drill_begins(plant: Plant, tmp_path: Path) -> None:
    document = plant.document(state_dir=str(plant.cluster.root / "stranger"))
    key = plant.json("evidence", "policy")["policy"]["executors"][0]["key"]
    document["repository"]["signers"] = {"plant": {"key": key}}
    config = tmp_path / "stranger.yaml"
    config.write_text(json.dumps(document))
    size = plant.json("evidence", "list")["size"]
    refused = plant.estate.refusal("drill", "erp", "--plan", "latest", status=2, config=config)
    assert "signing key" in refused["message"]
    assert plant.json("evidence", "list")["size"] == size


# --- drills that must fail ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutated(plant: Plant) -> dict[str, dict[str, Any]]:
    """Run every drill that must fail, once."""
    done = plant.json("drill", "erp", "--plan", "latest", "--mutation", "all")
    return {item["mutation"]: item for item in done["drills"]}


@pytest.mark.parametrize("mutation", [mutation.value for mutation in Mutation])
def test_what_is_broken_is_noticed(plant: Plant, mutated: dict[str, dict[str, Any]], mutation: str) -> None:
    done = mutated[mutation]
    assert (done["verdict"], done["detected"], done["destroyed"] or done["error"] is not None) == ("failed", True, True)
    outcome = record(plant, done["record"])
    assert (outcome["mutation"], outcome["outcome"]) == (mutation, "failed")
    assert outcome["findings"] == [], "what was broken on purpose is no finding"


def test_the_repository_and_production_are_untouched_by_mutations(
    plant: Plant, mutated: dict[str, dict[str, Any]]
) -> None:
    assert len(mutated) == len(Mutation)
    assert plant.estate.environments() == []
    assert all(item["findings"] == [] for item in plant.json("verify", "erp", "--all")["components"])
    assert plant.json("drill", "erp", "--plan", "latest")["verdict"] == "passed"


def table(mutated: dict[str, dict[str, Any]]) -> str:
    """Return the page about drills that must fail, from what they said."""
    lines = [
        "# Drills that must fail",
        "",
        "Made by `tests/acceptance/test_drills.py`; do not edit. Each line is a drill of a plant in which something",
        "was broken first (`drservice drill SERVICE --mutation NAME`). It must fail, and for this reason; it stands in",
        "the ledger like any other.",
        "",
        "| mutation | what is broken | noticed by |",
        "|---|---|---|",
    ]
    for mutation in Mutation:
        done = mutated[mutation.value]
        noticed = (
            f"the recovery refuses: {done['error']['code']}"
            if done["error"] is not None
            else "check " + ", ".join(f"`{item['name']}`" for item in done["checks"] if item["state"] == "failed")
        )
        lines.append(f"| `{mutation.value}` | {EXPLANATIONS[mutation]} | {noticed} |")
    return "\n".join(lines) + "\n"


def test_the_page_about_mutations_is_what_they_said(mutated: dict[str, dict[str, Any]]) -> None:
    text = table(mutated)
    if os.environ.get("DRSERVICE_WRITE_DOCS"):
        DOCUMENT.write_text(text, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == text, "run this test with DRSERVICE_WRITE_DOCS=1"


# --- the bundle -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_bundle_verifies_alone_and_a_changed_one_does_not(plant: Plant, tmp_path: Path) -> None:
    bundle = tmp_path / "evidence.zip"
    plant.json("drill", "erp", "--plan", "latest")
    written = plant.json("evidence", "export", "--service", "erp", "--output", str(bundle))
    assert written["records"] == plant.json("evidence", "list")["size"]
    verified = plant.json("evidence", "verify", str(bundle))
    assert (verified["verified"], verified["complete"], verified["drills"]["passed"] > 0) == (True, True, True)
    assert verified["mutations_missed"] == []
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True, capture_output=True)
    python = tmp_path / "clean" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "cryptography>=50"]
    subprocess.run(pip, check=True, capture_output=True)
    folder = tmp_path / "unpacked"
    subprocess.run([python, "-m", "zipfile", "-e", bundle, folder], check=True)
    alone = clean_run([str(python), "-I", str(folder / "verify.py"), str(bundle)])
    assert (alone.status, alone.stdout.decode().splitlines()[-1]) == (0, "VERIFIED")
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF-")
    entry = folder / "entries" / "000000000001.json"
    entry.write_bytes(entry.read_bytes().replace(b"payloadType", b"payloadtype", 1))
    tampered = clean_run([str(python), "-I", str(folder / "verify.py"), str(folder)])
    assert tampered.status == 5
    assert "000000000001" in tampered.stderr.decode()
    refused = plant.estate.refusal("evidence", "verify", str(folder), status=5)
    assert "000000000001" in refused["message"]


def test_the_same_ledger_and_period_give_the_same_bundle(plant: Plant, tmp_path: Path) -> None:
    plant.json("evidence", "anchor")
    now = datetime.now().astimezone().isoformat()
    digests = set()
    for name in ("one.zip", "two.zip"):
        words = ("evidence", "export", "--from", "2026-01-01T00:00:00Z", "--to", now, "--output", str(tmp_path / name))
        plant.json(*words)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_an_existing_file_is_never_written_over(plant: Plant, tmp_path: Path) -> None:
    target = tmp_path / "evidence.zip"
    target.write_text("mine")
    plant.estate.refusal("evidence", "export", "--output", str(target), status=2)
    assert target.read_text() == "mine"


def test_another_host_is_enrolled_by_a_record_and_a_line_for_the_configuration(plant: Plant) -> None:
    done = plant.json("keys", "enroll", "db2", f"ed25519:{bytes(range(32)).hex()}", "--services", "erp")
    assert done["line"].startswith("db2: {key: ")
    assert record(plant, done["record"])["key"]["name"] == "db2"
