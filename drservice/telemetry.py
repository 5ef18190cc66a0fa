"""Logs are events with fields, written to stderr; secrets are unprintable by construction.

A person's terminal gets readable lines, a daemon's log one JSON object a line, with the run and the epoch that were
bound where the work is done. Secrets are objects that do not print themselves (``credentials.Secret``); what slips
through as text, most of it from libraries, is blotted out here, last thing before it is written.

structlog is loaded with the first event that is really written: a WAL push pays for what it imports with every
segment.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any

HIDDEN = "***"
"""Stands where a secret stood."""


class Form(Enum):
    """How events are written."""

    CONSOLE = "console"
    JSON = "json"


_level = logging.WARNING
_form = Form.CONSOLE
_bound: ContextVar[Mapping[str, object]] = ContextVar("drservice_telemetry", default={})  # noqa: B039 - never changed


def configure(*, level: str = "warning", form: Form = Form.CONSOLE, libraries: bool = False) -> None:
    """Set from which level on events are written, and how; called once, in the process's entry point.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: lines for people, or JSON for what collects logs.
        libraries: take over what libraries log, too (from ``info`` on at most): a daemon's stderr has one form.
    """
    global _level, _form  # noqa: PLW0603 - one process has one log
    _level = logging.getLevelNamesMapping()[level.upper()]
    _form = form
    if libraries:
        root = logging.getLogger()
        root.handlers = [_Bridge()]
        # What libraries say on debug is the content of requests.
        root.setLevel(max(_level, logging.INFO))


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Add fields to every event of this thread (and of tasks begun in it) inside the block: the run, the epoch."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def info(event: str, **fields: object) -> None:
    """Log something that went as it should."""
    _write(logging.INFO, event, fields)


def warning(event: str, **fields: object) -> None:
    """Log something that a person should look at."""
    _write(logging.WARNING, event, fields)


def error(event: str, *, exception: BaseException | None = None, **fields: object) -> None:
    """Log something that a person has to do something about; an exception comes with its traceback."""
    if exception is not None:
        fields["exception"] = "".join(traceback.format_exception(exception))
    _write(logging.ERROR, event, fields)


# --- What must not be read ----------------------------------------------------------------------------------

_NAME_OF_ONE = (
    r"(?:[a-z0-9]+[_.-]){0,6}(?:password|passwd|passphrase|pwd|secret|token|authorization|cookie|signature|credentials?"
    r"|(?:api|access|private|secret|signing)[_-]?key)"
)
_FIELD = re.compile(_NAME_OF_ONE, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(?P<name>\b{_NAME_OF_ONE}["']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?)?[^\s,;&"'}})\]]*""",
    re.IGNORECASE,
)
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30})://(?P<rest>[^\s\"'<>]*)", re.IGNORECASE)
_PLAIN_SCHEMES = frozenset({"http", "https", "postgresql", "postgres", "postgresql+psycopg", "s3", "file", "redis"})
"""Of these, only user and query can be secret; of any other URL (a place that is told) everything may be."""
_NAMED_USER = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
"""Of these, a user without a password is a name; elsewhere it may be a token."""
_WHOLE = (
    (re.compile(r"AGE-SECRET-KEY-[0-9A-Z-]+", re.IGNORECASE), f"AGE-SECRET-KEY-{HIDDEN}"),
    (re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    # Tokens of our own API, which carry their kind for this.
    (re.compile(r"\bdrs_[\w-]{16,}"), f"drs_{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),
)


def redact(text: str) -> str:
    """Return the text without what looks like a secret; it hides too much rather than too little."""
    for pattern, instead in _WHOLE:
        text = pattern.sub(instead, text)
    text = _URL.sub(_without_secrets, text)
    return _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)


def _without_secrets(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    if scheme.lower() not in _PLAIN_SCHEMES:
        return f"{scheme}://{HIDDEN}"
    # A password may hold "/" or "?": everything up to the last "@" is taken for the user.
    user, at, place = rest.rpartition("@")
    if not at:
        return found[0]
    name, colon, _ = user.partition(":")
    if colon:
        return f"{scheme}://{name}:{HIDDEN}@{place}"
    return f"{scheme}://{name if scheme.lower() in _NAMED_USER else HIDDEN}@{place}"


def _harmless(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(key): HIDDEN if _FIELD.fullmatch(str(key)) else _harmless(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_harmless(item) for item in value]
        case _:
            return redact(str(value))


def _hide(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blot out secrets: the last processor before an event becomes text."""
    harmless = _harmless(event)
    assert isinstance(harmless, dict)
    return harmless


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make what a terminal obeys visible: a file's name can neither begin a line nor colour it."""
    return {key: _visible(value, keep="\n" if key == "exception" else "") for key, value in event.items()}


def _visible(value: object, *, keep: str) -> object:
    if not isinstance(value, str):
        return value
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in value)


# --- Writing ------------------------------------------------------------------------------------------------


def _write(level: int, event: str, fields: Mapping[str, object]) -> None:
    if level < _level:
        return
    import structlog  # noqa: PLC0415 - 90 ms, most of it for rich

    renderers: list[Any] = (
        [structlog.processors.JSONRenderer(ensure_ascii=True)]
        if _form is Form.JSON
        else [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _hide,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.get_logger().log(level, event, **{**_bound.get(), **fields})


class _Bridge(logging.Handler):
    """Writes what libraries log as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line of a library's log."""
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        _write(record.levelno, record.getMessage(), fields)
