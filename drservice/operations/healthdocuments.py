"""What ``check`` asks about the continuous capture of documents."""

from __future__ import annotations

from drservice.clock import Clock
from drservice.model.estate import Estate, FilesComponent, FilesKind, FilesSettings, Service
from drservice.operations.checklist import Checklist
from drservice.operations.documentstate import (
    DocumentPhase,
    DocumentState,
    describe_documents,
    is_alive,
    patience,
    read_state,
)


def check_documents(
    estate: Estate, service: Service, component: FilesComponent, *, clock: Clock, checklist: Checklist
) -> None:
    """Ask whether the documents of a component are captured as they come, and what is wrong with them."""
    if not isinstance(component, FilesSettings) or component.kind is not FilesKind.ODOO_FILESTORE:
        return
    if not component.stream:
        return
    name = f"{service.name}/{component.name}: document stream"
    remedy = f"A node of this host runs one; or: drservice documents stream {service.name}/{component.name}"
    with checklist.asking(name):
        if not is_alive(estate.state_dir, service.name, component.name):
            checklist.warn(name, "it does not run here: new documents wait for the next backup", remedy)
            return
        state = read_state(estate.state_dir, service.name, component.name)
        if state is None:
            checklist.warn(name, "it has just been started", "Ask again in some seconds.")
            return
        _judge(name, state, component, clock, checklist)
        _judge_lost(f"{service.name}/{component.name}: lost documents", state, checklist)


def _judge(name: str, state: DocumentState, component: FilesSettings, clock: Clock, checklist: Checklist) -> None:
    silent = clock.now() - state.updated_at
    if silent > patience(component.interval):
        detail = f"alive (pid {state.pid}) and silent for {silent.total_seconds():.0f} s"
        checklist.fail(name, detail, "Look at its log; end it: it starts anew.")
    elif state.state is DocumentPhase.STALLED:
        checklist.fail(name, f"stalled: {state.problem}", state.remedy or "Look at its log.")
    elif state.state is DocumentPhase.STARTING:
        checklist.warn(name, describe_documents(state), "It compares everything with the repository; ask again later.")
    else:
        checklist.ok(name, describe_documents(state))


def _judge_lost(name: str, state: DocumentState, checklist: Checklist) -> None:
    if state.missing or state.corrupt:
        checklist.warn(
            name,
            f"production lost {state.missing} documents that rows refer to, and {state.corrupt} are damaged there",
            "Find copies (an older snapshot: drservice extract) before somebody opens them; Odoo shows them as empty.",
        )
