"""A document by its SHA-1: from passes and sets, with every byte checked, whatever is damaged beside it."""

from __future__ import annotations

import pytest

from drservice.errors import DamagedObjectError
from drservice.model.documents import DocumentPart
from drservice.operations import finddocument
from drservice.operations.finddocument import find_document
from drservice.repository import documentsets
from drservice.repository.documentsets import cut
from drservice.repository.verify import Depth, Verified, verify_component
from tests.doubles.filestores import Filestore, name_of
from tests.doubles.repositories import noise
from tests.integration.filestore.test_placing_sets import put


def found(filestore: Filestore, content: bytes) -> list[tuple[str, bytes]]:
    """Return where a document was found, with its bytes."""
    sha1 = name_of(content)[-40:]
    return [
        (item.source.split()[0], b"".join(item.content))
        for item in find_document(filestore.site.repository(), filestore.scope, sha1)
    ]


def verified(filestore: Filestore) -> Verified:
    return verify_component(
        filestore.site.repository(),
        filestore.scope,
        depth=Depth.DATA,
        percent=100,
        chosen=lambda *_: True,
        advance=lambda _: None,
    )


def test_a_document_is_found_in_passes_and_sets(filestore: Filestore) -> None:
    both, only = noise(5000, seed=1), noise(6000, seed=2)
    filestore.add(both)
    filestore.capture()
    put(filestore, [both, only])
    assert found(filestore, both) == [("snapshot", both), ("document", both)]
    assert found(filestore, only) == [("document", only)]
    assert found(filestore, b"never there") == []


def test_a_big_document_is_found_in_its_parts(filestore: Filestore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documentsets, "PART_BYTES", 1000)
    monkeypatch.setattr(finddocument, "PART_BYTES", 1000)
    big = noise(2500)
    name, ranges = name_of(big), [cut(name_of(big), len(big), offset) for offset in (0, 1000, 2000)]
    parts = [DocumentPart(name=name, size=2500, offset=r.start, data=big[r.start : r.stop]) for r in ranges]
    put(filestore, parts=parts[:1])
    assert found(filestore, big) == []
    put(filestore, parts=parts[1:], seconds=1)
    assert found(filestore, big) == [("document", big)]


def test_a_damaged_copy_says_so_and_the_next_one_is_good(filestore: Filestore) -> None:
    content = noise(5000)
    good, bad = put(filestore, [content]), put(filestore, [content, b"beside it"], seconds=1)
    assert verified(filestore).findings == []
    data = filestore.site.store.read(bad.key)
    filestore.site.store.delete(bad.key)
    filestore.site.store.create(bad.key, data[:-1] + bytes([data[-1] ^ 1]))
    first, second = find_document(filestore.site.repository(), filestore.scope, name_of(content)[-40:])
    with pytest.raises(DamagedObjectError):
        b"".join(first.content)
    assert b"".join(second.content) == content
    assert good.id in second.source
    result = verified(filestore)
    assert [finding.key for finding in result.findings] == [bad.key]
    assert result.document_sets == 2


def test_content_with_another_sha1_is_never_handed_out_as_whole(filestore: Filestore) -> None:
    content = noise(5000)
    filestore.add(content)
    filestore.capture()
    filestore.folder.joinpath(name_of(content)).write_bytes(b"damaged in production")
    filestore.capture()
    assert found(filestore, content) == [("snapshot", content)], "the pass that has it damaged does not offer it"
