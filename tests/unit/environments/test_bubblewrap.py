"""The sandbox's command line holds what the threat model claims."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drservice.environments.bubblewrap import WRITABLE, Layout, sandbox_argv, telling_argv
from drservice.environments.limits import Limits
from drservice.processes import Account

POSTGRES = Account(name="postgres", uid=101, gid=104, home="/var/lib/postgresql")


def layout(account: Account | None, limits: Limits | None = None) -> Layout:
    root = Path("/state/ID")
    return Layout(
        data=root / "data", wal=root / "wal", sock=root / "sock", log=root / "log", conf=root / "conf",
        files=root / "files", folders={"documents": Path("/srv/restored")},
        account=account, limits=limits or Limits(), usr_merged={"bin": "usr/bin"}, usr_folders=["lib"],
        etc_extras=["ld.so.cache"], present_processes=30,
    )  # fmt: skip


def pairs_after(argv: list[str], option: str, count: int) -> list[list[str]]:
    return [argv[place + 1 : place + 1 + count] for place, word in enumerate(argv) if word == option]


@pytest.mark.parametrize("account", [POSTGRES, None])
def test_every_namespace_is_its_own_and_nothing_is_inherited(account: Account | None) -> None:
    argv = sandbox_argv(layout(account), ["/usr/bin/true"])
    for option in ("--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--clearenv",
                   "--new-session", "--die-with-parent"):  # fmt: skip
        assert option in argv
    assert argv.index("--clearenv") < argv.index("--setenv")
    assert argv[-1] == "/usr/bin/true"


@pytest.mark.parametrize("account", [POSTGRES, None])
def test_only_the_environments_own_folders_are_writable(account: Account | None) -> None:
    argv = sandbox_argv(layout(account), ["/usr/bin/true"])
    assert {inside for _, inside in pairs_after(argv, "--bind", 2)} < set(WRITABLE)
    assert ["/state/ID/conf", "/env/conf"] in pairs_after(argv, "--ro-bind", 2)
    assert pairs_after(argv, "--remount-ro", 1) == [["/dev"], ["/"]]
    last_mount = max(place for place, word in enumerate(argv) if word in {"--bind", "--ro-bind", "--tmpfs", "--dir"})
    assert argv.index("--remount-ro") > last_mount


@pytest.mark.parametrize("account", [POSTGRES, None])
def test_folders_of_other_components_are_bound_read_only(account: Account | None) -> None:
    bound = pairs_after(sandbox_argv(layout(account), ["/usr/bin/true"]), "--ro-bind", 2)
    assert bound.index(["/state/ID/files", "/env/files"]) < bound.index(["/srv/restored", "/env/files/documents"])


@pytest.mark.parametrize("account", [POSTGRES, None])
def test_shared_folders_have_their_own_paths_and_the_way_to_them_is_open_to_the_account(
    account: Account | None,
) -> None:
    shared = replace(layout(account), shared=[Path("/disk/new")], links={"/disk2/sales": "/disk/new"})
    argv = sandbox_argv(shared, ["/usr/bin/true"])
    assert ["/disk/new", "/disk/new"] in pairs_after(argv, "--bind", 2)
    assert ["/disk/new", "/disk2/sales"] in pairs_after(argv, "--symlink", 2)
    for way in ("/disk", "/disk2"):
        place = argv.index(way)
        assert argv[place - 3 : place] == ["--perms", "0755", "--dir"]
        assert place < argv.index("/disk/new") or way == "/disk2"
    assert argv.index("/disk2") < argv.index("/disk2/sales")
    assert argv.index("--remount-ro") > argv.index("/disk2/sales"), "what is made inside is closed like the rest"


@pytest.mark.parametrize("account", [POSTGRES, None])
def test_every_program_inside_is_under_the_filter(account: Account | None) -> None:
    assert pairs_after(sandbox_argv(layout(account), ["/usr/bin/true"]), "--seccomp", 1) == [["8"]]


def test_root_leaves_every_privilege_before_the_program() -> None:
    argv = sandbox_argv(layout(POSTGRES), ["/usr/bin/true"])
    assert "--unshare-user" not in argv
    tail = argv[argv.index("setpriv") :]
    assert {"--reuid=101", "--regid=104", "--clear-groups", "--no-new-privs", "--bounding-set=-all"} <= set(tail)
    assert pairs_after(argv, "--cap-drop", 1) == [["ALL"]]


def test_an_ordinary_user_gets_a_user_namespace_that_cannot_nest() -> None:
    argv = sandbox_argv(layout(None), ["/usr/bin/true"])
    assert "--unshare-user" in argv
    assert "--disable-userns" in argv
    assert "setpriv" not in argv


def test_limits_become_bounds() -> None:
    limits = Limits(memory_bytes=1 << 20, processes=12, open_files=64, disk_bytes=9, niceness=10)
    argv = sandbox_argv(layout(POSTGRES, limits), ["/usr/bin/true"])
    assert {"--data=1048576:1048576", "--nproc=42:42", "--nofile=64:64", "--fsize=9:9"} <= set(argv)
    assert pairs_after(argv, "nice", 2) == [["-n", "10"]]
    assert pairs_after(argv, "choom", 2) == [["-n", "500"]]
    assert pairs_after(argv, "--size", 1) == [["1048576"], ["1048576"]]


def test_extra_variables_come_on_top() -> None:
    argv = sandbox_argv(layout(None), ["/usr/bin/true"], environment={"PGTZ": "UTC"})
    assert ["PGTZ", "UTC"] in pairs_after(argv, "--setenv", 2)


def test_the_keepers_descriptor_is_closed_before_the_program_begins() -> None:
    argv = telling_argv(["/usr/bin/true", "x"])
    assert argv[2].index("9>&-") < argv[2].index('exec "$@"')
    assert argv[-2:] == ["/usr/bin/true", "x"]
