"""The loss report in lines, for whoever has to decide what happens before people work again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from drservice.canonical import Json
from drservice.checks.interface import spoken
from drservice.cli.formatting import format_seconds

_SHOWN = 8


def loss_lines(reports: Sequence[Mapping[str, Json]], *, whole: bool = True) -> Iterator[str]:
    """Yield the reports of a recovery, as :meth:`LossReport.as_json` spells them.

    Args:
        reports: one for each database.
        whole: with everything there is to decide; else the headline alone.

    Raises:
        KeyError, ValueError: it is no report.
    """
    for report in reports:
        yield from _headline(report)
        if not whole:
            continue
        yield from _tables(report)
        yield from _numbers(report)
        yield from _queues(report)
        yield from _outside(report)
        yield from (f"  not known: {_text(problem)}" for problem in _list(report["problems"]))


def number_statements(reports: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    """Yield the SQL that keeps numbers from being given out twice, for people to look through and to run with psql.

    What is certain is a statement; what may be, a comment that a person turns into one. Nothing here runs it.

    Raises:
        KeyError, ValueError: it is no report.
    """
    for report in reports:
        yield f"-- numbers of {report['component']}/{_text(report['database'])}: look through them, then run them there"
        for item in map(_map, _list(report["numbers"])):
            last = item["last_in_production"]
            there = f", in production {last}" if last is not None else ""
            yield f"-- {_text(item['name'])}: last one here {item['last_here']}{there}"
            if item["sql"] is None:
                yield f"--   {_remedy(item)}"
            else:
                yield f"{'' if item['certain'] is True else '-- '}{item['sql']}"


def _headline(report: Mapping[str, Json]) -> Iterator[str]:
    window, known = _map(report["window"]), report["known_behind"]
    head, begin = f"loss report of {report['component']}/{_text(report['database'])}", _time(window["from"])
    if report["lossy"] is not True:
        yield f"{head}: nothing is known to be lost; what may have been committed after {begin} is in no repository"
    elif window["to"] is None:
        yield f"{head}: LOST is what was committed after {begin}; the repository knows of nothing later"
    else:
        seconds = format_seconds(float(str(window["seconds"])))
        yield (
            f"{head}: LOST is what was committed from {begin} to {_time(window['to'])} at least ({seconds};"
            f" production was last heard of by {window['heard_by']})"
        )
    if isinstance(known, Mapping):
        yield (
            f"  {report['rows_lost']} rows are missing against recovery point {known['point']}"
            f" of {_time(known['measured_at'])}; what came after it nobody counted"
        )


def _tables(report: Mapping[str, Json]) -> Iterator[str]:
    for item in map(_map, _list(report["tables"])):
        states = [
            f"{_text(state)} {_map(counts)['here']} (was {_map(counts)['in_production']})"
            for state, counts in _map(item["states"]).items()
        ]
        told = f": {', '.join(states)}" if states else ""
        yield f"    {item['table']}: {item['here']} rows, {item['in_production']} in production{told}"


def _numbers(report: Mapping[str, Json]) -> Iterator[str]:
    numbers = [_map(item) for item in _list(report["numbers"])]
    certain = [item for item in numbers if item["certain"] is True]
    for item in certain:
        first, last = int(str(item["last_here"])) + 1, item["last_in_production"]
        yield (
            f"  NUMBERS GIVEN OUT TWICE: {_text(item['name'])} {first} to {last} are outside already;"
            f" go on with {item['proposed_next']}"
        )
        yield f"    {_remedy(item)}"
    others = [item for item in numbers if item["certain"] is not True]
    shown = [f"{_text(item['name'])} {int(str(item['last_here'])) + 1}" for item in others[:_SHOWN]]
    if shown:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        yield f"  next numbers: {', '.join(shown)}{more}: compare each with the newest document outside"
    if report["other_sequences_behind"]:
        yield f"  {report['other_sequences_behind']} sequences of row ids are behind production's: ids are used again"


def _remedy(item: Mapping[str, Json]) -> str:
    if item["sql"] is not None:
        return f"offered, not done: {item['sql']}"
    return f"by hand, in Odoo: give the first new document the number {item['proposed_next']} before it is posted"


def _queues(report: Mapping[str, Json]) -> Iterator[str]:
    for item in map(_map, _list(report["queues"])):
        ids = _list(item["ids"])
        shown = ", ".join(str(number) for number in ids[:_SHOWN])
        more = " ..." if int(str(item["count"])) > len(ids[:_SHOWN]) else ""
        yield f"  WAITING TO BE SENT, AGAIN PERHAPS: {item['count']} {item['what']} ({item['table']} {shown}{more})"
    overdue = _map(report["overdue_actions"])
    if overdue["count"]:
        first = [_map(item) for item in _list(overdue["first"])]
        names = ", ".join(f"{_text(item['name'])} ({item['id']})" for item in first[:_SHOWN])
        more = " ..." if int(str(overdue["count"])) > _SHOWN else ""
        yield f"  RUN AS SOON AS ODOO STARTS: {overdue['count']} scheduled actions: {names}{more}"


def _outside(report: Mapping[str, Json]) -> Iterator[str]:
    for item in map(_map, _list(report["outside"])):
        yield f"  OUTSIDE: {_text(item['subject'])}: {item['effect']}"


def _text(value: Json) -> str:
    return spoken(str(value), most=80)


def _time(value: Json) -> str:
    return f"{str(value)[:19]}Z"


def _map(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise ValueError("a part of the report is no object")  # noqa: TRY004 - one kind of error for the reader's caller
    return value


def _list(value: Json) -> Sequence[Json]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError("a part of the report is no list")  # noqa: TRY004 - as above
    return value
