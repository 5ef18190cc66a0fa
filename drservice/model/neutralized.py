"""What was done to a copy of Odoo's database so that it does nothing outside any more: the values that are told."""

from __future__ import annotations

from dataclasses import dataclass

from drservice.canonical import Json
from drservice.model.ids import ComponentName

MARK_KEY = "drservice.neutralized"
"""The row of ``ir_config_parameter`` that a neutralized database bears."""
ODOO_MARK_KEY = "database.is_neutralized"
"""The row with which Odoo itself says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neutralized:
    """One database that was neutralized, or why there was nothing to do."""

    component: ComponentName
    """The component with its documents."""
    database: str
    is_odoo: bool
    """``False``: it has no tables of Odoo's, and nothing was done."""
    scripts: tuple[str, ...] = ()
    """Modules whose own ``neutralize.sql`` was run."""
    without_code: tuple[str, ...] = ()
    """Installed modules whose code was nowhere at the backup: whether they have such a script nobody knows."""
    unknown: str | None = None
    """Why there are no scripts at all, if that is so."""
    changes: tuple[tuple[str, int], ...] = ()
    """What drservice itself did beyond the scripts: name of the statement, and rows."""
    passed_over: tuple[tuple[str, str], ...] = ()
    """Statements whose tables or columns this version of Odoo does not have: name, and what is missing."""
    http_actions: tuple[str, ...] = ()
    """Server actions that may call out by themselves; nothing switches them off."""
    other_databases: tuple[str, ...] = ()
    """Other databases of Odoo's in the cluster, which were not neutralized."""

    def problems(self) -> tuple[str, ...]:
        """Return what people should know, in sentences."""
        if not self.is_odoo:
            return ()
        told = []
        if self.unknown is not None:
            told.append(f"{self.database}: no scripts of the modules were run: {self.unknown}")
        if self.without_code:
            shown = ", ".join(self.without_code[:10])
            told.append(f"{self.database}: {len(self.without_code)} installed modules have no code here: {shown}")
        if self.other_databases:
            told.append(f"other databases of Odoo's were NOT neutralized: {', '.join(self.other_databases)}")
        return tuple(told)

    def as_json(self) -> dict[str, Json]:
        """Return it as the JSON contract spells it."""
        return {
            "component": self.component,
            "database": self.database,
            "is_odoo": self.is_odoo,
            "scripts": list(self.scripts),
            "without_code": list(self.without_code),
            "unknown": self.unknown,
            "changes": [{"statement": name, "rows": rows} for name, rows in self.changes],
            "passed_over": [{"statement": name, "missing": missing} for name, missing in self.passed_over],
            "http_actions": list(self.http_actions),
            "other_databases": list(self.other_databases),
        }
