"""How the runs of a sweep are started: as processes on this machine. Clusters are further subclasses of `Launcher`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """One `ldis fit --config CONFIG`, whose output goes to the file `log`."""

    name: str
    config: Path
    log: Path

    @property
    def command(self) -> list[str]:
        """What to run, in this interpreter's environment and the current folder."""
        return [sys.executable, "-m", "ldis_lightning", "fit", "--config", str(self.config)]


@dataclass(frozen=True)
class Outcome:
    """A job that has ended: its exit status (0 is success) and how many seconds it took."""

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
    the generator is closed early (Ctrl-C), it ends what it started.
    """

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        """Run the jobs; yield the outcome of each."""
        raise NotImplementedError


class Local(Launcher):
    """Processes on this machine.

    Args:
        jobs: how many at a time.
        threads_per_job: threads of each; default: the cores shared out.
        poll_seconds: how often to look after them.
    """

    def __init__(self, jobs: int = 1, threads_per_job: int | None = None, poll_seconds: float = 0.5) -> None:
        self.jobs = jobs
        self.threads_per_job = threads_per_job or max(1, (os.cpu_count() or 1) // jobs)
        self.poll_seconds = poll_seconds

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        """Run the jobs in order, `self.jobs` at a time."""
        waiting = list(reversed(jobs))
        running: list[_Process] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    running.append(_Process(waiting.pop(), self._environment()))
                    watcher.started(running[-1].job)
                time.sleep(self.poll_seconds)
                for process in list(running):
                    if (outcome := process.outcome()) is not None:
                        running.remove(process)
                        yield outcome
                    else:
                        watcher.running(process.job, last_line(process.job.log))
        finally:
            for process in running:
                process.stop()

    def _environment(self) -> dict[str, str]:
        """This process's, with the thread count, live output, and this very package importable (a bare checkout)."""
        root = str(Path(__file__).resolve().parents[2])
        path = os.environ.get("PYTHONPATH")
        threads = str(self.threads_per_job)
        return {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
        }


@dataclass
class _Process:
    """A running job."""

    job: Job
    environment: dict[str, str]
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        with self.job.log.open("wb") as log:  # the child keeps its own copy of the handle
            self.process = subprocess.Popen(
                self.job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.environment
            )

    def outcome(self) -> Outcome | None:
        """The outcome, or None while it runs."""
        status = self.process.poll()
        return None if status is None else Outcome(self.job, status, time.monotonic() - self.begun)

    def stop(self, patience: float = 30.0) -> None:
        """End the process: ask, wait until it has saved what it has trained, insist."""
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_line(log: Path, window: int = 4096) -> str:
    """The last line of a log that grows, where a progress bar that redraws itself counts as lines."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - window))
        lines = _lines(file.read())
    return lines[-1] if lines else ""


def log_end(log: Path, lines: int = 15) -> list[str]:
    """The last lines of a log."""
    return _lines(log.read_bytes())[-lines:]


def _lines(content: bytes) -> list[str]:
    text = ANSI.sub("", content.decode("utf-8", errors="replace"))
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
