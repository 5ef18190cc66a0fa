"""What the demo promised its customers, and the comparison of it with a recovered service. Pure: no I/O.

The oracle is the client's side: an order or a document counts as promised once the database has acknowledged its
commit. The server's own account of what it kept is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from drservice.model.wal import Lsn


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One transaction as the client saw it. ``acknowledged`` is ``None`` if the answer never came."""

    number: str
    lines: int
    begun: datetime
    acknowledged: datetime | None
    flushed: Lsn | None
    """Read after the acknowledgement: the commit record lies before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a recovered database holds of the orders, seen from the client's side."""

    acknowledged: int
    """Acknowledged up to the target: each of them must be there."""
    lost: tuple[str, ...]
    """Acknowledged up to the target and not there, or not with all of its lines."""
    after_target: int
    """Begun after the target: none of them may be there."""
    unwanted: tuple[str, ...]
    """There although begun after the target, or never entered by anybody."""
    in_flight: int
    """Begun before the target and not acknowledged by then: either is right, if it is whole."""

    @property
    def recovered(self) -> int:
        """How many of the promised orders are there."""
        return self.acknowledged - len(self.lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as the client filed it: the transaction of its row, and the SHA-1 of what it handed over."""

    entry: Order
    sha1: str


def compare_documents(documents: Iterable[Document], found: Mapping[str, str | None], target: datetime) -> Comparison:
    """Compare the documents a client remembers with those recovered to ``target``; other content counts as lost.

    Args:
        documents: everything that was ever filed.
        found: name in the recovered rows to the SHA-1 of the content that lies there, ``None`` without a file.
        target: the instant that was asked for, by the same clock.
    """
    remembered = list(documents)
    filed = {document.entry.number: document.sha1 for document in remembered}
    whole = {name: int(sha1 is not None and filed.get(name) == sha1) for name, sha1 in found.items()}
    return compare([document.entry for document in remembered], whole, target)


def compare(orders: Iterable[Order], found: Mapping[str, int], target: datetime) -> Comparison:
    """Compare the orders a client remembers with those of a database recovered to ``target``.

    PostgreSQL stamps a commit before it writes it and acknowledges it after: an order acknowledged by the target was
    committed by then, one begun after it was not.

    Args:
        orders: everything that was ever sent.
        found: order number to number of lines, as the recovered database has them.
        target: the instant that was asked for, by the same clock.
    """
    acknowledged, after_target, in_flight = 0, 0, 0
    lost: list[str] = []
    unwanted: list[str] = []
    known: set[str] = set()
    for order in orders:
        known.add(order.number)
        lines = found.get(order.number)
        if order.acknowledged is not None and order.acknowledged <= target:
            acknowledged += 1
            if lines != order.lines:
                lost.append(order.number)
        elif order.begun > target:
            after_target += 1
            if lines is not None:
                unwanted.append(order.number)
        else:
            in_flight += 1
            if lines is not None and lines != order.lines:
                unwanted.append(order.number)
    unwanted.extend(number for number in found if number not in known)
    return Comparison(
        acknowledged=acknowledged,
        lost=tuple(sorted(lost)),
        after_target=after_target,
        unwanted=tuple(sorted(unwanted)),
        in_flight=in_flight,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlived:
    """What of the documents outlived the machine that they were on, seen from those who filed them."""

    acknowledged: int
    """Filed and acknowledged before the machine died."""
    lost: tuple[str, ...]
    """Of these: the row, the document or both are gone."""
    lost_seconds: float
    """From the oldest lost acknowledgement to the end of the machine; 0 if none is lost."""
    dangling: tuple[str, ...]
    """Rows whose document is missing, acknowledged or not."""
    unwanted: tuple[str, ...]
    """There with another content than was filed, or never filed by anybody."""


def outlived(documents: Iterable[Document], found: Mapping[str, str | None], died_at: datetime) -> Outlived:
    """Compare the documents a client remembers with those that came back after its machine died.

    Args:
        documents: everything that was ever filed.
        found: name in the recovered rows to the SHA-1 of the content that lies there, ``None`` without a file.
        died_at: by the client's clock.
    """
    filed: dict[str, str] = {}
    acknowledged: dict[str, datetime] = {}
    for document in documents:
        filed[document.entry.number] = document.sha1
        if document.entry.acknowledged is not None and document.entry.acknowledged <= died_at:
            acknowledged[document.entry.number] = document.entry.acknowledged
    lost = {name: at for name, at in acknowledged.items() if found.get(name) != filed[name]}
    return Outlived(
        acknowledged=len(acknowledged),
        lost=tuple(sorted(lost)),
        lost_seconds=max(((died_at - at).total_seconds() for at in lost.values()), default=0.0),
        dangling=tuple(sorted(name for name, sha1 in found.items() if sha1 is None)),
        unwanted=tuple(
            sorted(name for name, sha1 in found.items() if name not in filed or sha1 not in {None, filed[name]})
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """What the loss of the production machine at one instant would have cost."""

    at: datetime
    count: int
    """Acknowledged orders whose WAL, or documents that, were not in the repository yet."""
    seconds: float
    """From the newest one that was safe to the instant; 0 if every one was safe."""


def exposure(orders: Iterable[Order], *, durable: Lsn, at: datetime) -> Exposure:
    """Measure committed work at risk at one instant: the recovery point that a disaster there would have had.

    It errs on the side of more: an order counts as safe only if everything flushed by its acknowledgement is.

    Args:
        orders: what was acknowledged so far.
        durable: end of the WAL that the repository holds without a gap.
        at: the instant, not before ``durable`` was looked up.
    """
    return _at_risk(orders, lambda order: order.flushed is not None and order.flushed <= durable, at)


def document_exposure(documents: Iterable[Document], *, durable: datetime | None, at: datetime) -> Exposure:
    """Measure documents at risk at one instant, as :func:`exposure` does committed work.

    Args:
        documents: what was filed so far.
        durable: every document whose row was committed by then is in the repository; ``None`` = that was never proven.
        at: the instant, by the same clock.
    """

    def is_safe(entry: Order) -> bool:
        return durable is not None and entry.acknowledged is not None and entry.acknowledged <= durable

    return _at_risk((document.entry for document in documents), is_safe, at)


def _at_risk(entries: Iterable[Order], is_safe: Callable[[Order], bool], at: datetime) -> Exposure:
    safe: list[datetime] = []
    at_risk: list[datetime] = []
    for entry in entries:
        if entry.acknowledged is not None and entry.acknowledged <= at:
            (safe if is_safe(entry) else at_risk).append(entry.acknowledged)
    if not at_risk:
        return Exposure(at=at, count=0, seconds=0.0)
    since = max(safe) if safe else min(at_risk)
    return Exposure(at=at, count=len(at_risk), seconds=max(0.0, (at - since).total_seconds()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """An instant worth a mark in the picture: one character, and what it stands for."""

    mark: str
    at: datetime
    text: str


_BLOCKS = "▁▂▃▄▅▆▇█"


def picture(
    *,
    moments: Sequence[Moment],
    entered: Collection[datetime],
    recovered: Collection[datetime],
    used: tuple[datetime, datetime],
    width: int,
    blocks: bool,
) -> list[str]:
    """Draw orders entered, orders recovered, and the moments, to one scale of time.

    Args:
        moments: marks below the rows, in order of time.
        entered: when each order was acknowledged.
        recovered: the same for those that the recovered database holds.
        used: from the start of the snapshot the recovery began with to its target.
        width: columns for the scale.
        blocks: whether the terminal can show block characters.
    """
    instants = [*entered, *(moment.at for moment in moments)]
    first, last = min(instants), max(instants)
    scale = (width - 1) / max((last - first).total_seconds(), 0.001)

    def column(instant: datetime) -> int:
        return min(width - 1, max(0, round((instant - first).total_seconds() * scale)))

    def row(times: Collection[datetime]) -> str:
        counts = [0] * width
        for instant in times:
            counts[column(instant)] += 1
        return "".join(_level(count, highest, blocks=blocks) for count in counts)

    highest = _highest(entered, column, width)
    begin, end = column(used[0]), column(used[1])
    line, stop = ("━", "┫") if blocks else ("=", "|")
    marks = [" "] * width
    for moment in moments:
        marks[column(moment.at)] = moment.mark
    return [
        f"orders entered    {row(entered)}".rstrip(),
        f"snapshot and WAL  {' ' * begin}{line * (end - begin)}{stop}",
        f"orders recovered  {row(recovered)}".rstrip(),
        f"                  {''.join(marks)}".rstrip(),
    ]


def _highest(times: Collection[datetime], column: object, width: int) -> int:
    assert callable(column)
    counts = [0] * width
    for instant in times:
        counts[column(instant)] += 1
    return max(counts, default=1) or 1


def _level(count: int, highest: int, *, blocks: bool) -> str:
    if count == 0:
        return " "
    if not blocks:
        return "#"
    return _BLOCKS[min(len(_BLOCKS) - 1, count * (len(_BLOCKS) - 1) // highest)]
