"""How a cluster that was shut down at its target is started later: the settings that a person adds."""

from __future__ import annotations

import shlex
from pathlib import Path

from drservice.components.postgres.recovery import TargetAction, quote_setting, recovery_options
from drservice.operations.restorerequest import RestoreResult

_SHELL_RULE = "s=$?; case $s in 0) exit 0;; 44) exit 1;; *) exit 127;; esac"


def recovery_settings(result: RestoreResult, config: Path) -> tuple[tuple[str, str], ...]:
    """Return what a start needs to go on to the same target and promote there.

    Without a ``restore_command`` PostgreSQL refuses to start in recovery, and without the target it would replay on.
    """
    plan = result.planned.resolved.plan
    scope = result.planned.scope
    words = ["drservice", "--config", str(config.absolute()), "wal", "fetch"]
    words += ["--service", f"{scope.service}/{scope.component}", "--system-id", plan.snapshot.postgres.system_id]
    own = plan.timeline == plan.snapshot.postgres.timeline
    options = recovery_options(
        result.planned.resolved.replay,
        restore_command=f'{shlex.join(words)} "%f" "%p"; {_SHELL_RULE}',
        action=TargetAction.PROMOTE,
        timeline="current" if own else plan.timeline,
    )
    return tuple((name, value) for name, value in options if value and name != "hot_standby")


def shutdown_lines(result: RestoreResult, config: Path) -> list[str]:
    """Tell what a start does and needs."""
    return [
        "next: recovery.signal is there, so a start goes on in recovery. For it to end at the same target and promote,",
        "  add to postgresql.auto.conf (recovery_target_action = 'pause' to look first):",
        *(f"  {name} = {quote_setting(value)}" for name, value in recovery_settings(result, config)),
        "  Never remove recovery.signal instead: the cluster would go on along its old timeline, and archive other WAL",
        "  under names that are taken.",
    ]
