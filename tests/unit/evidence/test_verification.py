"""The verifier stands alone, reads folders and archives, and says by its exit status what it found."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drservice.canonical import canonical_bytes
from drservice.evidence import verification
from drservice.evidence.verification import Step, VerificationError, main, verify_bundle
from drservice.objectstore.memory import MemoryStore
from tests.doubles import evidence as made
from tests.doubles.bundles import bundle_files, policy_json, write_folder, write_zip
from tests.doubles.clock import ManualClock
from tests.faults.tampering import make_plant

SOURCE = Path(verification.__file__)


def test_the_verifier_imports_the_standard_library_and_cryptography_only() -> None:
    allowed = set(sys.stdlib_module_names) | {"cryptography"}
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] in allowed


def test_the_steps_are_those_of_the_document() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evidence.md").read_text(encoding="utf-8")
    for step in Step:
        title = {Step.TIMES: "Times and replays"}.get(step, step.name.capitalize())
        assert f"\n{step.value}. **{title}.**" in text


def test_it_runs_alone_on_a_folder_and_an_archive(tmp_path: Path) -> None:
    files = make_plant(tmp_path / "state").files
    files = {**files}
    folder, archive = write_folder(files, tmp_path / "bundle"), write_zip(files, tmp_path / "bundle.zip")
    script = tmp_path / "verify.py"
    script.write_bytes(SOURCE.read_bytes())
    for path in (folder, archive):
        argv = [sys.executable, "-I", str(script), str(path)]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("VERIFIED\n")
        assert made.HOST.fingerprint in done.stdout


def test_exit_statuses_and_the_policy_that_was_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(make_plant(tmp_path / "state").files, tmp_path / "bundle")
    policy = tmp_path / "policy.json"
    policy.write_bytes(canonical_bytes(policy_json()))
    assert main([str(folder), "--policy", str(policy)]) == 0
    assert "the one given with --policy" in capsys.readouterr().out
    policy.write_bytes(canonical_bytes(policy_json(obligations=[made.ulid(999)])))
    assert main([str(folder), "--policy", str(policy)]) == 5
    assert f"step 12 (expectations): the obligation {made.ulid(999)}" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 2
    assert main([str(folder), "--policy", str(tmp_path / "absent")]) == 2
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2


@pytest.mark.parametrize("raw", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(raw)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(path)
    assert caught.value.step is Step.MANIFEST


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(make_plant(tmp_path / "state").files, tmp_path / "bundle")
    secret = tmp_path / "secret"
    secret.write_bytes((folder / "README.txt").read_bytes())
    (folder / "README.txt").unlink()
    (folder / "README.txt").symlink_to(secret)
    with pytest.raises(VerificationError, match=r"README.txt is no ordinary file"):
        verify_bundle(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 1}', '{"a": 1, "a": 1}', "1.5", "[" * 100_000])
def test_a_policy_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_folder(make_plant(tmp_path / "state").files, tmp_path / "bundle")
    policy = tmp_path / "policy.json"
    policy.write_text(text)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(folder, policy)
    assert caught.value.step is Step.POLICY


def test_a_selection_is_verified_and_says_that_it_is_one(tmp_path: Path) -> None:
    plant = make_plant(tmp_path / "state")
    files = bundle_files(plant.ledger, selection=[4, 7, 10])
    verified = verify_bundle(write_zip(files, tmp_path / "bundle.zip"))
    assert (verified.entries, verified.size, verified.is_complete) == (3, 22, False)
    assert any("selection" in remark for remark in verified.remarks)


@pytest.mark.long
def test_ten_thousand_records_are_verified_in_five_seconds(tmp_path: Path) -> None:
    clock = ManualClock(made.START)
    ledger = made.open_ledger(MemoryStore(clock=clock), tmp_path / "state", clock)
    ledger.begin(made.occasion(made.START, service=None))
    for number in range(1, 5_000):
        entry = ledger.append(made.obligation(made.START, number)).number
        ledger.append(made.drill(made.START, number, entry=entry))
    ledger.checkpoint()
    folder = write_folder(bundle_files(ledger), tmp_path / "bundle")
    begun = time.perf_counter()
    assert verify_bundle(folder).entries == 9_999
    assert time.perf_counter() - begun <= 5
