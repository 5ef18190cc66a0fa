"""A hostile restored database gets nothing out of the sandbox; on the host the same database gets everything out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice.environments.isolation import require_isolated
from drservice.environments.sandbox import Sandbox
from tests.contract.env_fixtures import (
    POSTGRES_BIN,
    assert_nothing_left,
    eventually,
    init_cluster,
    make_sandbox,
    postgres_argv,
    ready,
    root_of,
)
from tests.doubles.cluster import Cluster, ClusterMaker
from tests.integration.sandbox_hostile import (
    COMMANDS,
    CONNECTIONS,
    FILES,
    LIBRARIES,
    SINKS,
    Sinks,
    attack,
    await_all,
    listening_sinks,
)

_REFUSED = {
    "walreceiver": "could not connect to the primary",
    "subscription": "could not connect to the publisher",
    "dblink": 'connection to server at "127.0.0.1"',
    "dblink-socket": 'connection to server on socket "{sinks.production}/.s.PGSQL.5432" failed',
    "fdw": 'could not connect to server "s"',
    "copy-file": "could not open file",
    "lo-export": "could not create server file",
}
"""How the server says that it tried."""


@pytest.fixture
def sinks() -> Iterator[Sinks]:
    with listening_sinks() as listening:
        yield listening


@dataclass
class OnTheHost:
    cluster: Cluster

    @property
    def data(self) -> Path:
        return self.cluster.data

    @property
    def seen(self) -> str:
        return str(self.cluster.data)

    def start(self, options: dict[str, str], *, comes_up: bool) -> None:
        self.cluster.start([*options.items(), ("listen_addresses", "")], wait=comes_up)
        if not comes_up:
            assert self.cluster.wait_ended() != 0

    def sql(self, text: str) -> str:
        done = self.cluster.run("psql", "-XAt", "-h", self.cluster.sock, "-U", "postgres", "-c", text)
        return (done.stdout + done.stderr).decode()

    def stop(self) -> None:
        self.cluster.stop()


@dataclass
class Inside:
    """Nothing is neutralised: the configuration is the attacker's but for the socket's place."""

    sandbox: Sandbox

    @property
    def data(self) -> Path:
        return self.sandbox.data

    @property
    def seen(self) -> str:
        return "/env/data"

    def start(self, options: dict[str, str], *, comes_up: bool) -> None:
        self.sandbox.start(postgres_argv(*(f"{name}={value}" for name, value in options.items())))
        if comes_up:
            eventually(lambda: ready(self.sandbox))
        else:
            eventually(lambda: not self.sandbox.running())

    def sql(self, text: str) -> str:
        done = self.sandbox.execute(
            [f"{POSTGRES_BIN}/psql", "-XAt", "-h", "/env/sock", "-U", "postgres", "-c", text], timeout_seconds=30
        )
        return (done.stdout + done.stderr).decode()

    def stop(self) -> None:
        self.sandbox.stop()


def test_on_the_host_every_way_out_is_open_and_every_sink_hears_it(sinks: Sinks, template_cache: Path) -> None:
    """The control: without it the silence of the sinks would prove nothing."""
    maker = ClusterMaker(cache=template_cache)
    try:
        server = OnTheHost(maker.make())

        def settle(channels: frozenset[str]) -> None:
            await_all(channels, sinks.told_of)

        printed = attack(server, sinks, settle=settle)
    finally:
        maker.close()
    assert "the secret of the host" in printed
    assert sinks.reached() == SINKS
    assert all(sinks.told_of(channel) for channel in COMMANDS | LIBRARIES | CONNECTIONS | FILES - {"secret"})


def test_inside_every_way_out_is_tried_and_no_sink_hears_anything(sinks: Sinks, tmp_path: Path) -> None:
    sandbox = make_sandbox(tmp_path / "environments")
    root = root_of(sandbox)
    try:
        require_isolated(sandbox.self_test())
        init_cluster(sandbox)
        server = Inside(sandbox)

        def tried(channel: str) -> bool:
            if channel in COMMANDS | LIBRARIES:
                return (sandbox.data / f"ran-{channel}").exists()
            return _REFUSED[channel].format(sinks=sinks) in sandbox.server_log()

        def settle(channels: frozenset[str]) -> None:
            await_all(channels, tried)

        printed = attack(server, sinks, settle=settle)
        require_isolated(sandbox.self_test())
    finally:
        sandbox.destroy()
    assert "the secret of the host" not in printed
    assert f'could not open file "{sinks.folder}/secret" for reading: No such file' in printed
    assert sinks.reached() == frozenset()
    assert list(sinks.drop.iterdir()) == []
    assert_nothing_left(root)
