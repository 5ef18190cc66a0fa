"""A backup keeps the scripts that neutralize a copy of Odoo, and refuses a source that is such a copy itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from drservice.components.odoo.gathering import read_modules
from drservice.components.odoo.modules import ATTACHMENT, collect_modules, encode_modules_record
from drservice.components.odoo.schema import OdooSchema, pinned, read_schema
from drservice.components.postgres.asking import Asking, asking
from drservice.errors import NeutralizedSourceError, PostgresError
from drservice.model.estate import FilesKind, FilesSettings, Service
from drservice.model.neutralized import MARK_KEY, ODOO_MARK_KEY

_SECONDS = 60.0
_MARKS_SQL = (
    "select key, value from public.ir_config_parameter"
    " where key in ('drservice.neutralized', 'database.is_neutralized') order by key"
)


def read_scripts(service: Service, component: FilesSettings) -> tuple[Mapping[str, bytes], tuple[str, ...]]:
    """Return what a snapshot of documents keeps of the modules of their database, and notes.

    A database that cannot be asked costs the snapshot its scripts and nothing else.
    """
    if component.kind is not FilesKind.ODOO_FILESTORE or not component.addons:
        return {}, ()
    try:
        with _asking(service, component) as (source, schema):
            if not schema.is_odoo:
                return {}, (f"{component.database} has no modules of Odoo's: no scripts to neutralize a copy are kept",)
            modules = read_modules(source)
    except PostgresError as error:
        return {}, (f"no scripts to neutralize a copy are kept, nobody could tell the modules: {error.message}",)
    absent = tuple(f"{folder} (addons) is no folder" for folder in component.addons if not folder.is_dir())
    record = collect_modules(component.addons, modules)
    return {ATTACHMENT: encode_modules_record(record)}, (*absent, *record.notes())


def require_production(service: Service, component: FilesSettings) -> tuple[str, ...]:
    """Refuse to back up a neutralized copy as if it were production; return what nobody could tell, as notes.

    A database that cannot be asked is no reason to have no backup.

    Raises:
        NeutralizedSourceError: it bears the mark.
    """
    if component.kind is not FilesKind.ODOO_FILESTORE:
        return ()
    try:
        marks = read_marks(service, component)
    except PostgresError as error:
        return (f"nobody could tell whether {component.database} is a neutralized copy: {error.message}",)
    if MARK_KEY in marks:
        raise NeutralizedSourceError(
            f"{component.database} is a neutralized copy, made in environment {marks[MARK_KEY][:60]}"
        )
    return ()


def accidentally_neutralized(marks: Mapping[str, str]) -> str | None:
    """Return what is wrong with a production database that bears a mark; ``None``: it bears none."""
    if MARK_KEY in marks:
        return f"it is a neutralized copy, made in environment {marks[MARK_KEY][:60]}"
    if marks.get(ODOO_MARK_KEY, "").strip().lower() in {"true", "t", "1"}:
        return "Odoo says that it was neutralized: no mail is sent, and no scheduled action runs"
    return None


def read_marks(service: Service, component: FilesSettings) -> dict[str, str]:
    """Return the marks that the database of Odoo's documents bears, by key.

    Raises:
        PostgresError: it cannot be asked.
    """
    with _asking(service, component) as (source, schema):
        if not schema.has("ir_config_parameter", "key", "value"):
            return {}
        return {str(key): value or "" for key, value in source.scan(_MARKS_SQL)}


@contextmanager
def _asking(service: Service, component: FilesSettings) -> Iterator[tuple[Asking, OdooSchema]]:
    dsn = service.database(component.follows).dsn
    with (
        asking(dsn, seconds=_SECONDS, database=component.database, application_name="drservice modules") as source,
        pinned(source),
    ):
        yield source, read_schema(source)
