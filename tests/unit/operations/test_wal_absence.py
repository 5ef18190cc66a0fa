"""What is proven absent, and what is a hole: of segments about the end of a timeline that another one left."""

from __future__ import annotations

from pathlib import Path

import pytest

from drservice.errors import WalGapError
from drservice.model.wal import WalFileName
from drservice.operations.wal import prove_absent
from tests.doubles.repositories import SYSTEM_ID, Site

SIZE = 1 << 20


def name_of(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{number:08X}"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Timeline 1 is archived up to 4, and was left in the middle of 5; timeline 2 has 5 and 6."""
    made = Site.create(tmp_path)
    for name in (name_of(3), name_of(4), name_of(5, 2), name_of(6, 2)):
        made.put_wal(name, bytes(SIZE))
    made.put_wal("00000002.history", b"1\t0/580000\tno recovery target specified\n")
    return made


def ask(site: Site, name: str) -> None:
    prove_absent(site.repository().wal(site.scope), WalFileName.parse(name), system_id=SYSTEM_ID)


def test_t27_the_segment_in_which_a_timeline_was_left_and_what_lies_behind_is_its_end(site: Site) -> None:
    """A standby that still follows it would be ended by anything else, at every failover."""
    for name in (name_of(5), name_of(6), name_of(9)):
        ask(site, name)


@pytest.mark.parametrize("number", [2, 4])
def test_t27_a_segment_that_another_timeline_goes_through_is_a_hole(site: Site, number: int) -> None:
    [key] = [key for key in site.keys("s/") if key.endswith(name_of(4))]
    site.store.delete(key)
    with pytest.raises(WalGapError):
        ask(site, name_of(number))


def test_t27_a_timeline_that_was_left_at_the_end_of_a_segment_needs_that_one_and_no_more(tmp_path: Path) -> None:
    site = Site.create(tmp_path)
    site.put_wal(name_of(5, 2), bytes(SIZE))
    site.put_wal("00000002.history", b"1\t0/500000\tno recovery target specified\n")
    ask(site, name_of(5))
    with pytest.raises(WalGapError, match=name_of(5, 2)):
        ask(site, name_of(4))


def test_t27_what_the_new_timeline_lacks_of_its_own_is_a_hole(site: Site) -> None:
    [key] = [key for key in site.keys("s/") if key.endswith(name_of(5, 2))]
    site.store.delete(key)
    with pytest.raises(WalGapError, match=name_of(6, 2)):
        ask(site, name_of(5, 2))
    ask(site, name_of(7, 2))
