"""Makes the values of ``model.estate`` from a validated configuration, and tells what is not acted on yet.

A setting that this version reads but does not act on is never dropped in silence: it becomes a notice, which
``drservice check`` and ``drservice config show`` print.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from datetime import date, timedelta
from zoneinfo import ZoneInfo

from pydantic import BaseModel

from drservice.clock import from_iso
from drservice.model.calendar import Calendar, DuringAvoid, NamedPeriod, Window
from drservice.model.checks import Expectation, Severity
from drservice.model.estate import (
    AnchorSettings,
    BusinessCheck,
    CaptureMethod,
    CatchUp,
    ComponentSettings,
    DrillPlan,
    DrillTarget,
    Estate,
    EvidenceSettings,
    FilesKind,
    FilesSettings,
    GitSettings,
    HistorySettings,
    NodeSettings,
    NotifyKind,
    NotifyPlace,
    Objectives,
    OdooProgram,
    PostgresSettings,
    RedisRestore,
    RedisSettings,
    RepositorySettings,
    Schedules,
    Service,
    SignerSettings,
    WalMode,
    WalSettings,
    WebSettings,
)
from drservice.model.ids import ComponentName, ServiceName
from drservice.model.retention import Period, RetentionPolicy
from drservice.model.schedule import Cron
from drservice.model.storing import LockMode, LockSettings, ObjectKind, StoreSettings
from drservice.model.timetable import drills_without_effect
from drservice.settings import scalars, schema

NOT_ACTED_ON = (
    "repository.copies",
    "services.*.depends_on",
    "dependencies",
    "drills.*.runbook",
    "access",
)
"""Settings this version validates only; a line goes away with the feature that acts on it."""


def build_estate(configuration: schema.Configuration, source: pathlib.Path) -> Estate:
    """Return the estate: everything this version acts on."""
    return Estate(
        source=source,
        state_dir=pathlib.Path(configuration.state_dir),
        repository=_repository(configuration.repository),
        services={ServiceName(name): _service(name, service) for name, service in configuration.services.items()},
        evidence=_evidence(configuration.evidence),
        drills={name: _drill(name, drill) for name, drill in configuration.drills.items()},
        catalogue=configuration.catalogue,
        calendars={name: _calendar(name, calendar) for name, calendar in configuration.calendars.items()},
        notify=tuple(_place(number, place) for number, place in enumerate(configuration.notify, 1)),
        web=_web(configuration.web),
        history=HistorySettings(runs=configuration.history.runs, events=configuration.history.events),
        node=_node(configuration.node),
    )


def notices(configuration: schema.Configuration, estate: Estate) -> tuple[str, ...]:
    """Return a sentence for each declared thing that this version does not act on, or that has no effect."""
    told: list[str] = []
    for service_name, service in configuration.services.items():
        for name, component in service.components.items():
            if not isinstance(component, schema.PostgresComponent):
                continue
            if component.wal.synchronous and component.wal.mode == "archive":
                told.append(
                    f"services.{service_name}.components.{name}.wal.synchronous has no effect: with mode archive no"
                    " commit waits for the repository"
                )
            if component.wal.node is not None and component.wal.mode == "archive":
                told.append(
                    f"services.{service_name}.components.{name}.wal.node has no effect: with mode archive nobody"
                    " receives WAL"
                )
    for pattern in NOT_ACTED_ON:
        told += [
            f"{path} is declared but not acted on by this version"
            for path in _declared(configuration, pattern.split("."), "")
        ]
    told += [
        f"services.{service.name}.schedule.drill has no effect: each drill of the service has a schedule of its own"
        for service in drills_without_effect(estate)
    ]
    return tuple(told)


def _repository(repository: schema.Repository) -> RepositorySettings:
    return RepositorySettings(
        url=repository.url,
        recipients=tuple(dict.fromkeys(repository.recipients)),  # one that is named twice is no second reader
        identities=tuple(repository.identity),
        identity_passphrase=repository.identity_passphrase,
        signers=tuple(
            SignerSettings(
                name=name,
                public_key=scalars.parse_signer_key(signer.key),
                services=tuple(ServiceName(service) for service in signer.services),
            )
            for name, signer in repository.signers.items()
        ),
        store=_store(repository.store, repository.lock),
    )


def _store(store: schema.Store, lock: schema.Lock | None) -> StoreSettings:
    classes = store.storage_class.model_dump(exclude_none=True) if store.storage_class is not None else {}
    return StoreSettings(
        ca_file=pathlib.Path(store.ca) if store.ca is not None else None,
        bucket_owner=store.expected_bucket_owner,
        storage_classes={ObjectKind(kind): str(name) for kind, name in classes.items()},
        lock=LockSettings(mode=LockMode(lock.mode), days=lock.days) if lock is not None else None,
        connect_timeout=store.connect_timeout,
        read_timeout=store.read_timeout,
        retry_for=store.retry_for,
    )


def _service(name: str, service: schema.Service) -> Service:
    return Service(
        name=ServiceName(name),
        tier=service.tier,
        owner=service.owner,
        objectives=Objectives(
            rpo=service.objectives.rpo,
            rto=service.objectives.rto,
            documents_rpo=service.objectives.documents_rpo,
        ),
        components={
            ComponentName(key): _component(key, component, service) for key, component in service.components.items()
        },
        checks=tuple(
            BusinessCheck(
                name=check.name,
                component=ComponentName(check.component),
                database=check.database,
                sql=check.sql,
                expect=Expectation.parse(check.expect),
                severity=Severity(check.severity),
                owner=check.owner,
            )
            for check in service.checks
        ),
        retention=_retention(service.retention),
        calendar=service.calendar,
        schedule=_schedules(service),
        catch_up=CatchUp(service.catch_up),
        depends_on=tuple(service.depends_on),
    )


def _schedules(service: schema.Service) -> Schedules:
    return Schedules(
        backup=_cron(service.schedule.backup),
        verify=_cron(service.schedule.verify),
        drill=_cron(service.schedule.drill),
        retention=_cron(service.schedule.retention),
        documents_every=_documents_every(service),
        grace=service.schedule.grace,
    )


def _cron(text: str | None) -> Cron | None:
    return Cron.parse(text) if text is not None else None


def _documents_every(service: schema.Service) -> timedelta | None:
    """Half of what may be lost, unless the file says: a pass takes time, and a document may come just after it."""
    if not any(isinstance(item, schema.OdooFilestoreComponent) for item in service.components.values()):
        return None
    promised = service.objectives.documents_rpo
    return service.schedule.documents_every or (promised / 2 if promised is not None else None)


def _calendar(name: str, calendar: schema.Calendar) -> Calendar:
    return Calendar(
        name=name,
        zone=ZoneInfo(calendar.timezone),
        holidays=frozenset(date.fromisoformat(day) for day in calendar.holidays),
        avoid=tuple(Window.parse(text) for text in calendar.avoid),
        during_avoid=DuringAvoid(calendar.during_avoid),
        periods={period: NamedPeriod.parse(text) for period, text in calendar.periods.items()},
    )


def _place(number: int, place: schema.Notification) -> NotifyPlace:
    return NotifyPlace(
        name=place.name or f"place-{number}", url=place.url, on=frozenset(NotifyKind(kind) for kind in place.on)
    )


def _web(web: schema.Web) -> WebSettings:
    host, port = scalars.parse_listen(web.listen)
    return WebSettings(
        host=host,
        port=port,
        public_url=web.public_url.rstrip("/") if web.public_url is not None else None,
        session=web.session,
        trusted_proxies=tuple(web.trusted_proxies),
    )


def _node(node: schema.Node) -> NodeSettings:
    rate = node.throttled_rate
    return NodeSettings(
        runs=node.runs,
        lease=node.lease,
        drain=node.drain,
        throttled_rate=scalars.parse_rate(rate) if rate is not None else None,
    )


def _retention(retention: schema.Retention) -> RetentionPolicy:
    def period(text: str | None) -> Period | None:
        return Period.parse(text) if text is not None else None

    return RetentionPolicy(
        within=period(retention.within),
        daily=period(retention.daily),
        weekly=period(retention.weekly),
        monthly=period(retention.monthly),
        yearly=period(retention.yearly),
    )


def _component(name: str, component: schema.Component, service: schema.Service) -> ComponentSettings:
    match component:
        case schema.PostgresComponent():
            return _postgres(name, component)
        case schema.OdooFilestoreComponent():
            clusters = [key for key, item in service.components.items() if isinstance(item, schema.PostgresComponent)]
            followed = component.follows if component.follows is not None else clusters[0]
            return FilesSettings(
                name=ComponentName(name),
                kind=FilesKind.ODOO_FILESTORE,
                path=pathlib.Path(component.path),
                database=component.database,
                follows=ComponentName(followed),
                addons=tuple(pathlib.Path(folder) for folder in component.addons),
                odoo=_odoo(component.odoo) if component.odoo is not None else None,
                stream=component.stream,
                interval=component.interval,
                idle_interval=component.idle_interval,
                node=component.node,
            )
        case schema.DirectoryComponent():
            return FilesSettings(
                name=ComponentName(name),
                kind=FilesKind.DIRECTORY,
                path=pathlib.Path(component.path),
                node=component.node,
            )
        case schema.GitComponent():
            return GitSettings(
                name=ComponentName(name),
                clones=tuple(pathlib.Path(path) for path in component.clones),
                node=component.node,
            )
        case schema.RedisComponent():
            return RedisSettings(
                name=ComponentName(name),
                url=component.url,
                password=component.password,
                ca_file=pathlib.Path(component.ca) if component.ca is not None else None,
                restore=RedisRestore(component.restore),
                node=component.node,
            )


def _odoo(program: schema.OdooProgram) -> OdooProgram:
    return OdooProgram(
        program=pathlib.Path(program.program),
        python=pathlib.Path(program.python) if program.python is not None else None,
        code=tuple(pathlib.Path(folder) for folder in program.code),
        folders=tuple(pathlib.Path(folder) for folder in program.folders),
        options=dict(program.options),
        timeout=program.timeout,
    )


def _evidence(evidence: schema.Evidence) -> EvidenceSettings:
    return EvidenceSettings(
        log_keys=tuple(scalars.parse_signer_key(key) for key in evidence.log_keys),
        anchors=tuple(
            AnchorSettings(name=anchor.name, url=anchor.url, store=_store(anchor.store, anchor.lock))
            for anchor in evidence.anchors
        ),
        anchor_age=evidence.anchor_age,
    )


def _drill(name: str, drill: schema.Drill) -> DrillPlan:
    named = drill.target in {item.value for item in DrillTarget if item is not DrillTarget.TIME}
    return DrillPlan(
        name=name,
        service=ServiceName(drill.service),
        environment=drill.environment,
        target=DrillTarget(drill.target) if named else DrillTarget.TIME,
        time=None if named else from_iso(drill.target),
        within=drill.within,
        runbook=drill.runbook,
        keep=drill.keep,
        neutralize=drill.neutralize,
        schedule=_cron(drill.schedule),
    )


def _postgres(name: str, component: schema.PostgresComponent) -> PostgresSettings:
    directory = component.data_directory
    return PostgresSettings(
        name=ComponentName(name),
        dsn=component.dsn,
        primary_dsn=component.primary_dsn,
        data_directory=pathlib.Path(directory) if directory is not None else None,
        method=CaptureMethod(component.method),
        wal=WalSettings(
            mode=WalMode(component.wal.mode),
            interval=component.wal.interval,
            idle_interval=component.wal.idle_interval,
            heartbeat=component.wal.heartbeat if isinstance(component.wal.heartbeat, timedelta) else None,
            synchronous=component.wal.synchronous,
            from_disk=component.wal.from_disk,
            node=component.wal.node,
            archive_wait=component.wal.archive_wait,
        ),
        node=component.node,
        workers=component.workers,
        compression_level=component.compression_level,
    )


def _declared(value: object, pattern: list[str], path: str) -> Iterator[str]:
    """Yield the paths that match ``pattern`` and were written in the file."""
    if not pattern:
        yield path.removeprefix(".")
        return
    head, rest = pattern[0], pattern[1:]
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _declared(item, rest, f"{path}.{key}")
    elif isinstance(value, BaseModel) and head in value.model_fields_set:
        yield from _declared(getattr(value, head), rest, f"{path}.{head}")
