"""Business tables in the shapes of Odoo 15, 17 and 19, with rows that a healthy business has.

create_business(connection, version=19)        # tables and rows; nothing in them breaks an invariant

Only columns that drservice reads are there. Tables that exist already are extended, not replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

_TIMES = (
    "create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc')"
)
TABLES: dict[str, str] = {
    "ir_module_module": "id serial primary key, name text unique, state text, latest_version text",
    "ir_config_parameter": "id serial primary key, key text unique, value text",
    "ir_attachment": (
        "id serial primary key, name text, res_model text, res_id int, type text default 'binary', url text,"
        f" store_fname text, checksum varchar(40), file_size int, db_datas bytea, {_TIMES}"
    ),
    "ir_sequence": (
        "id serial primary key, name text, code text, implementation text, prefix text, padding int,"
        " number_next int, active bool default true"
    ),
    "ir_sequence_date_range": "id serial primary key, sequence_id int, date_from date, date_to date, number_next int",
    "ir_cron": (
        "id serial primary key, cron_name text, active bool, nextcall timestamp, interval_number int default 1,"
        " interval_type text default 'days'"
    ),
    "mail_mail": f"id serial primary key, state text, failure_reason text, {_TIMES}",
    "sms_sms": f"id serial primary key, state text, {_TIMES}",
    "fetchmail_server": "id serial primary key, name text, server_type text, active bool, state text",
    "payment_provider": "id serial primary key, code text, state text",
    "res_currency": "id serial primary key, name text, rounding numeric",
    "res_partner": f"id serial primary key, name text, {_TIMES}",
    "account_journal": "id serial primary key, code text",
    "account_move": (
        "id serial primary key, name text, state text, journal_id int, move_type text,"
        f" sequence_prefix text, sequence_number int, {_TIMES}"
    ),
    "account_move_line": (
        f"id serial primary key, move_id int, parent_state text, debit numeric, credit numeric, {_TIMES}"
    ),
    "product_template": "id serial primary key, type text, uom_id int",
    "product_product": "id serial primary key, product_tmpl_id int",
    "uom_uom": "id serial primary key, factor numeric",
    "stock_location": "id serial primary key, usage text",
    "stock_quant": f"id serial primary key, product_id int, location_id int, quantity float8, {_TIMES}",
    "stock_picking": f"id serial primary key, name text, state text, {_TIMES}",
    "stock_move": (
        "id serial primary key, picking_id int, production_id int, product_id int, state text, product_qty numeric,"
        f" {_TIMES}"
    ),
    "stock_move_line": (
        "id serial primary key, move_id int, product_id int, location_id int, location_dest_id int, state text,"
        f" product_uom_id int, {_TIMES}"
    ),
    "mrp_production": f"id serial primary key, name text, state text, product_id int, company_id int, {_TIMES}",
    "sale_order": f"id serial primary key, name text, state text, amount_untaxed numeric, currency_id int, {_TIMES}",
    "sale_order_line": "id serial primary key, order_id int, price_subtotal numeric, display_type text",
    "purchase_order": (
        f"id serial primary key, name text, state text, amount_untaxed numeric, currency_id int, {_TIMES}"
    ),
    "purchase_order_line": "id serial primary key, order_id int, price_subtotal numeric, display_type text",
}
"""Columns that versions 15 to 19 have in common."""

_VERSIONED: dict[int, Sequence[str]] = {
    15: ["alter table stock_move_line add qty_done numeric"],
    17: ["alter table stock_move_line add quantity_product_uom numeric"],
    19: [
        "alter table stock_move_line add quantity_product_uom numeric",
        "alter table product_template add is_storable bool",
        "alter table ir_attachment add original_id int",
    ],
}

ROWS: Sequence[str] = (
    (
        "insert into ir_module_module (name, state, latest_version) select m, 'installed', '{v}.0.1.0'"
        " from unnest(array['base', 'mail', 'account', 'stock', 'mrp', 'sale', 'purchase', 'payment_demo']) m"
    ),
    "insert into ir_module_module (name, state) values ('website', 'uninstalled')",
    "insert into res_currency (name, rounding) values ('EUR', 0.01)",
    "insert into res_partner (name) select 'partner ' || i from generate_series(1, 20) i",
    "insert into account_journal (code) values ('INV')",
    (
        "insert into account_move (name, state, journal_id, move_type, sequence_prefix, sequence_number)"
        " select 'INV/2026/' || lpad(i::text, 5, '0'), 'posted', 1, 'out_invoice', 'INV/2026/', i"
        " from generate_series(1, 30) i"
    ),
    "insert into account_move (name, state, journal_id, move_type) values ('/', 'draft', 1, 'out_invoice')",
    (
        "insert into account_move_line (move_id, parent_state, debit, credit)"
        " select i, 'posted', 10 * i, 0 from generate_series(1, 30) i union all"
        " select i, 'posted', 0, 10 * i from generate_series(1, 30) i"
    ),
    "insert into account_move_line (move_id, parent_state, debit, credit) values (31, 'draft', 7, 0)",
    "insert into uom_uom (factor) values (1), (0.1)",  # a piece, and a box of ten
    "insert into product_product (product_tmpl_id) values (1), (2)",
    "insert into stock_location (usage) values ('supplier'), ('internal'), ('customer'), ('production')",
    "insert into stock_quant (product_id, location_id, quantity) values (1, 2, 15), (1, 1, -20), (1, 3, 5), (2, 2, 4)",
    (
        "insert into stock_picking (name, state) values ('WH/IN/00001', 'done'), ('WH/OUT/00001', 'done'),"
        " ('WH/OUT/00002', 'assigned')"
    ),
    (
        "insert into mrp_production (name, state, product_id, company_id) values ('WH/MO/00001', 'done', 2, 1),"
        " ('WH/MO/00002', 'confirmed', 2, 1)"
    ),
    (
        "insert into stock_move (picking_id, product_id, state, product_qty) values (1, 1, 'done', 20),"
        " (2, 1, 'done', 5), (2, 1, 'cancel', 1), (3, 1, 'assigned', 2)"
    ),
    (
        "insert into stock_move (production_id, product_id, state, product_qty) values (1, 2, 'done', 4),"
        " (2, 2, 'confirmed', 4)"
    ),
    (
        "insert into sale_order (name, state, amount_untaxed, currency_id) values ('S00001', 'sale', 30.01, 1),"
        " ('S00002', 'draft', 99, 1), ('S00003', 'sale', 0, 1)"
    ),
    "insert into sale_order_line (order_id, price_subtotal) values (1, 10), (1, 20), (1, null), (2, 1)",
    "insert into purchase_order (name, state, amount_untaxed, currency_id) values ('P00001', 'purchase', 12.5, 1)",
    "insert into purchase_order_line (order_id, price_subtotal) values (1, 12.5)",
    (
        "insert into ir_attachment (name, res_model, res_id, file_size, db_datas) values"
        " ('drawing', 'mrp.production', 1, 3, 'abc'), ('empty', null, null, 0, null)"
    ),
    "insert into ir_attachment (name, type, url) values ('link', 'url', 'https://example.com')",
    (
        "insert into ir_sequence (name, code, implementation, prefix, padding, number_next) values"
        " ('Manufacturing', 'mrp.production', 'standard', 'WH/MO/', 5, 1), ('Cheques', 'cheque', 'no_gap', 'C', 4, 12)"
    ),
    "create sequence ir_sequence_001",
    "select setval('ir_sequence_001', 2)",
    (
        "insert into ir_cron (cron_name, active, nextcall) values ('Autovacuum', true, now() - interval '1 hour'),"
        " ('Send mails', true, now() + interval '1 day'), ('Asleep', false, now() - interval '1 year')"
    ),
    "insert into mail_mail (state) values ('outgoing'), ('sent'), ('outgoing')",
    "insert into sms_sms (state) values ('outgoing')",
    (
        "insert into fetchmail_server (name, server_type, active, state) values ('box', 'pop', true, 'done'),"
        " ('old', 'imap', false, 'draft')"
    ),
    "insert into payment_provider (code, state) values ('demo', 'enabled'), ('stripe', 'disabled')",
)

_LINES = (
    "insert into stock_move_line (product_id, location_id, location_dest_id, state, product_uom_id, {quantity}) values"
)
_VERSIONED_ROWS: dict[int, Sequence[str]] = {
    # Two boxes of ten came in; five pieces went out; four were made; two are only reserved.
    15: [
        "insert into product_template (type, uom_id) values ('product', 1), ('product', 1)",
        _LINES.format(quantity="qty_done")
        + " (1, 1, 2, 'done', 2, 2), (1, 2, 3, 'done', 1, 5), (2, 4, 2, 'done', 1, 4), (1, 2, 3, 'assigned', 1, 2)",
    ],
    17: [
        "insert into product_template (type, uom_id) values ('product', 1), ('product', 1)",
        _LINES.format(quantity="quantity_product_uom")
        + " (1, 1, 2, 'done', 2, 20), (1, 2, 3, 'done', 1, 5), (2, 4, 2, 'done', 1, 4), (1, 2, 3, 'assigned', 1, 2)",
    ],
    19: [
        "insert into product_template (type, is_storable, uom_id) values ('consu', true, 1), ('consu', true, 1)",
        _LINES.format(quantity="quantity_product_uom")
        + " (1, 1, 2, 'done', 2, 20), (1, 2, 3, 'done', 1, 5), (2, 4, 2, 'done', 1, 4), (1, 2, 3, 'assigned', 1, 2)",
    ],
}


def create_business(connection: psycopg.Connection[Any], *, version: int = 19) -> None:
    """Make the tables of a version (15, 17 or 19) and a small healthy business."""
    statements = [f"create table if not exists {name} ({columns})" for name, columns in TABLES.items()]
    statements += [*_VERSIONED[version], *(row.replace("{v}", str(version)) for row in ROWS), *_VERSIONED_ROWS[version]]
    for statement in statements:
        connection.execute(statement.encode())


def create_office(connection: psycopg.Connection[Any]) -> None:
    """Make what tells that a database is Odoo's, and what waits in it: no business, and no tables that Plant has."""
    tables = (
        "ir_config_parameter", "ir_module_module", "ir_sequence", "ir_cron", "mail_mail", "sms_sms", "fetchmail_server",
    )  # fmt: skip
    for name in tables:
        connection.execute(f"create table {name} ({TABLES[name]})".encode())
    for row in ROWS:
        if any(f"into {name} " in row for name in tables) or "ir_sequence_001" in row:
            connection.execute(row.replace("{v}", "19").encode())
