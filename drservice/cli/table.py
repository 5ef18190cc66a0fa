"""The table of commands: one line each, read without importing any of them.

To add a command, add a line: its name (``group command`` for one in a group), where its click command is, and
the sentence ``--help`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: its name, ``module:attribute`` of the click command, and a short help."""

    name: str
    target: str
    summary: str


COMMANDS: tuple[Entry, ...] = (
    Entry("init", "drservice.cli.init:init", "create the repository; write keys and a first configuration"),
    Entry("backup", "drservice.cli.backup:backup", "take a recovery point now"),
    Entry("wal push", "drservice.cli.wal:push", "archive one WAL file (for archive_command)"),
    Entry("wal helper", "drservice.cli.wal:helper", "archive ahead in parallel what PostgreSQL has ready"),
    Entry("wal stream", "drservice.cli.walstream:stream", "ship WAL as it is written, until stopped"),
    Entry("wal fetch", "drservice.cli.wal:fetch", "bring one WAL file back (for restore_command)"),
    Entry("wal check", "drservice.cli.walcheck:check", "find WAL that is missing in the archive; fill it with --fill"),
    Entry("wal prefetch", "drservice.cli.wal:prefetch", "fetch ahead of a server that replays (started by wal fetch)"),
    Entry("documents stream", "drservice.cli.documentstream:stream", "capture documents as they come, until stopped"),
    Entry("restore", "drservice.cli.restore:restore", "bring a service back to an instant, and prove it"),
    Entry("extract", "drservice.cli.extract:extract_command", "one database or table of an instant, as a file"),
    Entry("import", "drservice.cli.importing:import_command", "make a recovery point of a zip that Odoo made"),
    Entry("drill", "drservice.cli.drill:drill", "recover in isolation, check, judge, put on record, destroy"),
    Entry("info", "drservice.cli.info:info", "snapshots, reachable windows, what is at risk, what was proved"),
    Entry("verify", "drservice.cli.verify:verify", "check that the repository is whole"),
    Entry("retention", "drservice.cli.retention:retention", "what has expired and why; delete it with --apply"),
    Entry("prune", "drservice.cli.retention:prune", "which packs nothing refers to (marks only)"),
    Entry("rebuild", "drservice.cli.rebuild:rebuild_catalogue", "fill the catalogue from the repository"),
    Entry("node", "drservice.cli.node:node", "do this host's runs and look at the schedules"),
    Entry("up", "drservice.cli.node:up", "everything on this machine: catalogue, node, pages"),
    Entry("gate", "drservice.cli.gate:gate", "may this service be released now?"),
    Entry("restore-point", "drservice.cli.gate:restore_point", "leave a named point to come back to"),
    Entry("check", "drservice.cli.check:check", "named yes/no checks, each failure with its remedy"),
    Entry("environment list", "drservice.cli.environment:list_environments", "list environments on this host"),
    Entry("environment loss", "drservice.cli.environment:loss", "what a restore lost, and what is to be decided"),
    Entry("environment promote", "drservice.cli.environment:promote", "end the recovery of a paused server"),
    Entry("environment destroy", "drservice.cli.environment:destroy", "end and remove an environment"),
    Entry("evidence list", "drservice.cli.evidence:list_records", "list the newest records of the ledger"),
    Entry("evidence show", "drservice.cli.evidence:show", "show one record"),
    Entry("evidence export", "drservice.cli.evidence:export", "write the bundle for an auditor, with its report"),
    Entry("evidence verify", "drservice.cli.evidence:verify", "verify a bundle offline, step by step"),
    Entry("evidence anchor", "drservice.cli.evidence:anchor", "sign a checkpoint and copy it to every anchor"),
    Entry("evidence policy", "drservice.cli.evidence:policy", "print whose keys an auditor should believe"),
    Entry("evidence access", "drservice.cli.evidenceaccess:access", "days of the access log beside their digests"),
    Entry("evidence begin", "drservice.cli.evidence:begin", "make the log key here and begin the ledger"),
    Entry("keys enroll", "drservice.cli.keys:enroll", "put the key of another host on record"),
    Entry("keys list", "drservice.cli.keys:list_all", "data keys and who can open them"),
    Entry("keys check", "drservice.cli.keys:check", "prove that each identity opens a recent key"),
    Entry("keys rewrap", "drservice.cli.keys:rewrap", "wrap existing data keys for the recipients of today"),
    Entry("web", "drservice.cli.web:web", "serve pages and API from this machine"),
    Entry("account add", "drservice.cli.account:add", "add somebody who may use pages and API"),
    Entry("account list", "drservice.cli.account:list_accounts", "who may use pages and API"),
    Entry("account password", "drservice.cli.account:password", "give an account a new password"),
    Entry("account disable", "drservice.cli.account:disable", "end an account's sessions and tokens for good"),
    Entry("account enable", "drservice.cli.account:enable", "enable a disabled or locked account"),
    Entry("account token add", "drservice.cli.accounttoken:add", "make a token for a program, shown once"),
    Entry("account token list", "drservice.cli.accounttoken:list_tokens", "tokens, and what they are worth"),
    Entry("account token revoke", "drservice.cli.accounttoken:revoke", "end a token"),
    Entry("demo", "drservice.cli.demo:demo", "the whole story on this machine, in about a minute"),
    Entry("config show", "drservice.cli.config:show", "effective values with their origin"),
    Entry("config schema", "drservice.cli.config:schema", "JSON Schema of the configuration file, for editors"),
    Entry("config plan", "drservice.cli.configplan:plan", "what a changed file would change; the next slots"),
)

GROUPS: dict[str, str] = {
    "account": "people who may use pages and API",
    "account token": "tokens for programs",
    "config": "the configuration file",
    "documents": "documents of Odoo between backups",
    "evidence": "the ledger of evidence",
    "environment": "environments that were left running",
    "keys": "keys and who can read with them",
    "wal": "ship and fetch write-ahead log",
}
"""Short help of each group; a group shows once a command of it is in the table."""
