"""What is written down of a run beside its results: how often it was started, how long it took, how it ended."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ldis_lightning.files import write_text_atomically

FILE_NAME = "status.json"


@dataclass(frozen=True)
class Record:
    """Of a run.

    Attributes:
        status: the exit status of the last start; None before the first one, and while it runs.
        seconds: of running time, of all starts that have ended.
        begun: when it was started, in seconds since 1970; None when it has ended.
        starts: how often.
    """

    status: int | None = None
    seconds: float = 0.0
    begun: float | None = None
    starts: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Of the run in a folder that is not running. A start whose end nobody has noted, since the sweep was killed,
        ended with its log."""
        found = cls.read_open(folder)
        if found.begun is None:
            return found
        log = folder / "log.txt"
        last = log.stat().st_mtime if log.is_file() else found.begun
        return replace(found, seconds=found.seconds + max(0.0, last - found.begun), begun=None)

    @classmethod
    def read_open(cls, folder: Path) -> "Record":
        """Of the run in a folder, as it is written down: while it runs, `begun` says since when."""
        try:
            return cls(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def start(self) -> "Record":
        """It has been started."""
        return replace(self, status=None, begun=time.time(), starts=self.starts + 1)

    def end(self, status: int | None, seconds: float) -> "Record":
        """It has ended by itself, or, with None, has been ended."""
        return replace(self, status=status, seconds=self.seconds + seconds, begun=None)

    def write(self, folder: Path) -> None:
        """Write it, atomically."""
        text = json.dumps(asdict(self)) + "\n"
        write_text_atomically(folder / FILE_NAME, text)
