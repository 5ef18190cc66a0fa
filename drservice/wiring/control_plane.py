"""The control plane's database: the embedded cluster or the one that the configuration names, with its schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from drservice.catalogue.database import Database, migrate, open_catalogue
from drservice.catalogue.embedded import EmbeddedCluster
from drservice.model.estate import Estate
from drservice.wiring.data_plane import make_state_folder

EMBEDDED = "embedded"


@contextmanager
def open_control_plane(estate: Estate, *, pool_size: int = 5) -> Iterator[Database]:
    """Open the catalogue at this program's schema; an embedded server is started, and stopped by its last user.

    Raises:
        CatalogueUnreachableError: the database does not answer.
        CatalogueSchemaError: a newer program has changed it.
        EmbeddedClusterError, ProgramMissingError, ConfigurationError: the embedded cluster does not start.
    """
    with ExitStack() as stack:
        url = estate.catalogue
        if url == EMBEDDED:
            make_state_folder(estate)
            url = stack.enter_context(EmbeddedCluster(estate.state_dir))
        migrate(url)
        database = open_catalogue(url, pool_size=pool_size)
        stack.callback(database.close)
        yield database
