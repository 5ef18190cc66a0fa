"""Where the demo happens: one folder with a plant, a production host's files, a recovery site's files, a repository.

The production host's configuration names no identity: what it writes it cannot read. Everything is removed at the
end, whatever happened.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.environments.sandbox import list_sandboxes, open_sandbox
from drservice.errors import DrError, EnvironmentFailedError, ProgramMissingError
from drservice.model.estate import Estate
from drservice.model.wal import Lsn, WalFileKind, WalFileName, segment_begin, segment_number
from drservice.repository.keys import make_identity
from drservice.repository.walarchive import ArchivedFile
from drservice.settings.loading import load

SERVICE = "erp"

_HOST = """\
# What the production host knows. It can write backups and WAL; it has no identity, so it cannot read them.
version: 1
state_dir: {folder}/host
repository:
  url: file://{folder}/repository         # in earnest: an S3 bucket, away from this machine
  recipients: [{recipient}]
services:
  erp:
    tier: 1
    objectives: {{rpo: 30s, rto: 2m}}       # what is promised; the demo measures it
    components:
      database:
        kind: postgres
        dsn: "{dsn}"
        data_directory: {folder}/plant/data
"""
_RECOVERY = """\
# What the recovery site knows: the identity that opens the backups, and whose signature it believes.
version: 1
state_dir: {folder}/recovery
repository:
  url: file://{folder}/repository
  recipients: [{recipient}]
  identity: file:{folder}/recovery/identity.age
  signers: {{{signer}: {{key: "{key}", services: [erp]}}}}
services:
  erp:
    tier: 1
    objectives: {{rpo: 30s, rto: 2m}}
    components:
      database:
        kind: postgres
        dsn: "{dsn}"
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

    def repository_bytes(self) -> int:
        """How much the repository holds, every object counted."""
        return sum(item.lstat().st_size for item in (self.folder / "repository").rglob("*") if item.is_file())


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
    return Site(folder=folder, account=account)


def write_configurations(site: Site, *, dsn: str) -> str:
    """Make an identity, write both configurations, and create the repository as PostgreSQL's user.

    That user will run ``drservice wal push``: if it cannot run this program, the demo ends here.

    Returns:
        The repository's id.

    Raises:
        ProgramMissingError: PostgreSQL's user cannot run this program.
        DrError: the repository cannot be created.
    """
    identity, recipient = make_identity()
    values = {"folder": str(site.folder), "recipient": recipient, "dsn": dsn}
    site.host_configuration.write_text(_HOST.format(**values), encoding="utf-8")
    site.host_configuration.chmod(0o644)
    secret = site.folder / "recovery" / "identity.age"
    secret.touch(mode=0o600)
    secret.write_text(f"{identity}\n", encoding="utf-8")
    created = _initialise(site)
    signer = created["signer"]
    assert isinstance(signer, dict)
    text = _RECOVERY.format(**values, signer=signer["name"], key=signer["key"])
    site.recovery_configuration.write_text(text, encoding="utf-8")
    site.recovery_configuration.chmod(0o644)
    return str(created["repository"])


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
    argv: list[str] = ["/usr/bin/env", *program(site), "--json", "init"]
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


def recovery_program(site: Site) -> list[str]:
    """Return the words that call this program with the recovery site's configuration."""
    return [*program(site)[:-1], str(site.recovery_configuration)]


def destroy_command(site: Site, environment: str) -> str:
    """Return the line that ends what ``--keep`` left and removes its folder."""
    words = shlex.join([*recovery_program(site), "environment", "destroy", environment])
    return f"{words} && rm -r {shlex.quote(str(site.folder))}"
