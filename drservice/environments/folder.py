"""The folder of a sandbox on the host: how it is made, described, read back and removed.

The folder appears under its name in one rename, with ``environment.json`` inside from the first moment;
``environment.json`` is the last thing removed. So whatever a crash leaves behind can be found and finished.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

from drservice import processes
from drservice.clock import from_iso, to_iso
from drservice.environments import keeper
from drservice.environments.interface import EnvironmentSpec
from drservice.environments.limits import Limits
from drservice.environments.proc import ProcessIdentity, identity_of
from drservice.errors import EnvironmentFailedError, IsolationError
from drservice.model.ids import EnvironmentId, ServiceName, is_ulid
from drservice.processes import Account

DESCRIPTION = "environment.json"
NEW_PREFIX = ".new-"
_REMOVING = ".removing"
KIND = "sandbox"

_FORMAT = 1
_CONFIGURATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_LONGEST_SOCKET_PATH = 107
_REMOVALS = 5
"""sun_path holds 108 bytes with the final zero (unix(7))."""
_SOCKET_NAME = ".s.PGSQL.5432"
_ETC_EXTRAS = ("alternatives", "ld.so.cache")
"""What the dynamic loader needs beside the standard folders (extensions link to /etc/alternatives)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The content of ``environment.json``."""

    id: EnvironmentId
    service: ServiceName
    purpose: str
    data: Path
    owns_data: bool
    folders: Mapping[str, Path]
    shared: tuple[Path, ...] = ()
    """Folders of the host that are writable inside, under their own paths."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links that stand inside: path and where it leads, both as seen from inside."""
    sock: Path
    account: Account | None
    limits: Limits
    maker: ProcessIdentity
    created_at: datetime
    expires_at: datetime
    ends_at_boottime: float
    """The expiry on ``CLOCK_BOOTTIME``, for the keeper: it does not move when somebody sets the clock."""

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "format": _FORMAT,
            "kind": KIND,
            "id": self.id,
            "service": self.service,
            "purpose": self.purpose,
            "data": str(self.data),
            "owns_data": self.owns_data,
            "folders": {name: str(path) for name, path in self.folders.items()},
            "shared": [str(path) for path in self.shared],
            "links": dict(self.links),
            "sock": str(self.sock),
            "account": asdict(self.account) if self.account else None,
            "limits": asdict(self.limits),
            "maker": asdict(self.maker),
            "created_at": to_iso(self.created_at),
            "expires_at": to_iso(self.expires_at),
            "ends_at_boottime": self.ends_at_boottime,
        }


def read_description(root: Path) -> Description:
    """Read ``environment.json``.

    Raises:
        EnvironmentFailedError: it is not there or not what this version writes.
    """
    path = root / DESCRIPTION
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        _require_own_format(value["format"], value["kind"])
        return Description(
            id=EnvironmentId(value["id"]),
            service=ServiceName(value["service"]),
            purpose=value["purpose"],
            data=Path(value["data"]),
            owns_data=value["owns_data"],
            folders={name: Path(path) for name, path in value["folders"].items()},
            shared=tuple(map(Path, value.get("shared", ()))),  # those of an earlier version have none
            links=dict(value.get("links", {})),
            sock=Path(value["sock"]),
            account=Account(**value["account"]) if value["account"] else None,
            limits=Limits(**value["limits"]),
            maker=ProcessIdentity(**value["maker"]),
            created_at=from_iso(value["created_at"]),
            expires_at=from_iso(value["expires_at"]),
            ends_at_boottime=float(value["ends_at_boottime"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFailedError(
            f"{path} cannot be read: {error}",
            hint="It is no environment of this version; look into the folder before you remove it by hand.",
        ) from error


def _require_own_format(number: object, kind: object) -> None:
    if number != _FORMAT or kind != KIND:
        raise ValueError(f"format {number} of kind {kind}")


def make_folder(spec: EnvironmentSpec, *, environments_dir: Path, identifier: EnvironmentId, now: datetime) -> Path:
    """Make the folder of a new sandbox and return its path.

    Raises:
        EnvironmentFailedError: it cannot be made there.
    """
    account = processes.server_account(spec.data_directory)
    root = environments_dir / identifier
    fresh = environments_dir / f"{NEW_PREFIX}{identifier}"
    maker = identity_of(os.getpid())
    assert maker is not None
    description = Description(
        id=identifier,
        service=spec.service,
        purpose=spec.purpose,
        data=spec.data_directory.absolute() if spec.data_directory else root / "data",
        owns_data=spec.data_directory is None,
        folders={_require_folder_name(name): path.absolute() for name, path in spec.folders.items()},
        sock=_socket_folder(root),
        account=account,
        limits=spec.limits,
        maker=maker,
        created_at=now,
        expires_at=spec.expires_at,
        ends_at_boottime=time.clock_gettime(time.CLOCK_BOOTTIME) + (spec.expires_at - now).total_seconds(),
    )
    try:
        if not environments_dir.is_dir():
            environments_dir.mkdir(parents=True)
            environments_dir.chmod(0o711)
        fresh.mkdir()
        fresh.chmod(0o711)
        keeper.write_durably(fresh / DESCRIPTION, description.to_json())
        _fill(fresh, description)
        fresh.rename(root)
    except OSError as error:
        raise EnvironmentFailedError(
            f"the environment's folder {root} cannot be made: {error}",
            hint="Check free space and rights of the environments folder (below state_dir).",
        ) from error
    return root


def share(root: Path, about: Description, *, folders: Sequence[Path], links: Mapping[str, str]) -> Description:
    """Note what is to be seen inside from the next start on, and return the new description.

    Raises:
        EnvironmentFailedError: a path cannot be provided inside, or the note cannot be written.
    """
    for folder in folders:
        _require_place(str(folder), made=False)
    for path in links:
        _require_place(path, made=True)
        for other in (*about.links, *map(str, (*about.shared, *folders))):
            if path != other and (f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")):
                raise EnvironmentFailedError(f"{path} and {other} cannot both be provided: one lies in the other")
    shared = tuple(dict.fromkeys((*about.shared, *folders)))
    changed = replace(about, shared=shared, links={**about.links, **links})
    try:
        keeper.write_durably(root / DESCRIPTION, changed.to_json())
    except OSError as error:
        raise EnvironmentFailedError(f"{root / DESCRIPTION} cannot be written: {error}") from error
    return changed


def _require_place(path: str, *, made: bool) -> None:
    """Refuse a path at which nothing can, or must not, be provided inside."""
    system = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
    own = ("/env", "/proc", "/dev", "/sys", "/etc", *(system if made else ()))
    above = ("/tmp", "/run", *own, *system)  # noqa: S108 - paths inside
    clean = path.startswith("/") and path == os.path.normpath(path) and not path.startswith("//") and "\0" not in path
    hides = path == "/" or any(f"{place}/".startswith(f"{path}/") for place in above)
    if not clean or hides or any(path.startswith(f"{place}/") for place in own):
        raise EnvironmentFailedError(
            f"{path!r} cannot be provided inside an environment",
            hint="It is a path of the environment's own system; choose another one.",
        )


def files_folder(root: Path, name: str, about: Description) -> Path:
    """Return the folder ``name`` of another component's files, made for the server account if it is not there.

    Raises:
        EnvironmentFailedError: the name is none for a folder here, or it cannot be made.
        IsolationError: a link or something else that is no folder stands in its place.
    """
    path = about.folders.get(_require_folder_name(name), root / "files" / name)
    try:
        if not os.path.lexists(path):
            _make_owned(path, about.account)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise IsolationError(
                f"{path} is not a folder", hint="Something replaced it by a link or a file; it is not used."
            )
    except OSError as error:
        raise EnvironmentFailedError(f"{path} cannot be made: {error}") from error
    return path


def write_configuration(root: Path, name: str, content: str, *, account: Account | None) -> None:
    """Write ``conf/NAME``, whole or not at all, readable by the server and by nobody else.

    Raises:
        EnvironmentFailedError: the name is none for a file here.
    """
    if not _CONFIGURATION_NAME.match(name) or name == "etc":
        raise EnvironmentFailedError(
            f"{name!r} cannot name a configuration file", hint="Use letters, digits, dot, dash, underscore."
        )
    temporary = root / "conf" / f".{name}.new"
    _write_readable(temporary, content, account)
    temporary.replace(root / "conf" / name)


def _require_folder_name(name: str) -> str:
    if not _CONFIGURATION_NAME.match(name):
        raise EnvironmentFailedError(
            f"{name!r} cannot name a folder of files", hint="Use letters, digits, dot, dash, underscore."
        )
    return name


def own_socket_path(sock: Path) -> Path:
    """Return where the server's socket lies."""
    return sock / _SOCKET_NAME


def folders(environments_dir: Path) -> Iterator[Path]:
    """Yield the folders of whole environments, oldest first."""
    if environments_dir.is_dir():
        for path in sorted(environments_dir.iterdir()):
            if is_ulid(path.name) and path.is_dir() and not path.is_symlink():
                yield path


def unfinished(environments_dir: Path) -> Iterator[Path]:
    """Yield the folders that a crash left before they had their name."""
    if environments_dir.is_dir():
        for path in sorted(environments_dir.iterdir()):
            if path.name.startswith(NEW_PREFIX) and is_ulid(path.name.removeprefix(NEW_PREFIX)):
                yield path


def remove_folder(root: Path, sock: Path | None) -> None:
    """Remove a folder whose processes have ended; safe to repeat.

    The content is hostile: what removes it follows no link and bears any depth.

    Raises:
        EnvironmentFailedError: something cannot be removed.
    """
    try:
        if sock is not None and sock.parent != root:
            _remove_tree(sock)
        if not root.is_dir():
            return
        (root / _REMOVING).touch(mode=0o600)
        for path in sorted(root.iterdir()):
            if path.name in {DESCRIPTION, _REMOVING}:
                continue
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        (root / DESCRIPTION).unlink(missing_ok=True)
        (root / _REMOVING).unlink(missing_ok=True)  # last: a description without it would pass for an environment
        root.rmdir()
    except FileNotFoundError:
        if root.exists():  # two destroyers met: what one had removed is no error, what is left is
            raise EnvironmentFailedError(f"{root} changed while it was removed", hint="Repeat it.") from None
    except OSError as error:
        raise EnvironmentFailedError(
            f"{root} cannot be removed: {error}", hint="Remove it by hand; nothing runs inside any more."
        ) from error


def is_being_removed(root: Path) -> bool:
    """Tell whether somebody has begun to remove this folder; whoever finds it may finish that."""
    return (root / _REMOVING).exists()


def host_system() -> tuple[dict[str, str], list[str]]:
    """Return which of /bin, /sbin and /lib* are links below /usr here, and which are folders of their own."""
    merged: dict[str, str] = {}
    separate: list[str] = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            merged[name] = str(path.readlink())
        elif path.is_dir():
            separate.append(name)
    return merged, separate


def etc_extras() -> list[str]:
    """Return what of the host's /etc is bound read-only."""
    return [name for name in _ETC_EXTRAS if Path("/etc", name).exists()]


def _socket_folder(root: Path) -> Path:
    usual = root / "sock"
    if len(os.fsencode(own_socket_path(usual))) <= _LONGEST_SOCKET_PATH:
        return usual
    base = Path("/run/drservice") if os.geteuid() == 0 else Path(f"/tmp/drservice-{os.getuid()}")  # noqa: S108 - ownership is checked before use
    return base / root.name


def _fill(fresh: Path, description: Description) -> None:
    account = description.account
    (fresh / "keeper").mkdir(mode=0o700)
    for name in ("data", "wal", "log", "sock"):
        _make_owned(fresh / name, account)
    if not description.owns_data and not description.data.exists():
        _make_owned(description.data, account)
    if description.sock.parent.name != description.id:
        _require_private_base(description.sock.parent)
        _make_owned(description.sock, account)
    for path in (fresh / "conf", fresh / "conf" / "etc", fresh / "files"):
        path.mkdir()
        _share_with(path, account, 0o750)
    for name in description.folders:
        (fresh / "files" / name).mkdir()  # only a place to bind to
        files_folder(fresh, name, description)
    for name, content in _etc_files(account).items():
        _write_readable(fresh / "conf" / "etc" / name, content, account)
    (fresh / "conf" / "etc" / "localtime").symlink_to("/usr/share/zoneinfo/UTC")
    for name in etc_extras():
        # Only a place to bind to.
        if Path("/etc", name).is_dir():
            (fresh / "conf" / "etc" / name).mkdir()
        else:
            (fresh / "conf" / "etc" / name).touch()


def _etc_files(account: Account | None) -> dict[str, str]:
    uid = account.uid if account else os.getuid()
    gid = account.gid if account else os.getgid()
    name = account.name if account else processes.account_of(Path("/proc/self")).name
    return {
        "passwd": f"{name}:x:{uid}:{gid}::/tmp:/bin/sh\n",
        "group": f"{name}:x:{gid}:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }


def _make_owned(path: Path, account: Account | None) -> None:
    path.mkdir(mode=0o700, parents=False)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o700)


def _share_with(path: Path, account: Account | None, mode: int) -> None:
    if account is not None:
        os.chown(path, 0, account.gid)
    path.chmod(mode)


def _write_readable(path: Path, content: str, account: Account | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(content)
    _share_with(path, account, 0o640)


def _require_private_base(base: Path) -> None:
    """Make or check the folder for short socket paths: ours, and nobody else may write in it."""
    base.mkdir(parents=True, exist_ok=True, mode=0o711)
    facts = base.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise EnvironmentFailedError(
            f"{base} is not a folder that only this user can write",
            hint="Remove it, or set a shorter state_dir so that no short socket folder is needed.",
        )


def _remove_tree(path: Path) -> None:
    if not path.exists():
        return
    if os.geteuid() != 0:
        # A program inside may have closed folders against their owner. Neither program follows a link on its way.
        processes.run(["chmod", "-R", "--", "u+rwX", path])
    for _ in range(_REMOVALS):
        # rm(1), because shutil.rmtree descends by recursion: something hostile can make a tree too deep for it.
        removed = processes.run(["rm", "-rf", "--one-file-system", "--", path])
        if removed.status == 0:
            return  # again otherwise: a keeper may have added a last note, or another destroyer was there
    raise OSError(f"rm: {removed.last_line()}")
