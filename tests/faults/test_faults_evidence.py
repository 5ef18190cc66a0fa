"""A ledger that cannot be written stops what has to be proved, and never what has to be rescued."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from drservice.errors import DrError, StoreDeniedError, StoreUnreachableError
from drservice.evidence.anchoring import AnchorPlace
from drservice.model.evidence import EvidenceKind
from drservice.objectstore.interface import ObjectStore
from tests.contract.env_census import take_census
from tests.doubles.cluster import ClusterMaker
from tests.doubles.estate import copy_tree
from tests.doubles.plant import Plant
from tests.doubles.stores import RecordingStore
from tests.faults.plantbench import (
    Watcher,
    environments_dir,
    ledger_size,
    make_plant,
    opened,
    predicates,
    require_bundle,
)

KEPT_ASIDE = "kept_aside"
LEDGER = "ledger/"
ENTRIES = "ledger/0"


class RefusingStore(RecordingStore):
    """Refuses every call of some operations on keys with a prefix, as a missing right or a broken line does."""

    def __init__(
        self, inner: ObjectStore, *, prefix: str, operations: frozenset[str], error: Callable[[str], DrError]
    ) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._operations = operations
        self._error = error
        self.refused = 0
        """Calls refused so far; a test asserts that it is not 0."""

    def _record(self, operation: str, key: str) -> None:
        if operation in self._operations and key.startswith(self._prefix):
            self.refused += 1
            raise self._error(f"injected: {operation} of {key}")


READING = frozenset({"read", "stat", "list", "read_versions"})


def write_protected(inner: ObjectStore) -> RefusingStore:
    """The ledger may be read, and takes no record."""
    return RefusingStore(inner, prefix=ENTRIES, operations=frozenset({"create"}), error=StoreDeniedError)


def out_of_reach(inner: ObjectStore) -> RefusingStore:
    """Nothing about the ledger is answered."""
    return RefusingStore(inner, prefix=LEDGER, operations=READING | {"create"}, error=StoreUnreachableError)


class Faults:
    """Puts a double around a store and remembers it."""

    def __init__(self, make: Callable[[ObjectStore], RefusingStore]) -> None:
        self._make = make
        self.made: list[RefusingStore] = []

    def __call__(self, inner: ObjectStore) -> ObjectStore:
        self.made.append(self._make(inner))
        return self.made[-1]

    def assert_fired(self) -> None:
        assert sum(store.refused for store in self.made) > 0, "nothing was ever refused"


@pytest.fixture(scope="module")
def plant(maker: ClusterMaker) -> Iterator[Plant]:
    """A plant with a recovery point; tests mend what they break."""
    made = make_plant(maker)
    try:
        yield made
    finally:
        made.estate.close()


@contextmanager
def unplugged(folder: Path) -> Iterator[None]:
    """A directory that is not mounted for a while."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    try:
        yield
    finally:
        away.rename(folder)


def restores(plant: Plant, begin: int) -> list[dict[str, object]]:
    return list(predicates(plant.estate.config, EvidenceKind.RESTORE, begin).values())


def pending(plant: Plant) -> list[Path]:
    folder = plant.estate.state / "evidence" / "pending"
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def told(watcher: Watcher) -> str:
    (note,) = [note for note in watcher.notes if note.startswith("WARNING: ")]
    return note


@pytest.mark.parametrize("fault", [write_protected, out_of_reach])
def test_a_restore_goes_on_without_the_ledger_and_is_put_on_record_once_later(
    plant: Plant, tmp_path: Path, fault: Callable[[ObjectStore], RefusingStore]
) -> None:
    config, begin = plant.estate.config, ledger_size(plant.estate.config)
    watcher, faults = Watcher(), Faults(fault)
    into = plant.cluster.root / f"restored-{fault.__name__}"
    with opened(config, watcher=watcher, store=faults) as bench:
        result = bench.restore(into)
    faults.assert_fired()
    assert not result.is_partial
    assert (into / "database" / "global" / "pg_control").exists()
    (kept,) = pending(plant)
    assert str(kept) in told(watcher)
    assert "the ledger did not take the record of this restore" in told(watcher)
    assert ledger_size(config) == begin
    assert plant.json("evidence", "list")["pending"] == 1

    plant.json("backup", "erp")
    plant.json("evidence", "anchor")
    (restored,) = restores(plant, begin)
    assert (restored["outcome"], restored[KEPT_ASIDE]) == ("restored", True)
    assert pending(plant) == []
    ((_, backup),) = predicates(config, EvidenceKind.BACKUP, begin).items()
    assert KEPT_ASIDE not in backup, "what the ledger took at once bears no mark"
    assert require_bundle(plant, tmp_path / "bundle.zip")["complete"] is True
    shutil.rmtree(into)


def test_a_command_tells_of_a_ledger_it_cannot_write_and_ends_as_it_would_have(plant: Plant) -> None:
    """The command itself, with a ledger that the store denies to it: a file stands where its folder should be."""
    ledger = plant.estate.repository / "ledger"
    begin = ledger_size(plant.estate.config)
    into = plant.cluster.root / "restored-by-command"
    with unplugged(ledger):
        ledger.write_text("no folder")
        try:
            done = plant.estate.run("restore", "erp", "--to", "latest", "--into", into)
            backed_up = plant.estate.run("backup", "erp")
        finally:
            ledger.unlink()
    assert (done.status, backed_up.status) == (0, 0), done.stderr.decode() + backed_up.stderr.decode()
    assert "WARNING: the ledger did not take the record of this restore" in done.stderr.decode()
    assert "WARNING: the ledger did not take the record of this backup" in backed_up.stderr.decode()
    assert len(pending(plant)) == 2
    plant.json("evidence", "anchor")
    (restored,) = restores(plant, begin)
    (backup,) = predicates(plant.estate.config, EvidenceKind.BACKUP, begin).values()
    assert (restored[KEPT_ASIDE], backup[KEPT_ASIDE]) == (True, True)
    assert pending(plant) == []


@pytest.mark.parametrize("fault", [write_protected, out_of_reach])
def test_a_drill_whose_obligation_cannot_be_put_on_record_does_not_begin(
    plant: Plant, fault: Callable[[ObjectStore], RefusingStore]
) -> None:
    begin, before = ledger_size(plant.estate.config), take_census(environments_dir(plant))
    watcher, faults = Watcher(), Faults(fault)
    with (
        opened(plant.estate.config, watcher=watcher, store=faults) as bench,
        pytest.raises((StoreDeniedError, StoreUnreachableError)),
    ):
        bench.drill()
    faults.assert_fired()
    require_nothing_begun(plant, watcher)
    assert not take_census(environments_dir(plant)).more_than(before)
    assert (ledger_size(plant.estate.config), pending(plant)) == (begin, []), "an obligation is never kept aside"
    done = plant.json("drill", "erp", "--plan", "latest")
    assert done["verdict"] == "passed"
    assert len(predicates(plant.estate.config, EvidenceKind.DRILL, begin)) == 1, (
        "what was never promised is no abortion"
    )


def require_nothing_begun(plant: Plant, watcher: Watcher) -> None:
    assert "isolation self-test" not in watcher.steps
    assert "fetch and place" not in watcher.steps
    assert plant.estate.environments() == []


def test_without_the_anchors_no_drill_begins_and_backup_and_restore_go_on(plant: Plant) -> None:
    begin = ledger_size(plant.estate.config)
    into = plant.cluster.root / "restored-without-anchors"
    with unplugged(plant.root / "anchors"):
        refused = plant.estate.refusal("drill", "erp", "--plan", "latest", status=8)
        assert "anchors" in refused["message"]
        assert plant.estate.environments() == []
        assert plant.json("backup", "erp")["state"] == "complete"
        assert plant.json("restore", "erp", "--to", "latest", "--into", into)["documents"]["missing"] == 0
    assert predicates(plant.estate.config, EvidenceKind.OBLIGATION, begin) == {}
    assert [item["outcome"] for item in restores(plant, begin)] == ["restored"]
    assert pending(plant) == []


def test_a_drill_whose_obligation_cannot_be_anchored_does_not_begin_and_is_an_abortion_later(plant: Plant) -> None:
    config, begin = plant.estate.config, ledger_size(plant.estate.config)
    watcher, faults = Watcher(), Faults(anchor_out_of_reach)
    with opened(config, watcher=watcher) as bench:
        ledger = bench.evidence.ledger
        ledger.anchors = tuple(AnchorPlace(place.name, faults(place.store)) for place in ledger.anchors)
        with pytest.raises(StoreUnreachableError):
            replace(bench, evidence=replace(bench.evidence, ledger=ledger)).drill("random")
    faults.assert_fired()
    require_nothing_begun(plant, watcher)
    ((number, promised),) = predicates(config, EvidenceKind.OBLIGATION, begin).items()
    assert plant.json("drill", "erp", "--plan", "latest")["verdict"] == "passed"
    aborted, passed = predicates(config, EvidenceKind.DRILL, begin).values()
    assert (aborted["outcome"], aborted["obligation_entry"]) == ("aborted", number)
    assert aborted["obligation"] == promised["obligation"]
    assert passed["outcome"] == "passed"


def anchor_out_of_reach(inner: ObjectStore) -> RefusingStore:
    """The second store answers what is there and takes nothing."""
    return RefusingStore(inner, prefix="anchor/", operations=frozenset({"create"}), error=StoreUnreachableError)


@contextmanager
def set_back(plant: Plant) -> Iterator[int]:
    """Set the ledger back to an older copy for a while; yields how many records the copy has."""
    ledger = plant.estate.repository / "ledger"
    old, new = ledger.with_name("ledger.old"), ledger.with_name("ledger.new")
    plant.json("evidence", "anchor")
    size = ledger_size(plant.estate.config)
    copy_tree(ledger, old)
    plant.json("backup", "erp")
    plant.json("evidence", "anchor")
    assert ledger_size(plant.estate.config) > size
    ledger.rename(new)
    old.rename(ledger)
    try:
        yield size
    finally:
        shutil.rmtree(ledger)
        new.rename(ledger)


def test_a_ledger_that_was_set_back_is_not_signed_and_backups_go_on(plant: Plant) -> None:
    begin = ledger_size(plant.estate.config)
    checkpoints = plant.estate.repository / "ledger" / "checkpoint"
    with set_back(plant):
        signed = sorted(path.name for path in checkpoints.iterdir())
        refused = plant.estate.refusal("evidence", "anchor", status=5)
        assert "which this host has seen, is gone" in refused["message"]
        assert plant.estate.refusal("drill", "erp", "--plan", "latest", status=5)["code"] == refused["code"]
        done = plant.estate.run("backup", "erp")
        assert done.status == 0, done.stderr.decode()
        assert "WARNING: the ledger did not take the record of this backup" in done.stderr.decode()
        assert len(pending(plant)) == 1
        assert sorted(path.name for path in checkpoints.iterdir()) == signed, "nothing was signed"
    # With the true ledger back, what was kept aside follows it.
    plant.json("evidence", "anchor")
    marks = [KEPT_ASIDE in item for item in predicates(plant.estate.config, EvidenceKind.BACKUP, begin).values()]
    assert marks == [False, True]
    assert pending(plant) == []


def test_a_log_holder_that_remembers_nothing_is_held_back_by_the_anchor(plant: Plant) -> None:
    """Its state directory was set back as well: only the second store knows better."""
    evidence = plant.estate.state / "evidence"
    with set_back(plant) as size:
        kept = copy_tree(evidence, evidence.with_name("evidence.kept"))
        for path in (*evidence.glob("*.leaves"), *evidence.glob("*.checkpoint")):
            path.unlink()
        checkpoints = plant.estate.repository / "ledger" / "checkpoint"
        signed = sorted(path.name for path in checkpoints.iterdir())
        refused = plant.estate.refusal("evidence", "anchor", status=5)
        assert refused["code"] == "DR823"
        assert f"the ledger has {size} entries; the anchor in second says" in refused["message"]
        # It has room for another history now, as long as the first: that one is not signed either.
        plant.json("backup", "erp")
        refused = plant.estate.refusal("evidence", "anchor", status=5)
        assert refused["code"] == "DR823"
        assert "are not those of the anchor in second" in refused["message"]
        assert sorted(path.name for path in checkpoints.iterdir()) == signed, "nothing was signed"
        shutil.rmtree(evidence)
        kept.rename(evidence)
    plant.json("evidence", "anchor")
