"""What a Retry-After header means."""

from __future__ import annotations

import pytest

from workers.ticketing.http import retry_after

NOW = 1_790_000_000.0  # Mon, 21 Sep 2026 14:13:20 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("99999999999999999999", 3600.0),
        ("9" * 400, 3600.0),
        ("Mon, 21 Sep 2026 14:14:20 GMT", 60.0),
        ("Mon, 21 Sep 2026 14:13:00 GMT", 0.0),
        ("Mon, 21 Sep 2099 14:13:00 GMT", 3600.0),
        ("Monday, 21-Sep-26 14:14:20 GMT", 60.0),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Mon, 99 Sep 2026 99:14:20 GMT", None),
    ],
)
def test_seconds_or_a_date_an_hour_at_most(text: str | None, seconds: float | None) -> None:
    assert retry_after(text, NOW) == seconds
