"""Training on two ranks follows training on one: the same global batches, and so the same losses."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import write_config

STEPS = 20

OVERLAY = {
    "score_after_fit": False,
    "trainer": {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "callbacks": [],
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    },
    "data": {"batch_size": 4, "prepare": None},
}


def losses(world: Path, out: Path, meta_architecture: str, ranks: int) -> list[float]:
    """The training losses of `STEPS` steps of a shipped config, from a process of its own."""
    overlay = {**OVERLAY, "trainer": {**OVERLAY["trainer"], "devices": ranks}}
    if ranks > 1:
        overlay["trainer"]["strategy"] = "ddp"
    overlay["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": str(out), "name": "run"}}
    out.mkdir()
    config = write_config(out / "overlay.yaml", overlay)
    command = [sys.executable, "-m", "ldis_lightning", "fit", "--config", meta_architecture, "--config", config]
    subprocess.run(command, cwd=world, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=250)
    (metrics,) = out.rglob("metrics.csv")
    with metrics.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("config", ["quickstart", "quickstart_ldisn"])
def test_two_ranks_follow_one(config: str, miniature_world: Path, tmp_path: Path) -> None:
    one = losses(miniature_world, tmp_path / "one", f"configs/{config}.yaml", ranks=1)
    two = losses(miniature_world, tmp_path / "two", f"configs/{config}.yaml", ranks=2)
    assert len(one) == len(two) == STEPS
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4
