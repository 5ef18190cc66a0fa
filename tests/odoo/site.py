"""Where the recovery happens: the production host's configuration, the recovery site's, and a repository between them.

The keys are apart: the host writes what it cannot read; the recovery site has the identity and signs the ledger.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from drservice import processes
from drservice.clock import to_iso
from drservice.environments.sandbox import open_sandbox
from drservice.repository.hostkey import make_host_key
from drservice.repository.keys import make_identity
from tests.doubles.cluster import hand_over
from tests.odoo.production import DATABASE, Production

SERVICE = "erp"
PROGRAM = (sys.executable, "-m", "drservice")
_COMMAND_SECONDS = 900.0


@dataclass(kw_only=True)
class Site:
    """One service, seen from two machines."""

    production: Production
    root: Path
    recipient: str
    signers: dict[str, str] = field(default_factory=dict)
    log_key: str | None = None
    instants: dict[str, datetime] = field(default_factory=dict)
    """Which instants drills recover, by the name of the drill."""

    @classmethod
    def make(cls, production: Production) -> Site:
        """Make keys, configurations, repository and ledger."""
        root = production.maker.folder("site")
        root.chmod(0o755)
        root.parent.chmod(0o755)
        secret, recipient = make_identity()
        for name in ("host", "recovery"):
            (root / name).mkdir(mode=0o755)
        identity = root / "recovery" / "identity.age"
        identity.touch(mode=0o600)
        identity.write_text(f"{secret}\n")
        site = cls(production=production, root=root, recipient=recipient)
        site.signers["recovery-site"] = f"ed25519:{make_host_key(root / 'recovery').public_key.hex()}"
        site.write()
        hand_over(root / "host")  # its programs run as PostgreSQL's user
        signer = site.host("init", "--without-log-key")["signer"]
        site.signers["production"] = signer["key"]
        site.write()
        site.log_key = site.recovery("evidence", "begin")["log_key"]
        site.write()
        return site

    def write(self) -> None:
        """Write both configurations."""
        for name in ("host", "recovery"):
            path = self.root / f"{name}.yaml"
            path.write_text(json.dumps(self._document(name), indent=1))
            path.chmod(0o644)

    def _document(self, name: str) -> dict[str, Any]:
        made, code = self.production, self.production.code
        repository: dict[str, Any] = {
            "url": f"file://{self.root}/repository",
            "recipients": [self.recipient],
            "signers": {signer: {"key": key} for signer, key in self.signers.items()},
        }
        if name == "recovery":
            repository["identity"] = f"file:{self.root}/recovery/identity.age"
        components = {
            "database": {
                "kind": "postgres",
                "dsn": made.cluster.dsn(DATABASE),
                "data_directory": str(made.cluster.data),
                "method": "local",
                "wal": {"mode": "stream", "idle_interval": "1s"},
            },
            "documents": {
                "kind": "odoo-filestore",
                "path": str(made.documents),
                "database": DATABASE,
                "addons": [str(code.addons)],
                "odoo": {
                    "program": str(code.program),
                    "python": str(code.python),
                    "code": [str(code.packages)],
                    "folders": [str(code.unpacked)],
                },
            },
            "configuration": {"kind": "directory", "path": str(made.configuration)},
        }
        drills: dict[str, Any] = {name: {"service": SERVICE, "target": name} for name in ("latest", "consistent")}
        for plan, instant in self.instants.items():
            drills[plan] = {"service": SERVICE, "target": to_iso(instant)}
        return {
            "version": 1,
            "state_dir": str(self.root / name),
            "repository": repository,
            "services": {SERVICE: {"objectives": {"rto": "15m"}, "components": components}},
            "drills": drills,
            "evidence": {"log_keys": [self.log_key] if self.log_key else []},
        }

    def host(self, *words: str | Path, status: int = 0) -> dict[str, Any]:
        """Run a command on the production host as PostgreSQL's user, and return its document."""
        return self._json("host", words, status, self.production.cluster.account)

    def recovery(self, *words: str | Path, status: int = 0) -> dict[str, Any]:
        """Run a command on the recovery site."""
        return self._json("recovery", words, status, None)

    def drill(self, plan: str) -> dict[str, Any]:
        """Run a drill on the recovery site, whatever its verdict, and leave its environment."""
        words = ("drill", SERVICE, "--plan", plan, "--keep")
        return self._json("recovery", words, None if plan == "latest" else 0, None)

    def argv(self, name: str, *words: str | Path) -> list[str]:
        return [*PROGRAM, "--config", str(self.root / f"{name}.yaml"), *map(str, words)]

    def _json(
        self, name: str, words: tuple[str | Path, ...], status: int | None, account: processes.Account | None
    ) -> dict[str, Any]:
        done = processes.run(
            self.argv(name, *words, "--json"),
            account=account,
            environment=processes.clean_environment({"HOME": str(self.root)}),
            timeout_seconds=_COMMAND_SECONDS,
        )
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        why = {key: document[key] for key in ("error", "reasons", "documents", "state") if key in document}
        assert status in {done.status, None}, f"{words}: exit {done.status}: {why}\n{done.stderr.decode()[-4000:]}"
        return document

    def close(self) -> None:
        """Destroy every environment that a failed test left behind."""
        folder = self.root / "recovery" / "environments"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if (path / "environment.json").exists():
                open_sandbox(path).destroy()
