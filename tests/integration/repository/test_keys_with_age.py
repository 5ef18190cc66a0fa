"""Keys with the programs ``age`` and ``ssh-keygen``: the command line and restore.py open the same wrappings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drservice import processes
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from tests.doubles.agefiles import protected
from tests.doubles.repositories import Site, noise

ROOT = Path(__file__).parents[3]
HOW_TO = ROOT / "docs" / "how-to" / "recipients.md"
BREAKGLASS = ROOT / "drservice" / "repository" / "breakglass" / "restore.py"
pytestmark = pytest.mark.skipif(not shutil.which("age") or not shutil.which("ssh-keygen"), reason="needs both programs")


@dataclass(kw_only=True)
class Keeper:
    """A repository with one snapshot and one WAL file that carries its own key, and a machine that reads it."""

    site: Site
    base: Path

    @property
    def config(self) -> Path:
        return self.base / "drservice.yaml"

    def configure(self, *recipients: str, identity: str | list[str], **more: str) -> None:
        key = make_host_key(self.base / "state")
        signers = {
            name: {"key": f"ed25519:{public.hex()}"}
            for name, public in (("db1", self.site.host.public_key), (key.host, key.public_key))
        }
        repository = {
            "url": f"file://{self.base}/repository",
            "recipients": [self.site.recipient, *recipients],
            "identity": identity,
            "signers": signers,
            **more,
        }
        component = {"kind": "postgres", "dsn": "host=/nonexistent dbname=x", "method": "pg_basebackup"}
        document = {
            "version": 1,
            "state_dir": str(self.base / "state"),
            "repository": repository,
            "services": {"erp": {"components": {"database": component}}},
        }
        self.config.write_text(json.dumps(document))

    def run(self, *words: str, variables: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        environment = processes.clean_environment({"HOME": str(self.base), **(variables or {})})
        argv = [sys.executable, "-m", "drservice", "--config", str(self.config), *words, "--json"]
        done = processes.run(argv, environment=environment, timeout_seconds=60)
        return done.status, json.loads(done.stdout)

    def opened_by_breakglass(self, *identities: Path) -> processes.Finished:
        """Have restore.py open every data key, as it does when it restores."""
        return processes.run(self.breakglass(*identities), timeout_seconds=60)

    def breakglass(self, *identities: Path) -> list[str]:
        keys = sorted({path.parent.name for path in (self.base / "repository" / "keys" / "erp").rglob("*.age")})
        script = (
            f"import sys; sys.path.insert(0, {str(BREAKGLASS.parent)!r}); import restore; from pathlib import Path\n"
            f"folder = Path({str(self.base / 'repository')!r})\n"
            f"r = restore.Repository(folder, {self.trusted()!r}, {list(map(str, identities))!r}, 'age')\n"
            f"print(sorted(r.with_key('erp', key, bytes.hex) for key in {keys!r}))"
        )
        return [sys.executable, "-c", script]

    def trusted(self) -> list[str]:
        """Return who is believed, as the escrow sheet has it: whoever wrapped keys again signs for it."""
        hosts = (self.site.host.public_key, make_host_key(self.base / "state").public_key)
        return [f"ed25519:{key.hex()}" for key in hosts]

    def secrets(self) -> str:
        ring = self.site.repository().keyring
        keys = sorted({path.parent.name for path in (self.base / "repository" / "keys" / "erp").rglob("*.age")})
        return str(sorted(ring.secrets(key, service=self.site.scope.service)[0].hex() for key in keys))  # type: ignore[arg-type]  # a file name is a key id here


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    site = Site.create(tmp_path, folder=tmp_path / "repository")
    site.write({"base/1/1259": noise(200_000)})
    site.capture()
    site.put_wal("000000010000000000000003", noise(50_000, 3))
    return Keeper(site=site, base=tmp_path)


def ssh_keygen(path: Path, kind: str) -> str:
    done = processes.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "dr@recovery", "-f", path])
    assert done.status == 0, done.stderr.decode()
    return path.with_suffix(".pub").read_text().strip()


def on_a_terminal(argv: list[str], typed: str) -> processes.Finished:
    """Run a program on a terminal of its own, with somebody who types when a passphrase is asked for."""
    process = processes.start(
        ["script", "-q", "-e", "-c", shlex.join(argv), "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    seen = b""
    while b"assphrase" not in seen and (piece := os.read(process.stdout.fileno(), 4096)):
        seen += piece
    rest, _ = process.communicate(typed.encode(), timeout=60)
    return processes.Finished(status=process.returncode, stdout=seen + rest, stderr=b"")


def test_a_new_ssh_recipient_reads_old_snapshots_after_rewrap(keeper: Keeper) -> None:
    recipient = ssh_keygen(keeper.base / "recovery", "ed25519")
    keeper.configure(recipient, identity=[f"file:{keeper.base}/identity"])
    assert keeper.opened_by_breakglass(keeper.base / "recovery").status != 0, "it cannot read yet"
    status, before = keeper.run("keys", "rewrap", "--dry-run")
    assert (status, len(before["services"][0]["wrapped"])) == (0, 1)
    status, document = keeper.run("keys", "rewrap")
    assert status == 0
    assert document["recipients"][1] == " ".join(recipient.split()[:2]), "a comment is no part of a recipient"
    told = document["services"][0]
    assert (told["keys"], len(told["wrapped"]), told["unopened"]) == (1, 1, [])
    assert told["wal_with_own_key"]["count"] == 1, "nobody can be added to what carries its own key"
    assert keeper.run("keys", "rewrap")[1]["services"][0]["wrapped"] == []
    opened = keeper.opened_by_breakglass(keeper.base / "recovery")
    assert opened.stdout.decode().strip() == keeper.secrets(), opened.stderr.decode()
    keeper.configure(recipient, identity=[f"file:{keeper.base}/recovery", f"file:{keeper.base}/none"])
    status, checked = keeper.run("keys", "check")
    assert status == 5
    assert [(item["state"], item["identity"].rpartition("/")[2]) for item in checked["checks"]] == [
        ("ok", "recovery"),
        ("failed", "none"),
    ]


def test_a_protected_identity_is_opened_by_reference_and_on_a_terminal(keeper: Keeper) -> None:
    locked = keeper.base / "locked.age"
    locked.write_bytes(protected((keeper.base / "identity").read_bytes(), "open sesame"))
    keeper.configure(identity=f"file:{locked}", identity_passphrase="env:PASSPHRASE")
    assert keeper.run("keys", "check", variables={"PASSPHRASE": "open sesame"})[0] == 0
    status, document = keeper.run("keys", "check", variables={"PASSPHRASE": "wrong"})
    assert status == 5
    assert "the passphrase does not open" in document["checks"][0]["detail"]
    keeper.configure(identity=f"file:{locked}")
    status, document = keeper.run("keys", "check")
    assert status == 5
    assert "nobody to ask" in document["checks"][0]["detail"]
    argv = [sys.executable, "-m", "drservice", "--config", str(keeper.config), "keys", "check"]
    asked = on_a_terminal(argv, "open sesame\n")
    assert asked.status == 0, asked.stdout.decode()
    assert b"Passphrase of file:" in asked.stdout
    assert b"open sesame" not in asked.stdout, "what is typed is not shown"


def test_breakglass_asks_once_for_a_protected_identity_and_takes_several(keeper: Keeper) -> None:
    stranger = keeper.base / "stranger"
    stranger.write_text(make_identity()[0] + "\n")
    both = keeper.opened_by_breakglass(stranger, keeper.base / "identity")
    assert both.stdout.decode().strip() == keeper.secrets(), both.stderr.decode()
    keeper.site.write({"base/1/1260": noise(100_000, 2)})
    keeper.site.capture()
    locked = keeper.base / "locked.age"
    locked.write_bytes(protected((keeper.base / "identity").read_bytes(), "open sesame", armored=True))
    asked = on_a_terminal(keeper.breakglass(stranger, locked), "open sesame\n")
    assert keeper.secrets() in asked.stdout.decode(), asked.stdout.decode()
    assert len(keeper.secrets()) > 100, "two keys, and one question"
    wrong = on_a_terminal(keeper.breakglass(locked), "wrong\n")
    assert wrong.status != 0
    assert b"wrong passphrase" in wrong.stdout


@pytest.mark.long
def test_the_commands_of_the_how_to_add_a_recipient(keeper: Keeper) -> None:
    secret, recipient = make_identity()
    (keeper.base / "new").write_text(secret + "\n")
    keeper.configure(recipient, identity=[f"file:{keeper.base}/identity", f"file:{keeper.base}/new"])
    program = keeper.base / "drservice"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m drservice --config {keeper.config} "$@"\n')
    program.chmod(0o755)
    environment = processes.clean_environment({"PATH": f"{keeper.base}:/usr/bin:/bin", "HOME": str(keeper.base)})
    blocks = re.findall(r"```sh\n(.*?)\n```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        done = processes.run(["sh", "-e", "-c", block], environment=environment, timeout_seconds=60)
        assert done.status == 0, f"{block}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    assert b"revokes nothing" in processes.run([program, "keys", "rewrap"], environment=environment).stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_what_age_protects_with_a_passphrase_may_be_an_ssh_key(keeper: Keeper, kind: str) -> None:
    recipient = ssh_keygen(keeper.base / "key", kind)
    locked = keeper.base / "key.age"
    made = on_a_terminal(["age", "-p", "-o", str(locked), str(keeper.base / "key")], "open sesame\nopen sesame\n")
    assert made.status == 0, made.stdout.decode()
    keeper.configure(recipient, identity=f"file:{keeper.base}/identity")
    assert keeper.run("keys", "rewrap")[0] == 0
    keeper.configure(recipient, identity=f"file:{locked}", identity_passphrase="env:PASSPHRASE")
    assert keeper.run("keys", "check", variables={"PASSPHRASE": "open sesame"})[0] == 0
    asked = on_a_terminal(keeper.breakglass(locked), "open sesame\n")
    assert keeper.secrets() in asked.stdout.decode(), asked.stdout.decode()
