"""What a changed file takes away is found, whatever else changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drservice.settings.changes import ChangeKind, Changes, compare
from drservice.settings.loading import load

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
EARLIER = """\
version: 1
repository: {url: 'file:///r'}
services:
  erp:
    calendar: plant-a
    objectives: {rpo: 5s, rto: 30m}
    components:
      database: {kind: postgres, dsn: host=db1}
      documents: {kind: odoo-filestore, path: /f, database: plant}
    schedule: {backup: "0 1 * * *", verify: "30 3 * * *"}
    retention: {within: 14d, daily: 30d, monthly: 12mo}
  labels:
    components:
      files: {kind: directory, path: /srv/labels}
calendars:
  plant-a: {timezone: Europe/Berlin, holidays: [2026-12-25], avoid: ["Mon-Fri 05:30-22:30"]}
drills:
  erp-quarterly: {service: erp, schedule: "0 6 1 1,4,7,10 *"}
"""
Write = Callable[[str], Path]
Compare = Callable[..., Changes]


@pytest.fixture
def changed(write: Write, tmp_path: Path) -> Compare:
    """Compare the file with itself after replacements."""

    def run(*replacements: tuple[str, str], earlier: str = EARLIER) -> Changes:
        text = earlier
        for old, new in replacements:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        before = load(write(earlier).rename(tmp_path / "before.yaml"))
        return compare(before, load(write(text)), now=NOW)

    return run


def test_the_same_file_changes_nothing(changed: Compare) -> None:
    changes = changed()
    assert changes.is_empty
    assert not changes.weakens


def test_a_moved_schedule_is_shown_with_its_next_slots(changed: Compare) -> None:
    changes = changed(("0 1 * * *", "30 2 * * *"))
    (change,) = changes.schedules
    assert (change.service, change.run.value, change.kind) == ("erp", "backup", ChangeKind.CHANGED)
    assert change.before is not None
    assert change.after is not None
    assert [preview.cron for preview in (change.before, change.after)] == ["0 1 * * *", "30 2 * * *"]
    assert [slot.at for slot in change.after.slots] == [
        datetime(2026, 11, day, 1, 30, tzinfo=UTC) for day in (27, 28, 29, 30)
    ] + [datetime(2026, 12, 1, 1, 30, tzinfo=UTC)]
    assert change.after.slots[0].local.isoformat() == "2026-11-27T02:30:00+01:00"
    assert (changes.settings, changes.weakens) == ((), False)


def test_a_zone_that_changes_moves_every_schedule_of_its_services(changed: Compare) -> None:
    changes = changed(("Europe/Berlin", "America/New_York"))
    assert [(change.run.value, change.kind.value) for change in changes.schedules] == [
        ("backup", "changed"),
        ("verify", "changed"),
        ("drill", "changed"),
    ]
    assert [(item.path, item.before, item.after) for item in changes.calendars] == [
        ("calendars.plant-a.timezone", "Europe/Berlin", "America/New_York")
    ]


def test_a_window_that_reaches_a_slot_changes_its_schedule(changed: Compare) -> None:
    changes = changed(("Mon-Fri 05:30-22:30", "Mon-Fri 01:00-22:30"))
    assert [change.run.value for change in changes.schedules] == ["backup", "verify"]
    assert changes.schedules[0].after is not None
    assert changes.schedules[0].after.slots[0].start.kind.value == "delayed"
    assert not changes.weakens


def test_a_schedule_that_ends_weakens(changed: Compare) -> None:
    changes = changed((', verify: "30 3 * * *"', ""))
    assert [(change.run.value, change.kind) for change in changes.schedules] == [("verify", ChangeKind.REMOVED)]
    assert changes.weakens
    assert changes.unprotected == ()


def test_retention_that_begins_by_itself_weakens_and_one_that_ends_does_not(changed: Compare) -> None:
    without, scheduled = 'verify: "30 3 * * *"}', 'verify: "30 3 * * *", retention: "0 5 * * *"}'
    changes = changed((without, scheduled))
    assert [(change.run.value, change.kind) for change in changes.schedules] == [("retention", ChangeKind.ADDED)]
    assert changes.weakens
    ended = changed((scheduled, without), earlier=EARLIER.replace(without, scheduled))
    assert [change.kind for change in ended.schedules] == [ChangeKind.REMOVED]
    assert not ended.weakens


def test_a_schedule_that_begins_does_not(changed: Compare) -> None:
    changes = changed(
        ("      files: {", "      files: {"), ("  labels:\n", '  labels:\n    schedule: {backup: "0 4 * * *"}\n')
    )
    assert [(change.service, change.kind) for change in changes.schedules] == [("labels", ChangeKind.ADDED)]
    assert not changes.weakens


@pytest.mark.parametrize(
    ("old", "new", "path", "reason"),
    [
        (
            "  labels:\n    components:\n      files: {kind: directory, path: /srv/labels}\n",
            "",
            "services.labels",
            "no longer declared: files",
        ),
        (
            "      documents: {kind: odoo-filestore, path: /f, database: plant}\n",
            "",
            "services.erp.components.documents",
            "no longer declared",
        ),
        (
            "{kind: directory, path: /srv/labels}",
            "{kind: git, clones: [/srv/labels]}",
            "services.labels.components.files",
            "it is of another kind; what was captured under this name is not",
        ),
        (
            "{kind: directory, path: /srv/labels}",
            "{kind: postgres, dsn: host=db2}",
            "services.labels.components.files",
            "it is of another kind; what was captured under this name is not",
        ),
        (
            "path: /srv/labels",
            "path: /srv/tags",
            "services.labels.components.files",
            "/srv/labels is no longer captured, /srv/tags is",
        ),
        ('backup: "0 1 * * *", ', "", "services.erp.schedule.backup", "no backup starts by itself any more"),
        (
            "file:///r",
            "file:///q",
            "repository.url",
            "runs go to another repository; what is in file:///r is no longer kept up",
        ),
    ],
    ids=["service", "component", "kind not backed up", "another kind", "folder", "backups", "repository"],
)
def test_what_becomes_unprotected_is_told(changed: Compare, old: str, new: str, path: str, reason: str) -> None:
    changes = changed((old, new))
    assert [(item.path, item.reason) for item in changes.unprotected] == [(path, reason)]
    assert changes.weakens


@pytest.mark.parametrize(
    ("old", "new", "weaker"),
    [
        ("within: 14d", "within: 13d", ["within"]),
        ("within: 14d", "within: 336h", []),
        ("within: 14d", "within: 3w", []),
        ("monthly: 12mo", "monthly: 1y", []),
        ("monthly: 12mo", "monthly: 364d", ["monthly"]),
        (", monthly: 12mo", "", ["monthly"]),
        ("{within: 14d, daily: 30d, monthly: 12mo}", "{}", []),
        ("monthly: 12mo", "monthly: 12mo, yearly: 7y", []),
    ],
)
def test_retention_that_gets_shorter_weakens(changed: Compare, old: str, new: str, weaker: list[str]) -> None:
    changes = changed((old, new))
    assert changes.retention
    told = [item.path.rpartition(".")[2] for item in changes.retention if item.weakens]
    assert told == weaker
    assert changes.weakens is bool(weaker)


def test_a_first_retention_weakens_because_everything_was_kept(changed: Compare) -> None:
    changes = changed(("  labels:\n", "  labels:\n    retention: {within: 7y}\n"))
    assert [(item.path, item.weakens) for item in changes.retention] == [("services.labels.retention.within", True)]


@pytest.mark.parametrize(
    ("old", "new", "weakens"),
    [
        ("rpo: 5s", "rpo: 6s", True),
        ("rpo: 5s", "rpo: 4s", False),
        ("rpo: 5s, ", "", True),
        ("rto: 30m", "rto: 30m, documents_rpo: 60s", False),
    ],
)
def test_an_objective_that_gets_looser_weakens(changed: Compare, old: str, new: str, weakens: bool) -> None:  # noqa: FBT001 - a parameter of the table above
    changes = changed((old, new))
    assert [item.weakens for item in changes.objectives] == [weakens]
    assert changes.weakens is weakens


def test_a_holiday_more_is_a_changed_calendar(changed: Compare) -> None:
    (change,) = changed(("[2026-12-25]", "[2026-12-25, 2026-12-26]")).calendars
    assert change.path == "calendars.plant-a.holidays"
    assert (change.before, change.after) == (["2026-12-25"], ["2026-12-25", "2026-12-26"])


def test_what_comes_as_a_whole_is_told_as_a_whole(changed: Compare) -> None:
    changes = changed(
        ("calendars:\n", "calendars:\n  plant-b: {timezone: UTC}\n"),
        ("  labels:\n", "  web:\n    components:\n      d: {kind: directory, path: /w}\n  labels:\n"),
        ("      files:", "      more: {kind: directory, path: /m}\n      files:"),
    )
    assert [(item.path, item.before, item.after) for item in changes.calendars] == [
        ("calendars.plant-b", None, "declared")
    ]
    assert sorted((item.path, item.after) for item in changes.settings) == [
        ("services.labels.components.more", "declared"),
        ("services.web", "declared"),
    ]
    assert not changes.weakens


def test_every_other_setting_is_told_with_both_values(changed: Compare) -> None:
    changes = changed(("version: 1\n", "version: 1\nnode: {lease: 30s}\n"), ("host=db1", "host=db2"))
    assert [(item.path, item.before, item.after) for item in changes.settings] == [
        ("services.erp.components.database.dsn", "host=db1", "host=db2"),
        ("node.lease", "1m", "30s"),
    ]


def test_the_first_entry_of_a_list_is_told_by_itself(changed: Compare) -> None:
    changes = changed(("version: 1\n", "version: 1\nnotify: [{url: env:A}]\n"))
    assert {item.path for item in changes.settings} == {"notify[0].url", "notify[0].on"}
