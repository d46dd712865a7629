"""`--ckpt_path last`: the newest whole checkpoint of a config's runs, and the run that goes on in its folder.

Lightning looks only into the folder of the run that begins, which is empty. Here all folders in which the config's runs
keep checkpoints are searched, by every process for itself and without changing anything. What is damaged is set aside
later, by the first rank, when all of them have found what they will resume from.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from ldis_lightning.checkpoint_files import (
    READ_ERRORS,
    checkpoints_in,
    damage,
    modified,
    remove_partials,
    set_aside,
)
from ldis_lightning.errors import UserError

LAST = "last"
CHECKPOINTS = "checkpoints"  # Lightning's name of a run's folder of them
ABANDONED = 3600.0
"""Seconds after which nobody is taken to be still writing a checkpoint: another run of the config may go on."""
NUMBERED = re.compile(r"version_(\d+)")


@dataclass(frozen=True)
class Runs:
    """Where the runs of a config lie.

    Args:
        root: the folder of all of them.
        version: the name of the only run that is meant, "" for the root itself; None for all that are numbered.
    """

    root: Path
    version: str | None

    def folders(self) -> list[Path]:
        """Those of the runs, in the order of their numbers."""
        if self.version is not None:
            return [self.root / self.version]
        numbered = [path for path in self.root.glob("version_*") if NUMBERED.fullmatch(path.name)]
        return sorted(numbered, key=lambda path: int(path.name.removeprefix("version_")))


@dataclass(frozen=True)
class Resumption:
    """What `--ckpt_path last` stands for.

    Attributes:
        checkpoint: the newest whole one, or None.
        damaged: what is newer, and why it is not whole.
        searched: the folders that were looked into.
        version: of the logger, so that the run goes on in its folder; None to leave it to the config.
    """

    checkpoint: Path | None
    damaged: dict[Path, str] = field(default_factory=dict)
    searched: tuple[Path, ...] = ()
    version: int | None = None


def find_last(trainer: Namespace, to_train: bool) -> Resumption:
    """Search the checkpoints of a config's runs. Nothing is changed, and what vanishes meanwhile is passed over.

    Args:
        trainer: the config's block of that name.
        to_train: pass over checkpoints of weights alone.
    """
    runs = runs_of(trainer)
    own = runs.folders() if runs else []
    folders = tuple(dict.fromkeys([*(run / CHECKPOINTS for run in own), *_dirpaths(trainer.get("callbacks"))]))
    damaged: dict[Path, str] = {}
    for path in _newest_first(folders):
        reason = damage(path)
        if modified(path) is None:
            continue
        if reason:
            damaged[path] = reason
        elif not to_train or _has_optimizer(path):
            return Resumption(path, damaged, folders, _version(path, runs))
    return Resumption(None, damaged, folders)


def runs_of(trainer: Namespace) -> Runs | None:
    """Where the first logger of a config puts its runs; None for a logger whose folders are not known before."""
    default_root = Path(trainer.get("default_root_dir") or os.getcwd())
    logger = trainer.get("logger")
    if isinstance(logger, list):
        logger = logger[0] if logger else False
    if logger is False:
        return Runs(default_root, "")
    if logger is None or logger is True:
        return Runs(default_root / "lightning_logs", None)
    name = str(logger.get("class_path", "")).rpartition(".")[2]
    if name not in (TensorBoardLogger.__name__, CSVLogger.__name__):
        return None
    args = logger.get("init_args") or Namespace()
    folder = args.get("name", "lightning_logs")
    version = args.get("version")
    root = Path(args.get("save_dir") or "") / (folder or "")
    return Runs(root, f"version_{version}" if isinstance(version, int) else version)


def _dirpaths(callbacks: Any) -> Iterator[Path]:
    """The folders that `ModelCheckpoint`s name themselves."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        folder = callback.get("init_args.dirpath") if isinstance(callback, Namespace) else None
        if folder and "://" not in str(folder):
            yield Path(os.path.expanduser(folder))


def _newest_first(folders: tuple[Path, ...]) -> list[Path]:
    times = {path: modified(path) for folder in folders for path in checkpoints_in(folder)}
    found = [(time, path) for path, time in times.items() if time is not None]
    return [path for _, path in sorted(found, reverse=True)]


def _has_optimizer(path: Path) -> bool:
    if path.is_dir():
        return True  # sharded ones always have
    try:
        return "optimizer_states" in torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except READ_ERRORS:
        return False


def _version(checkpoint: Path, runs: Runs | None) -> int | None:
    """The number of the run that a checkpoint is of, where runs are numbered. Of one that lies in a folder apart it is
    the latest, which was the last to write there."""
    if runs is None or runs.version is not None:
        return None
    folders = runs.folders()
    own = next((run for run in folders if run in checkpoint.parents), folders[-1] if folders else None)
    return int(own.name.removeprefix("version_")) if own else None


def say(line: str) -> None:
    """Print a line about the search, on the first rank alone."""
    if rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
        print(line, file=sys.stderr)


def resolve(trainer: Namespace, to_train: bool) -> Resumption:
    """`find_last`, and say what was found.

    Raises:
        UserError: there is nothing to go on from, and the command is not one that can begin anew.
    """
    found = find_last(trainer, to_train)
    for path, reason in found.damaged.items():
        aside = f", is set aside as {path.name}.damaged" if to_train else ""
        say(f"the checkpoint {path} is damaged ({reason}){aside}")
    if found.checkpoint:
        say(f"--ckpt_path last: {found.checkpoint}")
        return found
    places = ", ".join(map(str, found.searched)) or "the folder of any run"
    if not to_train:
        raise UserError(f"there is no whole checkpoint in {places} (--ckpt_path last)")
    say(f"--ckpt_path last: there is no whole checkpoint in {places}; a new run starts")
    return found


# ---- Going on


def continue_in_folder(trainer: Trainer, resumption: Resumption) -> None:
    """Let the loggers write on where those of the resumed run did. A table of metrics, which Lightning would delete,
    keeps its rows as `metrics-1.csv`, ..."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger):
            if resumption.version is not None and logger._version is None:
                logger._version = resumption.version
            if isinstance(logger, CSVLogger) and rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
                _keep(Path(logger.log_dir) / "metrics.csv")


def _keep(table: Path) -> None:
    if table.is_file():
        number = 1
        while (kept := table.with_name(f"{table.stem}-{number}.csv")).exists():
            number += 1
        os.replace(table, kept)


class ContinueRun(Callback):
    """Puts a resumed run's folder in order. `ldis fit --ckpt_path last` adds it."""

    def __init__(self, resumption: Resumption) -> None:
        self.resumption = resumption

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook, behind a barrier: now no process searches any more.

        Raises:
            UserError: the processes have not found the same checkpoint.
        """
        if stage != "fit":
            return
        checkpoint = self.resumption.checkpoint
        if (first := trainer.strategy.broadcast(checkpoint)) != checkpoint:
            raise UserError(
                f"--ckpt_path last: rank {trainer.global_rank} has found {checkpoint} and rank 0 {first}; all ranks "
                "must see the same files. Name the checkpoint."
            )
        if trainer.is_global_zero:
            for path in self.resumption.damaged:
                set_aside(path)
            for folder in self.resumption.searched:
                is_ours = checkpoint is not None and folder == checkpoint.parent
                remove_partials(folder, 0 if is_ours else ABANDONED)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: tell each `ModelCheckpoint` of the files beside the resumed one by their present paths. By
        others, it would take them for another run's: leave them for ever, and name its own `last-v1.ckpt`."""
        states = checkpoint.get("callbacks", {})
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and isinstance(state, dict) and self._lies_in(callback.dirpath):
                states[callback.state_key] = moved(state, str(callback.dirpath))

    def _lies_in(self, folder: Any) -> bool:
        checkpoint = self.resumption.checkpoint
        return bool(folder and checkpoint) and os.path.realpath(folder) == os.path.realpath(checkpoint.parent)  # pyright: ignore

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: everything is loaded. While the Trainer knows what from, `ModelCheckpoint` would keep that
        file for ever."""
        trainer._checkpoint_connector._ckpt_path = None


def moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` whose files lie in `folder` now."""

    def here(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    paths = {key: here(state.get(key, "")) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
    best = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    return {**state, **paths, "best_k_models": best, "dirpath": folder}
