"""A plant for tests: a cluster with tables in Odoo's shape, documents as Odoo keeps them, a folder with configuration.

plant = Plant.over(cluster)              # configuration, tables, 60 documents; the server runs and archives
plant.upload(b"..."); plant.estate.json("backup", "erp")
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drservice import processes
from tests.doubles.cluster import Cluster, hand_over
from tests.doubles.estate import TempEstate, as_user, wait_for

DATABASE = "plant"
TABLES = """
create table ir_attachment (id serial primary key, name text, store_fname text, checksum text, file_size int,
    db_datas bytea, type text not null default 'binary', create_date timestamptz not null default clock_timestamp());
create table account_move_line (id serial primary key, parent_state text not null, debit numeric(12,2) not null,
    credit numeric(12,2) not null, note text);
create table stock_move (id serial primary key, state text not null, product_qty numeric(12,2) not null);
"""
LINES = """
insert into account_move_line (parent_state, debit, credit)
    select 'posted', i % 10, i % 10 from generate_series(1, 500) i;
insert into stock_move (state, product_qty) select 'done', i % 7 from generate_series(1, 300) i;
"""
CHECKS = [
    {
        "name": "moves-balance",
        "component": "database",
        "sql": "select sum(debit - credit) from account_move_line where parent_state = 'posted'",
        "expect": "= 0",
        "owner": "finance",
    },
    {
        "name": "posted-lines",
        "component": "database",
        "sql": "select count(*), sum(debit) from account_move_line where parent_state = 'posted' and {settled}",
        "expect": "unchanged",
    },
]
DRILLS = {
    "latest": {"service": "erp", "target": "latest"},
    "random": {"service": "erp", "target": "random", "within": "7d"},
}


@dataclass(kw_only=True)
class Plant:
    """One service with a database, documents and configuration."""

    estate: TempEstate
    root: Path
    acknowledged: list[str] = field(default_factory=list)
    """Names of all documents whose rows were committed."""

    @classmethod
    def over(cls, cluster: Cluster, *, documents: int = 60, name: str = "estate", **changes: Any) -> Plant:
        """Make the plant, its repository and its ledger; nothing is backed up yet."""
        estate = TempEstate.over(cluster, name=name)
        root = cluster.root / f"{name}-plant"
        for folder in (root / "filestore", root / "configuration", root / "anchors"):
            folder.mkdir(parents=True)
        (root / "configuration" / "odoo.conf").write_text("[options]\nworkers = 4\n")
        plant = cls(estate=estate, root=root)
        plant.configure(**changes)
        hand_over(root)
        estate.json("init", account=as_user("postgres"))
        estate.archive_with_the_program()
        cluster.start()
        cluster.sql(f"create database {DATABASE}")
        for statement in (*TABLES.split(";"), *LINES.split(";")):
            if statement.strip():
                plant.sql(statement)
        for number in range(documents):
            plant.upload(f"document {number} ".encode() * (1 + number * 7))
        return plant

    @property
    def cluster(self) -> Cluster:
        return self.estate.cluster

    @property
    def filestore(self) -> Path:
        return self.root / "filestore"

    def document(self, **changes: Any) -> dict[str, Any]:
        """Return the configuration as a value of the caller's own: a change of it reaches no other test."""
        document: dict[str, Any] = json.loads(self.estate.config.read_text())
        service = document["services"]["erp"]
        service["components"]["database"]["dsn"] = self.cluster.dsn(DATABASE)
        service["components"]["documents"] = {
            "kind": "odoo-filestore",
            "path": str(self.filestore),
            "database": DATABASE,
        }
        service["components"]["configuration"] = {"kind": "directory", "path": str(self.root / "configuration")}
        service["objectives"] = {"rpo": "2m", "rto": "5m"}
        service["owner"] = "plant-it@example.com"
        service["checks"] = deepcopy(CHECKS)
        document["drills"] = deepcopy(DRILLS)
        document["evidence"] = {"anchors": [{"name": "second", "url": f"file://{self.root}/anchors"}]}
        return {**document, **changes}

    def configure(self, **changes: Any) -> None:
        """Write the configuration."""
        self.estate.config.write_text(json.dumps(self.document(**changes), indent=1))

    def sql(self, statement: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in the plant's database and commit it."""
        with self.cluster.connect(DATABASE) as connection:
            cursor = connection.execute(statement.encode(), tuple(parameters) or None)
            return cursor.fetchall() if cursor.description else []

    def put_file(self, content: bytes, *, name: str | None = None) -> str:
        """Write a document as Odoo does: at its final name, readable for everybody; no row yet."""
        digest = hashlib.sha1(content).hexdigest()
        name = name or f"{digest[:2]}/{digest}"
        path = self.filestore / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        hand_over(path.parent)
        return name

    def put_row(self, name: str, content: bytes) -> None:
        """Commit the row that refers to a document."""
        self.sql(
            "insert into ir_attachment (name, store_fname, checksum, file_size) values (%s, %s, %s, %s)",
            (f"scan {len(self.acknowledged)}", name, name.rpartition("/")[2], len(content)),
        )
        self.acknowledged.append(name)

    def upload(self, content: bytes) -> str:
        """File a document: the file first, then its row (document 5, section 1)."""
        name = self.put_file(content)
        self.put_row(name, content)
        return name

    def remove(self, name: str) -> None:
        """Delete a document's rows and let the garbage collection take its file."""
        self.sql("delete from ir_attachment where store_fname = %s", (name,))
        (self.filestore / name).unlink()
        self.acknowledged.remove(name)

    def archive(self) -> None:
        """Bring everything written so far into the repository."""
        segment = self.cluster.switch_wal()
        status = self.cluster.data / "pg_wal" / "archive_status" / f"{segment}.done"
        wait_for(status.exists, f"{segment} to be archived")

    def now(self) -> Any:
        """Return the server's clock."""
        return self.cluster.value("select clock_timestamp()")

    def json(self, *words: str | Path, status: int = 0, **how: Any) -> dict[str, Any]:
        """Run the program on this estate."""
        return self.estate.json(*words, status=status, **how)


def placed(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def clean_run(argv: list[str], variables: Mapping[str, str] | None = None) -> processes.Finished:
    """Run a program with nothing of this environment."""
    return processes.run(argv, environment=processes.clean_environment(dict(variables or {})), timeout_seconds=120)


def is_root() -> bool:
    return os.geteuid() == 0
