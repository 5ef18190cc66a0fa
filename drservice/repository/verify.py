"""Proving that what the repository holds is whole: structure (everything is there and refers rightly) and data.

Without an identity the public parts, sizes and hashes are checked; with one, trees and every record as well. Could
not verify is a finding, never a pass.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from blake3 import blake3

from drservice.errors import (
    DamagedObjectError,
    DrError,
    MissingObjectError,
    NoIdentityError,
    ObjectNotFoundError,
    WrongDataKeyError,
)
from drservice.model.ids import SnapshotId, SystemId
from drservice.model.snapshot import SnapshotRecord
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.keys import Keyring
from drservice.repository.pack import DATA_KIND, NODE_KIND, pack_record_key, read_head, read_table
from drservice.repository.reader import version_of_pack
from drservice.repository.records import Scope, open_record
from drservice.repository.repository import Repository
from drservice.repository.snapshots import OpenedSnapshot, PackUse
from drservice.repository.walarchive import ArchivedFile

_PARALLEL = 4
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Depth(Enum):
    """How far a verification goes."""

    STRUCTURE = "structure"
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be: the object, what is wrong, and the snapshots it spoils."""

    key: str
    problem: str
    code: str
    snapshots: tuple[SnapshotId, ...]


@dataclass(slots=True, kw_only=True)
class Verified:
    """The outcome for one component."""

    scope: Scope
    depth: Depth
    snapshots: list[SnapshotRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    packs_checked: int = 0
    packs_total: int = 0
    wal_files: int = 0
    document_sets: int = 0
    bytes_read: int = 0
    decrypted: bool = False
    """False without an identity: hashes and signatures were checked, content was not opened."""

    def damaged_packs(self) -> list[str]:
        """Return the keys of packs that must be stored again."""
        return sorted(
            {finding.key for finding in self.findings if "/packs/" in finding.key or "/nodes/" in finding.key}
        )

    def spoilt(self) -> set[SnapshotId]:
        """Return the snapshots that cannot be restored as a whole."""
        return {snapshot for finding in self.findings for snapshot in finding.snapshots}


def verify_component(
    repository: Repository,
    scope: Scope,
    *,
    depth: Depth,
    percent: int,
    chosen: Callable[[str, int], bool],
    advance: Callable[[int], None],
) -> Verified:
    """Verify everything one component has in the repository.

    Args:
        repository: opened; with identities, content is decrypted too.
        scope: the component.
        depth: structure only, or data as well.
        percent: share of the data packs and WAL files to read, 1-100.
        chosen: (key, percent) -> whether this object belongs to the share.
        advance: hears of bytes read.

    Raises:
        ObjectStoreError: the store did not answer; nothing is known then.
    """
    result = Verified(scope=scope, depth=depth, decrypted=bool(repository.identities.recipients))
    listing = repository.snapshots(scope)
    for key, error in listing.unreadable.items():
        result.findings.append(_finding(key, error, ()))
    stored = _stored_packs(repository.store, scope)
    users: dict[str, tuple[PackUse, str, list[SnapshotId]]] = {}
    for record in listing.records:
        _verify_snapshot(repository, record, stored, users, result)
    if result.decrypted:
        _verify_keys(repository, result)
    result.packs_total = len(users)
    if depth is Depth.DATA:
        _verify_packs(repository, users, result, percent=percent, chosen=chosen, advance=advance)
    _verify_wal(repository, result, percent=percent, chosen=chosen, advance=advance)
    _verify_documents(repository, result, percent=percent, chosen=chosen, advance=advance)
    return result


def _verify_snapshot(
    repository: Repository,
    record: SnapshotRecord,
    stored: Mapping[str, int],
    users: dict[str, tuple[PackUse, str, list[SnapshotId]]],
    result: Verified,
) -> None:
    scope = result.scope
    result.snapshots.append(record)
    key = layout.snapshot_key(scope.service, scope.component, record.id)
    try:
        opened = repository.open_snapshot(scope, record.id)
    except DrError as error:
        result.findings.append(_finding(key, error, (record.id,)))
        return
    for kind, uses in (("packs", opened.packs.data), ("nodes", opened.packs.nodes)):
        for use in uses:
            pack_key = layout.pack_key(scope.service, scope.component, kind, use.name)
            users.setdefault(pack_key, (use, kind, []))[2].append(record.id)
            size = stored.get(pack_key)
            if size is None:
                missing = MissingObjectError(f"pack {use.name[:16]} is not in the repository")
                result.findings.append(_finding(pack_key, missing, (record.id,)))
            elif (
                size != use.stored_bytes
                and version_of_pack(repository.store, pack_key, bytes.fromhex(use.name)) is None
            ):
                cut = DamagedObjectError(f"pack {use.name[:16]} has {size} of {use.stored_bytes} bytes")
                result.findings.append(_finding(pack_key, cut, (record.id,)))
    _verify_tree(repository, opened, key, result)


def _verify_tree(repository: Repository, opened: OpenedSnapshot, key: str, result: Verified) -> None:
    record = opened.record
    for key_id in record.key_ids:
        if not repository.keyring.exists(key_id, service=result.scope.service):
            missing = MissingObjectError(f"data key {key_id} is not in the repository")
            result.findings.append(
                _finding(layout.data_key_prefix(result.scope.service, key_id), missing, (record.id,))
            )
    if not result.decrypted:
        return
    known = {bytes.fromhex(use.name) for use in opened.packs.data}
    try:
        reader = repository.reader(result.scope, record.id)
        for entry in reader.entries():
            for table in reader.tables(entry):
                strangers = set(table.packs) - known
                if strangers:
                    raise DamagedObjectError(  # one place turns every problem of a tree into a finding
                        f"{entry.path!r} uses pack {strangers.pop().hex()[:16]}, which the snapshot does not list"
                    )
    except DrError as error:
        result.findings.append(_finding(key, error, (record.id,)))


def _verify_keys(repository: Repository, result: Verified) -> None:
    """Look whether the wrappings of each data key agree; readers find the right one, so it spoils no snapshot."""
    service = result.scope.service
    for key_id in sorted({key_id for record in result.snapshots for key_id in record.key_ids}):
        opened = [item for item in repository.keyring.wrappings(key_id, service=service) if item.secret is not None]
        held = {item.secret for item in opened}
        if len(held) > 1:
            which = ", ".join(f"{item.object_key.rsplit('/', 1)[-1]} by {item.host}" for item in opened)
            false = WrongDataKeyError(
                f"the wrappings of data key {key_id} hold {len(held)} different keys ({which});"
                " `drservice keys rewrap --dry-run` tells which are false"
            )
            result.findings.append(_finding(layout.data_key_prefix(service, key_id), false, ()))


def _verify_packs(
    repository: Repository,
    users: Mapping[str, tuple[PackUse, str, list[SnapshotId]]],
    result: Verified,
    *,
    percent: int,
    chosen: Callable[[str, int], bool],
    advance: Callable[[int], None],
) -> None:
    known_bad = {finding.key for finding in result.findings}
    selected = [
        (key, users[key])
        for key in sorted(users)
        if key not in known_bad and (users[key][1] == "nodes" or chosen(key, percent))
    ]

    def check(item: tuple[str, tuple[PackUse, str, list[SnapshotId]]]) -> tuple[str, DrError | None, int]:
        key, (use, kind, _) = item
        try:
            size = check_pack(
                repository.store, key, use.name, kind=kind, scope=result.scope, keyring=repository.keyring
            )
        except (DamagedObjectError, MissingObjectError) as error:
            return key, error, 0
        except DrError as error:
            if error.exit_status == DamagedObjectError.exit_status:
                return key, error, 0
            raise
        return key, None, size

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for key, error, size in _bounded(pool, check, selected):
            result.packs_checked += 1
            result.bytes_read += size
            advance(size)
            if error is not None:
                result.findings.append(_finding(key, error, tuple(users[key][2])))


def _verify_wal(
    repository: Repository,
    result: Verified,
    *,
    percent: int,
    chosen: Callable[[str, int], bool],
    advance: Callable[[int], None],
) -> None:
    archive = repository.wal(result.scope)

    def check(archived: ArchivedFile) -> tuple[ArchivedFile, DrError | None]:
        try:
            if result.depth is Depth.DATA and chosen(archived.key, percent):
                archive.check(archived)
            else:
                archive.facts(archived)
        except DrError as error:
            if error.exit_status != DamagedObjectError.exit_status:
                raise
            return archived, error
        return archived, None

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for system_id in archive.system_ids():
            for archived, error in _bounded(pool, check, archive.listing(SystemId(system_id))):
                result.wal_files += 1
                advance(archived.stored_bytes)
                if error is not None:
                    result.findings.append(_finding(archived.key, error, ()))


def _verify_documents(
    repository: Repository,
    result: Verified,
    *,
    percent: int,
    chosen: Callable[[str, int], bool],
    advance: Callable[[int], None],
) -> None:
    """Check the headers of all document sets, and with data also the chosen ones as a whole."""
    archive = repository.document_sets(result.scope)
    listing = archive.listing()
    for key, error in listing.unreadable.items():
        result.findings.append(_finding(key, error, ()))
    for stored in listing.sets:
        if result.depth is Depth.DATA and chosen(stored.key, percent):
            try:
                archive.check(stored, decrypted=result.decrypted)
            except DrError as error:
                if error.exit_status != DamagedObjectError.exit_status:
                    raise
                result.findings.append(_finding(stored.key, error, ()))
            result.bytes_read += stored.stored_bytes
            advance(stored.stored_bytes)
        result.document_sets += 1


def check_pack(store: ObjectStore, key: str, name: str, *, kind: str, scope: Scope, keyring: Keyring) -> int:
    """Read a pack as a whole: its hash is its name; with an identity every record opens and is what its id says.

    On a versioned store the pack is the version that has this hash, whatever lies on top.

    Returns:
        The bytes read.

    Raises:
        MissingObjectError, DamagedObjectError, FormatError: what is wrong with it.
    """
    try:
        data = store.read(key)
    except ObjectNotFoundError as error:
        raise MissingObjectError(f"pack {name[:16]} is not in the repository") from error
    if hashlib.sha256(data).hexdigest() != name:
        good = version_of_pack(store, key, bytes.fromhex(name))
        if good is None:
            raise DamagedObjectError(f"pack {name[:16]} was changed: its bytes do not have the hash that is its name")
        data = good
    head = read_head(data, key)
    try:
        record_key = keyring.use(
            head.key_id, lambda secret: pack_record_key(head, secret, scope, key), service=scope.service
        )
    except NoIdentityError:
        return len(data)
    view = memoryview(data)
    record_kind = DATA_KIND if kind == "packs" else NODE_KIND
    for ordinal, (chunk_id, offset, stored, plain_length, codec) in enumerate(read_table(data, record_key, key)):
        plain = open_record(
            record_key,
            view[offset : offset + stored],
            kind=record_kind,
            ordinal=ordinal,
            plain_length=plain_length,
            codec=codec,
            chunk_id=chunk_id,
            where=lambda ordinal=ordinal: f"record {ordinal} of pack {name[:16]}",  # type: ignore[misc]  # bound per loop
        )
        if blake3(plain).digest() != chunk_id:
            raise DamagedObjectError(f"record {ordinal} of pack {name[:16]} is not the chunk it should be")
    return len(data)


def share_of(key: str, percent: int, seed: str) -> bool:
    """Tell whether an object belongs to a share of ``percent``; another ``seed`` chooses another share."""
    number = int.from_bytes(hashlib.sha256(f"{seed}|{key}".encode()).digest()[:4], "big")
    return number % 100 < percent


def _stored_packs(store: ObjectStore, scope: Scope) -> dict[str, int]:
    return {
        info.key: info.stored_bytes
        for kind in ("packs", "nodes")
        for info in store.list(layout.pack_prefix(scope.service, scope.component, kind))
    }


def _finding(key: str, error: DrError, snapshots: tuple[SnapshotId, ...]) -> Finding:
    return Finding(key=key, problem=error.message, code=error.code, snapshots=snapshots)


def _bounded(pool: ThreadPoolExecutor, call: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """Map in parallel, in order, with a bounded number under way (``Executor.map`` would take all items at once)."""
    source = iter(items)
    under_way: deque[Future[Answer]] = deque()
    for item in source:
        under_way.append(pool.submit(call, item))
        if len(under_way) >= 2 * _PARALLEL:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
