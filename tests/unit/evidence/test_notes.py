"""Signed notes against the published example of Go's sumdb/note, and what is no note."""

from __future__ import annotations

import pytest

from drservice.errors import CheckpointError
from drservice.evidence.merkle import MerkleTree, leaf_hash
from drservice.evidence.notes import (
    Checkpoint,
    open_note,
    parse_checkpoint,
    parse_vkey,
    read_proof,
    sign_note,
    split_note,
    write_proof,
)
from tests.doubles.evidence import HOST, LOG, STRANGER

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
NOTE = f"{TEXT}\n— PeterNeumann {SIGNATURE}\n".encode()


def test_the_published_note_opens_with_its_key() -> None:
    text, signed = open_note(NOTE, [parse_vkey(PETER)])
    assert text == TEXT
    assert [verifier.vkey for verifier in signed] == [PETER]


def test_a_changed_note_does_not_open() -> None:
    with pytest.raises(CheckpointError, match="does not match"):
        open_note(NOTE.replace(b"answer", b"key"), [parse_vkey(PETER)])


def test_signatures_of_strangers_are_passed_over_and_alone_are_not_enough() -> None:
    note = sign_note(TEXT, [STRANGER, LOG])
    assert open_note(note, [LOG.verifier])[1] == (LOG.verifier,)
    with pytest.raises(CheckpointError, match="known key"):
        open_note(note, [HOST.verifier])


def test_a_key_under_another_name_is_another_key() -> None:
    with pytest.raises(CheckpointError, match="hash"):
        parse_vkey(PETER.replace("Peter", "Petra"))
    with pytest.raises(CheckpointError, match="no Ed25519"):
        parse_vkey("Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\n\n\xe2\x80\x94 x AAAAAAAA\n",
        TEXT.encode(),
        NOTE[:-1],
        NOTE.replace("—".encode(), b"-"),
        NOTE + b"more\n",
        NOTE.replace(b"answer", b"ans\x07er"),
        NOTE.replace(b"AM=", b"AN="),  # another spelling of the same bytes
        b"x" * (1 << 20) + NOTE,
    ],
)
def test_what_is_no_note_is_refused(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        split_note(raw)


def test_notes_that_nobody_could_read_are_not_written() -> None:
    for text, signers in (("no newline", [LOG]), (TEXT, [])):
        with pytest.raises(ValueError, match="note"):
            sign_note(text, signers)


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    checkpoint = Checkpoint(origin="o", size=7, root=bytes(range(32)), extensions=("time x",))
    assert parse_checkpoint(checkpoint.text) == checkpoint
    for text in ("o\n07\nAA==\n", "o\n7\n", checkpoint.text[:-1], checkpoint.text.replace("AAEC", "A"), "o\n\n7\n"):
        with pytest.raises(CheckpointError):
            parse_checkpoint(text)


def test_a_proof_is_read_as_it_was_written() -> None:
    tree = MerkleTree(leaf_hash(bytes([number])) for number in range(5))
    note = sign_note(Checkpoint(origin="o", size=5, root=tree.root()).text, [LOG])
    text = write_proof(index=3, proof=tree.inclusion(3, 5), checkpoint=note)
    assert read_proof(text) == (3, tree.inclusion(3, 5), note)
    assert read_proof(text.replace("index", "extra AAAA\nindex"))[0] == 3
    for other in ("", text.replace("@v1", "@v2"), text.replace("index 3", "index 03"), text.replace("=\n", "\n", 1)):
        with pytest.raises(CheckpointError):
            read_proof(other)
