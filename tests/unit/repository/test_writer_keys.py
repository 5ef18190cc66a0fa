"""Who can read a snapshot and who may write one: nothing is re-used that a present recipient could not open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drservice.errors import KeyProblemError, StoreUnreachableError, WrongIdentityError
from drservice.model.snapshot import SnapshotRecord
from drservice.model.wal import WalFileName
from drservice.repository import changes
from drservice.repository.changes import ChangeRule
from drservice.repository.envelope import write_envelope
from drservice.repository.keys import make_identity
from tests.doubles.repositories import CHUNK, SYSTEM_ID, Heard, Site, flipped, new_host, noise, trusted
from tests.doubles.stores import Fault, FaultyStore, RecordingStore

PACKS = "s/erp/database/packs/"


@pytest.fixture
def files(site: Site) -> dict[str, bytes]:
    made = {
        "PG_VERSION": b"15\n",
        "base/1/1259": noise(3 * CHUNK + 100),
        "base/1/text": b"order 4711\n" * 2_000,
    }
    site.write(made)
    return made


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as settled at once: their ctime cannot be set back."""
    monkeypatch.setattr(changes, "SETTLED_NS", -(10**9))


def new_packs(site: Site, act: Callable[[], SnapshotRecord]) -> tuple[SnapshotRecord, int]:
    """Return the snapshot and how many data packs it added."""
    before = set(site.keys(PACKS))
    record = act()
    return record, len(set(site.keys(PACKS)) - before)


# --- who can read it ----------------------------------------------------------------------------------------


def change_recipient(site: Site) -> None:
    """Give the repository another recipient; only its identity is here from now on."""
    site.secret_identity, site.recipient = make_identity()
    (site.base / "identity").write_text(site.secret_identity + "\n")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("rule", list(ChangeRule))
@pytest.mark.parametrize("chunk_bytes", [CHUNK, 512], ids=["inline", "leaves"])
def test_after_a_change_of_recipients_the_new_identity_alone_restores(
    site: Site, files: dict[str, bytes], tmp_path: Path, rule: ChangeRule, chunk_bytes: int
) -> None:
    site.chunk_bytes = chunk_bytes
    first = site.capture()
    change_recipient(site)
    record = site.capture(rule=rule)
    assert len(record.key_ids) == 1
    assert site.restore(record.id, tmp_path / "out") == files
    with pytest.raises(WrongIdentityError):
        site.restore(first.id, tmp_path / "first")
    again = site.capture(rule=rule)
    assert again.stored_bytes < record.stored_bytes // 4, "from then on it is incremental again"


def test_an_added_recipient_can_read_the_next_snapshot_as_a_whole(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    site.capture()
    secret, added = make_identity()
    repository = site.repository()
    repository._recipients = (site.recipient, added)
    with repository.writer(site.scope, state_dir=site.state_dir, workers=1, level=1) as writer:
        writer.add_directory(b"base", 0o700)
        writer.add_directory(b"base/1", 0o700)
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
    (site.base / "identity").write_text(secret + "\n")
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_recipient_taken_away_costs_no_upload(site: Site, files: dict[str, bytes]) -> None:
    repository = site.repository()
    repository._recipients = (site.recipient, make_identity()[1])
    with repository.writer(site.scope, state_dir=site.state_dir, workers=1, level=1) as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        site.commit(writer)
    _, data = new_packs(site, site.capture)
    assert data == 0
    assert files


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("rule", list(ChangeRule))
@pytest.mark.parametrize("damage", ["deleted", "flipped", "another signer"])
def test_after_the_loss_of_a_data_key_the_next_backup_succeeds_and_is_whole(
    site: Site, files: dict[str, bytes], tmp_path: Path, rule: ChangeRule, damage: str
) -> None:
    site.capture()
    [key] = site.keys("keys/")
    if damage == "deleted":
        site.store.delete(key)
    elif damage == "flipped":
        site.replace(key, flipped(-1))
    else:
        body = site.store.read(key)[-200:]
        pieces = write_envelope(
            signer=new_host("stranger"),
            repository=site.repository().id,
            key=key,
            kind="key",
            fields={"key_id": key.split("/")[2], "service": "erp", "recipients": [site.recipient]},
            body=[body],
            now=site.clock.now(),
        )
        site.replace(key, lambda _: b"".join(pieces))
    record = site.capture(rule=rule)
    assert site.restore(record.id, tmp_path / "out") == files


def test_a_data_key_that_goes_while_the_run_reads_is_noticed_in_time(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    site.capture()
    [old] = site.keys("keys/")
    with site.writing() as writer:
        writer.capture_files(site.files(), rule=ChangeRule.READ_ALL, progress=Heard())
        site.store.delete(old)
        lost = writer.recheck()
        assert b"base/1/1259" in lost
        again = [source for source in site.files() if source.path in lost]
        writer.capture_files(again, rule=ChangeRule.READ_ALL, progress=Heard())
        record = site.commit(writer)
    assert site.restore(record.id, tmp_path / "out") == files


def test_what_an_interrupted_run_stored_for_others_is_not_resumed(
    site: Site, files: dict[str, bytes], tmp_path: Path
) -> None:
    with FaultyStore(site.store, Fault(at=5, operations={"create"})) as store, pytest.raises(StoreUnreachableError):
        site.capture(store=store)
    change_recipient(site)
    record, data = new_packs(site, site.capture)
    assert data == 1
    assert site.restore(record.id, tmp_path / "out") == files


def test_each_wrapping_is_read_once_in_a_run(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    [old] = site.keys("keys/")
    store = RecordingStore(site.store)
    site.capture(store=store)
    assert [call for call in store.calls if call[1] == old] == [("read_versions", old)]
    assert files


# --- who may write ------------------------------------------------------------------------------------------


def test_a_host_that_no_list_names_writes_nothing_and_is_told_the_line(site: Site, files: dict[str, bytes]) -> None:
    site.capture()
    second = new_host("db2")
    repository = site.repository(host=second)
    before = site.keys()
    line = f'db2: {{key: "ed25519:{second.public_key.hex()}"}}'
    with pytest.raises(KeyProblemError) as caught:
        repository.writer(site.scope, state_dir=site.state_dir, workers=1, level=1)
    assert line in caught.value.hint
    name = WalFileName.parse("000000010000000000000003")
    with pytest.raises(KeyProblemError) as caught:
        repository.wal(site.scope).put(name, b"wal", system_id=SYSTEM_ID, last_write=site.clock.now())
    assert line in caught.value.hint
    assert site.keys() == before
    assert len(repository.snapshots(site.scope).records) == 1, "reading goes on"
    site.repository(host=second, signers=[trusted(second)]).writer(
        site.scope, state_dir=site.state_dir, workers=1, level=1
    ).__exit__()
    assert files
