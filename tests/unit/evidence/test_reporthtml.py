"""The HTML report: nothing in it runs or is fetched, and nothing that people wrote becomes part of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from drservice.canonical import Json
from drservice.errors import ReportRenderError
from drservice.evidence import reporthtml
from drservice.evidence.report import Report, ServiceFacts
from drservice.evidence.reportbuilding import build_report
from drservice.evidence.reportentries import DrillOutcome
from drservice.evidence.reporthtml import render_html
from drservice.evidence.reportsections import DETAILED_DRILLS, detailed, view_of
from drservice.evidence.reportview import Style, Table, Tone, View
from tests.doubles.evidencestory import Story, at, estate, good_quarter, inputs, whole_quarter
from tests.doubles.hostile import ALL, hostile_quarter, hostile_services


def report_of(story: Story) -> Report:
    return build_report(story.entries(), inputs=inputs(len(story.statements)))


def hostile_view() -> View:
    story = hostile_quarter()
    return view_of(build_report(story.entries(), inputs=inputs(len(story.statements), services=hostile_services())))


class Elements(HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self, html: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_nothing_runs_and_nothing_is_fetched() -> None:
    html = render_html(view_of(report_of(whole_quarter())))
    seen = Elements(html)
    assert set(seen.tags) & {"script", "link", "img", "iframe", "object", "embed", "form", "base"} == set()
    assert [
        pair for pair in seen.attributes if pair[0] in {"src", "action", "srcset"} or pair[0].startswith("on")
    ] == []
    assert [value for name, value in seen.attributes if name == "href" and not value.startswith("#")] == []
    assert b"@import" not in html
    assert b"url(" not in html
    assert b"default-src 'none'" in html


def test_hostile_text_changes_no_element_of_the_page() -> None:
    seen = Elements(render_html(hostile_view()))
    assert set(seen.tags) & {"script", "img", "bold"} == set()
    assert [name for name, _ in seen.attributes if name.startswith("on")] == []
    text = "".join(seen.words)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text


def test_hostile_text_neither_hides_nor_turns_nor_fills_pages() -> None:
    html = render_html(hostile_view()).decode("utf-8")
    assert (
        re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\ufeff\ud800]", html) == []
    )
    assert "\\x1b[31mall is well" in html
    assert "passed\\u202edeliaf" in html
    assert "first\\nsecond" in html
    assert "W" * 601 not in html
    assert "\u0316" * 3 not in html


def test_every_status_is_a_word_with_a_symbol() -> None:
    view = view_of(report_of(whole_quarter()))
    cells = [cell for section in view.sections for table in section.tables for row in table.rows for cell in row]
    statuses = [cell for cell in cells if cell.style is Style.STATUS]
    assert len(statuses) > 20
    assert all(cell.text.strip() and cell.symbol.strip() for cell in statuses)
    symbols = {(cell.tone, cell.symbol) for cell in statuses}
    assert len({symbol for _, symbol in symbols}) == len({tone for tone, _ in symbols}) == len(Tone)


def test_each_bar_has_its_numbers_in_a_table() -> None:
    view = view_of(report_of(whole_quarter()))
    measured = next(section for section in view.sections if section.name == "measured")
    rows = {(row[0].text, row[1].text): row for row in measured.tables[0].rows}
    for service in view.services:
        for bar in service.bars:
            row = rows[service.name, bar.name]
            assert (row[2].text, row[3].text, row[4].text) == (bar.promised, bar.last, bar.worst)


def test_every_row_has_a_cell_for_each_title() -> None:
    view = hostile_view()
    tables: list[Table] = [table for section in view.sections for table in section.tables]
    tables += [table for section in view.sections for drill in section.drills for table in drill.tables]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def test_exceptions_come_before_what_went_well() -> None:
    names = [section.name for section in view_of(report_of(whole_quarter())).sections]
    assert names[:4] == ["exceptions", "not-tested", "measured", "coverage"]
    assert names.index("drills") > names.index("not-tested")


def headline(story: Story, *services: ServiceFacts) -> tuple[str, Tone]:
    given = inputs(len(story.statements), services=services)
    cell = view_of(build_report(story.entries(), inputs=given)).headline
    return (cell.text, cell.tone)


def test_the_headline_says_no_more_than_was_proved() -> None:
    erp, other = estate()[0], ServiceFacts(name="other")
    assert headline(good_quarter(), erp) == ("1 service proved recoverable as promised", Tone.GOOD)
    story = good_quarter()
    story.finding(at(80), "erp", 70)
    assert headline(story, erp) == ("1 service proved recoverable as promised, 1 with exceptions", Tone.WARN)
    story.backup(at(81), "other")
    assert headline(story, erp, other) == ("1 of 2 services not proved recoverable", Tone.WARN)
    story.backup(at(82), "other", outcome="failed")
    assert headline(story, erp, other) == ("1 of 2 services breached", Tone.BAD)
    assert headline(Story()) == ("no service is in the scope of this report", Tone.WARN)


def test_a_recovery_without_a_time_says_the_position_it_reached() -> None:
    target: Json = {
        "requested": "latest",
        "kind": "latest",
        "reached_time": None,
        "reached_lsn": "0/2B000060",
        "timeline": 2,
    }
    latest: Json = {"kind": "latest", "time": None, "from": None, "to": None, "seed_commitment": None}
    story = Story()
    entry = story.obligation(at(10), "erp", 60, target=latest)
    story.drill(at(10, hour=3), "erp", 60, entry, target=target, seed=None)
    assert "it was recovered to latest at 0/2B000060 in isolation" in view_of(report_of(story)).services[0].sentence


def test_a_bar_never_leaves_its_place() -> None:
    story = good_quarter()
    entry = story.obligation(at(80), "erp", 444)
    story.drill(at(80, hour=3), "erp", 444, entry, rto_ms=2**53 - 1, rpo_ms=0)
    bars = view_of(report_of(story)).services[0].bars
    assert all(-1 <= length <= 1000 for bar in bars for length in (bar.promised_at, bar.last_to, bar.worst_to))


def test_the_phases_of_a_drill_fill_its_line_and_no_more() -> None:
    view = view_of(report_of(whole_quarter()))
    for section in view.sections:
        for drill in section.drills:
            assert all(phase.begin + phase.length <= 1000 for phase in drill.phases)


def test_of_many_drills_those_that_failed_are_shown_in_full() -> None:
    story = Story()
    for number in range(DETAILED_DRILLS + 20):
        entry = story.obligation(at(number / 2), "erp", 100 + number)
        outcome = "failed" if number == 3 else "passed"
        story.drill(at(number / 2, hour=3), "erp", 100 + number, entry, outcome=outcome)
    report = report_of(story)
    shown = detailed(report.drills)
    assert len(shown) == DETAILED_DRILLS
    assert [drill.entry.outcome for drill in shown[:2]] == [DrillOutcome.FAILED, DrillOutcome.PASSED]
    section = next(section for section in view_of(report).sections if section.name == "drills")
    assert len(section.tables[0].rows) == DETAILED_DRILLS + 20
    assert f"All {DETAILED_DRILLS + 20} are in the table" in section.intro


def test_the_same_report_is_the_same_page() -> None:
    assert render_html(view_of(report_of(whole_quarter()))) == render_html(view_of(report_of(whole_quarter())))


def test_a_name_that_the_template_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporthtml, "_read", lambda name: "{{ view.nothing_of_this_name }}" if "jinja" in name else "")
    with pytest.raises(ReportRenderError, match="nothing_of_this_name"):
        render_html(view_of(report_of(good_quarter())))


def test_there_is_a_report_of_nothing_but_hostile_names() -> None:
    assert len(hostile_view().services) >= len(ALL)
