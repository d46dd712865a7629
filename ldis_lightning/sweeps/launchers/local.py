"""Runs as processes on this machine."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.launchers.launcher import Job, Launcher, Outcome, Watcher
from ldis_lightning.sweeps.locks import Lock, holder, take
from ldis_lightning.sweeps.logs import last_line

LOCK = "run.lock"
"""In the folder of a run; held by its process."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class Local(Launcher):
    """Processes on this machine, each with GPUs of its own where there are any.

    When the sweep ends, however it does, its runs get SIGTERM and save what they have trained (where the sweep is
    killed, on Linux alone). The folder of each run is locked by its process, so that no second one ever writes there.

    Args:
        jobs: how many at a time, at least 1.
        threads_per_job: threads of each; default: the cores shared out.
        gpus_per_job: GPUs of each, of those in CUDA_VISIBLE_DEVICES or of the machine; default: all shared out, at
            least one each, which then several jobs may share. 0: none.
        poll_seconds: how often to look after them.

    Raises:
        UserError: there are not enough GPUs for `gpus_per_job`.
    """

    def __init__(
        self,
        jobs: int = 1,
        threads_per_job: int | None = None,
        gpus_per_job: int | None = None,
        poll_seconds: float = 0.1,
    ) -> None:
        self.jobs = jobs
        self.threads_per_job = threads_per_job or max(1, (os.cpu_count() or 1) // jobs)
        self.poll_seconds = poll_seconds
        self._places = gpu_sets(jobs, gpus_per_job)

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        """Run the jobs in order, `self.jobs` at a time."""
        waiting = list(reversed(jobs))
        places = list(reversed(self._places))
        running: list[_Process] = []
        try:
            while waiting or running:
                while waiting and places:
                    place = places.pop()
                    job = waiting.pop()
                    running.append(_Process(job, self.command(job), place, self._environment(place)))
                    watcher.started(running[-1].job)
                time.sleep(self.poll_seconds)
                for process in list(running):
                    if (outcome := process.outcome()) is not None:
                        running.remove(process)
                        places.append(process.place)
                        yield outcome
                    else:
                        watcher.running(process.job, last_line(process.job.log))
        finally:
            for process in running:
                process.ask_to_stop()
            for process in running:
                process.wait_or_kill()

    def command(self, job: Job) -> list[str]:
        """What is run for a job."""
        return job.command

    def _environment(self, gpus: str | None) -> dict[str, str]:
        """This process's, with the thread count, live output, and this very package importable (a bare checkout)."""
        root = str(Path(__file__).resolve().parents[3])
        path = os.environ.get("PYTHONPATH")
        threads = str(self.threads_per_job)
        return {
            **os.environ,
            **({} if gpus is None else {VISIBLE: gpus}),
            "OMP_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
        }


@dataclass
class _Process:
    """A running job."""

    job: Job
    command: list[str]
    place: str | None
    environment: dict[str, str]
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        lock = lock_run(self.job.log.parent)
        try:
            with self.job.log.open("ab") as log:  # the child keeps copies of both handles
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    pass_fds=[lock.descriptor],
                    preexec_fn=_end_with_parent(),
                )
            lock.sign(self.process.pid)
        finally:
            lock.release()

    def outcome(self) -> Outcome | None:
        """The outcome, or None while it runs."""
        status = self.process.poll()
        return None if status is None else Outcome(self.job, status, time.monotonic() - self.begun)

    def ask_to_stop(self) -> None:
        """Tell it to save what it has trained, and to end."""
        self.process.terminate()

    def wait_or_kill(self, patience: float = 30.0) -> None:
        """Wait for the end that it was asked for; insist when it takes too long."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def lock_run(folder: Path) -> Lock:
    """Lock the folder of a run for its process.

    Raises:
        UserError: another process is at work in it.
    """
    lock = take(folder / LOCK)
    if lock is None:
        raise UserError(f"{folder} is in use by {holder(folder / LOCK)}; wait for it, or end it with `kill`")
    return lock


def gpu_sets(jobs: int, gpus_per_job: int | None) -> list[str | None]:
    """What each of the jobs at a time sees as CUDA_VISIBLE_DEVICES; None to leave it as it is.

    Raises:
        UserError: there are not enough GPUs for `gpus_per_job`.
    """
    if gpus_per_job == 0:
        return [""] * jobs
    gpus = visible_gpus()
    if gpus_per_job is None:
        if not gpus or jobs == 1:
            return [None] * jobs
        each = max(1, len(gpus) // jobs)
        return [",".join(gpus[(i * each + k) % len(gpus)] for k in range(each)) for i in range(jobs)]
    if len(gpus) < jobs * gpus_per_job:
        there = f"there are {len(gpus)} ({', '.join(gpus)})" if gpus else "there are none"
        raise UserError(
            f"{jobs} jobs at a time with {gpus_per_job} GPUs each need {jobs * gpus_per_job}, and {there}: lower "
            f"`--jobs` or `--gpus_per_job`"
        )
    return [",".join(gpus[i * gpus_per_job : (i + 1) * gpus_per_job]) for i in range(jobs)]


def visible_gpus() -> list[str]:
    """The names of this machine's GPUs as CUDA_VISIBLE_DEVICES has them, of those that it allows."""
    allowed = os.environ.get(VISIBLE)
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]  # asks the driver; makes no context


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does before it becomes the run: asks Linux for SIGTERM when the sweep dies. The end of the terminal
    is left to the sweep, since training does not save at that signal."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def ask() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it has died meanwhile
            os._exit(1)

    return ask
