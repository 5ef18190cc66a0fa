"""Finds, reads and validates the configuration file.

Everything wrong with a file is told at once, each mistake with file, line, column, the setting's path and what
was expected. Nothing is repaired, guessed or ignored.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from drservice.errors import ConfigurationError
from drservice.model.estate import Estate
from drservice.settings.building import build_estate, notices
from drservice.settings.crosschecks import cross_check
from drservice.settings.diagnosis import explain
from drservice.settings.origins import EffectiveValue, effective_values
from drservice.settings.positions import MAX_FILE_BYTES, InvalidYamlError, Problem, parse
from drservice.settings.schema import Configuration

LOCAL_PATH = pathlib.Path("config/drservice.yaml")
SYSTEM_PATH = pathlib.Path("/etc/drservice/drservice.yaml")
VARIABLE = "DRSERVICE_CONFIG"

_SHOWN_PROBLEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfiguration:
    """A valid file: what is acted on, what is declared but not acted on, and where each value comes from."""

    estate: Estate
    notices: tuple[str, ...]
    values_with_origin: tuple[EffectiveValue, ...]


def find_configuration(explicit: pathlib.Path | None, environ: Mapping[str, str]) -> pathlib.Path:
    """Return the file to read: ``--config``, ``DRSERVICE_CONFIG``, ``./config/drservice.yaml``, ``/etc``.

    A file that was not named but merely lies in the present folder must belong to this user or root: it may
    name commands to run.

    Raises:
        ConfigurationError: none exists, or the one in the present folder belongs to somebody else.
    """
    named = explicit or (pathlib.Path(environ[VARIABLE]) if environ.get(VARIABLE) else None)
    if named is not None:
        return named.absolute()
    local = LOCAL_PATH.absolute()
    if local.is_file():
        if local.stat().st_uid not in {0, os.geteuid()}:
            raise ConfigurationError(
                f"{local} belongs to another user and was not asked for",
                hint="If you trust it, name it with --config: it may name commands that run as you.",
            )
        return local
    if SYSTEM_PATH.is_file():
        return SYSTEM_PATH
    raise ConfigurationError(
        f"there is no configuration file: neither {local} nor {SYSTEM_PATH} exists",
        hint=f"`drservice init` writes one; --config FILE or {VARIABLE} names another.",
    )


def load(path: pathlib.Path) -> LoadedConfiguration:
    """Read and validate a configuration file.

    Raises:
        ConfigurationError: it cannot be read, others may change it, or it is invalid; the message has a line
            ``FILE:LINE:COLUMN: setting: what was expected`` for every mistake, in the file's order.
    """
    raw = _read(path)
    try:
        document = parse(raw)
    except InvalidYamlError as error:
        raise _refusal(path, error.problems) from error
    problems = cross_check(document)
    try:
        configuration = Configuration.model_validate(document.data)
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), document)
        raise _refusal(path, problems) from None  # pydantic's text repeats values, which may be secrets
    if problems:
        raise _refusal(path, problems)
    estate = build_estate(configuration, path)
    return LoadedConfiguration(
        estate=estate,
        notices=notices(configuration, estate),
        values_with_origin=effective_values(configuration, document),
    )


def json_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Configuration.model_json_schema(),
        "title": "drservice configuration",
    }


def _read(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ConfigurationError(
                    f"everybody may write to {path}",
                    hint=f"It may name commands to run; take that right away: chmod o-w {path}",
                )
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no configuration file at {path}", hint="`drservice init` writes one."
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the configuration file {path}: {error.strerror}",
            hint="Check that it is a file and that this user may read it.",
        ) from error


def _refusal(path: pathlib.Path, problems: Sequence[Problem]) -> ConfigurationError:
    found: dict[tuple[int, int, str], Problem] = {}
    for problem in problems:
        found.setdefault((problem.mark.line, problem.mark.column, problem.path), problem)
    ordered = [found[key] for key in sorted(found)]
    lines = [
        f"{path}:{problem.mark.line}:{problem.mark.column}: "
        + (f"{problem.path}: {problem.message}" if problem.path else problem.message)
        for problem in ordered[:_SHOWN_PROBLEMS]
    ]
    if len(ordered) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(ordered) - _SHOWN_PROBLEMS} more")
    count = "a mistake" if len(ordered) == 1 else f"{len(ordered)} mistakes"
    return ConfigurationError("\n".join([f"the configuration has {count}:", *lines]))
