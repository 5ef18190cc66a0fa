"""How Odoo is started in a recovery environment: what of this host is shown there, its configuration, its command line.

Pure. Odoo runs beside the recovered server in a sandbox of its own, with the same files and a network as empty: it
reaches the database over the socket in ``/env/sock`` and nothing else. It works on a data folder of its own, runs no
scheduled job, and is asked over loopback by a program that runs with it (:mod:`~drservice.components.odoo.visit`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drservice.errors import UnansweredError
from drservice.model.estate import OdooProgram
from drservice.model.ids import ComponentName

DATA = "/env/log/odoo"
"""The data folder as seen from inside: on the disk, writable, gone with the environment."""
LOG = "/env/log/odoo.log"
PORT = 8069
_SYSTEM = Path("/usr")
_NO_MAIL_PORT = 1
"""Nothing listens there; and where no mail server is configured Odoo would try port 25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OdooPlaces:
    """Where things of this host are found inside."""

    shown: Mapping[str, Path]
    """Folders to show read-only as ``/env/files/NAME``."""
    program: PurePosixPath
    python: PurePosixPath
    code: tuple[PurePosixPath, ...]
    addons: tuple[PurePosixPath, ...]


def odoo_places(component: ComponentName, program: OdooProgram, addons: Sequence[Path]) -> OdooPlaces:
    """Decide what is shown inside and where it is found there.

    What lies below ``/usr`` is visible as it is. Of folders that lie in each other the outer one is shown. A dot in the
    names keeps them apart from those of components.
    """
    python_folder = [program.python] if program.python else []
    wanted = [program.program.parent, *program.code, *program.folders, *addons, *python_folder]
    outside = [path for path in dict.fromkeys(wanted) if not path.is_relative_to(_SYSTEM)]
    outer = [path for path in outside if not any(path != other and path.is_relative_to(other) for other in outside)]
    shown = {f"{component}.{number}": path for number, path in enumerate(outer)}

    def inside(path: Path) -> PurePosixPath:
        for name, folder in shown.items():
            if path.is_relative_to(folder):
                return PurePosixPath("/env/files", name, path.relative_to(folder))
        return PurePosixPath(path)

    python = inside(program.python / "bin" / "python") if program.python else PurePosixPath("/usr/bin/python3")
    return OdooPlaces(
        shown=shown,
        program=inside(program.program),
        python=python,
        code=tuple(inside(path) for path in program.code),
        addons=tuple(inside(path) for path in addons),
    )


def configuration(places: OdooPlaces, *, database: str, owner: str, options: Mapping[str, str]) -> str:
    """Return Odoo's configuration file: what is ours comes last and cannot be overridden by ``options``.

    Raises:
        UnansweredError: a name does not fit into one line.
    """
    own = {
        "addons_path": ",".join(map(str, places.addons)),
        "data_dir": DATA,
        "db_host": "/env/sock",
        "db_port": "5432",
        "db_user": owner,
        "db_name": database,
        "dbfilter": "",
        "list_db": "False",
        "max_cron_threads": "0",
        "workers": "0",
        "http_interface": "127.0.0.1",
        "http_port": str(PORT),
        "proxy_mode": "False",
        "smtp_server": "127.0.0.1",
        "smtp_port": str(_NO_MAIL_PORT),
        "logfile": LOG,
    }
    if not places.addons:
        del own["addons_path"]  # without one Odoo takes those beside its own packages
    lines = [f"{name} = {text}" for name, text in {**options, **own}.items()]
    # A recovered database may call its owner anything, also a line with an option that names a program.
    unfit = next((name for name, text in own.items() if not text.isprintable()), None)
    if unfit is not None:
        raise UnansweredError(f"{unfit} has a name that no line of Odoo's configuration can hold")
    return "\n".join(["[options]", *lines]) + "\n"


def command(places: OdooPlaces, *, configured: str, visitor: str, plan: str) -> list[str]:
    """Return the command line that prepares the data folder, starts Odoo and becomes its visitor; paths of inside."""
    python = shlex.quote(str(places.python))
    visit = f"{python} -I {shlex.quote(visitor)} {shlex.quote(plan)}"
    packages = shlex.quote(":".join(map(str, places.code)))
    odoo = f"{python} {shlex.quote(str(places.program))} server -c {shlex.quote(configured)}"
    script = (
        f"{visit} || exit\n"
        f"PYTHONPATH={packages} PYTHONDONTWRITEBYTECODE=1 {odoo} >>{LOG} 2>&1 </dev/null &\n"
        f"exec {visit} $!\n"
    )
    return ["/bin/sh", "-c", script]
