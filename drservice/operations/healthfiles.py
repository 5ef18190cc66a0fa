"""What ``check`` asks about folders of files and about the ledger of evidence."""

from __future__ import annotations

import os

from drservice.clock import to_iso
from drservice.components.postgres.asking import asking
from drservice.evidence.anchoring import Anchor
from drservice.model.estate import (
    Estate,
    FilesComponent,
    FilesKind,
    FilesSettings,
    GitSettings,
    RedisSettings,
    Service,
)
from drservice.operations.checklist import Checklist
from drservice.operations.evidence import Evidence
from drservice.operations.healthprepared import check_clones, check_redis
from drservice.operations.neutralsource import accidentally_neutralized, read_marks
from drservice.operations.production import read_references
from drservice.repository.repository import Repository

_SECONDS = 60.0


def check_files(repository: Repository, service: Service, component: FilesComponent, checklist: Checklist) -> None:
    """Ask whether what is stored as files can be captured, whether its rows can be asked, and whether it ever was."""
    prefix = f"{service.name}/{component.name}"
    if isinstance(component, GitSettings):
        check_clones(component, prefix, checklist)
    elif isinstance(component, RedisSettings):
        check_redis(service, component, prefix, checklist)
    else:
        _check_folder(service, component, prefix, checklist)
    with checklist.asking(f"{prefix}: snapshots"):
        listing = repository.snapshots(repository.scope(service.name, component.name))
        if listing.records:
            newest = listing.records[-1]
            checklist.ok(f"{prefix}: snapshots", f"{len(listing.records)}, the newest of {to_iso(newest.started_at)}")
        else:
            checklist.fail(f"{prefix}: snapshots", "there is none", f"Run: drservice backup {service.name}")
        for key, error in listing.unreadable.items():
            checklist.fail(f"{prefix}: unreadable snapshot", f"{key}: {error.message}", error.hint)


def _check_folder(service: Service, component: FilesSettings, prefix: str, checklist: Checklist) -> None:
    name = f"{prefix}: folder"
    if os.access(component.path, os.R_OK | os.X_OK) and component.path.is_dir():
        checklist.ok(name, str(component.path))
    else:
        checklist.fail(
            name,
            f"{component.path} is no folder that this user may read",
            "Correct `path`, or run as a user that may read it.",
        )
    if component.kind is FilesKind.ODOO_FILESTORE:
        _check_rows(service, component, prefix, checklist)
        _check_production(service, component, prefix, checklist)


def _check_rows(service: Service, component: FilesSettings, prefix: str, checklist: Checklist) -> None:
    name = f"{prefix}: rows"
    with checklist.asking(name):
        dsn = service.database(component.follows).dsn
        with asking(dsn, seconds=_SECONDS, database=component.database, application_name="drservice check") as session:
            found = read_references(session)
        if found.elsewhere:
            checklist.warn(
                name,
                f"{found.elsewhere} attachments are kept outside the filestore and are not covered",
                "Back up what they refer to (an object store of an add-on) by other means.",
            )
        else:
            checklist.ok(name, f"{len(found.documents)} documents are referred to")


def _check_production(service: Service, component: FilesSettings, prefix: str, checklist: Checklist) -> None:
    """Ask whether production is what it seems: not a neutralized copy, and not neutralized by accident."""
    name = f"{prefix}: not neutralized"
    with checklist.asking(name):
        wrong = accidentally_neutralized(read_marks(service, component))
        if wrong is None:
            checklist.ok(name, "the database bears no mark of a neutralized copy")
        else:
            checklist.fail(
                name,
                wrong,
                "If this is production, restore it to an instant before that; else correct dsn and database.",
            )


def check_evidence(evidence: Evidence, estate: Estate, checklist: Checklist) -> None:
    """Ask whether this host can put on record what it does, and whether the ledger is anchored."""
    with checklist.asking("ledger"):
        size = evidence.ledger.size()
        if size == 0:
            checklist.warn(
                "ledger",
                "it was not begun: nothing that is done is on record",
                "Run `drservice evidence begin` on the machine that shall hold the log key.",
            )
            return
        evidence.ledger.entry(0)
        checklist.ok("ledger", f"{size} records")
    with checklist.asking("records kept aside"):
        waiting = len(evidence.ledger.pending())
        if waiting:
            checklist.warn("records kept aside", f"{waiting} wait on this host", "Run: drservice evidence anchor")
        else:
            checklist.ok("records kept aside", "none")
    if estate.drills and estate.repository.identities and not evidence.holds_log_key:
        checklist.warn(
            "drills sealed beforehand",
            "this host does not hold the log key: obligations of its drills are bound by the next checkpoint only",
            "Run drills where the log key is, or `drservice evidence anchor` there right before them.",
        )
    if not estate.evidence.anchors:
        checklist.warn(
            "ledger anchored",
            "no anchor is configured: who can rewrite the repository can set the ledger back unseen",
            "Name a second store in evidence.anchors.",
        )
        return
    with checklist.asking("ledger anchored"):
        for name, anchor in evidence.ledger.last_anchors():
            _judge_anchor(f"ledger anchored in {name}", anchor, evidence, estate, checklist)


def _judge_anchor(name: str, anchor: Anchor | None, evidence: Evidence, estate: Estate, checklist: Checklist) -> None:
    remedy = "Run: drservice evidence anchor"
    if anchor is None:
        checklist.fail(name, "there is no checkpoint", remedy)
    elif anchor.age(evidence.clock.now()) > estate.evidence.anchor_age:
        checklist.fail(name, f"the last one is of {to_iso(anchor.anchored_at)}", remedy)
    else:
        checklist.ok(name, f"{anchor.signed.checkpoint.size} records at {to_iso(anchor.anchored_at)}")
