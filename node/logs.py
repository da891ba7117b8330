"""Logging: one line per event on standard error, plain or JSON; never a patient's name or identifier.

Call sites pass facts as keyword-like pairs in the message (``series=… state=…``). Text that came from a peer goes
through `printable` first, so that it can neither break a line nor fake one.
"""

from __future__ import annotations

import json
import logging
import sys
import time

_PLAIN = "%(asctime)s %(levelname)-7s %(name)s %(message)s"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(level: str = "INFO", form: str = "plain") -> None:
    """Send the log to standard error at `level`, as ``plain`` text or ``json`` lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else logging.Formatter(_PLAIN))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "httpcore", "uvicorn", "alembic", "dicomweb_client", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # These quote values of a header, which may be a patient's, or of a request, with its line breaks; the first of them
    # tells each failure by a traceback.
    for name in ("retrying", "pydicom", "highdicom", "openjpeg", "pynetdicom.utils", "pynetdicom.dul"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("pynetdicom").setLevel(logging.ERROR)


def printable(text: str, limit: int = 64) -> str:
    """Return a peer's text safe for one log line: control characters shown as '?', at most `limit` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
