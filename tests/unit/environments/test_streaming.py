"""A program's output is handed over while it runs."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import pytest

from drservice.environments.streaming import run_streaming


def run(script: str, *, stall_seconds: float = 10.0, **how: object) -> tuple[int, bytes, list[str]]:
    out = io.BytesIO()
    heard: list[str] = []
    source = how.get("source")
    assert source is None or isinstance(source, io.BufferedReader)
    status = run_streaming(
        ["sh", "-c", script], take=out.write, hear=heard.append, stall_seconds=stall_seconds, source=source
    )
    return status, out.getvalue(), heard


def test_output_and_lines_arrive_with_the_status() -> None:
    assert run("echo one; echo two >&2; printf 'no end' >&2; exit 3") == (3, b"one\n", ["two", "no end"])


def test_standard_input_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"from a file")
    with (tmp_path / "x").open("rb") as source:
        assert run("cat", source=source) == (0, b"from a file", [])


def test_a_long_line_is_cut_and_costs_no_memory() -> None:
    _, _, heard = run("head -c 1000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo after >&2")
    assert len(heard[0]) == 8192
    assert heard[1:] == ["after"]


def test_silence_for_too_long_ends_it() -> None:
    began = time.monotonic()
    status, out, _ = run("echo begun; sleep 60", stall_seconds=0.05)
    assert (status, out) == (-signal.SIGKILL, b"begun\n")
    assert time.monotonic() - began < 30


def test_an_error_of_the_taker_ends_the_program(tmp_path: Path) -> None:
    noted = tmp_path / "pid"

    def take(_: bytes) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        run_streaming(
            ["sh", "-c", f"echo $$ > {noted}; echo x; exec sleep 60"],
            take=take,
            hear=lambda _: None,
            stall_seconds=10,
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
