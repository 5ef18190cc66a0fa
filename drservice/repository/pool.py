"""The process pool of the hot byte path: one worker per core, started only when there is work for it.

Workers talk over pipes. A worker whose caller dies sees the end of its pipe and ends; a caller whose worker dies fails
the run. Small work is done inline, because starting an interpreter costs more than reading a few megabytes.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
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


class Pool(Generic[Request, Reply]):
    """Worker processes for one run."""

    def __init__(self, make: Callable[[str], Worker[Request, Reply]], workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(theirs, make, f"worker-{number}"), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
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
