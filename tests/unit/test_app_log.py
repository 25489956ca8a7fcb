"""The controller's log: what is said again and again is said once a minute, with how often."""

import io
import logging

from controller.app_log import Repeats, TextFormatter


def written(records: list[logging.LogRecord], *, filtered: bool = True) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter("%(levelname)s %(message)s"))
    if filtered:
        handler.addFilter(Repeats())
    for record in records:
        handler.handle(record)
    return stream.getvalue().splitlines()


def said(at: float, text: str = "no answer", level: int = logging.ERROR) -> logging.LogRecord:
    record = logging.LogRecord("lighterman.app", level, "f", 1, "tick: %s", (text,), None)
    record.created = at
    return record


def test_the_same_trouble_is_said_once_a_minute() -> None:
    hour = [said(second / 5) for second in range(5 * 3600)]
    lines = written(hour)
    assert len(lines) == 60
    assert lines[:2] == [
        "ERROR tick: no answer",
        "ERROR tick: no answer (and 299 times more since it was said)",
    ]
    assert len(written(hour, filtered=False)) == 5 * 3600  # control: what it would be


def test_other_words_and_good_news_are_said_at_once() -> None:
    assert len(written([said(0), said(1, "refused"), said(2), said(3, "refused")])) == 2
    news = [said(second, level=logging.INFO) for second in range(5)]
    assert len(written(news)) == 5


def test_a_clock_that_is_set_back_does_not_silence() -> None:
    assert len(written([said(1000), said(10)])) == 2


def test_no_more_is_kept_than_needed() -> None:
    flood = Repeats()
    for number in range(3 * Repeats.KEPT):
        assert flood.filter(said(number / 1000, f"trouble {number}"))
    assert len(flood._said) <= Repeats.KEPT
