"""A sweep that is killed at random moments, with everything that it has started, ends with the same table."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cli_support import tiny, write_config
from fake_runs import starts

SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",
    "sweep": {"grid": {"model.latent_weight": [0.0, 0.1]}, "seeds": [0, 3]},
}
TESTS = Path(__file__).resolve().parents[1]
FAKE = ["--launcher", "fake_runs.FakeRuns", "--launcher.seconds", "2"]


def run_sweep(args: list[str], cwd: Path, kill_after: float | None = None, out: Path | None = None) -> int:
    """Run a sweep in a process group of its own; `kill_after` seconds behind its first start of a run, kill all."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "sweeps")))
    command = [sys.executable, "-m", "ldis_lightning", "sweep", *args]
    environment = {**os.environ, "PYTHONPATH": paths}
    before = log_times(out)
    with subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True) as process:
        while kill_after is not None and process.poll() is None:
            time.sleep(0.05)
            if log_times(out) != before:
                time.sleep(kill_after)
                os.killpg(process.pid, signal.SIGKILL)
                break
        return process.wait()


def log_times(out: Path | None) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("points/*/*/log.txt")} if out else {}


def done(out: Path) -> dict[Path, int]:
    """When the results of runs were written whose end the sweep has noted."""
    noted = [
        path.parent / "results.json" for path in out.glob("points/*/*/status.json") if '"status": 0' in path.read_text()
    ]
    return {path: path.stat().st_mtime_ns for path in noted}


def check_kills(args: list[str], folder: Path, cwd: Path, moments: list[float]) -> None:
    out = folder / "out"
    for moment in moments:
        before = done(out)
        assert run_sweep([*args, "--out", str(out)], cwd, moment, out) in (0, -signal.SIGKILL)
        assert {path: path.stat().st_mtime_ns for path in before} == before
    before = done(out)
    assert run_sweep([*args, "--out", str(out)], cwd) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run_sweep([*args, "--out", str(folder / "uninterrupted")], cwd) == 0
    assert (out / "results.csv").read_bytes() == (folder / "uninterrupted/results.csv").read_bytes()
    assert yaml.safe_load((out / "sweep.yaml").read_text(encoding="utf-8"))["seeds"] == [0, 3]


@pytest.mark.slow
def test_three_kills_of_runs_that_pretend(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # shown when the test fails
    chance = random.Random(seed)
    config = write_config(tmp_path / "sweep.yaml", SWEEP)
    check_kills(["--config", config, *tiny(tmp_path), *FAKE], tmp_path, tmp_path, [chance.uniform(0, 5) for _ in "123"])
    assert sum(starts(tmp_path / "out").values()) <= 4 + 3  # each kill costs one further start at most


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_kills_of_real_runs(in_miniature_world: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    config = write_config(tmp_path / "sweep.yaml", SWEEP)
    steps = ["--trainer.max_steps", "40", "--trainer.val_check_interval", "10"]
    args = ["--config", config, *tiny(tmp_path), *steps]
    check_kills(args, tmp_path, in_miniature_world, [chance.uniform(5, 40) for _ in "123"])
