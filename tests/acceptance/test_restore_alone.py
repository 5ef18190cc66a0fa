"""A restore needs settings, store and identity, and nothing else: no state, no host key, no right to write."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from drservice.repository.keys import make_identity
from tests.acceptance.conftest import World, iso
from tests.doubles.cluster import hand_over
from tests.doubles.estate import as_user, copy_tree, tree


def restored_orders(world: World, config: Path, account: str) -> list[int]:
    """Restore with ``--start`` as a user, read the orders, destroy."""
    user = as_user(account) if account != "root" else None
    words = ("restore", "erp", "--to", iso(world.after_102), "--start")
    document = world.estate.json(*words, config=config, account=user)
    try:
        with psycopg.connect(document["environment"]["dsn"]) as connection:
            return [row[0] for row in connection.execute("select id from orders order by id").fetchall()]
    finally:
        world.estate.json("environment", "destroy", document["environment"]["id"], config=config, account=user)


@pytest.mark.parametrize("account", ["root", "postgres"])
def test_another_machine_restores_with_settings_store_and_identity(world: World, account: str) -> None:
    config = world.another_machine(f"alone-{account}")
    if account == "postgres":
        hand_over(config.parent)
    assert restored_orders(world, config, account) == list(range(1, 103))
    assert not (config.parent / "state" / "signing.key").exists(), "a restore made itself a writer"


def test_a_repository_that_nobody_may_write_restores(world: World) -> None:
    folder = copy_tree(world.estate.repository, world.cluster.root / "read-only")
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "root:root", str(folder)], check=True)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(folder)], check=True)
    before = tree(folder)
    config = world.another_machine("reader", url=f"file://{folder}")
    hand_over(config.parent)
    try:
        assert restored_orders(world, config, "postgres") == list(range(1, 103))
        assert tree(folder) == before
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def test_a_wrong_identity_is_told_apart_from_none_and_from_an_unknown_signer(world: World) -> None:
    stranger, _ = make_identity()
    wrong = world.cluster.root / "wrong.age"
    wrong.write_text(stranger + "\n")
    cases = (
        ("wrong", {"identity": wrong}, 5, "DR801"),
        ("none", {"identity": None}, 2, "DR802"),
        ("nobody", {"signers": None}, 5, "DR810"),
        ("somebody-else", {"signers": {"db9": "ed25519:" + "11" * 32}}, 5, "DR810"),
    )
    for name, changes, status, code in cases:
        config = world.another_machine(f"identity-{name}", **changes)
        data = config.parent / "data"
        words = ("restore", "erp", "--to", iso(world.after_102), "--into", data)
        error = world.estate.refusal(*words, config=config, status=status)
        assert error["code"] == code, (name, error)
        assert not data.exists(), name
        assert stranger not in str(error)


def test_a_missing_identity_file_and_a_missing_repository_are_configuration_errors(world: World) -> None:
    config = world.another_machine("missing-identity", identity=world.cluster.root / "nowhere.age")
    assert (
        world.estate.refusal("restore", "erp", "--to", "latest", "--start", config=config, status=2)["code"] == "DR102"
    )
    empty = world.cluster.root / "empty"
    empty.mkdir()
    config = world.another_machine("missing-repository", url=f"file://{empty}")
    assert (
        world.estate.refusal("restore", "erp", "--to", "latest", "--start", config=config, status=2)["code"] == "DR401"
    )
