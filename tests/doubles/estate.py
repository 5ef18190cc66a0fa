"""A whole estate for tests: a real cluster, a repository with its keys, a configuration, and WAL that is archived.

    estate = TempEstate.over(cluster, url=None)          # None: a directory repository beside the cluster
    estate.initialise()                                  # as `drservice init` does
    estate.archive_with_the_program()                    # archive_command = the real `drservice wal push` process
    cluster.start()
    estate.backup(); estate.restore(Target(...))         # in this process
    estate.run("restore", "erp", "--to", "latest")       # the command line as a process

Everything lives below the cluster's own folder and goes with it; what ``restore`` leaves running ends with
:meth:`close`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import psycopg

from drservice import processes
from drservice.clock import SystemClock
from drservice.environments.sandbox import open_sandbox
from drservice.errors import DrError
from drservice.model.estate import Estate, PostgresSettings, Service, SignerSettings
from drservice.model.recovery import Target
from drservice.operations.backup import BackupContext, BackupResult, run_backup
from drservice.operations.progress import SilentProgress
from drservice.operations.restore import run_restore
from drservice.operations.restorerequest import Afterwards, RestoreContext, RestoreRequest, RestoreResult
from drservice.operations.wal import push_wal
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from drservice.repository.repository import create_repository
from drservice.settings.loading import load
from drservice.wiring.data_plane import DataPlane, make_location, open_data_plane, store_opener
from tests.doubles.cluster import Cluster, hand_over

SERVICE = "erp"
PROGRAM = (sys.executable, "-m", "drservice")


@dataclass(kw_only=True)
class TempEstate:
    """One service with one cluster. Paths are below the cluster's folder, owned by the server's user."""

    program: ClassVar[Callable[[], tuple[str, ...]]] = lambda: PROGRAM
    """The words that stand for the program in :meth:`run` and :meth:`push_command`."""

    cluster: Cluster
    root: Path
    url: str
    recipient: str
    method: str = "local"
    archive_wait_seconds: int = 30
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the program needs in its environment (credentials of an S3 server)."""
    repository_settings: Mapping[str, Any] = field(default_factory=dict)
    """More of ``repository`` in the configuration, such as ``lock``; written by :meth:`write_configuration`."""
    wal_settings: Mapping[str, Any] = field(default_factory=dict)
    """More of the component's ``wal``, such as ``mode``; written by :meth:`write_configuration`."""
    dsn: str | None = None
    """Where the component's ``dsn`` leads; ``None``: to the cluster."""

    @classmethod
    def over(
        cls,
        cluster: Cluster,
        *,
        url: str | None = None,
        method: str = "local",
        variables: Mapping[str, str] | None = None,
        name: str = "estate",
    ) -> TempEstate:
        """Write keys and configuration for a cluster; the repository is not made yet."""
        root = cluster.root / name
        root.mkdir(mode=0o755)
        secret, recipient = make_identity()
        (root / "identity.age").write_text(secret + "\n")
        (root / "identity.age").chmod(0o600)
        (root / "state").mkdir()
        hand_over(root)
        estate = cls(
            cluster=cluster,
            root=root,
            url=url or f"file://{root}/repository",
            recipient=recipient,
            method=method,
            variables=dict(variables or {}),
        )
        estate.write_configuration(estate.config)
        return estate

    # --- files ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.root / "drservice.yaml"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def identity(self) -> Path:
        return self.root / "identity.age"

    @property
    def repository(self) -> Path:
        """The folder of a directory repository."""
        assert self.url.startswith("file://"), self.url
        return Path(self.url.removeprefix("file://"))

    def write_configuration(
        self,
        path: Path,
        *,
        state: Path | None = None,
        url: str | None = None,
        identity: Path | str | None = "",
        signers: Mapping[str, str] | None = None,
        recipient: str | None = None,
        cluster: Cluster | None = None,
    ) -> Path:
        """Write a configuration file; ``identity=None`` leaves it out, as on a host that only writes."""
        server = cluster or self.cluster
        repository: dict[str, Any] = {"url": url or self.url, "recipients": [recipient or self.recipient]}
        repository.update(self.repository_settings)
        if identity is not None:
            repository["identity"] = f"file:{identity or self.identity}"
        if signers:
            repository["signers"] = {name: {"key": key} for name, key in signers.items()}
        component = {
            "kind": "postgres",
            "dsn": self.dsn or server.dsn(),
            **({"data_directory": str(server.data)} if self.dsn is None else {}),
            "method": self.method,
            "wal": {"mode": "archive", "archive_wait": f"{self.archive_wait_seconds}s", **self.wal_settings},
        }
        document = {
            "version": 1,
            "state_dir": str(state or self.state),
            "repository": repository,
            "services": {SERVICE: {"components": {"database": component}}},
        }
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        path.chmod(0o644)
        return path

    def estate(self, config: Path | None = None) -> Estate:
        return load(config or self.config).estate

    # --- in this process ------------------------------------------------------------------------------------

    def initialise(self) -> str:
        """Create the repository and this host's key; return the key as it stands under ``signers``."""
        estate = self.estate()
        key = make_host_key(estate.state_dir)
        make_location(estate)
        store = store_opener(estate)()
        try:
            own = SignerSettings(name=key.host, public_key=key.public_key)
            create_repository(store, signer=key, signers=[own], clock=SystemClock())
        finally:
            store.close()
        self.hand_over_repository()
        return f"ed25519:{key.public_key.hex()}"

    def hand_over_repository(self) -> None:
        """Give a directory repository to the server's user, whose archive_command writes there."""
        if self.url.startswith("file://"):
            hand_over(self.repository)
        hand_over(self.state)

    @contextmanager
    def plane(self, config: Path | None = None) -> Iterator[DataPlane]:
        """Open the data plane of a configuration."""
        with open_data_plane(self.estate(config)) as plane:
            yield plane

    def parts(self) -> tuple[Service, PostgresSettings]:
        service = self.estate().service(SERVICE)
        return service, service.database()

    def backup(self, plane: DataPlane | None = None) -> BackupResult:
        """Take a snapshot in this process."""
        if plane is None:
            with self.plane() as opened:
                return self.backup(opened)
        service, component = self.parts()
        context = BackupContext(
            repository=plane.repository, state_dir=self.state, clock=plane.clock, progress=SilentProgress()
        )
        return run_backup(context, service, component)

    def restore_context(self, plane: DataPlane) -> RestoreContext:
        return RestoreContext(
            repository=plane.repository, state_dir=self.state, clock=plane.clock, progress=SilentProgress()
        )

    def request(self, target: Target, *, into: Path | None = None) -> RestoreRequest:
        service, component = self.parts()
        afterwards = Afterwards.STOP if into is not None else Afterwards.LEAVE_RUNNING
        return RestoreRequest(service=service, component=component, target=target, into=into, afterwards=afterwards)

    @contextmanager
    def restored(
        self, target: Target, plane: DataPlane | None = None
    ) -> Iterator[tuple[RestoreResult, psycopg.Connection[Any]]]:
        """Restore, leave the server running for the block with a connection to it, then destroy it."""
        if plane is None:
            with self.plane() as opened, self.restored(target, opened) as answer:
                yield answer
            return
        result = run_restore(self.restore_context(plane), self.request(target))
        try:
            with psycopg.connect(result.environment.dsn, autocommit=True) as connection:
                yield result, connection
        finally:
            open_sandbox(self.state / "environments" / result.environment.id).destroy()

    # --- WAL ------------------------------------------------------------------------------------------------

    def push_command(self, config: Path | None = None) -> str:
        """Return the shell line that archives one file with the real program."""
        words = [*TempEstate.program(), "--config", str(config or self.config), "wal", "push", "--service", SERVICE]
        settings = [f"{name}={value}" for name, value in self.variables.items()]
        line = shlex.join(["env", *settings, *words] if settings else words)
        return f"{line} %p"

    def archive_with_the_program(self) -> None:
        """Archive with a ``drservice wal push`` process per file (about a second each)."""
        self.archive_by(self.push_command())

    def archive_by(self, command: str) -> None:
        """Set archive_command to a shell line; takes effect at the next start or reload."""
        quoted = command.replace("'", "''")
        self.cluster.configure(archive_mode="on", archive_command=f"'{quoted}'")

    # --- the command line as a process ----------------------------------------------------------------------

    def run(
        self,
        *words: str | Path,
        config: Path | None = None,
        account: processes.Account | None = None,
        variables: Mapping[str, str] | None = None,
        timeout_seconds: float = 120.0,
    ) -> processes.Finished:
        """Run the program to its end with this estate's configuration."""
        argv = [*TempEstate.program(), "--config", str(config or self.config), *map(str, words)]
        home = {"HOME": str(self.root)}
        environment = processes.clean_environment({**home, **self.variables, **(variables or {})})
        return processes.run(argv, account=account, environment=environment, timeout_seconds=timeout_seconds)

    def json(self, *words: str | Path, status: int = 0, **how: Any) -> dict[str, Any]:
        """Run with ``--json`` and return the document; any other exit status fails the test."""
        done = self.run(*words, "--json", **how)
        assert done.status == status, f"exit {done.status}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def refusal(self, *words: str | Path, status: int, **how: Any) -> dict[str, Any]:
        """Run a command that must fail with ``status`` and return the body of its error."""
        document = self.json(*words, status=status, **how)
        assert document["schema"] == "drservice/error/v1"
        error = document["error"]
        assert isinstance(error, dict)
        return error

    # --- the end --------------------------------------------------------------------------------------------

    def environments(self) -> list[str]:
        """Return the names of the environments that exist."""
        folder = self.state / "environments"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def close(self) -> None:
        """Destroy every environment that a failed test left behind."""
        for name in self.environments():
            path = self.state / "environments" / name
            if (path / "environment.json").exists():
                open_sandbox(path).destroy()


class Pusher:
    """Archives what ``archive_status/*.ready`` lists, in this process and in order.

    Why not archive_command: it is one process of about 0.7 s per segment, and a history of a hundred small segments is
    what the property test is about. It calls the same ``push_wal``. With ``archive_command`` empty the server keeps
    its segments until their ``.ready`` becomes ``.done`` (documentation 26.3.1), which is what happens here.
    """

    def __init__(self, estate: TempEstate, *, keep: Path | None = None) -> None:
        """``keep``: a folder that gets a plain copy of every segment, for the oracle."""
        self._estate = estate
        self._keep = keep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pusher", daemon=True)
        self.error: BaseException | None = None
        self.pushed: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def drain(self, name: str, timeout_seconds: float = 60.0) -> None:
        """Wait until the segment ``name`` is archived."""
        deadline = time.monotonic() + timeout_seconds
        while name not in self.pushed:
            if self.error is not None:
                raise self.error
            assert time.monotonic() < deadline, f"{name} was not pushed; last {self.pushed[-3:]}"
            time.sleep(0.02)

    def _run(self) -> None:
        wal = self._estate.cluster.data / "pg_wal"
        try:
            with self._estate.plane() as plane:
                scope = plane.repository.scope(*self._names())
                while not self._stop.wait(0.02):
                    for ready in sorted((wal / "archive_status").glob("*.ready")):
                        self._push(plane, scope, wal / ready.stem)
                        ready.rename(ready.with_suffix(".done"))
                        self.pushed.append(ready.stem)
        except (DrError, OSError) as error:
            self.error = error

    def _names(self) -> Any:
        service, component = self._estate.parts()
        return service.name, component.name

    def _push(self, plane: DataPlane, scope: Any, path: Path) -> None:
        if self._keep is not None:
            shutil.copyfile(path, self._keep / path.name)
        push_wal(plane.repository, scope, path, state_dir=self._estate.state)


def wait_for(condition: Any, what: str, timeout_seconds: float = 30.0) -> None:
    """Wait until ``condition()`` is true."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s for {what}"
        time.sleep(0.05)


def seconds(value: float) -> timedelta:
    """Return a duration."""
    return timedelta(seconds=value)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def as_user(name: str) -> processes.Account | None:
    """Return an account to run the program as, ``None`` when the tests do not run as root."""
    return processes.account_named(name) if os.geteuid() == 0 else None


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a folder with its owners and modes; a name that is taken would nest the copy and is refused."""
    assert not target.exists(), f"{target} is taken by another test"
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target
