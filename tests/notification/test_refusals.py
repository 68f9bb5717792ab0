"""What the log and health say while mail servers refuse us."""

from __future__ import annotations

import pytest

from services.notification.adapters.refusals import Refusals, RefusedBecauseOfUs


def test_the_log_has_one_line_a_minute_that_counts_and_health_says_so_until_a_mail_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="services.notification")
    now = 0.0
    refusals = Refusals(lambda: now)
    refusals.check()
    for second in range(200):
        now = float(second)
        refusals.note("554 5.7.1")
        if second % 3 == 0:
            # Other domains take our mail meanwhile.
            refusals.accepted()
    counted = [int(record.getMessage().partition("such line: ")[2].partition(",")[0]) for record in caplog.records]
    assert counted == [1, 60, 60, 60]
    with pytest.raises(RefusedBecauseOfUs, match=r"554 5\.7\.1"):
        refusals.check()
    refusals.accepted()
    refusals.check()
    now = 300.0
    refusals.accepted()
    refusals.accepted()
    assert [record.getMessage() for record in caplog.records][4:] == ["mail servers take our mail again"]
    now = 301.0
    refusals.note("530 5.7.0")
    assert len(caplog.records) == 5
    with pytest.raises(RefusedBecauseOfUs):
        refusals.check()
