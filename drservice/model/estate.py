"""What one configuration file describes: services, their components and objectives.

Built by ``settings`` only; everything below works with these values and never sees YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path

from drservice.errors import UnknownNameError
from drservice.model.ids import ComponentName, ServiceName


class CaptureMethod(Enum):
    """How a PostgreSQL cluster is read."""

    AUTO = "auto"
    LOCAL = "local"
    PG_BASEBACKUP = "pg_basebackup"


class WalMode(Enum):
    """How WAL reaches the store."""

    ARCHIVE = "archive"
    STREAM = "stream"
    BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerSettings:
    """A host whose objects are believed: Ed25519 public key (32 bytes) and its services (empty = all)."""

    name: str
    public_key: bytes
    services: tuple[ServiceName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """Where the repository is and who may read and write it."""

    url: str
    recipients: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    """Secret references; empty on hosts that only write."""
    signers: tuple[SignerSettings, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WalSettings:
    """How the WAL of a cluster is shipped."""

    mode: WalMode = WalMode.ARCHIVE
    archive_wait: timedelta = timedelta(minutes=5)
    """How long a backup waits for its WAL to be in the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """A PostgreSQL cluster as a component."""

    name: ComponentName
    dsn: str
    data_directory: Path | None = None
    method: CaptureMethod = CaptureMethod.AUTO
    wal: WalSettings = field(default_factory=WalSettings)
    node: str | None = None
    workers: int = 2
    compression_level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What is promised: recovery point and recovery time."""

    rpo: timedelta | None = None
    rto: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A business service and its components."""

    name: ServiceName
    tier: int = 3
    owner: str = ""
    objectives: Objectives = field(default_factory=Objectives)
    components: Mapping[ComponentName, PostgresSettings] = field(default_factory=dict)

    def component(self, name: str | None) -> PostgresSettings:
        """Return the named component, or the only one.

        Raises:
            UnknownNameError: unknown, or a name is needed because there are several.
        """
        if name is not None:
            found = self.components.get(ComponentName(name))
            if found is None:
                raise UnknownNameError(
                    f"service {self.name} has no component {name}",
                    hint=f"Its components: {', '.join(self.components) or 'none'}.",
                )
            return found
        if len(self.components) != 1:
            raise UnknownNameError(
                f"service {self.name} has {len(self.components)} components",
                hint=f"Name one with --component: {', '.join(self.components)}.",
            )
        return next(iter(self.components.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """One configuration file."""

    source: Path
    state_dir: Path
    repository: RepositorySettings
    services: Mapping[ServiceName, Service] = field(default_factory=dict)

    def service(self, name: str) -> Service:
        """Return the named service.

        Raises:
            UnknownNameError: with the names that exist.
        """
        found = self.services.get(ServiceName(name))
        if found is None:
            raise UnknownNameError(
                f"there is no service {name}",
                hint=f"The configuration declares: {', '.join(self.services) or 'no service'}.",
            )
        return found

    def selected(self, name: str | None) -> Sequence[Service]:
        """Return the named service, or all."""
        return [self.service(name)] if name else list(self.services.values())
