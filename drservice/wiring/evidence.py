"""The ledger of evidence from settings, store and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from drservice.errors import KeyProblemError
from drservice.evidence.anchoring import AnchorPlace
from drservice.evidence.ledger import Ledger
from drservice.evidence.policy import LedgerPolicy, LogKey, RecordKey
from drservice.evidence.signing import Signer, load_log_key
from drservice.model.evidence import ledger_origin
from drservice.objectstore.opening import open_store
from drservice.operations.evidence import Evidence
from drservice.repository.hostkey import host_name, load_host_key
from drservice.wiring.data_plane import DataPlane


@contextmanager
def open_evidence(plane: DataPlane) -> Iterator[Evidence]:
    """Open the ledger for appending and reading; no anchor is looked at, and no checkpoint may be signed.

    Raises:
        LogKeyError, KeyProblemError: a key file is there and unusable.
    """
    yield _evidence(plane, ())


@contextmanager
def open_anchored_evidence(plane: DataPlane) -> Iterator[Evidence]:
    """Open the ledger together with the stores that hold its anchors.

    Raises:
        LogKeyError, KeyProblemError: a key file is there and unusable.
        ObjectStoreError, ConfigurationError: an anchor's store cannot be opened: nothing may be signed without a look.
    """
    with ExitStack() as stack:
        places: list[AnchorPlace] = []
        for anchor in plane.estate.evidence.anchors:
            store = open_store(anchor.url, lock_dir=plane.estate.state_dir / "run", settings=anchor.store)
            stack.callback(store.close)
            places.append(AnchorPlace(anchor.name, store))
        yield _evidence(plane, tuple(places))


def ledger_policy(plane: DataPlane, log: Signer | None) -> LedgerPolicy:
    """Return whose records and checkpoints are believed: signers and log keys, configured and our own."""
    origin = ledger_origin(plane.repository.id)
    keys = dict.fromkeys((*plane.estate.evidence.log_keys, *([log.public_key] if log is not None else [])))
    return LedgerPolicy(
        log_keys=tuple(LogKey(name=origin, public_key=key) for key in keys),
        executors=tuple(
            RecordKey(name=signer.name, public_key=signer.public_key, services=signer.services)
            for signer in plane.repository.trust.signers
        ),
    )


def _evidence(plane: DataPlane, places: tuple[AnchorPlace, ...]) -> Evidence:
    state_dir = plane.estate.state_dir
    origin = ledger_origin(plane.repository.id)
    log = load_log_key(state_dir, origin)
    executor, problem = _executor(plane)
    return Evidence(
        repository=plane.repository.id,
        ledger=Ledger(
            plane.repository.store,
            origin=origin,
            policy=ledger_policy(plane, log),
            state_dir=state_dir,
            clock=plane.clock,
            executor=executor,
            log=log,
            anchors=places,
        ),
        host=executor.name if executor is not None else host_name(),
        clock=plane.clock,
        signer=executor if problem is None else None,
        problem=problem,
        holds_log_key=log is not None,
    )


def _executor(plane: DataPlane) -> tuple[Signer | None, str | None]:
    """Return the key this host signs records with, or why nobody would believe it."""
    try:
        key = plane.repository.host_key
    except KeyProblemError as error:
        own = load_host_key(plane.estate.state_dir)
        return (Signer(own.host, own.private_key) if own is not None else None), error.message
    return Signer(key.host, key.private_key), None
