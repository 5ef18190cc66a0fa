"""The tables of the demo's plant, and the statements of its people: shaped as Odoo 19's, with the columns that count.

What Odoo's checks, baselines, loss report and neutralization read is there; nothing that its history has breaks an
invariant of the business, and nothing that people enter does, because each enters it in one transaction. History and
what people enter are told apart by state and number.
"""

from __future__ import annotations

from typing import LiteralString

SCHEMA: LiteralString = """
create table res_currency (id serial primary key, name text not null, rounding numeric not null);
create table res_partner (id serial primary key, name text not null, country text not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table res_users (id serial primary key, login text not null unique, password text);
create table res_users_apikeys (id serial primary key, name text, user_id int references res_users, key text);
create table product_template (
    id serial primary key, name text not null, type text not null, is_storable bool not null,
    list_price numeric(12,2) not null);
create table product_product (
    id serial primary key, product_tmpl_id int not null references product_template, default_code text not null);
create table sale_order (
    id serial primary key, name text not null unique, partner_id int not null references res_partner,
    date_order timestamp not null, state text not null, amount_untaxed numeric not null,
    currency_id int not null references res_currency, note text,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table sale_order_line (
    id serial primary key, order_id int not null references sale_order,
    product_id int not null references product_product, product_uom_qty numeric not null,
    price_unit numeric not null, price_subtotal numeric not null, display_type text);
create index on sale_order_line (order_id);
create table purchase_order (
    id serial primary key, name text not null unique, state text not null, amount_untaxed numeric not null,
    currency_id int not null references res_currency,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table purchase_order_line (
    id serial primary key, order_id int not null references purchase_order, price_subtotal numeric not null);
create table mrp_production (
    id serial primary key, name text not null unique, product_id int not null references product_product,
    product_qty numeric not null, date_start timestamp not null, state text not null, company_id int not null,
    origin text,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table stock_location (id serial primary key, name text not null, usage text not null);
create table stock_picking (id serial primary key, name text not null unique, state text not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table stock_move (
    id serial primary key, reference text not null, picking_id int references stock_picking,
    production_id int references mrp_production, product_id int not null references product_product,
    product_qty numeric not null, state text not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create index on stock_move (production_id);
create table stock_move_line (
    id serial primary key, move_id int not null references stock_move, product_id int not null,
    location_id int not null, location_dest_id int not null, state text not null,
    quantity_product_uom numeric not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table stock_quant (
    id serial primary key, product_id int not null, location_id int not null, quantity numeric not null,
    unique (product_id, location_id));
create table account_journal (id serial primary key, code text not null);
create table account_move (
    id serial primary key, name text not null, state text not null,
    journal_id int not null references account_journal, move_type text not null, sequence_prefix text,
    sequence_number int,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table account_move_line (
    id serial primary key, move_id int not null references account_move, move_name text not null,
    account text not null, parent_state text not null, debit numeric(16,2) not null, credit numeric(16,2) not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table ir_attachment (
    id serial primary key, name text not null, res_model text, res_id int, type text not null, url text,
    store_fname text, checksum varchar(40), file_size int, db_datas bytea, mimetype text,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create index on ir_attachment (store_fname);
create table ir_module_module (
    id serial primary key, name text not null unique, state text not null, latest_version text);
create table ir_config_parameter (id serial primary key, key text not null unique, value text);
create table ir_model_data (id serial primary key, module text, name text, model text, res_id int);
create table ir_cron (
    id serial primary key, cron_name text not null, active bool not null, nextcall timestamp not null,
    interval_number int not null default 1, interval_type text not null default 'days');
create table ir_act_server (
    id serial primary key, name jsonb not null, state text not null, code text, webhook_url text);
create table ir_mail_server (
    id serial primary key, name text not null, smtp_host text, smtp_port int, smtp_user text, smtp_pass text,
    smtp_encryption text not null, smtp_authentication text not null, active bool not null, sequence int);
create table fetchmail_server (
    id serial primary key, name text not null, server_type text not null, active bool not null, password text);
create table mail_mail (id serial primary key, email_to text not null, state text not null,
    create_date timestamp default (now() at time zone 'utc'), write_date timestamp default (now() at time zone 'utc'));
create table payment_provider (id serial primary key, code text not null, state text not null);
create table plant_mes_connection (id serial primary key, url text not null, active bool not null)
"""

HISTORY: LiteralString = """
insert into res_currency (name, rounding) values ('EUR', 0.01);
insert into res_partner (name, country)
    select 'Customer ' || i, (array['DE','FR','IT','PL','US'])[1 + i % 5] from generate_series(1, 500) i;
insert into product_template (name, type, is_storable, list_price)
    select 'Gearbox ' || md5(i::text), 'consu', true, 10 + i % 990 from generate_series(1, 2000) i;
insert into product_product (product_tmpl_id, default_code)
    select id, 'P-' || lpad(id::text, 5, '0') from product_template order by id;
insert into sale_order (name, partner_id, date_order, state, amount_untaxed, currency_id, note)
    select 'S' || lpad(i::text, 6, '0'), 1 + i % 500, timestamp '2026-01-01' + i * interval '7 minutes', 'done',
    (select sum((1 + (i + j) % 20) * (10 + (i * j) % 500)) from generate_series(1, 4) j), 1, repeat(md5(i::text), 4)
    from generate_series(1, 6000) i;
insert into sale_order_line (order_id, product_id, product_uom_qty, price_unit, price_subtotal)
    select o.id, 1 + (o.id * 7 + j * 13) % 2000, 1 + (o.id + j) % 20, 10 + (o.id * j) % 500,
    (1 + (o.id + j) % 20) * (10 + (o.id * j) % 500) from sale_order o, generate_series(1, 4) j;
insert into purchase_order (name, state, amount_untaxed, currency_id)
    select 'P' || lpad(i::text, 5, '0'), 'purchase', 100 + i, 1 from generate_series(1, 300) i;
insert into purchase_order_line (order_id, price_subtotal) select id, amount_untaxed from purchase_order order by id;
insert into account_journal (code) values ('INV');
insert into account_move (name, state, journal_id, move_type, sequence_prefix, sequence_number)
    select 'INV/2026/' || lpad(id::text, 5, '0'), 'posted', 1, 'out_invoice', 'INV/2026/', id
    from sale_order order by id;
insert into account_move_line (move_id, move_name, account, parent_state, debit, credit)
    select m.id, m.name, side.account, 'posted', o.amount_untaxed * side.debit, o.amount_untaxed * (1 - side.debit)
    from account_move m join sale_order o on o.id = m.sequence_number,
    (values ('1400', 1), ('8400', 0)) side(account, debit) order by m.id;
insert into stock_location (name, usage) values
    ('Vendors', 'supplier'), ('WH/Stock', 'internal'), ('Customers', 'customer'), ('Production', 'production');
insert into mrp_production (name, product_id, product_qty, date_start, state, company_id, origin)
    select 'WH/MO/' || lpad(i::text, 5, '0'), 1 + i % 2000, 10 + i % 50,
    timestamp '2026-01-01' + i * interval '5 minutes', 'done', 1, repeat(md5((i * 3)::text), 6)
    from generate_series(1, 8000) i;
insert into stock_picking (name, state)
    select 'WH/OUT/' || lpad(i::text, 5, '0'), case when i <= 400 then 'done' else 'assigned' end
    from generate_series(1, 500) i;
insert into stock_move (reference, production_id, product_id, product_qty, state)
    select name, id, product_id, product_qty, 'done' from mrp_production order by id;
insert into stock_move (reference, picking_id, product_id, product_qty, state)
    select name, id, 1 + id % 2000, 1, state from stock_picking order by id;
insert into stock_move_line (move_id, product_id, location_id, location_dest_id, state, quantity_product_uom)
    select id, product_id, case when production_id is null then 2 else 4 end,
    case when production_id is null then 3 else 2 end, state, product_qty from stock_move order by id;
insert into stock_quant (product_id, location_id, quantity)
    select product_id, 2, sum(case location_dest_id when 2 then quantity_product_uom else -quantity_product_uom end)
    from stock_move_line where state = 'done' group by product_id order by product_id;
insert into ir_config_parameter (key, value) values
    ('database.uuid', '6f0c1e4e-plant'), ('database.secret', 'of production alone'),
    ('web.base.url', 'https://erp.plant.example');
insert into ir_cron (cron_name, active, nextcall)
    select name, true, (now() at time zone 'utc') + due from (values
    ('Base: Auto-vacuum internal data', interval '5 hours'), ('Mail: Email Queue Manager', interval '-1 minute'),
    ('Procurement: run scheduler', interval '-2 hours'), ('Plant: report to the MES', interval '-1 minute'))
    job(name, due);
insert into ir_model_data (module, name, model, res_id) values ('base', 'autovacuum_job', 'ir.cron', 1);
insert into ir_act_server (name, state, webhook_url) values
    ('{"en_US": "Tell the carrier"}', 'webhook', 'https://carrier.example/hook');
insert into ir_mail_server
    (name, smtp_host, smtp_port, smtp_user, smtp_pass, smtp_encryption, smtp_authentication, active, sequence) values
    ('relay', 'smtp.plant.example', 587, 'erp', 'a real password', 'starttls', 'login', true, 10);
insert into fetchmail_server (name, server_type, active, password) values ('orders@', 'pop', true, 'another one');
insert into mail_mail (email_to, state)
    select 'customer' || i || '@example.com', case when i <= 195 then 'sent' else 'outgoing' end
    from generate_series(1, 200) i;
insert into payment_provider (code, state) values ('card', 'enabled');
insert into res_users (login, password) values ('admin', 'its hash');
insert into res_users_apikeys (name, user_id, key) values ('edi', 1, 'its hash');
insert into plant_mes_connection (url, active) values ('https://mes.plant.example', true)
"""

DIGEST: LiteralString = """
select count(*), md5(string_agg(line, E'\\n' order by line)) from (
    select 'partner' || p::text from res_partner p
    union all select 'template' || t::text from product_template t
    union all select 'product' || p::text from product_product p
    union all select 'sale_order' || o::text from sale_order o where o.state = 'done'
    union all select 'line' || l::text from sale_order_line l join sale_order o on o.id = l.order_id
        where o.state = 'done'
    union all select 'purchase' || p::text from purchase_order p
    union all select 'production' || p::text from mrp_production p where p.name like 'WH/MO/%'
    union all select 'entry' || m::text from account_move m where m.name like 'INV/2026/%'
    union all select 'item' || a::text from account_move_line a where a.move_name like 'INV/2026/%'
    union all select 'move' || m::text from stock_move m where m.reference like 'WH/%') as rows(line)
"""
"""Of the rows that the plant was filled with and nobody changes."""

SALE: LiteralString = """
with given(number, lines) as (values (%s::text, %s::int)),
l as (
    select 1 + floor(random() * 2000)::int as product, 1 + j as quantity, 10 * j as price
    from given, generate_series(1, lines) j),
o as (
    insert into sale_order (name, partner_id, date_order, state, amount_untaxed, currency_id)
    select number, 1 + floor(random() * 500)::int, clock_timestamp() at time zone 'utc', 'sale',
    (select sum(quantity * price) from l), 1 from given returning id, name, amount_untaxed),
lines as (
    insert into sale_order_line (order_id, product_id, product_uom_qty, price_unit, price_subtotal)
    select o.id, l.product, l.quantity, l.price, l.quantity * l.price from o, l),
m as (
    insert into account_move (name, state, journal_id, move_type, sequence_prefix, sequence_number)
    select 'INV/' || name, 'posted', 1, 'out_invoice', 'INV/' || left(name, -5), right(name, 5)::int from o
    returning id, name)
insert into account_move_line (move_id, move_name, account, parent_state, debit, credit)
select m.id, m.name, side.account, 'posted', o.amount_untaxed * side.debit, o.amount_untaxed * (1 - side.debit)
from m, o, (values ('1400', 1), ('8400', 0)) side(account, debit)
"""
"""An order of so many lines, its invoice and the two items of that: one transaction."""

PRODUCTION: LiteralString = """
with given(number, quantity) as (values (%s::text, %s::int)),
p as (
    insert into mrp_production (name, product_id, product_qty, date_start, state, company_id)
    select number, 1 + floor(random() * 2000)::int, quantity, clock_timestamp() at time zone 'utc', 'done', 1 from given
    returning id, name, product_id, product_qty),
m as (
    insert into stock_move (reference, production_id, product_id, product_qty, state)
    select name, id, product_id, product_qty, 'done' from p returning id, product_id, product_qty),
l as (
    insert into stock_move_line (move_id, product_id, location_id, location_dest_id, state, quantity_product_uom)
    select id, product_id, 4, 2, 'done', product_qty from m)
update stock_quant q set quantity = q.quantity + m.product_qty from m
where q.product_id = m.product_id and q.location_id = 2
"""
"""A manufacturing order that is done: its product is moved into stock, and lies there: one transaction."""

SALES: LiteralString = """
select o.name, count(l.id) from sale_order o left join sale_order_line l on l.order_id = o.id
where o.state = 'sale' group by o.name
"""
PRODUCTIONS: LiteralString = """
select p.name, count(m.id) from mrp_production p left join stock_move m on m.production_id = p.id
where p.name not like 'WH/MO/%' group by p.name
"""
OUTWARD: LiteralString = """
select (select count(*) from mail_mail where state = 'outgoing'),
    (select count(*) from ir_mail_server where active and smtp_host <> 'invalid'),
    (select count(*) from ir_cron where active),
    (select count(*) from plant_mes_connection where active)
"""
"""What acts on the world outside: mails that wait, mail servers, scheduled actions, the module's connection."""
