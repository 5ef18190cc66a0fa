"""Click groups that import only the command that is asked for.

``--help`` of a group is written from the table alone. Inheritance here is click's way to be extended.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from drservice.cli.invocation import Invocation, global_options
from drservice.cli.table import Entry


class LazyGroup(click.Group):
    """A group whose commands come from a table."""

    def __init__(self, *, name: str, summary: str, entries: Sequence[Entry], groups: Mapping[str, str]) -> None:
        super().__init__(name=name, help=summary, params=global_options(), no_args_is_help=True)
        self._entries = {entry.name: entry for entry in entries if " " not in entry.name}
        self._groups = {
            group: LazyGroup(
                name=group,
                summary=groups[group],
                entries=[
                    Entry(entry.name.removeprefix(f"{group} "), entry.target, entry.summary)
                    for entry in entries
                    if entry.name.startswith(f"{group} ")
                ],
                groups={
                    name.removeprefix(f"{group} "): words
                    for name, words in groups.items()
                    if name.startswith(f"{group} ")
                },
            )
            for group in dict.fromkeys(entry.name.partition(" ")[0] for entry in entries if " " in entry.name)
        }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of commands and groups."""
        del ctx
        return sorted([*self._entries, *self._groups])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, give it the global options, and return it."""
        del ctx
        if cmd_name in self._groups:
            return self._groups[cmd_name]
        entry = self._entries.get(cmd_name)
        return _import_command(entry) if entry is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = [
            (name, self._entries[name].summary if name in self._entries else self._groups[name].help or "")
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _import_command(entry: Entry) -> click.Command:
    module, _, attribute = entry.target.partition(":")
    original = getattr(importlib.import_module(module), attribute)
    if not isinstance(original, click.Command) or original.callback is None:
        raise TypeError(f"{entry.target} is no click command")
    command = copy.copy(original)
    command.name = entry.name
    command.params = [*original.params, *global_options()]
    command.callback = _beginning(original.callback)
    return command


def _beginning(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Set up what a running command needs (not its ``--help``), then call it."""

    def call(*args: object, **kwargs: object) -> object:
        invocation = click.get_current_context().find_object(Invocation)
        if invocation is None:
            raise TypeError("a command runs inside an invocation")
        invocation.begin()
        return callback(*args, **kwargs)

    return call
