"""Errors of keys, signatures and evidence, of retention and the gate."""

from __future__ import annotations

from drservice.errors.base import DrError, ExitStatus

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
