"""What Slurm knows of a sweep's jobs. Asked here and not through submitit, which needs accounting and asks rarely.

`squeue` knows every job that lives and, for some minutes (MinJobAge), those that have ended. What it has forgotten,
`sacct` knows where the cluster keeps accounts; and the status with which a job's script has ended is in a file of its
own, which the script has written.
"""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ldis_lightning.errors import UserError

TIMEOUT = 60.0
"""Seconds for one answer of Slurm, whose commands give up before."""
FAILED = ("FAILED", "OUT_OF_MEMORY")
CUT_SHORT = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED")
FORGOTTEN = "FORGOTTEN"  # our own: nobody knows what became of it
ENDED = ("COMPLETED", *FAILED, *CUT_SHORT, FORGOTTEN)
"""States of a job that does not come back by itself; in any other it waits, runs or is put back into the queue."""

Key = tuple[str, int]
"""A job: its name, which is the sweep's own for each array, and its index in the array."""


@dataclass(frozen=True)
class State:
    """What Slurm says of a job.

    Attributes:
        name: e.g. `RUNNING`.
        id: Slurm's, e.g. `12_3`.
        seconds: how long it has run, since it was last requeued.
        reason: why it waits, or has ended.
    """

    name: str
    id: str
    seconds: float = 0.0
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether Slurm will do no more for it."""
        return self.name in ENDED


class Silent(Exception):
    """Slurm does not answer at present."""


class Queue:
    """Asks Slurm about jobs by their names, which, unlike numbers, are never another's."""

    def __init__(self) -> None:
        self.has_accounts = True

    def states(self, names: Iterable[str]) -> dict[Key, State]:
        """The states of all jobs of these names that Slurm's controller remembers.

        Raises:
            Silent: the controller is down, or too busy.
        """
        wanted = ",".join(sorted(set(names)))
        options = ("--me", "--states", "all", "--array", "--noheader", "--name", wanted)
        answer = ask("squeue", *options, "--format", "%j|%K|%i|%T|%M|%r")
        return dict(_in_queue(line) for line in answer.splitlines() if line.count("|") >= 5)

    def forgotten(self, names: Iterable[str]) -> dict[Key, State]:
        """The states of jobs of these names in Slurm's accounts; empty where it keeps none or they are out of reach."""
        if not self.has_accounts:
            return {}
        options = ("--noheader", "--parsable2", "--allocations", "--starttime", "now-30days")
        fields = "JobName,JobID,State,ElapsedRaw"
        try:
            answer = ask("sacct", *options, "--name", ",".join(sorted(set(names))), "--format", fields)
        except Silent as error:
            self.has_accounts = "accounting storage is disabled" not in str(error)
            return {}
        return dict(_in_accounts(line) for line in answer.splitlines() if line.count("|") == 3 and "[" not in line)


def ask(*command: str) -> str:
    """What a command of Slurm says.

    Raises:
        Silent: it fails, or says nothing for a minute; the message is its last line.
        UserError: there is no such command.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, env=plain, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Silent(f"{command[0]} says nothing for {TIMEOUT:.0f} s") from error
    except OSError as error:
        raise UserError(
            f"`{command[0]}` cannot be run ({error.strerror}); --launcher slurm needs Slurm's commands"
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} failed with status {done.returncode}"]
        raise Silent(lines[-1])
    return done.stdout


def _in_queue(line: str) -> tuple[Key, State]:
    name, index, number, state, elapsed, reason = line.split("|", 5)
    reason = "" if reason == "None" else reason
    return (name, _index(index)), State(state, number, _seconds(elapsed), reason)


def _in_accounts(line: str) -> tuple[Key, State]:
    name, number, state, elapsed = line.split("|")
    words = state.split()  # `CANCELLED by 1000`
    seconds = float(elapsed) if elapsed.isdigit() else 0.0
    return (name, _index(number.partition("_")[2])), State(words[0] if words else "UNKNOWN", number, seconds)


def _index(text: str) -> int:
    return int(text) if text.isdigit() else 0  # `N/A`: not of an array


def _seconds(elapsed: str) -> float:
    """Seconds of `[days-][[hours:]minutes:]seconds`; 0 for what is none, as `INVALID`."""
    days, _, clock = elapsed.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [days or "0", *parts]):
        return 0.0
    seconds = sum(int(part) * 60**power for power, part in enumerate(reversed(parts)))
    return float(int(days or 0) * 86400 + seconds)


def read_status(path: Path) -> int | None:
    """The status that a job's script has left in a file; None while there is none."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None
