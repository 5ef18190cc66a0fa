"""Evidence bundles for download and for a look: made by the data plane, one at a time, in a folder that goes again.

The only place where a web process opens the repository, and it reads the ledger only: no endpoint touches what was
backed up.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drservice.errors import BusyError, InvalidRequestError
from drservice.evidence.report import Period
from drservice.evidence.verification import VerificationError, lines_of, verify_bundle
from drservice.model.estate import Estate
from drservice.model.ids import ServiceName
from drservice.operations.evidenceexport import default_period, export_bundle
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_anchored_evidence

_AT_WORK = threading.Lock()
"""A bundle reads the whole ledger and sets a report: people decide how many are asked for, this how many are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle in a folder of its own, which the caller removes."""

    path: Path
    manifest_sha256: str

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the verifier that every bundle carries says."""

    verified: bool
    manifest_sha256: str
    lines: tuple[str, ...]
    """Its output; of a failure, the first thing that is wrong."""


def period_of(begin: datetime | None, end: datetime | None, now: datetime) -> Period:
    """Return the period of a report: what was asked for, else the last quarter.

    Raises:
        InvalidRequestError: it ends before it begins.
    """
    default = default_period(now)
    until = end or default.end
    since = begin or min(default.begin, until - timedelta(days=1))
    if since >= until:
        raise InvalidRequestError("the period ends before it begins")
    return Period(begin=since, end=until)


def make_bundle(estate: Estate, *, begin: datetime | None, end: datetime | None, service: ServiceName | None) -> Bundle:
    """Make a bundle; a new checkpoint is signed first where the log key is.

    Raises:
        BusyError: another one is being made.
        EvidenceExportError, LedgerError, KeyProblemError, ObjectStoreError, RepositoryError: there is none to be had.
    """
    with _one_at_a_time():
        folder = Path(tempfile.mkdtemp(prefix="drservice-bundle-"))
        try:
            with open_data_plane(estate) as plane, open_anchored_evidence(plane) as evidence:
                now = plane.clock.now()
                period = period_of(begin, end, now)
                if evidence.holds_log_key:
                    evidence.seal()
                built = export_bundle(
                    evidence,
                    estate,
                    target=folder / f"evidence-{now:%Y%m%d-%H%M%S}.zip",
                    period=period,
                    service=service,
                )
        except BaseException:
            shutil.rmtree(folder)
            raise
        return Bundle(path=built.path, manifest_sha256=built.manifest_sha256)


def verify_now(estate: Estate) -> Verdict:
    """Make a bundle and let the stand-alone verifier judge it.

    Raises:
        BusyError and others: as for :func:`make_bundle`; a bundle that does not verify is a verdict and no error.
    """
    bundle = make_bundle(estate, begin=None, end=None, service=None)
    try:
        verified = verify_bundle(bundle.path)
    except VerificationError as error:
        return Verdict(verified=False, manifest_sha256=bundle.manifest_sha256, lines=(str(error),))
    finally:
        bundle.remove()
    return Verdict(verified=True, manifest_sha256=bundle.manifest_sha256, lines=tuple(lines_of(verified)))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    if not _AT_WORK.acquire(blocking=False):
        raise BusyError("another evidence bundle is being made", hint="Try again in a minute.")
    try:
        yield
    finally:
        _AT_WORK.release()
