"""Which document numbers a recovered Odoo would give out again, and what to set so that it does not.

Three ways to number, three remedies: entries of accounting go on from the highest one that is there, so the first one
is numbered by hand; a sequence without gaps is a row that is updated; all others are PostgreSQL's own sequences, which
may skip numbers, and skip some here on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from drservice.components.odoo.gathering import Numbered, read_journals, read_no_gap
from drservice.components.odoo.schema import OdooSchema
from drservice.components.postgres.asking import Asking
from drservice.components.postgres.baseline import read_sequences
from drservice.model.losses import NumberAtRisk, NumberKind

RESERVE = 100
"""How many numbers are left out for documents that nobody knows of, where a gap does no harm."""
_DOCUMENTS = re.compile(r"public\.ir_sequence_[0-9]{3,}(?:_[0-9]{3,})?")
_ROW = re.compile(r"(ir_sequence|ir_sequence_date_range):([0-9]+)")
_MOST = 200


def compare_numbers(
    source: Asking,
    schema: OdooSchema,
    *,
    journals: Iterable[Numbered],
    no_gap: Iterable[Numbered],
    sequences: Mapping[str, int],
) -> tuple[tuple[NumberAtRisk, ...], int]:
    """Return the numbers of documents, those at certain risk first, and how many other sequences are behind.

    Args:
        source: a pinned session to the copy.
        schema: of its database.
        journals: what production had given out, of entries by journal and prefix.
        no_gap: of sequences without gaps.
        sequences: the last values of PostgreSQL's sequences.

    Raises:
        PostgresError, UnansweredError: the copy cannot be asked.
    """
    here = read_sequences(source)
    names = _read_names(source, schema)
    found = [
        *_compared(NumberKind.JOURNAL, read_journals(source, schema), journals),
        *_compared(NumberKind.NO_GAP, read_no_gap(source, schema), no_gap),
    ]
    others = 0
    for sequence in sorted({*here, *sequences}):
        last, there = here.get(sequence, 0), sequences.get(sequence)
        if _DOCUMENTS.fullmatch(sequence) and sequence in names:
            found.append(_of_sequence(sequence, names[sequence], last, there))
        elif there is not None and there > last:
            others += 1
    return tuple(sorted(found, key=lambda item: not item.is_certain)[:_MOST]), others


def _compared(kind: NumberKind, here: list[Numbered], there: Iterable[Numbered]) -> Iterator[NumberAtRisk]:
    """Yield what the copy knows of beside what production knew; a prefix may have begun after the copy's instant."""
    known = {item.id: item for item in there}
    present = {item.id: item for item in here}
    for identity in {**present, **known}:
        last = present[identity].last if identity in present else 0
        later = known[identity].last if identity in known else None
        proposed = max(last, later or 0) + 1
        yield NumberAtRisk(
            kind=kind,
            name=(present.get(identity) or known[identity]).name,
            here=last,
            there=later,
            proposed=proposed,
            sql=_update(identity, proposed) if kind is NumberKind.NO_GAP and identity in present else None,
        )


def _update(identity: str, proposed: int) -> str | None:
    row = _ROW.fullmatch(identity)
    if row is None:
        return None
    return f"update public.{row[1]} set number_next = greatest(number_next, {proposed}) where id = {row[2]};"  # noqa: S608 - offered to people, from two patterns and a number


def _of_sequence(sequence: str, name: str, here: int, there: int | None) -> NumberAtRisk:
    proposed = max(here, there or 0) + 1 + RESERVE
    return NumberAtRisk(
        kind=NumberKind.SEQUENCE,
        name=name,
        here=here,
        there=there,
        proposed=proposed,
        sql=f"select setval('{sequence}', greatest({proposed}, (select last_value from {sequence})), false);",  # noqa: S608 - offered to people, from a pattern and a number
    )


def _read_names(source: Asking, schema: OdooSchema) -> dict[str, str]:
    """Return what PostgreSQL's sequences of documents are for, by their names."""
    if not schema.has("ir_sequence", "id", "name", "prefix", "implementation"):
        return {}
    shown = "coalesce(nullif(s.prefix, ''), s.name)"
    questions = [
        (
            f"select format('public.ir_sequence_%s', lpad(s.id::text, greatest(3, length(s.id::text)), '0')), {shown}"  # noqa: S608 - from the line above
            " from public.ir_sequence s where s.implementation = 'standard' limit 5000"
        )
    ]
    if schema.has("ir_sequence_date_range", "id", "sequence_id", "date_from"):
        questions.append(
            "select format('public.ir_sequence_%s_%s', lpad(s.id::text, greatest(3, length(s.id::text)), '0'),"  # noqa: S608 - as above
            f" lpad(r.id::text, greatest(3, length(r.id::text)), '0')), format('%s from %s', {shown}, r.date_from)"
            " from public.ir_sequence_date_range r join public.ir_sequence s on s.id = r.sequence_id"
            " where s.implementation = 'standard' order by r.id desc limit 5000"
        )
    return {str(name): title or "" for question in questions for name, title in source.scan(question)}
