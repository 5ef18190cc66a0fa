"""The exchange folder: how a server without network gets its WAL from a feeder outside.

Inside, PostgreSQL's ``restore_command`` runs :func:`fetch_script`: it writes ``NAME.want`` and waits for one of
``NAME`` (the file, complete from its first moment), ``NAME.absent`` (proven: there is none) or ``NAME.refused``
(it could not be got; the reason inside). ``HEARTBEAT`` is renewed by the feeder every second.

PostgreSQL takes exit 1 to 125 of a ``restore_command`` for "end of WAL" and would promote; above 125 it stops.
So the script ends with 44 for proven absence, and :data:`RESTORE_COMMAND` maps 0 to 0, 44 to 1 and *anything
else* (a dead feeder, a full disk, a syntax error, a missing shell script) to 127.

The folder is writable from inside, so for :class:`Exchange` it is hostile: names are parsed, everything is
opened relative to the folder's descriptor without following links, and nothing in it is believed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from drservice.errors import EnvironmentFailedError
from drservice.model.wal import WalFileName

SCRIPT_NAME = "fetch"
STALE_SECONDS = 15
HEARTBEAT = "HEARTBEAT"
COMPLETE = "COMPLETE"
"""There from the moment on when no feeder answers any more: what is not served by then is absent."""
RESTORE_COMMAND = 'sh /env/conf/fetch "%f" "%p"; s=$?; case $s in 0) exit 0;; 44) exit 1;; *) exit 127;; esac'
"""For ``restore_command``; the script itself belongs into ``conf/fetch``."""

Content: TypeAlias = "bytes | Path | Iterator[bytes | memoryview]"
"""Of a file: whole, or piece by piece."""

_MOST_REQUESTS = 1000
_WANT = ".want"
_ABSENT = ".absent"
_REFUSED = ".refused"

_SCRIPT = r"""# Asks the feeder outside for one WAL file and waits:
# 0 = it is placed, 44 = proven absent, 127 = anything else. Each program that is started here is paid for by every
# segment: the shell does by itself what it can.
LC_ALL=C
export LC_ALL
folder=@FOLDER@
stale=@STALE@
name=$1
destination=$2

refuse() {
  printf 'drservice fetch %s: %s\n' "$name" "$1" >&2
  exit 127
}

# Old and future: a clock that was set is no reason to wait for ever.
feeder_is_silent() {
  beaten=$(stat -c %Y "$folder/HEARTBEAT" 2>/dev/null) || return 0
  now=$(date +%s) || return 0
  age=$((now - beaten))
  test "$age" -gt "$stale" || test "$age" -lt "-$stale"
}

test $# -eq 2 || refuse 'wants a name and a destination'
h='[0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F]'
case $name in
  $h$h$h | $h.history | $h$h$h.partial | $h$h$h.$h.backup) ;;
  *) refuse 'no name of a WAL file' ;;
esac

# An answer to an earlier question is no answer to this one; a served file stays good.
for answer in absent refused; do
  if test -e "$folder/$name.$answer" || test -L "$folder/$name.$answer"; then
    rm -f "$folder/$name.$answer" || refuse 'cannot clear old answers'
  fi
done
printf '' >"$folder/$name.want" || refuse 'cannot ask'

polls=0
while :; do
  if test -f "$folder/$name"; then
    cp "$folder/$name" "$destination" || refuse 'cannot copy'
    sizes=$(stat -c %s "$folder/$name" "$destination") || refuse 'cannot measure'
    # shellcheck disable=SC2086  # two numbers
    set -- $sizes
    test "$1" = "$2" || refuse "copied $2 of $1 bytes"
    exit 0
  fi
  if test -f "$folder/$name.refused"; then
    refuse "$(cat "$folder/$name.refused")"
  fi
  if test -f "$folder/$name.absent" || test -f "$folder/@COMPLETE@"; then
    exit 44
  fi
  if test $((polls % 50)) -eq 10 && feeder_is_silent; then
    sleep 2
    if feeder_is_silent; then
      refuse "the feeder has been silent for more than $stale s"
    fi
  fi
  polls=$((polls + 1))
  sleep 0.02 || refuse 'cannot wait'
done
"""


def fetch_script(*, folder: str = "/env/wal", stale_seconds: int = STALE_SECONDS) -> str:
    """Return the POSIX shell script for ``conf/fetch``; besides the shell it needs coreutils only.

    Args:
        folder: the exchange folder as seen from inside.
        stale_seconds: how old the heartbeat may be.
    """
    filled = _SCRIPT.replace("@FOLDER@", shlex.quote(folder)).replace("@STALE@", str(stale_seconds))
    return filled.replace("@COMPLETE@", COMPLETE)


class Exchange:
    """The feeder's side of an exchange folder; close it after use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFailedError(f"the exchange folder {folder} cannot be opened: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._descriptor)

    def requests(self) -> list[str]:
        """Return the names asked for since the last call, sorted; each question is reported once.

        What is no plain file or no WAL file's name is ignored.
        """
        names: list[str] = []
        with os.scandir(self._descriptor) as entries:
            wanted = (entry for entry in entries if entry.name.endswith(_WANT))
            for entry in itertools.islice(wanted, _MOST_REQUESTS):
                name = entry.name.removesuffix(_WANT)
                if _is_wal_name(name) and entry.is_file(follow_symlinks=False):
                    names.append(name)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + _WANT, dir_fd=self._descriptor)
        return sorted(names)

    def serve(self, name: str, content: Content) -> None:
        """Put a file under its name, complete from its first moment, readable but not writable inside (as root).

        Raises:
            ValueError: ``name`` is no WAL file's name.
            EnvironmentFailedError: it cannot be written (with the cause, e.g. no space left).
            DrError: of pieces that end with one; nothing is there under the name.
        """
        WalFileName.parse(name)
        self._put(name, content)

    def absent(self, name: str) -> None:
        """Answer that the file is proven not to exist: the server takes it for the end of its WAL.

        Raises:
            ValueError: ``name`` is no WAL file's name.
            EnvironmentFailedError: it cannot be written.
        """
        WalFileName.parse(name)
        self._put(name + _ABSENT, b"")

    def refuse(self, name: str, reason: str) -> None:
        """Answer that the file could not be got: the server stops and ``reason`` is in its log.

        Raises:
            ValueError: ``name`` is no WAL file's name.
            EnvironmentFailedError: it cannot be written.
        """
        WalFileName.parse(name)
        self._put(name + _REFUSED, reason.encode("utf-8", "replace"))

    def has(self, name: str) -> bool:
        """Tell whether the file is served already."""
        try:
            facts = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(facts.st_mode)

    def forget(self, name: str) -> None:
        """Remove a served file that will not be asked for again."""
        WalFileName.parse(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def beat(self) -> None:
        """Renew the heartbeat; call it every second, or the server inside gives up."""
        self._put(HEARTBEAT, b"")

    def complete(self) -> None:
        """Say that everything that may still be asked for is served: from now on anything else is absent."""
        self._put(COMPLETE, b"")

    def clear(self) -> None:
        """Remove every question, answer and file of an earlier start.

        Raises:
            EnvironmentFailedError: something cannot be removed.
        """
        try:
            with os.scandir(self._descriptor) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for name, is_folder in found:
                if is_folder:
                    shutil.rmtree(name, dir_fd=self._descriptor)
                else:
                    os.unlink(name, dir_fd=self._descriptor)
        except (OSError, RecursionError) as error:  # a tree may be too deep for rmtree
            raise EnvironmentFailedError(f"{self._folder} cannot be cleared: {error}") from error

    def _put(self, name: str, content: Content) -> None:
        temporary = f".{name}.{secrets.token_hex(8)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._descriptor)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, stream, 1 << 20)
                    elif isinstance(content, bytes):
                        stream.write(content)
                    else:
                        stream.writelines(content)
                    os.fchmod(stream.fileno(), 0o644)
                os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._descriptor)
                raise
        except OSError as error:
            raise EnvironmentFailedError(
                f"{name} cannot be put into {self._folder}: {error}",
                hint="Check free space; the server inside waits for this file.",
            ) from error


def _is_wal_name(name: str) -> bool:
    try:
        WalFileName.parse(name)
    except ValueError:
        return False
    return True
