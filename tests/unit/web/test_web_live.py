"""Viewers are asked about together: nobody is forgotten, and nobody is believed for longer than a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import cast

from drservice.catalogue.database import Database
from drservice.catalogue.runs import Runs
from drservice.web.auth.identity import Identity, Principal
from drservice.web.auth.permissions import Role
from drservice.web.live import LOOK_SECONDS, Live

VIEWER = frozenset({Role.VIEWER})


def principal(number: int) -> Principal:
    return Principal(account=f"a{number}", token=f"t{number}", roles=VIEWER, services=frozenset(), csrf=None)


class Register:
    """Stands in the identity's place and counts what it is asked."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.asked: list[set[str]] = []

    def still(self, principals: Collection[Principal]) -> Mapping[str, Principal]:
        self.asked.append({item.token for item in principals})
        return {item.token: item for item in principals if item.token not in self.gone}


def live(register: Register) -> Live:
    nobody = Database("postgresql://nobody@/nowhere")
    return Live(nobody, Runs(nobody), cast("Identity", register))


def test_viewers_who_come_at_once_are_all_somebody_by_one_question() -> None:
    register = Register()

    async def come() -> None:
        made = live(register)
        everybody = [principal(number) for number in range(50)]
        with ExitStack() as streams:
            for viewer in everybody:
                streams.enter_context(made.watching("run", viewer))
            for _ in range(2):
                answers = await asyncio.gather(*(made.still(viewer) for viewer in everybody))
                assert [found for found, _ in answers] == everybody
        assert register.asked == [{viewer.token for viewer in everybody}]

    asyncio.run(come())


def test_who_comes_later_is_asked_about_at_once() -> None:
    register = Register()

    async def come() -> None:
        made = live(register)
        with made.watching("run", principal(1)):
            assert (await made.still(principal(1)))[0] == principal(1)
            with made.watching("run", principal(2)):
                assert (await made.still(principal(2)))[0] == principal(2)

    asyncio.run(come())
    assert register.asked == [{"t1"}, {"t1", "t2"}]


def test_who_is_gone_is_nobody_within_seconds_and_who_has_left_is_asked_about_no_more() -> None:
    register = Register()

    async def leave() -> None:
        made = live(register)
        with made.watching("run", principal(1)):
            _, until = await made.still(principal(1))
            assert 0 < until - asyncio.get_running_loop().time() <= LOOK_SECONDS
            register.gone = {"t1"}
            with made.watching("run", principal(2)):
                await made.still(principal(2))
                assert (await made.still(principal(1)))[0] is None
        with made.watching("run", principal(3)):
            await made.still(principal(3))
        assert register.asked[-1] == {"t3"}
        assert made.viewers == 0

    asyncio.run(leave())
