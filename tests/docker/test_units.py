"""The systemd units under a systemd of their own: a container whose first process is /sbin/init plays the host.

It is installed as docs/deployment.md says; PostgreSQL is Debian's, started by its own unit. What the units' hardening
forbids shows here and nowhere else: it comes from the kernel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.docker.engine import ROOT, Docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
IMAGE = "drservice-offline/systemd:1"
UP, NODE, WEB = "drservice-up", "drservice-node", "drservice-web"
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
# All but CAP_SYS_RESOURCE, which the machine of the tests may not have itself (so `--privileged` is no way).
CAPABILITIES = (
    "SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "DAC_READ_SEARCH", "LINUX_IMMUTABLE", "IPC_LOCK", "SYSLOG",
)  # fmt: skip
EXAMPLE = ROOT / "config" / "single-host.yaml"
CHANGES = (
    (r"^      documents: .*\n", ""),
    (r"^      configuration: .*\n", ""),
    (r"^notify:\n.*\n", ""),
    (r"^    calendar: plant\n", ""),
    (r"^      documents_every: .*\n", ""),
    (r"^      (backup|drill): \S.*$", r'      \1: "* * * * *"'),
)
"""What one does to the example on a host without documents; each minute, so that tests need not wait for the night."""


def changed(text: str, *changes: tuple[str, str]) -> str:
    for pattern, replacement in changes:
        text, number = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert number, pattern
    return text


@dataclass(kw_only=True)
class Host:
    """A machine under systemd."""

    docker: Docker
    name: str
    configuration: str = ""

    def __call__(self, *words: str, given: str | None = None, check: bool = True) -> str:
        return self.docker("exec", "--interactive", self.name, *words, given=given, check=check).stdout

    def shell(self, script: str) -> str:
        return self("bash", "-euc", script)

    def write(self, path: str, text: str) -> None:
        self("bash", "-euc", f"cat > {path} && chmod 0644 {path}", given=text)

    def configure(self, *changes: tuple[str, str]) -> None:
        self.write("/etc/drservice/drservice.yaml", changed(self.configuration, *changes))

    def state(self, unit: str) -> str:
        return self("systemctl", "is-active", unit, check=False).strip()

    def facts(self, unit: str, *names: str) -> list[str]:
        return [self("systemctl", "show", "--property", name, "--value", unit).strip() for name in names]

    def log(self, unit: str) -> list[dict[str, Any]]:
        lines = self("journalctl", "--unit", unit, "--output", "cat", "--no-pager").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def ended(self, unit: str, kind: str) -> list[dict[str, Any]]:
        """Return how runs of a kind ended."""
        log = self.log(unit)
        runs = {line["run"] for line in log if line.get("event") == "run claimed" and line.get("kind") == kind}
        return [line for line in log if line.get("event") == "run ended" and line["run"] in runs]

    def answers(self) -> bool:
        return '"ok"' in self("curl", "--silent", "http://127.0.0.1:8484/readyz", check=False)

    def wait_for(self, unit: str, kind: str, *, more_than: int = 0) -> None:
        wait_until(f"a {kind} ends", lambda: len(self.ended(unit, kind)) > more_than, seconds=240)
        last = self.ended(unit, kind)[-1]
        assert last["state"] == "succeeded", last


@pytest.fixture(scope="module")
def host(images: Docker) -> Iterator[Host]:
    """The steps of docs/deployment.md, "One machine", one by one."""
    images(
        "build", "--quiet", "--file", "deploy/offline/Dockerfile", "--target", "systemd", "--tag", IMAGE, str(ROOT)
    )  # fmt: skip
    name = images(
        "run", "--detach", "--hostname=erp1", "--cgroupns=private", "--env=container=docker", "--tmpfs=/run",
        "--tmpfs=/run/lock", "--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined",
        *(f"--cap-add={capability}" for capability in CAPABILITIES),
        # systemd mounts the control groups of its own namespace instead of those the engine shows.
        "--entrypoint=/bin/sh", IMAGE, "-c", "umount --recursive /sys/fs/cgroup && exec /sbin/init",
    ).stdout.strip()  # fmt: skip
    host = Host(docker=images, name=name)
    try:
        wait_until(
            "systemd is up",
            lambda: host("systemctl", "is-system-running", check=False).strip() == "running",
            seconds=60,
        )
        host.shell("""
            install -d -o postgres -g postgres -m 0750 /mnt/recovery/drservice
            age-keygen -o /etc/drservice/identity.age; age-keygen -o /root/sealed.age
            chown postgres: /etc/drservice/identity.age; chmod 0400 /etc/drservice/identity.age
            runuser -u postgres -- createdb plant
            runuser -u postgres -- psql -qd plant -c 'create table t as select generate_series(1, 5000) as n'
        """)
        own, sealed = host.shell("age-keygen -y /etc/drservice/identity.age; age-keygen -y /root/sealed.age").split()
        blanks = (("REPLACE-WITH-RECIPIENT-OF-THIS-HOST", own), ("REPLACE-WITH-RECIPIENT-IN-THE-SAFE", sealed))
        host.configuration = changed(EXAMPLE.read_text(encoding="utf-8"), *CHANGES, *blanks)
        host.configure()
        said = host(*AS_POSTGRES, "drservice", "init")
        line, key = (re.findall(pattern, said)[0] for pattern in (r"(erp1: \{.*\})", r"evidence: +(ed\S+)"))
        host.configuration = changed(
            host.configuration,
            (r"^( *)# (?=signers:|  erp1:|evidence:)", r"\1"),
            (r"erp1: \{key: REPLACE.*\}", line),
            (r"\[REPLACE-WITH-KEY-OF-LEDGER\]", f"['{key}']"),
        )
        host.configure()
        host.shell("""
            command='/opt/drservice/bin/drservice wal push --service erp %p'
            runuser -u postgres -- psql -q -c 'alter system set archive_mode = on' \\
              -c "alter system set archive_timeout = '60s'" -c "alter system set archive_command = '$command'"
            systemctl restart postgresql@15-main
            runuser -u postgres -- drservice check || test $? = 1
            runuser -u postgres -- drservice backup erp
            runuser -u postgres -- drservice drill erp
            runuser -u postgres -- drservice check
        """)
        yield host
    finally:
        images("rm", "--force", "--volumes", name)


@pytest.fixture
def up(host: Host) -> Iterator[Host]:
    host("systemctl", "start", UP)
    wait_until("the pages answer", host.answers, seconds=60)
    yield host
    host("systemctl", "stop", UP)


def test_backups_and_drills_work_in_a_hardened_unit_by_schedule(up: Host) -> None:
    up.wait_for(UP, "backup", more_than=len(up.ended(UP, "backup")))
    up.wait_for(UP, "drill", more_than=len(up.ended(UP, "drill")))
    archiver = "select failed_count || ' ' || archived_count from pg_stat_archiver"
    failed, archived = up(*AS_POSTGRES, "psql", "-qAtc", archiver).split()
    assert (failed, int(archived) > 0) == ("0", True)
    status = up.shell("grep -E '^(NoNewPrivs|CapBnd|Seccomp):' /proc/$(systemctl show -P MainPID drservice-up)/status")
    assert status.split() == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_an_account_is_added_while_the_unit_runs(up: Host) -> None:
    words = ("drservice", "account", "add", "ops", "--role", "admin")
    assert "added ops: admin" in up(*AS_POSTGRES, *words, given="correct horse battery\n")


def test_a_killed_unit_is_started_again_over_what_it_left(up: Host) -> None:
    number = len(up.ended(UP, "backup"))
    before = up("systemctl", "show", "-P", "MainPID", UP)
    up("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", UP)
    wait_until(
        "it has another process",
        lambda: up("systemctl", "show", "-P", "MainPID", UP) not in {before, "0\n"},
        seconds=60,
    )
    wait_until("the pages answer", up.answers, seconds=60)
    assert up("systemctl", "show", "-P", "NRestarts", UP).strip() != "0"
    up.wait_for(UP, "backup", more_than=number)


def test_a_unit_that_is_stopped_drains_and_leaves_no_process(host: Host) -> None:
    host("systemctl", "start", UP)
    wait_until("the pages answer", host.answers, seconds=60)
    host("systemctl", "stop", UP)
    assert host("systemctl", "show", "-P", "Result", UP).strip() == "success"
    assert "node drains" in [line["event"] for line in host.log(UP)]
    wait_until(
        "nothing of it runs",  # the last is a helper of Python that ends once it has noticed
        lambda: host("pgrep", "--list-full", "--full", "/opt/drservice|drservice-catalogue", check=False) == "",
        seconds=20,
    )


def test_a_refused_configuration_is_not_tried_again(host: Host) -> None:
    host.write("/etc/drservice/drservice.yaml", "version: 1\nservices: {}\nnonsense: true\n")
    try:
        host("systemctl", "start", UP)
        wait_until("it has failed", lambda: host.state(UP) == "failed", seconds=60)
        assert host.facts(UP, "ExecMainStatus", "NRestarts") == ["2", "0"]
    finally:
        host.configure()
        host("systemctl", "reset-failed", UP)


def test_node_and_pages_are_units_of_two_accounts_over_one_catalogue(host: Host) -> None:
    host.shell("""
        usermod --append --groups postgres drservice
        runuser -u postgres -- psql -q -c "create role drservice login password 'of-a-test'" \\
          -c 'create database drservice owner drservice'
        echo 'localhost:5432:drservice:drservice:of-a-test' | tee /etc/drservice/pgpass-node > /etc/drservice/pgpass-web
        chown postgres: /etc/drservice/pgpass-node; chown drservice: /etc/drservice/pgpass-web
        chmod 0600 /etc/drservice/pgpass-*
        for unit in node web; do
          mkdir -p /etc/systemd/system/drservice-$unit.service.d
          printf '[Service]\\nEnvironment=PGPASSFILE=/etc/drservice/pgpass-%s\\n' $unit \\
            > /etc/systemd/system/drservice-$unit.service.d/passwords.conf
        done
        systemctl daemon-reload
    """)
    host.configure((r"^catalogue: embedded", "catalogue: postgresql://drservice@localhost/drservice"))
    try:
        host("systemctl", "start", NODE, WEB)
        wait_until("the pages answer", host.answers, seconds=90)
        host.wait_for(NODE, "backup", more_than=len(host.ended(NODE, "backup")))
        assert (
            host("ps", "-o", "user=", "-p", host("systemctl", "show", "-P", "MainPID", WEB).strip()).strip()
            == "drservice"
        )
        assert host.state(WEB) == "active"
    finally:
        host("systemctl", "stop", NODE, WEB)
        host.configure()
