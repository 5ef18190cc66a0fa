"""Tells for every effective value where it comes from: a line of the file, or the default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel

from drservice.settings import scalars
from drservice.settings.positions import Document, Path, Plain, format_path


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveValue:
    """One setting in force: its path, its value as it would be written, and its line (None = default)."""

    path: str
    value: Plain
    line: int | None


def effective_values(configuration: BaseModel, document: Document) -> tuple[EffectiveValue, ...]:
    """Return every setting in force, in the order of the schema."""
    return tuple(_walk(configuration, (), document))


def _walk(value: object, path: Path, document: Document) -> Iterator[EffectiveValue]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name), (*path, name), document)
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _walk(item, (*path, key), document)
    elif isinstance(value, list) and any(isinstance(item, BaseModel) for item in value):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index), document)
    else:
        mark = document.values.get(path)
        yield EffectiveValue(path=format_path(path), value=_plain(value), line=mark.line if mark else None)


def _plain(value: object) -> Plain:
    if isinstance(value, timedelta):
        return scalars.format_duration(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if value == {}:
        return {}
    raise TypeError(f"a setting of type {type(value).__name__} has no written form")
