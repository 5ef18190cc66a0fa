"""The isolation self-test fails, by name, for each sandbox that leaks on purpose."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from drservice.clock import SystemClock
from drservice.environments import bubblewrap, isolation
from drservice.environments.bubblewrap import Layout, sandbox_argv
from drservice.environments.interface import Endpoint, Probe
from drservice.environments.isolation import require_isolated
from drservice.environments.sandbox import Sandbox, prepare_sandbox
from drservice.errors import EnvironmentFailedError, IsolationError
from tests.contract.env_fixtures import make_sandbox, make_spec

Change = Callable[[list[str]], list[str]]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave its privileges inside")


@pytest.fixture
def leaky(tmp_path: Path) -> Iterator[Callable[[Change], dict[str, Probe]]]:
    made: list[Sandbox] = []

    def run(change: Change) -> dict[str, Probe]:
        def build(layout: Layout, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> list[str]:
            return change(sandbox_argv(layout, argv, environment=environment))

        made.append(
            prepare_sandbox(
                make_spec(),
                environments_dir=tmp_path / "environments",
                clock=SystemClock(),
                build_argv=build,
            )
        )
        return {probe.name: probe for probe in made[-1].self_test()}

    yield run
    for sandbox in made:
        sandbox.destroy()


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = make_sandbox(tmp_path / "environments")
    yield sandbox
    sandbox.destroy()


def without(*words: str) -> Change:
    return lambda argv: [word for word in argv if word not in words]


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


def failed(probes: Mapping[str, Probe]) -> set[str]:
    with pytest.raises(IsolationError) as caught:
        require_isolated(list(probes.values()))
    names = {probe.name for probe in probes.values() if not probe.isolated}
    assert all(name in caught.value.message for name in names)
    return names


def test_a_tight_sandbox_passes_every_probe(tight: Sandbox) -> None:
    require_isolated(tight.self_test())


def test_sharing_the_network_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    probes = leaky(without("--unshare-net"))
    assert failed(probes) >= {"tcp", "dns", "smtp", "http", "abstract-socket", "interfaces", "namespaces"}
    assert "a listener of the host heard it" in probes["tcp"].detail
    assert "a listener of the host heard it" in probes["dns"].detail
    assert "a listener of the host heard it" in probes["abstract-socket"].detail


@as_root
def test_a_kept_environment_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(without("--clearenv"))) == {"environment"}


def test_the_hosts_files_are_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    probes = leaky(lambda argv: [*argv[: argv.index("--ro-bind")], "--bind", "/", "/", *argv[argv.index("--proc") :]])
    assert failed(probes) >= {"host-paths"}


def test_one_folder_of_the_host_is_found(leaky: Callable[[Change], dict[str, Probe]], tmp_path: Path) -> None:
    assert failed(leaky(before_program("--ro-bind", str(tmp_path), "/srv"))) == {"host-paths"}


def test_the_hosts_etc_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(before_program("--ro-bind", "/etc", "/etc"))) == {"host-paths"}


def test_an_extra_writable_folder_is_found(leaky: Callable[[Change], dict[str, Probe]], tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert failed(leaky(before_program("--bind", str(tmp_path), "/env/extra"))) == {"host-paths", "writable"}


def test_a_writable_root_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(_writable_root)) == {"writable"}


@as_root
def test_staying_root_is_found(leaky: Callable[[Change], dict[str, Probe]]) -> None:
    assert failed(leaky(staying_root)) >= {"user", "capabilities"}


@pytest.mark.parametrize(
    ("option", "probe"),
    [("--unshare-ipc", "namespaces"), ("--unshare-uts", "namespaces"), ("--unshare-pid", "namespaces")],
)
def test_each_shared_namespace_is_found(leaky: Callable[[Change], dict[str, Probe]], option: str, probe: str) -> None:
    dropped = {option, "--hostname", "drservice"} if option == "--unshare-uts" else {option}
    probes = leaky(without(*dropped))
    assert probe in failed(probes)
    assert option.removeprefix("--unshare-") in probes["namespaces"].detail


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


def test_reachable_production_is_found(tmp_path: Path) -> None:
    def build(layout: Layout, argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> list[str]:
        return without("--unshare-net")(sandbox_argv(layout, argv, environment=environment))

    sandbox = prepare_sandbox(make_spec(), environments_dir=tmp_path / "e", clock=SystemClock(), build_argv=build)
    try:
        with socket.create_server(("127.0.0.1", 0)) as production:
            address = Endpoint(host="127.0.0.1", port=production.getsockname()[1])
            probes = {probe.name: probe for probe in sandbox.self_test(production=[address])}
        assert not probes["production"].isolated
        assert "connected" in probes["production"].detail
    finally:
        sandbox.destroy()


def test_without_an_interpreter_inside_nothing_passes(tight: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_PERL", "/usr/bin/no-such-perl")
    with pytest.raises(EnvironmentFailedError, match="could not run"):
        tight.self_test()


def test_the_server_and_the_self_test_share_one_command_line(tight: Sandbox) -> None:
    server = tight._run_argv(bubblewrap.telling_argv(["/bin/true"]))
    probe = tight._run_argv(["/bin/true"])
    assert server[: len(probe) - 1] == probe[:-1]


def _writable_root(argv: list[str]) -> list[str]:
    """Leave out the last ``--remount-ro /``."""
    place = len(argv) - 1 - argv[::-1].index("--remount-ro")
    return [*argv[:place], *argv[place + 2 :]]
