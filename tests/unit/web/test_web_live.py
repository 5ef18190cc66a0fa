"""Viewers are asked about together: nobody is forgotten, and nobody is believed for longer than a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
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


def test_viewers_who_come_at_once_are_all_somebody_and_one_question_serves_who_was_known() -> None:
    register = Register()

    async def come() -> None:
        made = live(register)
        everybody = [principal(number) for number in range(50)]
        for _ in range(2):
            answers = await asyncio.gather(*(made.still(item) for item in everybody))
            assert [found for found, _ in answers] == everybody
        assert len(register.asked) <= len(everybody)
        asked = len(register.asked)
        await asyncio.gather(*(made.still(item) for item in everybody))
        assert len(register.asked) == asked

    asyncio.run(come())


def test_who_is_gone_is_nobody_at_the_next_question_and_is_asked_about_no_more() -> None:
    register = Register()

    async def leave() -> None:
        made = live(register)
        _, until = await made.still(principal(1))
        assert 0 < until - asyncio.get_running_loop().time() <= LOOK_SECONDS
        register.gone = {"t1"}
        await made.still(principal(2))
        assert (await made.still(principal(1)))[0] is None
        await made.still(principal(3))
        assert register.asked[-1] == {"t2", "t3"}

    asyncio.run(leave())
