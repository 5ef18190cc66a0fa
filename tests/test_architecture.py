"""The rules of the house that no linter checks: sizes, docstrings, owners, layers, and how light an import is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "drservice"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
BREAKGLASS = "drservice/repository/breakglass/restore.py"
"""Stored in every repository and run without anything else of drservice: it must stand alone, in one file."""

STARTERS_OF_PROGRAMS = {"drservice/processes.py", "drservice/walclient/slow.py", BREAKGLASS}
"""Where programs start: one place, and one in what PostgreSQL starts for each segment, which has no time to load it."""

VERIFIER = "drservice/evidence/verification.py"
"""Enclosed in every bundle of evidence, for auditors without drservice: one file as well."""

MODULE_LINES, FUNCTION_LINES = 600, 60


def source(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def tree(module: str) -> ast.Module:
    return ast.parse(source(module), module)


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def uses(module: str, library: str) -> list[int]:
    """Return the lines on which a module imports ``library`` or calls something of it."""
    lines = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == library for alias in node.names):
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == library:
            lines.append(node.lineno)
    return lines


def calls(module: str) -> Iterator[tuple[str, int]]:
    """Yield the dotted name of every call with its line."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 80
    assert BREAKGLASS in MODULES


@pytest.mark.parametrize("module", [module for module in MODULES if module not in {BREAKGLASS, VERIFIER}])
def test_a_module_fits_into_one_head(module: str) -> None:
    assert len(source(module).splitlines()) <= MODULE_LINES


def test_functions_fit_onto_one_screen() -> None:
    long = [
        f"{module}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module in MODULES
        for node in functions(module)
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


def test_modules_open_with_what_they_own_and_promise() -> None:
    silent = [module for module in MODULES if not (ast.get_docstring(tree(module)) or "").strip()]
    assert silent == []


STARTERS = {
    "subprocess.Popen",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "os.system",
    "os.popen",
    "os.execv",
    "os.execve",
    "os.execvp",
    "os.posix_spawn",
    "os.spawnv",
    "pty.spawn",
}


def test_programs_are_started_in_one_place_only() -> None:
    starts = [
        f"{module}:{line} {name}"
        for module in MODULES
        if module not in STARTERS_OF_PROGRAMS
        for name, line in calls(module)
        if name in STARTERS
    ]
    assert starts == []
    bare = [
        f"{module}:{node.lineno}"
        for module in MODULES
        if module not in STARTERS_OF_PROGRAMS
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module in {"subprocess", "pty"}
    ]
    assert bare == [], "import the module, so that what it starts can be seen"


def test_no_shell_ever_sees_an_argument() -> None:
    shells = [
        f"{module}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and any(keyword.arg == "shell" for keyword in node.keywords)
    ]
    assert shells == []


def test_only_the_command_line_prints() -> None:
    prints = [
        f"{module}:{line}"
        for module in MODULES
        if module != "drservice/cli/output.py"
        for name, line in calls(module)
        if name == "print"
    ]
    assert prints == []


FORBIDDEN_CALLS = {"eval", "exec", "pickle.loads", "pickle.load", "yaml.load", "marshal.loads", "__import__"}


def test_nothing_that_is_read_is_ever_executed() -> None:
    found = [f"{module}:{line} {name}" for module in MODULES for name, line in calls(module) if name in FORBIDDEN_CALLS]
    assert found == []
    assert [module for module in MODULES if uses(module, "pickle")] == []


def test_the_break_glass_script_needs_nothing_of_drservice() -> None:
    allowed = set(sys.stdlib_module_names) | {"cryptography"}
    foreign = {
        name.split(".")[0]
        for node in ast.walk(tree(BREAKGLASS))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert foreign <= allowed


def test_every_exception_to_a_rule_gives_its_reason() -> None:
    """``# noqa: X`` and ``# type: ignore[x]`` are followed by words."""
    silent = []
    for module in MODULES:
        for number, line in enumerate(source(module).splitlines(), 1):
            for mark in ("# noqa", "# type: ignore"):
                _, found, rest = line.partition(mark)
                words = rest.lstrip(":[").lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789, ").partition("]")
                reason = (words[2] if mark.endswith("ignore") else words[0]).strip(" #-;")
                if found and len(reason) < 5:
                    silent.append(f"{module}:{number} {line.strip()}")
    assert silent == []


def test_the_layers_hold() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


HEAVY = {"sqlalchemy", "fastapi", "pydantic_settings", "apscheduler", "procrastinate"}
NEEDLESS = {"boto3", "botocore", "numpy", "rich"}


def loaded(*words: str) -> set[str]:
    """Return the top-level packages that a command loads."""
    return {module.split(".")[0] for module in loaded_modules(*words)}


def loaded_modules(*words: str) -> set[str]:
    """Return the modules that a command loads."""
    argv = [sys.executable, "-X", "importtime", "-m", "drservice", *words]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_fetching_wal_loads_no_database_and_no_cloud() -> None:
    packages = loaded("wal", "fetch", "--help")
    assert "drservice" in packages
    assert packages & (HEAVY | NEEDLESS) == set()


def test_a_backup_loads_neither_what_another_method_needs_nor_restores() -> None:
    modules = loaded_modules("backup", "--help")
    assert "drservice.components.postgres.capture" in modules
    assert {module.split(".")[0] for module in modules} & (HEAVY | NEEDLESS | {"jsonschema"}) == set()
    postgres, operations = "drservice.components.postgres", "drservice.operations"
    needless = {f"{postgres}.{name}" for name in ("basebackup", "basestream", "placing")}
    needless |= {f"{operations}.{name}" for name in ("restore", "replay", "drill", "verify", "walahead")}
    assert modules & needless == set()
