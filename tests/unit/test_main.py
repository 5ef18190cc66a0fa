"""The program ends at once when its work is done, and loses nothing by it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import atexit, sys, threading, time
from drservice import __main__ as program
from drservice.cli import main as frame

def late():
    time.sleep(0.05)
    print("a thread")

def run(words):
    atexit.register(print, "who asked to hear of the end")
    threading.Thread(target=late).start()
    print("x" * 200_000)
    {ending}

frame.run = run
program.main()
"""


def ended(ending: str, *, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the entry point with a command line that ends so."""
    words = [sys.executable, "-E", "-c", _PROGRAM.replace("{ending}", ending)]
    return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=30)


def test_all_output_is_written_all_threads_and_all_who_asked_have_ended_before_the_process_does() -> None:
    done = ended("return 3")
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["x" * 200_000, "a thread", "who asked to hear of the end"]
    assert done.stderr == ""


def test_the_process_is_not_taken_apart() -> None:
    witness = "sys.modules['witness'] = type('Witness', (), {'__del__': lambda self: print('taken apart')})(); return 0"
    assert "taken apart" not in ended(witness).stdout


@pytest.mark.parametrize(("ending", "said"), [("raise RuntimeError('defect')", "defect"), ("return 0", "No space")])
def test_what_goes_wrong_at_the_end_is_said_by_python_itself(ending: str, said: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device
        done = ended(ending, stdout=full.fileno() if said != "defect" else subprocess.PIPE)
    assert done.returncode not in {0, 3}
    assert said in done.stderr
