"""The words of a notice, whatever was in the names it is made of."""

from __future__ import annotations

import pytest

from drservice.errors import NotifyPlaceError
from drservice.model.estate import NotifyKind
from drservice.notify.apprise import SCHEMES, require_scheme
from drservice.notify.interface import Notice, Severity


def notice(*, title: str = "backup failed", body: str = "the disk is full", command: str | None = None) -> Notice:
    return Notice(
        event="run:1",
        kind=NotifyKind.FAILURE,
        severity=Severity.BUSINESS_CRITICAL,
        service="erp",
        title=title,
        body=body,
        next_command=command,
    )


def test_the_subject_tells_who_has_to_get_up_and_which_service_it_is() -> None:
    assert notice().subject() == "[business-critical] erp: backup failed"


def test_the_command_to_type_next_is_never_cut() -> None:
    text = notice(body="x" * 100_000, command="drservice backup erp").text()
    assert text.endswith("\n\nNext: drservice backup erp")
    assert len(text) < 5_000


def test_a_subject_is_one_printable_line_of_bounded_length() -> None:
    subject = notice(title="a\r\nBcc: x@example.com\x1b[31m\0\u202e" + "y" * 1000).subject()
    assert subject.isprintable()
    assert len(subject) == 200


def test_a_text_keeps_its_lines_and_loses_what_a_terminal_obeys() -> None:
    assert notice(body="one\ntwo\x1b[2J\x9b\u202e").text() == "one\ntwo [2J  "


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_every_kind_of_url_that_is_taken_is_known_to_the_library() -> None:
    import apprise  # noqa: PLC0415 - it warns when it is imported

    known = {
        scheme
        for plugin in apprise.Apprise().details()["schemas"]
        for scheme in [*(plugin["protocols"] or []), *(plugin["secure_protocols"] or [])]
    }
    assert known >= SCHEMES


@pytest.mark.parametrize(
    "url",
    [
        "dbus://CANARY",
        "file:///CANARY",
        "https://CANARY@x",
        "syslog://CANARY",
        "CANARY",
        "",
        " json://CANARY",
        "glib://",
    ],
)
def test_any_other_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(NotifyPlaceError) as caught:
        require_scheme(url, "ops")
    assert "CANARY" not in f"{caught.value!r} {caught.value.hint}"
    assert "ops" in caught.value.message


def test_the_kind_of_a_url_is_read_in_any_case() -> None:
    require_scheme("JSONS://host", "ops")
