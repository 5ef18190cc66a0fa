"""The one table of permissions: which route needs which permission, and which roles have it.

Default deny: a route that is not in :data:`ROUTES` cannot be served (:func:`require_complete` stops the start), and a
permission that names no role is had by nobody. Roles do not include each other: who runs backups and restores has two
roles. A restore in place, shorter retention and deletions of what is stored are not offered over HTTP, so no role has
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from drservice.errors import UnguardedRouteError


class Role(Enum):
    """What somebody is here for."""

    VIEWER = "viewer"
    """Sees states and runs."""
    AUDITOR = "auditor"
    """Sees evidence, and nothing else."""
    OPERATOR = "operator"
    """Starts backups and drills."""
    RESTORER = "restorer"
    """Starts isolated restores."""
    APPROVER = "approver"
    """Sees what there is to approve."""
    ADMIN = "admin"
    """Sees and ends everybody's tokens; starts nothing."""


class Permission(Enum):
    """What a route lets somebody do."""

    PUBLIC = "public"
    """Needs nobody: signing in, health, files of the pages."""
    SIGNED_IN = "signed in"
    """Anybody with an account: one's own tokens and session."""
    SEE = "see"
    EVIDENCE = "evidence"
    OPERATE = "operate"
    RESTORE = "restore"
    DESTROY = "destroy"
    """Ends environments that restores and kept drills have left; nothing that is stored."""
    CANCEL = "cancel"
    """Asks for the permission of the run's kind as well."""


GRANTS: Mapping[Permission, frozenset[Role]] = {
    Permission.SIGNED_IN: frozenset(Role),
    Permission.SEE: frozenset(Role) - {Role.AUDITOR},
    Permission.EVIDENCE: frozenset(Role) - {Role.VIEWER},
    Permission.OPERATE: frozenset({Role.OPERATOR}),
    Permission.RESTORE: frozenset({Role.RESTORER}),
    Permission.DESTROY: frozenset({Role.OPERATOR, Role.RESTORER}),
    Permission.CANCEL: frozenset({Role.OPERATOR, Role.RESTORER}),
}
"""Which roles have a permission (``PUBLIC`` needs none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a route needs."""

    permission: Permission
    logged: bool = True
    """Whether a request is worth a row of the access log."""


_PUBLIC = Rule(permission=Permission.PUBLIC)
_UNLOGGED = Rule(permission=Permission.PUBLIC, logged=False)
_SIGNED_IN = Rule(permission=Permission.SIGNED_IN)
_SEE = Rule(permission=Permission.SEE)
_EVIDENCE = Rule(permission=Permission.EVIDENCE)

ROUTES: Mapping[str, Rule] = {
    "static": _UNLOGGED,
    "healthz": _UNLOGGED,
    "readyz": _UNLOGGED,
    "metrics": _SEE,
    "openapi": _SIGNED_IN,
    # the API
    "api.me": _SIGNED_IN,
    "api.services.list": _SEE,
    "api.services.get": _SEE,
    "api.points.list": _SEE,
    "api.window.get": _SEE,
    "api.schedules.list": _SEE,
    "api.runs.list": _SEE,
    "api.runs.get": _SEE,
    "api.runs.log": _SEE,
    "api.runs.events": _SEE,
    "api.backups.start": Rule(permission=Permission.OPERATE),
    "api.drills.start": Rule(permission=Permission.OPERATE),
    "api.restores.start": Rule(permission=Permission.RESTORE),
    "api.environments.list": _SEE,
    "api.environments.destroy": Rule(permission=Permission.DESTROY),
    "api.runs.cancel": Rule(permission=Permission.CANCEL),
    "api.gate.ask": _SEE,
    "api.evidence.list": _EVIDENCE,
    "api.evidence.get": _EVIDENCE,
    "api.evidence.bundle": _EVIDENCE,
    "api.evidence.verify": _EVIDENCE,
    "api.evidence.obligations": _EVIDENCE,
    "api.tokens.list": _SIGNED_IN,
    "api.tokens.create": _SIGNED_IN,
    "api.tokens.get": _SIGNED_IN,
    "api.tokens.revoke": _SIGNED_IN,
    # the pages
    "page.sign-in": _PUBLIC,
    "page.sign-in.try": _PUBLIC,
    "page.sign-out": _SIGNED_IN,
    "page.start": _SIGNED_IN,
    "page.overview": _SEE,
    "page.overview.table": _SEE,
    "page.service": _SEE,
    "page.service.preview": _SEE,
    "page.service.backup": Rule(permission=Permission.OPERATE),
    "page.service.drill": Rule(permission=Permission.OPERATE),
    "page.service.restore": Rule(permission=Permission.RESTORE),
    "page.environment.destroy": Rule(permission=Permission.DESTROY),
    "page.runs": _SEE,
    "page.run": _SEE,
    "page.run.live": _SEE,
    "page.run.cancel": Rule(permission=Permission.CANCEL),
    "page.evidence": _EVIDENCE,
    "page.evidence.verify": _EVIDENCE,
}
"""Every route by its name. A route whose path has a ``{service}`` is refused outside of the caller's services."""


def may(roles: Iterable[Role], permission: Permission) -> bool:
    """Tell whether somebody with these roles has a permission."""
    return permission is Permission.PUBLIC or not GRANTS.get(permission, frozenset()).isdisjoint(roles)


def require_complete(served: Iterable[str]) -> None:
    """Refuse to serve unless routes and table fit each other.

    Raises:
        UnguardedRouteError: a route has no entry, or an entry no route (a slip of the pen in one of the names).
    """
    names = list(served)
    unguarded = sorted(set(names) - set(ROUTES))
    if unguarded:
        raise UnguardedRouteError(f"nobody has said who may use {', '.join(unguarded)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnguardedRouteError(f"two routes have the name {', '.join(twice)}")
    unserved = sorted(set(ROUTES) - set(names))
    if unserved:
        raise UnguardedRouteError(f"the table of permissions knows {', '.join(unserved)}, which nothing serves")
