"""The code and the configuration of the demo's plant: what Odoo's folders of modules have, and a git clone of its own.

Odoo's own modules are what its package installs: nobody backs them up. The plant's own module, with the script that
makes a copy harmless, and its ``odoo.conf`` are in a clone, and one change there was never committed. Without git the
same files are a plain folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drservice import processes
from drservice.components.postgres.connection import Session
from drservice.errors import DrError, ProgramMissingError

SERIES = "19.0"
OWN_MODULE = "plant_mes"
EDITED = "odoo.conf"
"""Changed by hand, and not committed."""

_VERSIONS = {
    "base": "1.3", "mail": "1.19", "product": "1.2", "sale": "1.2", "purchase": "1.2", "stock": "1.1", "mrp": "2.0",
    "account": "1.4", "payment": "2.0",
}  # fmt: skip
_OWN_VERSION = "1.4"
_EDIT = "limit_time_real = 1200    # since the month-end runs; ask Irina\n"
_CLONE = {
    EDITED: "[options]\ndb_name = plant\nlist_db = False\nproxy_mode = True\nworkers = 4\n",
    "README": "The plant's configuration, and its module that talks to the machines.\n",
    f"addons/{OWN_MODULE}/__manifest__.py": f"{{'name': 'Plant MES', 'version': '{_OWN_VERSION}'}}\n",
    f"addons/{OWN_MODULE}/__init__.py": "",
    f"addons/{OWN_MODULE}/data/neutralize.sql": (
        "-- no copy reports to the machines\nupdate plant_mes_connection set active = false;\n"
    ),
}
_PERSON = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
    "GIT_AUTHOR_NAME": "plant-it",
    "GIT_AUTHOR_EMAIL": "plant-it@plant.example",
    "GIT_COMMITTER_NAME": "plant-it",
    "GIT_COMMITTER_EMAIL": "plant-it@plant.example",
}
_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneState:
    """Which commit a clone is at, and the content of the file that was edited by hand; ``None``: there is none."""

    commit: str | None
    edited: str | None


def write_modules(folder: Path) -> None:
    """Write Odoo's own modules as its package has them on disk: here only their manifests."""
    for name, version in _VERSIONS.items():
        module = folder / name
        module.mkdir(parents=True)
        (module / "__manifest__.py").write_text(f"{{'name': '{name}', 'version': '{version}'}}\n", encoding="utf-8")


def install_modules(session: Session) -> None:
    """Say in the database which modules are installed, in the versions that the folders have."""
    for name, version in {**_VERSIONS, OWN_MODULE: _OWN_VERSION}.items():
        session.rows(
            "insert into ir_module_module (name, state, latest_version) values (%s, 'installed', %s)",
            (name, f"{SERIES}.{version}"),
        )


def write_configuration(folder: Path, account: processes.Account | None, *, git: Path | None) -> None:
    """Fill a new folder of ``account`` with the plant's configuration: a clone, or a plain folder without ``git``.

    Raises:
        DrError: git refused.
    """
    with processes.files_as(account):
        for name, text in _CLONE.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if git is not None:
        _run(git, folder, account, "init", "--quiet", "--initial-branch=main")
        _run(git, folder, account, "add", "--all")
        _run(git, folder, account, "commit", "--quiet", "--message=As it is")
    with processes.files_as(account), (folder / EDITED).open("a", encoding="utf-8") as stream:
        stream.write(_EDIT)


def is_clone(folder: Path) -> bool:
    """Tell whether the configuration is a git clone."""
    return (folder / ".git").is_dir()


def read_clone(folder: Path, account: processes.Account | None) -> CloneState:
    """Return what is in a folder of ``account`` (``None`` = the present user).

    Raises:
        DrError: it is a clone, and git refuses it.
    """
    git, edited = installed_git() if is_clone(folder) else None, folder / EDITED
    return CloneState(
        commit=_run(git, folder, account, "rev-parse", "HEAD").strip() if git is not None else None,
        edited=edited.read_text(encoding="utf-8") if edited.is_file() else None,
    )


def installed_git() -> Path | None:
    """Return where git is; ``None`` if it is not installed."""
    try:
        return processes.find_program("git", package="git")
    except ProgramMissingError:
        return None


def _run(git: Path, folder: Path, account: processes.Account | None, *words: str) -> str:
    environment = processes.clean_environment(_PERSON)
    done = processes.run([git, *words], account=account, environment=environment, cwd=folder, timeout_seconds=_SECONDS)
    if done.status != 0:
        raise DrError(f"`git {words[0]}` in {folder} failed: {done.last_line()}")
    return done.stdout.decode("utf-8", "replace")
