"""A sweep on a real Slurm of two nodes: killed and taken up again, one job cancelled, finished by the same command.

Takes three minutes on two free cores; needs slurm-wlm and munge, which `apt-get install` brings in 20 seconds.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import tiny, write_config
from cluster_support import LDIS, environment
from slurm_cluster import Cluster, missing
from slurm_cluster import cluster as started

from ldis_lightning.sweeps.launchers.slurm import Ticket

WITHIN = 900.0
"""Seconds for each command and each thing that is waited for, on a machine that is busy with others."""
VICTIM = "weight_long"  # the last by name, so the last of its array
POINTS = {
    "plain": {},
    **{f"weight_{value}": {"model.latent_weight": value} for value in (0.0, 0.1, 0.2)},
    VICTIM: {"trainer.max_steps": 200, "trainer.val_check_interval": 20},  # long enough to be cancelled in the middle
    "two_ranks": {"trainer.devices": 2},
}
SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",  # the quickest to train a step of
    "sweep": {"points": POINTS, "seeds": [0]},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        bool(missing()),
        reason=f"Slurm is not installed here ({', '.join(missing())}): apt-get install slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with started() as own:
        yield own


@pytest.fixture
def sweep(cluster: Cluster, miniature_world: Path, tmp_path: Path) -> Iterator["Sweep"]:
    own = Sweep(cluster, miniature_world, tmp_path)
    yield own
    for process in own.processes:
        process.kill()
        process.wait()


class Sweep:
    """The command, in a folder of its own, and what it leaves there."""

    def __init__(self, cluster: Cluster, world: Path, folder: Path) -> None:
        self.cluster, self.world, self.out = cluster, world, folder / "out"
        config = write_config(folder / "sweep.yaml", SWEEP)
        options = ["--slurm.poll_seconds", "1", "--slurm.array_parallelism", "2", "--slurm.partition", "short"]
        self.command = [*LDIS, "sweep", "--config", config, *tiny(folder), "--out", str(self.out)]
        self.command += ["--launcher", "slurm", *options]
        self.log = folder / "sweep.txt"
        self.processes: list[subprocess.Popen] = []

    def start(self) -> subprocess.Popen:
        with self.log.open("wb") as log:
            own = {**environment(), "SLURM_CONF": self.cluster.environment["SLURM_CONF"]}
            process = subprocess.Popen(self.command, cwd=self.world, env=own, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """Its status and what it has said."""
        return process.wait(WITHIN), self.log.read_text()

    def folder(self, point: str) -> Path:
        return self.out / "points" / point / "seed-0"

    def tickets(self) -> dict[str, Ticket]:
        """Of the points that are with Slurm, as far as their numbers are known."""
        found = {path.parent.parent.name: json.loads(path.read_text()) for path in self.out.rglob("slurm.json")}
        return {point: Ticket(**content) for point, content in found.items() if content["id"]}

    def results(self) -> dict[str, int]:
        """When each of the points that are done has got its results."""
        return {path.parent.parent.name: path.stat().st_mtime_ns for path in self.out.rglob("results.json")}

    def submitted(self) -> set[str]:
        """The numbers of all jobs, arrays as one, that Slurm remembers."""
        shown = self.cluster.call("squeue", "--noheader", "--states", "all", "--format", "%F")
        return set(shown.split())

    def state(self, id: str) -> str:
        """Of the job of this number."""
        options = ("--noheader", "--states", "all", "--array", "--format", "%T")
        return self.cluster.call("squeue", *options, "--jobs", id).strip()


def wait_until(condition: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    """Wait for what happens while a process runs."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def test_a_sweep_is_killed_loses_a_job_and_is_finished(cluster: Cluster, sweep: Sweep) -> None:
    process = sweep.start()
    wait_until(lambda: len(sweep.tickets()) == len(POINTS), process, sweep.log)
    tickets = sweep.tickets()
    assert len({ticket.name for ticket in tickets.values()}) == 2  # an array of five, and the two ranks
    jobs = sweep.submitted()
    cluster.call("scontrol", "hold", tickets[VICTIM].id)  # until somebody watches
    wait_until(lambda: sweep.state(tickets["plain"].id) != "PENDING", process, sweep.log)
    process.kill()
    process.wait()

    process = sweep.start()
    wait_until(lambda: "with Slurm already" in sweep.log.read_text(), process, sweep.log)
    cluster.call("scontrol", "release", tickets[VICTIM].id)
    wait_until(lambda: list(sweep.folder(VICTIM).glob("previews/val-*")), process, sweep.log)
    cluster.call("scancel", tickets[VICTIM].id)
    status, said = sweep.end(process)
    assert status == 75, said
    assert f"stopped: {VICTIM} seed 0; run the same command again" in said
    assert sweep.submitted() == jobs  # nothing twice
    done = sweep.results()
    assert done.keys() == POINTS.keys() - {VICTIM}
    log = (sweep.folder(VICTIM) / "log.txt").read_text()
    assert "stopped by SIGTERM after step" in log and f"Slurm's job {tickets[VICTIM].id}: CANCELLED" in log

    status, said = sweep.end(sweep.start())
    assert status == 0, said
    assert len(sweep.submitted() - jobs) == 1
    results = sweep.results()
    assert results.keys() == POINTS.keys()
    assert {point: time for point, time in results.items() if point != VICTIM} == done  # not run again
    since = (sweep.folder(VICTIM) / "log.txt").read_text().removeprefix(log)
    assert "a new run starts" not in since and "`max_steps=200` reached" in since  # it went on from its checkpoint
    assert VICTIM not in sweep.tickets()  # that of a run which ended while nobody watched stays, and is ignored
    assert len((sweep.out / "results.csv").read_text().splitlines()) == 1 + len(POINTS)
    assert (sweep.folder("two_ranks") / "log.1.txt").is_file()
    assert "MEMBER: 1/2" in (sweep.folder("two_ranks") / "log.txt").read_text()
