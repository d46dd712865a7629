"""The slot for ways to start the runs of a sweep, and what it is given: jobs and someone to tell about them."""

import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """One `ldis` command, whose output goes to the end of the file `log`.

    Attributes:
        name: what people are told, e.g. `pre_mask=AlphaChannel seed 0`.
        arguments: of `ldis`, e.g. `("fit", "--config", ".../point.yaml", "--ckpt_path", "last")`.
        log: in a folder that belongs to this job alone.
        nodes: machines, `trainer.num_nodes`.
        processes: ranks on each of them, `trainer.devices`.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    nodes: int = 1
    processes: int = 1

    @property
    def command(self) -> list[str]:
        """What to run, in this interpreter's environment and the current folder."""
        return [sys.executable, "-m", "ldis_lightning", *self.arguments]


@dataclass(frozen=True)
class Outcome:
    """A job that has ended.

    Attributes:
        status: 0 is success; `PREEMPTED_STATUS` (75) has saved a checkpoint and wants to be started again; anything
            else has failed, a negative number by that signal.
        seconds: how long it took.
    """

    job: Job
    status: int
    seconds: float


class Watcher(Protocol):
    """Told of what happens between outcomes."""

    def started(self, job: Job) -> None:
        """A job has begun."""

    def running(self, job: Job, line: str) -> None:
        """A job's latest line of output."""


class Launcher:
    """The slot for ways to run jobs.

    A subclass runs all jobs in any order and yields each as it ends, failed ones too: one failure stops nothing. When
    the generator is closed early (Ctrl-C, a spent budget), it ends what it has started, so that this saves what it has
    trained, or, where jobs live on without the sweep, leaves them.

    Attributes:
        folder: where it may keep files of its own; the sweep says.
    """

    folder: Path = Path("launcher")

    def held(self, jobs: Sequence[Job]) -> Mapping[Job, str]:
        """The jobs that still live from an earlier sweep, and what to call them. Their folders must be left alone, and
        `run` does not start them again."""
        return {}

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        """Run the jobs; yield the outcome of each."""
        raise NotImplementedError
