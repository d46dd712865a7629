"""The end of a run's log, however long it is and whatever is in it."""

import os
import re
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WINDOW = 1 << 16
"""Bytes at the end of a log that are looked at."""


def log_end(log: Path, lines: int = 15, window: int = WINDOW) -> list[str]:
    """The last lines of a log that may grow, without colours and empty lines; none if there is no such file.

    A progress bar that redraws itself counts as lines.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - window))
            content = file.read()
    except OSError:
        return []
    text = ANSI.sub("", content.decode("utf-8", errors="replace"))
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()][-lines:]


def last_line(log: Path) -> str:
    """The last line of a log that may grow; empty while there is none."""
    return "".join(log_end(log, 1, 4096))
