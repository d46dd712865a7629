"""What a machine, a cluster or a strategy cannot do, refused before anything is built or any weight is read."""

import logging
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry

from ldis_lightning.archives import check_archive, check_extent
from ldis_lightning.errors import UserError
from ldis_lightning.latent.fine_tuning import LoRA
from ldis_lightning.sharded_files import is_sharded
from ldis_lightning.strategies import FullySharded
from ldis_lightning.suggestions import did_you_mean

FSDP_CONFIG = "`--config configs/cluster/fsdp.yaml`"
DDP_CONFIG = "`--config configs/cluster/ddp.yaml`"
CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes for `ckpt_path` beside a path."""


LONG = 250
"""Characters of a message that is cut."""


@dataclass(frozen=True)
class Run:
    """A run that is to be checked.

    Args:
        config: of one command, as parsed: `trainer`, `model`, `data`, `ckpt_path`, ...
        strategy: class of the strategy that the config names; `Strategy` where Lightning is to choose.
        trainer: what Lightning makes of it on this machine, once that is known.
    """

    config: Namespace
    strategy: type
    trainer: Any = None

    @property
    def device(self) -> str:
        """Type of the device, e.g. `cuda`."""
        return self.trainer.strategy.root_device.type

    def classes(self) -> Iterator[type]:
        """Every class that the config names, wherever it names it."""
        yield from _classes(self.config)


Rule = Callable[[Run], str | None]
"""From a run to what is wrong with it, or None."""


def check(config: Namespace) -> None:
    """Refuse a run that cannot work here.

    Args:
        config: of one command, as parsed.

    Raises:
        UserError: what cannot work, and what would.
    """
    run = Run(config, _strategy_class(config.trainer.get("strategy")))
    _refuse(run, BEFORE_TRIAL)
    _refuse(replace(run, trainer=_try_trainer(config.trainer)), AFTER_TRIAL)


def check_packages(content: Any, file: Path) -> None:
    """Refuse a config with a class of a package that is not installed, before the parser fails over it at length.

    Args:
        content: of the config, or a part of it.
        file: the config.

    Raises:
        UserError: there is no such package; the message names it.
    """
    if isinstance(content, dict):
        path = content.get("class_path")
        package = path.split(".")[0] if isinstance(path, str) and "." in path else None
        if package and not _is_installed(package):
            raise UserError(
                f"config `{file}`: `{path}` needs `{package}`, which is not installed: `pip install {package}`"
            )
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        check_packages(part, file)


def explain_trainer(error: BaseException) -> str:
    """What the Trainer says, or its first line where that is long; for a missing accelerator, what to do about it."""
    text = str(error).strip() or type(error).__name__
    if "gpu backend" in text or "can not run on your system" in text:
        return "the accelerator asked for is not available on this machine; use `--trainer.accelerator auto` (or `cpu`)"
    in_one_line = " ".join(text.split())
    return in_one_line if len(in_one_line) <= LONG else text.splitlines()[0]


def check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint file that is damaged, that would unpack into more than it is, or that holds more than plain
    data, which would have to be executed.

    Raises:
        UserError: it does.
    """
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        check_extent(content)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the checkpoint `{path}` is damaged, or holds objects that would have to be executed to be read, which "
            "`ldis` does not do (--ckpt_path)"
        ) from error
    except ValueError as error:
        raise UserError(f"the checkpoint `{path}` is damaged, or no checkpoint: {error} (--ckpt_path)") from error
    except Exception as error:  # torch stumbles over damaged files in more ways than it documents
        raise UserError(f"the checkpoint `{path}` is damaged, or no checkpoint (--ckpt_path)") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"the checkpoint `{path}` is no checkpoint of `ldis fit`: it has no `state_dict` (--ckpt_path)")


def _refuse(run: Run, rules: tuple[Rule, ...]) -> None:
    for rule in rules:
        if message := rule(run):
            raise UserError(message)


# ---- Before the Trainer is tried


def _unknown_strategy(run: Run) -> str | None:
    name = run.config.trainer.get("strategy")
    if not isinstance(name, str) or name == "auto" or name.lower() in StrategyRegistry:
        return None
    return f"trainer.strategy: there is no strategy `{name}`{did_you_mean(name, StrategyRegistry)}"


def _sharding_of_others(run: Run) -> str | None:
    """FSDP1 runs on GPUs alone and would shard what is frozen. Lightning's own FSDP2 is tensor-parallel inside a node:
    without a plan for that, its ranks would train apart."""
    if issubclass(run.strategy, FSDPStrategy):
        return f"trainer.strategy: Lightning's FSDPStrategy (FSDP1) is not supported; use {FSDP_CONFIG} (FSDP2)"
    if issubclass(run.strategy, ModelParallelStrategy) and not issubclass(run.strategy, FullySharded):
        return f"trainer.strategy: ModelParallelStrategy is tensor-parallel inside a node; use {FSDP_CONFIG}"
    return None


def _averages_of_shards(run: Run) -> str | None:
    """The callback copies the model, and torch cannot copy a sharded one."""
    if issubclass(run.strategy, FullySharded) and any(issubclass(one, WeightAveraging) for one in run.classes()):
        return f"trainer.callbacks: averages of weights (EMA) cannot be kept of a sharded model; use {DDP_CONFIG}"
    return None


def _eight_bits_of_shards(run: Run) -> str | None:
    """Its kernels do not take sharded tensors."""
    if issubclass(run.strategy, FullySharded) and any(
        one.__module__.startswith("bitsandbytes.") for one in run.classes()
    ):
        return f"model.optimizer: bitsandbytes cannot update a sharded model; use torch.optim.AdamW, or {DDP_CONFIG}"
    return None


def _models_that_do_not_shard(run: Run) -> str | None:
    model = _class(run.config.model)
    shards = getattr(model, "configure_model", None) is not LightningModule.configure_model
    if issubclass(run.strategy, FullySharded) and model and not shards:
        return f"model: {model.__name__} has no `configure_model` that would shard it; use {DDP_CONFIG}"
    return None


def _missing_packages(run: Run) -> str | None:
    if any(issubclass(one, LoRA) for one in run.classes()) and not _is_installed("peft"):
        return "model.fine_tuning: LoRA needs peft, which is not installed: `pip install peft`"
    return None


def _checkpoint(run: Run) -> str | None:
    name = run.config.get("ckpt_path")
    if run.config.get("weights_only") is False:
        return "--weights_only false is not supported: code in a checkpoint is never run"
    if not name or name in CHECKPOINT_WORDS:
        return None
    path = Path(name)
    if not path.exists():
        return f"the checkpoint `{path}` does not exist (--ckpt_path)"
    if path.is_file():
        check_checkpoint(path)
        return None
    if not is_sharded(path):
        return f"the folder `{path}` is no sharded checkpoint: it has no `.metadata` (--ckpt_path)"
    if not issubclass(run.strategy, FullySharded):
        return f"`{path}` is a sharded checkpoint: add {FSDP_CONFIG}, or export it with `ldis convert` (--ckpt_path)"
    return None


BEFORE_TRIAL: tuple[Rule, ...] = (
    _unknown_strategy,
    _sharding_of_others,
    _averages_of_shards,
    _eight_bits_of_shards,
    _models_that_do_not_shard,
    _missing_packages,
    _checkpoint,
)

# ---- After it


def _processes(run: Run) -> str | None:
    """Slurm or torchrun has started processes. If they are more than the Trainer knows of, each would train by itself;
    if they are fewer, they would wait for the others."""
    environment = run.trainer._accelerator_connector.cluster_environment
    try:
        environment.validate_settings(num_devices=run.trainer.num_devices, num_nodes=run.trainer.num_nodes)
    except ValueError as error:
        return f"trainer: {error}"
    return None


def _compiler(run: Run) -> str | None:
    """torch.compile writes C++ for a CPU, and C (through Triton) for a GPU."""
    execution = run.config.get("model.init_args.execution")
    if not execution or not execution.get("compile"):
        return None
    if run.device == "cpu":
        variable, usual = "CXX", "clang++" if sys.platform == "darwin" else "g++"
        if not shutil.which(os.environ.get(variable, usual)):
            return f"model.execution.compile: needs a C++ compiler; install {usual}, or name one in {variable}"
    return None


def _scaled_gradients(run: Run) -> str | None:
    """A fused optimiser divides the scaled gradients of float16 itself, after they would have been clipped."""
    optimizer = run.config.get("model.init_args.optimizer.init_args")
    scaled = run.config.trainer.get("precision") in ("16-mixed", "16", 16) and run.device == "cuda"
    if scaled and optimizer and optimizer.get("fused") and run.config.trainer.get("gradient_clip_val"):
        return "trainer.precision: 16-mixed cannot clip gradients with `fused: true` in model.optimizer; use bf16-mixed"
    return None


AFTER_TRIAL: tuple[Rule, ...] = (_processes, _compiler, _scaled_gradients)


# ---- The Trainer, tried


def _try_trainer(options: Namespace) -> Trainer:
    """A Trainer that shares with the real one what depends on the machine, so that Lightning's own checks come first:
    devices that are not there, Slurm's or torchrun's numbers, packages of strategies.

    Raises:
        UserError: Lightning refuses.
    """
    keys = ("accelerator", "devices", "num_nodes", "precision", "strategy", "plugins")
    with _silent():
        try:
            arguments = {key: _made(options.get(key)) for key in keys}
            return Trainer(
                **arguments,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"trainer: {explain_trainer(error)}") from error


def _made(option: Any) -> Any:
    """An option of the Trainer with its classes instantiated."""
    if isinstance(option, list):
        return [_made(one) for one in option]
    kind = _class(option)
    if kind is None:
        return option
    return kind(**{key: _made(value) for key, value in (option.get("init_args") or Namespace()).as_dict().items()})


@contextmanager
def _silent() -> Iterator[None]:
    """Lightning says what it finds once more when the real Trainer is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


# ---- Classes in a config


def _strategy_class(option: Any) -> type:
    if isinstance(option, str):
        return dict.get(StrategyRegistry, option.lower(), {}).get("strategy", Strategy)
    return _class(option) or Strategy


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it is loaded, but not from a file
        return True


def _class(option: Any) -> type | None:
    path = option.get("class_path") if isinstance(option, Namespace) else None
    if not path:
        return None
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name)
    return found if isinstance(found, type) else None


def _classes(option: Any) -> Iterator[type]:
    found = _class(option)
    if found is not None:
        yield found
    parts = vars(option).values() if isinstance(option, Namespace) else option if isinstance(option, list) else ()
    for part in parts:
        yield from _classes(part)
