"""The process pool of the hot byte path: one worker per core, started only when there is work for it.

Workers talk over pipes. A worker whose caller dies sees the end of its pipe and ends; a caller whose worker dies fails
the run. Small work is done inline, because starting an interpreter costs more than reading a few megabytes. A command
that expects work forks its workers before it does anything else (:func:`early_workers`).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, Protocol, TypeVar

from drservice.errors import DrError, WorkerDiedError

Request = TypeVar("Request")
Reply = TypeVar("Reply")
RequestIn_contra = TypeVar("RequestIn_contra", contravariant=True)
ReplyOut_co = TypeVar("ReplyOut_co", covariant=True)
_OUTSTANDING = 2


class Worker(Protocol[RequestIn_contra, ReplyOut_co]):
    """What runs in each process."""

    def work(self, tasks: RequestIn_contra, /) -> ReplyOut_co:
        """Do one batch."""
        ...

    def flush(self) -> ReplyOut_co:
        """Finish what is still open."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


@contextmanager
def without_cycle_collector() -> Iterator[None]:
    """Keep Python's cycle collector from looking through everything again and again while a million entries are made.

    What is dropped is freed at once all the same; only cycles wait for the end.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_inline(
    make: Callable[[str], Worker[Request, Reply]], batches: Iterable[Request]
) -> Iterator[tuple[int, Reply]]:
    """Do all batches in this process; yields (worker number, reply)."""
    worker = make("inline")
    try:
        for batch in batches:
            yield 0, worker.work(batch)
        yield 0, worker.flush()
    finally:
        worker.close()


_early: list[tuple[Connection, BaseProcess]] = []
"""Workers that wait for a pool."""


@contextmanager
def early_workers(count: int) -> Iterator[None]:
    """Keep workers at hand while the block runs: pools made in it take them before they start interpreters.

    They are forked from this process, so that they have loaded what it has. In a process with several threads none is
    made: a lock that another thread holds at that moment would stay locked in the worker for ever. Enter it before
    anything is opened: a worker has what is open here, and what it needs to know is sent to it as to any other.
    """
    context = multiprocessing.get_context("fork")
    for number in range(count if _has_one_thread() else 0):
        ours, theirs = context.Pipe()
        process: BaseProcess = context.Process(
            target=_wait_for_pool, args=(ours, theirs, f"worker-{number}"), daemon=True
        )
        process.start()
        theirs.close()
        _early.append((ours, process))
    try:
        yield
    finally:
        while _early:
            connection, process = _early.pop()
            connection.close()
            _end(process)


def _has_one_thread() -> bool:
    """Tell whether nothing else runs in this process, not even a library's thread that Python does not know."""
    return len(list(os.scandir("/proc/self/task"))) == 1


def _wait_for_pool(ours: Connection, theirs: Connection, name: str) -> None:
    """Run the worker that a pool asks for; without one the pipe ends, and so does this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ours.close()
    for connection, _ in _early:
        connection.close()  # or the worker before this one would not see it end
    _early.clear()
    try:
        make = theirs.recv()
    except EOFError:
        return
    _main(theirs, make, name)


class Pool(Generic[Request, Reply]):
    """Worker processes for one run."""

    def __init__(self, make: Callable[[str], Worker[Request, Reply]], workers: int) -> None:
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for number in range(workers):
            connection, process = _take_early(make) or _start(make, f"worker-{number}")
            self._connections.append(connection)
            self._processes.append(process)

    def run(self, batches: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """Do all batches, each worker two ahead, then flush; yields (worker number, reply) as they come.

        Raises:
            DrError: the first error of a worker, or WorkerDiedError.
        """
        source = iter(batches)
        outstanding = [0] * len(self._connections)
        for _ in range(_OUTSTANDING):
            for number in range(len(self._connections)):
                self._send_next(source, number, outstanding)
        while any(outstanding):
            for number, reply in self._receive(outstanding):
                self._send_next(source, number, outstanding)
                yield number, reply
        for number, connection in enumerate(self._connections):
            try:
                connection.send(None)
            except OSError as error:
                raise self._died(number) from error
            outstanding[number] = 1
        while any(outstanding):
            yield from self._receive(outstanding)

    def _send_next(self, source: Iterator[Request], number: int, outstanding: list[int]) -> None:
        batch = next(source, None)
        if batch is not None:
            try:
                self._connections[number].send(batch)
            except OSError as error:
                raise self._died(number) from error
            outstanding[number] += 1

    def _receive(self, outstanding: list[int]) -> Iterator[tuple[int, Reply]]:
        waiting = [self._connections[number] for number, count in enumerate(outstanding) if count]
        for ready in wait(waiting):
            number = self._connections.index(ready)  # type: ignore[arg-type]  # wait() returns what it was given
            try:
                reply = self._connections[number].recv()
            except (EOFError, OSError) as error:
                raise self._died(number) from error
            outstanding[number] -= 1
            if isinstance(reply, BaseException):
                raise reply
            yield number, reply

    def _died(self, number: int) -> WorkerDiedError:
        process = self._processes[number]
        process.join(5)
        return WorkerDiedError(f"worker process {process.pid} died (status {process.exitcode})")

    def close(self) -> None:
        """End all workers; what they had not flushed is dropped."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            _end(process)


def _take_early(make: Callable[[str], Worker[Request, Reply]]) -> tuple[Connection, BaseProcess] | None:
    """Give the work to a worker that waits for it; ``None`` if there is none that lives."""
    while _early:
        connection, process = _early.pop(0)
        try:
            connection.send(make)
        except OSError:  # somebody has killed it
            connection.close()
            _end(process)
        else:
            return connection, process
    return None


def _start(make: Callable[[str], Worker[Request, Reply]], name: str) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, make, name), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _end(process: BaseProcess) -> None:
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _main(connection: Connection, make: Callable[[str], Worker[Request, Reply]], name: str) -> None:
    """Run a worker until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the caller decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker: Worker[Request, Reply] | None = None
    problem: DrError | None = None
    try:
        try:
            worker = make(name)  # before there is work: opening a bucket takes as long as a checkpoint
        except DrError as error:
            problem = error
        while True:
            try:
                batch = connection.recv()
            except EOFError:
                return
            try:
                connection.send(problem or _done(worker, batch))
            except DrError as error:
                connection.send(error)
    except BrokenPipeError:
        return
    finally:
        if worker is not None:
            worker.close()


def _done(worker: Worker[Request, Reply] | None, batch: Request | None) -> Reply:
    assert worker is not None  # or there is a problem
    return worker.flush() if batch is None else worker.work(batch)
