"""Bundles: accepted by the verifier, the same bytes for the same contents, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from drservice.errors import BundleExistsError, EvidenceExportError, EvidenceIncompleteError
from drservice.evidence import bundle as bundle_module
from drservice.evidence.bundle import BundleContents, build_bundle, report_of
from drservice.evidence.bundlewriting import BundleForm
from drservice.evidence.report import Standing
from drservice.evidence.verification import VerificationError, verify_bundle
from tests.doubles.evidencebundle import SignedQuarter
from tests.doubles.evidencestory import at

QUARTER = SignedQuarter()


@pytest.fixture(autouse=True)
def _quick_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PDF has tests of its own, with real typst."""
    monkeypatch.setattr(bundle_module, "render_pdf", lambda view: b"%PDF- of " + view.as_of_iso.encode())


@pytest.fixture(scope="module")
def contents() -> BundleContents:
    return QUARTER.contents()


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", list(BundleForm))
def test_the_verifier_accepts_it(form: BundleForm, contents: BundleContents, tmp_path: Path) -> None:
    built = build_bundle(contents, target=tmp_path / "b", wishes=QUARTER.wishes(), form=form)
    verified = verify_bundle(tmp_path / "b")
    assert (verified.size, verified.is_complete, verified.manifest_signed_by) == (len(contents.entries), True, None)
    assert verified.last_anchor is not None
    assert built.report.posture[0].standing is Standing.PROVED


def test_a_signed_manifest_is_accepted_as_signed(contents: BundleContents, tmp_path: Path) -> None:
    target = tmp_path / "b.zip"
    build_bundle(contents, target=target, wishes=QUARTER.wishes(), signers=[QUARTER.executor])
    assert verify_bundle(target).manifest_signed_by == "dr1"


def test_it_is_accepted_with_a_policy_from_elsewhere(contents: BundleContents, tmp_path: Path) -> None:
    build_bundle(contents, target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    (tmp_path / "policy.json").write_bytes(QUARTER.policy())
    assert verify_bundle(tmp_path / "b.zip", tmp_path / "policy.json").policy_source == "given"


def test_a_byte_changed_anywhere_is_found(contents: BundleContents, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    build_bundle(contents, target=folder, wishes=QUARTER.wishes(), form=BundleForm.FOLDER)
    names = sorted(files_in(folder))
    for name in [*names[::13], "report.html", "README.txt", "policy.json", "manifest.json"]:
        path = folder / name
        good = path.read_bytes()
        path.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:])
        with pytest.raises(VerificationError):
            verify_bundle(folder)
        path.write_bytes(good)
    verify_bundle(folder)


def test_the_same_contents_are_the_same_bytes(
    contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.zip", tmp_path / "elsewhere" / "second.zip"
    second.parent.mkdir()
    build_bundle(contents, target=first, wishes=QUARTER.wishes(), signers=[QUARTER.executor])
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    old = os.umask(0o077)
    try:
        backwards = replace(contents, artefacts=dict(reversed(list(contents.artefacts.items()))))
        build_bundle(backwards, target=second, wishes=QUARTER.wishes(), signers=[QUARTER.executor])
    finally:
        os.umask(old)
    assert first.read_bytes() == second.read_bytes()


def test_the_archive_has_sorted_names_fixed_times_and_nothing_compressed(
    contents: BundleContents, tmp_path: Path
) -> None:
    build_bundle(contents, target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    assert names == [*sorted(names[:-1]), "manifest.json"]
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    assert {stat.filemode(member.external_attr >> 16) for member in members} == {"-rw-r--r--"}


def test_zip_and_folder_hold_the_same_files(contents: BundleContents, tmp_path: Path) -> None:
    one = build_bundle(contents, target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    two = build_bundle(contents, target=tmp_path / "b", wishes=QUARTER.wishes(), form=BundleForm.FOLDER)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        zipped = {name: archive.read(name) for name in archive.namelist()}
    assert zipped == files_in(tmp_path / "b")
    assert (one.manifest_sha256, one.files) == (two.manifest_sha256, two.files)
    assert hashlib.sha256(zipped["manifest.json"]).hexdigest() == one.manifest_sha256
    assert len(zipped) == one.files


def test_the_entries_are_the_exact_bytes_of_the_ledger(contents: BundleContents, tmp_path: Path) -> None:
    build_bundle(contents, target=tmp_path / "b", wishes=QUARTER.wishes(), form=BundleForm.FOLDER)
    files = files_in(tmp_path / "b")
    assert [files[f"entries/{number:012d}.json"] for number in range(len(contents.entries))] == contents.entries
    assert files["checkpoint"] == contents.checkpoint
    verifier = Path(bundle_module.__file__).with_name("verification.py").read_bytes()
    assert files["verify.py"] == verifier


def test_the_readme_tells_what_it_is_and_three_commands(contents: BundleContents, tmp_path: Path) -> None:
    build_bundle(contents, target=tmp_path / "b", wishes=QUARTER.wishes(), form=BundleForm.FOLDER)
    text = (tmp_path / "b" / "README.txt").read_text(encoding="utf-8")
    assert contents.origin in text
    assert text.count("       python3 ") == 3
    assert "$" not in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("form", list(BundleForm))
@pytest.mark.parametrize("there", ["file", "folder", "dangling link"])
def test_what_is_there_is_never_replaced(
    form: BundleForm, there: str, contents: BundleContents, tmp_path: Path
) -> None:
    target = tmp_path / "b"
    if there == "file":
        target.write_bytes(b"mine")
    elif there == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleExistsError):
        build_bundle(contents, target=target, wishes=QUARTER.wishes(), form=form)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("form", list(BundleForm))
def test_what_appears_meanwhile_is_not_replaced_either(
    form: BundleForm, contents: BundleContents, tmp_path: Path
) -> None:
    target = tmp_path / "b"
    (digest, blocks), *_ = contents.artefacts.items()

    def late() -> Iterator[bytes]:
        target.write_bytes(b"somebody was faster")
        yield from blocks()

    with pytest.raises(BundleExistsError):
        build_bundle(replace(contents, artefacts={digest: late}), target=target, wishes=QUARTER.wishes(), form=form)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"somebody was faster"}


@pytest.mark.parametrize("form", list(BundleForm))
def test_what_fails_half_way_leaves_nothing(form: BundleForm, contents: BundleContents, tmp_path: Path) -> None:
    (digest, _), *_ = contents.artefacts.items()

    def failing() -> Iterator[bytes]:
        yield b"beginning"
        raise OSError(28, "No space left on device")

    with pytest.raises(EvidenceExportError, match="No space left"):
        build_bundle(
            replace(contents, artefacts={digest: failing}), target=tmp_path / "b", wishes=QUARTER.wishes(), form=form
        )
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_with_other_bytes_is_refused(contents: BundleContents, tmp_path: Path) -> None:
    (digest, _), *_ = contents.artefacts.items()
    changed = replace(contents, artefacts={digest: lambda: [b"another"]})
    with pytest.raises(EvidenceIncompleteError, match=digest):
        build_bundle(changed, target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    assert list(tmp_path.iterdir()) == []


def test_artefacts_pass_through_block_by_block(contents: BundleContents, tmp_path: Path) -> None:
    (digest, blocks), *_ = contents.artefacts.items()
    alive: list[int] = []
    most = 0

    class Block(bytes):
        def __new__(cls, data: bytes) -> Self:
            alive.append(1)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            alive.pop()

    def watched() -> Iterator[bytes]:
        nonlocal most
        for block in blocks():
            made = Block(block)
            most = max(most, len(alive))
            yield made

    build_bundle(replace(contents, artefacts={digest: watched}), target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    assert 1 <= most <= 2


@pytest.mark.parametrize("broken", ["one missing", "one changed", "another order", "another log", "no note"])
def test_entries_that_do_not_make_the_checkpoint_are_refused(
    broken: str, contents: BundleContents, tmp_path: Path
) -> None:
    entries = list(contents.entries)
    changed = {
        "one missing": replace(contents, entries=entries[:-1]),
        "one changed": replace(contents, entries=[*entries[:-1], entries[-1].replace(b"payload", b"Payload")]),
        "another order": replace(contents, entries=[entries[0], entries[2], entries[1], *entries[3:]]),
        "another log": replace(contents, origin="drservice/another"),
        "no note": replace(contents, checkpoint=b"nothing"),
    }[broken]
    with pytest.raises(EvidenceIncompleteError):
        build_bundle(changed, target=tmp_path / "b.zip", wishes=QUARTER.wishes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", [b"", b"[]", b'{"log_keys": 1}', b'{"log_keys":[{"name":"a","key":"zz"}]}'])
def test_a_policy_that_cannot_be_read_is_refused(policy: bytes, contents: BundleContents) -> None:
    with pytest.raises(EvidenceIncompleteError, match="policy"):
        report_of(replace(contents, policy=policy), QUARTER.wishes())


def test_signers_are_named_as_the_policy_names_them(contents: BundleContents) -> None:
    report = report_of(contents, QUARTER.wishes())
    assert {signer.split()[0] for drill in report.drills for signer in drill.entry.stamp.signers} == {"dr1"}


def test_an_entry_that_is_no_statement_is_shown_in_the_report() -> None:
    story = QUARTER.story()
    entries = [*QUARTER.signed(story), b"not an envelope"]
    changed = replace(QUARTER.contents(), entries=entries, checkpoint=QUARTER.note(entries, at(89)))
    report = report_of(changed, QUARTER.wishes())
    assert [entry.number for entry in report.unreadable] == [len(entries) - 1]


def test_anchors_count_from_when_their_checkpoint_says_it_was_signed(contents: BundleContents) -> None:
    report = report_of(contents, QUARTER.wishes())
    assert [(anchor.name, anchor.tree_size, anchor.anchored_at) for anchor in report.ledger.anchors] == [
        ("second-region", 40, at(31, hour=5))
    ]
