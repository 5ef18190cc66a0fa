"""pg_control by its layout tables."""

from __future__ import annotations

import struct

import pytest

from drservice.components.postgres import controlfile
from drservice.errors import FormatError, UnsupportedClusterError
from drservice.model.wal import Lsn

CATALOGS = {13: 202007201, 14: 202107181, 15: 202209061, 16: 202307071, 17: 202406281, 18: 202506291}


def control_bytes(major: int, **changes: int) -> bytes:
    """Write pg_control field by field as the C structure of ``major`` has them, with natural alignment."""
    values = {"version": {17: 1700, 18: 1800}.get(major, 1300), "state": 6, "segment": 16 << 20, **changes}
    raw = bytearray()

    def put(code: str, *numbers: float) -> None:
        for number in numbers:
            size = struct.calcsize(code)
            raw.extend(bytes(-len(raw) % size))
            raw.extend(struct.pack("<" + code, number))

    put("Q", 18_000_000_000_000_000_001)
    put("I", values["version"], CATALOGS[major])
    put("i", values["state"])
    put("q", 1_700_000_000)
    put("Q", 0x5000060, 0x5000028)  # checkPoint; the copy of the checkpoint begins with redo
    put("I", 3, 2)
    put("?", 1)
    if major >= 17:
        put("i", 1)
    put("Q", (7 << 32) | 815)
    put("I", 24576, 1, 0, 722, 1, 1, 1)
    put("q", 1_699_999_999)
    put("I", 0, 0, 815)
    raw.extend(bytes(-len(raw) % 8))
    put("Q", 1000, 0x4000000)  # unlogged, min recovery point
    put("I", 2)
    put("Q", 0x3000028, 0x3000100)
    put("?", 1)
    put("i", 2)
    put("?", 0)
    put("i", 100, 8, 10, 5, 64)
    put("?", 1)
    put("I", 8)
    put("d", 1234567.0)
    put("I", 8192, 131072, 8192, values["segment"], 64, 32, 1996, 2048)
    put("?", 1)
    put("I", 1)
    if major >= 18:
        put("?", 1)
    raw.extend(bytes(range(32)))
    raw.extend(bytes(-len(raw) % 4))
    raw.extend(struct.pack("<I", controlfile.crc32c(bytes(raw))))
    return bytes(raw).ljust(8192, b"\0")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_gives_the_values_of_rfc_3720(data: bytes, expected: int) -> None:
    assert controlfile.crc32c(data) == expected


@pytest.mark.parametrize("major", sorted(CATALOGS))
def test_every_supported_version_is_read_by_its_layout(major: int) -> None:
    control = controlfile.parse_control(control_bytes(major))
    assert control.major == major
    assert control.system_id == "18000000000000000001"
    assert control.state is controlfile.ClusterState.IN_PRODUCTION
    assert (control.checkpoint, control.redo) == (Lsn(0x5000060), Lsn(0x5000028))
    assert (control.timeline, control.previous_timeline) == (3, 2)
    assert control.next_xid == (7 << 32) | 815
    assert control.checkpoint_at.timestamp() == 1_699_999_999
    assert (control.min_recovery_point, control.min_recovery_timeline) == (Lsn(0x4000000), 2)
    assert (control.backup_start, control.backup_end) == (Lsn(0x3000028), Lsn(0x3000100))
    assert control.backup_end_required
    assert control.wal_level is controlfile.WalLevel.LOGICAL
    assert (control.max_connections, control.max_worker_processes, control.max_wal_senders) == (100, 8, 10)
    assert (control.max_prepared_transactions, control.max_locks_per_transaction) == (5, 64)
    assert control.track_commit_timestamp
    assert (control.block_bytes, control.relation_segment_blocks) == (8192, 131072)
    assert (control.wal_block_bytes, control.wal_segment_bytes) == (8192, 16 << 20)
    assert control.has_checksums


@pytest.mark.parametrize("position", [0, 8 + 8, 40, 180, 255, 291])
def test_one_flipped_bit_is_a_format_error(position: int) -> None:
    raw = bytearray(control_bytes(15))
    raw[position] ^= 0x10
    with pytest.raises(FormatError):
        controlfile.parse_control(bytes(raw))


def test_the_layout_of_another_version_never_yields_numbers() -> None:
    raw = bytearray(control_bytes(18))
    struct.pack_into("<I", raw, 8, 1300)
    with pytest.raises(FormatError, match="CRC"):
        controlfile.parse_control(bytes(raw))


def test_an_unknown_version_or_byte_order_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedClusterError, match="1201"):
        controlfile.parse_control(control_bytes(15, version=1201))


@pytest.mark.parametrize("raw", [b"", bytes(15), control_bytes(15)[:100]])
def test_a_short_file_is_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError, match="bytes only"):
        controlfile.parse_control(raw)


@pytest.mark.parametrize("changes", [{"segment": 3 << 20}, {"segment": 0}, {"state": 9}])
def test_values_no_server_writes_are_refused_even_with_a_right_crc(changes: dict[str, int]) -> None:
    with pytest.raises(FormatError):
        controlfile.parse_control(control_bytes(15, **changes))


def test_t12_a_half_written_file_is_read_again_until_it_is_whole() -> None:
    whole = control_bytes(15)
    torn = whole[:100] + bytes(8092)
    answers = [torn, torn, whole]
    control, raw = controlfile.read_control(lambda: answers.pop(0), pause_seconds=0)
    assert raw == whole
    assert control.major == 15
    assert answers == []


def test_t12_a_file_that_is_never_whole_is_an_error_after_the_last_try() -> None:
    torn = control_bytes(15)[:100] + bytes(8092)
    answers = [torn] * 5
    with pytest.raises(FormatError, match="read 4 times"):
        controlfile.read_control(answers.pop, tries=4, pause_seconds=0)
    assert len(answers) == 1


@pytest.mark.parametrize("major", sorted(CATALOGS))
def test_t12_the_poisoned_copy_differs_in_checkpoint_and_crc_only(major: int) -> None:
    raw = control_bytes(major)
    poisoned = controlfile.poisoned_copy(raw)
    assert controlfile.parse_control(poisoned).checkpoint == Lsn(0xDEAD)
    crc = 292 if major == 18 else 288
    changed = {index for index in range(len(raw)) if raw[index] != poisoned[index]}
    assert changed <= set(range(32, 40)) | set(range(crc, crc + 4))
    with pytest.raises(FormatError):
        controlfile.poisoned_copy(raw[:32] + b"x" + raw[33:])
