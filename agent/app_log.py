"""How the agent's log lines look: text for people, JSON on request. Goes to standard error only."""

import json
import logging
import sys
from datetime import UTC, datetime

from agent.domain.words import in_line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        body = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A line for people. What others wrote cannot steer their terminal or forge a second line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        """The line without its traceback; what to do, for which errors take a second, in it."""
        record.message = in_line(record.message)
        return super().formatMessage(record)


def set_up_log(form: str) -> None:
    """Send our log lines, and those of libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if form == "json"
        else TextFormatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
