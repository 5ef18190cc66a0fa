"""The isolation self-test fails, by name, for each sandbox that leaks on purpose."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice import processes
from drservice.clock import SystemClock
from drservice.environments import bubblewrap, isolation
from drservice.environments.bubblewrap import Layout, sandbox_argv
from drservice.environments.interface import Endpoint, Probe
from drservice.environments.isolation import require_isolated
from drservice.environments.isolation_probe import PROBE_NAMES
from drservice.environments.sandbox import Sandbox, prepare_sandbox
from drservice.environments.seccomp import MACHINES
from drservice.errors import EnvironmentFailedError, IsolationError
from tests.contract.env_fixtures import make_sandbox, make_spec

Change = Callable[[list[str]], list[str]]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave its privileges inside")


@pytest.fixture
def leaky(tmp_path: Path) -> Callable[[Change], dict[str, Probe]]:
    def run(change: Change) -> dict[str, Probe]:
        with leaking(tmp_path, change) as sandbox:
            return {probe.name: probe for probe in sandbox.self_test()}

    return run


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = make_sandbox(tmp_path / "environments")
    yield sandbox
    sandbox.destroy()


@contextmanager
def leaking(tmp_path: Path, change: Change) -> Iterator[Sandbox]:
    def build(layout: Layout, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> list[str]:
        return change(sandbox_argv(layout, argv, environment=environment))

    sandbox = prepare_sandbox(make_spec(), environments_dir=tmp_path / "e", clock=SystemClock(), build_argv=build)
    try:
        yield sandbox
    finally:
        sandbox.destroy()


def without(*words: str | None) -> Change:
    """Leave out these words; ``None`` after one: with its argument."""

    def change(argv: list[str]) -> list[str]:
        kept: list[str] = []
        before = ""
        for word in argv:
            if word not in words and not (None in words and before in words):
                kept.append(word)
            before = word
        return kept

    return change


def before_program(*words: str) -> Change:
    """Insert options just before the root is made read-only."""

    def change(argv: list[str]) -> list[str]:
        place = argv.index("--remount-ro")
        return [*argv[:place], *words, *argv[place:]]

    return change


def staying_root(argv: list[str]) -> list[str]:
    begin = argv.index("setpriv")
    end = argv.index("--", begin)
    kept = [word for word in argv[:begin] if word not in {"--cap-drop", "ALL", "--cap-add"}]
    return [*(word for word in kept if not word.startswith("CAP_")), *argv[end + 1 :]]


def _writable_root(argv: list[str]) -> list[str]:
    """Leave out the last ``--remount-ro /``."""
    place = len(argv) - 1 - argv[::-1].index("--remount-ro")
    return [*argv[:place], *argv[place + 2 :]]


_LISTENS = r"""
use strict; use Socket;
my $probe = shift @ARGV;
my ($name) = map { /^\Q$probe\E=(?:127\.0\.0\.1:)?(.+)$/ ? $1 : () } @ARGV;
my $kind = $probe eq 'dns' ? SOCK_DGRAM : SOCK_STREAM;
my $at = $probe eq 'abstract' ? pack('S a*', AF_UNIX, "\0$name") : pack_sockaddr_in($name, INADDR_LOOPBACK);
socket(my $socket, $probe eq 'abstract' ? AF_UNIX : AF_INET, $kind, 0) or die $!;
bind($socket, $at) or die $!;
listen($socket, 5) if $kind == SOCK_STREAM;
if (!fork) {
  if ($kind == SOCK_DGRAM) { while (my $from = recv($socket, my $text, 512, 0)) { send($socket, 'answer', 0, $from) } }
  accept(my $connection, $socket) while 1;
}
exec @ARGV;
"""
"""Stands for a way out that somebody opened for one service only (a forwarder): what is tried there is answered."""

_TERMINAL = r"""
use strict; use POSIX (); use Fcntl;
sysopen(my $master, '/dev/ptmx', O_RDWR | O_NOCTTY) or die $!;
my ($unlocked, $number) = (pack('i', 0), pack('i', 0));
ioctl($master, 0x40045431, $unlocked) or die $!;  # TIOCSPTLCK
ioctl($master, 0x80045430, $number) or die $!;    # TIOCGPTN
if (my $child = fork) { waitpid($child, 0); exit($? >> 8); }
POSIX::setsid();
sysopen(my $slave, '/dev/pts/' . unpack('i', $number), O_RDWR) or die $!;
exec @ARGV;
"""
"""Gives the program a controlling terminal; its master end stays with the parent."""


def inside(*words: str) -> Change:
    """Let a program run inside first, as the account the server has; it ends by becoming the rest."""

    def change(argv: list[str]) -> list[str]:
        place = argv.index("/usr/bin/perl")
        return [*argv[:place], *words, *argv[place:]]

    return change


def inside_as_root(capability: str, *words: str) -> Change:
    """Let a program run inside first, before the account is changed, with one capability too many."""

    def change(argv: list[str]) -> list[str]:
        place = argv.index("setpriv")
        argv = [*argv[:place], *words, *argv[place:]]
        place = argv.index("--cap-drop") + 2
        return [*argv[:place], "--cap-add", capability, *argv[place:]]

    return change


def listening(word: str) -> Change:
    return inside("/usr/bin/perl", "-e", _LISTENS, word)


def replacing(**options: str) -> Change:
    """Give options of setpriv another value."""

    def change(argv: list[str]) -> list[str]:
        return [f"--{word[2:].split('=')[0]}={options[word[2:].split('=')[0]]}"
                if word.startswith("--") and word[2:].split("=")[0] in options else word for word in argv]  # fmt: skip

    return change


def without_bubblewrap(argv: list[str]) -> list[str]:
    """bwrap always sets the flag, so the leak has to do without it."""
    begin = argv.index("setpriv")
    kept = [word for word in argv[begin:] if word != "--no-new-privs"]
    return ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--ipc", "--uts", "--", *kept]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A sandbox that leaks on purpose; ``also``: other probes that the same hole cannot but show."""

    probe: str
    how: str
    change: Change
    also: frozenset[str] = frozenset()
    root: bool = False


_SH_FIRST = ("/bin/sh", "-c")
LEAKS = (
    Leak(probe="dns", how="something answers", change=listening("dns")),
    Leak(probe="tcp", how="something answers", change=listening("tcp")),
    Leak(probe="smtp", how="something answers", change=listening("smtp")),
    Leak(probe="http", how="something answers", change=listening("http")),
    Leak(
        probe="metadata", how="its address exists", root=True,
        change=inside_as_root("CAP_NET_ADMIN", *_SH_FIRST, 'ip address add 169.254.169.254 dev lo && exec "$@"', "sh"),
    ),
    Leak(probe="abstract-socket", how="something answers", change=listening("abstract")),
    Leak(
        probe="interfaces", how="a route", root=True,
        change=inside_as_root("CAP_NET_ADMIN", *_SH_FIRST, 'ip route add 198.18.0.0/15 dev lo && exec "$@"', "sh"),
    ),
    Leak(probe="environment", how="one variable too many", change=before_program("--setenv", "PGPASSWORD", "x")),
    Leak(probe="environment", how="the caller's", root=True, change=without("--clearenv")),
    Leak(probe="host-paths", how="one folder", change=before_program("--ro-bind", "/var/lib", "/srv")),
    Leak(probe="host-paths", how="the host's /etc", change=before_program("--ro-bind", "/etc", "/etc")),
    Leak(probe="host-paths", how="resolv.conf", change=before_program("--ro-bind", "/etc", "/tmp/etc")),
    Leak(probe="writable", how="the root", change=_writable_root),
    Leak(
        probe="writable", how="a folder of the host", also=frozenset({"host-paths"}),
        change=before_program("--bind", "/var/tmp", "/env/extra"),
    ),
    Leak(
        probe="user", how="root", root=True, change=replacing(reuid="0", regid="0"),
        also=frozenset({"environment"}),  # root may read what bwrap was started with
    ),
    Leak(probe="user", how="a group", root=True, change=lambda argv: [
        "--groups=4" if word == "--clear-groups" else word for word in argv]),
    Leak(probe="capabilities", how="they could come back", root=True, change=without("--bounding-set=-all")),
    Leak(
        probe="no-new-privileges", how="without bubblewrap", root=True, change=without_bubblewrap,
        also=frozenset({"host-paths", "writable", "environment", "processes", "system-calls", "descriptors"}),
    ),
    Leak(
        probe="system-calls", how="no filter", change=without("--seccomp", None),
        also=frozenset({"descriptors"}),  # nobody closes the one with the filter
    ),
    Leak(probe="namespaces", how="the host's IPC", change=without("--unshare-ipc")),
    Leak(probe="namespaces", how="the host's name", change=without("--unshare-uts", "--hostname", "drservice")),
    Leak(
        probe="processes", how="/proc of others", root=True,
        change=lambda argv: without("--seccomp", None)(
            inside_as_root("CAP_SYS_ADMIN", "unshare", "--pid", "--fork", "--")(argv)),
        also=frozenset({"system-calls", "descriptors"}),  # the filter would refuse to make this leak
    ),
    Leak(probe="descriptors", how="an open file", change=inside(*_SH_FIRST, 'exec 7</etc/passwd; exec "$@"', "sh")),
    Leak(probe="terminal", how="a terminal", change=inside("/usr/bin/perl", "-e", _TERMINAL)),
)  # fmt: skip
"""Each hole is as small as it can be, so that it shows that this probe sees it and not another one."""


def failed(probes: Mapping[str, Probe]) -> set[str]:
    with pytest.raises(IsolationError) as caught:
        require_isolated(list(probes.values()))
    names = {probe.name for probe in probes.values() if not probe.isolated}
    assert all(name in caught.value.message for name in names)
    return names


def test_a_tight_sandbox_passes_every_probe(tight: Sandbox) -> None:
    require_isolated(tight.self_test())


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: f"{leak.probe}: {leak.how}")
def test_a_leak_is_found_by_the_probe_made_for_it_and_by_no_other(
    leaky: Callable[[Change], dict[str, Probe]], leak: Leak
) -> None:
    if leak.root and os.geteuid() != 0:
        pytest.skip("only root can leave its privileges inside")
    assert failed(leaky(leak.change)) == {leak.probe, *leak.also}


def test_every_probe_has_been_seen_to_fail() -> None:
    assert {leak.probe for leak in LEAKS} == set(PROBE_NAMES)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [("unshare", "0"), ("keyctl", "0, -3, 0"), ("personality", "0xffffffff")],
)
def test_a_refused_system_call_fails_inside_and_works_outside(tight: Sandbox, call: str, arguments: str) -> None:
    number = MACHINES[platform.machine()].refused[call]
    program = ["/usr/bin/perl", "-e", f"$! = 0; syscall({number}, {arguments}); print $! + 0"]
    assert processes.run(program).stdout == b"0"
    assert tight.execute(program, timeout_seconds=10).stdout == b"1"  # EPERM


def test_no_socket_leads_to_the_hypervisor(tight: Sandbox) -> None:
    program = ["/usr/bin/perl", "-e", "use Socket; socket(my $s, 40, SOCK_STREAM, 0) or print qq($!)"]
    assert tight.execute(program, timeout_seconds=10).stdout == b"Address family not supported by protocol"


def test_sharing_the_processes_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(without("--unshare-pid"))) >= {"namespaces", "processes"}


def test_sharing_the_network_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    probes = leaky(without("--unshare-net"))
    assert failed(probes) >= {"tcp", "dns", "smtp", "http", "abstract-socket", "interfaces", "namespaces"}
    assert "a listener of the host heard it" in probes["tcp"].detail
    assert "a listener of the host heard it" in probes["dns"].detail
    assert "a listener of the host heard it" in probes["abstract-socket"].detail


def test_the_hosts_files_are_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    probes = leaky(lambda argv: [*argv[: argv.index("--ro-bind")], "--bind", "/", "/", *argv[argv.index("--proc") :]])
    assert failed(probes) >= {"host-paths"}


@as_root
def test_staying_root_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(staying_root)) >= {"user", "capabilities"}


def test_production_is_out_of_reach_by_name_address_and_socket(tight: Sandbox, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as production:
        port = production.getsockname()[1]
        probes = tight.self_test(
            production=[
                Endpoint(host="127.0.0.1", port=port),
                Endpoint(host="db1.invalid", port=5432),
                Endpoint(host=str(tmp_path), port=5432),
            ]
        )
        require_isolated(probes)
        assert probes[-1].name == "production"
        production.settimeout(0)
        with pytest.raises(BlockingIOError):
            production.accept()


@pytest.mark.parametrize("shares", ["the network", "a way to it only"])
def test_reachable_production_is_found(tmp_path: Path, shares: str) -> None:
    change = without("--unshare-net") if shares == "the network" else listening("production")
    with leaking(tmp_path, change) as sandbox, socket.create_server(("127.0.0.1", 0)) as production:
        address = Endpoint(host="127.0.0.1", port=production.getsockname()[1])
        probes = {probe.name: probe for probe in sandbox.self_test(production=[address])}
    assert "connected" in probes["production"].detail
    if shares != "the network":
        assert failed(probes) == {"production"}


def test_productions_socket_within_sight_is_found(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / ".s.PGSQL.5432").touch()
    with leaking(tmp_path, before_program("--ro-bind", str(place), str(place))) as sandbox:
        probes = {probe.name: probe for probe in sandbox.self_test(production=[Endpoint(host=str(place), port=5432)])}
    assert failed(probes) == {"production", "host-paths"}
    assert "is visible" in probes["production"].detail


def test_without_an_interpreter_inside_nothing_passes(tight: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_PERL", "/usr/bin/no-such-perl")
    with pytest.raises(EnvironmentFailedError, match="could not run"):
        tight.self_test()


def test_the_server_and_the_self_test_share_one_command_line(tight: Sandbox) -> None:
    server = tight._run_argv(bubblewrap.telling_argv(["/bin/true"]))
    probe = tight._run_argv(["/bin/true"])
    assert server[: len(probe) - 1] == probe[:-1]
