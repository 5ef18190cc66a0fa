"""What is true of the rows of a healthy Odoo, as questions whose answer is the list of rows that break it.

Odoo's tables differ between versions 15 and 19. An invariant has a variant for each shape; the first one whose tables
and columns are all there is asked, and without any the invariant is *not applicable*, with what is missing. Each
question lists a key for every offender: the same key in production and in the copy means the same offender.

``critical`` is what Odoo or the database itself enforces: no working copy may break it. The others can be broken by
people and by old errors of Odoo, in production too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from drservice.components.odoo.schema import OdooSchema
from drservice.components.postgres.asking import Asking
from drservice.errors import UnansweredError

MOST_KEYS = 1000
"""Offenders beyond are counted and not compared one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to ask, for databases of one shape."""

    needs: Mapping[str, str]
    """Columns by table, separated by spaces."""
    rows: str
    """Has the columns ``key`` (text without spaces) and ``what`` (text for people), a row for each offender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """Something that is true of every row."""

    name: str
    holds: str
    """In words, as a sentence's end: "every posted entry is balanced"."""
    broken: str
    """What offenders are: "posted entries are not balanced"."""
    critical: bool
    variants: tuple[Variant, ...]

    def variant(self, schema: OdooSchema) -> Variant | None:
        """Return how a database of this shape is asked; ``None`` = it cannot be."""
        return next((item for item in self.variants if schema.missing(item.needs) is None), None)

    def why_not(self, schema: OdooSchema) -> str:
        """Return what is missing, for the shape that is the newest."""
        return schema.missing(self.variants[0].needs) or "it can be asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offenders:
    """Who breaks an invariant."""

    count: int
    what: Mapping[str, str]
    """By key, the first :data:`MOST_KEYS`."""


def find_offenders(source: Asking, variant: Variant) -> Offenders:
    """Ask who breaks an invariant; the session has to be pinned.

    Raises:
        PostgresError: the question is refused, or takes too long.
        UnansweredError: the answer makes no sense.
    """
    found: dict[str, str] = {}
    count = 0
    question = (
        f"select key, what, count(*) over () from ({variant.rows}) as offender"  # noqa: S608 - from the tables below
        f' order by key collate "C" limit {MOST_KEYS}'
    )
    for key, what, total in source.scan(question):
        if key is None or " " in key or total is None:
            raise UnansweredError("an offender has no key")
        found[key] = what or key
        count = int(total)
    return Offenders(count=count, what=found)


_BALANCED = Invariant(
    name="balanced",
    holds="every posted entry is balanced",
    broken="posted entries are not balanced",
    critical=True,
    variants=(
        Variant(
            needs={"account_move_line": "move_id parent_state debit credit"},
            rows=(
                "select move_id::text as key, format('entry %s is off by %s', move_id, sum(debit - credit)) as what"
                " from public.account_move_line where parent_state = 'posted'"
                " group by move_id having abs(sum(debit - credit)) > 0.005"
            ),
        ),
    ),
)

_ITEMS_AGREE = Invariant(
    name="items-agree",
    holds="every journal item has the state of its entry",
    broken="journal items have another state than their entry, or no entry",
    critical=True,
    variants=(
        Variant(
            needs={"account_move_line": "id move_id parent_state", "account_move": "id state"},
            rows=(
                "select l.id::text as key, format('item %s: %s, its entry: %s', l.id, l.parent_state, m.state) as what"
                " from public.account_move_line l left join public.account_move m on m.id = l.move_id"
                " where l.parent_state is distinct from m.state"
            ),
        ),
    ),
)

_LATAM = (
    "select format('%s@%s', m.name, m.journal_id) as number, m.journal_id, m.name, m.id"
    " from public.account_move m where m.state = 'posted' and m.name <> '/'"
)
_NUMBERED = (
    "select replace(number, ' ', '_') as key,"
    " format('%s is the number of %s entries of journal %s', name, count(*), journal_id) as what"
    " from ({}) as numbered group by number, name, journal_id having count(*) > 1"
)
_UNIQUE_NUMBERS = Invariant(
    name="unique-numbers",
    holds="every posted entry has a number of its own in its journal",
    broken="numbers are used by more than one posted entry",
    critical=True,
    variants=(
        Variant(
            # In Latin America a number of a vendor's document is the vendor's, and two may have the same.
            needs={"account_move": "id name state journal_id move_type l10n_latam_document_type_id"},
            rows=_NUMBERED.format(
                _LATAM
                + " and (m.l10n_latam_document_type_id is null"
                + " or m.move_type not in ('in_invoice', 'in_refund', 'in_receipt'))"
            ),
        ),
        Variant(needs={"account_move": "id name state journal_id"}, rows=_NUMBERED.format(_LATAM)),
    ),
)


def _stock(moved: str, storable: str) -> str:
    """Compare what lies in each internal location with all that was ever moved in and out of it."""
    return (
        "select format('%s@%s', p, l) as key,"  # noqa: S608 - from the variants below
        " format('product %s in location %s: %s there, %s moved', p, l, quantity, moved) as what from ("
        " select p, l, sum(quantity) as quantity, sum(moved) as moved from ("
        "  select product_id as p, location_id as l, quantity::numeric, 0::numeric as moved from public.stock_quant"
        f"  union all select m.product_id, m.location_dest_id, 0, {moved}"
        f"  union all select m.product_id, m.location_id, 0, -1 * {moved}"
        " ) as step group by p, l) as stock"
        " join public.stock_location place on place.id = stock.l and place.usage = 'internal'"
        " join public.product_product product on product.id = stock.p"
        f" join public.product_template template on template.id = product.product_tmpl_id and template.{storable}"
        " where abs(quantity - moved) > greatest(0.01, abs(quantity) * 0.000001)"
    )


_LINES = " from public.stock_move_line m where m.state = 'done'"
_CONVERTED = (
    "(m.qty_done / nullif(line_unit.factor, 0) * unit.factor)::numeric from public.stock_move_line m"
    " join public.uom_uom line_unit on line_unit.id = m.product_uom_id"
    " join public.product_product moved_product on moved_product.id = m.product_id"
    " join public.product_template moved_template on moved_template.id = moved_product.product_tmpl_id"
    " join public.uom_uom unit on unit.id = moved_template.uom_id where m.state = 'done'"
)
_STOCK_NEEDS = {
    "stock_quant": "product_id location_id quantity",
    "stock_location": "id usage",
    "product_product": "id product_tmpl_id",
}
_MOVED_NEEDS = "product_id location_id location_dest_id state"
_STOCK = Invariant(
    name="stock",
    holds="what lies in every internal location is what was moved there",
    broken="products lie in internal locations in another quantity than was moved there",
    critical=False,
    variants=(
        Variant(
            needs={
                **_STOCK_NEEDS,
                "stock_move_line": f"{_MOVED_NEEDS} quantity_product_uom",
                "product_template": "id is_storable",
            },
            rows=_stock(f"m.quantity_product_uom::numeric{_LINES}", "is_storable"),
        ),
        Variant(
            needs={
                **_STOCK_NEEDS,
                "stock_move_line": f"{_MOVED_NEEDS} quantity_product_uom",
                "product_template": "id type",
            },
            rows=_stock(f"m.quantity_product_uom::numeric{_LINES}", "type = 'product'"),
        ),
        Variant(
            needs={
                **_STOCK_NEEDS,
                "stock_move_line": f"{_MOVED_NEEDS} qty_done product_uom_id",
                "product_template": "id type uom_id",
                "uom_uom": "id factor",
            },
            rows=_stock(_CONVERTED, "type = 'product'"),
        ),
    ),
)

_FINISHED = Invariant(
    name="production-finished",
    holds="every manufacturing order that is done has brought its product into stock",
    broken="manufacturing orders are done and have no done move of their product",
    critical=False,
    variants=(
        Variant(
            needs={
                "mrp_production": "id name state product_id",
                "stock_move": "production_id product_id state",
            },
            rows=(
                "select o.id::text as key, format('%s (%s)', o.name, o.id) as what from public.mrp_production o"
                " where o.state = 'done' and not exists (select from public.stock_move m"
                "  where m.production_id = o.id and m.product_id = o.product_id and m.state = 'done')"
            ),
        ),
    ),
)

_UNIQUE_ORDERS = Invariant(
    name="unique-productions",
    holds="every manufacturing order has a name of its own in its company",
    broken="names are used by more than one manufacturing order",
    critical=True,
    variants=(
        Variant(
            needs={"mrp_production": "id name company_id"},
            rows=(
                "select replace(format('%s@%s', name, company_id), ' ', '_') as key,"
                " format('%s is the name of %s orders', name, count(*)) as what"
                " from public.mrp_production group by name, company_id having count(*) > 1"
            ),
        ),
    ),
)

_CLOSED = Invariant(
    name="transfers-closed",
    holds="no transfer that is done has an open move",
    broken="transfers are done and have open moves",
    critical=False,
    variants=(
        Variant(
            needs={"stock_picking": "id name state", "stock_move": "picking_id state"},
            rows=(
                "select p.id::text as key, format('%s (%s)', p.name, p.id) as what from public.stock_picking p"
                " where p.state = 'done' and exists (select from public.stock_move m"
                "  where m.picking_id = p.id and m.state not in ('done', 'cancel'))"
            ),
        ),
    ),
)


def _totals(order: str, line: str, states: str, *, rounding: str, joined: str) -> str:
    return (
        "select o.id::text as key, format('%s (%s): %s, its lines: %s',"  # noqa: S608 - from the variants below
        " o.name, o.id, o.amount_untaxed, coalesce(l.total, 0)) as what"
        f" from public.{order} o left join (select order_id, sum(price_subtotal::numeric) as total, count(*) as lines"
        f"  from public.{line} group by order_id) as l on l.order_id = o.id {joined}"
        f" where o.state in ({states}) and abs(coalesce(o.amount_untaxed, 0)::numeric - coalesce(l.total, 0))"
        f"  > {rounding} * (1 + coalesce(l.lines, 0))"
    )


def _totals_of(name: str, title: str, order: str, line: str, states: str) -> Invariant:
    """Compare totals of confirmed orders with their lines, up to what rounding every line may add."""
    head, lines = "id name state amount_untaxed", {line: "order_id price_subtotal"}
    joined = "left join public.res_currency c on c.id = o.currency_id"
    return Invariant(
        name=name,
        holds=f"every confirmed {title} has the total of its lines",
        broken=f"confirmed {title}s have another total than their lines",
        critical=False,
        variants=(
            Variant(
                needs={order: f"{head} currency_id", **lines, "res_currency": "id rounding"},
                rows=_totals(order, line, states, rounding="coalesce(c.rounding, 0.01)", joined=joined),
            ),
            Variant(needs={order: head, **lines}, rows=_totals(order, line, states, rounding="0.01", joined="")),
        ),
    )


_OWNED = Invariant(
    name="attached-orders",
    holds="every document of a manufacturing order belongs to one that is there",
    broken="documents belong to manufacturing orders that are not there",
    critical=False,
    variants=(
        Variant(
            needs={"ir_attachment": "id name res_model res_id", "mrp_production": "id"},
            rows=(
                "select a.id::text as key, format('%s (%s) of order %s', a.name, a.id, a.res_id) as what"
                " from public.ir_attachment a where a.res_model = 'mrp.production' and a.res_id > 0"
                " and not exists (select from public.mrp_production o where o.id = a.res_id)"
            ),
        ),
    ),
)

_POINTERLESS = Invariant(
    name="content-known",
    holds="every attachment that has a size says where its content is",
    broken="attachments have a size and no content, neither a file nor bytes in the database",
    critical=False,
    variants=(
        Variant(
            needs={"ir_attachment": "id name type store_fname db_datas file_size"},
            rows=(
                "select id::text as key, format('%s (%s), %s bytes', name, id, file_size) as what"
                " from public.ir_attachment where type = 'binary' and file_size > 0"
                " and coalesce(store_fname, '') = '' and db_datas is null"
            ),
        ),
    ),
)

_INSTALLED = Invariant(
    name="modules-settled",
    holds="no module is half installed, upgraded or removed",
    broken="modules are half installed, upgraded or removed",
    critical=True,
    variants=(
        Variant(
            needs={"ir_module_module": "name state latest_version"},
            rows=(
                "select replace(name, ' ', '_') as key, format('%s is %s', name, state) as what"
                " from public.ir_module_module where state in ('to install', 'to upgrade', 'to remove')"
            ),
        ),
    ),
)

INVARIANTS: Sequence[Invariant] = (
    _INSTALLED,
    _BALANCED,
    _ITEMS_AGREE,
    _UNIQUE_NUMBERS,
    _STOCK,
    _FINISHED,
    _UNIQUE_ORDERS,
    _CLOSED,
    _totals_of("sale-totals", "sales order", "sale_order", "sale_order_line", "'sale', 'done'"),
    _totals_of("purchase-totals", "purchase order", "purchase_order", "purchase_order_line", "'purchase', 'done'"),
    _OWNED,
    _POINTERLESS,
)
"""In the order in which they are asked."""
