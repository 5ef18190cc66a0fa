"""What is a document and what is not."""

from __future__ import annotations

import pytest

from drservice.components.odoo_filestore.names import is_document, is_document_file, is_document_folder, sha1_of_name

DIGEST = "ab" + "0f" * 19


@pytest.mark.parametrize("name", [f"ab/{DIGEST}", f"ab0/{DIGEST}"])
def test_the_first_digits_and_the_digest_make_a_document(name: str) -> None:
    assert is_document(name)
    assert sha1_of_name(name).hex() == DIGEST


@pytest.mark.parametrize(
    "name",
    [
        f"cd/{DIGEST}",
        f"ab/{DIGEST}\n",
        f"ab/{DIGEST[:-1]}",
        f"ab/{DIGEST}0",
        f"ab//{DIGEST}",
        f"a/{DIGEST}",
        f"ab0f/{DIGEST}",
        f"AB/{DIGEST.upper()}",
        f"../ab/{DIGEST}",
        f"s3://bucket/{DIGEST}",
        "ab",
        "",
    ],
)
def test_everything_else_is_none(name: str) -> None:
    assert not is_document(name)


def test_the_checklist_and_files_beside_documents_are_none() -> None:
    assert not is_document_folder("checklist")
    assert is_document_folder("ab")
    assert is_document_file("ab", DIGEST)
    assert not is_document_file("ab", f"{DIGEST}.gc")
    assert not is_document_file("cd", DIGEST)
