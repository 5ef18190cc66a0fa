"""The scalar types of the configuration: durations, schedules, references, names, keys and addresses.

Each parser takes the text from the file and returns the value or raises :class:`ValueError` with a sentence
that says what was expected. A parser of something that may hold a secret never repeats its input.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from drservice.model.estate import ODOO_OWN_OPTIONS, ODOO_OWN_PREFIXES
from drservice.model.ids import is_name
from drservice.model.storing import THAWING_CLASSES

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d|w)")
_PERIOD = re.compile(r"([0-9]{1,5})(h|d|w|mo|y)")
_SSH_FIELDS = frozenset({("ssh-ed25519", 2), ("ssh-rsa", 3)})
"""Kind of key, and how many fields it has with its name (RFC 8709, RFC 4253 section 6.6)."""
_RSA_BYTES = 256
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_RECIPIENT = re.compile(rf"age1[{_BECH32}]{{58}}")
_OTHER_RECIPIENTS = ("age1tag1", "age1tagpq1", "age1yubikey1", "age1pq1")
"""With the 1 that ends the name of a kind (BIP 173): an ordinary recipient may well begin with age1pq."""
_ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?")
_SECRET_SCHEMES = ("file:", "env:", "command:")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ODOO_OPTION = re.compile(r"[a-z][a-z0-9_]{0,62}")
_CONNINFO_WORD = re.compile(r"\s*([A-Za-z_]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)(?=\s|\Z)")
_SECRET_PARAMETERS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}

OFF: Final = "off"
NO_LITERAL = (
    "a password must not stand in the configuration; use a password file (passfile=... or PGPASSFILE),"
    " a service file (service=...) or peer authentication"
)


def parse_duration(text: str) -> timedelta:
    """Read ``250ms``, ``5s``, ``30m``, ``2h``, ``14d`` or ``12w``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a duration such as 250ms, 5s, 30m, 2h, 14d or 12w, not {_shown(text)}")
    value = int(match[1]) * _UNITS[match[2]]
    if not value:
        raise ValueError("expected a duration longer than zero")
    return value


def format_duration(value: timedelta) -> str:
    """Write a duration with the largest unit that divides it, as :func:`parse_duration` reads it."""
    for unit in reversed(_UNITS):
        if value % _UNITS[unit] == timedelta(0):
            return f"{value // _UNITS[unit]}{unit}"
    raise ValueError(f"{value} is finer than a millisecond")


def check_period(text: str) -> str:
    """Accept a span of the calendar: ``36h``, ``14d``, ``12w``, ``24mo`` or ``7y``."""
    match = _PERIOD.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"expected a period such as 36h, 14d, 12w, 24mo or 7y, not {_shown(text)}")
    return text


def check_name(text: str) -> str:
    """Accept a name of a service, component, host, calendar or drill."""
    if not is_name(text):
        raise ValueError(
            f"expected a name of up to 63 of a-z, 0-9, - and _ that begins and ends with a letter or digit,"
            f" not {_shown(text)}"
        )
    return text


def check_reference(text: str) -> str:
    """Accept a reference to a secret. The text is never repeated: it may be the secret itself."""
    if not text.startswith(_SECRET_SCHEMES):
        raise ValueError(
            "a secret must be a reference (file:/absolute/path, env:NAME or command:PROGRAM ARG ...),"
            " never the secret itself"
        )
    scheme, _, rest = text.partition(":")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("expected an absolute path after file: (programs run in different folders)")
    if scheme == "env" and not _ENVIRONMENT_NAME.fullmatch(rest):
        raise ValueError("expected the name of an environment variable after env:")
    if scheme == "command" and not rest.strip():
        raise ValueError("expected a program after command:")
    return text


def check_recipient(text: str) -> str:
    """Accept an age recipient, X25519 or SSH, in its one spelling; a mistyped letter is found here."""
    if text.upper().startswith("AGE-SECRET-KEY-"):
        raise ValueError("this is a secret identity; a recipient begins with age1 (`age-keygen -y` prints it)")
    if text.startswith(_OTHER_RECIPIENTS) or text == "scrypt":
        raise ValueError(
            "only X25519 (age1...) and SSH (ssh-ed25519, ssh-rsa) recipients are supported by this version"
        )
    if text.startswith(("ssh-", "ecdsa-", "sk-")):
        return _check_ssh(text)
    if not _RECIPIENT.fullmatch(text) or not _bech32_holds(text):
        raise ValueError(
            "expected an age recipient: age1 and 58 letters and digits with a valid checksum, as `age-keygen` prints it"
        )
    return text


def _check_ssh(text: str) -> str:
    """Accept a public key as ``ssh-keygen`` writes it; the comment is dropped, because recipients are compared."""
    kind, _, rest = text.partition(" ")
    if kind not in {known for known, _ in _SSH_FIELDS}:
        raise ValueError(f"age cannot use an SSH key of type {kind}: only ssh-ed25519 and ssh-rsa")
    encoded = rest.split()[0] if rest.split() else ""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:
        blob = b""
    fields = []
    while len(blob) >= 4:
        length = int.from_bytes(blob[:4])
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :] if len(blob) >= 4 + length else b"?"
    lengths = [len(field) for field in fields[1:]]
    whole = not blob and bool(fields) and fields[0] == kind.encode()
    if not whole or (kind, len(fields)) not in _SSH_FIELDS or (kind == "ssh-ed25519" and lengths != [32]):
        raise ValueError("expected a public SSH key (ssh-ed25519 or ssh-rsa) as `ssh-keygen` writes it, in one line")
    if kind == "ssh-rsa" and lengths[1] < _RSA_BYTES:
        raise ValueError("an RSA key for age has at least 2048 bits")
    return f"{kind} {encoded}"


def _bech32_holds(text: str) -> bool:
    """Compare the checksum of BIP 173, which age's recipients carry."""
    prefix, _, data = text.rpartition("1")
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    values += [_BECH32.index(c) for c in data]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if (top >> bit) & 1 else 0
    return check == 1


def parse_signer_key(text: str) -> bytes:
    """Read ``ed25519:`` and 32 bytes in Base64 or hexadecimal."""
    scheme, colon, encoded = text.partition(":")
    key = _decode_key(encoded) if colon and scheme == "ed25519" else None
    if key is None or len(key) != 32:
        raise ValueError("expected ed25519: and the 32 bytes of a public key in Base64 or 64 hex digits")
    return key


def _decode_key(encoded: str) -> bytes | None:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", encoded):
        return bytes.fromhex(encoded)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def check_dsn(text: str) -> str:
    """Accept a libpq connection string (words or URI) without a password; it is never repeated."""
    if text.startswith(("postgresql://", "postgres://")):
        return check_catalogue_url(text)
    position = 0
    while text[position:].strip():
        match = _CONNINFO_WORD.match(text, position)
        if match is None:
            raise ValueError("expected libpq words such as `host=db1 dbname=plant user=drservice`")
        if match[1].lower() in _SECRET_PARAMETERS:
            raise ValueError(NO_LITERAL)
        position = match.end()
    return text


def check_catalogue_url(text: str) -> str:
    """Accept a ``postgresql://`` URI without a password."""
    parts = _split_url(text)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError("expected `embedded` or postgresql://USER@HOST/DATABASE")
    if ":" in parts.netloc.rpartition("@")[0]:
        raise ValueError(NO_LITERAL)
    if any(name.lower() in _SECRET_PARAMETERS for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError(NO_LITERAL)
    return text


def check_repository_url(text: str) -> str:
    """Accept ``s3://BUCKET/PREFIX?region=...`` or ``file:///PATH``, without credentials."""
    parts = _split_url(text)
    if "@" in parts.netloc or any(
        "secret" in name.lower() or "key" in name.lower() or "token" in name.lower()
        for name, _ in parse_qsl(parts.query, keep_blank_values=True)
    ):
        raise ValueError(
            "credentials must not stand in the address; use the provider's environment variables,"
            " profile or instance role"
        )
    if parts.scheme == "s3" and parts.netloc:
        return text
    if parts.scheme == "file" and not parts.netloc and unquote(parts.path).strip("/"):
        return text
    raise ValueError("expected s3://BUCKET/PREFIX?region=REGION or file:///ABSOLUTE/PATH")


def check_storage_class(text: str) -> str:
    """Accept the name of a storage class from which an object can be read at once."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", text):
        raise ValueError("expected a storage class in capitals, such as STANDARD_IA")
    if text in THAWING_CLASSES:
        raise ValueError(
            f"what is stored as {text} must be asked for hours before it can be read, and a restore cannot wait;"
            " expected a class that is read at once, such as STANDARD_IA or GLACIER_IR"
        )
    return text


def check_bucket_owner(text: str) -> str:
    """Accept the id of an account."""
    if not re.fullmatch(r"[A-Za-z0-9._$@+=,-]{1,128}", text):
        raise ValueError("expected the id of an account, such as '111122223333'")
    return text


def check_web_url(text: str) -> str:
    """Accept an https URL without a password."""
    parts = _split_url(text)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
        raise ValueError("expected https://HOST/... without user and password")
    return text


def check_redis_url(text: str) -> str:
    """Accept a ``redis://`` or ``rediss://`` URL without a password."""
    parts = _split_url(text)
    if ":" in parts.netloc.rpartition("@")[0]:
        raise ValueError("a password must not stand in the address; give a reference as `password`")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("expected a port between 0 and 65535") from None
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected redis://HOST:PORT/NUMBER")
    return text


def _split_url(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ValueError("expected a URL") from error


def check_absolute_path(text: str) -> str:
    """Accept an absolute path without ``..``."""
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError(f"expected an absolute path, not {_shown(text)}")
    return text


def check_odoo_option(text: str) -> str:
    """Accept an option of Odoo's configuration file that a recovery environment does not set itself."""
    if not _ODOO_OPTION.fullmatch(text):
        raise ValueError(f"expected the name of an option such as server_wide_modules, not {_shown(text)}")
    if text in ODOO_OWN_OPTIONS or text.startswith(ODOO_OWN_PREFIXES):
        raise ValueError(f"{text} is set by the recovery environment itself")
    return text


def check_odoo_option_text(text: str) -> str:
    """Accept what stands behind the equals sign of an option, on one line."""
    if not text.isprintable():
        raise ValueError("expected one line of text")
    return text


def check_timezone(text: str) -> str:
    """Accept a name of the IANA time zone database."""
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"expected a time zone such as Europe/Berlin, not {_shown(text)}") from error
    return text


def check_date(text: str) -> str:
    """Accept a day as YYYY-MM-DD."""
    try:
        date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"expected a day as YYYY-MM-DD, not {_shown(text)}") from error
    return text


def duration_between(shortest: str, longest: str) -> Callable[[timedelta], timedelta]:
    """Return what accepts a duration within these limits."""
    least, most = parse_duration(shortest), parse_duration(longest)

    def check(value: timedelta) -> timedelta:
        if not least <= value <= most:
            raise ValueError(f"expected from {shortest} to {longest}")
        return value

    return check


def parse_heartbeat(text: str) -> timedelta | Literal["off"]:
    """Read how often to beat: a duration from 200ms to 1m, or ``off``."""
    if text == OFF:
        return OFF
    return duration_between("200ms", "1m")(parse_duration(text))


def format_heartbeat(value: timedelta | Literal["off"]) -> str:
    """Write it as :func:`parse_heartbeat` reads it."""
    return format_duration(value) if isinstance(value, timedelta) else value


def check_lease(value: timedelta) -> timedelta:
    """Accept a lease that survives a pause of its host and ends in a time that somebody can wait for."""
    if not timedelta(seconds=5) <= value <= timedelta(hours=1):
        raise ValueError("expected 5s to 1h: hosts renew a lease three times while it runs")
    return value


def parse_rate(text: str) -> int:
    """Read ``20MB/s`` or ``1GB/s`` (10^6 and 10^9 bytes); slower than 1MB/s nothing big would ever end."""
    found = re.fullmatch(r"([0-9]{1,5})(MB|GB)/s", text)
    rate = int(found[1]) * {"MB": 10**6, "GB": 10**9}[found[2]] if found is not None else 0
    if not 10**6 <= rate <= 10**10:
        raise ValueError(f"expected 1MB/s to 10GB/s, not {_shown(text)}")
    return rate


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``127.0.0.1:8484``, ``[::1]:8484`` or ``0.0.0.0:8484``: an address of this machine and a port."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        address = None
    bracketed = host.startswith("[") and host.endswith("]")
    if address is None or bracketed != (address.version == 6) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(f"expected ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484, not {_shown(text)}")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"the port {port} does not exist; expected 1 to 65535")
    return bare, int(port)


def check_public_url(text: str) -> str:
    """Accept the address that people use: https, or http on this machine; without a path, so that links join it."""
    parts = _split_url(text)
    if not _ORIGIN.fullmatch(text) or not _has_valid_port(parts):  # urlsplit drops line ends, so the text is matched
        raise ValueError("expected https://HOST[:PORT] without user, path or query")
    if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
        raise ValueError("expected https://HOST[:PORT]; http is for 127.0.0.1, ::1 and localhost only")
    return text


def _has_valid_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def check_network(text: str) -> str:
    """Accept an address or a network such as 10.0.0.0/8."""
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"expected an address or a network such as 10.0.0.0/8, not {_shown(text)}") from error
    return text


def _shown(text: str) -> str:
    """Quote what was found, shortened; control characters become escapes."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
