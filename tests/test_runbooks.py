"""Every command block of every runbook is run for real, in order, on a plant that has what the runbook is for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice.cli.table import COMMANDS, GROUPS
from drservice.clock import to_iso
from drservice.evidence.signing import load_log_key
from drservice.model.runbook import RunIn, StepKind, parse_runbook
from drservice.node.companions import Companions
from drservice.node.walstreams import RECEIVING
from drservice.operations.mutation import Mutation
from drservice.operations.walboard import stream_name
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.estate import copy_tree, wait_for
from tests.doubles.odoobusiness import create_office
from tests.doubles.plant import DATABASE, Plant, placed
from tests.doubles.runbooks import FOLDER, People, Walk, command_blocks, read, shipped

ROOT = FOLDER.parent
IDS = [path.stem for path in shipped()]
SERVICE = "erp"


@pytest.fixture(scope="module")
def maker(template_cache: Path) -> Iterator[ClusterMaker]:
    made = ClusterMaker(cache=template_cache)
    yield made
    made.close()


@pytest.fixture
def plants(maker: ClusterMaker) -> Iterator[Callable[[], Plant]]:
    """Makes plants of a test's own."""
    made: list[Plant] = []

    def make() -> Plant:
        made.append(Plant.over(maker.make(wal_segment_mb=1)))
        return made[-1]

    yield make
    for plant in made:
        plant.estate.close()
        plant.cluster.stop()


@pytest.fixture(scope="module")
def calm(maker: ClusterMaker) -> Iterator[Plant]:
    """A plant with a recovery point, a line after it (501), the instant ``instant``, and another line (502)."""
    plant = Plant.over(maker.make(wal_segment_mb=1))
    for statement in filter(str.strip, OPEN_WORK.split(";")):
        plant.sql(statement)
    with plant.cluster.connect(DATABASE) as connection:
        create_office(connection)
    plant.json("backup", SERVICE)
    plant.sql(LATE_LINE)
    plant.sql("create table instant as select clock_timestamp() as at")
    plant.sql(LATE_LINE)
    plant.archive()
    yield plant
    plant.estate.close()


OPEN_WORK = """
create table stock_picking (id int, name text, origin text, state text, scheduled_date timestamp);
create table purchase_order (id int, name text, state text, date_planned timestamp, amount_total numeric);
create table mrp_production (id int, name text, state text, product_qty numeric, date_start timestamp);
create table sale_order (id int, name text, state text, commitment_date timestamp, amount_total numeric);
insert into stock_picking (name, origin, state, scheduled_date) values
    ('WH/OUT/1', 'S1', 'assigned', '2026-01-05 08:00'), ('WH/OUT/2', 'S2', 'done', '2026-01-04 08:00');
insert into purchase_order (name, state, date_planned, amount_total) values ('P1', 'to approve', '2026-01-09', 10);
insert into mrp_production (name, state, product_qty, date_start) values ('MO1', 'progress', 4, '2026-01-05 06:00');
insert into sale_order (name, state, commitment_date, amount_total) values ('S1', 'sale', '2026-01-06', 99);
"""
LATE_LINE = "insert into account_move_line (parent_state, debit, credit) values ('posted', 5, 5)"


def walk(
    name: str,
    plant: Plant,
    blanks: dict[str, str],
    *,
    people: People | None = None,
    settings: Path | None = None,
    occasion: RunIn = RunIn.BOTH,
) -> Walk:
    """Return a walk through a shipped runbook on this plant, in an empty folder of its own."""
    if os.geteuid() != 0:
        pytest.skip("runbooks are followed as root: they change owners and act as several users")
    folder = plant.cluster.root / f"{name}-{occasion.value}"
    folder.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), str(plant.cluster.bin), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(folder), "DRSERVICE_CONFIG": str(settings or plant.estate.config)}
    runbook = read(name)
    filled = {"SERVICE": SERVICE, "DATABASE": DATABASE, "PRODUCTION": plant.cluster.dsn(DATABASE), "WORK": str(folder)}
    wanted = {key: value for key, value in filled.items() if key in runbook.blanks}
    return Walk(
        runbook=runbook,
        blanks={**wanted, **blanks},
        environment=environment,
        folder=folder,
        people=people or {},
        occasion=occasion,
    )


def finish(played: Walk) -> None:
    """Play, and see that no command block was left out."""
    played.play()
    assert played.executed == command_blocks(played.runbook)


# --- what every runbook is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_a_runbook_has_the_name_of_its_file_and_is_on_the_index(name: str) -> None:
    assert read(name).id == name
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"]({name}.md)" in index


def test_every_runbook_has_a_test_that_runs_it() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    played = set(re.findall(r'walk\(\s*"([a-z-]+)"', source))
    assert played == set(IDS)


def named_commands(text: str) -> set[str]:
    """Return every command of the program that a text names."""
    found = re.findall(r"\bdrservice(?: --config \S+| --[a-z-]+)* ([a-z]+)(?: ([a-z]+))?", text)
    return {f"{first} {second}" if first in GROUPS else first for first, second in found}


@pytest.mark.parametrize("name", [*IDS, "README"])
def test_every_command_that_a_runbook_names_exists(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    named = named_commands("\n".join(re.findall(r"`(drservice [^`]*)`", text)))
    if name != "README":
        named |= named_commands("\n".join(part for step in read(name).steps for part in step.texts()))
        assert named, "a runbook of drservice uses drservice"
    assert named <= {entry.name for entry in COMMANDS}


@pytest.mark.parametrize("name", [*IDS, "README"])
def test_links_of_a_runbook_lead_somewhere(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    mentioned = re.findall(r"\b([a-z-]+\.md)\b", text)
    places = (FOLDER, ROOT / "docs", ROOT / "docs/how-to")
    lost = [target for target in [*links, *mentioned] if not any((place / target).exists() for place in places)]
    assert lost == []


def test_the_index_explains_every_key_of_a_step() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    used = {key for name in IDS for key in re.findall(r"^([a-z_]+):", step_blocks(name), re.MULTILINE)}
    known = set(re.findall(r"^\| `([a-z_]+)` \|", index, re.MULTILINE))
    assert used - known == {"id", "do", "timeout", "asks"}, "and the names of these four say it all"


def step_blocks(name: str) -> str:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```drservice-step\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


# --- what the walk notices --------------------------------------------------------------------------------------

SMALL = """\
---
id: small
title: Small
purpose: See what a walk notices.
use_when: [testing]
owner: nobody
minutes: 1
needs: [bash]
changes_production: no
reviewed: 2026-11-26
blanks: {NUMBER: told by the first step, WORD: a word}
---
## Count
```drservice-step
id: count
kind: auto
run: |
  echo "${WORD} number $(wc -l < log)"
  echo done >> log
expect: "${WORD} number"
learn: {NUMBER: 'number (\\d+)'}
undo: echo undone >> log
fallback: none
```
## Look
```drservice-step
id: look
kind: check
run: test "${NUMBER}" = 2 && echo right
expect: right
fallback: none
```
"""


def small(folder: Path, text: str = SMALL) -> Walk:
    (folder / "log").touch()
    return Walk(runbook=parse_runbook(text), blanks={"WORD": "fine"}, environment={}, folder=folder)


def test_a_walk_does_undoes_and_does_again_and_carries_on_what_it_learned(tmp_path: Path) -> None:
    played = small(tmp_path)
    finish(played)
    assert (tmp_path / "log").read_text() == "done\nundone\ndone\n"
    assert played.executed == {"count:run", "count:undo", "look:run"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'expect: "${WORD} number"',
            "expect: something else",
            "step count (Count): exit 0, without ['something else']",
        ),
        ("expect: right", "expect: left", "step look (Look): exit 0, without ['left']"),
        ("  echo done >> log", "  echo done >> log; exit 3", "step count (Count): exit 3"),
        ("  echo done >> log", "  false | true; echo done >> log", "step count (Count): exit 1"),
        ("number (\\d+)", "nummer (\\d+)", "the output does not tell NUMBER"),
        ("undo: echo undone >> log", "undo: exit 4", "step count (Count): undo: exit 4"),
    ],
)
def test_a_walk_fails_where_people_would_stop(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in SMALL
    with pytest.raises(AssertionError, match=re.escape(told)):
        small(tmp_path, SMALL.replace(old, new)).play()


def test_a_block_that_was_not_run_is_noticed(tmp_path: Path) -> None:
    played = small(tmp_path)
    manual = dataclasses.replace(played.runbook.steps[1], kind=StepKind.MANUAL)
    played.runbook = dataclasses.replace(played.runbook, steps=(played.runbook.steps[0], manual))
    with pytest.raises(AssertionError, match="look:run"):
        finish(played)


def test_a_blank_that_nobody_fills_in_is_noticed(tmp_path: Path) -> None:
    played = small(tmp_path)
    played.blanks.clear()
    with pytest.raises(AssertionError, match="does not fill in WORD"):
        played.play()


def test_a_command_that_does_not_exist_is_noticed() -> None:
    text = "drservice --json restor erp; drservice evidence shwo 3; drservice --config x.yaml wal push; drservice info"
    assert named_commands(text) == {"restor", "evidence shwo", "wal push", "info"}


# --- the runbooks ---------------------------------------------------------------------------------------------


def test_point_in_time_restore(plants: Callable[[], Plant]) -> None:
    plant = plants()
    with plant.cluster.connect(DATABASE) as connection:
        create_office(connection)
    plant.json("backup", SERVICE)
    before = plant.sql("select * from account_move_line order by id")
    moves = plant.sql("select * from stock_move order by id")
    lost = plant.acknowledged[7]
    content = (plant.filestore / lost).read_bytes()
    plant.archive()
    instant = plant.now()
    plant.sql("select pg_sleep(0.05)")
    plant.sql("delete from account_move_line where id between 100 and 180")
    plant.sql("update account_move_line set note = 'worked on since' where id = 1")
    plant.sql("drop table stock_move")
    (plant.filestore / lost).unlink()

    def crash(_: Walk) -> None:
        plant.sql("update account_move_line set note = 'the last commit' where id = 2")
        plant.cluster.kill9()

    played = walk(
        "point-in-time-restore",
        plant,
        {
            "TABLE": "account_move_line",
            "KEY": "id",
            "DROPPED_TABLE": "stock_move",
            "PRODUCTION_DOCUMENTS": str(plant.filestore),
            "DOCUMENTS_ACCOUNT": (plant.filestore / lost).parent.owner(),
        },
        people={
            "agree-to-go-back": lambda walk: walk.blanks.update(COMPONENT="database", IN_PLACE_TARGET="latest"),
            "choose-instant": lambda walk: walk.blanks.update(TARGET=to_iso(instant)),
            "stop-production": crash,
            "start-production": lambda _: plant.cluster.start(),
        },
    )
    finish(played)

    assert " 81\n" in played.outputs["compare"]
    assert "1 documents put back" in played.outputs["put-documents-back"]
    assert "salvaged before: " in played.outputs["go-back"]
    assert "2 mails (mail_mail 1, 3)" in played.outputs["losses"]
    assert plant.sql("select id, state from mail_mail order by id") == [(1, "exception"), (2, "sent"), (3, "exception")]
    assert "-- WH/MO/: last one here 2\n-- select setval('public.ir_sequence_001'" in played.outputs["write-numbers"]
    after = plant.sql("select * from account_move_line order by id")
    assert [row[:4] for row in after] == [row[:4] for row in before]
    assert after[0][4] == "worked on since", "work that was done since the mistake stays"
    assert after[1][4] == "the last commit", "and what was committed right before the crash"
    assert plant.sql("select * from stock_move order by id") == moves
    plant.sql("insert into stock_move (state, product_qty) values ('done', 1)")
    assert (plant.filestore / lost).read_bytes() == content
    assert (plant.filestore / lost).owner() == (plant.filestore / lost).parent.owner()
    assert plant.estate.environments() == []
    assert plant.sql("select count(*) from pg_namespace where nspname = 'recovered'") == [(0,)]


def another_machine(plant: Plant, name: str, **changes: object) -> Path:
    """Write settings as they come from git: signers named, a state and a repository of its own, nothing of the host."""
    folder = plant.cluster.root / name
    folder.mkdir(exist_ok=True)
    document = plant.document()
    document["state_dir"] = str(folder / "state")
    document["repository"]["url"] = f"file://{copy_tree(plant.estate.repository, folder / 'repository')}"
    document["repository"]["signers"] = {"lost-host": {"key": host_key_of(plant.estate.state)}}
    document["repository"]["identity"] = f"file:{identity_in_memory(plant, folder)}"
    document["evidence"] = {"log_keys": [log_key_of(plant.estate.state)]}
    path = folder / "drservice.yaml"
    path.write_text(json.dumps({**document, **changes}, indent=1))
    path.chmod(0o644)
    return path


def identity_in_memory(plant: Plant, folder: Path) -> Path:
    """Put the identity where only root reads it: the server's user, who archives, has no need of it."""
    path = folder / "identity.age"
    path.touch(mode=0o600)
    path.write_text(plant.estate.identity.read_text())
    return path


def host_key_of(state: Path) -> str:
    return f"ed25519:{make_host_key(state).public_key.hex()}"


def log_key_of(state: Path) -> str:
    key = load_log_key(state, "any")
    assert key is not None
    return f"ed25519:{key.public_key.hex()}"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change settings, as a person does with an editor."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1))


def believe(line: str) -> Callable[[dict[str, Any]], object]:
    """Return the edit that adds a printed line ``HOST: {key: "ed25519:..."}`` to the signers."""
    found = re.fullmatch(r'(\S+): \{key: "(ed25519:[0-9a-f]{64})"\}', line)
    assert found is not None, line
    return lambda document: document["repository"]["signers"].update({f"{found[1]}-new": {"key": found[2]}})


def test_a_drill_of_the_point_in_time_restore_changes_nothing_in_production(calm: Plant) -> None:
    lines, files = calm.sql("select * from account_move_line order by id"), placed(calm.filestore)
    (instant,) = calm.sql("select at from instant")[0]
    played = walk(
        "point-in-time-restore",
        calm,
        {
            "TABLE": "account_move_line",
            "KEY": "id",
            "DROPPED_TABLE": "stock_move",
            "PRODUCTION_DOCUMENTS": str(calm.filestore),
            "DOCUMENTS_ACCOUNT": calm.filestore.owner(),
        },
        people={"choose-instant": lambda walk: walk.blanks.update(TARGET=to_iso(instant))},
        occasion=RunIn.DRILL,
    )
    played.play()
    assert " 501 |" in played.outputs["look"]
    assert " 502 |" in played.outputs["look"]
    assert calm.sql("select * from account_move_line order by id") == lines
    assert placed(calm.filestore) == files
    assert calm.sql("select count(*) from pg_namespace where nspname = 'recovered'") == [(0,)]
    assert calm.estate.environments() == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewMachine:
    """A machine on which the service is to come back, and the walk that brings it."""

    folder: Path
    sockets: Path
    played: Walk

    @classmethod
    def beside(cls, plant: Plant, occasion: RunIn) -> NewMachine:
        """Make the machine; its repository is a copy, so that the plant's own goes on."""
        settings = another_machine(plant, f"new-machine-{occasion.value}")
        folder, sockets = settings.parent, settings.parent / "sockets"
        sockets.mkdir()
        hand_over(sockets)
        account = plant.cluster.account
        assert account is not None, "run the tests as root: this runbook changes owners"

        def prepare(_: Walk) -> None:
            def change(document: dict[str, Any]) -> None:
                components = document["services"][SERVICE]["components"]
                components["database"]["data_directory"] = str(folder / "erp" / "database")
                components["database"]["dsn"] = f"host={sockets} dbname={DATABASE} user=postgres"
                components["documents"]["path"] = str(folder / "filestore")

            edit(settings, change)

        played = walk(
            "host-loss",
            plant,
            {
                "SETTINGS": str(settings),
                "STATE": str(folder / "state"),
                "NEW": str(folder / "erp"),
                "DATABASE_ACCOUNT": account.name,
                "PROGRAMS": str(plant.cluster.bin),
                "SOCKETS": str(sockets),
                "DOCUMENTS_PATH": str(folder / "filestore"),
                "DOCUMENTS_ACCOUNT": account.name,
            },
            settings=settings,
            people={
                "install": prepare,
                "list-signer": lambda walk: edit(settings, believe(walk.blanks["SIGNER_LINE"])),
            },
            occasion=occasion,
        )
        return cls(folder=folder, sockets=sockets, played=played)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Ask the service that came back."""
        with psycopg.connect(f"host={self.sockets} dbname={DATABASE} user=postgres") as connection:
            return connection.execute(question.encode()).fetchall()

    def stop(self, plant: Plant) -> None:
        plant.cluster.run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={self.folder / 'erp' / 'database'}")


def test_host_loss(calm: Plant) -> None:
    machine = NewMachine.beside(calm, RunIn.BOTH)
    try:
        finish(machine.played)
        question = "select * from account_move_line order by id"
        assert machine.ask(question) == calm.sql(question)
        # Number 2 was taken by the drill of the same runbook, which the walk does first and undoes.
        assert machine.ask("select last_archived_wal like '00000003%' from pg_stat_archiver") == [(True,)]
    finally:
        machine.stop(calm)
    assert placed(machine.folder / "filestore") == placed(calm.filestore)
    assert f"{len(calm.acknowledged)} documents in place" in machine.played.outputs["documents"]
    assert "timeline 3" in machine.played.outputs["first-backup"]


def archived(repository: Path) -> set[str]:
    """Return the names of all snapshots and WAL in a repository."""
    names = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    return {name for name in names if "/wal/" in name or "/snapshots/" in name}


def test_a_drill_of_the_host_loss_archives_nothing(calm: Plant) -> None:
    machine = NewMachine.beside(calm, RunIn.DRILL)
    before = archived(machine.folder / "repository")
    assert before
    try:
        machine.played.play()
        assert machine.ask("show archive_mode") == [("off",)]
        machine.ask("select pg_switch_wal()")
    finally:
        machine.stop(calm)
    assert archived(machine.folder / "repository") == before
    assert {"archive-settings:run", "first-backup:run"} & machine.played.executed == set()


def test_lost_tool(calm: Plant) -> None:
    settings = another_machine(calm, "lost-tool-machine")
    repository = settings.parent / "repository"
    sockets = settings.parent / "sockets"
    sockets.mkdir()
    hand_over(sockets)
    account = calm.cluster.account
    assert account is not None, "run the tests as root: this runbook changes owners"
    (instant,) = calm.sql("select at from instant")[0]
    new = settings.parent / "restored"
    played = walk(
        "lost-tool",
        calm,
        {
            "REPOSITORY": str(repository),
            "SCRIPT_SHA256": hashlib.sha256((repository / "restore.py").read_bytes()).hexdigest(),
            "SIGNER": host_key_of(calm.estate.state),
            "IDENTITY": str(settings.parent / "identity.age"),
            "NEW": str(new),
            "TARGET": str(instant),
            "DATABASE_ACCOUNT": account.name,
            "PROGRAMS": str(calm.cluster.bin),
            "SOCKETS": str(sockets),
            "TABLE": "account_move_line",
        },
        settings=settings,
    )
    try:
        finish(played)
        with psycopg.connect(f"host={sockets} dbname={DATABASE} user=postgres") as connection:
            assert connection.execute("select max(id) from account_move_line").fetchone() == (501,)
            assert connection.execute("show archive_mode").fetchone() == ("off",)
    finally:
        calm.cluster.run("pg_ctl", "stop", "--mode=immediate", f"--pgdata={new / 'database'}")
    assert placed(new / "documents") == placed(calm.filestore)
    assert placed(new / "configuration") == {"odoo.conf": b"[options]\nworkers = 4\n"}
    assert "MISSING" not in played.outputs["missing-documents"]


def test_lost_key(plants: Callable[[], Plant]) -> None:
    plant = plants()
    settings, state = plant.estate.config, plant.estate.state
    secret, second = make_identity()
    kept = plant.cluster.root / "kept.age"
    kept.write_text(f"{secret}\n")
    kept.chmod(0o600)
    edit(
        settings,
        lambda it: it["repository"].update(recipients=[plant.estate.recipient, second], identity=f"file:{kept}"),
    )
    first = plant.json("backup", SERVICE)
    old_key, old_log_key = host_key_of(state), log_key_of(state)
    new_identity = plant.cluster.root / "new.age"

    def change_recipients(walk: Walk) -> None:
        edit(settings, lambda it: it["repository"].update(recipients=[second, walk.blanks["NEW_RECIPIENT"]]))

    def list_both(walk: Walk) -> None:
        signers = {"old": {"key": old_key}, walk.blanks["HOST"]: {"key": walk.blanks["HOST_KEY"]}}
        edit(settings, lambda it: it["repository"].update(signers=signers))

    played = walk(
        "lost-key",
        plant,
        {
            "STATE": str(state),
            "DATABASE_ACCOUNT": state.owner(),
            "NEW_IDENTITY": str(new_identity),
            "OLD_LOG_KEY": old_log_key,
            "BUNDLE": str(plant.cluster.root / "bundle.zip"),
        },
        people={
            "change-recipients": change_recipients,
            "configure-identity": lambda _: edit(
                settings, lambda it: it["repository"].update(identity=f"file:{new_identity}")
            ),
            "new-signing-key": lambda _: (state / "signing.key").rename(state / "signing.key.stolen"),
            "list-signer": list_both,
            "keep-log-key": lambda _: edit(settings, lambda it: it["evidence"].update(log_keys=[old_log_key])),
            "new-log-key": lambda _: (state / "log.key").unlink(),
        },
    )
    finish(played)
    assert host_key_of(state) == played.blanks["HOST_KEY"] != old_key
    assert log_key_of(state) != old_log_key
    done = plant.json("restore", SERVICE, "--to", "latest", "--into", plant.cluster.root / "read-with-the-new-identity")
    assert done["documents"]["missing"] == 0
    refused = plant.estate.refusal(
        "restore", SERVICE, "--snapshot", first["snapshots"][0]["snapshot"], "--start", status=5
    )
    assert refused["code"] == "DR801", "the new identity opens nothing that is older"


def test_quarterly_drill(calm: Plant) -> None:
    bundle = calm.cluster.root / "quarter.zip"
    policy = calm.cluster.root / "policy.json"
    played = walk("quarterly-drill", calm, {"PLAN": "random", "BUNDLE": str(bundle), "POLICY": str(policy)})
    finish(played)
    mutations = played.outputs["mutations"]
    assert mutations.count("NOTICED, as it must be") == len(Mutation)
    assert "NOT NOTICED" not in mutations
    assert played.outputs["verify-bundle"].count("\nVERIFIED\n") == 2
    assert '"outcome": "passed"' in played.outputs["show"]


def test_release_primary(calm: Plant) -> None:
    """A commit hangs because the receiver is gone; it is released, the receiver comes back, commits wait again."""
    settings = calm.cluster.root / "synchronous.yaml"
    document = calm.document()
    document["services"][SERVICE]["components"]["database"]["wal"] |= {"mode": "both", "synchronous": True}
    settings.write_text(json.dumps(document))
    estate = calm.estate.estate(settings)
    component = estate.service(SERVICE).database()
    name = stream_name(estate.service(SERVICE).name, component.name)
    calm.sql(f"alter system set synchronous_standby_names = '{name}'")
    calm.sql("select pg_reload_conf()")
    hanging = threading.Thread(target=calm.sql, args=("select pg_logical_emit_message(true, 'test', 'hangs')",))
    waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
    receivers = Companions(RECEIVING, estate=lambda: estate, host="db1", log_level="info", first_seconds=0.0)

    def commit(_: Walk) -> None:
        hanging.start()
        wait_for(lambda: calm.sql(waiting) == [(1,)], "a commit that hangs")

    played = walk(
        "release-primary",
        calm,
        {},
        settings=settings,
        people={"waiting": commit, "cause": lambda _: receivers.start()},
    )
    try:
        finish(played)
        hanging.join(10)
        assert not hanging.is_alive()
        assert "COMMITS MAY WAIT FOR EVER" in played.outputs["check"]
        assert "1 commits wait" in played.outputs["waiting"]
        assert calm.sql("show synchronous_standby_names") == [(name,)]
        calm.sql("select pg_logical_emit_message(true, 'test', 'waits for the repository, and comes back')")
    finally:
        calm.sql("alter system reset synchronous_standby_names")
        calm.sql("select pg_reload_conf()")
        if receivers.running:
            receivers.stop()
        calm.sql(f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}'")


def test_manual_fallback(calm: Plant) -> None:
    lists = calm.cluster.root / "lists"
    lists.mkdir()
    taken: dict[str, list[str]] = {}

    def look(_: Walk) -> None:
        taken.update({path.stem: path.read_text().splitlines() for path in lists.iterdir()})

    played = walk("manual-fallback", calm, {"LISTS": str(lists)}, people={"print": look})
    finish(played)
    assert {name: len(rows) - 1 for name, rows in taken.items()} == {
        "open-transfers": 1,
        "open-purchases": 1,
        "open-work-orders": 1,
        "open-sales": 1,
    }
    assert taken["open-transfers"][1].startswith("WH/OUT/1,S1,assigned,")
    assert list(lists.iterdir()) == []
    assert calm.estate.environments() == []
