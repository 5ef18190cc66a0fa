"""What the program inside says is judged strictly: an open question is no pass."""

from __future__ import annotations

import pytest

from drservice.environments.interface import Probe
from drservice.environments.isolation import judge, require_isolated
from drservice.errors import EnvironmentFailedError, IsolationError
from drservice.processes import Finished


def said(text: str, status: int = 0) -> Finished:
    return Finished(status=status, stdout=text.encode(), stderr=b"")


def test_an_answered_probe_passes() -> None:
    (probe,) = judge(said("tcp\t1\t\nend\n"), expected=["tcp"], heard=set())
    assert probe == Probe(name="tcp", isolated=True, detail="out of reach")


def test_what_was_not_answered_is_not_isolated() -> None:
    (_, dns) = judge(said("tcp\t1\t\nend\n"), expected=["tcp", "dns"], heard=set())
    assert dns == Probe(name="dns", isolated=False, detail="was not answered")


def test_a_listener_that_heard_something_overrules_the_answer() -> None:
    (probe,) = judge(said("tcp\t1\t\nend\n"), expected=["tcp"], heard={"tcp"})
    assert not probe.isolated


@pytest.mark.parametrize("text", ["tcp\t1\t\ntcp\t1\t\nend\n", "tcp\nend\n", "tcp\tyes\t\nend\n", "end\n"])
def test_a_strange_answer_is_not_isolated(text: str) -> None:
    (probe,) = judge(said(text), expected=["tcp"], heard=set())
    assert not probe.isolated


@pytest.mark.parametrize("finished", [said(""), said("tcp\t1\t\n"), said("tcp\t1\t\nend\n", 1), said("end", -9)])
def test_a_test_that_did_not_finish_proves_nothing(finished: Finished) -> None:
    with pytest.raises(EnvironmentFailedError, match="could not run"):
        judge(finished, expected=["tcp"], heard=set())


def test_failed_probes_are_named_and_no_probe_is_no_pass() -> None:
    good = Probe(name="dns", isolated=True, detail="")
    bad = Probe(name="smtp", isolated=False, detail="connected")
    require_isolated([good])
    with pytest.raises(IsolationError, match=r"smtp \(connected\)") as caught:
        require_isolated([good, bad])
    assert "dns" not in caught.value.message
    with pytest.raises(IsolationError):
        require_isolated([])
