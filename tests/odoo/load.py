"""Work on a real Odoo, with a log of everything that it acknowledged: an answer comes after its commit."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from tests.odoo.production import OdooError, Production, Rpc

_MODELS = ("sale.order", "purchase.order", "mrp.production")
_REFERENCE = {"sale.order": "client_order_ref", "purchase.order": "partner_ref", "mrp.production": "origin"}
_TABLE = {model: model.replace(".", "_") for model in (*_MODELS, "ir.attachment")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """One commit that somebody was told of."""

    model: str
    number: int
    at: datetime
    sha1: str | None = None
    """Of a document's content."""
    ended: bool = False
    """Whether this deleted the document."""


@dataclass(kw_only=True)
class Load:
    """Clients that work until they are told to end, or until the host is gone."""

    production: Production
    clients: int
    largest_bytes: int = 200_000
    acknowledged: list[Acknowledged] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        rpc = self.production.rpc()
        partners = rpc.on("res.partner", "search", [["is_company", "=", True]], limit=10)
        products = rpc.on("product.product", "search", [["sale_ok", "=", True], ["type", "=", "consu"]], limit=20)
        boms = rpc.on("mrp.bom", "search_read", [["type", "=", "normal"], ["product_id", "!=", False]], ["product_id"])
        if not boms:
            found = rpc.on("mrp.bom", "search_read", [["type", "=", "normal"]], ["product_tmpl_id"])
            templates = [bom["product_tmpl_id"][0] for bom in found]
            boms = [
                {"id": bom["id"], "product_id": [variant]}
                for bom, template in zip(found, templates, strict=True)
                for variant in rpc.on("product.product", "search", [["product_tmpl_id", "=", template]], limit=1)
            ]
        for number in range(self.clients):
            worker = _Worker(self, random.Random(number), partners, products, boms)
            thread = threading.Thread(target=worker.work, name=f"client-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(90)

    @property
    def is_over(self) -> bool:
        return self._end.is_set()

    def note(self, done: Acknowledged) -> None:
        with self._lock:
            self.acknowledged.append(done)

    def note_refusal(self, why: str) -> None:
        with self._lock:
            self.refused.append(why)

    def until(self, commits: int, *, seconds: float = 120.0) -> None:
        """Wait for so many more acknowledged commits."""
        wanted = len(self.acknowledged) + commits
        deadline = time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} of {wanted}; refused {self.refused[-3:]}"
            time.sleep(0.05)


@dataclass(kw_only=True)
class Expected:
    """What a copy of an instant has to hold, by the log: made before it, and what was deleted after it."""

    rows: dict[str, set[int]]
    documents: dict[int, str]
    """Attachment to SHA-1."""


def expected_at(acknowledged: Sequence[Acknowledged], instant: datetime | None) -> Expected:
    """Return what was acknowledged up to an instant (``None`` = all) and not deleted by anything in the log.

    What somebody deleted later may or may not be in the copy; it is expected nowhere.
    """
    rows: dict[str, set[int]] = {model: set() for model in _TABLE}
    documents: dict[int, str] = {}
    deleted = {item.number for item in acknowledged if item.ended}
    for item in acknowledged:
        if (instant is not None and item.at > instant) or item.ended:
            continue
        if item.model == "ir.attachment" and item.number in deleted:
            continue
        rows[item.model].add(item.number)
        if item.sha1 is not None:
            documents[item.number] = item.sha1
    return Expected(rows=rows, documents=documents)


def missing_of(connection: Any, expected: Expected) -> dict[str, set[int]]:
    """Return which expected rows a database lacks, by model; a document also counts if it has other content."""
    missing: dict[str, set[int]] = {}
    for model, numbers in expected.rows.items():
        found = connection.execute(f"select id from {_TABLE[model]} where id = any(%s)", ([*numbers],)).fetchall()
        missing[model] = numbers - {number for (number,) in found}
    sums = dict(
        connection.execute(
            "select id, checksum from ir_attachment where id = any(%s)", ([*expected.documents],)
        ).fetchall()
    )
    missing["ir.attachment"] |= {number for number, sha1 in expected.documents.items() if sums.get(number) != sha1}
    return missing


class _Worker:
    def __init__(
        self, load: Load, chance: random.Random, partners: list[int], products: list[int], boms: list[dict[str, Any]]
    ) -> None:
        self._load = load
        self._chance = chance
        self._partners = partners
        self._products = products
        self._boms = boms
        self._rpc: Rpc = load.production.rpc()
        self._mine: list[int] = []

    def work(self) -> None:
        while not self._load.is_over:
            try:
                self._load.note(self._one())
            except OdooError as error:
                self._load.note_refusal(str(error))
            except (OSError, ValueError):  # the host is gone: whether this one was committed nobody knows
                if not self._load.is_over:
                    time.sleep(0.1)

    def _one(self) -> Acknowledged:
        kind = self._chance.random()
        if kind < 0.35:
            return self._business(_MODELS[int(kind * 1000) % 3])
        if kind < 0.85 or not self._mine:
            return self._document()
        if kind < 0.95:
            return self._replace()
        number = self._mine.pop(self._chance.randrange(len(self._mine)))
        self._rpc.on("ir.attachment", "unlink", [number])
        return Acknowledged(model="ir.attachment", number=number, at=datetime.now(UTC), ended=True)

    def _business(self, model: str) -> Acknowledged:
        partner, product = self._chance.choice(self._partners), self._chance.choice(self._products)
        values: dict[str, Any] = {_REFERENCE[model]: "load"}
        if model == "mrp.production":
            bom = self._chance.choice(self._boms)
            values |= {"product_id": bom["product_id"][0], "bom_id": bom["id"], "product_qty": 1}
        else:
            quantity = "product_uom_qty" if model == "sale.order" else "product_qty"
            line = {"product_id": product, quantity: self._chance.randint(1, 9)}
            values |= {"partner_id": partner, "order_line": [(0, 0, line)]}
        number = self._rpc.on(model, "create", values)
        return Acknowledged(model=model, number=int(number), at=datetime.now(UTC))

    def _document(self) -> Acknowledged:
        content = os.urandom(self._chance.randint(500, self._load.largest_bytes))
        values = {"name": "load", "datas": base64.b64encode(content).decode()}
        number = int(self._rpc.on("ir.attachment", "create", values))
        self._mine.append(number)
        sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return Acknowledged(model="ir.attachment", number=number, at=datetime.now(UTC), sha1=sha1)

    def _replace(self) -> Acknowledged:
        """Replace a document: the old content becomes garbage, so the attachment is expected with neither of the two.

        Which of them a copy has depends on the instant; that there is a file for it is asked of every row anyway.
        """
        number = self._mine.pop(self._chance.randrange(len(self._mine)))
        content = base64.b64encode(os.urandom(self._chance.randint(500, self._load.largest_bytes))).decode()
        self._rpc.on("ir.attachment", "write", [number], {"datas": content})
        return Acknowledged(model="ir.attachment", number=number, at=datetime.now(UTC), ended=True)
