"""A stand-in for Slurm: its commands as scripts, and what tests of the launcher do with it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldis_lightning.sweeps.launchers import Job, Outcome, slurm
from ldis_lightning.sweeps.launchers.slurm import Slurm, Ticket

STAND_INS = {
    "sbatch": """
[[ $1 == --help ]] && { echo "  -A, --account=name  charge"; exit 0; }
number=$(( $(ls script-* 2>/dev/null | wc -l) + 101 ))
[[ -f refuse-$number ]] && { cat refuse-$number >&2; exit 1; }
cp "$1" script-$number; env > environment; echo "Submitted batch job $number" """,
    "squeue": """
if [[ -f silent ]]; then
    echo asked >> silent; echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1
fi
for script in script-*; do
    [[ -f $script ]] || continue
    number=${script#script-}
    name=$(sed -n "s/^#SBATCH --job-name=//p" $script)
    last=$(sed -n "s/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p" $script)
    for index in $(seq 0 ${last:-0}); do
        if [[ -n $last ]]; then id=${number}_$index key=$index; else id=$number key=N/A; fi
        state=$(cat state-$id 2>/dev/null || cat default)
        [[ $state == gone ]] || echo "$name|$key|$id|${state%%|*}|1:07|${state#*|}"
    done
done""",
    "sacct": """
[[ -f accounts ]] && { cat accounts; exit 0; }
echo "Slurm accounting storage is disabled" >&2; exit 1""",
    "scancel": 'echo "$@" >> cancelled',
    "sinfo": "echo debug; echo short",
    "srun": "exit 1",
}


@dataclass
class StandIn:
    """Slurm's commands as scripts; what they answer, and what they were asked, lies in `folder`."""

    folder: Path

    def default(self, state: str) -> None:
        """The state of all jobs of which `set` has said nothing: `STATE|reason`, or `gone`."""
        (self.folder / "default").write_text(state)

    def set(self, id: str, state: str) -> None:
        (self.folder / f"state-{id}").write_text(state)

    def scripts(self) -> list[str]:
        """What was submitted."""
        return [path.read_text() for path in sorted(self.folder.glob("script-*"))]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Put the stand-in on the PATH, in a new folder."""
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "FILES_WITHIN", 0.0)  # the stand-in runs no scripts, so nobody leaves a status
    for variable in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(variable)
    own = StandIn(folder)
    own.default("RUNNING|None")
    return own


class Recorder:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lines: list[str] = []

    def started(self, job: Job) -> None:
        self.names.append(job.name)

    def running(self, job: Job, line: str) -> None:
        assert job.name in self.names
        self.lines.append(line)


class Stop(Exception):
    pass


class Stopping(Recorder):
    """Ends the sweep when the first job runs."""

    def running(self, job: Job, line: str) -> None:
        raise Stop


def make_job(tmp_path: Path, name: str, nodes: int = 1, processes: int = 1) -> Job:
    folder = tmp_path / "out/points" / name / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ("fit", "--config", str(folder / "point.yaml"), "--ckpt_path", "last")
    return Job(name, arguments, folder / "log.txt", nodes, processes)


def launcher(tmp_path: Path, **options: Any) -> Slurm:
    own = Slurm(poll_seconds=0.02, **options)
    own.folder = tmp_path / "out/slurm"
    return own


def statuses(outcomes: Iterator[Outcome]) -> dict[str, int]:
    return {outcome.job.name: outcome.status for outcome in outcomes}


def start_and_leave(tmp_path: Path, *jobs: Job) -> list[Ticket]:
    """Submit jobs and leave them; their tickets."""
    with pytest.raises(Stop):
        list(launcher(tmp_path).run(jobs, Stopping()))
    tickets = [Ticket.read(job) for job in jobs]
    assert None not in tickets
    return tickets  # type: ignore[return-value]


def leave_status(tmp_path: Path, ticket: Ticket, status: int) -> None:
    """What a job's script does at its end."""
    (tmp_path / "out/slurm" / f"{ticket.name}-{ticket.index}.status").write_text(f"{status}\n")
