"""What starts for every segment loads nothing but a few modules of the standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "drservice" / "walclient"
SLOW = {"argparse", "click", "dataclasses", "hashlib", "json", "pathlib", "re", "socket", "subprocess", "typing"}
"""Modules of the standard library that cost milliseconds, and the frame of the command line."""


def test_the_client_imports_the_standard_library_and_itself_only() -> None:
    foreign = []
    for path in sorted(CLIENT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign += [
                f"{path.name}: {name}"
                for name in names
                if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("drservice.walclient")
            ]
    assert foreign == []


def test_a_push_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    segment = tmp_path / ("0" * 24)
    segment.write_bytes(bytes(100))
    program = (
        f"import sys; sys.path.append({str(ROOT)!r}); before = set(sys.modules)\n"
        "from drservice.walclient.client import ask\n"
        f"ask(socket='/nowhere/socket', config='/nowhere', service='erp', path={str(segment)!r})\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True, env={}, timeout=30
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {*SLOW, "os", "struct"} == set(), "a quarter of the time that the client takes"
    assert [name for name in done.stdout.split() if name.startswith("drservice")] == [
        "drservice",
        "drservice.walclient",
        "drservice.walclient.client",
        "drservice.walclient.protocol",
    ]
