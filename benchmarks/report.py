"""Turns the result of the race into the README's table and chart, so that neither is ever typed by hand.

    python benchmarks/report.py       (reads benchmarks/results/race*.json, writes docs/images/race.svg and README.md)

The table stands between two markers in the README; a test compares it with the result that is committed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/race.json"
LARGE = ROOT / "benchmarks/results/race-large.json"
CHART = ROOT / "docs/images/race.svg"
README = ROOT / "README.md"
BEGIN, END = "<!-- race: begin, written by benchmarks/report.py -->", "<!-- race: end -->"
OURS, PEER = "drservice", "pgbackrest"
_STORES = {"directory": "folder", "s3": "S3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison."""

    title: str
    store: str
    ours: float
    theirs: float
    ours_range: tuple[float, float]
    theirs_range: tuple[float, float]
    ours_bytes: int | None
    theirs_bytes: int | None
    ours_memory: int | None
    theirs_memory: int | None
    ours_requests: int | None
    """What the bucket's server was asked for; ``None`` for a folder."""
    theirs_requests: int | None
    unit: str
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """Ours as a share of theirs."""
        return self.ours / self.theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What is told of a row: title, the quantity compared, its unit."""

    row: str
    title: str
    key: str
    unit: str = "s"
    more_is_better: bool = False


_ROWS = (
    _Row(row="full", title="first backup", key="seconds"),
    _Row(row="incremental", title="backup after 20 s of pgbench", key="seconds"),
    _Row(row="unchanged", title="backup, nothing changed", key="seconds"),
    _Row(row="restore", title="restore, files in place", key="placed_seconds"),
    _Row(row="restore", title="restore, server answers", key="answering_seconds"),
    _Row(row="delta", title="restore onto a copy, 1 % of pages differ", key="placed_seconds"),
    _Row(row="pitr", title="recovery through 1 GB of WAL", key="answering_seconds"),
    _Row(row="push", title="WAL archived", key="segments_per_second", unit="segments/s", more_is_better=True),
)


def lines_of(result: Mapping[str, Any]) -> Iterator[Line]:
    """Yield every comparison that was measured, folder first."""
    for store, label in _STORES.items():
        for wanted in _ROWS:
            programs = result["stores"].get(store, {}).get(wanted.row, {}).get("programs", {})
            if not {OURS, PEER} <= programs.keys() or f"median_{wanted.key}" not in programs[OURS]:
                continue
            yield _line(wanted, label, programs[OURS], programs[PEER], _samples(result, store, wanted))


def _samples(result: Mapping[str, Any], store: str, wanted: _Row) -> Mapping[str, tuple[float, float]]:
    runs = result["samples"][store][wanted.row]
    values = {name: [float(run[wanted.key]) for run in runs[name]] for name in (OURS, PEER)}
    return {name: (min(found), max(found)) for name, found in values.items()}


def _line(
    wanted: _Row,
    store: str,
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
) -> Line:
    key = f"median_{wanted.key}"
    has_bytes = "median_stored_bytes" in ours and wanted.row != "unchanged"
    return Line(
        title=wanted.title,
        store=store,
        ours=ours[key],
        theirs=theirs[key],
        ours_range=ranges[OURS],
        theirs_range=ranges[PEER],
        ours_bytes=_whole(ours["median_stored_bytes"] if has_bytes else None),
        theirs_bytes=_whole(theirs["median_stored_bytes"] if has_bytes else None),
        ours_memory=_whole(ours.get("median_largest_process_bytes")),
        theirs_memory=_whole(theirs.get("median_largest_process_bytes")),
        ours_requests=_whole(ours.get("median_requests")),
        theirs_requests=_whole(theirs.get("median_requests")),
        unit=wanted.unit,
        more_is_better=wanted.more_is_better,
    )


# --- The table ----------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any], large: Mapping[str, Any] | None = None) -> str:
    """Return the README's table, with what it was measured on, and a paragraph about ten times the size."""
    peer, lines = result["versions"][PEER], list(lines_of(result))
    counted = any(line.ours_requests is not None for line in lines)
    rows = [
        f"| | store | drservice | {peer} | share | stored | memory of a process |{' requests |' if counted else ''}",
        f"|---|---|---|---|---|---|---|{'---|' if counted else ''}",
        *(f"{_table_row(line)}{f' {_requests(line)} |' if counted else ''}" for line in lines),
    ]
    at_large = [large_text(large), ""] if large is not None else []
    return "\n".join([*rows, "", *_others(result), *at_large, _conditions(result)])


def large_text(result: Mapping[str, Any]) -> str:
    """Return the sentence about a large cluster: times, and the memory that shall not grow with it."""
    told = [
        f"{line.title} {_number(line.ours)} {line.unit} against {_number(line.theirs)} (**{line.ratio:.2f}**), memory"
        f" {_pair(line.ours_memory, line.theirs_memory)}"
        for line in lines_of(result)
    ]
    rounds = "one round" if result["rounds"] == 1 else f"{result['rounds']} rounds"
    size = f"{result['source_bytes'] / 1e9:.0f} GB"
    return f"At {size} in a folder, {result['measured_at'][:10]}, {rounds}: {'; '.join(told)}."


def _others(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a paragraph for each program that takes part in few rows: what it does is not the same."""
    for name in sorted(result["versions"].keys() - {OURS, PEER, "postgres"}):
        told = [
            f"{wanted.title} ({label}) {_number(found[f'median_{wanted.key}'])} {wanted.unit}{_kept(found)}"
            for store, label in _STORES.items()
            for wanted in _ROWS
            if (found := result["stores"].get(store, {}).get(wanted.row, {}).get("programs", {}).get(name))
            and f"median_{wanted.key}" in found
        ]
        yield f"{result['versions'][name]}, neither compressed nor encrypted: {'; '.join(told)}."
        yield ""


def _kept(found: Mapping[str, float]) -> str:
    stored = found.get("median_stored_bytes")
    return "" if stored is None else f", {stored / 1e6:.0f} MB"


def _requests(line: Line) -> str:
    return "" if line.ours_requests is None else f"{line.ours_requests} / {line.theirs_requests}"


def _table_row(line: Line) -> str:
    stored = _pair(line.ours_bytes, line.theirs_bytes)
    memory = _pair(line.ours_memory, line.theirs_memory)
    ours = _with_range(line.ours, line.ours_range, line.unit)
    theirs = _with_range(line.theirs, line.theirs_range, line.unit)
    return f"| {line.title} | {line.store} | {ours} | {theirs} | **{line.ratio:.2f}** | {stored} | {memory} |"


def _with_range(median: float, ends: tuple[float, float], unit: str) -> str:
    low, high = (_number(end) for end in ends)
    return f"{_number(median)} {unit} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _pair(ours: int | None, theirs: int | None) -> str:
    if ours is None or theirs is None:
        return ""
    return f"{ours / 1e6:.0f} / {theirs / 1e6:.0f} MB"


def _conditions(result: Mapping[str, Any]) -> str:
    machine, rounds = result["machine"], result["rounds"]
    quiet = "" if result["quiet"] else " The machine was busy with other things: these numbers mean little."
    rounds_text = f"Medians of {rounds} rounds (least and most in brackets)"
    place = f"{machine['cores']} cores ({machine['processor']})"
    server = f"PostgreSQL {result['versions']['postgres'].split()[0]} with page checksums"
    return (
        f"{rounds_text}, {result['measured_at'][:10]}, {place}, {server}, {result['source_bytes'] / 1e9:.1f} GB, zstd"
        f" level 1, encrypted, two processes each; stored and memory are ours / theirs.{quiet} `make bench` repeats it;"
        " [how it is measured](benchmarks/race.py)."
    )


def readme_with(text: str, part: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Return the README with its table replaced, which stands between two markers.

    Raises:
        ValueError: the markers are not there.
    """
    first, last = markers
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(
            f"README.md has no place for the table: put these two lines where it belongs:\n{first}\n{last}"
        )
    return f"{before}{first}\n{part}\n{last}{after}"


# --- The chart ----------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 860, 300, 200, 40, 64
_STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .quiet { fill: #59636e; font-size: 12px; } .title { font-size: 15px; font-weight: 600; }
  .ours { fill: #1a7f6b; } .peer { fill: #c9d1d9; } .axis { stroke: #59636e; stroke-dasharray: 3 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .quiet { fill: #9198a1; }
    .ours { fill: #3fb99f; } .peer { fill: #3d444d; } .axis { stroke: #9198a1; }
  }
"""


def chart(result: Mapping[str, Any]) -> str:
    """Return the chart as SVG, readable on light and dark pages: time as a share of the peer's, less is better."""
    drawn = list(lines_of(result))
    room = _WIDTH - _LEFT - _RIGHT
    most = max([1.0, *(_time_share(line) for line in drawn)])
    one = room / most
    height = _TOP + _LINE * len(drawn) + 16
    peer = result["versions"][PEER]
    shape = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape} role="img" aria-label="{escape(_spoken(drawn, peer))}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="16" y="24">Time, as a share of {escape(peer)}: less is better</text>',
        '<rect class="ours" x="16" y="36" width="12" height="12"/><text class="quiet" x="34" y="46">drservice</text>',
        '<rect class="peer" x="116" y="36" width="12" height="12"/>',
        f'<text class="quiet" x="134" y="46">{escape(peer)} (= 1)</text>',
        *(part for index, line in enumerate(drawn) for part in _bars(line, _TOP + index * _LINE, one)),
        f'<line class="axis" x1="{_LEFT + one:.1f}" x2="{_LEFT + one:.1f}" y1="{_TOP - 6}" y2="{height - 12}"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _time_share(line: Line) -> float:
    return 1 / line.ratio if line.more_is_better else line.ratio


def _bars(line: Line, top: int, one: float) -> Sequence[str]:
    share = _time_share(line)
    seconds = f"{_number(line.ours)} against {_number(line.theirs)} {line.unit}"
    return (
        f'<text x="16" y="{top + 14}">{escape(line.title)}</text>',
        f'<text class="quiet" x="16" y="{top + 29}">{line.store}</text>',
        f'<rect class="ours" x="{_LEFT}" y="{top + 2}" width="{share * one:.1f}" height="13" rx="2"/>',
        f'<rect class="peer" x="{_LEFT}" y="{top + 17}" width="{one:.1f}" height="11" rx="2"/>',
        f'<text x="{_LEFT + max(share, 1.0) * one + 10:.1f}" y="{top + 14}">{share:.2f}</text>',
        f'<text class="quiet" x="{_LEFT + max(share, 1.0) * one + 10:.1f}" y="{top + 29}">{escape(seconds)}</text>',
    )


def _spoken(drawn: Sequence[Line], peer: str) -> str:
    told = "; ".join(f"{line.title} ({line.store}) {_time_share(line):.2f}" for line in drawn)
    return f"Time of drservice as a share of {peer}: {told}"


def main() -> None:
    """Write chart and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the table and write nothing")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text())
    large = json.loads(LARGE.read_text())
    if arguments.only_print:
        print(table(result, large))
        return
    for path, measured in ((arguments.result, result), (LARGE, large)):
        if not measured["quiet"]:
            raise SystemExit(f"{path} is no result: others used the processors; run the race again")
    CHART.write_text(chart(result))
    try:
        README.write_text(readme_with(README.read_text(), table(result, large)))
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
