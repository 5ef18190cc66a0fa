"""Stands for Odoo's start script inside an environment: the same pages over the same tables and data folder.

It believes nothing that it was not given: the password is the one of the database's hash, a document is read through
the data folder. What is to go wrong is an option of its configuration: ``standin = exit | blank | stranger | damage``.
Python's own library only, for the Python of the system.
"""

import base64
import configparser
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

PSQL = "/usr/lib/postgresql/15/bin/psql"
TOKEN = "t0ken"


class StandIn(http.server.ThreadingHTTPServer):
    """The one server, with what its pages need."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__((options["http_interface"], int(options["http_port"])), Pages)
        self.options = options
        self.fault = options.get("standin", "")
        self.store = Path(options["data_dir"], "filestore", options["db_name"])
        self.logged_in: int | None = None

    def ask(self, sql: str) -> str:
        where = {"-h": "db_host", "-U": "db_user", "-d": "db_name"}
        words = [word for flag, name in where.items() for word in (flag, self.options[name])]
        done = subprocess.run([PSQL, "-XAt", *words, "-c", sql], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def log_in(self, form: dict[str, str]) -> None:
        number, hashed = self.ask(f"select id, password from res_users where login = '{form['login']}'").split("|")
        _, _, rounds, salt, wanted = hashed.split("$")
        parts = [base64.b64decode(part.replace(".", "+") + "==") for part in (salt, wanted)]
        found = hashlib.pbkdf2_hmac("sha512", form["password"].encode(), parts[0], int(rounds))
        second = self.ask(f"select totp_secret is not null from res_users where id = {number}") == "t"
        if found == parts[1] and form["csrf_token"] == TOKEN and not second and self.fault != "stranger":
            self.logged_in = int(number)

    def spoil(self) -> None:
        """Do what a program with a defect would: write over every document, and make a file of its own."""
        for folder, _, names in os.walk(self.store):
            for name in names:
                with contextlib.suppress(OSError), Path(folder, name).open("r+b") as stream:
                    stream.write(b"spoilt")
        (self.store / "checklist" / "new").write_bytes(b"made anew")


class Pages(http.server.BaseHTTPRequestHandler):
    """The login page, the session, and the download of an attachment."""

    server: StandIn

    def do_GET(self) -> None:
        if self.path == "/web/login":
            form = "" if self.server.fault == "blank" else '<input name="password"/>'
            self.answer(f'<input type="hidden" name="csrf_token" value="{TOKEN}"/>{form}'.encode())
            return
        number = int(self.path.split("/")[3].split("?")[0])
        content = self.server.store / self.server.ask(f"select store_fname from ir_attachment where id = {number}")
        self.answer(content.read_bytes() + (b"!" if self.server.fault == "damage" else b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/web/session/get_session_info":
            known = self.server.logged_in if "session=1" in self.headers.get("Cookie", "") else None
            self.answer(json.dumps({"result": {"uid": known, "server_version": "19.0-standin"}}).encode())
            return
        self.server.log_in(dict(urllib.parse.parse_qsl(body)))
        self.answer(b"", cookie="session=1")

    def answer(self, content: bytes, cookie: str = "") -> None:
        self.send_response(200)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    parser = configparser.RawConfigParser()
    parser.read(sys.argv[sys.argv.index("-c") + 1])
    options = dict(parser["options"])
    if options.get("standin") == "exit":
        sys.exit("2026-11-27 07:00:00,000 4 CRITICAL plant odoo: no addons")
    server = StandIn(options)
    server.spoil()
    server.serve_forever()


if __name__ == "__main__":
    main()
