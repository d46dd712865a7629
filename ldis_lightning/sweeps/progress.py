"""What a person sees while a sweep runs: which run of how many, what it is doing, elapsed time and time left."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ldis_lightning.sweeps.launchers import Job, Outcome, log_end


class SweepProgress:
    """A `Watcher`: a line for every run that starts or ends and, on a terminal, bars with the latest output of each
    run.

    Args:
        total: how many runs there are to do.
        console: where to print.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self.ended = 0
        self.begun = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.overall = self.bars.add_task("sweep", total=total)
        self.tasks: dict[Job, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def started(self, job: Job) -> None:
        """Announce a run."""
        number = self.ended + len(self.tasks) + 1
        self.tasks[job] = self.bars.add_task(escape(job.name), total=None)
        self._print(f"[{number}/{self.total}] {job.name}: started, output in {job.log}")

    def running(self, job: Job, line: str) -> None:
        """Show a run's latest output."""
        self.bars.update(self.tasks[job], description=escape(f"{job.name} | {line[:80]}"))

    def ended_with(self, outcome: Outcome, result: str) -> None:
        """Report how a run ended: its result, or the end of its output."""
        self.ended += 1
        self.bars.remove_task(self.tasks.pop(outcome.job))
        elapsed = time.monotonic() - self.begun
        left = elapsed / self.ended * (self.total - self.ended)
        clock = f"{duration(elapsed)} elapsed, about {duration(left)} left"
        self.bars.update(self.overall, completed=self.ended, description=f"sweep, about {duration(left)} left")
        took = duration(outcome.seconds)
        self._print(f"[{self.ended}/{self.total}] {outcome.job.name}: {result} after {took} ({clock})")
        if outcome.status != 0:
            for line in log_end(outcome.job.log):
                self._print(f"    {line}")

    def _print(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`41s`, `3m 41s` or `2h 03m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
