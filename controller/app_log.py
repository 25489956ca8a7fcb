"""How log lines look: text for people, JSON on request. Goes to standard error only."""

import json
import logging
import sys
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


def set_up_log(form: str, level: str) -> None:
    """Send our log lines (and warnings of libraries) to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        text = "%(asctime)s %(levelname)-7s %(name)s  %(message)s"
        handler.setFormatter(TextFormatter(text, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("lighterman", "controller"):
        logging.getLogger(name).setLevel(level.upper())
