r"""Sets a report as PDF/A-3 with typst. The only module that uses typst.

Same view, same bytes, wherever and whenever it is set: only the typefaces inside typst are used, the document's date is
the end of its period, and nothing is fetched. What people wrote travels as a JSON file of strings beside the template
and is never part of it, so no text can become markup.

The typefaces lack the letters of some scripts, and typst (0.15) aborts on some text that they cannot show. Letters
outside a tested set are therefore written as ``\uNNNN``; the HTML report shows them as they are.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from datetime import UTC, datetime
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Final

from drservice.errors import ReportRenderError
from drservice.evidence.reportview import View

TEMPLATE = "templates/report.typ"
STANDARD: Final = "a-3a"

_SHOWN = (
    "\u0020-\u007e\u00a0-\u00ac\u00ae-\u02ff"  # Latin
    "\u0370-\u0377\u037a-\u037f\u0384-\u038a\u038c\u038e-\u03a1\u03a3-\u0482\u048a-\u04ff"  # Greek, Cyrillic
    "\u1e00-\u1eff\u2010-\u2027\u2030-\u2040\u2044-\u2052\u20a0-\u20bf"  # more Latin, punctuation, currencies
    "\u2190-\u23ff\u2500-\u262f\u2713-\u2718"  # arrows, mathematics, symbols
)
_UNSHOWN = re.compile(f"[^{_SHOWN}]")


def render_pdf(view: View) -> bytes:
    """Return the report as a tagged PDF/A-3a. The same view gives the same bytes.

    Raises:
        ReportRenderError: typst cannot set it (a mistake in this program).
    """
    import typst  # noqa: PLC0415 - 80 MB that only an export loads

    instant = datetime.fromisoformat(view.as_of_iso).astimezone(UTC)
    data = _printable(dataclasses.asdict(view))
    data["date"] = [instant.year, instant.month, instant.day, instant.hour, instant.minute, instant.second]
    with tempfile.TemporaryDirectory(prefix="drservice-report-") as folder:
        root = Path(folder)
        template = resources.files("drservice.evidence").joinpath(TEMPLATE).read_bytes()
        (root / "report.typ").write_bytes(template)
        (root / "report.json").write_text(json.dumps(data, sort_keys=True), encoding="utf-8")
        try:
            return typst.compile(
                root / "report.typ",
                None,
                root=root,
                font_paths=[],
                ignore_system_fonts=True,
                format="pdf",
                pdf_standards=STANDARD,
                timestamp=int(instant.timestamp()),
                package_path=root / "none",
                package_cache_path=root / "none",
            )
        except typst.TypstError as error:
            raise ReportRenderError(f"the PDF report cannot be set: {error.message}") from error


def _printable(value: dict[str, object]) -> dict[str, object]:
    """Return a view's fields as JSON takes them, with every string limited to what the typefaces have."""
    return {name: _plain(item) for name, item in value.items()}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return _printable(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
