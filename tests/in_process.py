"""Runs of a sweep in the test's own process, which has everything imported already."""

from collections.abc import Generator, Sequence

import pytest

from ldis_lightning.cli import main
from ldis_lightning.sweeps.launchers import Job, Launcher, Outcome, Watcher


class InProcess(Launcher):
    """Runs jobs one after the other; those with `failing` in their name fail, `ran` has the names of the others."""

    def __init__(self) -> None:
        self.failing = ""
        self.ran: list[str] = []

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        for job in jobs:
            watcher.started(job)
            self.ran.append(job.name)
            job.log.write_text("the end of the log\n", encoding="utf-8")
            failed = self.failing and self.failing in job.name
            yield Outcome(job, 1 if failed else main(job.arguments), 1.0)


def sweep_with(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ldis sweep` use this launcher, whatever its options say."""
    monkeypatch.setattr("ldis_lightning.sweeps.command.choice.build", lambda *_: launcher)
