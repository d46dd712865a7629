"""Carrying a sweep out: who may work in its folder, what is started, what is noted of how it ended."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import FrameType, TracebackType
from typing import Any, Self

import yaml
from rich.console import Console

from ldis_lightning.cli import PREEMPTED_STATUS, Stopped
from ldis_lightning.errors import UserError
from ldis_lightning.files import write_text_atomically
from ldis_lightning.sweeps.finished import PLAN
from ldis_lightning.sweeps.launchers import Job, Launcher, Outcome
from ldis_lightning.sweeps.launchers.local import LOCK
from ldis_lightning.sweeps.locks import Lock, holder, take
from ldis_lightning.sweeps.plan import Plan
from ldis_lightning.sweeps.progress import SweepProgress, counts, duration
from ldis_lightning.sweeps.records import Record
from ldis_lightning.sweeps.runs import STOPPED, Run, State

SWEEP_LOCK = "sweep.lock"
LOOK_EVERY = 0.5
"""Seconds between two looks at a process that is waited for."""


@dataclass
class Ending:
    """What is not done when a sweep ends.

    Attributes:
        failed: runs that have failed, now or before.
        stopped: runs that were stopped by a signal and have saved what they had.
        beyond_budget: runs that were not started, since the budget would not have sufficed.
        blocked: runs of which the shared training is not done.
    """

    failed: list[Run] = field(default_factory=list)
    stopped: list[Run] = field(default_factory=list)
    beyond_budget: list[Run] = field(default_factory=list)
    blocked: list[Run] = field(default_factory=list)
    spent: float = 0.0
    budget: float | None = None

    @property
    def status(self) -> int:
        """Of the process: 1 if something failed, else 75 if something is left to do, else 0."""
        if self.failed:
            return 1
        return PREEMPTED_STATUS if self.stopped or self.beyond_budget or self.blocked else 0

    def lines(self) -> Iterator[str]:
        """The same for people."""
        for run in self.failed:
            yield f"failed: {run.name}, see {run.job.log}"
        if self.failed:
            yield "run the same command with --retry to try again what has failed"
        for run in self.stopped:
            yield f"stopped: {run.name}; run the same command again to go on"
        if self.beyond_budget:
            yield (
                f"not started: {len(self.beyond_budget)} runs, since {duration(3600 * self.spent)} of the budget of "
                f"{duration(3600 * (self.budget or 0))} are spent; raise `sweep.budget` to go on"
            )
        if self.blocked:
            yield f"not started: {len(self.blocked)} runs, since the training that they test is not done"


class Execution:
    """A sweep while it runs. Entering it takes the folder, leaving it gives the folder back.

    Args:
        plan: what to run.
        launcher: how.
        console: where to say what happens.
        retry: whether what has failed is run again.

    Raises:
        UserError: another sweep is at work in the folder, or the folder cannot be written.
    """

    def __init__(self, plan: Plan, launcher: Launcher, console: Console, retry: bool) -> None:
        self.plan, self.launcher, self.console, self.retry = plan, launcher, console, retry
        self.ending = Ending(budget=plan.sweep.budget)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        lock = lock_sweep(self.plan.out)
        self._stack.callback(lock.release)
        self._stack.enter_context(ended_by_signals())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def run(self) -> Ending:
        """Run what is not done.

        Raises:
            UserError: a finished run has not measured the sweep's metric.
        """
        self._wait_for_orphans()
        text = yaml.dump(self.plan.summary(), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
        write_text_atomically(self.plan.out / PLAN, text)
        if self.plan.trainings:
            self._run_all(self.plan.trainings)
            trained = {run.seed for run in self.plan.trainings if run.is_done()}
            self.ending.blocked = [r for r in self.plan.runs if r.seed not in trained and not r.is_done()]
            blocked = set(self.ending.blocked)
            self._run_all([run for run in self.plan.runs if run not in blocked])
        else:
            self._run_all(self.plan.runs)
        self.ending.spent = self._spent()
        return self.ending

    # ---- One stage

    def _run_all(self, runs: Sequence[Run]) -> None:
        held = self.launcher.held([run.job for run in runs])  # before the states: what ends meanwhile is done
        states = {run: run.state() for run in runs}
        self._announce(runs, states)
        failed = [run for run in runs if states[run] is State.FAILED and not self.retry]
        for run in failed:
            self.ending.failed.append(run)
        pending = [run for run in runs if states[run] is not State.DONE and run not in failed]
        past = [Record.read(run.folder).seconds for run in runs if states[run] is State.DONE]
        with SweepProgress([run.job for run in pending], self.console, self._steps, past) as progress:
            for run in failed:
                progress.say(f"{run.name} has failed before; the end of {run.job.log}:")
                progress.say_end(run.job)
            while pending:
                wave = pending[: self._affordable(runs, len(pending))]
                if not wave:
                    self.ending.beyond_budget += pending
                    return
                del pending[: len(wave)]
                self._run_wave(wave, progress, held)

    def _run_wave(self, wave: Sequence[Run], progress: SweepProgress, held: Mapping[Job, str]) -> None:
        by_job = {run.job: run for run in wave}
        for run in wave:
            if run.job in held:
                run.check_config(held[run.job])
            elif aside := run.prepare(self.plan.out):
                progress.say(f"{run.name} was run with another config; that is in {aside} now")
        recorder = _Recorder(progress, by_job)
        outcomes = self.launcher.run(list(by_job), recorder)
        try:
            for outcome in outcomes:
                self._note(by_job[outcome.job], outcome, progress)
        finally:
            _close(outcomes)
            recorder.close()

    def _note(self, run: Run, outcome: Outcome, progress: SweepProgress) -> None:
        status = outcome.status
        if status == 0 and run.point is not None and not run.results.is_file():
            status = 1  # it says that all is well, and has left nothing
        Record.read_open(run.folder).end(status, outcome.seconds).write(run.folder)
        failed = status not in STOPPED
        if failed:
            self.ending.failed.append(run)
        elif status != 0:
            self.ending.stopped.append(run)
        progress.ended_with(outcome, self._result(run, status), failed)

    def _result(self, run: Run, status: int) -> str:
        if status == 0 and run.point is not None:
            metric = self.plan.sweep.metric
            return f"{metric} = {run.metrics_with(metric)[metric]:.4f}"
        if status == 0:
            return "trained"
        return f"failed ({status})" if status not in STOPPED else f"stopped ({status})"

    def _steps(self, job: Any) -> int | None:
        run = next((run for run in (*self.plan.trainings, *self.plan.runs) if run.job == job), None)
        steps = self.plan.config_of(run)["trainer"].get("max_steps") if run else None
        return steps if isinstance(steps, int) and steps > 0 else None

    # ---- The budget

    def _affordable(self, runs: Sequence[Run], pending: int) -> int:
        """How many runs may be started now. With a budget, no more than run at a time, and as many as it takes as long
        as the mean of the finished ones; the first ones, of which nothing is known, as long as anything is left."""
        if self.plan.sweep.budget is None:
            return pending
        left = 3600 * self.plan.sweep.budget - 3600 * self._spent()
        finished = [Record.read(run.folder).seconds for run in runs if run.is_done()]
        at_once = getattr(self.launcher, "jobs", 1 if not finished else pending)
        if left <= 0:
            return 0
        number = int(left / fmean(finished)) if finished and fmean(finished) > 0 else at_once
        return min(at_once, number, pending)

    def _spent(self) -> float:
        """Hours of running time of all runs of the folder, finished or not."""
        return sum(Record.read(run.folder).seconds for run in (*self.plan.trainings, *self.plan.runs)) / 3600

    # ---- The folder

    def _wait_for_orphans(self) -> None:
        """Wait for runs that a killed sweep has left alone, until they have saved or finished what they do."""
        for run in (*self.plan.trainings, *self.plan.runs):
            told = False
            while (found := holder(run.folder / LOCK)) is not None:
                if not told:
                    text = f"waiting for {run.name}: {found}, left alone by a sweep that was killed, is still at it"
                    self.console.print(text, markup=False, highlight=False, soft_wrap=True)
                told = True
                time.sleep(LOOK_EVERY)

    def _announce(self, runs: Sequence[Run], states: dict[Run, State]) -> None:
        number = Counter(state.value for state in states.values())
        what = "trainings" if runs and runs[0].point is None else "runs"
        text = f"{len(runs)} {what} in {self.plan.out}: {counts({state.value: number[state.value] for state in State})}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Recorder:
    """A `Watcher` that notes when runs start, before it tells the progress."""

    def __init__(self, progress: SweepProgress, by_job: dict[Any, Run]) -> None:
        self.progress, self.by_job = progress, by_job
        self.started_runs: list[Run] = []

    def started(self, job: Any) -> None:
        run = self.by_job[job]
        Record.read(run.folder).start().write(run.folder)
        self.started_runs.append(run)
        self.progress.started(job)

    def running(self, job: Any, line: str) -> None:
        self.progress.running(job, line)

    def close(self) -> None:
        """Note the end of runs that were ended with the sweep."""
        for run in self.started_runs:
            record = Record.read_open(run.folder)
            if record.begun is not None:
                record.end(None, time.time() - record.begun).write(run.folder)


def lock_sweep(out: Path) -> Lock:
    """Take the folder of a sweep.

    Raises:
        UserError: another sweep has it, or it cannot be written.
    """
    lock = take(out / SWEEP_LOCK)
    if lock is None:
        found = holder(out / SWEEP_LOCK)
        raise UserError(f"another `ldis sweep` is at work in {out} ({found}): wait for it, or give another `--out`")
    lock.sign(os.getpid())
    return lock


@contextmanager
def ended_by_signals() -> Generator[None]:
    """SIGTERM and the end of the terminal end a sweep as Ctrl-C does: its runs save what they have."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in former:
            signal.signal(one, signal.SIG_IGN)  # once is enough
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name}; run the same command again to go on", PREEMPTED_STATUS)

    former: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(one) is not signal.SIG_IGN:  # as under nohup
                former[one] = signal.signal(one, stop)
    try:
        yield
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


def _close(outcomes: Any) -> None:
    """End a generator; a launcher of somebody's own may return another iterator."""
    if hasattr(outcomes, "close"):
        outcomes.close()


class _PlainDumper(yaml.SafeDumper):
    """Writes what occurs several times out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
