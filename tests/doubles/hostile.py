"""A ledger whose every free text is hostile: to HTML, to typst, to a terminal, and to the eye."""

from __future__ import annotations

from drservice.canonical import Json
from drservice.evidence.report import ComponentFacts, ServiceFacts
from drservice.evidence.reportentries import Promise
from tests.doubles.evidencestory import Story, at, check, good_quarter

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7*7 }}{% raw %}"
TYPST = '#panic("read as code") #import "x.typ" $x^2$ \\ [*bold*] @ref <label> = heading `raw` // gone #sys.inputs'
ANSI = "\x1b[2J\x1b[31mall is well\x1b[0m"
RTL = "passed\u202edeliaf\u2066\u200f"
LINES = "first\nsecond\r\nthird\ttabbed"
LONG = "W" * 5000
TOWER = "Z" + "\u0336\u0316\u0317\u0318" * 40
FOREIGN = "東京 שלום مرحبا \U0001f525"
ALL = (MARKUP, TYPST, ANSI, RTL, LINES, LONG, TOWER, FOREIGN, "", " ", "\ud800")


def hostile_quarter() -> Story:
    """The good quarter, and one drill, backup, finding and approval for each hostile text."""
    story = good_quarter()
    for place, text in enumerate(ALL):
        day = 76 + place
        entry = story.obligation(at(day), "erp", 400 + place, plan={"name": text, "sha256": "0" * 64})
        checks: list[Json] = [check(text, text, owner=text), check("amcheck", text, state="unverified")]
        probe: Json = {"name": text, "isolated": False, "detail": text}
        story.drill(at(day, hour=3), "erp", 400 + place, entry, checks=checks, isolation=[probe], reasons=[text],
                    outcome="failed", not_tested=[text], host=text, mutation=text,
                    error={"code": "DR000", "message": text}, environment={"id": text, "kind": text},
                    snapshots=[{"component": text, "snapshot": text}],
                    challenge={"nonce": text, "lsn": text})  # fmt: skip
        story.backup(at(day, hour=4), text, outcome="failed", error={"code": text, "message": text})
        story.finding(at(day, hour=5), "erp", 500 + place, check=text, owner=text, detail=text)
        approval: dict[str, Json] = {"entry": 1, "approver": text, "decision": text, "comment": text}
        story.add("approval", at(day, hour=6), "erp", approval)
        story.key(at(day, hour=7), text, text)
        story.add("restore", at(day, hour=8), "erp", {"outcome": text})
    return story


def hostile_services() -> tuple[ServiceFacts, ...]:
    return tuple(
        ServiceFacts(
            name=text,
            owner=text,
            promise=Promise(rto_ms=1),
            components=(ComponentFacts(name=text, kind=text, is_protected=False, note=text),),
        )
        for text in ALL
    )
