"""Errors of the program itself: catalogue, runs, hosts, web, people who are told."""

from __future__ import annotations

from drservice.errors.base import DrError, ExitStatus

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


class RetentionStoppedError(DrError):
    """A scheduled retention run did not let go of what it might have: somebody has to look first."""

    code = "DR945"
    hint = (
        "`drservice retention SERVICE --dry-run` says what would go and why; `drservice verify` finds what is damaged."
    )


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
