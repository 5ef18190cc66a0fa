"""Drills that must fail: what is broken before or after the recovery, so that the checks are seen to notice it.

Each kind damages what one part of the proof relies on. Nothing is changed in the repository: what is gone or flipped is
so in a view of the store, and what is spoilt is the recovered copy, which is destroyed afterwards.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from drservice.checks.interface import RecoveredService
from drservice.components.postgres.baseline import WATERMARKS, watermark_names
from drservice.components.postgres.connection import connect
from drservice.errors import DrError, UsageError
from drservice.model.checks import CheckResult
from drservice.model.estate import FilesKind
from drservice.objectstore.altered import Alteration, AlteredOpener, AlteredStore
from drservice.operations.locate import plan_segments
from drservice.operations.restorerequest import Planned
from drservice.processes import create_private, open_folder
from drservice.repository import layout
from drservice.repository.keys import Identities, make_identity
from drservice.repository.nodes import EntryKind
from drservice.repository.records import CODEC_ZERO
from drservice.repository.repository import Repository


class Mutation(Enum):
    """What is broken."""

    WAL_SEGMENT_DROPPED = "wal-segment-dropped"
    PACK_BYTE_FLIPPED = "pack-byte-flipped"
    DOCUMENT_ENCRYPTED = "document-encrypted"
    WRONG_KEY = "wrong-key"
    ROW_DELETED = "row-deleted"


EXPLANATIONS = {
    Mutation.WAL_SEGMENT_DROPPED: "a WAL segment that the recovery needs is gone from the repository",
    Mutation.PACK_BYTE_FLIPPED: "one byte in a pack of the snapshot is another one",
    Mutation.DOCUMENT_ENCRYPTED: "one restored document was overwritten with random bytes of the same length",
    Mutation.WRONG_KEY: "the recovery site has another identity than the one the backups are for",
    Mutation.ROW_DELETED: "one row that can never be deleted is gone from the recovered database",
}

EXPECTED_CODES = {
    Mutation.WAL_SEGMENT_DROPPED: frozenset({"DR212", "DR213", "DR310", "DR312", "DR313", "DR412"}),
    Mutation.PACK_BYTE_FLIPPED: frozenset({"DR410", "DR411"}),
    Mutation.WRONG_KEY: frozenset({"DR801"}),
}
"""Where the recovery itself has to refuse: with one of these. Another error would be an accident, and prove nothing."""

EXPECTED_CHECKS = {
    Mutation.DOCUMENT_ENCRYPTED: "documents-hash",
    Mutation.ROW_DELETED: "watermarks",
}
"""Where a check has to notice: the question in its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """What was spoilt in a recovered copy: in words, and as the check that notices has to name it."""

    what: str
    mark: str


@contextmanager
def altered_repository(
    repository: Repository, mutation: Mutation | None, planned: Callable[[], Planned], *, state_dir: Path
) -> Iterator[Repository]:
    """Yield the repository as it is after the accident; itself for mutations that strike later.

    Args:
        repository: the real one.
        mutation: what is broken, if anything.
        planned: plans the recovery on the real repository, to know what it will need.
        state_dir: for the throw-away identity of a wrong key.
    """
    match mutation:
        case Mutation.WAL_SEGMENT_DROPPED:
            yield _view(repository, Alteration(hidden=_needed_segment(planned())))
        case Mutation.PACK_BYTE_FLIPPED:
            key, offset = _needed_byte(repository, planned())
            yield _view(repository, Alteration(flipped={key: offset}))
        case Mutation.WRONG_KEY:
            with _stranger(state_dir) as identities:
                yield repository.seen_as(
                    store=repository.store, open_store=repository.open_store, identities=identities
                )
        case _:
            yield repository


def spoil(recovered: RecoveredService, mutation: Mutation | None) -> Spoilt | None:
    """Spoil a recovered copy before it is checked; ``None`` for mutations that strike earlier.

    Raises:
        UsageError: the copy has nothing of the kind that could be spoilt.
    """
    match mutation:
        case Mutation.DOCUMENT_ENCRYPTED:
            return _encrypt_document(recovered)
        case Mutation.ROW_DELETED:
            return _delete_row(recovered)
        case _:
            return None


def is_detected(
    mutation: Mutation, *, error: DrError | None, failed: Sequence[CheckResult], spoilt: Spoilt | None
) -> bool:
    """Tell whether the drill failed for the reason it had to fail for: the very thing that was broken was named."""
    if mutation in EXPECTED_CODES:
        return error is not None and error.code in EXPECTED_CODES[mutation]
    return spoilt is not None and any(
        result.name.rpartition("/")[2] == EXPECTED_CHECKS[mutation] and spoilt.mark in result.detail
        for result in failed
    )


def _view(repository: Repository, alteration: Alteration) -> Repository:
    return repository.seen_as(
        store=AlteredStore(repository.store, alteration),
        open_store=AlteredOpener(opener=repository.open_store, alteration=alteration),
        identities=repository.identities,
    )


def _needed_segment(planned: Planned) -> frozenset[str]:
    """Return what is stored of a segment in the middle of what would be replayed: the last one could pass for the end.

    Beside the whole one that is the pieces it was stored in before: they would stand in for it.
    """
    plan, archived = planned.resolved.plan, planned.archived
    names = plan_segments(plan, archived.inventory)
    name = names[(len(names) - 1) // 2]
    keys = [archived.files[name].key] if name in archived.files else []
    return frozenset((*keys, *archived.source.piece_keys(name)))


def _needed_byte(repository: Repository, planned: Planned) -> tuple[str, int]:
    """Return pack key and offset of a byte inside the first chunk of the snapshot that a restore has to read."""
    reader = repository.reader(planned.scope, planned.resolved.plan.snapshot.id)
    for entry in reader.entries():
        if entry.kind is not EntryKind.FILE:
            continue
        for table in reader.tables(entry):
            for row in table:
                if row.codec != CODEC_ZERO:
                    name = table.packs[row.pack_index].hex()
                    key = layout.pack_key(planned.scope.service, planned.scope.component, "packs", name)
                    return key, row.offset + row.stored_length // 2
    raise UsageError("the snapshot has no chunk that could be damaged")


@contextmanager
def _stranger(state_dir: Path) -> Iterator[Identities]:
    """Yield an identity that no backup was made for."""
    path = state_dir / "run" / f"stranger-{os.getpid()}.age"
    secret, _ = make_identity()
    with os.fdopen(create_private(path), "w", encoding="utf-8") as stream:
        stream.write(f"{secret}\n")
    try:
        yield Identities.load([f"file:{path.absolute()}"])
    finally:
        path.unlink()


def _encrypt_document(recovered: RecoveredService) -> Spoilt:
    for documents in recovered.documents.values():
        if documents.kind is not FilesKind.ODOO_FILESTORE:
            continue
        name = _overwrite_one(documents.root)
        if name is not None:
            return Spoilt(what=f"document {name} was overwritten", mark=name)
    raise UsageError(
        "there is no restored document that could be encrypted",
        hint="This drill needs a component of kind odoo-filestore with documents.",
    )


def _overwrite_one(root: Path) -> str | None:
    """Put random bytes in the place of the first document and return its name.

    The folder belongs to the server's account, which runs what the recovered database brought with it: folders are
    entered through no link, and what stands under a document's name is not written to but replaced.
    """
    with _entered(root) as top:
        for folder in sorted(os.listdir(top)):  # noqa: PTH208  # a descriptor has no path
            with suppress(NotADirectoryError), _inside(top, folder) as inside:
                for name in sorted(os.listdir(inside)):  # noqa: PTH208  # the same
                    facts = os.stat(name, dir_fd=inside, follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode) and facts.st_size:
                        _replace(inside, name, facts)
                        return f"{folder}/{name}"
    return None


@contextmanager
def _entered(path: Path) -> Iterator[int]:
    opened = open_folder(path)
    try:
        with _inside(opened, ".") as folder:
            yield folder
    finally:
        os.close(opened)


@contextmanager
def _inside(above: int, name: str) -> Iterator[int]:
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        yield folder
    finally:
        os.close(folder)


def _replace(folder: int, name: str, facts: os.stat_result) -> None:
    os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with open(descriptor, "wb") as stream:  # noqa: PTH123  # a descriptor has no path
        stream.write(os.urandom(facts.st_size))
        os.fchown(descriptor, facts.st_uid, facts.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(facts.st_mode) & 0o777)


def _delete_row(recovered: RecoveredService) -> Spoilt:
    for component, database in recovered.databases.items():
        baseline = recovered.baselines.get(component)
        if baseline is None:
            continue
        database.environment.require_own_socket()
        for where, name in watermark_names(baseline.values):
            watermark = next((item for item in WATERMARKS if item.name == name), None)
            if watermark is None or not watermark.final:
                continue
            with connect(database.dsn, application_name="drservice drill", database=where) as session:
                # Foreign keys are triggers; in a replica's session none fires.
                session.rows("set session_replication_role = replica")
                gone = session.texts(watermark.delete_sql(baseline.snapshot_xmin))
            if gone:
                return Spoilt(what=f"row {gone[0][0]} of {watermark.table} was deleted", mark=watermark.name)
    raise UsageError(
        "there is no row whose disappearance would have to be noticed",
        hint="This drill needs a table whose rows are final (posted journal items, done stock moves) and a"
        " recovery point that has measured them.",
    )
