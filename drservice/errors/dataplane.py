"""Errors of the main job: usage, write-ahead log, recovery, repository, object store, environments, PostgreSQL."""

from __future__ import annotations

from drservice.errors.base import DrError, ExitStatus

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


class ServerRunningError(RecoveryError):
    """A PostgreSQL server runs on the directory that is to be written over, or that cannot be excluded."""

    code = "DR314"
    exit_status = ExitStatus.USAGE
    hint = "Stop it first. If none runs, remove what the message names. Nothing was written."


class DocumentsUnprovenError(TargetOutsideWindowError):
    """There is no instant at which all documents are known to be stored that rows refer to."""

    code = "DR315"
    hint = (
        "A backup of the whole service proves one (drservice backup SERVICE), and so does the capture of documents."
        " Without: --to latest restores what there is, and names each document that is missing."
    )


class DumpError(DrError):
    """A dump could not be taken from a recovered database, or is not whole."""

    code = "DR320"
    hint = "Nothing is under the name of --output. Look at what the message says; restore with --start to look inside."


class OutputFileError(DumpError):
    """The file of a dump cannot be written."""

    code = "DR321"
    hint = "Give --output a place that this user may write, with enough space."


class OutputTakenError(OutputFileError):
    """There is a file of this name, or no folder for it."""

    code = "DR322"
    exit_status = ExitStatus.USAGE
    hint = "Nothing is overwritten: give --output another name, or move away what is there."


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


class WrongDataKeyError(DamagedObjectError):
    """A data key is not the one that something was sealed with."""

    code = "DR413"
    hint = (
        "A wrapping under keys/ holds a false key, or the object was moved here. `drservice verify` names wrappings"
        " that differ. A right one counts beside a false one: run `drservice keys rewrap` where an identity opens one."
    )


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


class StoreThrottledError(StoreUnreachableError):
    """The store asks to be asked less often."""

    code = "DR507"
    hint = "The store limits requests; run fewer workers or at another time, or ask its owner. Nothing was lost."


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


class ProgramVersionError(ProgramMissingError):
    """A program is installed, but in no version that may be used on this cluster."""

    code = "DR604"
    hint = "Install the version the message names; several versions may be installed beside each other."


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


class StandbyPromotedError(CaptureError):
    """The standby that was being backed up became a primary."""

    code = "DR712"
    hint = "Nothing is visible. See where dsn leads now, and back up again from the new primary or another standby."


class StreamError(PostgresError):
    """The server does not stream its WAL."""

    code = "DR730"
    hint = "Look at PostgreSQL's log; what is not streamed waits on the server as long as the slot keeps it."


class SlotBusyError(StreamError):
    """Another receiver uses the replication slot."""

    code = "DR731"
    exit_status = ExitStatus.BUSY
    hint = (
        "One receiver is enough: stop the other one (pg_stat_activity shows it), or let it be; this one takes over"
        " when it is gone."
    )


class SlotLostError(StreamError):
    """The replication slot is gone, and WAL with it that nobody else has."""

    code = "DR732"
    exit_status = ExitStatus.INTEGRITY
    hint = (
        "Take a new snapshot now (`drservice backup`): instants in the hole cannot be reached. Raise"
        " max_slot_wal_keep_size so that the slot outlasts an absence of the store."
    )


class WalRemovedError(StreamError):
    """The server has no longer the WAL that was asked for."""

    code = "DR733"
    exit_status = ExitStatus.INTEGRITY
    hint = (
        "Take a new snapshot: instants in the hole cannot be reached. If the slot itself points to what is gone, drop"
        " it (pg_drop_replication_slot): the receiver makes a new one."
    )


class WrongTimelineError(StreamError):
    """The server is on an older timeline than the repository knows: it is not the primary any more."""

    code = "DR734"
    exit_status = ExitStatus.INTEGRITY
    hint = (
        "Point dsn (or primary_dsn) at the present primary. If this server is to go on in its place, restart it with"
        " standby.signal and promote it: it then begins a timeline of its own."
    )


# --- Git clones and Redis -----------------------------------------------------------------------------------


class GitCloneError(DrError):
    """A git clone cannot be captured or restored."""

    code = "DR760"
    hint = "Look at the clone that the message names with git itself, as its owner."


class GitMismatchError(GitCloneError):
    """A restored clone is not what was recorded of it."""

    code = "DR761"
    exit_status = ExitStatus.INTEGRITY
    hint = "Nothing is under the target's name; restore an older snapshot, and run `drservice verify`."


class RedisError(DrError):
    """Redis refuses what a backup needs."""

    code = "DR770"
    hint = "The user needs the commands PSYNC, REPLCONF and INFO (ACL: +psync +replconf +info +config|get)."


class RedisUnreachableError(RedisError):
    """There is no connection to Redis, or it went away."""

    code = "DR771"
    exit_status = ExitStatus.UNREACHABLE
    hint = "Check url, password and that Redis runs; everything else of the service is backed up without it."


class RedisDumpError(RedisError):
    """What Redis sent is no whole RDB file."""

    code = "DR772"
    exit_status = ExitStatus.INTEGRITY
    hint = "Back up again; if it stays so, look at Redis' own log."


# --- Copies of Odoo that do nothing outside ------------------------------------------------------------------


class NeutralizeError(DrError):
    """A copy of Odoo's database could not be made harmless; nothing of Odoo was started on it."""

    code = "DR780"
    hint = (
        "The message names the module and the statement. Correct the module's data/neutralize.sql (or what the database"
        " lacks for it), back up again, and restore from that snapshot; a drill can leave it out (`neutralize: false`)."
    )


class NeutralizedCopyError(DrError):
    """What was asked for is not done with a neutralized copy: its mail, keys and scheduled actions are gone."""

    code = "DR781"
    hint = "Restore again without --neutralize; a neutralized copy never takes production's place."


class NeutralizedSourceError(NeutralizedCopyError):
    """The database that is to be backed up is a neutralized copy."""

    code = "DR782"
    hint = (
        "Correct dsn and database if they lead to a copy. If this is production, it was neutralized by accident:"
        " restore it to an instant before that; `drservice check` says the same."
    )


# --- Zips of Odoo's that are imported -------------------------------------------------------------------------


class ImportRefusedError(DrError):
    """A zip of Odoo's cannot be imported: it is not whole, or holds what no backup of Odoo's holds."""

    code = "DR790"
    exit_status = ExitStatus.INTEGRITY
    hint = "Nothing was stored. Have Odoo make the zip again, and copy it whole; compare its size on both sides."


class IncompleteImportError(ImportRefusedError):
    """Rows of the dump refer to documents that the zip does not have as they were."""

    code = "DR791"
    hint = (
        "Nothing was stored. Odoo lists no document that it lost while it made the zip: make it again, at night. If"
        " production lacks them too, import what there is with --accept-damage."
    )


class ImportTakenError(ImportRefusedError):
    """The service's own cluster is backed up: what comes from a dump must not stand beside it."""

    code = "DR792"
    exit_status = ExitStatus.USAGE
    hint = "Give the import a service of its own in the configuration, with a postgres and an odoo-filestore component."
