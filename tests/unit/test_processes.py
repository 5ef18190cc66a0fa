"""Programs start from argv lists, in a small environment, and never outlive their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drservice import processes
from drservice.errors import ConfigurationError, ProgramMissingError

AS_ROOT = os.geteuid() == 0


def test_output_and_status_come_back() -> None:
    done = processes.run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"yes")
    assert (done.status, done.stdout, done.stderr) == (3, b"yes", b"no\n")


def test_arguments_are_never_read_by_a_shell(tmp_path: Path) -> None:
    hostile = f"$(touch {tmp_path / 'made'}); `id` * ' \" \\"
    assert processes.run(["printf", "%s", hostile]).stdout == hostile.encode()
    assert not (tmp_path / "made").exists()


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(ProgramMissingError, match="no-such-program is not installed"):
        processes.run(["no-such-program"])
    with pytest.raises(ProgramMissingError) as caught:
        processes.find_program("no-such-program", package="nothing")
    assert "apt-get install nothing" in caught.value.hint


def test_programs_see_a_small_environment_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary")
    seen = processes.run(["env"]).stdout
    assert b"canary" not in seen
    assert set(seen.split()) >= {b"TZ=UTC", b"LC_ALL=C.UTF-8"}
    assert b"EXTRA=1" in processes.run(["env"], environment=processes.clean_environment({"EXTRA": "1"})).stdout


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_what_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    done = processes.run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path / 'pid'}; wait"], timeout_seconds=0.3)
    assert done.status == -signal.SIGKILL
    assert time.monotonic() - began < 10
    deadline = time.monotonic() + 5
    while is_alive(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def test_killing_what_is_gone_is_fine() -> None:
    process = processes.start(["true"])
    process.wait()
    processes.kill_group(process)


def test_a_program_has_a_session_of_its_own() -> None:
    argv = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    assert processes.run(argv).stdout == b"True\n"


def test_the_last_line_tells_what_went_wrong() -> None:
    finished = processes.Finished
    assert finished(status=1, stdout=b"out\n", stderr=b"first\nlast\n\n").last_line() == "last"
    assert finished(status=1, stdout=b"out\n", stderr=b" \n").last_line() == "out"
    assert finished(status=1, stdout=b"", stderr=b"\xff").last_line() == "\ufffd"
    assert finished(status=0, stdout=b"", stderr=b"").last_line() == ""


@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
def test_root_becomes_the_owner_of_the_data_directory(tmp_path: Path) -> None:
    nobody = processes.account_named("nobody")
    data = tmp_path / "data"
    data.mkdir()
    assert processes.server_account(data) == processes.account_named("postgres")
    os.chown(data, nobody.uid, nobody.gid)
    assert processes.server_account(data) == nobody
    seen = processes.run(["id"], account=nobody).stdout.decode()
    assert f"uid={nobody.uid}(" in seen
    assert "groups=0" not in seen


@pytest.mark.skipif(AS_ROOT, reason="root becomes somebody else")
def test_others_stay_who_they_are(tmp_path: Path) -> None:
    assert processes.server_account(tmp_path) is None


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(ProgramMissingError, match="no system user nobody-at-all"):
        processes.account_named("nobody-at-all")


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_what_root_makes_in_the_state_folder_belongs_to_its_owner(tmp_path: Path) -> None:
    nobody = processes.account_named("nobody")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, nobody.uid, nobody.gid)
    processes.make_folder(state / "cache" / "erp", mode=0o700)
    for path in (state / "cache", state / "cache" / "erp"):
        assert (path.stat().st_uid, path.stat().st_gid) == (nobody.uid, nobody.gid)
    assert (state / "cache" / "erp").stat().st_mode & 0o777 == 0o700


def test_a_private_file_is_new_and_what_stood_there_stays_as_it_was(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"kept")
    for plant in (path.symlink_to, path.hardlink_to):
        plant(victim)
        descriptor = processes.create_private(path)
        os.write(descriptor, b"new")
        os.close(descriptor)
        assert (path.read_bytes(), path.is_symlink(), path.stat().st_mode & 0o777) == (b"new", False, 0o600)
        assert victim.read_bytes() == b"kept"
        path.unlink()


def test_a_private_file_is_opened_as_it_is_or_made(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = processes.open_private(path), processes.open_private(path)
    assert os.path.samestat(os.fstat(first), os.fstat(second))
    os.close(first)
    os.close(second)
    with pytest.raises(FileNotFoundError):
        processes.open_private(tmp_path / "absent" / "lock")


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "lock", tmp_path / "target"
    if kind == "link":
        target.write_bytes(b"")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(ConfigurationError, match="not what it should be"):
        processes.open_private(path)
    assert target.exists() == (kind == "link")


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_root_gives_away_what_it_made_and_nothing_that_was_put_in_its_place(tmp_path: Path) -> None:
    nobody = processes.account_named("nobody")
    state, victim = tmp_path / "state", tmp_path / "victim"
    state.mkdir()
    victim.write_bytes(b"")
    os.chown(state, nobody.uid, nobody.gid)
    made = state / "made"
    made.write_bytes(b"")
    processes.inherit_owner(made)
    assert made.stat().st_uid == nobody.uid
    for plant in ((state / "soft").symlink_to, (state / "hard").hardlink_to):
        plant(victim)
    for name in ("soft", "hard"):
        with pytest.raises(ConfigurationError):
            processes.inherit_owner(state / name)
    assert victim.stat().st_uid == 0


@pytest.mark.skipif(not AS_ROOT, reason="others are not endangered by where they may write anyway")
@pytest.mark.parametrize("planted_by", ["nobody", "root in a folder of nobody's", "root"])
def test_root_goes_through_links_only_where_root_alone_could_put_them(tmp_path: Path, planted_by: str) -> None:
    nobody = processes.account_named("nobody")
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    link = folder / "link"
    link.symlink_to(elsewhere)
    if planted_by != "root":
        os.chown(folder, nobody.uid, nobody.gid)
    if planted_by == "nobody":
        os.chown(link, nobody.uid, nobody.gid, follow_symlinks=False)
    if planted_by == "root":
        processes.make_folder(link / "inner")
        assert (elsewhere / "inner").is_dir()
        return
    for act in (processes.make_folder, processes.create_private, processes.open_private):
        with pytest.raises(ConfigurationError, match="symbolic link"):
            act(link / "inner")
    assert list(elsewhere.iterdir()) == []


def test_a_folder_is_made_once_and_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    processes.make_folder(tmp_path / "a/b", mode=0o700)
    processes.make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        processes.make_folder(tmp_path / "file")


def test_a_started_program_can_be_waited_for() -> None:
    process = processes.start(["sh", "-c", "echo yes"], stdout=subprocess.PIPE)
    assert process.communicate()[0] == b"yes\n"
