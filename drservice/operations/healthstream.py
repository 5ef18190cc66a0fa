"""What ``check`` asks about streaming: the receiver, its slot, what the server keeps for it, and who waits for it.

A commit that waits for a receiver which does not run waits for ever: that is asked first, and its remedy releases
production.
"""

from __future__ import annotations

import re
from datetime import timedelta

from drservice.clock import Clock
from drservice.components.postgres.connection import Session
from drservice.components.postgres.facts import ClusterFacts
from drservice.components.postgres.replication import identify_system
from drservice.components.postgres.slots import SlotFacts, SlotStatus, slot_facts
from drservice.model.estate import Estate, PostgresSettings, Service, WalMode
from drservice.operations.checklist import Checklist
from drservice.operations.healthwal import name_of
from drservice.operations.streamstate import STALE_SECONDS, StreamPhase, describe_stream, is_alive, read_state
from drservice.operations.walboard import stream_name

_LEAST_KEPT_SEGMENTS = 8
_LEAST_KEPT_BYTES = 1 << 30
_NAME = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_*][\w$]*|\*)')
_RELEASE = "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();"


def check_stream(
    estate: Estate,
    service: Service,
    component: PostgresSettings,
    session: Session,
    facts: ClusterFacts,
    *,
    clock: Clock,
    checklist: Checklist,
) -> None:
    """Ask about the receiver of a component that streams; ``session`` leads to the primary."""
    prefix = f"{service.name}/{component.name}"
    if component.wal.mode is WalMode.ARCHIVE:
        return
    name = stream_name(service.name, component.name)
    with checklist.asking(f"{prefix}: replication connection"):
        identity = identify_system(component.production_dsn, application_name="drservice check")
        checklist.ok(f"{prefix}: replication connection", f"let in as a replication client, {identity.system_id}")
    with checklist.asking(f"{prefix}: replication slot"):
        slot = slot_facts(session, name)
        _judge_slot(prefix, name, slot, facts, checklist)
        is_running = _judge_receiver(estate, service, component, slot, clock=clock, checklist=checklist)
        _judge_waiting(prefix, name, component, session, is_running=is_running, checklist=checklist)
        _judge_room(prefix, session, facts, slot, checklist)
    _judge_heartbeat(prefix, service.objectives.rpo, component, checklist)


def _judge_receiver(
    estate: Estate,
    service: Service,
    component: PostgresSettings,
    slot: SlotFacts | None,
    *,
    clock: Clock,
    checklist: Checklist,
) -> bool:
    """Answer whether a receiver runs, here or elsewhere, and what it says."""
    name = f"{service.name}/{component.name}: WAL receiver"
    whose = (
        "A node of this host runs one; or"
        if component.wal.node is None
        else f"The node of {component.wal.node} runs one; or there"
    )
    remedy = f"{whose}: drservice wal stream {name_of(service, component)}"
    if not is_alive(estate.state_dir, service.name, component.name):
        if slot is not None and slot.active_pid is not None:
            checklist.ok(name, "runs on another host: the slot is in use")
            return True
        checklist.fail(name, "it does not run: WAL is only kept by the server", remedy)
        return False
    state = read_state(estate.state_dir, service.name, component.name)
    if state is None:
        checklist.warn(name, "it has just been started", "Ask again in some seconds.")
    elif state.state is not StreamPhase.STREAMING:
        checklist.fail(name, f"{state.state.value}: {state.problem or 'not connected yet'}", state.remedy or remedy)
    elif (age := (clock.now() - state.updated_at).total_seconds()) > STALE_SECONDS:
        checklist.fail(
            name, f"alive (pid {state.pid}) and silent for {age:.0f} s", "Look at its log; end it: it starts anew."
        )
    else:
        checklist.ok(name, describe_stream(state))
    return True


def _judge_slot(prefix: str, name: str, slot: SlotFacts | None, facts: ClusterFacts, checklist: Checklist) -> None:
    question = f"{prefix}: replication slot"
    backup = f"Run: drservice backup {prefix.partition('/')[0]}"
    if slot is None:
        checklist.fail(
            question, f"{name} is not there: the server keeps no WAL for it", "The receiver makes it when it starts."
        )
        return
    backlog = 0 if slot.restart_lsn is None else max(0, facts.current_lsn.value - slot.restart_lsn.value)
    room = "" if slot.safe_bytes is None else f", {max(0, slot.safe_bytes) >> 20} MB until it may be lost"
    told = f"{name}: {backlog >> 20} MB of WAL are kept for it{room}"
    if slot.status is SlotStatus.LOST:
        checklist.fail(
            question,
            f"{name} is lost: the server removed WAL that it needed",
            f"The receiver makes it anew by itself; what is between may be missing. {backup}",
        )
    elif slot.status is SlotStatus.UNRESERVED:
        checklist.fail(
            question,
            f"{told}: the next checkpoint may remove WAL that is nowhere else",
            "Raise max_slot_wal_keep_size now (reload) as far as the disk has room; find out why the receiver lags.",
        )
    else:
        checklist.ok(question, told)


def _judge_room(
    prefix: str, session: Session, facts: ClusterFacts, slot: SlotFacts | None, checklist: Checklist
) -> None:
    """Answer whether the server's spool is bounded and large enough, and whether there is a connection and a slot."""
    question = f"{prefix}: WAL kept for the slot"
    limit, senders, sending, slots, taken = session.row(
        "select (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'),"
        " current_setting('max_wal_senders')::int, (select count(*) from pg_stat_replication),"
        " current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots)"
    )
    least = max(_LEAST_KEPT_BYTES, _LEAST_KEPT_SEGMENTS * facts.wal_segment_bytes)
    if limit < 0:
        checklist.warn(
            question,
            "max_slot_wal_keep_size is not set: while the repository is away, the server keeps WAL until its disk is"
            " full",
            "Set it to what the disk can spare, for example max_slot_wal_keep_size = 64GB, and reload.",
        )
    elif limit << 20 < least:
        checklist.warn(
            question,
            f"max_slot_wal_keep_size is {limit} MB: a short time without the repository loses the slot",
            f"Set it to what the disk can spare, at least {least >> 20} MB, and reload.",
        )
    else:
        checklist.ok(question, f"up to {limit} MB")
    for kind, most, used, needs in (
        ("max_wal_senders", senders, sending, slot is None or slot.active_pid is None),
        ("max_replication_slots", slots, taken, slot is None),
    ):
        question = f"{prefix}: {kind}"
        if used >= most and needs:
            checklist.fail(question, f"all {most} are in use: the receiver finds none", f"Raise {kind} and restart.")
        elif used >= most:
            checklist.warn(question, f"all {most} are in use", f"Raise {kind}: a standby or a backup needs one, too.")
        else:
            checklist.ok(question, f"{used} of {most} in use")


def _judge_heartbeat(
    prefix: str, promised: timedelta | None, component: PostgresSettings, checklist: Checklist
) -> None:
    """Answer how late the last moment of an idle server may be that its WAL proves."""
    question, every = f"{prefix}: heartbeat", component.wal.heartbeat
    if every is None:
        told = "off: the window of an idle server ends with its last WAL, whatever was proved up to date since"
        if promised is None:
            checklist.ok(question, told)
        else:
            checklist.warn(question, told, "objectives.rpo cannot be shown on an idle server: set wal.heartbeat: 1s.")
    elif promised is not None and every > promised:
        checklist.warn(
            question,
            f"each {every.total_seconds():g} s, and objectives.rpo is {promised.total_seconds():g} s",
            "Let it beat more often than that: wal.heartbeat.",
        )
    else:
        checklist.ok(question, f"each {every.total_seconds():g} s")


def _judge_waiting(
    prefix: str, name: str, component: PostgresSettings, session: Session, *, is_running: bool, checklist: Checklist
) -> None:
    """Answer whether commits wait for the receiver, as they are meant to, and for one that runs."""
    question = f"{prefix}: commits wait for the repository"
    names, commit = session.row(
        "select current_setting('synchronous_standby_names'), current_setting('synchronous_commit')"
    )
    is_named = names_standby(str(names), name)
    if is_named and not is_running:
        checklist.fail(
            question,
            f"synchronous_standby_names = {names}, and the receiver does not run: COMMITS MAY WAIT FOR EVER",
            f"Start the receiver. If it cannot run, release production (runbook release-primary):\n    {_RELEASE}",
        )
    elif is_named and commit == "remote_apply":
        checklist.fail(
            question,
            "synchronous_commit is remote_apply: the receiver applies nothing, so commits wait for ever",
            "Set synchronous_commit = on and reload.",
        )
    elif is_named and not component.wal.synchronous:
        checklist.warn(
            question,
            f"they do (synchronous_standby_names = {names}), and the configuration does not say so: the receiver"
            " collects WAL before it stores it, which each commit waits for",
            f"Set wal.synchronous: true, or: {_RELEASE}",
        )
    elif component.wal.synchronous and not is_named:
        checklist.warn(
            question,
            f"they do not: wal.synchronous is set, and synchronous_standby_names = {names or 'empty'}",
            f"Once the receiver runs: ALTER SYSTEM SET synchronous_standby_names = '{name}'; SELECT pg_reload_conf();",
        )
    elif is_named and commit in {"off", "local"}:
        checklist.warn(
            question,
            f"they do not: synchronous_commit is {commit}",
            "Set synchronous_commit = on (or remote_write) and reload.",
        )
    else:
        checklist.ok(question, "yes" if is_named else "no: what is at risk is lost with the host")


def names_standby(setting: str, name: str) -> bool:
    """Tell whether ``synchronous_standby_names`` names a standby: a list, ``FIRST n (...)``, ``ANY n (...)``, ``*``."""
    inner = re.sub(r"(?i)^\s*(?:first\s+|any\s+)?\d+\s*\((.*)\)\s*$", r"\1", setting, flags=re.DOTALL)
    found = {quoted.replace('""', '"') or plain for quoted, plain in _NAME.findall(inner)}
    return "*" in found or name.lower() in {each.lower() for each in found}
