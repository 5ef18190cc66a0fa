"""What one call of the program was asked for globally, and what commands get from it.

A command takes it with ``@click.pass_obj``. Global options may stand before and after the command's name; the
last one wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drservice import telemetry
from drservice.cli.output import Output

if TYPE_CHECKING:
    from drservice.operations.progress import Progress
    from drservice.settings.loading import LoadedConfiguration

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(slots=True)
class Invocation:
    """The global options; mutable, because they are collected while the words are parsed."""

    config: Path | None = None
    json: bool = False
    quiet: bool = False
    no_color: bool = False
    log_level: str = "warning"
    _output: Output | None = field(default=None, repr=False)

    @property
    def output(self) -> Output:
        """Where the command prints; made at first use, when all options are known."""
        if self._output is None:
            self._output = Output(
                stdout=sys.stdout,
                stderr=sys.stderr,
                json_document=self.json,
                quiet=self.quiet,
                colour=self._colour(),
            )
        return self._output

    def configuration_path(self) -> Path:
        """Return the configuration file to read.

        Raises:
            ConfigurationError: if there is none.
        """
        from drservice.settings.loading import find_configuration  # noqa: PLC0415 - pydantic costs 150 ms

        return find_configuration(self.config, os.environ)

    def load(self) -> LoadedConfiguration:
        """Find, read and validate the configuration file.

        Raises:
            ConfigurationError: with every mistake in it.
        """
        from drservice.settings.loading import load  # noqa: PLC0415 - pydantic costs 150 ms

        return load(self.configuration_path())

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show progress on stderr while the block runs: a live bar on a terminal, lines elsewhere."""
        from drservice.cli.progress import showing  # noqa: PLC0415 - rich costs 60 ms

        with showing(self.output) as progress:
            yield progress

    def begin(self) -> None:
        """Set up logging; called once the command is about to run, never for ``--help``."""
        telemetry.configure(level=self.log_level)

    def _colour(self) -> bool:
        terminal = sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        return terminal and not self.no_color and not os.environ.get("NO_COLOR")


def global_options() -> list[click.Parameter]:
    """Return fresh click options for the global settings, for the root and for every command."""

    def store(context: click.Context, parameter: click.Parameter, value: object) -> None:
        if value is not None and value is not False:
            setattr(context.find_object(Invocation), parameter.name or "", value)

    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="configuration file (default ./config/drservice.yaml, then /etc/drservice/drservice.yaml)",
            expose_value=False,
            callback=store,
        ),
        click.Option(["--json"], is_flag=True, help="print one JSON document", expose_value=False, callback=store),
        click.Option(["--quiet"], is_flag=True, help="no progress and no notes", expose_value=False, callback=store),
        click.Option(["--no-color"], is_flag=True, help="no colours", expose_value=False, callback=store),
        click.Option(
            ["--log-level"],
            type=click.Choice(LOG_LEVELS),
            help="how much is logged to stderr (default warning)",
            expose_value=False,
            callback=store,
        ),
    ]
