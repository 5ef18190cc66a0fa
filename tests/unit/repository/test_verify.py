"""Verifying finds whatever is missing, cut off or changed, names it, and counts what it saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.errors import DamagedObjectError, StoreUnreachableError, WrongIdentityError
from drservice.repository.keys import Identities, make_identity
from drservice.repository.verify import Depth, Verified, share_of, verify_component
from tests.doubles.repositories import CHUNK, SYSTEM_ID, Site, flipped, noise
from tests.doubles.stores import Fault, FaultyStore

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
