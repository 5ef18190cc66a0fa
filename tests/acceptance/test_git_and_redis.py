"""Clones, a Redis, and Traefik's certificates are backed up and restored with their service, and alone."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.clones import commit, git, make, seen
from tests.doubles.cluster import ClusterMaker, hand_over
from tests.doubles.plant import Plant
from tests.doubles.redisserver import PASSWORD, LocalRedis, redis_server

CERTIFICATES = b'{"le": {"Certificates": [{"key": "PRIVATE hunter2 of traefik"}]}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A service that was backed up twice: whole, and while its Redis was away."""

    plant: Plant
    clone: Path
    before: dict[str, object]
    whole: dict[str, Any]
    checked: dict[str, Any]
    away: dict[str, Any]


@pytest.fixture(scope="module")
def story(template_cache: Path) -> Iterator[Story]:
    maker = ClusterMaker(cache=template_cache)
    plant = Plant.over(maker.make(wal_segment_mb=1), documents=3)
    try:
        with redis_server(plant.root / "redis", password=PASSWORD) as server:
            clone = lay_out(plant, server)
            for number in range(5):
                server.ask("SET", f"job:{number}", str(number))
            checked = plant.json("check", status=1)
            whole = plant.json("backup", "erp")
        away = plant.json("backup", "erp", status=3)
        plant.archive()
        yield Story(plant=plant, clone=clone, before=seen(clone), whole=whole, checked=checked, away=away)
    finally:
        plant.estate.close()
        maker.close()


def lay_out(plant: Plant, server: LocalRedis) -> Path:
    """Add a clone that is not clean, the Redis, and Traefik's folder to the plant's service."""
    clone = make(plant.root / "addons")
    commit(clone, "plant/__init__.py", "one = 1\n")
    (clone / "plant" / "__init__.py").write_text("one = 2\n")
    (clone / "odoo.conf").write_text("not committed\n")
    traefik = plant.root / "traefik"
    traefik.mkdir()
    (traefik / "acme.json").write_bytes(CERTIFICATES)
    (traefik / "acme.json").chmod(0o600)
    (traefik / "compose.yaml").write_text("services: {}\n")
    (plant.root / "password").write_text(PASSWORD)
    document = plant.document()
    service = document["services"]["erp"]
    service["objectives"] = {"rto": "5m"}
    service["components"] |= {
        "code": {"kind": "git", "clones": [str(clone)]},
        "queue": {
            "kind": "redis",
            "url": server.url,
            "password": f"file:{plant.root}/password",
            "restore": "load",
        },
        "proxy": {"kind": "directory", "path": str(traefik)},
    }
    plant.estate.config.write_text(json.dumps(document))
    hand_over(plant.root)
    return clone


def test_a_service_has_them_in_its_recovery_point_after_its_documents(story: Story) -> None:
    snapshots = {item["component"]: item for item in story.whole["snapshots"]}
    assert list(snapshots) == ["database", "documents", "configuration", "code", "queue", "proxy"]
    assert (story.whole["state"], snapshots["code"]["kind"], snapshots["queue"]["kind"]) == ("complete", "git", "redis")
    assert snapshots["code"]["notes"][0].startswith("addons: main at ")
    assert "its sum is right" in snapshots["queue"]["notes"][0]
    (info,) = story.plant.json("info", "erp")["services"]
    assert set(info["points"][0]["snapshots"]) == set(snapshots)
    assert not list((story.plant.estate.state).glob("prepared-*/*")), "the private folder is gone"


def test_check_says_what_a_redis_that_keeps_nothing_would_lose(story: Story) -> None:
    answers = {item["name"]: item for item in story.checked["checks"]}
    assert answers["erp/queue: redis"]["state"] == "ok"
    assert answers["erp/queue: durability"]["state"] == "failed"
    assert "keeps nothing on disk" in answers["erp/queue: durability"]["detail"]
    assert [name for name in answers if name.startswith("erp/code: clone")] == [f"erp/code: clone {story.clone}"]


def test_a_redis_that_is_away_makes_the_backup_partial_and_the_other_snapshots_stand(story: Story) -> None:
    states = {item["component"]: item["state"] for item in story.away["snapshots"]}
    assert (story.away["state"], states.pop("queue"), set(states.values())) == ("partial", "partial", {"complete"})
    assert story.away["point"] is not None
    queue = next(item for item in story.away["snapshots"] if item["component"] == "queue")
    assert queue["unreadable"][0]["path"] == "dump.rdb"
    assert "no connection to Redis" in queue["unreadable"][0]["reason"]


def test_verify_reads_them_whole(story: Story) -> None:
    found = {item["component"]: item["findings"] for item in story.plant.json("verify", "erp", "--all")["components"]}
    assert {"code", "queue", "proxy"} <= set(found)
    assert all(findings == [] for findings in found.values())


def test_no_secret_is_readable_in_the_repository_or_in_what_is_told(story: Story) -> None:
    told = json.dumps([story.whole, story.checked, story.away])
    assert PASSWORD not in told
    for path in story.plant.estate.repository.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content
            assert b"hunter2 of traefik" not in content


def test_a_restore_brings_back_all_of_them_beside_the_database(story: Story, tmp_path: Path) -> None:
    into = story.plant.cluster.root / "restored"
    done = story.plant.json("restore", "erp", "--to", "latest", "--into", into)
    assert seen(into / "code" / "addons") == story.before
    acme = into / "proxy" / "acme.json"
    assert (acme.read_bytes(), stat.S_IMODE(acme.stat().st_mode)) == (CERTIFICATES, 0o600)
    # The newest snapshot of the queue has nothing: the one before it is taken.
    shutil.copytree(into / "queue", tmp_path / "queue")
    with redis_server(tmp_path / "queue") as server:
        assert server.ask("DBSIZE") == 5
    queue = next(item for item in done["files"] if item["component"] == "queue")
    assert queue["files"] == 1


def test_each_is_restored_alone(story: Story) -> None:
    into = story.plant.cluster.root / "alone"
    done = story.plant.json("restore", "erp", "--component", "code", "--to", "latest", "--into", into)
    assert done["files"][0]["component"] == "code"
    assert seen(into / "addons") == story.before
    assert git(into / "addons", "rev-parse", "HEAD") == git(story.clone, "rev-parse", "HEAD")
    story.plant.estate.refusal("restore", "erp", "--component", "code", "--to", "latest", "--into", into, status=2)
    assert seen(into / "addons") == story.before, "a folder that is in use is left alone"


def test_a_redis_that_is_to_be_flushed_comes_back_empty_and_that_is_said(story: Story) -> None:
    plant = story.plant
    document = json.loads(plant.estate.config.read_text())
    document["services"]["erp"]["components"]["queue"]["restore"] = "flush"
    config = plant.root / "flush.yaml"
    config.write_text(json.dumps(document))
    into = plant.cluster.root / "flushed"
    done = plant.estate.json(
        "--config", config, "restore", "erp", "--component", "queue", "--to", "latest", "--into", into
    )
    assert list(into.iterdir()) == []
    assert "begins empty" in done["files"][0]["notes"][0]


@pytest.mark.long
def test_a_drill_asks_git_and_redis_about_what_came_back(story: Story) -> None:
    done = story.plant.json("drill", "erp", "--plan", "latest")
    checks = {item["name"]: item for item in done["checks"]}
    assert checks["code/clones-as-recorded"]["state"] == "passed", checks["code/clones-as-recorded"]
    assert checks["queue/redis-loads"]["state"] == "passed", checks["queue/redis-loads"]
