"""The frame of the command line, as a process: exit statuses, shapes, signals, and what is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from drservice.cli.table import COMMANDS

PROGRAM = (sys.executable, "-m", "drservice")
CONTROL_PLANE = {"sqlalchemy", "fastapi", "apscheduler", "procrastinate", "alembic"}
HEAVY = CONTROL_PLANE | {"pydantic", "boto3", "botocore", "rich", "numpy", "structlog", "psycopg", "cryptography"}
EMERGENCY = {"wal fetch", "wal push"}
OF_THE_CONTROL_PLANE = {"account", "demo", "node", "rebuild", "up", "web"}

PROBE = """
import os, signal, sys, time
import click
from drservice import errors
from drservice.cli.invocation import Invocation
from drservice.cli.main import run
from drservice.cli.table import Entry

@click.command()
@click.option("--do", required=True)
@click.pass_obj
def probe(invocation: Invocation, do: str) -> int | None:
    if do == "document":
        invocation.output.result("probe", {"x": 1}, ["x is 1"])
        invocation.output.note("noted")
    elif do == "partial":
        invocation.output.result("probe", {"x": 1}, ["x is 1"])
        return errors.ExitStatus.PARTIAL
    elif do == "defect":
        raise KeyError("lost\\x1b[2J")
    elif do == "flood":
        for _ in range(100_000):
            invocation.output.raw("x" * 80)
    elif do == "wait":
        try:
            sys.stderr.write("ready\\n")
            sys.stderr.flush()
            time.sleep(60)
        finally:
            sys.stderr.write("cleaned\\n")
    elif do == "own-status":
        raise click.exceptions.Exit(44)
    else:
        raise getattr(errors, do)("it went wrong")
    return None

sys.modules["probe_commands"] = sys.modules["__main__"]
sys.exit(run(sys.argv[1:], (Entry("probe", "probe_commands:probe", "for tests"),)))
"""

Probe = Callable[..., "subprocess.CompletedProcess[str]"]


def call(argv: Sequence[str], *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {"DRSERVICE_CONFIG", "NO_COLOR"}}
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, cwd=cwd, env={**clean, **environment}
    )


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return path


@pytest.fixture
def probe(probe_file: Path, tmp_path: Path) -> Probe:
    """Run a command that does what it is told, through the real frame."""

    def run_probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return call((sys.executable, str(probe_file), *arguments), cwd=tmp_path, **environment)

    return run_probe


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("DrError", 1),
        ("ConfigurationError", 2),
        ("SegmentConflictError", 5),
        ("BusyError", 6),
        ("StoreDeniedError", 7),
        ("StoreUnreachableError", 8),
        ("InterruptedRunError", 130),
        ("own-status", 44),
        ("document", 0),
        ("partial", 3),
    ],
)
def test_the_exit_status_is_the_one_of_the_outcome(probe: Probe, kind: str, status: int) -> None:
    assert probe("probe", "--do", kind).returncode == status


def test_an_error_is_words_with_a_hint_on_stderr(probe: Probe) -> None:
    done = probe("probe", "--do", "BusyError")
    assert done.stdout == ""
    assert done.stderr == (
        "error[DR110]: it went wrong.\nhint: Wait for the other run to end, or look for it with `ps`.\n"
    )


@pytest.mark.parametrize(
    "arguments", [("--json", "probe", "--do", "BusyError"), ("probe", "--json", "--do", "BusyError")]
)
def test_json_may_stand_before_and_after_the_command(probe: Probe, arguments: tuple[str, ...]) -> None:
    done = probe(*arguments)
    assert json.loads(done.stdout) == {
        "schema": "drservice/error/v1",
        "error": {
            "code": "DR110",
            "message": "it went wrong",
            "hint": "Wait for the other run to end, or look for it with `ps`.",
            "exit_status": 6,
        },
    }
    assert done.stderr == ""
    assert done.returncode == 6


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("probe", "--nonsense"), ("probe",), ("probe", "--do"), ("--log-level", "loud", "probe"), ()],
)
def test_a_usage_error_is_status_2_in_the_same_shape(probe: Probe, arguments: tuple[str, ...]) -> None:
    done = probe("--json", *arguments)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "DR100"
    assert "--help" in error["hint"]
    if arguments:
        assert probe(*arguments).stderr.startswith("error[DR100]: ")


def test_a_usage_error_before_json_is_read_is_still_json(probe: Probe) -> None:
    assert json.loads(probe("nonsense", "--json").stdout)["error"]["code"] == "DR100"


def test_results_go_to_stdout_and_notes_to_stderr_unless_quiet(probe: Probe) -> None:
    done = probe("probe", "--do", "document")
    assert (done.stdout, done.stderr) == ("x is 1\n", "noted\n")
    assert probe("probe", "--do", "document", "--quiet").stderr == ""
    assert json.loads(probe("probe", "--do", "document", "--json").stdout) == {"schema": "drservice/probe/v1", "x": 1}


def test_a_defect_ends_in_words_without_a_traceback(probe: Probe) -> None:
    done = probe("probe", "--do", "defect")
    assert done.returncode == 1
    assert done.stderr.startswith("error[DR000]: internal error: KeyError: ")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_debug_shows_the_traceback(probe: Probe) -> None:
    assert "Traceback" in probe("probe", "--log-level", "debug", "--do", "defect").stderr


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP"), (signal.SIGINT, "interrupted")]
)
def test_a_signal_unwinds_and_leaves_130(probe_file: Path, number: signal.Signals, word: str) -> None:
    with subprocess.Popen(
        (sys.executable, str(probe_file), "probe", "--do", "wait"), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "cleaned\n" in said
    assert "error[DR130]: " in said
    assert word in said


def test_a_reader_that_leaves_is_no_reason_to_shout(probe_file: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        (sys.executable, str(probe_file), "probe", "--do", "flood"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert said == b""
    assert process.returncode == 1


def test_a_reader_that_was_never_there_is_no_reason_to_shout_either(probe_file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        (sys.executable, str(probe_file), "probe", "--do", "document", "--json"),
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert done.stderr == b"noted\n"
    assert done.returncode == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_result_that_cannot_be_written_is_a_failure(probe_file: Path, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            (sys.executable, str(probe_file), "probe", "--do", "document", "--json"),
            stdout=full,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert b"the output cannot be written: No space left" in done.stderr


def imported(*arguments: str, cwd: Path) -> set[str]:
    done = call((sys.executable, "-X", "importtime", *PROGRAM[1:], *arguments), cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("config", "--help")])
def test_the_frame_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    found = imported(*arguments, cwd=tmp_path)
    assert "click" in found
    assert not found & HEAVY


@pytest.mark.parametrize("name", [entry.name for entry in COMMANDS])
def test_help_of_every_command_works_and_imports_no_control_plane_unless_it_is_one(name: str, tmp_path: Path) -> None:
    found = imported(*name.split(), "--help", cwd=tmp_path)
    if name.split(maxsplit=1)[0] not in OF_THE_CONTROL_PLANE:
        assert not found & (HEAVY if name in EMERGENCY else CONTROL_PLANE)


def test_only_the_command_asked_for_is_imported(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from drservice.cli.main import run
        from drservice.cli.table import Entry
        run(["one", "--help"], (
            Entry("one", "drservice.cli.config:schema", "x"), Entry("two", "no.such.module:command", "y")))
        run(["--help"], (Entry("two", "no.such.module:command", "y"),))
    """)
    done = call((sys.executable, "-c", script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "two  y" in done.stdout


def test_config_show_tells_values_origins_and_what_is_not_acted_on(tmp_path: Path) -> None:
    path = tmp_path / "drservice.yaml"
    path.write_text(
        "version: 1\nrepository: {url: 'file:///r'}\nservices:\n  erp:\n    components:\n"
        "      database: {kind: postgres, dsn: host=db1}\n    depends_on: [mail]\n"
        "dependencies:\n  mail: {kind: dns, host: mail.example.com}\n"
    )
    path.chmod(0o640)
    done = call((*PROGRAM, "config", "show", "--json", "--config", str(path)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["schema"] == "drservice/config-show/v1"
    assert {"path": "services.erp.components.database.dsn", "value": "host=db1", "line": 6} in shown["values"]
    assert {"path": "state_dir", "value": "/var/lib/drservice", "line": None} in shown["values"]
    assert "not acted on" in shown["notices"][0]
    human = call((*PROGRAM, "--config", str(path), "config", "show"), cwd=tmp_path)
    assert "line 6" in human.stdout
    assert human.stderr.startswith("warning: services.erp.depends_on is declared but not acted on")
    named = call((*PROGRAM, "config", "show"), cwd=tmp_path, DRSERVICE_CONFIG=str(path))
    assert named.stdout == human.stdout


def test_config_schema_is_a_bare_schema_for_editors(tmp_path: Path) -> None:
    bare = json.loads(call((*PROGRAM, "config", "schema"), cwd=tmp_path).stdout)
    wrapped = json.loads(call((*PROGRAM, "config", "schema", "--json"), cwd=tmp_path).stdout)
    assert bare["$schema"].startswith("https://json-schema.org/")
    assert wrapped == {"schema": "drservice/config-schema/v1", "json_schema": bare}


def test_an_invalid_configuration_is_status_2_with_every_place(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "drservice.yaml"
    path.write_text("version: 1\nrepository: {}\nservces: {}\n")
    path.chmod(0o640)
    done = call((*PROGRAM, "config", "show"), cwd=tmp_path)
    assert done.returncode == 2
    assert f"  {path}:2:1: repository.url: `url` is required here\n" in done.stderr
    assert f"  {path}:3:1: servces: there is no such setting; did you mean `services`?\n" in done.stderr


def test_completion_knows_the_commands(tmp_path: Path) -> None:
    done = call(
        PROGRAM, cwd=tmp_path, _DRSERVICE_COMPLETE="bash_complete", COMP_WORDS="drservice config s", COMP_CWORD="2"
    )
    assert done.stdout.split() == ["plain,schema", "plain,show"]
