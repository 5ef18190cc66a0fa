"""Intake: files are cut into ranges, and what workers answer is put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from drservice.errors import CaptureError
from drservice.repository.capture import (
    CaptureWorker,
    PageCheck,
    PreviousPart,
    RangeResult,
    RangeState,
    RangeTask,
    WorkerReply,
)
from drservice.repository.chunktable import LEAF_CHUNKS, ChunkTable, TableBuilder
from drservice.repository.nodes import Entry, EntryKind, FileIdentity
from drservice.repository.staging import FileAssembly

_BATCH_BYTES = 8 << 20
_BATCH_FILES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to capture: path in the snapshot, path on this host, and how it was listed."""

    path: bytes
    absolute: str
    mode: int
    size: int
    chunk_bytes: int
    identity: FileIdentity
    check: PageCheck | None = None


class Intake:
    """Takes the workers' replies and finishes files as soon as all their packs have names."""

    def __init__(self, *, on_file: Callable[[FileAssembly], None], on_pack: Callable[[bytes, int], None]) -> None:
        self._on_file = on_file
        self._on_pack = on_pack
        self._assemblies: dict[int, FileAssembly] = {}
        self._names: dict[tuple[int, int], bytes] = {}
        self._unresolved: list[tuple[int, RangeResult]] = []

    def expect(self, source: SourceFile, *, first_task: int, tasks: int) -> None:
        """Announce a file and the numbers of its parts."""
        assembly = FileAssembly(
            path=source.path,
            mode=source.mode,
            chunk_bytes=source.chunk_bytes,
            first_task=first_task,
            tasks=tasks,
        )
        for number in range(first_task, first_task + tasks):
            self._assemblies[number] = assembly

    def accept(self, worker: int, reply: WorkerReply) -> None:
        """Take one reply of one worker."""
        for pack in reply.closed:
            self._names[worker, pack.token] = pack.name
            self._on_pack(pack.name, pack.stored_bytes)
        self._unresolved.extend((worker, result) for result in reply.results)
        still: list[tuple[int, RangeResult]] = []
        for origin, result in self._unresolved:
            table = self._resolve(origin, result)
            if table is None:
                still.append((origin, result))
            else:
                self._settle(result, table)
        self._unresolved = still

    def _resolve(self, worker: int, result: RangeResult) -> ChunkTable | None:
        packs: list[bytes] = []
        for token in result.packs:
            name = token if isinstance(token, bytes) else self._names.get((worker, token))
            if name is None:
                return None
            packs.append(name)
        return ChunkTable(packs, result.rows)

    def _settle(self, result: RangeResult, table: ChunkTable) -> None:
        assembly = self._assemblies.pop(result.number)
        assembly.results[result.number] = result
        assembly.tables[result.number] = table
        if assembly.is_complete():
            self._on_file(assembly)

    def require_empty(self) -> None:
        """Check that nothing is left over.

        Raises:
            CaptureError: a part was never answered.
        """
        if self._assemblies:
            paths = {assembly.path for assembly in self._assemblies.values()}
            raise CaptureError(f"{len(paths)} files were not read to their end")


class StreamCapture:
    """Captures files that arrive one after the other (a tar stream), in this process."""

    def __init__(self, *, intake: Intake, worker: CaptureWorker, previous: Callable[[bytes], Entry | None]) -> None:
        self._intake = intake
        self._worker = worker
        self._previous = previous
        self._next = 0
        self.read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None:
                self._intake.accept(0, self._worker.flush())
                self._intake.require_empty()
        finally:
            self._worker.close()

    def file(self, source: SourceFile, pieces: Iterator[memoryview]) -> None:
        """Capture one file from pieces that are multiples of the chunk size (but for the last).

        Raises:
            CaptureError: the stream ended early.
        """
        ranges = plan_ranges(source, self._previous(source.path), first=self._next)
        self._next += len(ranges)
        self._intake.expect(source, first_task=ranges[0].number, tasks=len(ranges))
        carried = memoryview(b"")
        for task in ranges:
            table = TableBuilder()
            known = self._worker.previous(task.previous)
            done = 0
            while done < task.length:
                data = carried if carried.nbytes else next(pieces, memoryview(b""))
                if not data.nbytes:
                    raise CaptureError(f"the stream ended inside {source.path.decode('utf-8', 'replace')}")
                data, carried = data[: task.length - done], data[task.length - done :]
                self._worker.encode(
                    data, chunk_bytes=task.chunk_bytes, previous=known, index=done // task.chunk_bytes, table=table
                )
                done += len(data)
            result = RangeResult(
                number=task.number,
                state=RangeState.READ,
                packs=tuple(table.packs),
                rows=table.rows(),
                plain_bytes=done,
            )
            self.read_bytes += done
            self._intake.accept(0, WorkerReply(results=(result,), closed=()))
        self._intake.accept(0, self._worker.work(()))


def plan_ranges(source: SourceFile, previous: Entry | None, *, first: int) -> list[RangeTask]:
    """Cut a file into ranges of at most 1,024 chunks, each with its place in the last snapshot."""
    span = LEAF_CHUNKS * source.chunk_bytes
    comparable = previous is not None and previous.kind is EntryKind.FILE and previous.chunk_bytes == source.chunk_bytes
    tasks: list[RangeTask] = []
    for index, offset in enumerate(range(0, max(source.size, 1), span)):
        part: PreviousPart | None = None
        if comparable and previous is not None:
            if previous.leaves and index < len(previous.leaves):
                part = PreviousPart(leaf=previous.leaves[index].node_id)
            elif previous.inline is not None and index == 0:
                part = PreviousPart(table=previous.inline)
        tasks.append(
            RangeTask(
                number=first + index,
                path=source.absolute,
                offset=offset,
                length=min(span, source.size - offset),
                chunk_bytes=source.chunk_bytes,
                previous=part,
                check=source.check,
            )
        )
    return tasks


def plan_batches(tasks: Sequence[RangeTask]) -> list[Sequence[RangeTask]]:
    """Group ranges into batches, largest first, so that no worker is left with a big one at the end."""
    batches: list[Sequence[RangeTask]] = []
    current: list[RangeTask] = []
    size = 0
    for task in sorted(tasks, key=lambda task: -task.length):
        current.append(task)
        size += task.length
        if size >= _BATCH_BYTES or len(current) >= _BATCH_FILES:
            batches.append(current)
            current, size = [], 0
    if current:
        batches.append(current)
    return batches
