"""The story on a real Odoo: work, a backup during it, the host is lost, and Odoo works again; nobody hears of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice import processes
from drservice.clock import from_iso
from drservice.components.odoo.starting import odoo_places
from drservice.environments.sandbox import open_sandbox
from drservice.model.ids import ComponentName, ServiceName
from drservice.settings.loading import load
from drservice.wiring.data_plane import open_data_plane
from tests.odoo.load import Acknowledged, Load, expected_at, missing_of
from tests.odoo.production import DATABASE, Code, Production, folder
from tests.odoo.site import SERVICE, Site
from tests.odoo.table import told

pytestmark = [pytest.mark.odoo, pytest.mark.timeout(1800)]

_LOOK = timedelta(seconds=5)
"""What a new document may take to be durable at the default interval."""
_SEND = """
values = {"subject": "from a copy", "body_html": "<p>x</p>", "email_from": "erp@plant.example"}
mail = env["mail.mail"].create({**values, "email_to": "customer@example.com", "auto_delete": False})
mail.send(raise_exception=False)
env.cr.commit()
print("the mail is:", mail.state, "because of:", " ".join((mail.failure_reason or "").split())[:120])
"""
PLANS = ("latest", "consistent", "instant")
"""What is recovered: all rows, all rows whose documents are there, and an instant that had passed before the loss."""
_COLLECT = "env['ir.attachment']._gc_file_store(); env.cr.commit()\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happened before anything was recovered."""

    site: Site
    instant: datetime
    lost_at: datetime
    acknowledged: tuple[Acknowledged, ...]
    mails_before: int
    queued: tuple[int, ...]


def seed(production: Production) -> tuple[int, ...]:
    """Make the company dangerous to clone: a relay that works, a mail sent by it, three that wait; return those."""
    rpc = production.rpc()
    relay = {"name": "relay", "smtp_host": "127.0.0.1", "smtp_port": production.sink.port, "smtp_encryption": "none"}
    rpc.on("ir.mail_server", "create", relay)
    rpc.on("ir.config_parameter", "set_param", "web.base.url", "https://erp.plant.example")
    rpc.on("ir.config_parameter", "set_param", "web.base.url.freeze", "True")
    inbox = {"name": "inbox", "server_type": "pop", "server": "127.0.0.1", "port": production.sink.port}
    rpc.on("fetchmail.server", "create", {**inbox, "user": "erp", "password": "production-secret", "state": "done"})
    [orders] = rpc.on("ir.model", "search", [["model", "=", "sale.order"]])
    hook = {"name": "hook", "model_id": orders, "state": "webhook", "webhook_url": "http://127.0.0.1:9/hook"}
    rpc.on("ir.actions.server", "create", hook)
    mails = [
        int(
            rpc.on(
                "mail.mail",
                "create",
                {
                    "subject": f"mail {number}",
                    "body_html": "<p>x</p>",
                    "email_to": f"customer{number}@example.com",
                    "email_from": "erp@plant.example",
                },
            )
        )
        for number in range(4)
    ]
    rpc.on("mail.mail", "send", mails[:1])
    return tuple(mails[1:])


@contextmanager
def at_work(site: Site, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the production host beside the block; it is killed at the end, if the host was not lost."""
    with (site.root / "host" / f"{words[0]}-{words[1]}.log").open("ab") as output:
        process = processes.start(
            site.argv("host", *words),
            account=site.production.cluster.account,
            environment=processes.clean_environment({"HOME": str(site.root)}),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def lose(site: Site, *programs: subprocess.Popen[bytes]) -> datetime:
    """Lose the host, the programs that ship what it has first: nothing is shipped after the returned instant."""
    for program in programs:
        logs = [log.read_text()[-2000:] for log in (site.root / "host").glob("*.log")]
        assert program.poll() is None, f"it ended by itself: {logs}"
    lost_at = datetime.now(UTC)
    for program in programs:
        program.kill()
    site.production.lose()
    return lost_at


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Work, a backup during it, an instant that somebody will want back, more work, and the end of the host."""
    root = folder()
    assert root is not None
    production = Production.begin(Code(root=root), tmp_path_factory.getbasetemp())
    site: Site | None = None
    try:
        queued = seed(production)
        site = Site.make(production)
        yield _live(site, queued)
    finally:
        if site is not None:
            site.close()
        production.close()


def _live(site: Site, queued: tuple[int, ...]) -> Story:
    production = site.production
    streaming, capturing = at_work(site, "wal", "stream", SERVICE), at_work(site, "documents", "stream", SERVICE)
    with streaming as wal, capturing as documents, Load(production=production, clients=3) as work:
        work.until(60)
        began, before = time.monotonic(), len(work.acknowledged)
        done = site.host("backup", SERVICE)
        told["backup during the work"] = f"{time.monotonic() - began:.1f} s, {len(work.acknowledged) - before} commits"
        assert done["state"] == "complete", done
        production.shell(_COLLECT)
        work.until(60)
        instant = datetime.now(UTC)
        work.until(60)
        production.shell(_COLLECT)
        work.until(60)
        lost_at = lose(site, wal, documents)
    assert work.acknowledged
    told["acknowledged commits"] = f"{len(work.acknowledged)}, {len(work.refused)} refused by Odoo's own rules"
    return Story(
        site=site,
        instant=instant,
        lost_at=lost_at,
        acknowledged=tuple(work.acknowledged),
        mails_before=len(production.sink.subjects),
        queued=queued,
    )


@pytest.fixture(scope="module")
def drilled(story: Story) -> Iterator[Mapping[str, dict[str, Any]]]:
    """The drills; their environments are kept, to be asked what a drill does not."""
    story.site.instants = {"instant": story.instant}
    story.site.write()
    done = {plan: story.site.drill(plan) for plan in PLANS}
    yield done
    for item in done.values():
        story.site.recovery("environment", "destroy", item["environment"]["id"])
        assert not Path(item["environment"]["path"]).exists()


def states(done: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in done["checks"]}


def test_the_newest_rows_may_be_ahead_of_the_newest_documents_and_each_is_named(
    story: Story, drilled: Mapping[str, dict[str, Any]]
) -> None:
    """Documents are asked for every two seconds, WAL four times a second: what lies between fails a drill to latest."""
    done = drilled["latest"]
    late = [item for item in story.acknowledged if item.sha1 is not None and item.at > story.lost_at - _LOOK]
    lost = done["documents"]["missing"]
    assert lost <= len(late)
    assert (done["verdict"] == "passed") is (lost == 0)
    assert all("documents" in reason for reason in done["reasons"]), done["reasons"]
    told["latest: verdict"] = f"{done['verdict']}, {lost} of {done['documents']['expected']} documents missing"
    told["latest: RTO"] = f"{done['rto_seconds']:.1f} s"


@pytest.mark.parametrize("plan", ["consistent", "instant"])
def test_a_lost_company_works_again(drilled: Mapping[str, dict[str, Any]], plan: str) -> None:
    done = drilled[plan]
    assert (done["verdict"], done["reasons"]) == ("passed", [])
    documents = done["documents"]
    assert documents["expected"] > 500
    assert (documents["missing"], documents["corrupt"], documents["missing_in_production"]) == (0, 0, 0)
    [started] = [check for check in done["checks"] if check["name"] == "documents/odoo-starts"]
    assert started["state"] == "passed", started
    assert "'admin' logged in, 3 documents open" in started["detail"]
    told[f"{plan}: verdict"] = f"{done['verdict']}, {len(states(done))} checks"
    told[f"{plan}: documents"] = f"{documents['expected']} expected, {documents['missing']} missing"
    told[f"{plan}: Odoo"] = started["detail"]
    told[f"{plan}: RTO"] = f"{done['rto_seconds']:.1f} s"


@pytest.mark.parametrize("plan", PLANS)
def test_what_was_acknowledged_is_there(story: Story, drilled: Mapping[str, dict[str, Any]], plan: str) -> None:
    expected = expected_at(story.acknowledged, story.instant if plan == "instant" else None)
    counted = sum(len(numbers) for numbers in expected.rows.values())
    with psycopg.connect(drilled[plan]["environment"]["dsn"], dbname=DATABASE) as connection:
        missing = missing_of(connection, expected)
    lost = {(model, number) for model, numbers in missing.items() for number in numbers}
    gone = [item for item in story.acknowledged if (item.model, item.number) in lost]
    documents = [item.at for item in gone if item.sha1 is not None]
    rows = [item.at for item in gone if item.sha1 is None]
    told[f"{plan}: acknowledged work missing"] = (
        f"{len(lost)} of {counted}, RPO of rows {rpo(story, rows):.2f} s, of documents {rpo(story, documents):.2f} s"
    )
    if plan == "instant":
        assert lost == set(), "an instant that had passed before the loss is whole"
    assert rpo(story, rows + documents) < _LOOK.total_seconds()
    assert counted > 60


def rpo(story: Story, missing: Sequence[datetime]) -> float:
    """Return how long before the loss the first work was acknowledged that is missing."""
    return (story.lost_at - min(missing)).total_seconds() if missing else 0.0


def test_the_plan_says_beforehand_what_comes_back(story: Story, drilled: Mapping[str, dict[str, Any]]) -> None:
    """What it names for ``consistent`` has everything that was acknowledged before, and every document of it."""
    planned = story.site.recovery("restore", SERVICE, "--to", "latest", "--dry-run")
    ends = planned["consistent"]
    assert any("--to consistent" in reason for reason in planned["reasons"])
    told["latest: its plan says"] = (
        f"documents {ends['behind_seconds']:.2f} s behind the end of the WAL,"
        f" which is {(story.lost_at - from_iso(ends['wal_end_at'])).total_seconds():.2f} s before the loss"
    )
    expected = expected_at(story.acknowledged, from_iso(ends["at"]))
    done = drilled["consistent"]
    with psycopg.connect(done["environment"]["dsn"], dbname=DATABASE) as connection:
        missing = missing_of(connection, expected)
    assert {model: numbers for model, numbers in missing.items() if numbers} == {}
    assert done["documents"]["missing"] == 0


@pytest.mark.parametrize("plan", PLANS)
def test_a_copy_is_neutral_before_odoo_starts_on_it(drilled: Mapping[str, dict[str, Any]], plan: str) -> None:
    asked = {name: state for name, state in states(drilled[plan]).items() if "/neutralized" in name}
    assert asked["documents/neutralized"] == "passed"
    questions = (
        "select count(*) from ir_mail_server where active and smtp_host <> 'invalid'",
        "select count(*) from ir_mail_server where smtp_pass is not null",
        "select count(*) from fetchmail_server where active or password is not null",
        "select count(*) from ir_act_server where webhook_url like 'http%'",
        "select count(*) from mail_mail where state = 'outgoing'",
        "select count(*) from ir_config_parameter where value = 'https://erp.plant.example'",
        "select count(*) from ir_cron where active and cron_name !~ 'Auto-vacuum'",
    )
    with psycopg.connect(drilled[plan]["environment"]["dsn"], dbname=DATABASE) as connection:
        left = {sql: connection.execute(sql.encode()).fetchone() for sql in questions}
    assert {sql: row for sql, row in left.items() if row != (0,)} == {}
    told[f"{plan}: neutral"] = f"{len(asked)} checks, {len(questions)} questions of this test find nothing"


def test_a_document_is_durable_within_seconds_of_its_commit(story: Story) -> None:
    """By the store's clock, which is this host's. What the pass of the backup had already is in no set."""
    with open_data_plane(load(story.site.root / "recovery.yaml").estate) as plane:
        sets = plane.repository.document_sets(plane.repository.scope(ServiceName(SERVICE), ComponentName("documents")))
        durable = {name.partition("/")[2]: held.stored_at for name, held in sets.names(sets.listing().sets).items()}
    created = [item for item in story.acknowledged if item.sha1 in durable]
    seconds = sorted((durable[str(item.sha1)] - item.at).total_seconds() for item in created)
    assert len(seconds) > 50
    median, most = seconds[len(seconds) // 2], seconds[-1]
    told["commit of a document to durable"] = f"median {median:.2f} s, most {most:.2f} s, of {len(seconds)}"
    assert most < 5.0


def test_an_odoo_that_is_told_to_send_a_mail_in_a_copy_cannot(
    story: Story, drilled: Mapping[str, dict[str, Any]]
) -> None:
    settings = load(story.site.root / "recovery.yaml").estate.service(SERVICE).filestore()
    assert settings.odoo is not None
    places = odoo_places(settings.name, settings.odoo, settings.addons)
    environment = open_sandbox(Path(drilled["consistent"]["environment"]["path"]))
    script = environment.write_configuration("send.py", _SEND)
    code = ":".join(map(str, places.code))
    shell = f"{places.python} {places.program} shell -c /env/conf/odoo.conf --no-http --log-level=critical"
    done = environment.execute(["/bin/sh", "-c", f"PYTHONPATH={code} {shell} <{script}"], timeout_seconds=300)
    answer = done.stdout.decode().strip()
    assert answer.startswith("the mail is: exception because of: "), f"{answer}\n{done.stderr.decode()[-2000:]}"
    assert not answer.endswith("because of:"), "Odoo tried, and says what it failed at"
    assert len(story.site.production.sink.subjects) == story.mails_before
    told["consistent: a mail sent on purpose"] = f"{answer}; the relay heard of none"


def test_nobody_outside_hears_of_a_copy(story: Story, drilled: Mapping[str, dict[str, Any]]) -> None:
    """The relay of production still listens on this host: from inside it cannot be reached, whatever Odoo is told."""
    sink = story.site.production.sink
    assert sink.subjects[:1] == ["Subject: mail 0"], "in production the relay works"
    assert len(sink.subjects) == story.mails_before
    for done in drilled.values():
        environment = open_sandbox(Path(done["environment"]["path"]))
        reached = environment.execute(
            ["/usr/bin/python3", "-c", f"import socket; socket.create_connection(('127.0.0.1', {sink.port}), 5)"],
            timeout_seconds=30,
        )
        assert reached.status != 0
        assert b"ConnectionRefusedError" in reached.stderr
    assert len(sink.subjects) == story.mails_before
    told["mails after the loss"] = f"{len(sink.subjects) - story.mails_before} ({len(story.queued)} were queued)"


def test_an_auditor_can_verify_it(story: Story, drilled: Mapping[str, dict[str, Any]], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.zip"
    story.site.recovery("evidence", "export", "--output", bundle)
    verified = story.site.recovery("evidence", "verify", bundle)
    told["evidence"] = f"verified, {verified['entries']} entries, {len(verified['open_obligations'])} obligations open"
    assert verified["verified"] is True
    assert verified["entries"] >= 2 * len(drilled)
    assert verified["open_obligations"] == []
