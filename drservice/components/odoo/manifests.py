"""Which version of a module's code lies in the addons folders: read from its manifest, which is never executed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MODULE = re.compile(r"[A-Za-z0-9_]{1,100}")
_SERIES = re.compile(r"((?:saas~)?[0-9]+\.[0-9]+)\.")
_NAME = "__manifest__.py"
_LONGEST = 1 << 20
_DEFAULT_VERSION = "1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What the folders have of one module."""

    version: str | None
    """As Odoo would write it into ``latest_version``; ``None`` without code, or with ``problem``."""
    problem: str | None = None
    """Why the manifest says nothing."""


def series_of(version: str) -> str | None:
    """Return the series of a version, such as ``19.0`` of ``19.0.1.3``."""
    found = _SERIES.match(version)
    return found[1] if found is not None else None


def read_code(folders: Sequence[Path], modules: Iterable[str], *, series: str) -> dict[str, Code]:
    """Return what the folders have of each module; the first folder that has one counts, as for Odoo.

    Args:
        folders: as ``addons_path`` has them.
        modules: their names; a name that is none has no code.
        series: Odoo puts it before a version that does not begin with it.
    """
    return {name: _read(folders, name, series) for name in modules}


def _read(folders: Sequence[Path], name: str, series: str) -> Code:
    if _MODULE.fullmatch(name) is None:
        return Code(version=None)
    path = next((path for folder in folders if (path := folder / name / _NAME).is_file()), None)
    if path is None:
        return Code(version=None)
    try:
        if path.stat().st_size > _LONGEST:
            return Code(version=None, problem=f"its manifest has more than {_LONGEST} bytes")
        manifest = ast.literal_eval(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        return Code(version=None, problem=f"its manifest cannot be read: {error}")
    if not isinstance(manifest, dict):
        return Code(version=None, problem="its manifest is no dictionary")
    version = str(manifest.get("version", _DEFAULT_VERSION))
    return Code(version=version if version.startswith(f"{series}.") else f"{series}.{version}")
