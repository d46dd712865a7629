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
SINGLE = [0.0, 0.1, 0.2, 0.3, 0.4]
POINTS = {f"weight_{value}": {"model.latent_weight": value} for value in SINGLE}
SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",  # the quickest to train a step of
    "sweep": {"points": {**POINTS, "two_ranks": {"trainer.devices": 2}}, "seeds": [0]},
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


class Sweep:
    """The command, in a folder of its own, and what it leaves there."""

    def __init__(self, cluster: Cluster, world: Path, folder: Path) -> None:
        self.cluster, self.world, self.out = cluster, world, folder / "out"
        config = write_config(folder / "sweep.yaml", SWEEP)
        options = ["--slurm.poll_seconds", "1", "--slurm.array_parallelism", "2", "--slurm.partition", "short"]
        self.command = [*LDIS, "sweep", "--config", config, *tiny(folder), "--out", str(self.out)]
        self.command += ["--launcher", "slurm", *options]
        self.log = folder / "sweep.txt"

    def start(self) -> subprocess.Popen:
        with self.log.open("wb") as log:
            own = {**environment(), "SLURM_CONF": self.cluster.environment["SLURM_CONF"]}
            return subprocess.Popen(self.command, cwd=self.world, env=own, stdout=log, stderr=subprocess.STDOUT)

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """Its status and what it has said."""
        try:
            return process.wait(WITHIN), self.log.read_text()
        finally:
            process.kill()

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


def test_a_sweep_is_killed_loses_a_job_and_is_finished(cluster: Cluster, miniature_world: Path, tmp_path: Path) -> None:
    sweep = Sweep(cluster, miniature_world, tmp_path)
    names = {*POINTS, "two_ranks"}

    process = sweep.start()
    wait_until(lambda: len(sweep.tickets()) == 6, process, sweep.log)
    tickets = sweep.tickets()
    assert len({ticket.name for ticket in tickets.values()}) == 2  # an array of five, and the two ranks
    jobs = sweep.submitted()
    victim = "weight_0.4"
    cluster.call("scontrol", "hold", tickets[victim].id)  # until it can be cancelled in the middle
    wait_until(lambda: sweep.state(tickets["weight_0.0"].id) == "RUNNING", process, sweep.log)
    process.kill()
    process.wait()

    process = sweep.start()
    wait_until(lambda: "are with Slurm already" in sweep.log.read_text(), process, sweep.log)
    cluster.call("scontrol", "release", tickets[victim].id)
    wait_until((sweep.folder(victim) / "log.txt").is_file, process, sweep.log)
    cluster.call("scancel", tickets[victim].id)
    status, said = sweep.end(process)
    assert status == 75, said
    assert f"stopped: {victim} seed 0; run the same command again" in said
    assert sweep.submitted() == jobs  # nothing twice
    done = sweep.results()
    assert done.keys() == names - {victim}
    assert f"Slurm's job {tickets[victim].id}: CANCELLED" in (sweep.folder(victim) / "log.txt").read_text()

    status, said = sweep.end(sweep.start())
    assert status == 0, said
    assert len(sweep.submitted() - jobs) == 1
    results = sweep.results()
    assert results.keys() == names
    assert {point: time for point, time in results.items() if point != victim} == done  # not run again
    assert not sweep.tickets()
    assert len((sweep.out / "results.csv").read_text().splitlines()) == 7
    assert (sweep.folder("two_ranks") / "log.1.txt").is_file()
    assert "MEMBER: 1/2" in (sweep.folder("two_ranks") / "log.txt").read_text()
