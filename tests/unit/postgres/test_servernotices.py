"""What a server says about its files, by paths and numbers alone."""

from __future__ import annotations

import pytest

from drservice.components.postgres.servernotices import FileNotice, read_notice

FAR = {"/disk/far": 16385, "/disk/far/away": 16386}


@pytest.mark.parametrize(
    ("text", "path", "block"),
    [
        (
            'checksum verification failed in file "./base/5/1259", block 3: calculated AB1 but expected 2',
            "base/5/1259",
            3,
        ),
        # one word order and one kind of quotation mark each; letters right beside the numbers
        ("Seite kaputt: Datei »./base/5/1259_fsm.1«, Block 12: berechnet 1F, erwartet A0C", "base/5/1259_fsm.1", 12),
        ("page endommagée « ./global/1260 », bloc 0 : calculé 9, attendu 12AB", "global/1260", 0),
        ('破損"./base/5/1259"のブロック7で: 計算値はFF0Aですが期待は12です', "base/5/1259", 7),
        ('"./base/5/1259" 파일 손상(블럭 4): 계산된 8192 (기대값 1A)', "base/5/1259", 4),
        ("bad page in /disk/far/PG_15_1/5/9, block 2: A, B", "pg_tblspc/16385/PG_15_1/5/9", 2),
        ("bad page in /disk/far/away/PG_15_1/5/9, block 2: A, B", "pg_tblspc/16386/PG_15_1/5/9", 2),
    ],
)
def test_t14_a_damaged_page_is_named_in_any_language(text: str, path: str, block: int) -> None:
    assert read_notice(text, locations=FAR) == FileNotice(path=path, block=block)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('skipping special file "./base/5/16384"', "base/5/16384"),
        ("überspringe »./pg_xact«", "pg_xact"),
        ('特別"./pg_tblspc/16385/PG_15_1"飛ばす', "pg_tblspc/16385/PG_15_1"),
        ("skipping special file ./pg_tblspc/16385/x", "pg_tblspc/16385/x"),
        ('file "./base/5/1259" has a total of 3 checksum verification failures', "base/5/1259"),
        ('cannot check "./base/5/1259", block 4: read 4097 and page size 8192 differ', "base/5/1259"),
        ('skipping "./base/5/a name"', "base/5/a"),
    ],
)
def test_t8_what_is_no_damaged_page_is_still_named(text: str, path: str) -> None:
    assert read_notice(text) == FileNotice(path=path, block=None)


@pytest.mark.parametrize("text", ["", "NOTICE:  all required WAL segments have been archived", "see ../base/5", "a./b"])
def test_what_names_no_file_is_no_notice(text: str) -> None:
    assert read_notice(text) is None


def test_t14_a_checksum_that_looks_like_a_page_size_is_one_where_the_text_is_known() -> None:
    text = 'checksum verification failed in file "./base/5/1", block 3: calculated 11 but expected 8192'
    assert read_notice(text) == FileNotice(path="base/5/1", block=3)
