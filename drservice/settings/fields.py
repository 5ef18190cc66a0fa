"""The types of single settings, and what all groups of settings have in common.

Each joins a parser of ``scalars`` with what the JSON Schema says about it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from drservice.model.calendar import NamedPeriod, Window
from drservice.model.checks import Expectation
from drservice.model.schedule import Cron
from drservice.settings import scalars

T = TypeVar("T")


def _from_text(parse: Callable[[str], T], expected: str) -> BeforeValidator:
    """Turn a parser of text into a validator that refuses everything else with the same words."""

    def validate(value: object) -> T:
        if not isinstance(value, str):
            raise ValueError(f"expected {expected}")  # noqa: TRY004 - pydantic collects ValueError only
        return parse(value)

    return BeforeValidator(validate)


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Turn a parser into a check that keeps the text as it was written."""

    def check(text: str) -> str:
        parse(text)
        return text

    return check


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Name: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_name),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$"}),
]
Duration: TypeAlias = Annotated[
    timedelta,
    _from_text(scalars.parse_duration, "a duration with its unit, such as 250ms, 5s, 30m, 2h or 14d"),
    PlainSerializer(scalars.format_duration),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d|w)$"}),
]
Period: TypeAlias = Annotated[
    str,
    _from_text(scalars.check_period, "a period with its unit, such as 36h, 14d, 12w, 24mo or 7y"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(h|d|w|mo|y)$"}),
]
Schedule: TypeAlias = Annotated[
    str,
    _from_text(_checked(Cron.parse), "a cron expression in quotes, such as '0 1 * * *'"),
    WithJsonSchema({"type": "string", "description": "minute hour day month weekday"}),
]
SecretReference: TypeAlias = Annotated[
    str,
    _from_text(scalars.check_reference, "a reference: file:/absolute/path, env:NAME or command:PROGRAM"),
    WithJsonSchema({"type": "string", "pattern": "^(file:/|env:|command:)"}),
]
Recipient: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_recipient),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^(age1[02-9ac-hj-np-z]{58}$|ssh-(ed25519|rsa) [A-Za-z0-9+/]+={0,2}( |$))",
        }
    ),
]
SignerKey: TypeAlias = Annotated[
    str,
    AfterValidator(_checked(scalars.parse_signer_key)),
    WithJsonSchema({"type": "string", "pattern": "^ed25519:"}),
]
AbsolutePath: TypeAlias = Annotated[
    str, AfterValidator(scalars.check_absolute_path), WithJsonSchema({"type": "string", "pattern": "^/"})
]
ConnectTimeout: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("1s", "5m"))]
ReadTimeout: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("1s", "15m"))]
RetryTime: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("1s", "1h"))]
WalInterval: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("20ms", "1m"))]
IdleInterval: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("1s", "1h"))]
HeartbeatInterval: TypeAlias = Annotated[
    timedelta | Literal["off"],
    _from_text(scalars.parse_heartbeat, "a duration with its unit, such as 1s, or off"),
    PlainSerializer(scalars.format_heartbeat),
    WithJsonSchema({"type": "string", "pattern": "^(off|[0-9]+(ms|s|m))$"}),
]
StorageClass: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_storage_class),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z][A-Z0-9_]{0,62}$"}),
]
BucketOwner: TypeAlias = Annotated[
    str,
    _from_text(scalars.check_bucket_owner, "an account in quotes, such as '111122223333'"),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9._$@+=,-]{1,128}$"}),
]
RepositoryUrl: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_repository_url),
    WithJsonSchema({"type": "string", "pattern": "^(s3://|file:///)"}),
]
Dsn: TypeAlias = Annotated[str, AfterValidator(scalars.check_dsn)]
WebUrl: TypeAlias = Annotated[str, AfterValidator(scalars.check_web_url)]
RedisUrl: TypeAlias = Annotated[str, AfterValidator(scalars.check_redis_url)]
PublicUrl: TypeAlias = Annotated[str, AfterValidator(scalars.check_public_url)]
Listen: TypeAlias = Annotated[str, _from_text(_checked(scalars.parse_listen), "ADDRESS:PORT in quotes")]
Network: TypeAlias = Annotated[str, AfterValidator(scalars.check_network)]
Rate: TypeAlias = Annotated[
    str,
    _from_text(_checked(scalars.parse_rate), "a rate in quotes, such as '20MB/s'"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(MB|GB)/s$"}),
]
OdooTimeout: TypeAlias = Annotated[Duration, AfterValidator(scalars.duration_between("10s", "2h"))]
OdooOption: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_odoo_option),
    WithJsonSchema({"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}),
]
OdooOptionText: TypeAlias = Annotated[
    str,
    AfterValidator(scalars.check_odoo_option_text),
    WithJsonSchema({"type": "string", "pattern": r"^[^\x00-\x1f\x7f]*$"}),
]
Lease: TypeAlias = Annotated[Duration, AfterValidator(scalars.check_lease)]
AvoidWindow: TypeAlias = Annotated[str, AfterValidator(_checked(Window.parse))]
PeriodDays: TypeAlias = Annotated[str, AfterValidator(_checked(NamedPeriod.parse))]
Timezone: TypeAlias = Annotated[str, AfterValidator(scalars.check_timezone)]
Day: TypeAlias = Annotated[
    str,
    _from_text(scalars.check_date, "a day as YYYY-MM-DD"),
    WithJsonSchema({"type": "string", "format": "date"}),
]
Text: TypeAlias = Annotated[str, Field(min_length=1)]
References: TypeAlias = Annotated[
    list[SecretReference],
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^(file:/|env:|command:)"},
                {"type": "array", "items": {"type": "string", "pattern": "^(file:/|env:|command:)"}},
            ]
        }
    ),
]


Expected: TypeAlias = Annotated[
    str,
    _from_text(_checked(Expectation.parse), "an expectation in quotes, such as '= 0', '>= 1' or 'unchanged'"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


def check_catalogue(text: str) -> str:
    """Accept the embedded catalogue or the address of one."""
    return text if text == "embedded" else scalars.check_catalogue_url(text)


class Closed(BaseModel):
    """A group of settings: strict, without unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)
