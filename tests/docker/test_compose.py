"""docker-compose.yml, brought up as docs/deployment.md says, by one who has never seen it.

The proxy and the S3 server are stand-ins (deploy/offline); everything else is what is shipped.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docker.conftest import OFFLINE
from tests.docker.engine import ROOT, Docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
PASSWORD = "correct horse battery"
SITE = "https://drservice.localhost"
PROGRAM = "/opt/drservice/bin/drservice"
SERVICES = {"proxy", "web", "node", "recovery", "catalogue", "store", "plant"}
SECRETS = ("catalogue_password", "plant_password", "store_access_key", "store_secret_key")


@dataclass(kw_only=True)
class Stack:
    """The installation in a folder of its own."""

    docker: Docker
    folder: Path
    words: tuple[str, ...] = field(default=(*OFFLINE, "--profile", "recovery"))

    def __call__(self, *words: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.docker(*self.words, *words, folder=self.folder, given=given, check=check)

    def states(self) -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in self("ps", "--all", "--format", "json").stdout.splitlines()]
        return {document["Service"]: document for document in found}

    def inspect(self, service: str) -> dict[str, Any]:
        (document,) = json.loads(self.docker("inspect", self.states()[service]["Name"]).stdout)
        found: dict[str, Any] = document
        return found

    def edit(self, name: str, *changes: tuple[str, str]) -> str:
        path = self.folder / "deploy" / "compose" / name
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in changes:
            text, number = re.subn(pattern, replacement, text, flags=re.MULTILINE)
            assert number, pattern
        path.write_text(text)
        return text

    def browser(self) -> httpx.Client:
        """Return a client of the pages by TLS through the proxy, that believes in its certificate only."""
        address = self("port", "proxy", "8443").stdout.strip()
        certificate = self.folder / "deploy" / "compose" / "secrets" / "tls_certificate"
        return httpx.Client(
            base_url=f"https://{address}",
            verify=ssl.create_default_context(cafile=str(certificate)),
            headers={"Host": "drservice.localhost", "Origin": SITE},
            timeout=60,
        )

    def run_of(self, answer: httpx.Response, browser: Browser) -> str:
        """Wait for the end of a run that an answer announced, and return its state."""
        assert answer.status_code == 202, answer.text
        state = ""

        def over() -> bool:
            nonlocal state
            state = browser.get(answer.headers["Location"]).json()["state"]
            return state in {"succeeded", "failed", "cancelled"}

        wait_until(f"{answer.headers['Location']} ends", over, seconds=240)
        return state


@dataclass(kw_only=True)
class Browser:
    """Somebody who has signed in."""

    client: httpx.Client
    csrf: str

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path, extensions={"sni_hostname": "drservice.localhost"})

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"X-CSRF-Token": self.csrf, "Idempotency-Key": secrets.token_hex(8)}
        return self.client.post(path, json=body, headers=headers, extensions={"sni_hostname": "drservice.localhost"})


def printed(text: str, pattern: str) -> str:
    (found,) = set(re.findall(pattern, text))
    assert isinstance(found, str)
    return found


@pytest.fixture(scope="module")
def stack(images: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The steps of docs/deployment.md, "Containers", one by one."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets", "recovery.yaml"))
    stack = Stack(docker=images, folder=folder)
    closed = folder / "deploy" / "compose" / "secrets"
    images.program("deploy/compose/make-secrets", folder=folder)
    recipients = []
    for name in ("recovery", "sealed"):
        images.program("age-keygen", "-o", f"{name}.age", folder=folder)
        recipients.append(images.program("age-keygen", "-y", f"{name}.age", folder=folder).stdout.strip())
    stack.edit(
        "drservice.yaml",
        ("REPLACE-WITH-RECIPIENT-OF-RECOVERY-SITE", recipients[0]),
        ("REPLACE-WITH-RECIPIENT-IN-THE-SAFE", recipients[1]),
    )
    images.program(
        "install", "-o", "10001", "-g", "10001", "-m", "0400", "recovery.age", f"{closed}/identity", folder=folder
    )
    for_recovery = folder / "deploy" / "compose" / "recovery.yaml"
    shutil.copy(folder / "deploy" / "compose" / "drservice.yaml", for_recovery)
    try:
        stack("up", "--detach", "--wait", "store")
        said = stack("run", "--rm", "--no-deps", "node", "init").stdout
        keys = {"NODE": printed(said, r'node: \{key: "(.+)"\}'), "LOG": printed(said, r"log key of evidence: +(\S+)")}
        for host, words in (
            ("PLANT", ("--entrypoint", PROGRAM, "plant")),
            ("RECOVERY", ("recovery",)),
        ):
            told = stack("run", "--rm", "--no-deps", *words, "init", "--without-log-key", check=False)
            assert told.returncode == 2, told.stderr
            keys[host] = printed(told.stderr, rf'{host.lower()}: \{{key: "(\S+)"\}}')
        text = stack.edit(
            "drservice.yaml",
            (r"^( *)# (?=signers:|evidence:|  node:|  plant:|  recovery:)", r"\1"),
            ("LOG-KEY", f"'{keys['LOG']}'"),
            *((f"KEY-OF-{host}", f"'{keys[host]}'") for host in ("NODE", "PLANT", "RECOVERY")),
        )
        for_recovery.write_text(re.sub(r"^  # identity:", "  identity:", text, flags=re.MULTILINE))
        stack("up", "--detach", "--wait")
        yield stack
    finally:
        stack("down", "--volumes", "--timeout", "30")
    label = "--filter=label=com.docker.compose.project=drservice"
    left = {
        kind: images.lines(*kind, "--quiet", label) for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    }
    assert not any(left.values()), left


@pytest.fixture(scope="module")
def browser(stack: Stack) -> Iterator[Browser]:
    stack(
        "exec", "--no-TTY", "web", "drservice", "account", "add", "ops", "--role", "operator", "--role", "restorer",
        "--role", "viewer", given=f"{PASSWORD}\n",
    )  # fmt: skip
    with stack.browser() as client:
        sni = {"sni_hostname": "drservice.localhost"}
        refused = client.post("/sign-in", data={"name": "ops", "password": "guessed"}, extensions=sni)
        assert refused.status_code == 401
        answer = client.post("/sign-in", data={"name": "ops", "password": PASSWORD}, extensions=sni)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/")
        (cookie,) = answer.headers.get_list("set-cookie")
        assert {"Secure", "HttpOnly"} <= {word.strip() for word in cookie.split(";")}
        page = client.get("/overview", extensions=sni)
        assert page.status_code == 200
        yield Browser(client=client, csrf=printed(page.text, r'name="csrf" value="([^"]+)"'))


@pytest.fixture(scope="module")
def backed_up(stack: Stack, browser: Browser) -> None:
    assert stack.run_of(browser.post("/api/v1/services/sample/backups", {}), browser) == "succeeded"


def test_every_container_is_well(stack: Stack) -> None:
    found = {name: (it["State"], it["Health"]) for name, it in stack.states().items()}
    assert found == dict.fromkeys(SERVICES, ("running", "healthy"))


def test_who_signs_in_through_the_proxy_sees_the_sample_plant(browser: Browser) -> None:
    page = browser.get("/overview")
    assert "sample" in page.text
    assert page.headers["content-security-policy"]
    assert browser.get("/api/v1/me").json()["account"] == "ops"


@pytest.mark.usefixtures("backed_up")
def test_a_backup_asked_for_over_the_api_is_there_and_its_plant_ships_wal(stack: Stack, browser: Browser) -> None:
    points = "/api/v1/services/sample/points"
    wait_until("the point is in the catalogue", lambda: browser.get(points).json()["items"], seconds=60)
    switched = stack(
        "exec", "--no-TTY", "plant", "psql", "-qAtd", "plant", "-c", "select pg_walfile_name(pg_current_wal_lsn())"
    )
    sql = "insert into account_move_line (debit, credit) values (7, 7); select pg_switch_wal()"
    stack("exec", "--no-TTY", "plant", "psql", "-qd", "plant", "-c", sql)

    def archived() -> bool:
        asked = "select coalesce(last_archived_wal, '') || '/' || failed_count from pg_stat_archiver"
        said = stack("exec", "--no-TTY", "plant", "psql", "-qAtd", "plant", "-c", asked).stdout
        name, _, failures = said.strip().partition("/")
        assert failures == "0", said
        return name.split(".")[0] >= switched.stdout.strip()

    wait_until("the switched segment is archived", archived, seconds=90)


@pytest.mark.usefixtures("backed_up")
def test_the_recovery_node_drills_what_the_other_cannot_even_read(stack: Stack, browser: Browser) -> None:
    said = stack("exec", "--no-TTY", "recovery", "drservice", "check", check=False).stdout
    assert "isolation works here: 18 ways out were tried from inside, none is open" in said
    assert "failed to resolve host 'plant'" in said, "it recovers production and cannot reach it"
    refused = stack("exec", "--no-TTY", "node", "drservice", "drill", "sample", check=False)
    assert "can only be read with an identity" in refused.stderr
    answer = browser.post("/api/v1/services/sample/drills", {})
    assert stack.run_of(answer, browser) == "succeeded", stack("logs", "--no-log-prefix", "recovery").stdout[-3000:]
    run = answer.headers["Location"].rpartition("/")[2]
    log = stack("logs", "--no-log-prefix", "recovery").stdout
    assert [line for line in log.splitlines() if run in line and '"run claimed"' in line]


def test_no_secret_is_in_an_environment_and_no_root_can_be_written(stack: Stack) -> None:
    folder = stack.folder / "deploy" / "compose" / "secrets"
    values = [(folder / name).read_text(encoding="utf-8").strip() for name in SECRETS]
    for name in SERVICES:
        facts = stack.inspect(name)
        assert not [value for value in values if value in json.dumps(facts)], name
        assert facts["HostConfig"]["ReadonlyRootfs"], name
        assert facts["HostConfig"]["Memory"] > 0, name
        assert stack("exec", "--no-TTY", name, "id", "-u").stdout.strip() != "0", name
        assert stack("exec", "--no-TTY", name, "touch", "/etc/x", check=False).returncode != 0, name
        status = stack("exec", "--no-TTY", name, "cat", "/proc/1/status").stdout
        assert printed(status, r"CapBnd:\s*([0-9a-f]+)") == "0" * 16, name
        assert printed(status, r"NoNewPrivs:\s*(\d)") == "1", name


def test_the_pages_reach_catalogue_and_store_but_not_the_plant(stack: Stack) -> None:
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"

    def reaches(service: str, host: str, port: int) -> bool:
        words = ("exec", "--no-TTY", service, "python3", "-c", program, host, str(port))
        return stack(*words, check=False).returncode == 0

    assert reaches("web", "catalogue", 5432)
    assert reaches("web", "store", 7070)
    assert reaches("node", "plant", 5432)
    address = next(
        it["IPAddress"] for name, it in stack.inspect("plant")["NetworkSettings"]["Networks"].items() if "data" in name
    )
    for service in ("web", "recovery"):
        assert not reaches(service, "plant", 5432)
        assert not reaches(service, address, 5432)


def test_a_killed_node_comes_back_and_goes_on(stack: Stack, browser: Browser) -> None:
    before = stack.inspect("node")["State"]
    stack("exec", "--no-TTY", "node", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)", check=False)
    wait_until(
        "the node is started anew",
        lambda: (now := stack.inspect("node"))["State"]["StartedAt"] != before["StartedAt"] and now["State"]["Running"],
        seconds=60,
    )
    assert stack.run_of(browser.post("/api/v1/services/sample/backups", {}), browser) == "succeeded"


def test_a_node_that_is_stopped_drains_and_ends_well(stack: Stack) -> None:
    stack("stop", "node")
    facts = stack.inspect("node")["State"]
    said = stack("logs", "--no-log-prefix", "--tail", "50", "node").stdout
    stack("up", "--detach", "--wait", "node")
    assert facts["ExitCode"] == 0
    assert "node drains" in said


@pytest.mark.parametrize("is_own_first_process", [True, False])
def test_the_image_alone_ends_within_seconds_of_being_told_to(stack: Stack, *, is_own_first_process: bool) -> None:
    web = stack.inspect("web")
    (image, networks) = (
        web["Config"]["Image"],
        [name for name in web["NetworkSettings"]["Networks"] if "index" in name],
    )
    mounts = [f"--volume={it['Source']}:{it['Destination']}:ro" for it in web["Mounts"] if it["Type"] == "bind"]
    init = [] if is_own_first_process else ["--init"]
    name = stack.docker(
        "run", "--detach", *init, "--read-only", "--tmpfs=/tmp", f"--network={networks[0]}", *mounts,
        "--env=PGPASSFILE=/run/secrets/pgpass", image,
    ).stdout.strip()  # fmt: skip
    try:
        wait_until("it serves", lambda: "serving" in stack.docker("logs", name).stdout, seconds=60)
        begun = time.monotonic()
        stack.docker("stop", "--time=30", name)
        assert time.monotonic() - begun < 20
        (facts,) = json.loads(stack.docker("inspect", name).stdout)
        assert facts["State"]["ExitCode"] == 0
    finally:
        stack.docker("rm", "--force", "--volumes", name)
