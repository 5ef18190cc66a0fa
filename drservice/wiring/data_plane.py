"""The data plane: settings, object store and key, and nothing else. Reaches no catalogue, queue or web."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from drservice.clock import Clock, SystemClock
from drservice.errors import ConfigurationError
from drservice.model.estate import Estate
from drservice.objectstore.opening import prepare_location
from drservice.processes import make_folder
from drservice.repository.hostkey import load_host_key
from drservice.repository.keys import Identities
from drservice.repository.repository import Repository, open_repository
from drservice.wiring.opener import StoreOpener
from drservice.wiring.passphrases import passphrase_of


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """What the verbs work with."""

    estate: Estate
    repository: Repository
    clock: Clock


def store_opener(estate: Estate) -> StoreOpener:
    """Return what opens the estate's object store."""
    return StoreOpener(
        url=estate.repository.url,
        lock_dir=estate.state_dir / "run",
        bytes_per_second=estate.repository.bytes_per_second,
        settings=estate.repository.store,
    )


def make_location(estate: Estate) -> None:
    """Make the place of a directory repository; a bucket must exist already."""
    prepare_location(estate.repository.url)


def make_state_folder(estate: Estate) -> None:
    """Make ``state_dir`` and the folder of its locks.

    Raises:
        ConfigurationError: this user may not.
    """
    try:
        make_folder(estate.state_dir / "run")
    except OSError as error:
        raise ConfigurationError(
            f"cannot make {error.filename or estate.state_dir}: {error.strerror}",
            hint="state_dir must belong to the user that runs PostgreSQL's archive_command; root may use it too.",
        ) from error


@contextmanager
def open_data_plane(estate: Estate, *, clock: Clock | None = None) -> Iterator[DataPlane]:
    """Open store and repository with everything the configuration names; closed at the end.

    Raises:
        ConfigurationError: no recipients.
        RepositoryMissingError, ObjectStoreError, KeyProblemError, SecretError: it cannot be opened.
    """
    if not estate.repository.recipients:
        raise ConfigurationError(
            "repository.recipients is empty", hint="`drservice init` makes a key pair and says where."
        )
    chosen = clock or SystemClock()
    make_state_folder(estate)
    opener = store_opener(estate)
    store = opener()
    try:
        yield DataPlane(
            estate=estate,
            repository=open_repository(
                store,
                open_store=opener,
                signers=estate.repository.signers,
                host_key=load_host_key(estate.state_dir),
                identities=Identities(
                    estate.repository.identities, passphrase=passphrase_of(estate.repository.identity_passphrase)
                ),
                recipients=estate.repository.recipients,
                clock=chosen,
            ),
            clock=chosen,
        )
    finally:
        store.close()
