"""The PDF report: real typst, real poppler. The same report is the same bytes everywhere; text is never markup."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from drservice.errors import ReportRenderError
from drservice.evidence import reportpdf
from drservice.evidence.reportbuilding import build_report
from drservice.evidence.reportpdf import render_pdf
from drservice.evidence.reportsections import view_of
from drservice.evidence.reportview import Section, Table, View, columns, text
from tests.doubles.evidencestory import Story, inputs, whole_quarter
from tests.doubles.hostile import hostile_quarter, hostile_services

ROOT = Path(__file__).resolve().parents[2]
LEFT, TEXT_WIDTH = 51, 493
"""In points."""
PROGRAM = """
import hashlib, sys
from tests.integration.test_report_pdf import whole_view
from drservice.evidence.reportpdf import render_pdf
sys.stdout.write(hashlib.sha256(render_pdf(whole_view())).hexdigest())
"""


def view(story: Story, **given: object) -> View:
    return view_of(build_report(story.entries(), inputs=inputs(len(story.statements), **given)))  # type: ignore[arg-type] # names of inputs()


def whole_view() -> View:
    return view(whole_quarter())


def text_of(pdf: bytes, folder: Path) -> str:
    """Return the text of all pages, as a reader would copy it."""
    program = shutil.which("pdftotext")
    assert program, "install poppler-utils (deploy/install-system-packages)"
    (folder / "report.pdf").write_bytes(pdf)
    result = subprocess.run([program, "-layout", "report.pdf", "-"], cwd=folder, capture_output=True, check=True)
    return result.stdout.decode("utf-8")


def words_of(pdf: bytes, folder: Path) -> list[tuple[float, float, str]]:
    """Return left edge, right edge and letters of every word."""
    program = shutil.which("pdftotext")
    assert program, "install poppler-utils (deploy/install-system-packages)"
    (folder / "report.pdf").write_bytes(pdf)
    result = subprocess.run([program, "-bbox", "report.pdf", "-"], cwd=folder, capture_output=True, check=True)
    found = re.findall(r'<word xMin="([0-9.]+)" .*? xMax="([0-9.]+)" .*?>(.*?)</word>', result.stdout.decode("utf-8"))
    return [(float(left), float(right), word) for left, right, word in found]


def flat(text: str) -> str:
    return "".join(letter for letter in text if not letter.isspace() and letter != "\u200b")


@pytest.mark.parametrize(
    "surroundings",
    [
        {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "C"},
        {
            "TZ": "America/St_Johns",
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": "1",
            "TYPST_FONT_PATHS": "/usr/share",
        },
    ],
)
def test_the_same_report_is_the_same_bytes_in_any_zone_locale_and_folder(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        **surroundings,
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == hashlib.sha256(render_pdf(whole_view())).hexdigest()


def test_another_report_is_other_bytes() -> None:
    changed = dataclasses.replace(whole_view(), summary="Something else.")
    assert render_pdf(changed) != render_pdf(whole_view())


def test_the_document_is_an_archivable_tagged_pdf_dated_at_the_end_of_its_period(tmp_path: Path) -> None:
    pdf = render_pdf(whole_view())
    program = shutil.which("pdfinfo")
    assert program, "install poppler-utils (deploy/install-system-packages)"
    (tmp_path / "report.pdf").write_bytes(pdf)
    told = subprocess.run(
        [program, "-isodates", "report.pdf"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "Tagged:          yes" in told
    assert "JavaScript:      no" in told
    assert "CreationDate:    2026-04-01T00:00:00" in told.replace("+00", "").replace("Z", "")
    assert b"report.json" in pdf
    assert "PDF/A-3A" in told or b"<pdfaid:part>3</pdfaid:part>" in pdf


def test_every_page_says_which_ledger_it_is_about(tmp_path: Path) -> None:
    shown = whole_view()
    pages = text_of(render_pdf(shown), tmp_path).split("\f")[:-1]
    assert len(pages) > 4
    for number, page in enumerate(pages, 1):
        assert shown.repository in page
        assert shown.root_hash in page
        assert f"{shown.tree_size} entries" in page
        assert f"Page {number} of {len(pages)}" in page


def test_the_first_page_has_promise_measurement_and_both_states(tmp_path: Path) -> None:
    first = text_of(render_pdf(whole_view()), tmp_path).split("\f")[0]
    for words in ("promised 30 min", "6 min 12 s", "backed up, last", "verified, last", "last drill failed", "cubes"):
        assert words in first


def test_hostile_text_is_set_as_it_stands(tmp_path: Path) -> None:
    """Nothing of it is read as code or markup; what would hide is written as an escape."""
    pdf = render_pdf(view(hostile_quarter(), services=hostile_services()))
    text = flat(text_of(pdf, tmp_path))
    assert flat('#panic("read as code") #import "x.typ" $x^2$ \\ [*bold*] @ref <label> = heading `raw` // gone') in text
    assert flat("<script>alert(1)</script>") in text
    assert flat("\\x1b[31mall is well") in text
    assert flat("passed\\u202edeliaf") in text
    assert "\\u6771\\u4eac" in text
    assert "\x1b" not in text


def test_no_character_can_stop_a_report() -> None:
    """Typst aborts on some characters that its typefaces lack: none of them reaches it."""
    letters = [chr(code) for code in range(0x20, 0x3000)]
    letters += [chr(code) for code in range(0x3000, 0x110000, 0x101)]
    kept = [letter for letter in letters if unicodedata.category(letter) != "Cs"]
    lines = tuple(" ".join(kept[begin : begin + 400]) for begin in range(0, len(kept), 400))
    shown = whole_view()
    service = shown.services[0]
    many = tuple(dataclasses.replace(service, name=line[:200], sentence=line) for line in lines)
    pdf = render_pdf(dataclasses.replace(shown, services=many, sections=()))
    assert pdf.startswith(b"%PDF-")


def test_a_long_word_stays_inside_the_page(tmp_path: Path) -> None:
    shown = whole_view()
    service = dataclasses.replace(shown.services[0], name="W" * 70, sentence="x" * 600)
    pdf = render_pdf(dataclasses.replace(shown, services=(service,), sections=()))
    assert flat(text_of(pdf, tmp_path)).count("x") >= 600
    assert 400 < max(right for _, right, _ in words_of(pdf, tmp_path)) <= LEFT + TEXT_WIDTH + 1


def test_no_cell_of_a_table_runs_into_the_next(tmp_path: Path) -> None:
    """Words that are longer than a column break, at whatever length."""
    titles = columns(*((f"T{place}", 3) for place in range(7)))
    rows = tuple(tuple(text(letter * size) for letter in "abcdegh") for size in range(1, 60))
    table = Table(title="Wide", columns=titles, rows=rows, empty="")
    section = Section(name="wide", title="Wide", intro="", tables=(table,))
    pdf = render_pdf(dataclasses.replace(whole_view(), services=(), sections=(section,)))
    found = [word for word in words_of(pdf, tmp_path) if re.fullmatch(r"([abcdegh])\1*", word[2])]
    assert len(found) > 7 * 59
    for left, right, word in found:
        begin = LEFT + "abcdegh".index(word[0]) * TEXT_WIDTH / 7
        assert begin <= left
        assert right <= begin + TEXT_WIDTH / 7 + 1, word


def test_a_template_that_does_not_fit_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reportpdf, "TEMPLATE", "templates/report.css")
    with pytest.raises(ReportRenderError, match="cannot be set"):
        render_pdf(whole_view())


def test_nothing_is_left_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    render_pdf(whole_view())
    assert list(tmp_path.iterdir()) == []
