"""Where the demo happens: one folder with a plant, a production host, a recovery site, a repository, a second store.

The keys are apart. The production host has a signing key and no identity: what it writes it cannot read. The recovery
site has the identity, a signing key of its own, and the key that signs the ledger. Everything is removed at the end,
whatever happened, but the evidence that somebody asked for.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.cli.demoplan import WeekPlan, control_plane_text, schedule_text
from drservice.cli.plant import DATABASE, Plant
from drservice.cli.plantcode import is_clone
from drservice.environments.sandbox import list_sandboxes, open_sandbox
from drservice.errors import DrError, EnvironmentFailedError, ProgramMissingError, UsageError
from drservice.evidence.signing import make_log_key
from drservice.model.estate import Estate
from drservice.model.evidence import ledger_origin
from drservice.model.wal import Lsn, WalFileKind, WalFileName, segment_begin, segment_number
from drservice.operations.enroll import begin_ledger
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from drservice.repository.walarchive import ArchivedFile
from drservice.settings.loading import load
from drservice.wiring.data_plane import open_data_plane
from drservice.wiring.evidence import open_evidence

SERVICE = "erp"
BUNDLE = "bundle.zip"

_KEPT = (BUNDLE, "report.pdf", "verify.py")
_WEEK = "{rpo: 30s, rto: 2m}"
_TODAY = "{rpo: 30s, rto: 2m, documents_rpo: 30s}"
_PAGES = "{rpo: 10m, rto: 2m, documents_rpo: 5m}"
_HOST = """\
# What the production host knows. It can write backups and WAL; it has no identity, so it cannot read them.
version: 1
state_dir: {folder}/host
repository:
  url: file://{folder}/repository         # in earnest: an S3 bucket, away from this machine
  recipients: [{recipient}]
  signers:                                # whose objects and records are believed
{signers}
services:
{services}
drills:
  any-instant: {{service: erp, target: random, within: 7d}}
evidence:
  log_keys: [{log_keys}]
{control_plane}"""
_RECOVERY = """\
# What the recovery site knows: the identity that opens the backups. It also signs the ledger, and anchors it elsewhere.
version: 1
state_dir: {folder}/recovery
repository:
  url: file://{folder}/repository
  recipients: [{recipient}]
  identity: file:{folder}/recovery/identity.age
  signers:
{signers}
services:
{services}
drills:
  any-instant: {{service: erp, target: random, within: 7d}}
evidence:
  log_keys: [{log_keys}]
  anchors: [{{name: second-store, url: "file://{folder}/anchors"}}]
{control_plane}"""
_SERVICES = """\
  erp:
    tier: 1
    owner: plant-it
    objectives: {objectives}       # what is promised; the demo measures it
{schedule}    components:
      database:
        kind: postgres
        dsn: "{dsn}"
        data_directory: {data}
        wal: {{mode: both}}                # whole segments by archive_command, and what is written since as a stream
        node: production
      documents:
        kind: odoo-filestore
        path: {filestore}
        database: {database}
        addons: [{addons}]      # their scripts make a copy harmless
      configuration: {configuration}
    checks:
      - name: journal-balances
        component: database
        sql: "select sum(debit - credit) from account_move_line where parent_state = 'posted'"
        expect: "= 0"
        owner: finance
      - name: posted-items
        component: database
        sql: "select count(*), sum(debit) from account_move_line where parent_state = 'posted' and {{settled}}"
        expect: unchanged
        owner: finance\
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The demo's folder. ``account``: who runs PostgreSQL and its archive_command, ``None`` = this user."""

    folder: Path
    account: processes.Account | None

    @property
    def host_configuration(self) -> Path:
        """The production host's configuration."""
        return self.folder / "host.yaml"

    @property
    def recovery_configuration(self) -> Path:
        """The recovery site's configuration."""
        return self.folder / "recovery.yaml"

    def host(self) -> Estate:
        """What the production host knows."""
        return load(self.host_configuration).estate

    def recovery(self) -> Estate:
        """What the recovery site knows."""
        return load(self.recovery_configuration).estate

    @property
    def on_call(self) -> Path:
        """The file with the address of whoever is told: a secret, as in earnest."""
        return self.folder / "recovery" / "on-call"

    @property
    def evidence(self) -> Path:
        """Where the bundle is written, and what is taken out of it for people."""
        return self.folder / "evidence"

    @property
    def bundle(self) -> Path:
        """The bundle."""
        return self.evidence / BUNDLE

    def repository_bytes(self) -> int:
        """How much the repository holds, every object counted."""
        return sum(item.lstat().st_size for item in (self.folder / "repository").rglob("*") if item.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """What the configurations say about schedules and nodes. ``catalogue``: its URL for the recovery site's node."""

    plan: WeekPlan
    catalogue: str
    web_port: int


def make_site() -> Site:
    """Make the folder; PostgreSQL's user owns what it must write to.

    Raises:
        ProgramMissingError: started as root on a machine without the user ``postgres``.
    """
    account = processes.server_account()
    folder = Path(tempfile.mkdtemp(prefix="drservice-demo-"))
    folder.chmod(0o755)  # PostgreSQL's user passes through
    for name in ("plant", "host", "repository"):
        (folder / name).mkdir(mode=0o755)
        if account is not None:
            os.chown(folder / name, account.uid, account.gid)
    (folder / "recovery").mkdir(mode=0o711)
    for name in ("anchors", "evidence"):
        (folder / name).mkdir(mode=0o755)
    return Site(folder=folder, account=account)


def write_configurations(site: Site, plant: Plant, control_plane: ControlPlane | None = None) -> str:
    """Make the keys of both sites, write both configurations, create the repository and begin the ledger.

    The repository is created as PostgreSQL's user, who will run ``drservice wal push``: if it cannot run this program,
    the demo ends here. The ledger is begun by the recovery site, which keeps the log key.

    Returns:
        The repository's id.

    Raises:
        ProgramMissingError: PostgreSQL's user cannot run this program.
        DrError: the repository cannot be created.
    """
    identity, recipient = make_identity()
    secret = site.folder / "recovery" / "identity.age"
    secret.touch(mode=0o600)
    secret.write_text(f"{identity}\n", encoding="utf-8")
    services = _SERVICES.format(
        dsn=plant.dsn,
        data=plant.data,
        filestore=plant.filestore.root,
        database=DATABASE,
        addons=", ".join(map(str, plant.addons)),
        configuration=_configuration(plant),
        objectives=_TODAY if control_plane is None else _WEEK,
        schedule=schedule_text(control_plane.plan) if control_plane is not None else "",
    )
    signers = {"recovery-site": f"ed25519:{make_host_key(site.folder / 'recovery').public_key.hex()}"}
    writing = _Writing(site=site, recipient=recipient, services=services, signers=signers, control_plane=control_plane)
    writing.write(site.host_configuration, _HOST)
    created = _initialise(site)
    signer = created["signer"]
    assert isinstance(signer, dict)
    signers["production"] = str(signer["key"])
    writing.write(site.recovery_configuration, _RECOVERY)
    log_key = _begin_ledger(site.recovery())
    for path, template in ((site.host_configuration, _HOST), (site.recovery_configuration, _RECOVERY)):
        writing.write(path, template, log_key)
    return str(created["repository"])


def _configuration(plant: Plant) -> str:
    """Describe the component: the clone, or the plain folder that it is where git is not installed."""
    if is_clone(plant.configuration):
        return f"{{kind: git, clones: [{plant.configuration}]}}"
    return f"{{kind: directory, path: {plant.configuration}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """What both configurations say; ``signers``: name to public key, as far as they are known."""

    site: Site
    recipient: str
    services: str
    signers: Mapping[str, str]
    control_plane: ControlPlane | None

    def write(self, path: Path, template: str, log_key: str | None = None) -> None:
        text = template.format(
            folder=self.site.folder,
            recipient=self.recipient,
            signers="\n".join(f'    {name}: {{key: "{key}", services: [erp]}}' for name, key in self.signers.items()),
            services=self.services,
            log_keys=f'"{log_key}"' if log_key is not None else "",
            control_plane=self._control_plane(path),
        )
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)

    def _control_plane(self, path: Path) -> str:
        """Say what both nodes need to know; the recovery site's uses the catalogue of the host."""
        known = self.control_plane
        if known is None:
            return ""
        is_host = path == self.site.host_configuration
        return control_plane_text(
            known.plan,
            catalogue="embedded" if is_host else known.catalogue,
            on_call=f"file:{self.site.on_call}",
            web_port=known.web_port,
        )


def _begin_ledger(estate: Estate) -> str:
    """Make the log key of the recovery site and write the ledger's first record; returns the public key."""
    with open_data_plane(estate) as plane:
        key = make_log_key(estate.state_dir, ledger_origin(plane.repository.id))
        with open_evidence(plane) as evidence:
            begin_ledger(evidence)
    return f"ed25519:{key.public_key.hex()}"


def promise_documents(site: Site) -> None:
    """Promise from now on how long a document may wait until it is stored; nobody measured that in the week."""
    _promise(site, _WEEK, _TODAY)


def promise_for_pages(site: Site) -> None:
    """Promise what pages can tell from the index of an idle plant: it learns of new WAL every five minutes."""
    _promise(site, _TODAY, _PAGES)


def _promise(site: Site, before: str, after: str) -> None:
    for path in (site.host_configuration, site.recovery_configuration):
        text = path.read_text(encoding="utf-8")
        assert before in text, "the promise until now stands there"
        path.write_text(text.replace(before, after), encoding="utf-8")


def program(site: Site) -> list[str]:
    """Return the words that call this program with the production host's configuration."""
    beside = Path(sys.executable).with_name("drservice")
    start = [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-m", "drservice"]
    return [*start, "--config", str(site.host_configuration)]


def archive_command(site: Site) -> str:
    """Return the ``archive_command``: the real one, run by PostgreSQL's archiver."""
    words = shlex.join([*program(site), "wal", "push", "--service", SERVICE])
    return words.replace("%", "%%") + " %p"


def _initialise(site: Site) -> dict[str, object]:
    argv: list[str] = ["/usr/bin/env", *program(site), "--json", "init", "--without-log-key"]
    done = processes.run(argv, account=site.account, timeout_seconds=120)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.status == 0 and isinstance(answer, dict):
        return answer
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise DrError(f"`drservice init` failed: {answer['error']['message']}", hint=str(answer["error"]["hint"]))
    who = site.account.name if site.account is not None else "this user"
    raise ProgramMissingError(
        f"{who} cannot run {argv[1]}, which PostgreSQL needs to archive WAL: {done.last_line() or done.status}",
        hint="Install drservice where every user can reach it, or run the demo as an ordinary user.",
    )


def durable_end(files: Iterable[ArchivedFile], *, first: Lsn, segment_bytes: int) -> Lsn:
    """Return where the archived WAL ends that follows ``first`` without a gap.

    Args:
        files: a complete listing of one timeline's archive.
        first: a position known to be archived or about to be.
        segment_bytes: the cluster's WAL segment size.
    """
    numbers = {
        segment_number(item.name, segment_bytes)
        for item in files
        if WalFileName.parse(item.name).kind is WalFileKind.SEGMENT
    }
    number = first.segment_number(segment_bytes)
    while number in numbers:
        number += 1
    return segment_begin(number, segment_bytes)


def remove_site(site: Site) -> None:
    """End whatever is recovered here and remove the folder.

    Raises:
        EnvironmentFailedError: something is left, with its name.
    """
    for about in list_sandboxes(site.folder / "recovery" / "environments"):
        open_sandbox(about.path).destroy()
    shutil.rmtree(site.folder, ignore_errors=True)
    if site.folder.exists():
        left = next(iter(sorted(site.folder.rglob("*"))), site.folder)
        raise EnvironmentFailedError(f"{left} could not be removed", hint=f"Remove it: rm -rf {site.folder}")


def require_place(directory: Path) -> None:
    """Return if evidence could be kept in a directory, which need not exist yet.

    Raises:
        UsageError: it could not.
    """
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"no evidence can be kept in {directory}", hint="Name a folder that this user can write to.")


def keep_evidence(site: Site, directory: Path) -> Path:
    """Copy bundle, report and verifier into a directory, in the place of those of an earlier run; nothing else changes.

    Returns:
        The directory's absolute path.

    Raises:
        UsageError: they cannot be written there.
    """
    kept = directory.absolute()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            temporary = kept / f".{name}.{os.getpid()}"
            try:
                shutil.copyfile(site.evidence / name, temporary)
                temporary.replace(kept / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"the evidence cannot be kept in {directory}: {error.strerror}") from error
    return kept


def recovery_program(site: Site) -> list[str]:
    """Return the words that call this program with the recovery site's configuration."""
    return [*program(site)[:-1], str(site.recovery_configuration)]


def destroy_command(site: Site, environment: str) -> str:
    """Return the line that ends what ``--keep`` left and removes its folder."""
    words = shlex.join([*recovery_program(site), "environment", "destroy", environment])
    return f"{words} && rm -r {shlex.quote(str(site.folder))}"
