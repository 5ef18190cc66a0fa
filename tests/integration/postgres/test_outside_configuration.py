"""Configuration outside the data directory, as Debian keeps it: captured by both methods, sealed, handed over (T11)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from drservice import processes
from drservice.components.postgres.configuration import Configuration
from drservice.components.postgres.connection import connect
from drservice.components.postgres.facts import cluster_facts
from drservice.components.postgres.gathering import gather_configuration, grants_for_reading
from drservice.components.postgres.supplying import configuration_of
from drservice.model.estate import CaptureMethod
from drservice.model.snapshot import SnapshotRecord
from drservice.operations.checklist import Checklist, CheckState
from drservice.operations.healthsource import check_configuration
from tests.doubles.cluster import Cluster, ClusterMaker, hand_over
from tests.faults.world import LATEST, Listener, Site, insert, site_of

SECRET = "s3cret-of-the-origin"


@dataclass(frozen=True, kw_only=True)
class Debian:
    """A running cluster whose configuration lies in a folder of its own."""

    cluster: Cluster
    etc: Path
    spool: Path

    def site(self, root: Path, method: CaptureMethod, user: str = "postgres") -> Site:
        site = site_of(self.cluster, self.spool, root)
        site.method, site.dsn = method, self.cluster.dsn(user=user)
        site.create()
        return site

    def expected(self) -> dict[str, bytes]:
        names = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "admins", "start.conf", "conf.d/10-more.conf"]
        return {str(self.etc / name): (self.etc / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def debian(template_cache: Path) -> Iterator[Debian]:
    maker = ClusterMaker(cache=template_cache)
    cluster = maker.make(wal_segment_mb=1)
    etc, spool = cluster.root / "etc", cluster.root / "spool"
    (etc / "conf.d").mkdir(parents=True)
    spool.mkdir()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (cluster.data / name).rename(etc / name)
    (etc / "admins").write_text("postgres\n")
    (etc / "start.conf").write_text("auto\n")
    (etc / "pg_hba.conf").write_text("local all @admins trust\nlocal all all trust\nlocal replication all trust\n")
    (etc / "pg_hba.conf").chmod(0o640)
    (etc / "conf.d" / "10-more.conf").write_text(f"primary_conninfo = 'password={SECRET}'\n")
    (etc / "conf.d" / "ignored.txt").write_text("this is no setting")
    command = f"test ! -f {spool}/%f && cp %p {spool}/.%f && mv {spool}/.%f {spool}/%f"
    with (etc / "postgresql.conf").open("a") as file:
        file.write("include_dir = 'conf.d'\ninclude_if_exists = 'absent.conf'\narchive_mode = on\n")
        file.write(f"archive_command = '{command}'\n")
        file.write(f"hba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\n")
    for folder in (etc, spool):
        hand_over(folder)
    cluster.start([("config_file", f"{etc}/postgresql.conf")])
    cluster.sql("create table orders(id int primary key, at timestamptz default clock_timestamp())")
    insert(cluster, 1, 20)
    yield Debian(cluster=cluster, etc=etc, spool=spool)
    maker.close()


def configuration_in(site: Site, record: SnapshotRecord) -> Configuration | None:
    return configuration_of(site.repository().reader(site.scope(), record.id))


@pytest.mark.parametrize("method", [CaptureMethod.LOCAL, CaptureMethod.PG_BASEBACKUP])
def test_t11_configuration_outside_pgdata_is_captured_sealed_and_handed_over(
    debian: Debian, tmp_path: Path, method: CaptureMethod
) -> None:
    site = debian.site(tmp_path / "site", method)
    more = debian.etc / "conf.d" / "10-more.conf"
    sane = more.read_bytes()
    more.write_bytes(sane + b"nonsense that would stop any server that read it\n")
    try:
        expected = debian.expected()
        result = site.backup()
    finally:
        more.write_bytes(sane)
    assert result.notes == ()
    found = configuration_in(site, result.record)
    assert found is not None
    assert {item.path: item.content for item in found.files} == expected
    assert found.missing == ()
    roles = {item.path.removeprefix(f"{debian.etc}/"): item.role for item in found.files}
    assert roles["pg_hba.conf"] == "hba_file"
    assert roles["admins"] == f"included by {debian.etc}/pg_hba.conf"
    assert roles["conf.d/10-more.conf"] == f"included by {debian.etc}/postgresql.conf"
    assert not [path for path in site.objects() if SECRET.encode() in path.read_bytes()]

    told = Listener()
    restored = site.restore(LATEST, progress=told)
    assert restored.into is not None
    handed = restored.into / "configuration"
    for path, content in expected.items():
        assert (handed / path[1:]).read_bytes() == content
    assert str(debian.etc / "pg_ident.conf") in (handed / "ORIGIN.txt").read_text()
    assert any(str(handed) in note for note in told.notes)
    assert handed.stat().st_uid == restored.into.stat().st_uid
    assert handed.stat().st_mode & 0o777 == 0o700


def test_t11_the_break_glass_script_brings_the_configuration_out_too(debian: Debian, tmp_path: Path) -> None:
    site = debian.site(tmp_path / "site", CaptureMethod.LOCAL)
    site.backup()
    into = tmp_path / "by-hand"
    script = site.repository_dir / "restore.py"
    argv: list[str | Path] = [sys.executable, script, "--repository", site.repository_dir]
    argv += ["--identity", site.identity_file]
    done = processes.run([*argv, "restore", "--service", "erp", "--into", into], timeout_seconds=120)
    assert done.status == 0, done.stderr.decode() + done.stdout.decode()
    for path, content in debian.expected().items():
        assert (into / "configuration" / path[1:]).read_bytes() == content
    assert f"{debian.etc}/pg_hba.conf (hba_file, mode 0640)" in done.stdout.decode()


def test_t11_a_file_that_cannot_be_read_is_named_and_stops_no_backup(debian: Debian, tmp_path: Path) -> None:
    site = debian.site(tmp_path / "site", CaptureMethod.LOCAL)
    closed = debian.etc / "admins"
    closed.chmod(0)
    try:
        result = site.backup()
    finally:
        closed.chmod(0o644)
    assert result.notes == (f"configuration not in the snapshot: {closed}: Permission denied",)
    found = configuration_in(site, result.record)
    assert found is not None
    assert found.missing == ((str(closed), "Permission denied"),)
    assert len(found.files) == len(debian.expected()) - 1


def test_t11_a_modest_role_learns_what_is_missing_and_which_grants_suffice(debian: Debian, tmp_path: Path) -> None:
    debian.cluster.sql("create role modest login replication")
    site = debian.site(tmp_path / "site", CaptureMethod.PG_BASEBACKUP, user="modest")

    def check() -> tuple[CheckState, str, str]:
        checklist = Checklist()
        with connect(site.dsn) as session:
            check_configuration(site.component, session, cluster_facts(session), "erp/database", checklist)
        (answer,) = checklist.results
        return answer.state, answer.detail, answer.remedy

    state, detail, remedy = check()
    assert state is CheckState.WARNING
    assert "may not see where they are" in detail
    for number, line in enumerate(grants_for_reading("modest")):
        assert line in remedy
        debian.cluster.sql(line)
        if number == 0:
            state, detail, _ = check()
            assert state is CheckState.WARNING
            assert "permission denied for function pg_read_binary_file" in detail
    assert check()[0] is CheckState.OK
    with connect(site.dsn) as session:
        found = gather_configuration(session, data_directory=None)
    assert {item.path: item.content for item in found.files} == debian.expected()


def test_t11_private_keys_outside_pgdata_are_not_taken_and_said_so(debian: Debian) -> None:
    with connect(debian.cluster.dsn()) as session:
        assert gather_configuration(session, data_directory=debian.cluster.data).left_out == ()
    key, certificate = debian.etc / "server.key", debian.etc / "server.crt"
    make = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=x"]
    done = processes.run([*make, "-keyout", key, "-out", certificate], timeout_seconds=30)
    assert done.status == 0, done.stderr.decode()
    hand_over(debian.etc)
    key.chmod(0o600)
    for name, value in (("ssl_key_file", key), ("ssl_cert_file", certificate), ("ssl", "on")):
        debian.cluster.sql(f"alter system set {name} = '{value}'")
    debian.cluster.sql("select pg_reload_conf()")
    deadline = time.monotonic() + 20
    try:
        with connect(debian.cluster.dsn()) as session:
            while session.row("show ssl") != ("on",):
                assert time.monotonic() < deadline, debian.cluster.log_text()[-2000:]
                time.sleep(0.01)
            found = gather_configuration(session, data_directory=debian.cluster.data)
    finally:
        debian.cluster.sql("alter system reset all")
        debian.cluster.sql("select pg_reload_conf()")
    assert [path for path, _ in found.left_out] == [str(key), str(certificate)]
    assert str(key) not in {item.path for item in found.files}


def test_t11_another_hosts_directory_is_not_taken_for_this_ones(debian: Debian, tmp_path: Path) -> None:
    """A server in a container names paths of its own; files of this host under the same names are not its."""
    with connect(debian.cluster.dsn()) as session:
        found = gather_configuration(session, data_directory=tmp_path)
    assert {item.mode for item in found.files} == {0o600}, "read through the server, which does not tell modes"
    assert (debian.etc / "pg_hba.conf").stat().st_mode & 0o777 == 0o640
