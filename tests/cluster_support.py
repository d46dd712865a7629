"""What tests of several processes share: a shipped config at a few steps, in processes of its own, and its losses."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import tiny
import torch
from cli_support import write_config
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ldis_lightning.cli import main

STEPS = 20
ROOT = Path(__file__).resolve().parent.parent
LDIS = [sys.executable, "-m", "ldis_lightning"]
TIMEOUT = 500
"""Seconds for one run, on a machine that is busy with others; it takes about 20."""


def overlay(out: Path, **trainer: Any) -> dict[str, Any]:
    """A config over a shipped one: 20 steps of 4 episodes that log every loss below `out`, and nothing else."""
    return {
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
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(out), "name": "run"}},
            **trainer,
        },
        "data": {"batch_size": 4, "prepare": None},
    }


def environment() -> dict[str, str]:
    """This process's, in which the package and the tests' own modules can be imported."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def fit(world: Path, out: Path, configs: Sequence[str], *options: str, **trainer: Any) -> dict[int, float]:
    """Run `ldis fit` in `world` with shipped configs and `overlay(out, **trainer)`; the losses by their steps.

    One rank runs in this process, which has everything imported already, several in processes of their own.
    """
    out.mkdir()
    named = [*configs, write_config(out / "overlay.yaml", overlay(out, **trainer))]
    arguments = ["fit", *(part for name in named for part in ("--config", name)), *options]
    if trainer["devices"] == 1:
        with chdir(world):
            assert main(arguments) == 0
    else:
        subprocess.run([*LDIS, *arguments], cwd=world, env=environment(), check=True, timeout=TIMEOUT)
    return losses(out)


def losses(out: Path) -> dict[int, float]:
    """The training losses of the one run below `out`, by their steps."""
    (metrics,) = out.rglob("metrics.csv")
    with metrics.open() as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def assert_same(found: dict[int, float], expected: dict[int, float], steps: Sequence[int] = range(STEPS)) -> None:
    """The same steps, and losses that differ by less than 1e-4."""
    assert list(found) == list(steps)
    assert max(abs(loss - expected[step]) for step, loss in found.items()) < 1e-4


def fixed_logits(model: Any) -> Tensor:
    """(2, 64, 64): a quickstart model's answer to two fixed episodes."""
    batch = {
        "query_image": tiny.pictures(2, 3, 64, 64),
        "reference_image": tiny.pictures(2, 1, 3, 64, 64, seed=1),
        "reference_mask": tiny.masks(2, 64)[:, None],
        "seed": torch.arange(2),
    }
    model.eval()
    with torch.no_grad():
        return model.batch_logits(batch)


class KeepLogits(Callback):
    """Writes `fixed_logits` of the trained model to `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logits = fixed_logits(pl_module)
        if trainer.is_global_zero:
            torch.save(logits, self.path)


class SaveAfter(Callback):
    """Saves to `path` after so many batches of this process, which may be between two steps of the optimiser."""

    def __init__(self, path: str, batches: int) -> None:
        self.path, self.batches, self.seen = path, batches, 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)
