from __future__ import annotations

import pytest

from drservice.model.schedule import Cron


@pytest.mark.parametrize(
    "text", ["*/5 * * * *", "0 1 * * MON-FRI", "0 0 1 jan,jul *", "0 6 1 1,4,7,10 *", "5-50/5 * * * 7"]
)
def test_a_cron_expression_is_accepted(text: str) -> None:
    assert Cron.parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "* * * *",
        "60 * * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "x * * * *",
        "1, * * * *",
        "@daily",
        "1-2-3 * * * *",
        "*/ * * * *",
        "٣ * * * *",
        "0 1 30 2 *",
        "0 1 31 2,4,6,9,11 *",
    ],
)
def test_what_is_no_cron_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|runs backward|never happen"):
        Cron.parse(text)
