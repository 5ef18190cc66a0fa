from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from drservice.cli.output import Colour, Output, Span
from drservice.errors import ConfigurationError, ExitStatus, SegmentConflictError


def make(*, json_document: bool = False, quiet: bool = False, colour: bool = False) -> Output:
    return Output(stdout=io.StringIO(), stderr=io.StringIO(), json_document=json_document, quiet=quiet, colour=colour)


def text(stream: object) -> str:
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_people_get_lines_and_programs_one_document_with_its_schema() -> None:
    human, machine = make(), make(json_document=True)
    for output in (human, machine):
        output.result("info", {"services": []}, ["no service"])
    assert text(human.stdout) == "no service\n"
    assert text(machine.stdout) == '{"schema": "drservice/info/v1", "services": []}\n'


def test_a_second_document_is_refused() -> None:
    output = make(json_document=True)
    output.result("info", {}, [])
    with pytest.raises(RuntimeError, match="one JSON document"):
        output.result("info", {}, [])


def test_an_error_after_the_document_goes_to_stderr_so_that_stdout_stays_one_document() -> None:
    output = make(json_document=True)
    output.result("backup", {"state": "partial"}, [])
    output.error(SegmentConflictError("two servers"))
    assert json.loads(text(output.stdout))["schema"] == "drservice/backup/v1"
    assert text(output.stderr).startswith("error[DR210]: two servers.\nhint: ")


def test_an_error_as_json_has_code_message_hint_and_exit_status() -> None:
    output = make(json_document=True)
    output.error(SegmentConflictError("different bytes", hint="stop one"))
    assert json.loads(text(output.stdout)) == {
        "schema": "drservice/error/v1",
        "error": {"code": "DR210", "message": "different bytes", "hint": "stop one", "exit_status": 5},
    }
    assert text(output.stderr) == ""


def test_an_error_in_several_lines_cannot_forge_a_hint() -> None:
    output = make()
    output.error(ConfigurationError("two mistakes:\na.yaml:1:1: x\nhint: run rm", hint="the real one"))
    assert text(output.stderr).splitlines() == [
        "error[DR101]: two mistakes:",
        "  a.yaml:1:1: x",
        "  hint: run rm",
        "hint: the real one",
    ]


def test_hostile_names_are_neutralised_wherever_they_are_printed() -> None:
    output = make(colour=True)
    hostile = "x\x1b]0;owned\x07\u202e"
    output.result("info", {}, [hostile, (Span(hostile, Colour.BAD), hostile)])
    output.note(hostile)
    output.warn(hostile)
    output.error(SegmentConflictError(hostile, hint=hostile))
    printed = text(output.stdout) + text(output.stderr)
    for colour in (*(item.value for item in Colour), "\x1b[0m"):
        printed = printed.replace(colour, "")
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "\u202e" not in printed
    assert r"\x1b]0;owned\x07\u202e" in printed


def test_hostile_names_are_escaped_in_json() -> None:
    output = make(json_document=True)
    output.result("info", {"name": "x\x1b[31m\x9b\udcff"}, [])
    assert text(output.stdout).isascii()
    assert "\x1b" not in text(output.stdout)
    assert json.loads(text(output.stdout))["name"] == "x\x1b[31m\x9b\udcff"


def test_colours_appear_only_when_asked_for() -> None:
    for colour, expected in ((True, "\x1b[32mok\x1b[0m\n"), (False, "ok\n")):
        output = make(colour=colour)
        output.result("check", {}, [(Span("ok", Colour.GOOD),)])
        assert text(output.stdout) == expected


def test_quiet_silences_notes_but_not_results_warnings_and_errors() -> None:
    output = make(quiet=True)
    output.note("working")
    output.warn("look")
    output.result("info", {}, ["found"])
    assert text(output.stderr) == "warning: look\n"
    assert text(output.stdout) == "found\n"


def test_times_durations_paths_and_enums_are_translated_for_json() -> None:
    output = make(json_document=True)
    output.result(
        "restore",
        {
            "at": datetime(2026, 1, 1, tzinfo=UTC),
            "took": timedelta(milliseconds=1500),
            "path": Path("/r"),
            "status": ExitStatus.OK,
        },
        [],
    )
    found = json.loads(text(output.stdout))
    assert (found["at"], found["took"], found["path"], found["status"]) == ("2026-01-01T00:00:00Z", 1.5, "/r", 0)


def test_a_value_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        make(json_document=True).result("info", {"x": object()}, [])
    with pytest.raises(ValueError, match="JSON compliant"):
        make(json_document=True).result("info", {"x": float("nan")}, [])


def test_characters_the_terminal_cannot_show_are_escaped_not_fatal() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    output = Output(stdout=stream, stderr=stream, json_document=False, quiet=False, colour=False)
    output.result("info", {}, ["\u00dcbung"])
    output.flush()
    assert raw.getvalue() == b"\\xdcbung\n"
