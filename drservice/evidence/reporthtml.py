"""Sets a report as one HTML file: no script, nothing fetched, readable in light, dark, on paper and on a telephone.

The only module that uses jinja2. Everything is escaped by the template engine, a name that the template does not know
is an error, and a policy inside the file forbids a browser to load or run anything, should something slip through.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from drservice.errors import ReportRenderError
from drservice.evidence.reportview import View

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "templates/report.html.jinja"
STYLE = "templates/report.css"


def render_html(view: View) -> bytes:
    """Return the report as UTF-8. The same view gives the same bytes.

    Raises:
        ReportRenderError: the template and the view do not fit (a mistake in this program).
    """
    import jinja2  # noqa: PLC0415 - only an export pays for it

    try:
        return _template().render(view=view, style=_read(STYLE)).encode("utf-8")
    except jinja2.TemplateError as error:
        raise ReportRenderError(f"the HTML report cannot be set: {error}") from error


def _template() -> Template:
    import jinja2  # noqa: PLC0415 - only an export pays for it

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read(TEMPLATE))


def _read(name: str) -> str:
    return resources.files("drservice.evidence").joinpath(name).read_text(encoding="utf-8")
