"""Worker processes of a command that is about to read or write much: made before the command opens anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drservice.model.estate import Estate
from drservice.objectstore.opening import load_client
from drservice.repository.pool import early_workers


@contextmanager
def workers_at_hand(estate: Estate, count: int) -> Iterator[None]:
    """Keep workers at hand that have loaded what this process has, and what reaches the estate's store.

    Enter it before the data plane is opened; see :func:`~drservice.repository.pool.early_workers`.

    Raises:
        ConfigurationError: the store's address makes no sense.
    """
    load_client(estate.repository.url)
    with early_workers(count):
        yield
