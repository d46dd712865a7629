"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ldis_lightning.sweeps.launchers import Job, Outcome
from ldis_lightning.sweeps.logs import log_end

BAR = re.compile(r"^(?P<what>[^:|]+?)\s*:\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<of>\d+)\s*\[(?P<rest>.*)")
"""A line of Lightning's progress bar: `Epoch 0:  45%|####   | 180/400 [00:33<00:40, 5.4it/s, train/loss=0.123]`."""
METRIC = re.compile(r"([A-Za-z]\w*/[\w/]+)=([-+.\deE]+|nan|inf)")
NEXT = 3
"""Runs that the table shows of those that wait."""


@dataclass(frozen=True)
class Step:
    """Where a run is, by the last line of its output.

    Attributes:
        state: what it is doing, in a word or two.
        share: of its training, in [0, 1]; None where the line does not say.
        metric: the first one that the line shows, e.g. `train/loss=0.123`.
    """

    state: str
    share: float | None = None
    metric: str = ""


def read_step(line: str, steps: int | None = None) -> Step:
    """What a line of output says.

    Args:
        line: the last one of a run's log.
        steps: of its training in all, if that is known.
    """
    if not (match := BAR.match(line)):
        return Step(line[:40])
    what, done, of = match["what"].strip(), int(match["done"]), int(match["of"])
    metric = "=".join(found.groups()) if (found := METRIC.search(match["rest"])) else ""
    epoch = re.fullmatch(r"Epoch (\d+)", what)
    if not epoch:
        return Step(f"{what.partition(' ')[0].lower()} {done}/{of}", None, metric)
    done, of = int(epoch[1]) * of + done, max(steps or of, of if not steps else 0)
    return Step(f"step {done}/{of}", min(1.0, done / of) if of else None, metric)


@dataclass
class _Running:
    """A run that has begun."""

    line: str = ""
    begun: float = field(default_factory=time.monotonic)


class SweepProgress:
    """A `Watcher`: a line for every run that starts or ends and, on a terminal, a table of what runs and what waits.

    Args:
        jobs: all that there is to do, in order.
        console: where to print.
        steps: how many steps of training a job has, where that is known.
        past: seconds that runs of this sweep have taken before.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        console: Console,
        steps: Callable[[Job], int | None] = lambda job: None,
        past: Sequence[float] = (),
    ) -> None:
        self.total = len(jobs)
        self.console = console
        self.steps = steps
        self.waiting = list(jobs)
        self.active: dict[Job, _Running] = {}
        self.seconds = list(past)
        self.ended = 0
        self.at_once = 1
        self.begun = time.monotonic()
        self.live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live.is_started:
            self.live.stop()

    def started(self, job: Job) -> None:
        """Announce a run."""
        self.active[job] = _Running()
        self.at_once = max(self.at_once, len(self.active))
        self.waiting = [other for other in self.waiting if other != job]
        number = self.ended + len(self.active)
        self.say(f"[{number}/{self.total}] {job.name}: started, output in {job.log}")

    def running(self, job: Job, line: str) -> None:
        """Remember a run's latest output."""
        self.active[job].line = line

    def ended_with(self, outcome: Outcome, result: str, failed: bool) -> None:
        """Report how a run ended: its result, or the end of its output."""
        self.active.pop(outcome.job, None)
        self.ended += 1
        if not failed:
            self.seconds.append(outcome.seconds)
        clock = f"{duration(time.monotonic() - self.begun)} elapsed"
        if (left := self.left()) is not None:
            clock += f", about {duration(left)} left"
        self.say(
            f"[{self.ended}/{self.total}] {outcome.job.name}: {result} after {duration(outcome.seconds)} ({clock})"
        )
        if failed:
            self.say_end(outcome.job)

    def say_end(self, job: Job) -> None:
        """Show the end of a run's output."""
        for line in log_end(job.log):
            self.say(f"    {line}")

    def left(self) -> float | None:
        """Seconds that the sweep will still take, None while nobody can know: from how long runs have taken, or the
        first ones will take at their present speed."""
        now = time.monotonic()
        elapsed = {job: now - run.begun for job, run in self.active.items()}
        shares = {job: read_step(run.line, self.steps(job)).share for job, run in self.active.items()}
        if self.seconds:
            each = fmean(self.seconds)
        elif projected := [elapsed[job] / share for job, share in shares.items() if share]:
            each = fmean(projected)
        else:
            return None if self.active or self.waiting else 0.0
        work = sum(max(0.0, each - time) for time in elapsed.values()) + each * len(self.waiting)
        return work / max(1, min(self.at_once, len(self.active) + len(self.waiting)))

    def _table(self) -> Group:
        left = self.left()
        clock = f"{duration(time.monotonic() - self.begun)} elapsed"
        clock += f", about {duration(left)} left" if left is not None else ""
        table = Table("run", "state", "now", title=f"{self.ended} of {self.total} runs have ended, {clock}")
        table.title_justify = "left"
        table.add_column("elapsed", justify="right")
        for job, run in list(self.active.items()):
            step = read_step(run.line, self.steps(job))
            took = duration(time.monotonic() - run.begun)
            table.add_row(Text(job.name), Text(step.state or "starting"), Text(step.metric), took)
        for job in self.waiting[:NEXT]:
            table.add_row(Text(job.name, "dim"), Text("waiting", "dim"), "", "")
        more = len(self.waiting) - NEXT
        return Group(table, Text(f"and {more} more wait", "dim")) if more > 0 else Group(table)

    def say(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def counts(states: Mapping[str, int]) -> str:
    """`3 done, 1 failed`: what there is of each, without what there is none of."""
    return ", ".join(f"{number} {state}" for state, number in states.items() if number)


def duration(seconds: float) -> str:
    """`41s`, `3m 41s` or `2h 03m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
