"""The two streams of the production host in the demo: WAL as it is written, documents as they are filed.

They are the real programs, ``drservice wal stream`` and ``drservice documents stream``, and they are believed for what
they say of themselves only until the machine dies: then it is counted what was lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from drservice.cli import demosite
from drservice.cli.demonodes import NodeProgram
from drservice.cli.demostory import Story
from drservice.cli.formatting import format_seconds
from drservice.errors import DrError
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.wal import Lsn
from drservice.operations import documentstate, streamstate
from drservice.operations.documentstate import DocumentPhase, DocumentState
from drservice.operations.streamstate import StreamPhase, StreamState

_SERVICE = ServiceName(demosite.SERVICE)
_DATABASE, _DOCUMENTS = ComponentName("database"), ComponentName("documents")
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Both streams. What a stream of an earlier day has left behind is still true, and does not count as its start."""

    site: demosite.Site
    wal: NodeProgram
    documents: NodeProgram

    def wal_state(self) -> StreamState | None:
        """Return what the receiver said last."""
        return streamstate.read_state(self.site.folder / "host", _SERVICE, _DATABASE)

    def document_state(self) -> DocumentState | None:
        """Return what the capture of documents said last."""
        return documentstate.read_state(self.site.folder / "host", _SERVICE, _DOCUMENTS)

    def durable_wal(self) -> Lsn | None:
        """Return up to where the WAL is durable."""
        state = self.wal_state()
        return state.durable_lsn if state is not None else None

    def durable_documents(self) -> datetime | None:
        """Return up to when, by this machine's clock, every document is durable whose row was committed."""
        state = self.document_state()
        return state.looked_at if state is not None else None

    def start(self) -> None:
        """Start both and wait until WAL arrives and no document is missing.

        Raises:
            DrError: one ended, or is not there within a minute; with its last words.
        """
        began = datetime.now(UTC)
        self.wal.launch()
        self.documents.launch()
        deadline = time.monotonic() + _READY_SECONDS
        while not (self._wal_runs(began) and self._documents_run(began)):
            self.require_running()
            if time.monotonic() > deadline:
                raise DrError(f"the streams did not begin: {self.wal.last_words()} / {self.documents.last_words()}")
            time.sleep(_POLL_SECONDS)

    def require_running(self) -> None:
        """Return if both are at work.

        Raises:
            DrError: one has ended; with its last words.
        """
        for program in (self.wal, self.documents):
            if program.has_ended:
                raise DrError(f"`drservice {' '.join(program.argv[-3:])}` has ended: {program.last_words()}")

    def kill(self) -> None:
        """End both without warning."""
        self.documents.kill()
        self.wal.kill()

    def stop(self) -> None:
        """Let both end; what was killed is fine."""
        self.documents.stop()
        self.wal.stop()

    def _wal_runs(self, began: datetime) -> bool:
        state = self.wal_state()
        return (
            state is not None
            and state.updated_at >= began
            and state.state is StreamPhase.STREAMING
            and state.durable_lsn is not None
        )

    def _documents_run(self, began: datetime) -> bool:
        state = self.document_state()
        return state is not None and state.updated_at >= began and state.state is DocumentPhase.STREAMING


@contextmanager
def streaming(site: demosite.Site, story: Story) -> Iterator[Streams]:
    """Stream the plant's WAL and documents while the block runs, or until they are killed."""
    program = demosite.program(site)
    streams = Streams(
        site=site,
        wal=NodeProgram(argv=[*program, "wal", "stream", demosite.SERVICE], log=site.folder / "stream.log"),
        documents=NodeProgram(
            argv=[*program, "documents", "stream", demosite.SERVICE], log=site.folder / "documents.log"
        ),
    )
    story.chapter("WAL and documents, as they come")
    story.line(f"$ drservice wal stream {demosite.SERVICE} &")
    story.line(f"$ drservice documents stream {demosite.SERVICE} &")
    mark = time.monotonic()
    try:
        streams.start()
        story.line(
            "WAL is in the repository a moment after it is written, documents seconds after"
            f" their commit ({format_seconds(time.monotonic() - mark)})"
        )
        yield streams
    finally:
        streams.stop()
