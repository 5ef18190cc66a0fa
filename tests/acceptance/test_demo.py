"""``drservice demo`` as a process: it proves what it says, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest

from drservice import processes

PROGRAM = (sys.executable, "-m", "drservice")
CONTRACT = {
    "commits_acknowledged",
    "commits_lost",
    "rpo_seconds",
    "rto_seconds",
    "documents_expected",
    "documents_missing",
    "drill_verdict",
    "evidence_verified",
    "repository_bytes",
    "source_bytes",
}


def start_demo(*arguments: str, user: str | None = None) -> subprocess.Popen[str]:
    account = processes.account_named(user) if user else None
    return subprocess.Popen(
        [*PROGRAM, "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def read_until(stream: IO[str] | None, wanted: str, told: list[str]) -> None:
    assert stream is not None
    for line in stream:
        told.append(line)
        if wanted in line:
            return
    pytest.fail(f"{wanted!r} was never told:\n{''.join(told)}")


def folder_in(told: str) -> Path:
    found = re.search(r"everything is in (\S+)", told)
    assert found is not None, told
    return Path(found[1])


def naming(folder: Path) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in words or inside.startswith(str(folder)):
            found[int(entry.name)] = words
    return found


def assert_nothing_left(folder: Path) -> None:
    assert naming(folder) == {}  # at once: a server whose files are gone would end by itself a moment later
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    for process in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            assert str(folder) not in process.read_text(), process
        except OSError:
            continue


@pytest.mark.timeout(900)  # about a minute; much more on a busy machine
def test_the_whole_story_with_the_pages_proves_what_it_says_and_ctrl_c_removes_everything() -> None:
    process = start_demo("--web", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    told: list[str] = []
    listening = threading.Thread(target=told.extend, args=(process.stderr,))
    listening.start()
    try:
        stdout = process.stdout.readline()
        assert stdout, "it has ended without a result"
        answer: dict[str, Any] = json.loads(stdout)
        assert answer["schema"] == "drservice/demo/v1", stdout
        assert_the_pages_show(answer)
    finally:
        process.send_signal(signal.SIGINT)  # also if the test fails: it would serve its pages for ever
        process.wait(60)
        listening.join()
        rest = process.stdout.read()
        process.stdout.close()
        process.stderr.close()
    assert (process.returncode, rest) == (0, ""), "".join(told)
    assert_nothing_left(folder_in("".join(told)))
    assert set(answer) >= CONTRACT
    assert (answer["state"], answer["problems"]) == ("passed", [])
    assert_a_week_passed(answer)
    assert_today_was_recovered(answer)
    assert_little_was_lost_with_the_machine(answer["host_loss"])
    assert_it_is_on_record(answer)


def assert_the_pages_show(answer: dict[str, Any]) -> None:
    """Sign in as a person would, and find what the week and today have made."""
    web = answer["web"]
    origin = web["url"].rstrip("/")
    form = urllib.parse.urlencode({"name": web["user"], "password": web["password"]})
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(origin).netloc, timeout=20)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": origin}
        connection.request("POST", "/sign-in", form, headers)
        signed = connection.getresponse()
        signed.read()
        assert signed.status == 303
        cookie = {"Cookie": str(signed.getheader("Set-Cookie")).partition(";")[0]}

        def ask(path: str) -> str:
            connection.request("GET", path, headers=cookie)
            page = connection.getresponse()
            text = page.read().decode()
            assert page.status == 200, text
            return text

        for path in ("/overview", "/services/erp", "/runs", "/evidence"):
            assert "erp" in ask(path)
        wanted = {*(night["point"] for night in answer["nights"]), answer["snapshots"][-1]["point"]}
        deadline = time.monotonic() + 60  # the node indexes the repository when it starts
        while not wanted <= {item["id"] for item in json.loads(ask("/api/v1/services/erp/points"))["items"]}:
            assert time.monotonic() < deadline, "the pages do not show all recovery points"
            time.sleep(0.2)


def assert_a_week_passed(answer: dict[str, Any]) -> None:
    nights = answer["nights"]
    assert len(nights) == len({night["point"] for night in nights}) == 7
    assert [night["state"] for night in nights].count("succeeded") == 6
    (missed,) = [night for night in nights if night["state"] == "missed"]
    assert missed["caught_up"]
    assert answer["caught_up"] == {"slot": missed["slot"], "run": missed["run"], "point": missed["point"], "done": True}
    notice, *_ = answer["notified"]  # told at least once
    assert missed["slot"] in notice["title"]
    assert missed["run"] in notice["text"]
    holiday = answer["holiday"]
    assert holiday["day"] in {night["day"] for night in nights}
    assert holiday["started_at"] >= holiday["not_before"] > missed["slot"]
    assert answer["scheduled_drill"]["verdict"] == "passed"
    assert answer["scheduled_drill"]["host"] == "recovery-site"
    assert answer["scheduled_verification"]["state"] == "succeeded"
    rebuilt = answer["rebuilt"]
    before, empty, after = rebuilt["points"]
    assert 2 < before == after
    assert empty == 0
    before, empty, after = rebuilt["records"]
    assert before > 2
    assert (empty, after >= before) == (0, True)
    assert rebuilt["is_complete"] is True
    assert all(later["stored_bytes"] < nights[0]["stored_bytes"] / 2 for later in nights[1:])


def assert_today_was_recovered(answer: dict[str, Any]) -> None:
    assert answer["commits_acknowledged"] > 100
    assert answer["commits_after_target"] > 10
    assert (answer["commits_lost"], answer["commits_unwanted"]) == (0, 0)
    assert 0 < answer["rpo_seconds"] <= answer["rpo_promised_seconds"]
    assert answer["rpo_looks"] > 10
    assert 0 < answer["rto_seconds"] <= answer["rto_promised_seconds"]
    assert sum(answer["phases"].values()) == pytest.approx(answer["rto_seconds"], abs=1.0)
    assert answer["documents_expected"] > 350, "300 from before, and what was filed up to the target"
    assert answer["documents_after_target"] > 3
    assert (answer["documents_missing"], answer["documents_unwanted"]) == (0, 0)
    assert 0 < answer["documents_rpo_seconds"] <= answer["documents_rpo_promised_seconds"] == 30
    assert 0 < answer["repository_bytes"] < answer["source_bytes"]
    assert answer["reached_time"] <= answer["target"] < answer["dropped_at"] < answer["decided_at"]
    assert answer["isolation_probes"] > 10
    assert (answer["folder"], answer["environment"]) == (None, None)


def assert_little_was_lost_with_the_machine(loss: dict[str, Any]) -> None:
    assert loss["commits_acknowledged"] > 100
    assert loss["commits_unwanted"] == 0
    assert loss["commits_lost"] < 100, "all of the last shift"
    assert loss["lost_seconds"] <= loss["lost_promised_seconds"] == 1.0
    assert loss["documents_acknowledged"] > 350
    assert max(loss["documents_lost"], loss["rows_without_document"]) < 100, "all of the last shift"
    assert loss["documents_lost_seconds"] <= loss["documents_promised_seconds"] == 5.0
    assert loss["effective_rpo_seconds"] == max(loss["lost_seconds"], loss["documents_lost_seconds"])
    assert loss["documents_unwanted"] == 0
    consistent = loss["consistent"]
    assert (consistent["rows_without_document"], consistent["unwanted"]) == (0, 0)
    assert consistent["commits_lost"] >= loss["commits_lost"]
    assert consistent["lost_seconds"] <= consistent["lost_promised_seconds"] == 5.0
    assert len(loss["clone"]["commit"]) == 40
    assert loss["clone"] == {**loss["clone"], "recovered": loss["clone"]["commit"], "edits_recovered": True}


def assert_it_is_on_record(answer: dict[str, Any]) -> None:
    assert answer["drill_verdict"] == "passed"
    assert answer["drill"]["target"]["kind"] == "random"
    assert answer["drill"]["checks"] == answer["drill"]["checks_passed"] > 10
    assert answer["drill"]["rpo_seconds"] is not None
    assert any("not started" in text for text in answer["drill"]["not_tested"])
    assert answer["drill"]["odoo_checks"] >= 14
    neutral = answer["drill"]["neutralized"]
    assert neutral["scripts"] == ["plant_mes"]
    assert (neutral["mails_held"], neutral["mail_servers_off"], neutral["scheduled_actions_off"]) == (5, 1, 3)
    assert neutral["questions"] >= 8
    assert neutral["production_is_as_it_was"] is True
    assert answer["mutation"]["detected"] is True
    assert "documents-hash" in answer["mutation"]["noticed"][0]
    assert answer["evidence_verified"] is True
    # The log key; nine backups, three restores, and three drills with their obligations; and what the nodes tell.
    assert answer["evidence_records"] == answer["evidence_anchored"] >= 19


@pytest.mark.long
def test_the_evidence_that_was_asked_for_stays_and_verifies_without_this_program(tmp_path: Path) -> None:
    kept = tmp_path / "made" / "by the demo"
    kept.mkdir(parents=True)
    (kept / "report.pdf").write_text("of the last run")
    (kept / "notes.txt").write_text("mine")
    process = start_demo("--short", "--json", "--evidence", str(kept))
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    assert len(stdout.splitlines()) == 1
    answer: dict[str, Any] = json.loads(stdout)
    assert (answer["state"], answer["problems"], answer["nights"], answer["web"]) == ("passed", [], None, None)
    first, second = answer["snapshots"]
    assert second["stored_bytes"] < first["stored_bytes"] / 2
    # The log key; two backups, three restores, and two drills with their obligations.
    assert answer["evidence_records"] == answer["evidence_anchored"] == 10
    assert answer["evidence_folder"] == str(kept)
    assert_nothing_left(folder_in(stderr))
    assert sorted(item.name for item in kept.iterdir()) == ["bundle.zip", "notes.txt", "report.pdf", "verify.py"]
    assert (kept / "report.pdf").read_bytes().startswith(b"%PDF-")
    verify = [sys.executable, "-I", "-X", "importtime", str(kept / "verify.py"), str(kept / "bundle.zip")]
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60, cwd="/", env={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed 1" in done.stdout
    assert "faults planted noticed 1" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "cryptography" in imported
    assert not any(name.split(".")[0] == "drservice" for name in imported)

    bundle = (kept / "bundle.zip").read_bytes()
    at = bundle.index(b'"signatures"')
    (kept / "bundle.zip").write_bytes(bundle[:at] + b'"Signatures"' + bundle[at + 12 :])
    done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60, cwd="/", env={})
    assert done.returncode == 5, "a bundle that was changed must not verify"


def test_a_place_that_cannot_hold_evidence_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start_demo("--evidence", str(tmp_path / "file" / "below"))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stdout + stderr
    assert "no evidence can be kept in" in stderr
    assert "everything is in" not in stdout


@pytest.mark.long
def test_an_ordinary_user_can_keep_the_recovered_database_and_destroy_it_later() -> None:
    process = start_demo("--short", "--keep", "--no-color", user="postgres" if os.geteuid() == 0 else None)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    folder = folder_in(stdout)
    try:
        assert "PASSED" in stdout
        assert "\x1b" not in stdout
        dsn = re.search(r'^connect: psql "(.*)"$', stdout, re.MULTILINE)
        destroy = re.search(r"^destroy: (.*) && rm -r (\S+)$", stdout, re.MULTILINE)
        assert dsn is not None
        assert destroy is not None
        with psycopg.connect(dsn[1]) as connection:
            row = connection.execute("select count(*) from mrp_production").fetchone()
            assert row is not None
            assert row[0] > 8_000
        assert destroy[2] == str(folder)
        report = re.search(r"^report:  (\S+)$", stdout, re.MULTILINE)
        verify = re.search(r"^verify:  python3 (\S+) (\S+)$", stdout, re.MULTILINE)
        assert report is not None
        assert Path(report[1]).read_bytes().startswith(b"%PDF-")
        assert verify is not None
        subprocess.run([sys.executable, "-I", verify[1], verify[2]], check=True, capture_output=True)
        assert not any("plant/data" in words for words in naming(folder).values()), "production still runs"
        account = processes.account_named("postgres") if os.geteuid() == 0 else None
        done = processes.run(shlex.split(destroy[1]), account=account, timeout_seconds=60)
        assert done.status == 0, done.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert_nothing_left(folder)


@pytest.mark.parametrize(
    ("number", "when", "arguments"),
    [
        pytest.param(signal.SIGINT, "00:40", (), marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "$ drservice rebuild", (), marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "- replay WAL", ("--short",), marks=pytest.mark.long),
        (signal.SIGINT, ". A drill that must fail", ("--short",)),
        pytest.param(signal.SIGTERM, ". The recovery", ("--short",), marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "document stream are killed", ("--short",), marks=pytest.mark.long),
    ],
)
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, when: str, arguments: tuple[str, ...]) -> None:
    process = start_demo(*arguments)
    told: list[str] = []
    read_until(process.stdout, when, told)
    folder = folder_in("".join(told))
    assert any("postgres" in words for words in naming(folder).values()), "nothing runs that could be left"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "error[DR130]" in stderr
    assert_nothing_left(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as the same user")
def test_a_program_that_postgres_cannot_run_is_told_at_once(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", closed / "venv"], check=True)
    (site,) = (closed / "venv" / "lib").glob("*/site-packages")
    here = Path(processes.__file__).parents[1]
    (site / "all.pth").write_text(f"{here}\n" + "".join(f"{p}\n" for p in sys.path if p.endswith("site-packages")))
    done = subprocess.run(
        [closed / "venv" / "bin" / "python", "-m", "drservice", "demo", "--short", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "DR602"
    assert "postgres cannot run" in error["message"]
    assert "every user can reach" in error["hint"]
    assert_nothing_left(folder_in(done.stderr))


@pytest.mark.long
@pytest.mark.parametrize("component", ["database", "configuration"])
def test_a_damaged_repository_fails_the_demo(component: str) -> None:
    process = start_demo("--short")
    told: list[str] = []
    read_until(process.stdout, ". The recovery", told)
    folder = folder_in("".join(told))
    shutil.rmtree(folder / "repository" / "s" / "erp" / component / "packs")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 5, stdout + stderr
    assert "PASSED" not in stdout
    assert_nothing_left(folder)


@pytest.mark.long
def test_a_drill_that_does_not_pass_fails_the_demo_although_everything_comes_back() -> None:
    process = start_demo("--short", "--json")
    told: list[str] = []
    read_until(process.stderr, ". Two backups while people work", told)
    folder = folder_in("".join(told))
    with psycopg.connect(f"host={folder / 'plant' / 'sock'} dbname=plant user=postgres") as books:
        books.execute(
            "insert into account_move_line (move_id, move_name, account, parent_state, debit, credit)"
            " values (1, 'cooked', '1400', 'posted', 1000000, 0)"
        )
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stdout + stderr
    answer = json.loads(stdout)
    assert (answer["state"], answer["drill_verdict"], answer["documents_missing"]) == ("failed", "failed", 0)
    assert "business:journal-balances" in answer["problems"][0]
    assert answer["problems"][0].startswith("the drill did not pass: ")
    assert answer["evidence_verified"] is True, "a drill that failed is evidence, too"
    assert_nothing_left(folder)


def destroy_stored(folder: Path, what: str) -> None:
    """Remove passes (``snapshots``) or sets (``documents``) of documents from the repository; the stream goes on."""
    for stored in (folder / "repository" / "s" / "erp" / "documents" / what).rglob("*"):
        if stored.is_file():
            stored.unlink()


@pytest.mark.long
def test_documents_that_are_lost_fail_the_demo() -> None:
    process = start_demo("--short")
    told: list[str] = []
    read_until(process.stdout, ". The recovery", told)
    folder = folder_in("".join(told))
    destroy_stored(folder, "snapshots")
    destroy_stored(folder, "documents")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stdout + stderr
    assert re.search(r"PROBLEM: \d+ acknowledged documents are missing", stdout)
    assert "error[" not in stderr
    assert_nothing_left(folder)


@pytest.mark.long
def test_a_document_stream_that_has_died_unseen_fails_the_demo() -> None:
    process = start_demo("--short")
    told: list[str] = []
    read_until(process.stdout, ". The machine dies", told)
    folder = folder_in("".join(told))
    (stream,) = [pid for pid, words in naming(folder).items() if "documents stream" in words]
    os.kill(stream, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stdout + stderr
    assert "`drservice documents stream erp` has ended" in stderr
    assert "PASSED in" not in stdout
    assert_nothing_left(folder)


@pytest.mark.long
def test_documents_of_longer_ago_that_are_lost_with_the_machine_fail_the_demo() -> None:
    process = start_demo("--short", "--json")
    told: list[str] = []
    read_until(process.stderr, ". The machine dies", told)
    folder = folder_in("".join(told))
    destroy_stored(folder, "documents")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 1, stdout + stderr
    answer = json.loads(stdout)
    loss = answer["host_loss"]
    (problem,) = answer["problems"]  # each row without a document was named, but `consistent` may have none
    assert "rows of the consistent copy are without their document" in problem
    assert loss["rows_without_document"] > 20
    assert loss["effective_rpo_seconds"] == loss["documents_lost_seconds"] > loss["documents_promised_seconds"]
    assert_nothing_left(folder)
