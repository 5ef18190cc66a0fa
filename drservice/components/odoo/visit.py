"""Runs inside a recovery environment: prepares a data folder, waits for Odoo, visits it, and says what it saw.

``visit.py PLAN`` prepares the data folder and ends. ``visit.py PLAN PID`` visits: the shell that started Odoo as
process PID became this program, so Odoo is its child. PLAN is a file of JSON; the answer is one line of JSON. Whoever
reads that must not believe it more than anything else that comes from inside. Nothing of ours is visible inside, so it
needs nothing but Python's own library (3.10 or newer).

The data folder holds a link for each document: the documents themselves cannot be written, and what Odoo makes new
(bundles of the pages' scripts) or collects as garbage is a file or a link there, never a document.
"""

from __future__ import annotations

import hashlib
import http.client
import http.cookiejar
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20
_PAGE = 4 << 20
_REQUEST_SECONDS = 120.0
_POLL_SECONDS = 0.2
_LOG_BYTES = 1 << 20
_TOKEN = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"|csrf_token: "([^"]+)"')
_FORM = re.compile(r'<input[^>]*name="password"')
_ENTRY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:,]+ [0-9]+ [A-Z]+ ")
_PROBLEM = re.compile(r" (ERROR|CRITICAL) ")


def prepare(plan: dict[str, Any]) -> None:
    """Make the data folder of an Odoo that is about to start, with a link for each document."""
    data, documents = Path(plan["data"]), Path(plan["documents"])
    shutil.rmtree(data, ignore_errors=True)
    Path(plan["log"]).unlink(missing_ok=True)
    store = data / "filestore" / plan["database"]
    (store / "checklist").mkdir(parents=True)
    (data / "sessions").mkdir()
    if not documents.is_dir():
        return
    for entry in os.scandir(documents):
        if entry.is_dir(follow_symlinks=False):
            folder = store / entry.name
            folder.mkdir(exist_ok=True)
            for document in os.scandir(entry.path):
                (folder / document.name).symlink_to(document.path)


class Visitor:
    """A browser of one user."""

    def __init__(self, base: str, deadline: float) -> None:
        """Begin without cookies; ``deadline`` is on the monotonic clock."""
        self.base = base
        self.deadline = deadline
        self.browser = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )

    def ask(self, path: str, data: bytes | None = None, kind: str | None = None) -> Any:  # noqa: ANN401 - urllib's answers have no common type
        """Send one request; an answer with an error status is an answer too."""
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.base + path, data=data, headers=headers)  # noqa: S310 - http to loopback
        seconds = max(1.0, min(_REQUEST_SECONDS, self.deadline - time.monotonic()))
        try:
            return self.browser.open(request, timeout=seconds)
        except urllib.error.HTTPError as answer:
            return answer


def await_odoo(pid: int, visitor: Visitor) -> tuple[int | None, str]:
    """Ask for the login page until somebody answers; returns the status and the page, or why there is none."""
    problem = "it did not listen"
    while time.monotonic() < visitor.deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return None, f"Odoo ended with status {os.waitstatus_to_exitcode(status)}"
        try:
            answer = visitor.ask("/web/login")
            return answer.status, answer.read(_PAGE).decode("utf-8", "replace")
        except ConnectionRefusedError:
            time.sleep(_POLL_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            if not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                problem = f"{type(error).__name__}: {error}"
            time.sleep(_POLL_SECONDS)
    return None, problem


def log_in(visitor: Visitor, page: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Fill in the form of the login page; returns where that led and who the session says it is."""
    token = _TOKEN.search(page)
    form = {"login": plan["login"], "password": plan["password"], "db": plan["database"]}
    if token:
        form["csrf_token"] = token[1] or token[2]
    answer = visitor.ask("/web/login", urllib.parse.urlencode(form).encode(), "application/x-www-form-urlencoded")
    answer.read(_PAGE)
    led_to = urllib.parse.urlsplit(answer.url).path
    call = json.dumps({"jsonrpc": "2.0", "method": "call", "id": 1, "params": {}}).encode()
    told = json.loads(visitor.ask("/web/session/get_session_info", call, "application/json").read(_PAGE))
    result = told.get("result") or {}
    version = result.get("server_version")
    return {"status": answer.status, "led_to": led_to, "uid": result.get("uid"), "version": version}


def open_document(visitor: Visitor, number: int) -> dict[str, Any]:
    """Download one attachment as the user would."""
    answer = visitor.ask(f"/web/content/{number}?download=1")
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    while block := answer.read(_BLOCK):
        digest.update(block)
        size += len(block)
    return {"id": number, "status": answer.status, "sha1": digest.hexdigest(), "size": size}


def problems_in(log: str) -> tuple[int, list[str]]:
    """Return how many errors Odoo wrote down, and the first few: each with the last line of its traceback."""
    with Path(log).open("rb") as stream:
        lines = stream.read(_LOG_BYTES).decode("utf-8", "replace").splitlines()
    entries: list[list[str]] = []
    for line in lines:
        if _ENTRY.match(line) or not entries:
            entries.append([])
        entries[-1].append(line)
    found = [entry for entry in entries if _PROBLEM.search(entry[0])]
    return len(found), [" ".join(dict.fromkeys((entry[0][:200], entry[-1][:200]))) for entry in found[:3]]


def visit(pid: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Wait for Odoo, and ask it for its login page, for a session, and for documents."""
    began = time.monotonic()
    visitor = Visitor(plan["base"], began + plan["seconds"])
    status, page = await_odoo(pid, visitor)
    seen: dict[str, Any] = {"started_seconds": time.monotonic() - began, "status": status}
    if status is None:
        seen["problem"] = page
    else:
        seen["form"] = bool(_FORM.search(page))
        try:
            seen["login"] = log_in(visitor, page, plan) if seen["form"] else None
            seen["documents"] = [open_document(visitor, number) for number in plan["attachments"]]
        except (OSError, http.client.HTTPException, ValueError) as error:
            seen["problem"] = f"{type(error).__name__}: {error}"
    seen["seconds"] = time.monotonic() - began
    return seen


def main(arguments: list[str]) -> int:
    """Prepare, or visit; ends Odoo before it ends itself."""
    plan = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if len(arguments) == 1:
        prepare(plan)
        return 0
    pid = int(arguments[1])
    seen = visit(pid, plan)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has ended, and await_odoo has seen how
    try:
        seen["errors"], seen["first_errors"] = problems_in(plan["log"])
    except OSError as error:
        seen["errors"], seen["first_errors"] = None, [str(error)]
    shutil.rmtree(plan["data"], ignore_errors=True)
    sys.stdout.write(json.dumps(seen) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
