"""``drservice init``: make the keys and the repository, and say how to keep them safe."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import click

from drservice.cli.invocation import Invocation
from drservice.clock import SystemClock
from drservice.errors import ConfigurationError, KeyProblemError, RepositoryError, RepositoryExistsError, UsageError
from drservice.evidence.signing import make_log_key
from drservice.model.estate import Estate, SignerSettings
from drservice.model.evidence import ledger_origin
from drservice.operations.enroll import begin_ledger
from drservice.operations.lineage import Lineage
from drservice.operations.progress import SilentProgress
from drservice.operations.storeproof import keep_store_proved
from drservice.processes import make_folder
from drservice.repository.envelope import HostKey
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from drservice.repository.repository import Created, create_repository
from drservice.wiring.data_plane import make_location, make_state_folder, open_data_plane, store_opener
from drservice.wiring.evidence import open_evidence

_DEFAULT_CONFIGURATION = Path("/etc/drservice/drservice.yaml")
_DEFAULT_IDENTITY = Path("/etc/drservice/identity.age")


@click.command(help="Create the repository of the configuration; without one, write a configuration and an identity.")
@click.option("--write-config", type=click.Path(path_type=Path), help="where to write the first configuration")
@click.option("--adopt", metavar="SERVICE", help="believe the cluster that SERVICE's dsn reaches from now on")
@click.option("--component", help="with --adopt: which component")
@click.option(
    "--without-log-key", is_flag=True, help="the ledger is begun on another machine, with `drservice evidence begin`"
)
@click.pass_obj
def init(
    invocation: Invocation,
    *,
    write_config: Path | None,
    adopt: str | None,
    component: str | None,
    without_log_key: bool,
) -> None:
    """Initialise."""
    if adopt is not None:
        _adopt(invocation, adopt, component)
        return
    if write_config is not None:
        _first_configuration(invocation, write_config)
        return
    try:
        path = invocation.configuration_path()
    except ConfigurationError:
        if invocation.config is not None or os.environ.get("DRSERVICE_CONFIG"):
            raise
        _first_configuration(invocation, _DEFAULT_CONFIGURATION)
        return
    _create(invocation, path, with_log_key=not without_log_key)


def _create(invocation: Invocation, path: Path, *, with_log_key: bool) -> None:
    estate = invocation.load().estate
    if not estate.repository.recipients:
        raise ConfigurationError(
            "repository.recipients is empty", hint=f"Fill it in {path}; `drservice init --write-config` makes a pair."
        )
    make_state_folder(estate)
    key = make_host_key(estate.state_dir)
    make_location(estate)
    store = store_opener(estate)()
    try:
        own = SignerSettings(name=key.host, public_key=key.public_key)
        others = [s for s in estate.repository.signers if s.public_key != key.public_key]
        try:
            created = create_repository(store, signer=key, signers=[own, *others], clock=SystemClock())
        except RepositoryExistsError as error:
            if _is_listed(estate, key):
                raise
            raise RepositoryExistsError(
                f"{error.message}, and this host ({key.host}) may not write there yet",
                hint="Nothing was changed in it. To write to it, add to repository.signers on every host that reads or"
                f" writes there: {key.signer_line}",
            ) from error
        warnings = store.capabilities.warnings
    finally:
        store.close()
    log_key = _begin_ledger(invocation, estate) if with_log_key else None
    document = {
        "repository": created.repository,
        "url": estate.repository.url,
        "signer": {"name": key.host, "key": f"ed25519:{key.public_key.hex()}"},
        "recipients": list(estate.repository.recipients),
        "restore_py_sha256": created.script_sha256,
        "restore_md_sha256": created.text_sha256,
        "log_key": log_key,
        "warnings": list(warnings),
    }
    invocation.output.result("init", document, _escrow_sheet(estate, key, created, log_key))
    for warning in warnings:
        invocation.output.warn(warning)
    if len(estate.repository.recipients) == 1:
        invocation.output.warn(
            "there is one recipient only: if its identity is lost, every backup is lost with it;"
            " add a second one and keep its identity sealed elsewhere"
        )


def _is_listed(estate: Estate, key: HostKey) -> bool:
    """Tell whether others believe this host: by the configuration, or by the repository that is there."""
    if any(signer.public_key == key.public_key for signer in estate.repository.signers):
        return True
    try:
        with open_data_plane(estate) as plane:
            plane.repository.host_key.require_listed()
    except (KeyProblemError, RepositoryError):
        return False  # it is not, or the repository is none that this host could believe in
    return True


def _begin_ledger(invocation: Invocation, estate: Estate) -> str:
    """Make the log key here and write the ledger's first records; returns the public key."""
    with open_data_plane(estate) as plane:
        key = make_log_key(estate.state_dir, ledger_origin(plane.repository.id))
        with open_evidence(plane) as evidence:
            begin_ledger(evidence)
            proof = keep_store_proved(estate, evidence, clock=plane.clock, progress=SilentProgress())
    for failed in proof.failed if proof is not None else ():
        invocation.output.warn(failed)
    return f"ed25519:{key.public_key.hex()}"


def _escrow_sheet(estate: Estate, key: HostKey, created: Created, log_key: str | None) -> list[str]:
    return [
        f"repository {created.repository} created at {estate.repository.url}",
        "",
        "Print this sheet and keep it with the identity, away from this machine:",
        f"  signer of this host:  {key.host}  ed25519:{key.public_key.hex()}",
        *(f"  can read:             {recipient}" for recipient in estate.repository.recipients),
        f"  restore.py SHA-256:   {created.script_sha256}",
        f"  RESTORE.md SHA-256:   {created.text_sha256}",
        *([f"  log key of evidence:  {log_key}"] if log_key is not None else []),
        "",
        "For other hosts that read or write here, add to repository.signers:",
        f"  {key.signer_line}",
        *(
            ["and to evidence.log_keys:", f"  {log_key}"]
            if log_key is not None
            else ["The ledger of evidence is not begun: run `drservice evidence begin` where its log key shall be."]
        ),
        "next: drservice check",
    ]


def _first_configuration(invocation: Invocation, path: Path) -> None:
    """Write an annotated configuration and an identity beside it; never over anything."""
    identity_path = path.parent / _DEFAULT_IDENTITY.name
    for target in (path, identity_path):
        if target.exists():
            raise UsageError(f"{target} exists already", hint="Nothing was changed. Use it, or name another path.")
    identity, recipient = make_identity()
    template = resources.files("drservice.settings").joinpath("template.yaml").read_text(encoding="utf-8")
    text = template.replace("@RECIPIENT@", recipient).replace("@IDENTITY@", str(identity_path.absolute()))
    make_folder(path.absolute().parent)
    _write_new(identity_path, f"# age identity: who has this file can read every backup\n{identity}\n", 0o600)
    _write_new(path, text, 0o640)
    document = {"configuration": str(path), "identity": str(identity_path), "recipient": recipient}
    lines = [
        f"wrote {path}: fill in repository.url and the service's dsn and data_directory",
        f"wrote {identity_path}: move it to the recovery site or a safe; backup hosts must not keep it",
        f"its recipient, already in the configuration: {recipient}",
        f"next: drservice --config {path} init",
    ]
    invocation.output.result("init", document, lines)


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)


def _adopt(invocation: Invocation, service: str, component: str | None) -> None:
    estate = invocation.load().estate
    chosen = estate.service(service)
    settings = chosen.database(component)
    with open_data_plane(estate) as plane:
        scope = plane.repository.scope(chosen.name, settings.name)
        lineage = Lineage(plane.repository, scope, estate.state_dir)
        before = lineage.pinned()
        lineage.adopt()
    document = {"service": service, "component": settings.name, "previous_system_id": before}
    invocation.output.result(
        "init-adopt",
        document,
        [
            f"{service}/{settings.name}: the next cluster begins a new lineage; {before or 'none'} stays restorable",
            f"next: drservice backup {service}",
        ],
    )
