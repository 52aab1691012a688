"""The log: one JSON object a line on standard error. Prompts are not in it unless they were asked for."""

import logging
import sys
import time
from typing import Any

from vargen.core.atomic import dumps

NAME = "vargen.server"


class Lines(logging.Formatter):
    """A record as JSON; what `write` said is in it by name."""

    def format(self, record: logging.LogRecord) -> str:
        said = vars(record).get("said") or {"message": record.getMessage(), "logger": record.name}
        if record.exc_info:
            said = {**said, "traceback": self.formatException(record.exc_info)}
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        return dumps({"time": when, "level": record.levelname.lower(), **said}, default=str)


def start() -> None:
    """Write the log of this process from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, level in ((NAME, logging.INFO), ("litserve", logging.WARNING), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


def write(event: str, **said: Any) -> None:
    """Write a line."""
    logging.getLogger(NAME).info(event, extra={"said": {"event": event, **said}})
