"""Whether a recovered database is an Odoo that can work: its modules, and what is always true of a business's rows.

An invariant that production broke already is not held against the copy: it may have the offenders that production had
when the recovery point was made, and no others. That production has some is a warning of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from drservice.checks.business import ask_recovered, database_of, is_behind
from drservice.checks.filestore import documents_of
from drservice.checks.interface import (
    Finding,
    NotApplicable,
    RecoveredService,
    failed,
    listed,
    passed,
    unverified,
)
from drservice.components.odoo.gathering import (
    MODULES,
    Module,
    decode_modules,
    decode_offenders,
    odoo_key,
    read_imported,
    read_modules,
)
from drservice.components.odoo.invariants import INVARIANTS, Invariant, Offenders, find_offenders
from drservice.components.odoo.manifests import read_code, series_of
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking
from drservice.components.postgres.baseline import settle
from drservice.errors import UnansweredError
from drservice.model.checks import Baseline, BaselineValue
from drservice.model.estate import FilesSettings
from drservice.model.ids import ComponentName

_MODULES_SQL = "select name, state, latest_version, {settled} from public.ir_module_module order by name"
_ABSENT = frozenset({"uninstalled", "uninstallable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Odoo:
    """An open question to a recovered database that Odoo's documents follow."""

    source: Asking
    schema: OdooSchema
    database: str
    behind: Finding | None
    """Set if the copy ends before its baseline, which then says nothing."""
    baseline: Baseline | None

    def known(self, name: str) -> BaselineValue:
        """Return what production answered."""
        if self.baseline is None:
            return BaselineValue(value=None, problem="there is no recovery point with a baseline of this cluster")
        if self.behind is not None:
            return BaselineValue(value=None, problem=self.behind.detail)
        whole = self.baseline.problems.get(f"odoo:{self.database}")
        if whole is not None:
            return BaselineValue(value=None, problem=whole)
        return self.baseline.value(odoo_key(self.database, name))

    @property
    def why_not_odoo(self) -> NotApplicable | None:
        """Return why nothing of Odoo's can be asked here; ``None`` = it can be."""
        if self.schema.is_odoo:
            return None
        return NotApplicable(reason=f"database {self.database!r} has no table of Odoo's modules")


@contextmanager
def _asking(component: ComponentName, service: RecoveredService, seconds: float) -> Iterator[_Odoo]:
    documents = documents_of(service, component)
    if documents.follows is None or documents.database is None:
        raise UnansweredError(f"{component} follows no database")
    recovered = database_of(service, documents.follows)
    baseline = service.baselines.get(documents.follows)
    with ask_recovered(recovered, seconds=seconds, database=documents.database) as source, pinned(source):
        yield _Odoo(
            source=source,
            schema=read_schema(source),
            database=documents.database,
            behind=None if baseline is None else is_behind(recovered, baseline),
            baseline=baseline,
        )


def ask_invariant(
    invariant: Invariant, component: ComponentName, service: RecoveredService, seconds: float
) -> Finding | NotApplicable:
    """Ask who breaks an invariant in the copy and did not in production."""
    with _asking(component, service, seconds) as odoo:
        if odoo.why_not_odoo is not None:
            return odoo.why_not_odoo
        variant = invariant.variant(odoo.schema)
        if variant is None:
            return NotApplicable(reason=invariant.why_not(odoo.schema))
        found = find_offenders(odoo.source, variant)
        if not found.count:
            return passed(invariant.holds, value="0")
        return _compared(invariant, found, odoo.known(invariant.name))


def _compared(invariant: Invariant, found: Offenders, known: BaselineValue) -> Finding:
    told = f"{found.count} {invariant.broken}"
    shown = listed([*found.what.values()])
    if known.value is None:
        return unverified(f"{told}: {shown}; whether production has them is not known: {known.problem}")
    try:
        count, keys = decode_offenders(known.value)
    except ValueError as error:
        return unverified(f"{told}: {shown}; what production answered cannot be read: {error}")
    fresh = [what for key, what in found.what.items() if key not in keys]
    whole = len(keys) == count
    if fresh and whole:
        return failed(f"{told}, {count} in production; new: {listed(fresh)}", value=str(found.count))
    if found.count > count:
        return failed(f"{told}, {count} in production: {shown}", value=str(found.count))
    return passed(f"{told}, as in production: {shown}", value=str(found.count))


def ask_broken_in_production(
    component: ComponentName, service: RecoveredService, seconds: float
) -> Finding | NotApplicable:
    """Tell which invariants production itself broke when the recovery point was made, and which it was not asked."""
    with _asking(component, service, seconds) as odoo:
        if odoo.why_not_odoo is not None:
            return odoo.why_not_odoo
        broken: list[str] = []
        unasked: list[str] = []
        for invariant in INVARIANTS:
            if invariant.variant(odoo.schema) is None:
                continue
            known = odoo.known(invariant.name)
            if known.value is None:
                unasked.append(f"{invariant.name}: {known.problem}")
                continue
            count, _ = _read_offenders(known.value)
            if count:
                broken.append(f"{count} {invariant.broken}")
    told = "; ".join([*broken, *(f"not known of {text}" for text in _folded(unasked))])
    if broken:
        return failed(told, value=str(len(broken)))
    return unverified(told) if unasked else passed("production broke no invariant", value="0")


def _read_offenders(text: str) -> tuple[int, frozenset[str]]:
    try:
        return decode_offenders(text)
    except ValueError as error:
        raise UnansweredError(f"what production answered cannot be read: {error}") from error


def _folded(problems: Sequence[str]) -> list[str]:
    """Return problems, those with the same reason once."""
    by_reason: dict[str, list[str]] = {}
    for text in problems:
        name, _, reason = text.partition(": ")
        by_reason.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def ask_modules(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Compare states and versions of the modules with production's."""
    with _asking(component, service, seconds) as odoo:
        if odoo.why_not_odoo is not None:
            return odoo.why_not_odoo
        known = odoo.known(MODULES)
        if known.value is None or odoo.baseline is None:
            return unverified(f"the versions in production are not known: {known.problem}")
        try:
            before = decode_modules(known.value)
        except ValueError as error:
            return unverified(f"what production answered cannot be read: {error}")
        rows = odoo.source.scan(settle(_MODULES_SQL, odoo.baseline.snapshot_xmin))
        present = {
            str(name): (Module(state=state or "", version=version or ""), settled == "t")
            for name, state, version, settled in rows
        }
    return _compared_modules(before, present)


def _compared_modules(before: dict[str, Module], present: dict[str, tuple[Module, bool]]) -> Finding:
    """Compare; a row that was written again after the baseline may say something else."""
    wrong = [f"{name} is not there" for name in before if name not in present]
    later: list[str] = []
    for name, (module, settled) in present.items():
        if before.get(name) == module or (name not in before and module.state in _ABSENT):
            continue
        was = before.get(name, Module(state="uninstalled", version=""))
        told = f"{name} is {module.state} {module.version}, in production it was {was.state} {was.version}".strip()
        (wrong if settled else later).append(told)
    if wrong:
        return failed(f"{len(wrong)} of {len(before)} modules differ: {listed(wrong)}", value=str(len(wrong)))
    told = f"; {len(later)} were changed since: {listed(later)}" if later else ""
    return passed(f"{len(before)} modules have the versions of production{told}", value="0")


def ask_code(component: ComponentName, service: RecoveredService, seconds: float) -> Finding | NotApplicable:
    """Compare the code in the addons folders of this host with the versions that the database was upgraded to."""
    settings = service.service.components.get(component)
    folders = settings.addons if isinstance(settings, FilesSettings) else ()
    if not folders:
        return NotApplicable(reason="no folders with Odoo's modules are configured (addons)")
    with _asking(component, service, seconds) as odoo:
        if odoo.why_not_odoo is not None:
            return odoo.why_not_odoo
        modules = read_modules(odoo.source)
        imported = read_imported(odoo.source, odoo.schema)
    base = modules.get("base")
    series = series_of(base.version) if base is not None else None
    if series is None:
        return unverified("the database does not tell which Odoo it belongs to")
    wanted = {name: item.version for name, item in modules.items() if name not in imported}
    absent: list[str] = []
    other: list[str] = []
    for name, code in read_code(folders, wanted, series=series).items():
        if code.problem is not None:
            other.append(f"{name}: {code.problem}")
        elif code.version is None:
            absent.append(name)
        elif code.version != wanted[name]:
            other.append(f"{name} is {code.version}, in the database {wanted[name]}")
    if absent or other:
        return failed(
            f"of {len(wanted)} modules {len(absent)} have no code here ({listed(absent) or 'none'}),"
            f" {len(other)} have another version ({listed(other) or 'none'})",
            value=str(len(absent) + len(other)),
        )
    return passed(f"the code of {len(wanted)} modules has the versions of the database", value="0")
