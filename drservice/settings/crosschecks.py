"""Rules that join two places of the file: names that must exist, settings that need each other, no secrets.

They read the plain data, not the validated models, so that they are reported together with every other
mistake; what is missing or of the wrong shape here is pydantic's to report and is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_address
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from drservice.clock import from_iso
from drservice.model.calendar import Window
from drservice.model.checks import Expectation
from drservice.model.estate import HistorySettings
from drservice.settings import scalars
from drservice.settings.positions import Document, Path, Plain, Problem, format_path

T = TypeVar("T")

_SHORTEST_HISTORY = timedelta(days=7)
_SECRET_WORDS = ("AGE-SECRET-KEY-", "PRIVATE KEY-----")


def cross_check(document: Document) -> list[Problem]:
    """Return every problem between the settings of a file."""
    return [
        *_secrets(document),
        *_references(document),
        *_needs(document),
        *_stores(document),
        *_hosts(document),
        *_calendars(document),
        *_retention(document),
        *_control_plane(document),
        *_history(document),
        *_cycles(document),
    ]


def _secrets(document: Document) -> Iterator[Problem]:
    for path, value in _scalars(document.data, ()):
        if isinstance(value, str) and any(word in value.upper() for word in _SECRET_WORDS):
            message = (
                "a secret key must not stand in the configuration; move it to a file (mode 0600), name it"
                " as file:/absolute/path, and make a new key if this file was ever shared"
            )
            yield _problem(document, path, message)


def _references(document: Document) -> Iterator[Problem]:
    root = _mapping(document.data)
    services, calendars = _mapping(root.get("services")), _mapping(root.get("calendars"))
    dependencies = _mapping(root.get("dependencies"))
    for name, service in services.items():
        here: Path = ("services", name)
        settings = _mapping(service)
        calendar = settings.get("calendar")
        yield from _known(document, (*here, "calendar"), calendar, calendars, "calendars")
        for index, other in _items(settings.get("depends_on")):
            known = {**services, **dependencies}
            yield from _known(document, (*here, "depends_on", index), other, known, "services or dependencies")
        components = _mapping(settings.get("components"))
        for index, check in _items(settings.get("checks")):
            asked = _mapping(check).get("component")
            path = (*here, "checks", index, "component")
            yield from _known(document, path, asked, components, "this service's components")
            expected, sql = _mapping(check).get("expect"), _mapping(check).get("sql")
            if isinstance(sql, str) and "{settled" in sql and isinstance(expected, str) and not _compares(expected):
                message = "`{settled}` needs a baseline; expected `unchanged` or `within N% of baseline` in `expect`"
                yield _problem(document, (*here, "checks", index, "sql"), message)
            if isinstance(asked, str) and _mapping(components.get(asked)).get("kind", "postgres") != "postgres":
                yield _problem(document, path, "expected a component of kind postgres; the check is a query")
    for name, drill in _mapping(root.get("drills")).items():
        path = ("drills", name, "service")
        yield from _known(document, path, _mapping(drill).get("service"), services, "services")
    for holder in (("repository", "signers"), ("access", "roles")):
        for name, entry in _mapping(_mapping(root.get(holder[0])).get(holder[1])).items():
            for index, service_name in _items(_mapping(entry).get("services")):
                path = (*holder, name, "services", index)
                yield from _known(document, path, service_name, services, "services")


def _compares(expected: str) -> bool:
    """Tell whether an expectation compares with production; one that cannot be read is told elsewhere."""
    try:
        return Expectation.parse(expected).needs_baseline
    except ValueError:
        return True


def _needs(document: Document) -> Iterator[Problem]:
    root = _mapping(document.data)
    for name, service in _mapping(root.get("services")).items():
        for component_name, entry in _mapping(_mapping(service).get("components")).items():
            component = _mapping(entry)
            if component_name == "points":
                where: Path = ("services", name, "components", component_name)
                yield _problem(document, where, "`points` is where recovery points are stored; expected another name")
            if component.get("method") == "local" and "data_directory" not in component:
                path: Path = ("services", name, "components", component_name, "method")
                yield _problem(document, path, "method local needs `data_directory`")
            here: Path = ("services", name, "components", component_name)
            yield from _prepared_needs(document, here, component)
            if component.get("kind") == "odoo-filestore":
                yield from _filestore_needs(document, here, component, _mapping(_mapping(service).get("components")))
    yield from _unique_names(document, ("repository", "copies"), "copy")
    yield from _unique_names(document, ("evidence", "anchors"), "anchor")
    for name in _mapping(root.get("services")):
        yield from _unique_names(document, ("services", name, "checks"), "check")
    for name, entry in _mapping(root.get("dependencies")).items():
        yield from _dependency_needs(document, ("dependencies", name), _mapping(entry))
    for name, entry in _mapping(root.get("drills")).items():
        yield from _drill_needs(document, ("drills", name), _mapping(entry))


def _stores(document: Document) -> Iterator[Problem]:
    """What only a bucket has is not asked of a directory; certificates are named once."""
    root = _mapping(document.data)
    places: list[tuple[Path, Mapping[str, Plain]]] = [(("repository",), _mapping(root.get("repository")))]
    anchors = _items(_mapping(root.get("evidence")).get("anchors"))
    places += [(("evidence", "anchors", index), _mapping(anchor)) for index, anchor in anchors]
    for path, place in places:
        url = place.get("url")
        if not isinstance(url, str):
            continue
        if url.startswith("file:"):
            for name in ("lock", "store"):
                if place.get(name) is not None:
                    yield _problem(document, (*path, name), "a directory has none of this; expected an s3:// address")
        elif "ca" in _mapping(place.get("store")) and any(name == "ca" for name, _ in parse_qsl(urlsplit(url).query)):
            yield _problem(
                document, (*path, "store", "ca"), "`url` names certificates as well; expected one of the two"
            )


def _hosts(document: Document) -> Iterator[Problem]:
    """A backup is one run on one host, and what that host cannot read would not be in it."""
    for name, service in _mapping(_mapping(document.data).get("services")).items():
        first: tuple[str, str] | None = None
        for component, entry in _mapping(_mapping(service).get("components")).items():
            node = _mapping(entry).get("node")
            if not isinstance(node, str):
                continue
            first = first or (component, node)
            if node != first[1]:
                message = (
                    f"a backup is one run on one host, and `{_shown(first[0])}` names `{_shown(first[1])}`; expected"
                    " that host, if it can read this too, or a service of its own for what lies elsewhere"
                )
                yield _problem(document, ("services", name, "components", component, "node"), message)


def _calendars(document: Document) -> Iterator[Problem]:
    """Periods that windows name exist and cannot be taken for days; passes over documents keep what is promised."""
    root = _mapping(document.data)
    for name, entry in _mapping(root.get("calendars")).items():
        here: Path = ("calendars", name)
        periods = _mapping(_mapping(entry).get("periods"))
        for period in periods:
            taken = _read(Window.parse, period)
            if taken is not None and taken.period is None:
                yield _problem(document, (*here, "periods", period), "this is the name of a day; expected another name")
        for index, text in _items(_mapping(entry).get("avoid")):
            window = _read(Window.parse, text)
            if window is not None:
                yield from _known(
                    document, (*here, "avoid", index), window.period, periods, "days or this calendar's periods"
                )
    for name, service in _mapping(root.get("services")).items():
        every = _read(scalars.parse_duration, _mapping(_mapping(service).get("schedule")).get("documents_every"))
        promised = _read(scalars.parse_duration, _mapping(_mapping(service).get("objectives")).get("documents_rpo"))
        if every is not None and promised is not None and every >= promised:
            message = f"the objective documents_rpo is {scalars.format_duration(promised)}; expected less than that"
            yield _problem(document, ("services", name, "schedule", "documents_every"), message)


def _retention(document: Document) -> Iterator[Problem]:
    """What is to be deleted by a schedule has to say what stays."""
    for name, service in _mapping(_mapping(document.data).get("services")).items():
        asked = _mapping(_mapping(service).get("schedule"))
        if asked.get("retention") is not None and not _mapping(_mapping(service).get("retention")):
            message = "nothing says what stays; expected `retention` with periods in the same service"
            yield _problem(document, ("services", name, "schedule", "retention"), message)


def _control_plane(document: Document) -> Iterator[Problem]:
    """Pages that other machines reach are reached through TLS; places that are told have names of their own."""
    root = _mapping(document.data)
    web = _mapping(root.get("web"))
    listen = _read(scalars.parse_listen, web.get("listen"))
    if listen is not None and not ip_address(listen[0]).is_loopback and "public_url" not in web:
        message = (
            f"other machines reach {listen[0]}: put a proxy with TLS in front and name its address as `public_url`,"
            " or listen on 127.0.0.1"
        )
        yield _problem(document, ("web", "listen"), message)
    yield from _unique_names(document, ("notify",), "place")
    numbered = {f"place-{index + 1}" for index, item in _items(root.get("notify")) if "name" not in _mapping(item)}
    for index, item in _items(root.get("notify")):
        name = _mapping(item).get("name")
        if isinstance(name, str) and name in numbered:
            message = f"`{_shown(name)}` is the name of a place without a name; expected another name"
            yield _problem(document, ("notify", index, "name"), message)


def _history(document: Document) -> Iterator[Problem]:
    """What is looked back at day by day is not forgotten within the week; steps go before their runs."""
    history = _mapping(_mapping(document.data).get("history"))
    kept = {name: _read(scalars.parse_duration, history.get(name)) for name in ("runs", "events")}
    for name, value in kept.items():
        if value is not None and value < _SHORTEST_HISTORY:
            yield _problem(document, ("history", name), "expected at least 7d")
    defaults = HistorySettings()
    runs, events = kept["runs"] or defaults.runs, kept["events"] or defaults.events
    if events > runs and history:
        name = "events" if kept["events"] is not None else "runs"
        message = (
            f"steps and notes would be kept for {scalars.format_duration(events)} and their runs for"
            f" {scalars.format_duration(runs)}; expected `events` to be at most `runs`"
        )
        yield _problem(document, ("history", name), message)


def _read(parse: Callable[[str], T], value: Plain) -> T | None:
    """Return a value that another rule judges; ``None`` if it is absent or cannot be read, which is told elsewhere."""
    if not isinstance(value, str):
        return None
    try:
        return parse(value)
    except ValueError:
        return None


def _unique_names(document: Document, here: Path, what: str) -> Iterator[Problem]:
    value: Plain = document.data
    for part in here:
        value = _mapping(value).get(str(part))
    names: set[str] = set()
    for index, item in _items(value):
        name = _mapping(item).get("name")
        if isinstance(name, str) and name in names:
            message = f"`{_shown(name)}` is the name of another {what}; expected a new name"
            yield _problem(document, (*here, index, "name"), message)
        if isinstance(name, str):
            names.add(name)


def _filestore_needs(
    document: Document, here: Path, filestore: Mapping[str, Plain], components: Mapping[str, Plain]
) -> Iterator[Problem]:
    """Documents follow the rows of exactly one cluster: without it nobody can tell what is missing."""
    clusters = {name: item for name, item in components.items() if _mapping(item).get("kind") == "postgres"}
    follows = filestore.get("follows")
    if follows is not None:
        yield from _known(document, (*here, "follows"), follows, clusters, "this service's postgres components")
    elif not clusters:
        yield _problem(document, here, "documents need a component of kind postgres in the same service")
    elif len(clusters) > 1:
        yield _problem(document, here, f"there are {len(clusters)} clusters; `follows` must name the documents' one")


def _prepared_needs(document: Document, here: Path, component: Mapping[str, Plain]) -> Iterator[Problem]:
    """A clone that is named twice would be stored twice; certificates are for a connection with TLS."""
    seen: set[str] = set()
    for index, path in _items(component.get("clones")):
        if isinstance(path, str) and path.rstrip("/") in seen:
            yield _problem(document, (*here, "clones", index), "it is named above already; expected another clone")
        seen.add(str(path).rstrip("/"))
    url = component.get("url")
    if component.get("kind") == "redis" and "ca" in component and isinstance(url, str) and url.startswith("redis:"):
        yield _problem(document, (*here, "ca"), "certificates need TLS; expected a rediss:// address in `url`")


def _dependency_needs(document: Document, here: Path, dependency: Mapping[str, Plain]) -> Iterator[Problem]:
    wanted = {
        "oidc": ("url",),
        "https": ("url",),
        "dns": ("host",),
        "tls": ("host", "port"),
        "tcp": ("host", "port"),
    }
    kind = dependency.get("kind")
    for key in wanted.get(kind, ()) if isinstance(kind, str) else ():
        if key not in dependency:
            yield _problem(document, (*here, "kind"), f"a dependency of kind {kind} needs `{key}`")


def _drill_needs(document: Document, here: Path, drill: Mapping[str, Plain]) -> Iterator[Problem]:
    target = drill.get("target")
    if target == "random" and "within" not in drill:
        yield _problem(document, (*here, "target"), "a random target needs `within`, how far back it may be")
    if isinstance(target, str) and target not in {"latest", "consistent", "random"} and not _is_instant(target):
        yield _problem(document, (*here, "target"), "expected latest, consistent, random or a time with its zone")


def _is_instant(text: str) -> bool:
    try:
        from_iso(text)
    except ValueError:
        return False
    return True


def _cycles(document: Document) -> Iterator[Problem]:
    services = _mapping(_mapping(document.data).get("services"))
    edges = {
        name: [other for _, other in _items(_mapping(entry).get("depends_on")) if isinstance(other, str)]
        for name, entry in services.items()
    }
    told: set[frozenset[str]] = set()
    for start in edges:
        cycle = _find_cycle(edges, start)
        if cycle and frozenset(cycle) not in told:
            told.add(frozenset(cycle))
            message = f"services wait for each other: {' -> '.join([*cycle, start])}; no order of recovery exists"
            yield _problem(document, ("services", start, "depends_on"), message)


def _find_cycle(edges: Mapping[str, list[str]], start: str) -> list[str]:
    """Return a shortest way from ``start`` back to itself; empty if there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for other in edges.get(way[-1], ()):
            if other == start:
                return way
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


def _known(document: Document, path: Path, name: Plain, known: Mapping[str, Plain], what: str) -> Iterator[Problem]:
    if isinstance(name, str) and name not in known:
        message = f"`{_shown(name)}` is not one of {what} ({', '.join(known) or 'there are none'})"
        yield _problem(document, path, message)


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:60]


def _scalars(data: Plain, path: Path) -> Iterator[tuple[Path, Plain]]:
    entries: Iterable[tuple[str | int, Plain]]
    if isinstance(data, dict):
        entries = data.items()
    elif isinstance(data, list):
        entries = enumerate(data)
    else:
        yield path, data
        return
    for part, value in entries:
        yield from _scalars(value, (*path, part))


def _items(value: Plain) -> Iterator[tuple[int, Plain]]:
    if isinstance(value, list):
        yield from enumerate(value)


def _mapping(value: Plain) -> Mapping[str, Plain]:
    return value if isinstance(value, dict) else {}


def _problem(document: Document, path: Path, message: str) -> Problem:
    return Problem(mark=document.value_mark(path), path=format_path(path), message=message)
