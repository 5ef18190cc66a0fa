"""The catalogue of errors: one tree, stable codes, exit statuses and hints.

Every error a person can meet is a class here. The code never changes its meaning, the exit status follows
the contract of the command line (0 ok, 1 failed, 2 usage or configuration, 3 partial, 4 objective or policy
breached, 5 integrity, 6 busy, 7 not authorised, 8 unreachable, 130 interrupted), and the hint names the
likely cause and what to do next. A library's own error is translated once, where it is called, with ``from``.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the command line (a contract)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    BREACHED = 4
    INTEGRITY = 5
    BUSY = 6
    NOT_AUTHORISED = 7
    UNREACHABLE = 8
    INTERRUPTED = 130


class DrError(Exception):
    """Base of every error that is meant for a person.

    Args:
        message: what happened, with the names and numbers of the moment.
        hint: overrides the class's hint where the place of failure knows better.
    """

    code = "DR000"
    exit_status = ExitStatus.FAILED
    hint = "Run again with --log-level debug and read the lines before this one."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a worker process with the hint."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[DrError], message: str, hint: str) -> DrError:
    return kind(message, hint=hint)


# --- DR1xx: usage and configuration -------------------------------------------------------------------------


class UsageError(DrError):
    """The command line makes no sense as given."""

    code = "DR100"
    exit_status = ExitStatus.USAGE
    hint = "See the command's --help."


class ConfigurationError(DrError):
    """The configuration file is missing, unreadable or invalid."""

    code = "DR101"
    exit_status = ExitStatus.USAGE
    hint = "Compare with config/drservice.example.yaml; `drservice config schema` prints the JSON Schema."


class SecretError(DrError):
    """A secret reference cannot be resolved."""

    code = "DR102"
    exit_status = ExitStatus.USAGE
    hint = "References are file:PATH, env:NAME or command:ARGV; check that this user may read it."


class UnknownNameError(DrError):
    """A service, component, snapshot or environment of this name does not exist."""

    code = "DR103"
    exit_status = ExitStatus.USAGE
    hint = "`drservice info` lists the services and snapshots."


class BusyError(DrError):
    """Another run of the same kind holds the lock."""

    code = "DR110"
    exit_status = ExitStatus.BUSY
    hint = "Wait for the other run to end, or look for it with `ps`."


class InterruptedRunError(DrError):
    """A person or a signal stopped the run."""

    code = "DR130"
    exit_status = ExitStatus.INTERRUPTED
    hint = "Nothing partial is visible; run the same command again, uploaded data is re-used."


# --- DR2xx: write-ahead log ---------------------------------------------------------------------------------


class WalError(DrError):
    """Something is wrong with a WAL file or the archive."""

    code = "DR200"
    hint = "Look at PostgreSQL's log and at `drservice info`."


class SegmentConflictError(WalError):
    """A different WAL segment is already archived under this name."""

    code = "DR210"
    exit_status = ExitStatus.INTEGRITY
    hint = "Two servers may be archiving to one place; stop one before you retry."


class ForeignSegmentError(WalError):
    """The file is not the WAL segment its name claims, or belongs to another cluster."""

    code = "DR211"
    exit_status = ExitStatus.INTEGRITY
    hint = (
        "Check that archive_command passes %p of the right cluster;"
        " after pg_upgrade or a new initdb use `drservice init --adopt`."
    )


class SegmentAbsentError(WalError):
    """Proven: the archive has no such file and nothing later on the planned timelines."""

    code = "DR212"
    exit_status = ExitStatus.FAILED
    hint = "This is the ordinary end of the archived WAL."


class WalGapError(WalError):
    """A WAL file is missing in the middle of the archive."""

    code = "DR213"
    exit_status = ExitStatus.INTEGRITY
    hint = "Recovery cannot cross a gap. Choose an instant on one side of it; take a new backup now."


class WalTimeoutError(WalError):
    """The WAL of a backup did not reach the store in time."""

    code = "DR214"
    hint = (
        "Look at pg_stat_archiver.last_failed_wal and PostgreSQL's log;"
        " `drservice check` prints the archive_command to use."
    )


# --- DR3xx: recovery ----------------------------------------------------------------------------------------


class RecoveryError(DrError):
    """A restore failed."""

    code = "DR300"
    hint = "The target directory is incomplete; empty it and run again, or choose another snapshot."


class TargetOutsideWindowError(RecoveryError):
    """The requested target cannot be reached with what the repository holds."""

    code = "DR310"
    hint = "`drservice info` shows the reachable window."


class TargetDirectoryError(RecoveryError):
    """The restore target is not an empty directory."""

    code = "DR311"
    exit_status = ExitStatus.USAGE
    hint = "Give --into a new or empty directory; nothing was written."


class ReplayError(RecoveryError):
    """PostgreSQL did not reach the target."""

    code = "DR312"
    hint = "The server log named above tells why; the snapshot may need more WAL than the archive holds."


class ProofError(RecoveryError):
    """The server started, but what was reached is not what was planned."""

    code = "DR313"
    exit_status = ExitStatus.INTEGRITY
    hint = "Do not use this copy. Restore again from another snapshot and report the difference."


# --- DR4xx: repository --------------------------------------------------------------------------------------


class RepositoryError(DrError):
    """The repository is not what it should be."""

    code = "DR400"
    hint = "Run `drservice verify` to see the extent."


class RepositoryMissingError(RepositoryError):
    """There is no repository at this address."""

    code = "DR401"
    exit_status = ExitStatus.USAGE
    hint = "Check repository.url; `drservice init` creates a repository."


class RepositoryExistsError(RepositoryError):
    """A repository is there already."""

    code = "DR402"
    exit_status = ExitStatus.USAGE
    hint = "Nothing was changed. Use another url, or go on with the existing repository."


class FormatError(RepositoryError):
    """An object's bytes do not follow the format."""

    code = "DR410"
    exit_status = ExitStatus.INTEGRITY
    hint = "The object is damaged or written by a newer version; `drservice verify` names what is affected."


class DamagedObjectError(RepositoryError):
    """An object is there, but its content is not what was written."""

    code = "DR411"
    exit_status = ExitStatus.INTEGRITY
    hint = "Run `drservice verify`, then a new backup; another snapshot may still be restorable."


class MissingObjectError(RepositoryError):
    """An object that others rely on is not there."""

    code = "DR412"
    exit_status = ExitStatus.INTEGRITY
    hint = "Run `drservice verify`, then a new backup; another snapshot may still be restorable."


class SystemIdentifierError(RepositoryError):
    """The PostgreSQL cluster is not the one this component was created with."""

    code = "DR420"
    exit_status = ExitStatus.INTEGRITY
    hint = "Wrong server? After pg_upgrade or a new initdb, `drservice init --adopt` begins a new lineage."


# --- DR5xx: object store ------------------------------------------------------------------------------------


class ObjectStoreError(DrError):
    """The object store answered with an error."""

    code = "DR500"
    exit_status = ExitStatus.UNREACHABLE
    hint = "Check address, credentials and bucket; `drservice check` tests each."


class ObjectExistsError(ObjectStoreError):
    """The key is taken (the create-only primitive says no)."""

    code = "DR501"
    exit_status = ExitStatus.FAILED
    hint = "Objects are immutable; a second writer lost the race."


class ObjectNotFoundError(ObjectStoreError):
    """The store answered: no such object."""

    code = "DR502"
    exit_status = ExitStatus.FAILED
    hint = "The object was never written or was deleted."


class StoreUnreachableError(ObjectStoreError):
    """No answer, or a passing fault that did not pass within the retry budget."""

    code = "DR503"
    hint = "Check the network and the store's status; nothing was lost, run the command again."


class StoreDeniedError(ObjectStoreError):
    """The store refused for lack of rights."""

    code = "DR504"
    exit_status = ExitStatus.NOT_AUTHORISED
    hint = "Check the credentials and the bucket policy (Put, Get, List)."


class StoreFullError(ObjectStoreError):
    """No space left, or a quota is reached."""

    code = "DR505"
    exit_status = ExitStatus.FAILED
    hint = "Free space or raise the quota; PostgreSQL keeps its WAL until archiving works again."


class InvalidKeyError(ObjectStoreError):
    """A name cannot be the key of an object."""

    code = "DR506"
    exit_status = ExitStatus.INTEGRITY
    hint = "The name was built from damaged or hostile data; nothing was read or written under it."


# --- DR6xx: environments ------------------------------------------------------------------------------------


class EnvironmentFailedError(DrError):
    """The isolated environment could not be made or died."""

    code = "DR600"
    hint = "`drservice check` tells whether bubblewrap and PostgreSQL's programs are usable here."


class IsolationError(EnvironmentFailedError):
    """The isolation self-test found a way out."""

    code = "DR601"
    exit_status = ExitStatus.INTEGRITY
    hint = "Nothing was started. A recovered system must not reach anything; see the failed probes above."


class ProgramMissingError(EnvironmentFailedError):
    """A program that is needed is not installed."""

    code = "DR602"
    exit_status = ExitStatus.USAGE
    hint = "Install it with the system's package manager."


class EnvironmentLimitError(EnvironmentFailedError):
    """The environment was ended because what runs inside broke one of its limits."""

    code = "DR603"
    hint = "Raise the limit if what is recovered needs more; otherwise look what runs inside."


class UnansweredError(DrError):
    """A check's question got no proper answer."""

    code = "DR620"
    exit_status = ExitStatus.INTEGRITY
    hint = "A check asks for exactly one row; what could not be answered is not verified."


# --- DR7xx: PostgreSQL --------------------------------------------------------------------------------------


class PostgresError(DrError):
    """PostgreSQL cannot be used as asked."""

    code = "DR700"
    hint = "Look at PostgreSQL's log; `drservice check` tests the connection and the rights."


class PostgresUnreachableError(PostgresError):
    """No connection to the PostgreSQL server."""

    code = "DR701"
    exit_status = ExitStatus.UNREACHABLE
    hint = "Check dsn, pg_hba.conf and that the server runs."


class CaptureError(PostgresError):
    """A backup cannot be taken or was spoilt while it ran."""

    code = "DR710"
    hint = "Nothing partial is visible; run the backup again, uploaded data is re-used."


class DocumentsError(DrError):
    """Documents or other files cannot be backed up or restored as asked."""

    code = "DR720"
    hint = "Look at the folder that the message names, and at who may read or write it."


class DocumentsUnreadableError(DocumentsError):
    """The folder of a component cannot be read at all."""

    code = "DR721"
    hint = "Check that its path is right and mounted, and that this user may read it; there is no snapshot."


class DocumentsDamagedError(DocumentsError):
    """Files of a snapshot cannot be brought back, and the restore was to bring back all of them."""

    code = "DR722"
    exit_status = ExitStatus.INTEGRITY
    hint = "Nothing is under the target's name; restore an older snapshot, and run `drservice verify`."


class UnsupportedClusterError(PostgresError):
    """The cluster has a property this method does not support."""

    code = "DR711"
    exit_status = ExitStatus.USAGE
    hint = "Use the method the message names."


# --- DR8xx: keys and signatures -----------------------------------------------------------------------------


class KeyProblemError(DrError):
    """A key cannot be used."""

    code = "DR800"
    exit_status = ExitStatus.INTEGRITY
    hint = "`drservice keys check` tries each identity on a recent key."


class WrongIdentityError(KeyProblemError):
    """The identity does not open this data key."""

    code = "DR801"
    hint = "Use the identity of one of the recipients the repository was written for."


class NoIdentityError(KeyProblemError):
    """Reading needs an identity and none is configured here."""

    code = "DR802"
    exit_status = ExitStatus.USAGE
    hint = "Set repository.identity on the recovery host; backup hosts need none."


class UnknownSignerError(KeyProblemError):
    """An object is signed by a key that is not trusted for this service."""

    code = "DR810"
    hint = "Add the host to repository.signers if it is yours; if it is not, somebody else can write here."


class BadSignatureError(KeyProblemError):
    """A signature does not match: the object was changed after it was written."""

    code = "DR811"
    hint = "Treat it as tampering until explained; `drservice verify` names what is affected."


# --- DR82x: evidence ----------------------------------------------------------------------------------------


class StatementError(DrError):
    """A statement cannot be signed as it is, or signed bytes are no statement."""

    code = "DR820"
    exit_status = ExitStatus.INTEGRITY
    hint = (
        "Backups and restores do not need the ledger: nothing of them is lost. `drservice evidence list` shows how far"
        " it can be read; find out who wrote there, a newer drservice or somebody who should not; leave it as it is."
    )


class LedgerError(DrError):
    """The ledger cannot be written or read."""

    code = "DR821"
    hint = "Records of runs are kept aside below state_dir/evidence/pending and appended by the next run that can."


class LedgerGapError(LedgerError):
    """An entry is missing in the middle of the ledger."""

    code = "DR822"
    exit_status = ExitStatus.INTEGRITY
    hint = "Entries are never deleted: find out who removed it. A copy may still hold it; do not write over the gap."


class LedgerRollbackError(LedgerError):
    """The ledger is shorter than, or differs from, what was signed or seen before."""

    code = "DR823"
    exit_status = ExitStatus.INTEGRITY
    hint = "Nothing was signed. The store was set back or changed; bring the missing entries back from a copy."


class LedgerMissingError(LedgerError):
    """There is no ledger here yet."""

    code = "DR824"
    exit_status = ExitStatus.USAGE
    hint = "`drservice init` begins the ledger on the host that holds the log key."


class LogKeyError(LedgerError):
    """The log key or another key of the ledger cannot be used."""

    code = "DR825"
    exit_status = ExitStatus.USAGE
    hint = "Only the host with log.key in its state_dir signs checkpoints; other hosts append without it."


class CheckpointError(LedgerError):
    """A checkpoint is not signed by a known log key, or is no checkpoint of this ledger."""

    code = "DR826"
    exit_status = ExitStatus.INTEGRITY
    hint = "Compare the log keys that are trusted here with the fingerprint in entry 0; treat a stranger as tampering."


class AnchorError(LedgerError):
    """An anchor cannot be read or believed; it never counts as absent."""

    code = "DR827"
    exit_status = ExitStatus.INTEGRITY
    hint = "Check the second store: it is what a set-back ledger is found with."


class VerificationFailedError(DrError):
    """The verifier found something wrong in a bundle."""

    code = "DR828"
    exit_status = ExitStatus.INTEGRITY
    hint = "docs/evidence.md explains the step; do not rely on this bundle until the difference is explained."


class LedgerClockError(LedgerError):
    """By its date a record would look forged where it is to stand: the clock of this host or of another is wrong."""

    code = "DR829"
    hint = (
        "Correct the clock of this host, or wait until it is past that time if the other one was wrong, and run the"
        " command again. A backup or restore is good all the same: its record is kept aside and marked as late."
    )


class RecordTooLargeError(StatementError):
    """What was done is too much to say for one record."""

    code = "DR830"
    exit_status = ExitStatus.FAILED
    hint = (
        "Nothing that was backed up or restored is lost, only this record is missing. Give the service fewer checks, or"
        " shorter names and owners of checks, in the configuration, and run the command again."
    )


class EvidenceExportError(DrError):
    """Evidence cannot be exported."""

    code = "DR840"
    hint = "Nothing was left behind; repair what the message names and export again."


class BundleExistsError(EvidenceExportError):
    """There is something already where the bundle is to be written."""

    code = "DR841"
    exit_status = ExitStatus.USAGE
    hint = "Bundles are never overwritten; name another place."


class EvidenceIncompleteError(EvidenceExportError):
    """What is to be exported is not whole, or not what it says it is."""

    code = "DR842"
    exit_status = ExitStatus.INTEGRITY
    hint = "`drservice evidence verify` names the first thing wrong with the ledger itself."


class ReportRenderError(EvidenceExportError):
    """The report could not be set."""

    code = "DR843"
    hint = "Please report it with the message; the bundle can be written without its reports."


# --- DR85x: retention and the gate -------------------------------------------------------------------------------


class RetentionError(DrError):
    """It cannot be told what may be deleted, so nothing was."""

    code = "DR850"
    hint = "Nothing was deleted. Look at `drservice info` and `drservice verify`."


class ProofUnknownError(RetentionError):
    """It cannot be told which snapshots recovery was last proved with."""

    code = "DR851"
    hint = "Nothing was deleted. See `drservice evidence list`; `drservice drill SERVICE` makes a new proof."


class PacksUnknownError(RetentionError):
    """It cannot be told which packs are still referred to."""

    code = "DR852"
    exit_status = ExitStatus.INTEGRITY
    hint = "`drservice verify` names what is damaged. A pack counts as unused only if every snapshot can be read."


class RestorePointError(DrError):
    """A named restore point cannot be left."""

    code = "DR860"
    hint = "No restore point that can be relied on was left; look at the message and at PostgreSQL's log."


class RestorePointNameError(RestorePointError):
    """The name of a restore point cannot be used."""

    code = "DR861"
    exit_status = ExitStatus.USAGE
    hint = "Use 1 to 63 of a-z, A-Z, 0-9, `.`, `-` and `_`, and a new name for each point, such as release-42."


# --- DR9xx: this program ------------------------------------------------------------------------------------


class WorkerDiedError(DrError):
    """A worker process ended without an answer."""

    code = "DR910"
    hint = "It was killed or ran out of memory; look at the kernel's log, then run again: uploaded data is re-used."


class CatalogueError(DrError):
    """The catalogue cannot be used."""

    code = "DR920"
    exit_status = ExitStatus.USAGE
    hint = "catalogue is `embedded` or postgresql://USER@HOST/DATABASE."


class CatalogueUnreachableError(CatalogueError):
    """The catalogue's database does not answer."""

    code = "DR921"
    exit_status = ExitStatus.UNREACHABLE
    hint = "Backups, WAL and restores from the command line go on without it; look at the database's server and log."


class CatalogueSchemaError(CatalogueError):
    """The catalogue's tables are not those of this program."""

    code = "DR922"
    hint = "`drservice rebuild` and the start of a node or web process bring the tables up to date."


class EmbeddedClusterError(CatalogueError):
    """The private PostgreSQL cluster of the catalogue cannot be started or stopped."""

    code = "DR923"
    exit_status = ExitStatus.FAILED
    hint = "Read state_dir/catalogue/log. While stopped it can be deleted: `drservice rebuild` fills a new one."


class LeaseLostError(CatalogueError):
    """The hosts of a run stopped renewing its lease, too often for another try."""

    code = "DR924"
    exit_status = ExitStatus.FAILED
    hint = "Look at the hosts' logs: the run may be what ends them (memory, disk). Then request it again."


class HostTakenError(DrError):
    """Another node with this host's name is running."""

    code = "DR940"
    exit_status = ExitStatus.BUSY
    hint = "Give one of them another --name. A name is free again when its node has ended or was silent for a lease."


class RunTakenAwayError(DrError):
    """A run is no longer this node's: its lease ended, or it was cancelled."""

    code = "DR941"
    exit_status = ExitStatus.BUSY
    hint = "Nothing is wrong with what is stored. The run's page shows who has it now."


class RunCancelledError(DrError):
    """Somebody cancelled the run."""

    code = "DR942"
    exit_status = ExitStatus.INTERRUPTED
    hint = "What was uploaded is re-used by the next run."


class UnsupportedRunError(DrError):
    """The node does not know how to do this run."""

    code = "DR943"
    exit_status = ExitStatus.USAGE
    hint = "Compare the versions of the nodes, and what the run asks for with the configuration of its host."


class NotProvedError(DrError):
    """A verification or drill ended and did not prove what it should."""

    code = "DR944"
    hint = "Its result lists what was found; `drservice verify` and `drservice drill` ask the same questions."


# --- DR95x: web and API -------------------------------------------------------------------------------------


class NotSignedInError(DrError):
    """The request carries no password, token or session that is good for anything now."""

    code = "DR950"
    exit_status = ExitStatus.NOT_AUTHORISED
    hint = "Sign in, or send a token that is neither expired nor revoked: Authorization: Bearer TOKEN."


class ForbiddenError(DrError):
    """Who asked is known, and may not do this."""

    code = "DR951"
    exit_status = ExitStatus.NOT_AUTHORISED
    hint = "The table of permissions says which roles may; an administrator gives roles."


class CrossSiteError(DrError):
    """A change was asked for by a page that is not ours."""

    code = "DR952"
    exit_status = ExitStatus.NOT_AUTHORISED
    hint = "Reload the page and try again; programs use a token instead of a session."


class TooManyRequestsError(DrError):
    """More requests come from one address or account than are answered."""

    code = "DR953"
    exit_status = ExitStatus.BUSY
    hint = "Wait for the seconds that Retry-After says."


class IdempotencyKeyError(DrError):
    """A request that changes something has no usable Idempotency-Key."""

    code = "DR954"
    exit_status = ExitStatus.USAGE
    hint = "Send Idempotency-Key: 1 to 64 letters, digits, - or _. The same request may be repeated with the same key."


class IdempotencyReuseError(DrError):
    """An Idempotency-Key was used before, for another request."""

    code = "DR955"
    exit_status = ExitStatus.USAGE
    hint = "Take a new key for each new request."


class StaleError(DrError):
    """What was to be changed has changed since it was read."""

    code = "DR956"
    exit_status = ExitStatus.BUSY
    hint = "Read it again, decide again, and send its new ETag in If-Match."


class InvalidRequestError(DrError):
    """A request over HTTP makes no sense as it was sent."""

    code = "DR957"
    exit_status = ExitStatus.USAGE
    hint = "Compare with /api/v1/openapi.json."


class AbsentError(DrError):
    """There is nothing at this address, or nothing that who asked may see."""

    code = "DR958"
    exit_status = ExitStatus.USAGE
    hint = "Look at the list that it should be in."


class UnguardedRouteError(DrError):
    """A route has no entry in the table of permissions, so nothing is served."""

    code = "DR959"
    hint = "Add the route to the table in drservice/web/auth/permissions.py."


class OverError(DrError):
    """The run has ended already."""

    code = "DR960"
    exit_status = ExitStatus.BUSY
    hint = "Read it again: it has a result."


class ListenError(DrError):
    """The web process cannot listen on its address."""

    code = "DR961"
    hint = "Another process may use the port; choose one with --listen HOST:PORT."


class AccountError(DrError):
    """An account cannot be made or changed as asked."""

    code = "DR962"
    exit_status = ExitStatus.USAGE
    hint = "`drservice account list` shows the accounts."


class NotifyPlaceError(DrError):
    """A place of `notify` cannot be told anything, as it is configured."""

    code = "DR930"
    exit_status = ExitStatus.USAGE
    hint = "docs/deployment.md lists the URLs that are taken; the URL itself is a secret and is never shown."


class NotifyDeliveryError(DrError):
    """A place of `notify` did not take a message."""

    code = "DR931"
    exit_status = ExitStatus.UNREACHABLE
    hint = "The message is tried again; look at the place itself, and whether its URL is still good."
