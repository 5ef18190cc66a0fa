"""What is recorded of a clone names no secret, and is read only if it says what can be."""

from __future__ import annotations

import json

import pytest

from drservice.components.git.record import CloneRecord, decode_clone, encode_clone, without_credentials
from drservice.errors import FormatError

RECORD = CloneRecord(
    path="/srv/addons",
    folder="addons",
    bare=False,
    object_format="sha1",
    head="a" * 40,
    branch="refs/heads/main",
    refs={"refs/heads/main": "a" * 40},
    changed=("caf\udce9", "a/b"),
)


def test_a_record_is_read_as_it_was_written() -> None:
    assert decode_clone(encode_clone(RECORD), "the record") == RECORD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("folder", "../up"),
        ("folder", ".."),
        ("head", "--upload-pack=x"),
        ("refs", {"--all": "a" * 40}),
        ("refs", {"refs/heads/x\ncreate refs/heads/y": "a" * 40}),
        ("branch", "HEAD"),
        ("changed", ["../../etc/passwd"]),
        ("changed", ["/etc/passwd"]),
        ("changed", [".git/config"]),
        ("deleted", ["a//b"]),
        ("shallow", ["x"]),
        ("branch", "refs/heads/../../up"),
        ("symbolic", {"refs/../up": "refs/heads/main"}),
        ("symbolic", {"refs/heads/x": "refs/heads/two words"}),
        ("refs", {"refs/heads/.hidden": "a" * 40}),
        ("refs", {"refs/heads/x.lock": "a" * 40}),
        ("refs", {"refs/heads/x\x1b": "a" * 40}),
        ("object_format", "md5"),
        ("remotes", []),
    ],
)
def test_a_record_that_says_what_cannot_be_is_refused(field: str, value: object) -> None:
    fields = {**json.loads(encode_clone(RECORD)), field: value}
    with pytest.raises(FormatError):
        decode_clone(json.dumps(fields).encode(), "the record")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://user:secret@example.com:8443/a.git?token=x#y", "https://example.com:8443/a.git"),
        ("https://ghp_secret@example.com/a", "https://example.com/a"),
        ("ssh://git:secret@example.com/a", "ssh://git@example.com/a"),
        ("git@example.com:group/a.git", "git@example.com:group/a.git"),
        ("/srv/git/a.git", "/srv/git/a.git"),
        ("oauth2:secret@example.com:group/a.git", "oauth2@example.com:group/a.git"),
        ("http::https://user:secret@example.com/a", "http::https://example.com/a"),
        ("ext::sh -c 'curl https://user:secret@example.com/a'", "ext::sh -c 'curl https://example.com/a'"),
        ("https://[broken", "(an address that cannot be read)"),
    ],
)
def test_an_address_is_kept_without_what_gives_access(url: str, kept: str) -> None:
    assert without_credentials(url) == kept
