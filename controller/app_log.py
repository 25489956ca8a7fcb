"""How log lines look: text for people, JSON on request. Goes to standard error only."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime

from controller.domain.words import one_line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A line for people. What others wrote cannot steer their terminal or forge a second line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        """The line without its traceback."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


class Repeats(logging.Filter):
    """Lets the same warning or error through once a minute, and then says how often it was.

    While a database is away five loops ask it several times a second: a full disk of logs helps
    nobody.
    """

    EVERY_S = 60.0
    KEPT = 500

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._said: dict[tuple[str, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; see logging.Filter."""
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        cause = str(record.exc_info[1]) if record.exc_info else ""
        key = (record.name, message, cause)
        with self._lock:
            at, more = self._said.pop(key, (None, 0))
            if at is not None and 0 <= record.created - at < self.EVERY_S:
                self._said[key] = (at, more + 1)
                return False
            if len(self._said) >= self.KEPT:
                self._said.pop(next(iter(self._said)))
            self._said[key] = (record.created, 0)
        if more:
            record.msg, record.args = f"{message} (and {more:,} times more since it was said)", ()
        return True


def set_up_log(form: str, level: str) -> None:
    """Send our log lines (and warnings of libraries) to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        text = "%(asctime)s %(levelname)-7s %(name)s  %(message)s"
        handler.setFormatter(TextFormatter(text, datefmt="%H:%M:%S"))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("lighterman", "controller"):
        logging.getLogger(name).setLevel(level.upper())
