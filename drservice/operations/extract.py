"""``extract``: one database, or tables of it, as of an instant, as a file that can be loaded anywhere.

A side restore of that database, ``pg_dump`` inside the environment, and the file read back there before it gets its
name. The environment is destroyed whatever happens, and the outcome is put on record like that of other restores: it
proves nothing about the databases that were left out, so it is never recorded as a whole recovery.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from drservice.canonical import Json
from drservice.components.postgres.asking import asking
from drservice.components.postgres.connection import connect
from drservice.components.postgres.dumping import (
    Contents,
    DumpFormat,
    TableName,
    begun_tables,
    dump_arguments,
    entries_of,
    is_complete_sql,
    missing_tables,
    only_tables,
    plain_problems,
    table_begun,
    whole_database,
)
from drservice.components.postgres.server import PostgresPrograms, find_programs, require_tool
from drservice.environments.interface import Environment
from drservice.environments.sandbox import open_sandbox
from drservice.errors import (
    DrError,
    DumpError,
    ExitStatus,
    InterruptedRunError,
    ProgramVersionError,
    UsageError,
)
from drservice.model.documents import RowsAt
from drservice.model.estate import FilesSettings
from drservice.model.evidence import EvidenceKind
from drservice.model.ids import EnvironmentId, make_ulid
from drservice.operations.evidence import Evidence
from drservice.operations.filesrestore import FilesRestore, RestoredFiles
from drservice.operations.odoozip import (
    DUMP,
    OdooFacts,
    OdooZip,
    ZipMember,
    filestore_of,
    manifest_of,
    read_back,
    read_facts,
)
from drservice.operations.outputfile import OutputFile, require_free
from drservice.operations.records import bounded, recovery_fields, target_fields
from drservice.operations.restore import instant_of_files, run_restore
from drservice.operations.restorerequest import RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.servicerestore import reached_fields, recovered_fields, subjects_of

_STALL_SECONDS = 900.0
_ASK_SECONDS = 600.0
_LISTING_BYTES = 64 << 20
_HEARD_LINES = 20
_SAID_LETTERS = 400
_SHOWN = 10
_TOOL = "pg_dump"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractRequest:
    """What is asked for."""

    restore: RestoreRequest
    """A side restore that is left running inside its environment: with ``database``, without ``into`` and files."""
    tables: tuple[TableName, ...]
    """None: the whole database."""
    output: Path
    form: DumpFormat
    accept_problems: bool = False
    """Write plain SQL with a ``pg_dump`` whose plain dumps are known to be dangerous to load."""

    def describe(self) -> str:
        """Return what is extracted, in words."""
        tables = f", {', '.join(table.text for table in self.tables)}" if self.tables else ""
        return f"{self.restore.target.describe()} (extract of database {self.restore.database}{tables})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumped:
    """A dump that was read back whole."""

    tables: tuple[str, ...]
    """Whose rows are in it."""
    entries: int | None
    """How many entries its table of contents has; ``None`` for plain SQL."""
    stored_bytes: int
    sha256: str
    lacks: tuple[str, ...]
    """What the tables need that has to be there where they are loaded."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractResult:
    """What an extract brought."""

    run: str
    restored: RestoreResult
    request: ExtractRequest
    database: str
    dumped: Dumped
    problems: tuple[str, ...]
    """Known problems of the programs that wrote it."""
    documents: RestoredFiles | None = None
    """What of the filestore is in it; ``None`` without documents."""

    @property
    def is_partial(self) -> bool:
        """Whether documents that the rows refer to are not in it."""
        return self.documents is not None and bool(self.documents.problems())

    @property
    def load_command(self) -> str:
        """The command that loads it elsewhere, with no more rights than those of the role that runs it."""
        path = shlex.quote(str(self.request.output))
        if self.request.form is DumpFormat.ODOO_ZIP:
            return f"odoo-bin db load TARGET {path}"
        if self.request.form is DumpFormat.CUSTOM:
            return f"pg_restore --no-owner --no-privileges --single-transaction --exit-on-error --dbname=TARGET {path}"
        return f"psql --no-psqlrc --set=ON_ERROR_STOP=1 --single-transaction --dbname=TARGET --file={path}"


def extract(context: RestoreContext, evidence: Evidence, request: ExtractRequest) -> ExtractResult:
    """Bring one database back to a target in isolation, dump it (or tables of it) to a file, and destroy the rest.

    Nothing is under the output's name before the dump was read back whole. What failed is on record, too, unless
    nothing was begun.

    Raises:
        OutputTakenError: there is a file of this name; nothing was begun.
        ProgramVersionError: ``pg_dump`` is of a version that must not write this; nothing was begun.
        UnknownNameError: there is no such database or table; the hint names those there are.
        UsageError: a zip for Odoo of tables, of a database without a filestore, or of one that is not Odoo's.
        DumpError, OutputFileError: there is no dump.
        And as :func:`run_restore`.
    """
    run = make_ulid(context.clock.now(), os.urandom(10))
    begun: list[EnvironmentId] = []
    request = replace(request, restore=replace(request.restore, made=begun.append))
    try:
        result = _extract(context, request, run)
    except DrError as error:
        if begun or error.exit_status is not ExitStatus.USAGE:
            _record_failure(context, evidence, request, run, error)
        raise
    except KeyboardInterrupt:
        _record_failure(context, evidence, request, run, InterruptedRunError("the extract was interrupted"))
        raise
    restored = result.restored
    fields: dict[str, Json] = {
        **recovered_fields(restored, rto_seconds=restored.rto_seconds + result.dumped.seconds),
        "outcome": "partial",
        "target": {**reached_fields(restored), "requested": bounded(request.describe())},
    }
    evidence.record(
        EvidenceKind.RESTORE,
        service=request.restore.service.name,
        run=run,
        subject=subjects_of(restored),
        fields=fields,
        progress=context.progress,
    )
    return result


def _record_failure(
    context: RestoreContext, evidence: Evidence, request: ExtractRequest, run: str, error: DrError
) -> None:
    evidence.record(
        EvidenceKind.RESTORE,
        service=request.restore.service.name,
        run=run,
        subject=[],
        fields={
            "outcome": "failed",
            "target": target_fields(
                requested=request.describe(),
                kind=request.restore.target.kind.value,
                reached_time=None,
                reached_lsn=None,
                timeline=None,
            ),
            **recovery_fields(error=error),
        },
        progress=context.progress,
    )


def _extract(context: RestoreContext, request: ExtractRequest, run: str) -> ExtractResult:
    require_free(request.output)
    filestore = _filestore(request)
    _require_safe_for_newest(context, request)
    restored = run_restore(context, request.restore)
    environment = open_sandbox(restored.environment.path)
    try:
        assert restored.side is not None, "a side restore was asked for"
        programs = _programs(restored.programs.major)
        _require_safe(programs, request)
        dumping = _Dumping(context, environment, programs, restored.side.database, request)
        documents = _place_documents(context, request, restored, environment, filestore) if filestore else None
        with OutputFile(request.output) as output:
            dumped = dumping.run(output) if documents is None else _write_zip(context, dumping, output, documents)
            output.publish()
    finally:
        context.progress.step("destroy the environment")
        environment.destroy()
    context.progress.done()
    return ExtractResult(
        run=run,
        restored=restored,
        request=request,
        database=restored.side.database,
        dumped=dumped,
        problems=tuple(item.describe(programs.major) for item in programs.problems(_TOOL)),
        documents=documents,
    )


def _filestore(request: ExtractRequest) -> FilesSettings | None:
    """Return whose documents go into the zip; ``None`` for other formats.

    Raises:
        UsageError: tables only, or the configuration has no filestore for the database.
    """
    if request.form is not DumpFormat.ODOO_ZIP:
        return None
    if request.tables:
        raise UsageError("a zip for Odoo has the whole database", hint="Use --format custom with --table.")
    assert request.restore.database is not None
    return filestore_of(request.restore.service, request.restore.component.name, request.restore.database)


def _place_documents(
    context: RestoreContext,
    request: ExtractRequest,
    restored: RestoreResult,
    environment: Environment,
    filestore: FilesSettings,
) -> RestoredFiles:
    """Place what the recovered rows refer to in the environment, from where it goes into the zip."""
    assert restored.side is not None
    plan = restored.planned.resolved.plan
    files = FilesRestore(repository=context.repository, service=request.restore.service, progress=context.progress)
    return files.beside(
        environment,
        replace(filestore, database=restored.side.database),  # it may have had another name at that time
        instant=instant_of_files(restored.planned, restored.reached),
        rows=RowsAt(
            system_id=plan.snapshot.postgres.system_id,
            timeline=plan.timeline,
            lsn=restored.reached.lsn,
            instant=restored.reached.time or plan.snapshot.stopped_at,
        ),
        into=environment.folder(filestore.name) / "documents",
    )


def _write_zip(context: RestoreContext, dumping: _Dumping, output: OutputFile, documents: RestoredFiles) -> Dumped:
    """Write dump, documents and manifest as Odoo's restore wants them, and read the zip back."""
    began = context.clock.monotonic()
    facts = dumping.odoo_facts()
    with OdooZip(output) as archive:
        archive.add_manifest(manifest_of(facts, dumping.database))
        with archive.member(DUMP) as member:
            dumped = dumping.run(member)
        context.progress.step("write the documents", total_bytes=documents.written_bytes)
        count = archive.add_documents(documents.root, heard=context.progress.advance)
    if count != documents.files:
        raise DumpError(f"{count} documents were found, and {documents.files} were placed")
    context.progress.step("read the zip back", total_bytes=output.written_bytes)
    read_back(output, archive.members)
    return replace(
        dumped,
        stored_bytes=output.written_bytes,
        sha256=output.sha256,
        seconds=context.clock.monotonic() - began,
    )


def _programs(major: int) -> PostgresPrograms:
    """Return the programs of the server's own version, with what reads and writes dumps among them.

    Raises:
        ProgramMissingError, ProgramVersionError: they are not installed.
    """
    found = find_programs(major)
    return require_tool(_TOOL, server=major, directory=found.directory)


def _require_safe_for_newest(context: RestoreContext, request: ExtractRequest) -> None:
    """Ask before hours of work what would be refused behind them; nearly always all snapshots are of one version."""
    scope = context.repository.scope(request.restore.service.name, request.restore.component.name)
    records = context.repository.snapshots(scope).records
    if records:
        _require_safe(_programs(records[-1].postgres.server_version), request)


def _require_safe(programs: PostgresPrograms, request: ExtractRequest) -> None:
    """Refuse to write plain SQL that a hostile origin may have got commands for psql into.

    Raises:
        ProgramVersionError: naming what is known of this version.
    """
    if request.form is DumpFormat.CUSTOM or request.accept_problems:
        return
    problems = plain_problems(programs.major, programs.minor)
    if problems:
        raise ProgramVersionError(
            f"{_TOOL} {programs.major}.{programs.minor} must not write plain SQL here:"
            f" {'; '.join(item.describe(programs.major) for item in problems)}",
            hint="Use --format custom (pg_restore runs none of psql's commands), or install the fixed version. Who"
            " trusts every superuser that the database ever had may give --accept-known-problems.",
        )


class _Dumping:
    """One dump out of one environment."""

    def __init__(
        self,
        context: RestoreContext,
        environment: Environment,
        programs: PostgresPrograms,
        database: str,
        request: ExtractRequest,
    ) -> None:
        self._context = context
        self._environment = environment
        self._programs = programs
        self.database = database
        self._request = request
        self._heard: deque[str] = deque(maxlen=_HEARD_LINES)
        self._begun: list[str] = []

    def odoo_facts(self) -> OdooFacts:
        """Ask the database what Odoo's manifest tells of it.

        Raises:
            UsageError: it is none of Odoo's.
        """
        self._environment.require_own_socket()
        with asking(
            self._environment.dsn,
            seconds=_ASK_SECONDS,
            database=self.database,
            application_name="drservice extract",
        ) as session:
            return read_facts(session)

    def run(self, output: OutputFile | ZipMember) -> Dumped:
        """Write the dump and, if it is an archive of its own, read it back.

        Raises:
            UnknownNameError, UsageError: a table that was asked for is none.
            DumpError, OutputFileError: there is no whole dump.
        """
        began = self._context.clock.monotonic()
        contents = self._contents()
        self._write(contents, output)
        if self._request.form is DumpFormat.CUSTOM and isinstance(output, OutputFile):
            entries, there = self._read_back(output)
        else:
            entries, there = None, begun_tables(contents, self._begun)
        if entries is None and not is_complete_sql(output.tail):
            raise DumpError("the dump does not end where pg_dump ends one")
        missing = missing_tables(contents, there)
        if missing:
            raise DumpError(f"the dump lacks the rows of {', '.join(missing[:_SHOWN])}")
        return Dumped(
            tables=tuple(item.table.text for item in contents.tables),
            entries=entries,
            stored_bytes=output.written_bytes,
            sha256=output.sha256 if isinstance(output, OutputFile) else "",
            lacks=contents.lacks,
            seconds=self._context.clock.monotonic() - began,
        )

    def _contents(self) -> Contents:
        self._environment.require_own_socket()
        with connect(self._environment.dsn, application_name="drservice extract", database=self.database) as session:
            tables = self._request.tables
            return only_tables(session, tables) if tables else whole_database(session)

    def _write(self, contents: Contents, output: OutputFile | ZipMember) -> None:
        progress = self._context.progress
        progress.step("dump", total_bytes=contents.total_bytes)
        sizes = {item.table.told: item.bytes_on_disk for item in contents.tables}

        def hear(line: str) -> None:
            self._heard.append(line)
            table = table_begun(line)
            if table is not None:
                # One table is read after the other: the one before is done.
                progress.advance(sizes.pop(self._begun[-1], 0) if self._begun else 0)
                self._begun.append(table)

        arguments = dump_arguments(self.database, self._request.form, contents)
        self._run(_TOOL, arguments, take=output.write, hear=hear)

    def _read_back(self, output: OutputFile) -> tuple[int, frozenset[int]]:
        """Read the archive as whoever loads it will, to its end; return its entries and the tables with rows."""
        self._context.progress.step("read the dump back", total_bytes=output.written_bytes)
        listing = bytearray()

        def take(piece: bytes) -> None:
            if len(listing) + len(piece) > _LISTING_BYTES:
                raise DumpError("the table of contents of the dump is too large to be one")
            listing.extend(piece)

        self._run("pg_restore", ["--list"], take=take, hear=self._heard.append, source=output.reread())
        self._run("pg_restore", ["--file=-"], take=lambda _: None, hear=self._heard.append, source=output.reread())
        return entries_of(listing.decode("utf-8", "replace"))

    def _run(
        self,
        program: str,
        arguments: list[str],
        *,
        take: Callable[[bytes], object],
        hear: Callable[[str], object],
        source: BinaryIO | None = None,
    ) -> None:
        path = str(self._programs.path(program))
        status = self._environment.stream(
            [path, *arguments], take=take, hear=hear, source=source, stall_seconds=_STALL_SECONDS
        )
        if status != 0:
            said = next((line for line in reversed(self._heard) if "error" in line), None)
            raise DumpError(f"{program} ended with {status}: {(said or ' '.join(self._heard))[-_SAID_LETTERS:]}")
