"""Brings the peers and a place for objects: packages from Debian's archive, and a bucket behind TLS on loopback.

Nothing of the system is touched: packages are resolved and downloaded with apt into a folder of their own, unpacked,
and run with the C library they were built for. So a newer release's program runs here, as any user.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from racewatch import quietly

SUITE = "trixie"
"""Debian 12's pgBackRest 2.45 has no block incrementals yet."""
OLDEST = (2, 55)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ARCHIVE = "http://deb.debian.org/debian"
_REQUEST = re.compile(
    rb"serve s3: (?:(?P<put>CREATE OBJECT|COPY|\w+ multipart upload)|(?P<get>GET OBJECT)|(?P<head>HEAD )"
    rb"|(?P<list>LIST |GET BUCKET|list multipart)|(?P<delete>(?i:delete)))"
)
"""What the server writes about each request that it answers."""


def cache_folder() -> Path:
    """Return where peers are kept between runs, readable for PostgreSQL's user."""
    if os.geteuid() == 0:
        return Path("/var/cache/drservice-bench")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drservice-bench"


def fetch_pgbackrest(folder: Path) -> Path:
    """Return a pgBackRest of Debian's archive that runs here, from the folder if it is there already."""
    program = folder / "pgbackrest"
    if not program.exists():
        root = _unpack(folder, ["pgbackrest"])
        libraries = next((root / "usr/lib").glob("*-linux-gnu"))
        loader = next(libraries.glob("ld-linux-*.so.*"))
        text = f'#!/bin/sh\nexec {loader} --library-path {libraries} {root}/usr/bin/pgbackrest "$@"\n'
        staged = program.with_suffix(".new")
        staged.write_text(text)
        staged.chmod(0o755)
        staged.rename(program)
    version = quietly([str(program), "version"], folder=folder).decode().split()[-1]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise SystemExit(f"pgBackRest {version} is older than 2.55; delete {folder} to fetch it again")
    return program


def fetch_barman(folder: Path) -> Path:
    """Return a folder with Debian's barman-cloud and the Python that it runs in, fetched if it is not there already."""
    place = folder / "barman"
    root = place / "root"
    if not (place / ".ready").exists():
        place.mkdir(exist_ok=True)
        _unpack(place, ["barman-cli-cloud", "python3-boto3"])
        (place / ".ready").touch()
    return root


def _unpack(folder: Path, packages: list[str]) -> Path:
    for name in ("lists/partial", "archives/partial", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()  # an empty system: everything that is needed is fetched
    (folder / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_ARCHIVE} {SUITE} main\n")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    quietly([*apt, "update"], folder=folder)
    quietly([*apt, "install", "-y", "--download-only", "--no-install-recommends", *packages], folder=folder)
    for package in sorted((folder / "archives").glob("*.deb")):
        quietly(["dpkg", "-x", str(package), str(folder / "root")], folder=folder)
    quietly(["chmod", "-R", "a+rX", str(folder)], folder=folder)
    return folder / "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket of a server on loopback, and what is needed to use it."""

    name: str
    address: str
    key: str
    secret: str
    certificate: Path
    root: Path
    log: Path

    def requests(self) -> Counter[str]:
        """Return how many requests of each kind the server has answered, whoever sent them."""
        with self.log.open("rb") as lines:
            return Counter(str(found.lastgroup) for line in lines if (found := _REQUEST.search(line)))

    def url(self, prefix: str) -> str:
        """Return drservice's address of it."""
        endpoint = quote(f"https://{self.address}", safe="")
        return f"s3://{self.name}/{prefix}?region=us-east-1&endpoint={endpoint}&ca={self.certificate}"

    def folder(self, prefix: str) -> Path:
        """Return where the server keeps objects below a prefix."""
        return self.root / self.name / prefix

    @property
    def environment(self) -> Mapping[str, str]:
        """Return variables with the credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def bucket_server(folder: Path, *, is_counting: bool = True) -> Iterator[Bucket]:
    """Run ``rclone serve s3`` with TLS on a folder, with one bucket in it.

    Args:
        folder: where its files lie.
        is_counting: it writes down each request (:meth:`Bucket.requests`), and looks at its folders again after 100 ms,
            because a race removes what a turn left. Without, neither: a look reads a folder as a whole, so that a
            request costs the more the more objects lie beside its own, which no other store does.
    """
    root = folder / "buckets"
    (root / "race").mkdir(parents=True)
    certificate, private = folder / "server.crt", folder / "server.key"
    _make_certificate(certificate, private)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    key, secret = "AKIAIOSFODNN7TESTING", "wJalrXUtnFEMI7K7MDENGbPxRfiCYTESTINGKEY0"
    with (folder / "rclone.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "rclone"),
                "serve",
                "s3",
                f"--addr=127.0.0.1:{port}",
                f"--auth-key={key},{secret}",
                f"--cert={certificate}",
                f"--key={private}",
                "--vfs-cache-mode=off",
                f"--dir-cache-time={'100ms' if is_counting else '24h'}",
                # With it each object is read and hashed whenever it is listed or asked about, 0.45 s for 360 MB: no
                # other store does that, and it would be measured instead of the programs.
                "--etag-hash=",
                "--config=/dev/null",
                *(["-vv"] if is_counting else []),  # a line for each request
                str(root),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _await_server(port, certificate, process)
        yield Bucket(
            name="race",
            address=f"localhost:{port}",
            key=key,
            secret=secret,
            certificate=certificate,
            root=root,
            log=folder / "rclone.log",
        )
    finally:
        process.terminate()
        process.wait()


def _make_certificate(certificate: Path, private: Path) -> None:
    """Make a key and a certificate of this machine for two days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _await_server(port: int, certificate: Path, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    deadline = time.monotonic() + 30
    while True:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                context.wrap_socket(plain, server_hostname="localhost"),
            ):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"rclone serve s3 does not answer: {error}") from error
            time.sleep(0.05)


def machine() -> dict[str, object]:
    """Return what kind of machine this is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {"cores": os.cpu_count(), "processor": model, "memory_bytes": memory, "kernel": os.uname().release}
