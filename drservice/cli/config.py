"""``drservice config``: what the configuration says, and what it may say."""

from __future__ import annotations

import json

import click

from drservice.cli.formatting import format_table
from drservice.cli.invocation import Invocation
from drservice.settings.loading import json_schema


@click.command(help="Show every setting in force and where it comes from: a line of the file or the default.")
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print the effective configuration."""
    loaded = invocation.load()
    source = loaded.estate.source
    document = {
        "file": source,
        "values": [
            {"path": value.path, "value": value.value, "line": value.line} for value in loaded.values_with_origin
        ],
        "notices": list(loaded.notices),
    }
    rows = [
        (
            value.path,
            json.dumps(value.value, ensure_ascii=False),
            f"line {value.line}" if value.line is not None else "default",
        )
        for value in loaded.values_with_origin
    ]
    lines = [f"{source}", *format_table(("SETTING", "VALUE", "ORIGIN"), rows)]
    invocation.output.result("config-show", document, lines)
    if not invocation.json:
        for notice in loaded.notices:
            invocation.output.warn(notice)


@click.command(help="Print the JSON Schema of the configuration file, for editors and CI.")
@click.pass_obj
def schema(invocation: Invocation) -> None:
    """Print the JSON Schema; bare for people and editors, inside a result document with ``--json``."""
    if invocation.json:
        invocation.output.result("config-schema", {"json_schema": json_schema()}, ())
    else:
        invocation.output.raw(json.dumps(json_schema(), indent=2))
