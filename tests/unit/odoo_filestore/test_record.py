"""The record of production's damage: complete, readable again, and nothing that was not looked at is called missing."""

from __future__ import annotations

import msgpack
import pytest

from drservice.components.odoo_filestore.capture import _record
from drservice.components.odoo_filestore.record import ATTACHMENT, DocumentRecord, document_record, encode_record
from drservice.components.odoo_filestore.walk import Aside
from drservice.errors import FormatError
from drservice.repository.folders import FilesOutcome
from tests.doubles.filestores import Filestore
from tests.doubles.repositories import Site

NAME = b"ab/" + b"ab" * 20


class StandIn:
    """As much of a reader as the record needs."""

    def __init__(self, site: Site, raw: bytes) -> None:
        record, _ = Filestore(site=site).capture()
        self.record = record
        self.secret = type("Secret", (), {"attachments": {ATTACHMENT: raw}})()


def test_what_could_not_be_looked_at_is_not_called_missing() -> None:
    denied = Aside(unreadable=[(NAME, "Input/output error")])
    assert _record(FilesOutcome(), denied, {NAME}).missing == ()
    assert _record(FilesOutcome(), Aside(), {NAME}).missing == (NAME,)


def test_what_is_below_a_folder_that_could_not_be_listed_is_not_called_missing() -> None:
    denied = Aside(unreadable=[(b"ab", "Stale file handle")])
    other = b"cd/" + b"cd" * 20
    assert _record(FilesOutcome(), denied, {NAME, other}).missing == (other,)


def test_hostile_names_and_reasons_survive(site: Site) -> None:
    record = DocumentRecord(
        missing=(NAME,),
        corrupt=(NAME, b"\xff\n"),
        foreign=(b"\x1b[31m",),
        vanished=(b"-rf",),
        unreadable=((b"a\0b", "Permission denied"),),
        left_out=((b"pipe", "pipe"),),
        root_mode=0o750,
    )
    assert document_record(StandIn(site, encode_record(record))) == record  # type: ignore[arg-type]  # as much as needed


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        msgpack.packb({"v": 2}),
        msgpack.packb({"v": 1}),
        msgpack.packb({**msgpack.unpackb(encode_record(DocumentRecord())), "missing": ["text"]}),
        msgpack.packb({**msgpack.unpackb(encode_record(DocumentRecord())), "unreadable": [[b"x"]]}),
        msgpack.packb({**msgpack.unpackb(encode_record(DocumentRecord())), "left_out": None}),
        msgpack.packb({**msgpack.unpackb(encode_record(DocumentRecord())), "root_mode": 0o4755}),
        msgpack.packb({**msgpack.unpackb(encode_record(DocumentRecord())), "root_mode": True}),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(site: Site, raw: bytes) -> None:
    with pytest.raises(FormatError):
        document_record(StandIn(site, raw))  # type: ignore[arg-type]  # as much of a reader as is needed
