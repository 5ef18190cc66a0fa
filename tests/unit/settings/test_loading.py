from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from drservice.errors import ConfigurationError
from drservice.model.calendar import UTC_CALENDAR, DuringAvoid
from drservice.model.estate import (
    CaptureMethod,
    CatchUp,
    DrillTarget,
    FilesKind,
    FilesSettings,
    GitSettings,
    NodeSettings,
    NotifyKind,
    NotifyPlace,
    RedisRestore,
    RedisSettings,
    Schedules,
    WalMode,
    WalSettings,
    WebSettings,
)
from drservice.settings import scalars
from drservice.settings.loading import find_configuration, json_schema, load

GOLDEN = Path(__file__).parents[2] / "golden" / "configuration.schema.json"
RECIPIENTS = (
    "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex",
    "age1kwrdtzyswvnhjhly8mzxm3y6tgpwvak30n2hsmwr9fccf9ve7ykq62nea7",
)
KEY = bytes(range(32))
WHOLE = f"""\
version: 1
state_dir: /var/lib/drservice
repository:
  url: s3://acme-dr/prod?region=eu-central-1
  recipients: [{RECIPIENTS[0]}, {RECIPIENTS[1]}]
  identity: file:/etc/drservice/identity.age
  signers: {{db1: {{key: "ed25519:{KEY.hex()}", services: [erp]}}}}
  lock: {{mode: compliance, days: 35}}
  store:
    ca: /etc/drservice/store-ca.pem
    expected_bucket_owner: "111122223333"
    storage_class: {{packs: STANDARD_IA, nodes: STANDARD, snapshots: STANDARD, wal: STANDARD_IA, ledger: STANDARD}}
    connect_timeout: 3s
    read_timeout: 2m
    retry_for: 5m
  copies: [{{name: second-region, url: "s3://acme-dr-west/prod?region=eu-west-1"}}]
catalogue: embedded
services:
  erp:
    tier: 1
    owner: plant-it@example.com
    objectives: {{rpo: 5s, rto: 30m, documents_rpo: 60s}}
    calendar: plant-a
    depends_on: [identity, dns]
    components:
      database:
        kind: postgres
        dsn: "host=db1 dbname=plant user=drservice"
        data_directory: /var/lib/postgresql/15/main
        method: auto
        wal: {{mode: stream, interval: 250ms, idle_interval: 60s, synchronous: false}}
        node: db1
      documents: {{kind: odoo-filestore, path: /var/lib/odoo/filestore/plant, database: plant, node: db1}}
      configuration: {{kind: git, clones: [/srv/odoo-addons, /etc/drservice]}}
      labels: {{kind: directory, path: /srv/labels}}
      queue: {{kind: redis, url: "redis://cache:6379/0", restore: flush}}
    schedule: {{backup: "0 1 * * *", verify: "30 3 * * *", drill: "0 6 1 1,4,7,10 *"}}
    retention: {{within: 14d, daily: 30d, weekly: 12w, monthly: 24mo, yearly: 7y}}
    checks:
      - {{name: moves-balance, component: database, sql: "select 0", expect: "= 0", severity: critical, owner: finance}}
calendars:
  plant-a:
    timezone: Europe/Berlin
    holidays: [2026-12-25]
    avoid: ["Mon-Fri 05:30-22:30"]
    periods: {{month-close: "last 3 days"}}
dependencies:
  identity: {{kind: oidc, url: "https://id.example.com"}}
  dns: {{kind: dns, host: erp.example.com}}
drills:
  erp-quarterly:
    {{service: erp, environment: sandbox, target: random, within: 7d, schedule: "0 6 1 1,4,7,10 *",
      runbook: quarterly-drill, keep: false}}
access:
  oidc: {{issuer: "https://id.example.com", client_id: drservice, client_secret: env:OIDC_SECRET}}
  roles: {{restorer: {{groups: [dba], services: [erp]}}}}
notify: [{{url: env:NOTIFY_URL, on: [failure, objective, overdue]}}]
"""

ONE_SERVICE = "services: {erp: {components: {database: {kind: postgres, dsn: host=x}}}}\n"
Write = Callable[[str], Path]


def test_the_whole_contract_is_read(write: Write) -> None:
    loaded = load(write(WHOLE))
    estate = loaded.estate
    assert estate.repository.recipients == RECIPIENTS
    assert estate.repository.identities == ("file:/etc/drservice/identity.age",)
    assert estate.repository.signers[0].public_key == KEY
    erp = estate.service("erp")
    assert (erp.objectives.rpo, erp.objectives.rto) == (timedelta(seconds=5), timedelta(minutes=30))
    database = erp.database()
    assert database.data_directory == Path("/var/lib/postgresql/15/main")
    assert (database.method, database.wal.mode) == (CaptureMethod.AUTO, WalMode.STREAM)
    assert (database.workers, database.compression_level) == (2, 1)
    assert database.wal.archive_wait == timedelta(minutes=5)
    documents, configuration, labels, queue = erp.files()
    assert isinstance(labels, FilesSettings)
    assert isinstance(configuration, GitSettings)
    assert configuration.clones == (Path("/srv/odoo-addons"), Path("/etc/drservice"))
    assert isinstance(queue, RedisSettings)
    assert (queue.url, queue.password, queue.restore) == ("redis://cache:6379/0", None, RedisRestore.FLUSH)
    assert (documents.kind, documents.database, documents.follows) == (FilesKind.ODOO_FILESTORE, "plant", "database")
    assert (labels.kind, labels.path, labels.follows) == (FilesKind.DIRECTORY, Path("/srv/labels"), None)
    assert [(check.name, str(check.expect)) for check in erp.checks] == [("moves-balance", "= 0")]
    assert erp.objectives.documents_rpo == timedelta(seconds=60)
    drill = estate.drill(erp, None)
    assert (drill.name, drill.target, drill.within) == ("erp-quarterly", DrillTarget.RANDOM, timedelta(days=7))


def test_a_recipient_that_is_named_twice_is_one_reader(write: Write) -> None:
    text = f"version: 1\nrepository:\n  url: file:///r\n  recipients: [{RECIPIENTS[0]}, {RECIPIENTS[0]}]\n"
    estate = load(write(text + ONE_SERVICE)).estate
    assert estate.repository.recipients == RECIPIENTS[:1]


def test_what_the_control_plane_acts_on_is_read(write: Write) -> None:
    text = WHOLE + (
        'web: {listen: "0.0.0.0:8443", public_url: "https://dr.example.com/", session: 1h,'
        " trusted_proxies: [10.0.0.0/8]}\n"
        "node: {runs: 4, lease: 30s, drain: 1h}\n"
    )
    estate = load(write(text)).estate
    erp = estate.service("erp")
    schedule = erp.schedule
    assert [cron.text if cron else None for cron in (schedule.backup, schedule.verify, schedule.drill)] == [
        "0 1 * * *",
        "30 3 * * *",
        "0 6 1 1,4,7,10 *",
    ]
    assert schedule.documents_every == timedelta(seconds=30), "half of documents_rpo"
    assert schedule.grace == timedelta(hours=4)
    assert (erp.catch_up, erp.depends_on) == (CatchUp.RUN_ONCE, ("identity", "dns"))
    assert str(erp.retention.monthly) == "24mo"
    plan = estate.drill(erp, None).schedule
    assert plan is not None
    assert plan.text == "0 6 1 1,4,7,10 *"
    calendar = estate.calendar(erp)
    assert (calendar.name, calendar.zone.key, calendar.during_avoid) == ("plant-a", "Europe/Berlin", DuringAvoid.DELAY)
    assert calendar.holidays == {date(2026, 12, 25)}
    assert calendar.avoid[0].weekdays == {0, 1, 2, 3, 4}
    assert calendar.periods["month-close"].covers(date(2026, 2, 26))
    assert estate.notify == (NotifyPlace(name="place-1", url="env:NOTIFY_URL", on=frozenset(NotifyKind)),)
    assert estate.catalogue == "embedded"
    assert estate.node == NodeSettings(runs=4, lease=timedelta(seconds=30), drain=timedelta(hours=1))
    assert estate.web == WebSettings(
        host="0.0.0.0",
        port=8443,
        public_url="https://dr.example.com",
        session=timedelta(hours=1),
        trusted_proxies=("10.0.0.0/8",),
    )


def test_without_a_word_nothing_is_scheduled_and_pages_answer_this_machine_alone(write: Write) -> None:
    estate = load(write("version: 1\nrepository: {url: 'file:///r'}\n" + ONE_SERVICE)).estate
    erp = estate.service("erp")
    assert erp.schedule == Schedules()
    assert estate.calendar(erp) is UTC_CALENDAR
    assert (estate.web, estate.node, estate.notify) == (WebSettings(), NodeSettings(), ())
    assert estate.web.host == "127.0.0.1"


def test_passes_over_documents_need_documents(write: Write) -> None:
    text = ONE_SERVICE.replace("erp: {", "erp: {objectives: {documents_rpo: 60s}, ")
    erp = load(write("version: 1\nrepository: {url: 'file:///r'}\n" + text)).estate.service("erp")
    assert erp.schedule.documents_every is None


def test_what_is_declared_but_not_acted_on_is_told(write: Write) -> None:
    notices = load(write(WHOLE)).notices
    told = {notice.split()[0] for notice in notices}
    assert told == {
        "services.erp.depends_on",
        "drills.erp-quarterly.runbook",
        *("repository.copies", "dependencies", "access"),
    }


def test_how_wal_is_streamed_is_read_and_synchronous_without_a_stream_is_told(write: Write) -> None:
    loaded = load(write(WHOLE.replace("250ms, idle_interval: 60s, synchronous: false", "100ms, synchronous: true")))
    assert loaded.estate.service("erp").database().wal == WalSettings(
        mode=WalMode.STREAM,
        interval=timedelta(milliseconds=100),
        idle_interval=timedelta(minutes=1),
        synchronous=True,
    )
    assert not any("synchronous" in notice for notice in loaded.notices)
    archive = WHOLE.replace(
        "mode: stream, interval: 250ms, idle_interval: 60s, synchronous: false", "synchronous: true"
    )
    assert any(".wal.synchronous has no effect" in notice for notice in load(write(archive)).notices)


def test_who_receives_wal_is_read_and_a_receiver_of_nothing_is_told(write: Write) -> None:
    loaded = load(write(WHOLE.replace("synchronous: false", "node: vault1")))
    assert loaded.estate.service("erp").database().wal.node == "vault1"
    assert not any("wal.node" in notice for notice in loaded.notices)
    archive = WHOLE.replace("mode: stream, interval: 250ms, idle_interval: 60s, synchronous: false", "node: vault1")
    assert any(".wal.node has no effect" in notice for notice in load(write(archive)).notices)


@pytest.mark.parametrize(
    ("written", "every"),
    [("heartbeat: off, ", None), ("heartbeat: 500ms, ", timedelta(seconds=0.5)), ("", timedelta(seconds=1))],
)
def test_how_often_a_heartbeat_beats_is_read_and_off_is_never(
    write: Write, written: str, every: timedelta | None
) -> None:
    loaded = load(write(WHOLE.replace("idle_interval: 60s", f"{written}idle_interval: 60s")))
    assert loaded.estate.service("erp").database().wal.heartbeat == every
    shown = {value.path: value.value for value in loaded.values_with_origin}
    assert shown["services.erp.components.database.wal.heartbeat"] == (written[11:-2] or "1s")


def test_a_drill_schedule_that_starts_nothing_is_told(write: Write) -> None:
    assert not any("has no effect" in notice for notice in load(write(WHOLE)).notices), "both say the same"
    other = WHOLE.replace('drill: "0 6 1 1,4,7,10 *"', 'drill: "0 6 * * 0"')
    assert [notice for notice in load(write(other)).notices if "has no effect" in notice] == [
        "services.erp.schedule.drill has no effect: each drill of the service has a schedule of its own"
    ]


def test_a_file_with_only_what_is_acted_on_has_no_notices(write: Write) -> None:
    assert load(write("version: 1\nrepository: {url: 'file:///r'}\n" + ONE_SERVICE)).notices == ()


def test_each_value_tells_its_line_or_that_it_is_the_default(write: Write) -> None:
    values = {value.path: value for value in load(write(WHOLE)).values_with_origin}
    rpo = values["services.erp.objectives.rpo"]
    assert (rpo.value, rpo.line) == ("5s", 22)
    wait = values["services.erp.components.database.wal.archive_wait"]
    assert (wait.value, wait.line) == ("5m", None)
    assert values["repository.recipients"].value == list(RECIPIENTS)
    assert values["services.erp.checks[0].severity"].line == 40
    assert values["drills.erp-quarterly.environment"].value == "sandbox"


def test_the_json_schema_is_the_golden_one_and_accepts_the_whole_contract() -> None:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only this test reads YAML as an editor would

    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    data = YAML(typ="safe", pure=True).load(WHOLE.replace("[2026-12-25]", "['2026-12-25']"))
    Draft202012Validator(schema).validate(data)
    assert not Draft202012Validator(schema).is_valid({**data, "servces": {}})
    assert schema == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_signer_key_may_be_base64_or_hex() -> None:
    assert scalars.parse_signer_key("ed25519:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == KEY
    assert scalars.parse_signer_key(f"ed25519:{KEY.hex()}") == KEY


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("5s", timedelta(seconds=5)),
        ("30m", timedelta(minutes=30)),
        ("14d", timedelta(days=14)),
        ("12w", timedelta(weeks=12)),
    ],
)
def test_durations_are_read_and_written_alike(text: str, value: timedelta) -> None:
    assert scalars.parse_duration(text) == value
    assert scalars.parse_duration(scalars.format_duration(value)) == value


@pytest.mark.parametrize("text", ["5", "-5s", "5 s", "0s", "1.5h", "٣s", "9999999999s", "1mo"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        scalars.parse_duration(text)


@pytest.mark.parametrize(
    "dsn",
    [
        "host=db1 PASSWORD=x",
        "host=db1 password = 'a b'",
        r"host='a\'b' password=x",
        "postgres://:x@/db",
        "postgresql://u@h/d?password=x",
        "host=h sslpassword=x",
    ],
)
def test_a_password_in_a_dsn_is_found_however_it_is_written(dsn: str) -> None:
    with pytest.raises(ValueError, match="password must not stand"):
        scalars.check_dsn(dsn)


@pytest.mark.parametrize(
    "dsn",
    ["host=db1 passfile=/etc/pg.pass", "service=erp", "", r"host=/run user='o\'x'", "postgresql:///d?host=/run"],
)
def test_a_dsn_without_a_password_is_accepted(dsn: str) -> None:
    assert scalars.check_dsn(dsn) == dsn


@pytest.mark.parametrize(
    "url",
    [
        "redis://backup:hunter2@cache/0", "redis://cache/0?password=hunter2", "redis://cache/0#hunter2",
        "redis://cache:99999/0", "redis://cache:port/0", "http://cache/0", "redis:///0",
    ],
)  # fmt: skip
def test_an_address_of_a_redis_holds_no_secret_and_can_be_called(url: str) -> None:
    with pytest.raises(ValueError, match=r"password must not|expected") as caught:
        scalars.check_redis_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_named_file_wins_over_the_variable_and_both_over_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    local = tmp_path / "config" / "drservice.yaml"
    local.write_text("version: 1\n")
    variable = {"DRSERVICE_CONFIG": str(tmp_path / "v.yaml")}
    assert find_configuration(Path("/a.yaml"), variable) == Path("/a.yaml")
    assert find_configuration(None, variable) == tmp_path / "v.yaml"
    assert find_configuration(None, {}) == local


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_stranger_s_file_in_the_present_folder_is_not_taken_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    local = tmp_path / "config" / "drservice.yaml"
    local.write_text("version: 1\n")
    os.chown(local, 54321, 54321)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        find_configuration(None, {})
    assert find_configuration(local, {}) == local


def test_a_file_that_everybody_may_write_is_refused(write: Write) -> None:
    path = write(WHOLE)
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="everybody may write") as caught:
        load(path)
    assert "chmod o-w" in caught.value.hint


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no configuration file at") as caught:
        load(tmp_path / "none.yaml")
    assert "drservice init" in caught.value.hint


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8484", ("127.0.0.1", 8484)), ("[::1]:80", ("::1", 80)), ("0.0.0.0:65535", ("0.0.0.0", 65535))],
)
def test_an_address_to_listen_on_is_read(text: str, address: tuple[str, int]) -> None:
    assert scalars.parse_listen(text) == address


@pytest.mark.parametrize(
    "text", ["::1:80", "[127.0.0.1]:80", "[::1:80", ":8484", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:٣"]
)
def test_what_is_no_address_to_listen_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        scalars.parse_listen(text)


@pytest.mark.parametrize(
    "text", ["https://dr.example.com", "https://dr.example.com:8443/", "http://127.0.0.1:8484", "http://[::1]:8484"]
)
def test_a_public_address_is_accepted(text: str) -> None:
    assert scalars.check_public_url(text) == text
