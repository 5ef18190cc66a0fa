"""The story on a real Odoo: work, a backup during it, the host is lost, and Odoo works again; nobody hears of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from drservice import processes
from drservice.environments.sandbox import open_sandbox
from tests.odoo.load import Acknowledged, Load, expected_at, missing_of
from tests.odoo.production import DATABASE, Code, Production, folder
from tests.odoo.site import SERVICE, Site
from tests.odoo.table import told

pytestmark = [pytest.mark.odoo, pytest.mark.timeout(1800)]

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
    """Run a program of the production host beside the block; it is killed as the host is lost."""
    log = site.root / "host" / f"{words[0]}-{words[1]}.log"
    with log.open("ab") as output:
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
        assert process.poll() is None, f"{words} ended by itself: {log.read_text()[-3000:]}"
        process.kill()
        process.wait(30)


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
    wal, documents = at_work(site, "wal", "stream", SERVICE), at_work(site, "documents", "stream", SERVICE)
    with wal, documents, Load(production=production, clients=3) as load:
        load.until(60)
        began, before = time.monotonic(), len(load.acknowledged)
        done = site.host("backup", SERVICE)
        told["backup during the work"] = f"{time.monotonic() - began:.1f} s, {len(load.acknowledged) - before} commits"
        assert done["state"] == "complete", done
        production.shell(_COLLECT)
        load.until(60)
        instant = datetime.now(UTC)
        load.until(60)
        production.shell(_COLLECT)
        load.until(60)
        production.lose()
        lost_at = datetime.now(UTC)
    assert load.acknowledged
    told["acknowledged commits"] = f"{len(load.acknowledged)}, {len(load.refused)} refused by Odoo's own rules"
    return Story(
        site=site,
        instant=instant,
        lost_at=lost_at,
        acknowledged=tuple(load.acknowledged),
        mails_before=len(production.sink.subjects),
        queued=queued,
    )


@pytest.fixture(scope="module")
def drilled(story: Story) -> Iterator[Mapping[str, dict[str, Any]]]:
    """Both drills; their environments are kept, to be asked what a drill does not."""
    story.site.instant = story.instant
    story.site.write()
    done = {plan: story.site.recovery("drill", SERVICE, "--plan", plan, "--keep") for plan in ("latest", "instant")}
    yield done
    for item in done.values():
        story.site.recovery("environment", "destroy", item["environment"]["id"])
        assert not Path(item["environment"]["path"]).exists()


def states(done: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in done["checks"]}


@pytest.mark.parametrize("plan", ["latest", "instant"])
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


@pytest.mark.parametrize("plan", ["latest", "instant"])
def test_what_was_acknowledged_is_there(story: Story, drilled: Mapping[str, dict[str, Any]], plan: str) -> None:
    instant = story.instant if plan == "instant" else None
    expected = expected_at(story.acknowledged, instant)
    counted = sum(len(numbers) for numbers in expected.rows.values())
    with psycopg.connect(drilled[plan]["environment"]["dsn"], dbname=DATABASE) as connection:
        missing = missing_of(connection, expected)
    lost = {(model, number) for model, numbers in missing.items() for number in numbers}
    at = [item.at for item in story.acknowledged if (item.model, item.number) in lost]
    rpo = (story.lost_at - min(at)).total_seconds() if at else 0.0
    told[f"{plan}: acknowledged work missing"] = f"{len(lost)} of {counted}, RPO {rpo:.2f} s"
    if plan == "instant":
        assert lost == set(), "an instant that had passed before the loss is whole"
    assert rpo < 5.0
    assert counted > 60


@pytest.mark.parametrize("plan", ["latest", "instant"])
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
    told["evidence"] = f"verified, {verified['records']} records"
    assert verified["records"] >= 2 * len(drilled)
