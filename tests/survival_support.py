"""What the tests of runs that are ended and resumed share: a run of seconds, ways to end it, and its final state."""

import csv
import errno
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from cli_support import write_config
from cluster_support import LDIS, environment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from ldis_lightning import checkpoint_files

TIMEOUT = 400
"""Seconds for one run, on a machine that is busy with others; it takes about 10."""
KEEP_LAST = {"save_last": True, "save_top_k": 0, "every_n_train_steps": 5}


def settings(
    out: Path, *callbacks: dict[str, Any], keep: dict[str, Any] | None = None, **trainer: Any
) -> dict[str, Any]:
    """A config over the quickstart's: a smaller model, 10 steps, validation after 4 and 8, runs in `out/runs/run`.

    Args:
        callbacks: more of them.
        keep: arguments of `ModelCheckpoint`.
        trainer: more options.
    """
    checkpoints = {"class_path": "ModelCheckpoint", "init_args": keep or KEEP_LAST}
    return {
        "score_after_fit": False,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 10,
            "val_check_interval": 4,
            "limit_val_batches": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(out / "runs"), "name": "run"}},
            "callbacks": [checkpoints, *callbacks],
            **trainer,
        },
        "model": {"init_args": {"denoiser": {"init_args": {"block_out_channels": [16, 16]}}}},
        "data": {"batch_size": 2, "eval_batch_size": 2, "val_episodes": 4, "only": ["novel"], "prepare": None},
    }


def arguments(out: Path, content: dict[str, Any], *options: str, overlays: Sequence[str] = ()) -> list[str]:
    """The arguments of `ldis` that fit with such a config."""
    out.mkdir(exist_ok=True)
    named = ["quickstart", *overlays, write_config(out / "settings.yaml", content)]
    return ["fit", *(part for name in named for part in ("--config", name)), *options]


def start(world: Path, args: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`ldis ARGS` in a process group of its own, with its output in a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [*LDIS, *args], cwd=world, env=environment(), stdout=file, stderr=file, start_new_session=True
        )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a run and to all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def wait_for(condition: Any, seconds: float = TIMEOUT) -> Any:
    """What `condition()` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it has not come to that"
        time.sleep(0.005)
    return found


def final(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """Weights, optimiser and step of the one checkpoint of a name below a folder."""
    (path,) = folder.rglob(name)
    content = torch.load(path, weights_only=True)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return {key: content[key] for key in kept if key in content}


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """The same numbers, bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}.{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), f"{place}: {(found - expected).abs().max()}"
    else:
        assert found == expected, place


def steps_logged(folder: Path) -> list[int]:
    """The steps whose losses the run below a folder has logged, over all its tables, in order."""
    steps: list[int] = []
    for table in sorted(folder.rglob("metrics*.csv")):
        with table.open() as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]
    return sorted(steps)


def validations_logged(folder: Path) -> list[int]:
    """The steps at which validation has come to an end, over all tables below a folder."""
    steps: list[int] = []
    for table in sorted(folder.rglob("metrics*.csv")):
        with table.open() as file:
            steps += [int(row["step"]) for row in csv.DictReader(file) if row.get("val/novel/miou")]
    return sorted(steps)


class SendSignal(Callback):
    """Sends this process a signal.

    Args:
        name: of the signal.
        step: after so many steps, while the next batch is trained on, or `validation` is running.
        rank: which process.
        validation: where.
        times: how often at once.
    """

    def __init__(self, name: str, step: int, rank: int = 0, validation: bool = False, times: int = 1) -> None:
        self.number = signal.Signals[name]
        self.step, self.rank, self.validation, self.times = step, rank, validation, times

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._send(trainer, validation=False)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self._send(trainer, validation=True)

    def _send(self, trainer: Trainer, validation: bool) -> None:
        if (trainer.global_step, validation, trainer.global_rank) == (self.step, self.validation, self.rank):
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class Fail(Callback):
    """Raises an error in some hook, after so many steps."""

    def __init__(self, hook: str, step: int) -> None:
        def fail(trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                raise ZeroDivisionError(f"in {hook}")

        setattr(self, hook, fail)


class FullLogger(CSVLogger):
    """Has no room for the metrics of some step and of all after it."""

    def __init__(self, save_dir: str, name: str, step: int, version: Any = None) -> None:
        super().__init__(save_dir, name, version)
        self.step = step

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is not None and step >= self.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")
        super().log_metrics(metrics, step)


class SlowDisk(Callback):
    """Makes the writing of a checkpoint take seconds, so that it can be met."""

    def __init__(self, seconds_per_write: float = 0.0005) -> None:
        write = checkpoint_files._ErrorKeeper.write

        def slowly(self: Any, content: Any) -> int:
            time.sleep(seconds_per_write)
            return write(self, content)

        checkpoint_files._ErrorKeeper.write = slowly  # this process is the run's own
