"""Targets on the command line: exactly one, and an instant never without its zone."""

from __future__ import annotations

import pytest

from drservice.cli.targets import parse_target
from drservice.errors import UsageError
from drservice.model.recovery import Target, TargetKind
from drservice.model.wal import Timeline


def to(text: str, timeline: int | None = None) -> Target:
    return parse_target(to=text, lsn=None, xid=None, name=None, snapshot=None, timeline=timeline)


def test_the_ends_of_what_there_is_have_names() -> None:
    assert to("latest") == Target(kind=TargetKind.LATEST)
    assert to("consistent", 3) == Target(kind=TargetKind.CONSISTENT, timeline=Timeline(3))


@pytest.mark.parametrize("text", ["Consistent", "newest", "2026-11-23T02:09:57", ""])
def test_what_is_no_target_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        to(text)
    assert "`latest` or `consistent`" in refused.value.hint
