"""The deployment files name only what exists, and give nothing away: images, commands, files, secrets, units."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from ruamel.yaml import YAML

from drservice.cli.table import COMMANDS
from drservice.errors import ConfigurationError
from drservice.settings.loading import load

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = DEPLOY / "Dockerfile"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
NODES = {"drservice-node", "drservice-up"}
PROXY = "proxy"
NO_GAIN = "no-new-privileges:true"
RECOVERY = "recovery"
FOR_A_SANDBOX = {"seccomp=unconfined", "systempaths=unconfined", "apparmor=unconfined"}
"""What a container needs whose node makes sandboxes, and no other may have."""
MADE_BY_HAND = {"deploy/compose/recovery.yaml", "deploy/compose/secrets/identity"}
"""What docs/deployment.md has one make; never in git."""
NAMES = {entry.name for entry in COMMANDS}
FILLED = {
    "REPLACE-WITH-RECIPIENT-OF-RECOVERY-SITE": "age162qqrrlwkkdq5p3c7jw8ppdfc3pguftpqs9gsj3lk50jegjq7grstj3aex",
    "REPLACE-WITH-RECIPIENT-IN-THE-SAFE": "age1kwrdtzyswvnhjhly8mzxm3y6tgpwvak30n2hsmwr9fccf9ve7ykq62nea7",
}
Document: TypeAlias = dict[str, Any]


def compose() -> Document:
    document: Document = YAML(typ="safe").load(COMPOSE)
    return document


def stages() -> dict[str, str]:
    """Return the stages of the Dockerfile with their instructions."""
    parts = re.split(r"^FROM (?=\S+ AS )", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.split()[2]: part for part in parts}


def bases() -> dict[str, str]:
    """Return the images that the stages begin with, by the variable that may name others."""
    return dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))


def pinned(image: str) -> bool:
    """Tell whether an image is named with a version of at least two numbers."""
    _, _, tag = image.rpartition(":")
    return re.match(r"v?\d+\.\d+", tag) is not None


RULES: dict[str, Callable[[str, Document], object]] = {
    "its image has no version": lambda _, it: not pinned(it.get("image", "")),
    "nobody asks whether it is well": lambda _, it: not it.get("healthcheck", {}).get("test"),
    "has rights over the host": lambda _, it: set(it) & {"privileged", "cap_add", "network_mode", "pid", "devices"},
    "can gain rights": lambda _, it: it.get("cap_drop") != ["ALL"] or NO_GAIN not in it.get("security_opt", []),
    "is less confined than it could be": lambda name, it: (
        set(it.get("security_opt", [])) - {NO_GAIN} - (FOR_A_SANDBOX if name == RECOVERY else set())
    ),
    "may use all memory or make any number of processes": lambda _, it: not {"mem_limit", "pids_limit"} <= set(it),
    "does not come back": lambda _, it: it.get("restart") != "unless-stopped",
    "meets signals and orphans as process 1": lambda _, it: it.get("init") is not True,
    "its root can be written": lambda _, it: not it.get("read_only"),
    "runs as root": lambda _, it: str(it.get("user", "0")).split(":")[0] in {"0", "root"},
    "is reachable from outside": lambda name, it: it.get("ports") and name != PROXY,
    "is on the proxy's network": lambda name, it: "edge" in it["networks"] and name not in {PROXY, "web"},
    "rules the Docker daemon": lambda _, it: "docker.sock" in str(it),
}
"""What is wrong with a service of the compose file for which this holds."""


def problems(document: Document) -> Iterator[str]:
    """Yield what is wrong with a compose file."""
    for name, service in document["services"].items():
        yield from (f"{name}: {problem}" for problem, rule in RULES.items() if rule(name, service))
        yield from (f"{name}: {problem}" for problem in problems_of_mounts(service, document))
        yield from (f"{name}: {problem}" for problem in problems_of_secrets(service, document))
        for other in set(service.get("depends_on", {})) - set(document["services"]):
            yield f"{name}: depends on {other}, which does not exist"


def problems_of_mounts(service: Document, document: Document) -> Iterator[str]:
    for volume in service.get("volumes", []):
        source, _, *mode = volume.split(":")
        if source.startswith(("/", ".")):
            if not (ROOT / source).is_file() and source.removeprefix("./") not in MADE_BY_HAND:
                yield f"{source} is not there"
            if mode != ["ro"]:
                yield f"may change {source}"
        elif source not in document["volumes"]:
            yield f"volume {source} is not declared"


def problems_of_secrets(service: Document, document: Document) -> Iterator[str]:
    given = service.get("secrets", [])
    yield from (f"secret {secret} is no file" for secret in given if "file" not in document["secrets"].get(secret, {}))
    for variable, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN", variable) and not str(value).startswith("/run/secrets/"):
            yield f"{variable} holds a secret"
    mounted = [ROOT / volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith("./")]
    texts = [str(service), *(path.read_text(encoding="utf-8") for path in mounted if path.is_file())]
    in_force = [re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE) for text in texts]
    named = {secret for text in in_force for secret in re.findall(r"/run/secrets/(\w+)", text)}
    yield from (f"is not given {secret}" for secret in sorted(named - set(given)))


def test_the_compose_file_has_no_problem() -> None:
    document = compose()
    assert set(document["services"]) == {"proxy", "web", "node", "catalogue", "store", "plant", RECOVERY}
    assert list(problems(document)) == []


def worse(change: Callable[[Document], object]) -> list[str]:
    document = compose()
    change(document["services"])
    return list(problems(document))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda it: it["web"].update(image="drservice:latest"), "web: its image has no version"),
        (lambda it: it["web"].update(image="drservice"), "web: its image has no version"),
        (lambda it: it["store"].pop("healthcheck"), "store: nobody asks whether it is well"),
        (lambda it: it["node"].update(privileged=True), "node: has rights over the host"),
        (lambda it: it["node"].update(cap_drop=[]), "node: can gain rights"),
        (lambda it: it["node"].pop("security_opt"), "node: can gain rights"),
        (lambda it: it["node"]["security_opt"].append("seccomp=unconfined"), "node: is less confined than it could be"),
        (lambda it: it["plant"].pop("mem_limit"), "plant: may use all memory or make any number of processes"),
        (lambda it: it["web"].update(restart="no"), "web: does not come back"),
        (lambda it: it["web"].pop("init"), "web: meets signals and orphans as process 1"),
        (lambda it: it["catalogue"].update(ports=["5432:5432"]), "catalogue: is reachable from outside"),
        (lambda it: it["plant"].update(user="root"), "plant: runs as root"),
        (lambda it: it["plant"].pop("user"), "plant: runs as root"),
        (lambda it: it["web"].update(read_only=False), "web: its root can be written"),
        (lambda it: it["proxy"]["volumes"].append("./nowhere.yaml:/x:ro"), "proxy: ./nowhere.yaml is not there"),
        (lambda it: it["catalogue"]["environment"].update(POSTGRES_PASSWORD="x"), "POSTGRES_PASSWORD holds a secret"),
        (lambda it: it["proxy"].update(secrets=[]), "proxy: is not given tls_key"),
        (lambda it: it["node"].update(secrets=["pgpass"]), "node: is not given store_credentials"),
        (lambda it: it["proxy"]["volumes"].append("/var/run/docker.sock:/s:ro"), "proxy: rules the Docker daemon"),
        (lambda it: it["web"]["volumes"].append("./README.md:/x"), "web: may change ./README.md"),
        (lambda it: it["plant"].update(networks=["edge"]), "plant: is on the proxy's network"),
    ],
)
def test_each_problem_would_be_noticed(change: Callable[[Document], object], problem: str) -> None:
    found = worse(change)
    assert any(line.endswith(problem) for line in found), found


def traefik_text() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((DEPLOY / "traefik").iterdir()))


def within_reach(document: Document, name: str) -> set[str]:
    """Return the services that share a network with this one which is theirs alone."""
    inside = {network for network, it in document["networks"].items() if it.get("internal")}
    own = set(document["services"][name]["networks"]) & inside
    return {other for other, it in document["services"].items() if own & set(it["networks"])} - {name}


def test_whoever_has_nothing_to_say_to_each_other_shares_no_network() -> None:
    document = compose()
    assert within_reach(document, "plant") == {"node", "store"}
    assert within_reach(document, "catalogue") == {"web", "node", RECOVERY}
    assert within_reach(document, PROXY) == set(), "it reaches the pages over `edge` only"
    for name in ("plant", "catalogue", "store"):
        assert all(document["networks"][network].get("internal") for network in document["services"][name]["networks"])
    document["services"]["web"]["networks"].append("data")
    assert "web" in within_reach(document, "plant")


def test_commands_of_images_and_units_are_commands_of_the_program() -> None:
    called = [
        service["command"][0] for service in compose()["services"].values() if service["image"].startswith("drservice:")
    ]
    called += re.findall(r"^CMD \[\"(\w+)\"\]", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        command = line.removesuffix(" %i").partition(" --log-level info ")[2]
        called.append(command)
        assert unit.stem.removesuffix("@") == f"drservice-{command.replace(' ', '-')}"
    assert sorted(called) == ["node", "node", "node", "up", "wal helper", "web", "web", "web"]
    assert set(called) | {"wal push"} <= NAMES
    (archive,) = [word for word in compose()["services"]["plant"]["command"] if word.startswith("archive_command=")]
    assert " wal push --service sample %p" in archive


def test_every_stage_is_pinned_ends_without_root_and_says_how_it_is() -> None:
    found = stages()
    targets = {service["build"]["target"] for service in compose()["services"].values() if "build" in service}
    assert set(found) == {"build", *targets}
    for name, text in found.items():
        assert pinned(bases()[text.split()[0].strip("${}")]), name
        if name != "build":
            assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] not in {"root", "0"}, name
            assert "\nHEALTHCHECK " in text, name
    assert "--require-hashes" in found["build"]
    assert ":latest" not in DOCKERFILE.read_text(encoding="utf-8")


def test_what_images_copy_is_there_and_in_the_build_s_context() -> None:
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert let_in[0] == "*"
    for text in stages().values():
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
            for source in [word for word in line.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in let_in


def test_users_of_the_compose_file_are_those_of_the_images() -> None:
    services = compose()["services"]
    for name, target in (("web", "drservice"), ("node", "drservice"), (RECOVERY, "drservice"), ("store", "store")):
        assert f"\nUSER {services[name]['user']}\n" in stages()[target], name


def test_the_proxy_has_tls_headers_a_limit_and_nothing_it_is_not_given() -> None:
    static, dynamic = (YAML(typ="safe").load(DEPLOY / "traefik" / name) for name in ("traefik.yaml", "dynamic.yaml"))
    proxy = compose()["services"][PROXY]
    (port,) = proxy["ports"]
    assert static["entryPoints"]["https"]["address"] == f":{port.split(':')[1]}"
    assert static["providers"] == {"file": {"filename": "/etc/traefik/dynamic.yaml", "watch": False}}
    assert static["api"] == {"dashboard": False}
    (router,) = dynamic["http"]["routers"].values()
    assert router["entryPoints"] == ["https"]
    assert set(router["middlewares"]) == set(dynamic["http"]["middlewares"]) == {"headers", "rate"}
    headers = dynamic["http"]["middlewares"]["headers"]["headers"]
    assert headers["stsSeconds"] >= 31536000
    assert headers["contentTypeNosniff"]
    assert dynamic["tls"]["options"][router["tls"]["options"]]["minVersion"] == "VersionTLS12"
    assert set(re.findall(r"/run/secrets/(\w+)", traefik_text())) == set(proxy["secrets"])
    (server,) = dynamic["http"]["services"][router["service"]]["loadBalancer"]["servers"]
    assert server["url"] == "http://web:8484"


def test_the_configuration_of_the_compose_file_is_refused_until_it_is_filled_in(tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "drservice.yaml").read_text(encoding="utf-8")
    path = tmp_path / "drservice.yaml"
    path.write_text(text)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError):
        load(path)
    for placeholder, value in FILLED.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    path.write_text(text)
    assert load(path).estate.repository.signers == (), "each host's first command makes its key"
    text = re.sub(r"^( *)# (?=signers:|evidence:|  node:|  plant:|  recovery:)", r"\1", text, flags=re.MULTILINE)
    for number, word in enumerate(("LOG-KEY", "KEY-OF-NODE", "KEY-OF-PLANT", "KEY-OF-RECOVERY")):
        assert word in text
        text = text.replace(word, f"'ed25519:{bytes(range(number, number + 32)).hex()}'")
    path.write_text(text)
    estate, services, networks = load(path).estate, compose()["services"], compose()["networks"]
    assert len(estate.evidence.log_keys) == 1
    assert estate.catalogue == "postgresql://drservice@catalogue/drservice"
    assert services["catalogue"]["environment"]["POSTGRES_USER"] == "drservice"
    assert (estate.web.host, estate.web.port) == ("0.0.0.0", 8484)
    assert estate.web.public_url == "https://drservice.localhost"
    assert "Host(`drservice.localhost`)" in traefik_text()
    assert list(estate.web.trusted_proxies) == [networks["edge"]["ipam"]["config"][0]["subnet"]]
    (service,) = estate.services.values()
    (cluster,) = service.databases()
    assert cluster.node == services["node"]["command"][-1] == services["node"]["healthcheck"]["test"][-1]
    assert {signer.name for signer in estate.repository.signers} == {
        services[name]["hostname"] for name in ("node", "plant", RECOVERY)
    }
    assert load(path).estate.repository.identities == (), "the node writes and cannot read"
    path.write_text(re.sub(r"^  # (?=identity:)", "  ", text, flags=re.MULTILINE))
    assert len(load(path).estate.repository.identities) == 1


def test_secrets_are_made_once_each_closed_to_others(tmp_path: Path) -> None:
    script = DEPLOY / "compose" / "make-secrets"
    subprocess.run([script, tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wanted = {Path(secret["file"]).name for secret in compose()["secrets"].values()}
    assert set(made) == wanted - {"identity"}, "who can read is not made where it is written"
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert path.stat().st_size > 15
    assert made["catalogue_password"] in made["pgpass"]
    assert made["store_secret_key"] in made["store_credentials"] == made["plant_store_credentials"]
    assert len({made[name] for name in ("catalogue_password", "plant_password", "store_secret_key")}) == 3
    subprocess.run([script, tmp_path], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made


def test_the_secrets_folder_is_not_in_git() -> None:
    (folder,) = {str(Path(secret["file"]).parent) for secret in compose()["secrets"].values()}
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{folder}/pgpass"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


WANTED_IN_UNITS = {
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "UMask=0027",
}


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened_and_runs_without_root(unit: Path) -> None:
    lines = set(unit.read_text(encoding="utf-8").splitlines())
    assert lines >= WANTED_IN_UNITS
    # systemd gives the whole folder to the unit's account: two accounts need two folders.
    own = "StateDirectory=drservice-web" if unit.stem == "drservice-web" else "StateDirectory=drservice"
    assert own in lines
    (user,) = [line for line in lines if line.startswith("User=")]
    assert user != "User=root"
    # Drills run in user namespaces with a /proc of their own, which these settings would forbid.
    # They forbade it when it was tried (tests/docker/test_units.py), the host name included.
    forbidding = {"RestrictNamespaces=yes", "ProtectKernelTunables=yes", "ProtectProc=invisible", "ProtectHostname=yes"}
    assert (forbidding <= lines) is (unit.stem not in NODES)
    assert (not forbidding & lines) is (unit.stem in NODES)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_has_nothing_to_say_against_a_unit(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    program = "/opt/drservice/bin/drservice"
    assert program in text
    copy = tmp_path / unit.name
    copy.write_text(text.replace(program, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
    copy.write_text(text.replace(program, "/bin/true").replace("ProtectSystem=strict", "ProtectSystm=strict"))
    broken = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert "ProtectSystm" in broken.stderr, "what systemd says is looked at"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_stays_as_little_exposed_as_systemd_found_it(unit: Path) -> None:
    most = 15 if unit.stem == "drservice-web" else 35
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]
    stricter = [*words[:3], "--threshold=5", str(unit)]
    assert subprocess.run(stricter, capture_output=True, text=True, check=False).returncode != 0, "the answer is heeded"


def test_a_node_has_longer_to_stop_than_it_drains() -> None:
    for unit in UNITS:
        if unit.stem in NODES:
            assert "\nTimeoutStopSec=660\n" in unit.read_text(encoding="utf-8")
    for name in ("node", RECOVERY):
        assert compose()["services"][name]["stop_grace_period"] == "11m"


def test_units_of_nodes_may_write_to_the_folder_of_the_example_once_it_is_mounted() -> None:
    (folder,) = re.findall(r"url: file://(\S+)", (ROOT / "config" / "single-host.yaml").read_text(encoding="utf-8"))
    for unit in UNITS:
        lines = set(unit.read_text(encoding="utf-8").splitlines())
        wanted = {f"ReadWritePaths=-{folder}", f"RequiresMountsFor={folder}"}
        assert (wanted <= lines) is (unit.stem != "drservice-web"), "strict protection makes any other folder read-only"
