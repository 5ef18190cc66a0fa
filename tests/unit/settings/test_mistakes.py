"""Every mistake in the file is told with its line, column, path and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.repository.keys import make_identity
from drservice.settings.loading import load
from drservice.settings.scalars import check_recipient

Refuse = Callable[[str | bytes], list[str]]
HEAD = "version: 1\nrepository: {url: 'file:///srv/repository'}\n"
BUCKET = "version: 1\nrepository:\n  url: 's3://bucket/p?region=x'\n  store:\n"
ERP = HEAD + "services:\n  erp:\n"
DATABASE = ERP + "    components:\n      database:\n        kind: postgres\n"

MISTYPED = "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aey"

MISTAKES = {
    "a heartbeat of a machine gun": (
        DATABASE + "        wal: {mode: stream, heartbeat: 20ms}\n",
        "8:40",
        "services.erp.components.database.wal.heartbeat",
        "expected from 200ms to 1m",
    ),
    "a heartbeat that is switched off by a boolean": (
        DATABASE + "        wal: {mode: stream, heartbeat: false}\n",
        "8:40",
        "services.erp.components.database.wal.heartbeat",
        "such as 1s, or off",
    ),
    "a rate that nothing big ends with": (
        HEAD + "node: {throttled_rate: 1MB}\n",
        "3:24",
        "node.throttled_rate",
        "expected 1MB/s to 10GB/s",
    ),
    "a lock on a directory": (
        "version: 1\nrepository: {url: 'file:///srv/repository', lock: {mode: compliance, days: 30}}\n",
        "2:51",
        "repository.lock",
        "a directory has none of this",
    ),
    "an anchor's directory reached like a bucket": (
        HEAD + "evidence: {anchors: [{name: x, url: 'file:///a', store: {retry_for: 5m}}]}\n",
        "3:57",
        "evidence.anchors[0].store",
        "a directory has none of this",
    ),
    "a class that must be thawed": (
        BUCKET + "    storage_class: {packs: GLACIER}\n",
        "5:28",
        "repository.store.storage_class.packs",
        "a restore cannot wait; expected a class that is read at once",
    ),
    "a class that is none": (
        BUCKET + "    storage_class: {wal: standard}\n",
        "5:26",
        "repository.store.storage_class.wal",
        "in capitals",
    ),
    "an account as a number": (
        BUCKET + "    expected_bucket_owner: 111122223333\n",
        "5:28",
        "repository.store.expected_bucket_owner",
        "an account in quotes",
    ),
    "certificates named twice": (
        BUCKET.replace("region=x", "region=x&ca=/a.pem") + "    ca: /b.pem\n",
        "5:9",
        "repository.store.ca",
        "expected one of the two",
    ),
    "a patience beyond reason": (
        BUCKET + "    read_timeout: 2h\n",
        "5:19",
        "repository.store.read_timeout",
        "expected from 1s to 15m",
    ),
    "a service on two hosts": (
        DATABASE
        + "        dsn: host=db1\n        node: db1\n"
        + "      files: {kind: directory, path: /srv, node: app1}\n",
        "10:50",
        "services.erp.components.files.node",
        "a service of its own for what lies elsewhere",
    ),
    "history that is too short": (HEAD + "history: {runs: 6d, events: 6d}\n", "3:17", "history.runs", "at least 7d"),
    "steps that outlive their runs": (
        HEAD + "history: {runs: 60d}\n",
        "3:17",
        "history.runs",
        "expected `events` to be at most `runs`",
    ),
    "retention by a schedule and nothing that stays": (
        DATABASE + "        dsn: host=db1\n    schedule: {retention: '0 5 * * *'}\n",
        "9:27",
        "services.erp.schedule.retention",
        "expected `retention` with periods",
    ),
    "unknown key": (HEAD + "servces: {}\n", "3:1", "servces", "did you mean `services`?"),
    "unknown nested key": (
        DATABASE + "        dns: host=db1\n        dsn: host=db1\n",
        "8:9",
        "services.erp.components.database.dns",
        "did you mean `dsn`?",
    ),
    "unknown key like nothing": (HEAD + "zzz: 1\n", "3:1", "zzz", "known here: version, state_dir"),
    "missing key": (
        DATABASE,
        "6:7",
        "services.erp.components.database.dsn",
        "`dsn` is required here",
    ),
    "missing repository": ("version: 1\n", "1:1", "repository", "`repository` is required here"),
    "wrong version": (HEAD.replace("1", "2", 1), "1:10", "version", "expected version 1"),
    "text for a number": (
        DATABASE + "        dsn: host=db1\n        workers: 'two'\n",
        "9:18",
        "services.erp.components.database.workers",
        "expected a whole number, not text",
    ),
    "number for a text": (ERP + "    owner: 5\n", "5:12", "services.erp.owner", "expected text, not a number"),
    "number out of range": (ERP + "    tier: 9\n", "5:11", "services.erp.tier", "expected at most 5"),
    "word that is no boolean": (
        DATABASE + "        dsn: host=db1\n        wal: {synchronous: yes}\n",
        "9:28",
        "services.erp.components.database.wal.synchronous",
        "expected true or false, not text",
    ),
    "duration without unit": (
        ERP + "    objectives: {rpo: 5}\n",
        "5:23",
        "services.erp.objectives.rpo",
        "expected a duration with its unit",
    ),
    "duration with a wrong unit": (
        ERP + "    objectives:\n      rto: 30min\n",
        "6:12",
        "services.erp.objectives.rto",
        "such as 250ms, 5s, 30m",
    ),
    "period with a wrong unit": (
        ERP + "    retention: {monthly: 24months}\n",
        "5:26",
        "services.erp.retention.monthly",
        "expected a period such as",
    ),
    "cron with four fields": (
        ERP + "    schedule: {backup: '0 1 * *'}\n",
        "5:24",
        "services.erp.schedule.backup",
        "5 fields",
    ),
    "cron with an hour 24": (
        ERP + "    schedule: {backup: '0 24 * * *'}\n",
        "5:24",
        "services.erp.schedule.backup",
        "the hour field",
    ),
    "documents without a cluster": (
        ERP + "    components:\n      d: {kind: odoo-filestore, path: /f, database: plant}\n",
        "6:10",
        "services.erp.components.d",
        "need a component of kind postgres",
    ),
    "documents of two clusters": (
        ERP
        + "    components:\n      a: {kind: postgres, dsn: host=a}\n      b: {kind: postgres, dsn: host=b}\n"
        + "      d: {kind: odoo-filestore, path: /f, database: plant}\n",
        "8:10",
        "services.erp.components.d",
        "`follows` must name",
    ),
    "documents that follow no cluster": (
        ERP
        + "    components:\n      a: {kind: postgres, dsn: host=a}\n"
        + "      d: {kind: odoo-filestore, path: /f, database: plant, follows: d}\n",
        "7:69",
        "services.erp.components.d.follows",
        "`d` is not one of this service's postgres components",
    ),
    "a component with the name of the points": (
        ERP + "    components:\n      points: {kind: postgres, dsn: host=a}\n",
        "6:15",
        "services.erp.components.points",
        "where recovery points are stored",
    ),
    "two checks with one name": (
        DATABASE
        + "        dsn: host=a\n    checks:\n"
        + "      - {name: x, component: database, sql: select 0, expect: '= 0'}\n" * 2,
        "11:16",
        "services.erp.checks[1].name",
        "the name of another check",
    ),
    "an expectation that is none": (
        DATABASE
        + "        dsn: host=a\n    checks:\n"
        + "      - {name: x, component: database, sql: select 0, expect: zero}\n",
        "10:63",
        "services.erp.checks[0].expect",
        "expected",
    ),
    "settled rows without a baseline": (
        DATABASE
        + "        dsn: host=a\n    checks:\n"
        + "      - {name: x, component: database, sql: 'select 0 where {settled}', expect: '= 0'}\n",
        "10:45",
        "services.erp.checks[0].sql",
        "needs a baseline",
    ),
    "cron that would never happen": (
        ERP + "    schedule: {backup: '0 1 30 2 *'}\n",
        "5:24",
        "services.erp.schedule.backup",
        "it would never happen",
    ),
    "a window that is none": (
        HEAD + "calendars: {p: {timezone: UTC, avoid: [Mon-Fri 5-22]}}\n",
        "3:40",
        "calendars.p.avoid[0]",
        "such as `Mon-Fri 05:30-22:30`",
    ),
    "a window in a period that is not declared": (
        HEAD + "calendars: {p: {timezone: UTC, avoid: [month-close 05:00-22:00]}}\n",
        "3:40",
        "calendars.p.avoid[0]",
        "`month-close` is not one of days or this calendar's periods",
    ),
    "a period that is none": (
        HEAD + "calendars: {p: {timezone: UTC, periods: {month-close: sometimes}}}\n",
        "3:55",
        "calendars.p.periods.month-close",
        "expected `first N days`",
    ),
    "a period with the name of days": (
        HEAD + "calendars: {p: {timezone: UTC, periods: {mon-fri: first 2 days}}}\n",
        "3:51",
        "calendars.p.periods.mon-fri",
        "the name of a day",
    ),
    "passes over documents more seldom than promised": (
        ERP + "    objectives: {documents_rpo: 60s}\n    schedule: {documents_every: 1m}\n",
        "6:33",
        "services.erp.schedule.documents_every",
        "the objective documents_rpo is 1m; expected less",
    ),
    "pages for everybody without TLS": (
        HEAD + "web: {listen: '0.0.0.0:8484'}\n",
        "3:15",
        "web.listen",
        "put a proxy with TLS in front",
    ),
    "an address to listen on without a port": (
        HEAD + "web: {listen: '127.0.0.1'}\n",
        "3:15",
        "web.listen",
        "ADDRESS:PORT",
    ),
    "a name to listen on": (HEAD + "web: {listen: 'localhost:8484'}\n", "3:15", "web.listen", "ADDRESS:PORT"),
    "a port that does not exist": (HEAD + "web: {listen: '[::1]:70000'}\n", "3:15", "web.listen", "1 to 65535"),
    "a public address without TLS": (
        HEAD + "web: {public_url: 'http://dr.example.com'}\n",
        "3:19",
        "web.public_url",
        "expected https://HOST",
    ),
    "a public address with a path": (
        HEAD + "web: {public_url: 'https://dr.example.com/dr'}\n",
        "3:19",
        "web.public_url",
        "without user, path or query",
    ),
    "a public address with a port that does not exist": (
        HEAD + "web: {public_url: 'https://dr.example.com:70000'}\n",
        "3:19",
        "web.public_url",
        "expected https://HOST",
    ),
    "a public address with a line of its own": (
        HEAD + 'web: {public_url: "https://dr.example.com\\r\\nX-Header: 1"}\n',
        "3:19",
        "web.public_url",
        "expected https://HOST",
    ),
    "a public address with a user": (
        HEAD + "web: {public_url: 'https://me@dr.example.com'}\n",
        "3:19",
        "web.public_url",
        "without user",
    ),
    "a proxy that is no network": (
        HEAD + "web: {trusted_proxies: [10.0.0.1/8]}\n",
        "3:25",
        "web.trusted_proxies[0]",
        "expected an address or a network",
    ),
    "a lease that nobody can renew": (HEAD + "node: {lease: 1s}\n", "3:15", "node.lease", "expected 5s to 1h"),
    "two places with one name": (
        HEAD + "notify: [{name: x, url: env:A}, {name: x, url: env:B}]\n",
        "3:40",
        "notify[1].name",
        "the name of another place",
    ),
    "a place with the name of one that has none": (
        HEAD + "notify: [{name: place-2, url: env:A}, {url: env:B}]\n",
        "3:17",
        "notify[0].name",
        "the name of a place without a name",
    ),
    "two anchors with one name": (
        HEAD + "evidence: {anchors: [{name: x, url: 'file:///a'}, {name: x, url: 'file:///b'}]}\n",
        "3:58",
        "evidence.anchors[1].name",
        "the name of another anchor",
    ),
    "bad name": (HEAD + "services:\n  ERP 1: {}\n", "4:3", "services.ERP 1", "expected a name"),
    "unknown kind": (
        ERP + "    components:\n      x:\n        kind: mysql\n",
        "7:15",
        "services.erp.components.x.kind",
        "'postgres', 'odoo-filestore'",
    ),
    "no kind": (
        ERP + "    components:\n      x:\n        dsn: host=x\n",
        "7:9",
        "services.erp.components.x",
        "`kind` is required",
    ),
    "list for a mapping": (HEAD + "services: []\n", "3:11", "services", "expected a mapping"),
    "mapping for a list": (HEAD + "notify: {}\n", "3:9", "notify", "expected a list"),
    "nothing for a mapping": (HEAD + "services:\n", "3:1", "services", "not nothing"),
    "literal identity": (
        "version: 1\nrepository:\n  url: file:///r\n  identity: hunter2\n",
        "4:13",
        "repository.identity",
        "never the secret itself",
    ),
    "relative identity": (
        "version: 1\nrepository:\n  url: file:///r\n  identity: [file:key.age]\n",
        "4:14",
        "repository.identity[0]",
        "absolute path after file:",
    ),
    "password in a dsn": (
        DATABASE + "        dsn: host=db1 password=hunter2\n",
        "8:14",
        "services.erp.components.database.dsn",
        "passfile",
    ),
    "password in a URI": (
        DATABASE + "        dsn: postgresql://u:hunter2@db1/x\n",
        "8:14",
        "services.erp.components.database.dsn",
        "passfile",
    ),
    "password in a URI's query": (
        DATABASE + "        dsn: postgresql://u@db1/x?password=hunter2\n",
        "8:14",
        "services.erp.components.database.dsn",
        "passfile",
    ),
    "credentials in the repository's address": (
        "version: 1\nrepository:\n  url: s3://AKIA:hunter2@bucket/x\n",
        "3:8",
        "repository.url",
        "credentials must not stand",
    ),
    "relative repository": (
        "version: 1\nrepository:\n  url: ./repository\n",
        "3:8",
        "repository.url",
        "expected s3://",
    ),
    "mistyped recipient": (
        f"version: 1\nrepository:\n  url: file:///r\n  recipients:\n    - {MISTYPED}\n",
        "5:7",
        "repository.recipients[0]",
        "valid checksum",
    ),
    "ssh recipient": (
        "version: 1\nrepository:\n  url: file:///r\n  recipients: [ssh-ed25519 AAAA]\n",
        "4:16",
        "repository.recipients[0]",
        "expected a public SSH key",
    ),
    "ssh recipient of another type": (
        "version: 1\nrepository:\n  url: file:///r\n  recipients: [ecdsa-sha2-nistp256 AAAA me@here]\n",
        "4:16",
        "repository.recipients[0]",
        "age cannot use an SSH key of type ecdsa-sha2-nistp256: only ssh-ed25519 and ssh-rsa",
    ),
    "ssh recipient on a token": (
        "version: 1\nrepository:\n  url: file:///r\n  recipients: [sk-ssh-ed25519@openssh.com AAAA]\n",
        "4:16",
        "repository.recipients[0]",
        "age cannot use an SSH key of type sk-ssh-ed25519@openssh.com",
    ),
    "hardware recipient": (
        "version: 1\nrepository:\n  url: file:///r\n  recipients: [age1yubikey1qqq]\n",
        "4:16",
        "repository.recipients[0]",
        "only X25519 (age1...) and SSH",
    ),
    "short signer": (
        "version: 1\nrepository:\n  url: file:///r\n  signers: {db1: {key: 'ed25519:AAAA'}}\n",
        "4:24",
        "repository.signers.db1.key",
        "32 bytes",
    ),
    "relative state": (HEAD + "state_dir: state\n", "3:12", "state_dir", "expected an absolute path"),
    "unknown service of a drill": (
        HEAD + "drills: {q: {service: erp}}\n",
        "3:23",
        "drills.q.service",
        "`erp` is not one of services",
    ),
    "unknown calendar": (ERP + "    calendar: plant\n", "5:15", "services.erp.calendar", "there are none"),
    "local without a folder": (
        DATABASE + "        dsn: host=x\n        method: local\n",
        "9:17",
        "services.erp.components.database.method",
        "needs `data_directory`",
    ),
    "services in a circle": (
        HEAD
        + "services:\n  a: {depends_on: [b], components: {d: {kind: postgres, dsn: host=x}}}\n"
        + "  b: {depends_on: [a], components: {d: {kind: postgres, dsn: host=x}}}\n",
        "4:19",
        "services.a.depends_on",
        "a -> b -> a",
    ),
    "notify with a literal": (HEAD + "notify: [{url: 'https://hooks/x'}]\n", "3:16", "notify[0].url", "reference"),
}

SYNTAX: dict[str, tuple[str | bytes, str, str]] = {
    "tab": (HEAD + "services:\n\terp: {}\n", "4:1", "a tab stands where YAML wants spaces"),
    "unclosed list": (HEAD + "notify: [1\n", "4:1", "this is no YAML"),
    "two documents": (HEAD + "---\nversion: 1\n", "3:1", "a second document"),
    "unknown alias": (HEAD + "access: *nope\n", "3:9", "undefined alias"),
    "duplicate key": (HEAD + "version: 1\n", "3:1", "version: `version` is given twice; the first is at line 1"),
    "duplicate nested key": (ERP + "    tier: 1\n    tier: 2\n", "6:5", "services.erp.tier: `tier` is given twice"),
    "python tag": (HEAD + "access: !!python/object/apply:os.system [id]\n", "3:9", "the tag !!python/object"),
    "merge key": (HEAD + "access: {<<: {a: 1}}\n", "3:10", "merge keys"),
    "control character": (HEAD + "access: \x01\n", "3:9", "is not allowed in YAML"),
    "not UTF-8": (HEAD.encode() + b"access: \xff\n", "3:9", "0xff is no UTF-8"),
    "empty file": ("", "1:1", "the file is empty"),
    "list as a key": (HEAD + "? [a]\n: 1\n", "3:3", "a key must be a plain word"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_line_column_and_path(name: str, refusal: Refuse) -> None:
    text, place, path, expected = MISTAKES[name]
    found = [line for line in refusal(text) if line.startswith(f"drservice.yaml:{place}: {path}: ")]
    assert found, f"{refusal(text)} has no line for {place} {path}"
    assert expected in found[0]
    assert "hunter2" not in "".join(refusal(text))


@pytest.mark.parametrize("name", SYNTAX)
def test_broken_yaml_is_told_with_line_and_column(name: str, refusal: Refuse) -> None:
    text, place, expected = SYNTAX[name]
    (line,) = refusal(text)
    assert line.startswith(f"drservice.yaml:{place}: ")
    assert expected in line


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(refusal: Refuse) -> None:
    lines = refusal(
        "version: 3\nstate_dir: here\nrepository: {url: nowhere}\nservices:\n  erp:\n    calendar: none\n"
        "    objectives: {rpo: 5}\n    components: {d: {kind: postgres}}\nfoo: 1\n"
    )
    places = [line.split(": ")[0].removeprefix("drservice.yaml:") for line in lines]
    assert places == ["1:10", "2:12", "3:19", "6:15", "7:23", "8:18", "9:1"]


def test_a_secret_key_anywhere_is_refused_and_not_repeated(refusal: Refuse) -> None:
    secret = "AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGP"
    for text in (
        f"version: 1\nrepository: {{url: 'file:///r', identity: {secret}}}\n",
        f"version: 1\nrepository: {{url: 'file:///r', recipients: [{secret}]}}\n",
        ERP + f"    owner: {secret}\n",
    ):
        lines = refusal(text)
        assert any("secret" in line for line in lines)
        assert secret not in "".join(lines)


def test_an_alias_bomb_is_refused_quickly(refusal: Refuse) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "more than 50000 values" in refusal("\n".join(levels))[-1]


def test_an_alias_of_itself_is_refused(refusal: Refuse) -> None:
    assert "more than 40 levels" in refusal("a: &a [*a]\n")[-1]


def test_deep_nesting_is_refused(refusal: Refuse) -> None:
    assert "nested too deeply" in refusal("a: " + "[" * 20_000 + "]" * 20_000)[0]


def test_a_huge_file_is_refused(refusal: Refuse) -> None:
    assert "bytes; at most" in refusal("# " + "x" * 2_000_000)[0]


def test_an_ordinary_alias_is_read(write: Callable[[str], Path]) -> None:
    text = HEAD + (
        "services:\n  a: {owner: &who me@example.com, components: {d: {kind: postgres, dsn: host=x}}}\n"
        "  b: {owner: *who, components: {d: {kind: postgres, dsn: host=x}}}\n"
    )
    assert load(write(text)).estate.service("b").owner == "me@example.com"


def test_hostile_names_are_shown_as_escapes(refusal: Refuse) -> None:
    (line,) = refusal(HEAD + 'services: {"a\\e[31m": {components: {d: {kind: postgres, dsn: host=x}}}}\n')
    assert "\\x1b" in line
    assert "\x1b" not in line


def test_an_ordinary_recipient_may_begin_like_the_name_of_another_kind() -> None:
    """One of a thousand age keys does."""
    found = next(text for text in (make_identity()[1] for _ in range(100_000)) if text.startswith("age1pq"))
    assert check_recipient(found) == found
    for other in ("age1pq1", "age1tag1", "age1tagpq1", "age1yubikey1"):
        with pytest.raises(ValueError, match="only X25519"):
            check_recipient(f"{other}{found[7:]}")
