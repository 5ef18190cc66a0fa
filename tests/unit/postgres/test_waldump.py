"""pg_waldump's output, as PostgreSQL 15 printed it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from drservice.components.postgres import waldump
from drservice.components.postgres.waldump import EndKind, Outcome
from drservice.errors import WalError
from drservice.model.wal import Lsn

GEOMETRY = waldump.Geometry(segment_bytes=1 << 20, wal_block_bytes=8192)

TRANSACTIONS = """\
rmgr: Transaction len (rec/tot):    405/   405, tx:        725, lsn: 0/00917E68, prev 0/00917E20, desc: COMMIT 2026-11-23 07:17:27.548917 UTC; inval msgs: catcache 80 catcache 79 snapshot 2608 relcache 16384
rmgr: Transaction len (rec/tot):     34/    34, tx:        726, lsn: 0/00918058, prev 0/00918018, desc: COMMIT 2026-11-23 07:17:27.555443 UTC
rmgr: Transaction len (rec/tot):     34/    34, tx:        727, lsn: 0/009180C0, prev 0/00918080, desc: ABORT 2026-11-23 07:17:27.560494 UTC
rmgr: Transaction len (rec/tot):    242/   242, tx:        728, lsn: 0/00918128, prev 0/009180E8, desc: PREPARE gid a: 2026-11-23 07:17:27.561026 UTC
rmgr: Transaction len (rec/tot):     42/    42, tx:          0, lsn: 0/00918358, prev 0/00918260, desc: COMMIT_PREPARED 728: 2026-11-23 07:17:27.561723 UTC
rmgr: Transaction len (rec/tot):     42/    42, tx:          0, lsn: 0/00918388, prev 0/00918358, desc: ABORT_PREPARED 729: 2026-11-23 07:17:27.561918 UTC
rmgr: Transaction len (rec/tot):     46/    46, tx:        730, lsn: 0/00918438, prev 0/009183F8, desc: COMMIT 2026-11-23 07:17:27.562568 UTC; subxacts: 731
"""  # noqa: E501 - printed so

XLOG = """\
rmgr: XLOG        len (rec/tot):     30/    30, tx:          0, lsn: 0/00900028, prev 0/00841680, desc: NEXTOID 24576
rmgr: XLOG        len (rec/tot):     49/  8241, tx:        725, lsn: 0/0090A570, prev 0/009089D0, desc: FPI_FOR_HINT , blkref #0: rel 1663/5/2608 fork fsm blk 2 FPW
rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/009184A0, prev 0/00918468, desc: CHECKPOINT_ONLINE redo 0/918468; tli 1; prev tli 1; fpw true; xid 0:732; oid 24576; multi 1; offset 0; oldest xid 716 in DB 1; oldest multi 1 in DB 1; oldest/newest commit timestamp xid: 0/0; oldest running xid 732; online
rmgr: XLOG        len (rec/tot):     98/    98, tx:          0, lsn: 0/00918518, prev 0/009184A0, desc: RESTORE_POINT my point with ; semi
rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/009185E8, prev 0/009185C0, desc: SWITCH
"""  # noqa: E501 - printed so


def parse(text: str) -> list[waldump.Event]:
    return list(waldump.parse_records(text.split("\n"), geometry=GEOMETRY))


def test_commits_and_aborts_are_told_with_xid_time_and_end() -> None:
    events = parse(TRANSACTIONS)
    found = [(e.xid, e.outcome) for e in events if isinstance(e, waldump.TransactionEnd)]
    assert found == [
        (725, Outcome.COMMIT),
        (726, Outcome.COMMIT),
        (727, Outcome.ABORT),
        (728, Outcome.COMMIT_PREPARED),
        (729, Outcome.ABORT_PREPARED),
        (730, Outcome.COMMIT),
    ]
    first = events[0]
    assert isinstance(first, waldump.TransactionEnd)
    assert first.at == datetime(2026, 11, 23, 7, 17, 27, 548917, tzinfo=UTC)
    # It ends at the page border; the next record follows behind the page's header at 0/918018.
    assert first.end == Lsn.parse("0/918000")


def test_checkpoints_and_restore_points_are_told() -> None:
    checkpoint, point = parse(XLOG)
    assert isinstance(checkpoint, waldump.Checkpoint)
    assert (checkpoint.redo, checkpoint.timeline, checkpoint.shutdown) == (Lsn.parse("0/918468"), 1, False)
    assert checkpoint.end == Lsn.parse("0/918518") == point.lsn
    assert isinstance(point, waldump.RestorePoint)
    assert point.name == "my point with ; semi"


@pytest.mark.parametrize(
    "line",
    [
        TRANSACTIONS.splitlines()[1].replace("UTC", "CET"),
        TRANSACTIONS.splitlines()[1].replace("2026-11-23", "23.11.2026"),
        TRANSACTIONS.splitlines()[4].replace(" 728:", ""),
    ],
)
def test_a_commit_that_cannot_be_read_is_an_error(line: str) -> None:
    with pytest.raises(WalError):
        parse(line)


@pytest.mark.parametrize(
    ("lsn", "total", "end"),
    [
        ("0/917E68", 405, "0/918000"),
        ("0/918058", 34, "0/918080"),
        ("0/917FE0", 32, "0/918000"),
        ("0/917FE0", 33, "0/918020"),
        ("0/8FFFE0", 64, "0/900048"),  # over a segment border: the long header
        ("0/900028", 8241, "0/902078"),
    ],
)
def test_the_end_of_a_record_counts_page_headers_and_alignment(lsn: str, total: int, end: str) -> None:
    assert waldump.record_end(Lsn.parse(lsn), total, geometry=GEOMETRY) == Lsn.parse(end)


@pytest.mark.parametrize(
    ("status", "stderr", "kind", "position"),
    [
        (0, "", EndKind.WHOLE, None),
        (
            1,
            "pg_waldump: error: error in WAL record at 0/9184A0: invalid record length at 0/918518: wanted 24, got 0",
            EndKind.STOPPED,
            "0/918518",
        ),
        (
            1,
            "pg_waldump: error: error in WAL record at 0/9184A0: invalid record length at 0/00918518: expected 24",
            EndKind.STOPPED,
            "0/918518",
        ),
        (
            1,
            "pg_waldump: fatal: error in WAL record at 0/1500060: invalid magic number 0000 in log segment",
            EndKind.STOPPED,
            "0/1500060",
        ),
        (
            1,
            'pg_waldump: error: could not find file "000000010000000000000004": No such file or directory',
            EndKind.CONTINUES,
            None,
        ),
        (1, "pg_waldump: error: could not find a valid record after 0/900000", EndKind.STOPPED, "0/900000"),
    ],
)
def test_the_end_of_valid_wal_is_told_from_how_the_program_ended(
    status: int, stderr: str, kind: EndKind, position: str | None
) -> None:
    end = waldump.interpret_end(status, stderr)
    assert end.kind is kind
    assert end.position == (Lsn.parse(position) if position else None)


@pytest.mark.parametrize(
    ("status", "stderr"),
    [
        (1, "pg_waldump: error: WAL segment size must be a power of two between 1 MB and 1 GB"),
        (1, 'pg_waldump: error: could not open file "x": Permission denied'),
        (1, ""),
        (-9, ""),
        (-9, "pg_waldump: error: error in WAL record at 0/9184A0: invalid record length at 0/918518: x"),
        (127, "not found"),
    ],
)
def test_a_failure_is_never_taken_for_the_end_of_wal(status: int, stderr: str) -> None:
    with pytest.raises(WalError, match=f"status {status}"):
        waldump.interpret_end(status, stderr)
