"""Verifying finds whatever is missing, cut off or changed, names it, and counts what it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.errors import (
    DamagedObjectError,
    MissingObjectError,
    StoreUnreachableError,
    WalGapError,
    WrongIdentityError,
)
from drservice.model.estate import PostgresSettings, Service
from drservice.model.ids import ComponentName, ServiceName
from drservice.objectstore.interface import ObjectInfo, ObjectStore
from drservice.operations.progress import SilentProgress
from drservice.operations.verify import Verification, run_verify
from drservice.repository.keys import Identities, make_identity
from drservice.repository.verify import Depth, Verified, share_of, verify_component
from tests.doubles.repositories import CHUNK, SYSTEM_ID, Site, flipped, noise
from tests.doubles.stores import Fault, FaultyStore, RecordingStore

WAL = [f"0000000100000000{number:08X}" for number in (2, 3, 4)]


@pytest.fixture
def full(site: Site) -> Site:
    """Two snapshots that share a data pack, and WAL."""
    site.write({"base/1": noise(3 * CHUNK), "base/2": noise(CHUNK, 1)})
    site.capture()
    site.write({"base/2": noise(CHUNK, 2)})
    site.capture()
    for name in WAL:
        site.put_wal(name, noise(5000))
    return site


def verified(
    site: Site, depth: Depth = Depth.DATA, *, percent: int = 100, identities: Identities | None = None
) -> Verified:
    return verify_component(
        site.repository(identities=identities),
        site.scope,
        depth=depth,
        percent=percent,
        chosen=lambda key, share: share_of(key, share, "seed"),
        advance=lambda _: None,
    )


def packs(site: Site, kind: str) -> list[str]:
    """Return the packs of a kind, those that both snapshots use first."""
    listing = site.repository().snapshots(site.scope)
    users: dict[str, int] = {}
    for record in listing.records:
        table = site.repository().open_snapshot(site.scope, record.id).packs
        for use in table.data if kind == "packs" else table.nodes:
            key = f"s/erp/database/{kind}/{use.name[:2]}/{use.name}"
            users[key] = users.get(key, 0) + 1
    return sorted(users, key=lambda key: -users[key])


def test_a_whole_repository_has_no_findings_and_is_counted(full: Site) -> None:
    result = verified(full)
    assert result.findings == []
    assert (len(result.snapshots), result.wal_files, result.decrypted) == (2, 3, True)
    assert result.packs_total == result.packs_checked == len(packs(full, "packs")) + len(packs(full, "nodes"))
    sizes = full.sizes("s/erp/database/packs/") | full.sizes("s/erp/database/nodes/")
    assert result.bytes_read == sum(sizes.values())


def test_structure_reads_no_data_packs(full: Site) -> None:
    result = verified(full, Depth.STRUCTURE)
    assert (result.findings, result.packs_checked, result.bytes_read) == ([], 0, 0)


Spoil = Callable[[Site, str], None]
LOSE: Spoil = lambda site, key: site.store.delete(key)  # noqa: E731 - a table of three
CUT: Spoil = lambda site, key: site.replace(key, lambda data: data[:-1])  # noqa: E731 - the same
FLIP: Spoil = lambda site, key: site.replace(key, flipped(-30))  # noqa: E731 - the same
FLIP_HEAD: Spoil = lambda site, key: site.replace(key, flipped(50))  # noqa: E731 - the same


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("spoil", [LOSE, CUT, FLIP], ids=["missing", "truncated", "flipped"])
@pytest.mark.parametrize("kind", ["packs", "nodes"])
def test_a_damaged_pack_is_found_with_the_snapshots_it_spoils(
    full: Site, kind: str, spoil: Spoil, depth: Depth
) -> None:
    bad = packs(full, kind)[0]
    spoil(full, bad)
    result = verified(full, depth)
    if spoil is FLIP and depth is Depth.STRUCTURE and kind == "packs":
        assert result.findings == [], "only reading the data can tell"
        return
    named = [finding for finding in result.findings if bad.rsplit("/", 1)[-1][:16] in finding.key + finding.problem]
    assert named
    assert result.spoilt()
    if kind == "packs":
        assert result.damaged_packs() == [bad]
        assert len(result.spoilt()) == 2


@pytest.mark.parametrize("spoil", [CUT, FLIP], ids=["truncated", "flipped"])
def test_a_damaged_snapshot_is_found(full: Site, spoil: Spoil) -> None:
    key = full.keys("s/erp/database/snapshots/")[0]
    spoil(full, key)
    result = verified(full)
    assert key in {finding.key for finding in result.findings}


@pytest.mark.parametrize("spoil", [CUT, FLIP], ids=["truncated", "flipped"])
def test_a_damaged_wal_file_is_found(full: Site, spoil: Spoil) -> None:
    key = full.keys(f"s/erp/database/wal/{SYSTEM_ID}/")[1]
    spoil(full, key)
    [finding] = verified(full).findings
    assert finding.key == key


@pytest.mark.parametrize("identity", [True, False])
def test_a_missing_data_key_is_found(full: Site, *, identity: bool) -> None:
    key = full.keys("keys/erp/")[0]
    full.store.delete(key)
    result = verified(full, identities=None if identity else Identities())
    assert any(key.startswith(finding.key) for finding in result.findings)
    assert result.spoilt()


def test_with_the_wrong_identity_nothing_counts_as_verified(full: Site, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text(make_identity()[0])
    result = verified(full, identities=Identities.load([f"file:{tmp_path / 'wrong'}"]))
    assert len(result.spoilt()) == 2
    assert {finding.code for finding in result.findings} == {WrongIdentityError.code}


def test_without_an_identity_hashes_and_signatures_are_checked_and_it_says_so(full: Site) -> None:
    result = verified(full, identities=Identities())
    assert (result.findings, result.decrypted) == ([], False)
    assert result.bytes_read > 0
    bad = packs(full, "packs")[0]
    FLIP(full, bad)
    [finding] = verified(full, identities=Identities()).findings
    assert (finding.key, finding.code) == (bad, DamagedObjectError.code)


def test_a_store_that_does_not_answer_is_never_a_pass(full: Site) -> None:
    for number in range(2, 12):  # the first call opens the repository
        repository = full.repository(store=FaultyStore(full.store, Fault(at=number)))
        try:
            result = verify_component(
                repository,
                full.scope,
                depth=Depth.DATA,
                percent=100,
                chosen=lambda _key, _share: True,
                advance=lambda _: None,
            )
        except StoreUnreachableError:
            continue
        assert result.findings, f"call {number} failed and verify passed"


def test_shares_add_up_and_move_with_the_seed() -> None:
    keys = [f"s/erp/database/packs/{number}" for number in range(2000)]
    assert all(share_of(key, 100, "x") for key in keys)
    tenth = {key for key in keys if share_of(key, 10, "monday")}
    assert 120 < len(tenth) < 280
    assert tenth <= {key for key in keys if share_of(key, 30, "monday")}
    assert tenth != {key for key in keys if share_of(key, 10, "tuesday")}


# --- the WAL as a whole (snapshots need segment 2) --------------------------------------------------------------

WAL_PREFIX = f"s/erp/database/wal/{SYSTEM_ID}/"
KEYS = [f"{WAL_PREFIX}00000001/{name}" for name in WAL]
COMPONENT = PostgresSettings(name=ComponentName("database"), dsn="")
SERVICE = Service(name=ServiceName("erp"), components={COMPONENT.name: COMPONENT})


def judged(site: Site, *, store: ObjectStore | None = None, identities: Identities | None = None) -> Verification:
    return run_verify(
        site.repository(store=store, identities=identities),
        SERVICE,
        COMPONENT,
        depth=Depth.STRUCTURE,
        percent=0,
        clock=SystemClock(),
        progress=SilentProgress(),
    )


def branch(site: Site, *numbers: int, history: str | None = "1\t0/4800000\tno recovery target specified\n") -> None:
    """Archive what a promotion within segment 4 leads to."""
    if history is not None:
        site.put_wal("00000002.history", history.encode())
    for number in numbers:
        site.put_wal(f"0000000200000000{number:08X}", noise(5000))


def found(outcome: Verification) -> list[tuple[str, str]]:
    return [(finding.key, finding.code) for finding in outcome.verified.findings]


@pytest.mark.parametrize("identity", [True, False])
def test_a_snapshot_without_its_own_wal_is_not_whole(full: Site, *, identity: bool) -> None:
    chosen = None if identity else Identities()
    assert found(judged(full, identities=chosen)) == []
    full.store.delete(KEYS[0])
    [finding] = judged(full, identities=chosen).verified.findings
    assert (finding.key, finding.code) == (KEYS[0], MissingObjectError.code)
    assert WAL[0] in finding.problem
    assert set(finding.snapshots) == {record.id for record in full.repository().snapshots(full.scope).records}


def test_without_any_wal_no_snapshot_is_whole(full: Site) -> None:
    for key in KEYS:
        full.store.delete(key)
    outcome = judged(full)
    assert found(outcome) == [(KEYS[0], MissingObjectError.code)]
    assert len(outcome.verified.spoilt()) == 2


def test_a_hole_with_wal_behind_it_is_found_and_the_end_of_the_wal_is_none(full: Site) -> None:
    full.store.delete(KEYS[2])
    assert found(judged(full)) == []
    branch(full, history=None)
    full.put_wal(f"0000000100000000{5:08X}", noise(5000))
    [finding] = judged(full).verified.findings
    assert (finding.key, finding.code, finding.snapshots) == (KEYS[2], WalGapError.code, ())


def test_damaged_wal_that_a_snapshot_needs_names_the_snapshot(full: Site) -> None:
    for number in (0, 1):
        FLIP_HEAD(full, KEYS[number])
    spoilt = {finding.key: len(finding.snapshots) for finding in judged(full).verified.findings}
    assert spoilt == {KEYS[0]: 2, KEYS[1]: 0}


def test_damaged_files_beside_a_segment_spoil_no_snapshot(full: Site) -> None:
    for suffix in (".00000028.backup", ".partial"):
        full.put_wal(WAL[0] + suffix, b"text")
        FLIP_HEAD(full, KEYS[0] + suffix)
    findings = judged(full).verified.findings
    assert [(finding.key, finding.snapshots) for finding in findings] == [
        (f"{KEYS[0]}.00000028.backup", ()),
        (f"{KEYS[0]}.partial", ()),
    ]


def test_a_timeline_without_its_history_leads_nowhere(full: Site) -> None:
    branch(full, 4, 5, history=None)
    assert found(judged(full)) == [(f"{WAL_PREFIX}00000002/00000002.history", MissingObjectError.code)]
    branch(full)
    assert found(judged(full)) == []


@pytest.mark.parametrize("lost", [(1, 3), (2, 6)], ids=["old branch", "new branch"])
def test_a_hole_on_any_branch_is_found(full: Site, lost: tuple[int, int]) -> None:
    branch(full, 4, 5, 6, 7)
    key = f"{WAL_PREFIX}{lost[0]:08X}/{lost[0]:08X}00000000{lost[1]:08X}"
    full.store.delete(key)
    assert found(judged(full)) == [(key, WalGapError.code)]


def test_what_needs_an_identity_to_be_judged_is_told(full: Site) -> None:
    branch(full, 4, 6)
    outcome = judged(full, identities=Identities())
    assert (found(outcome), outcome.not_judged) == ([], ("00000002.history",))
    assert judged(full).not_judged == ()


@pytest.mark.parametrize("history", ["flipped", "no history at all"])
def test_an_unusable_history_is_found_and_does_not_hide_missing_wal(full: Site, history: str) -> None:
    branch(full, 4, 5, history=history)
    if history == "flipped":
        full.replace(f"{WAL_PREFIX}00000002/00000002.history", flipped(-1))
    full.store.delete(KEYS[0])
    codes = dict(found(judged(full)))
    assert codes[KEYS[0]] == MissingObjectError.code
    assert len(codes) == 2


class Arriving(RecordingStore):
    """Its first complete listing of WAL passes a segment that arrives meanwhile."""

    listings = 0

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self.listings += prefix == WAL_PREFIX
        late = self.listings <= 2  # the first one is of the check file by file
        return (info for info in super().list(prefix, start_after=start_after) if not (late and info.key == KEYS[1]))


def test_wal_that_arrives_while_verify_looks_is_no_hole(full: Site) -> None:
    store = Arriving(full.store)
    assert found(judged(full, store=store)) == []
    assert store.listings == 3, "or the first listing had no hole"
    full.store.delete(KEYS[1])
    assert found(judged(full, store=Arriving(full.store))) == [(KEYS[1], WalGapError.code)]
