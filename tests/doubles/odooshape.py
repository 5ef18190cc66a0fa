"""A database in Odoo's shape with everything that could reach out, and folders of modules that neutralize it.

create_odoo(connection, version=19)            # the tables of tests/doubles/odoobusiness.py and those below
write_addons(folder, ("base", "mail"))         # modules with a manifest, some with data/neutralize.sql

The scripts are written for these tests and do what Odoo's own are known to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from tests.doubles.odoobusiness import create_business

MODULES = ("base", "mail", "account", "stock", "mrp", "sale", "purchase", "payment_demo")
"""What ``create_business`` has as installed."""
_TABLES: Mapping[str, str] = {
    "ir_model_data": "id serial primary key, module text, name text, model text, res_id int",
    "ir_mail_server": (
        "id serial primary key, name text not null, smtp_host text, smtp_port int, smtp_user text, smtp_pass text,"
        " smtp_encryption text not null, smtp_authentication text not null, active bool"
    ),
    "ir_act_server": "id serial primary key, name jsonb, state text, code text, webhook_url text",
    "res_users": "id serial primary key, login text, password text, totp_secret text",
    "res_users_apikeys": "id serial primary key, name text, user_id int, scope text, key text, index text",
    "auth_totp_device": "id serial primary key, name text, user_id int, key text",
    "auth_oauth_provider": "id serial primary key, name text, enabled bool",
}
_OLD: Mapping[int, Iterable[str]] = {
    # Up to version 15 payment providers have another name, and there are no webhooks.
    15: ["alter table payment_provider rename to payment_acquirer", "alter table ir_act_server drop webhook_url"],
}
_ROWS = (
    (
        "insert into ir_config_parameter (key, value) values ('database.uuid', 'production-uuid'),"
        " ('database.secret', 'production-secret'), ('web.base.url', 'https://erp.example.com')"
    ),
    "insert into ir_model_data (module, name, model, res_id) values ('base', 'autovacuum_job', 'ir.cron', 1)",
    (
        "insert into ir_mail_server (name, smtp_host, smtp_port, smtp_user, smtp_pass, smtp_encryption,"
        " smtp_authentication, active) values ('relay', 'smtp.example.com', 587, 'erp', 'hunter2', 'starttls',"
        " 'login', true)"
    ),
    "alter table fetchmail_server add if not exists password text",
    "update fetchmail_server set password = 'hunter3'",
    (
        "insert into ir_act_server (name, state, code) values"
        """ ('{"en_US": "Tell the MES"}', 'code', 'requests.post("https://mes.example.com", json={})'),"""
        """ ('{"en_US": "Count"}', 'code', 'log(len(records))')"""
    ),
    "insert into res_users (login, password, totp_secret) values ('admin', 'hash', 'secret')",
    "insert into res_users_apikeys (name, user_id, scope, key, index) values ('edi', 1, 'rpc', 'hash', '12345678')",
    "insert into auth_totp_device (name, user_id, key) values ('phone', 1, 'hash')",
    "insert into auth_oauth_provider (name, enabled) values ('company', true)",
)
_WEBHOOK = (
    "insert into ir_act_server (name, state, webhook_url) values"
    """ ('{"en_US": "Ring"}', 'webhook', 'https://hook.example.com')"""
)

SCRIPTS: Mapping[str, str] = {
    "base": (
        "-- no mail leaves, nothing runs by itself\n"
        "update ir_mail_server set active = false;\n"
        "insert into ir_mail_server (name, smtp_host, smtp_port, smtp_encryption, smtp_authentication, active)\n"
        "  values ('off', 'invalid', 1025, 'none', 'login', true);\n"
        "update ir_cron set active = false where id not in (select res_id from ir_model_data\n"
        "  where model = 'ir.cron' and module = 'base' and name = 'autovacuum_job');\n"
        "insert into ir_config_parameter (key, value) values ('database.is_neutralized', 'true')\n"
        "  on conflict (key) do update set value = excluded.value;\n"
    ),
    "mail": "update fetchmail_server set active = false;\n",
    "payment_demo": "update payment_provider set state = 'disabled' where state not in ('test', 'disabled');\n",
}


def create_odoo(connection: psycopg.Connection[Any], *, version: int = 19) -> None:
    """Make a business and what reaches out of it; the present role owns it."""
    create_business(connection, version=version)
    for name, columns in _TABLES.items():
        connection.execute(f"create table if not exists {name} ({columns})".encode())
    for statement in _ROWS:
        connection.execute(statement.encode())
    if version > 15:
        connection.execute(_WEBHOOK.encode())
    for statement in _OLD.get(version, ()):
        connection.execute(statement.encode())


def write_addons(folder: Path, modules: Iterable[str] = MODULES, scripts: Mapping[str, str] = SCRIPTS) -> Path:
    """Write modules as Odoo has them on disk: a manifest, and the script of those that have one."""
    for name in modules:
        (folder / name / "data").mkdir(parents=True, exist_ok=True)
        (folder / name / "__manifest__.py").write_text(f"{{'name': '{name}'}}\n")
        if name in scripts:
            (folder / name / "data" / "neutralize.sql").write_text(scripts[name])
    return folder
