"""Runs as processes on this machine."""

import os
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldis_lightning.sweeps.launchers.launcher import Job, Launcher, Outcome, Watcher, last_line


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
        root = str(Path(__file__).resolve().parents[3])
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
        with self.job.log.open("ab") as log:  # the child keeps its own copy of the handle
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
