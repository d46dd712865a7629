"""Strategies of many processes that Lightning does not have as we need them."""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from ldis_lightning.checkpoint_files import cannot_write, disk_error, save_to_disk, size_of
from ldis_lightning.errors import UserError
from ldis_lightning.latent.sharding import gather, scatter, unsharded
from ldis_lightning.sharded_files import delete, is_sharded, partial_name, put_in_place, read_into, read_rest, write


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all ranks: each holds a share of the trained weights, their gradients and the optimiser's states.

    The model shards its trained networks itself, in `configure_model`. In training their layers are gathered one group
    at a time; in evaluation they are whole on every rank. Runs on GPUs (NCCL) and on CPUs (gloo).

    Checkpoints, of either kind, can be resumed on any number of ranks. A new one is complete before it takes its name,
    so that a run that is killed while it saves keeps the one before.

    Args:
        save_distributed_checkpoint: each rank writes its share into a folder. False gathers everything on the first
            rank, which writes one file, like every other strategy's.
        process_group_backend: null for the device's own, "nccl" or "gloo".
    """

    def __init__(self, save_distributed_checkpoint: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Lightning's hook. All ranks are data-parallel; Lightning would make those of a node tensor-parallel."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Lightning's hook, after `configure_model`.

        Raises:
            UserError: a trained parameter is not sharded, so that its gradient would not be averaged over the ranks.
        """
        if left := unsharded(self._module):
            raise UserError(
                f"trainer.strategy: FullySharded cannot train `{left[0]}` ({len(left)} parameters like it), which "
                "the model's `configure_model` does not shard; freeze it, or use `--config configs/cluster/ddp.yaml`."
            )
        super().setup(trainer)

    # ---- Evaluation

    def on_validation_start(self) -> None:
        """Lightning's hook: see `ldis_lightning.latent.sharding.gather`."""
        gather(self._module)

    def on_validation_end(self) -> None:
        """Lightning's hook."""
        scatter(self._module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # ---- Checkpoints

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state: sharded and by names, or whole, by numbers (as in a file of any strategy) and on the
        first rank alone."""
        options = StateDictOptions(full_state_dict=not self._save_distributed_checkpoint, cpu_offload=True)
        optimizer = _plain(optimizer)
        state = get_optimizer_state_dict(self._module, optimizer, options=options)
        if self._save_distributed_checkpoint or not state:
            return state
        return _renamed(state, {name: number for number, name in enumerate(_names(self._module, optimizer))})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint beside the place where it belongs, then put it there.

        Raises:
            UserError: the disk is full or refuses, for any rank. All ranks raise it, and the former checkpoint is
                intact.
        """
        path = Path(self.broadcast(filepath))
        partial = partial_name(path)
        needed = size_of(checkpoint)
        self._all_or_none(lambda: self._make_room(partial), path, needed)
        self._all_or_none(lambda: self._write(checkpoint, partial), path, needed)
        self._all_or_none(lambda: put_in_place(partial, path) if self.is_global_zero else None, path, needed)

    def _make_room(self, partial: Path) -> None:
        if self.is_global_zero:
            partial.parent.mkdir(parents=True, exist_ok=True)
            delete(partial)  # of a run that was killed

    def _write(self, checkpoint: dict[str, Any], partial: Path) -> None:
        if self._save_distributed_checkpoint:
            states = {"state_dict": checkpoint.pop("state_dict")}
            for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
                states[f"optimizer_{number}"] = state
            write(states, checkpoint, partial)
        elif self.is_global_zero:
            save_to_disk(checkpoint, partial)

    def _all_or_none(self, action: Callable[[], object], path: Path, needed: int) -> None:
        """What every rank does of the saving of `path`; if one cannot, none goes on to wait for it."""
        error: OSError | None = None
        try:
            action()
        except (OSError, CheckpointException) as caught:
            error = disk_error(caught)
        if self.reduce_boolean_decision(error is not None, all=False):
            if self.is_global_zero:
                delete(partial_name(path))
            self.barrier()
            raise cannot_write(path, error or OSError(errno.EIO, "another rank failed"), needed) from error

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimiser states of a sharded folder, or of a file of any strategy. Code in it is never run.

        Returns:
            What else is in it.

        Raises:
            UserError: it cannot be read, or holds other weights than the model.
        """
        path = Path(self.broadcast(checkpoint_path))
        optimizers = [_plain(optimizer) for optimizer in self.optimizers]
        return self._load_shards(path, optimizers) if is_sharded(path) else self._load_file(path, optimizers)

    def _load_shards(self, path: Path, optimizers: list[Optimizer]) -> dict[str, Any]:
        weights = get_model_state_dict(self._module)
        states = {f"optimizer_{i}": get_optimizer_state_dict(self._module, one) for i, one in enumerate(optimizers)}
        read_into({"state_dict": weights, **states}, path)
        self._module.load_state_dict(weights)
        for optimizer, state in zip(optimizers, states.values(), strict=True):
            set_optimizer_state_dict(self._module, optimizer, optim_state_dict=state)
        return read_rest(path)

    def _load_file(self, path: Path, optimizers: list[Optimizer]) -> dict[str, Any]:
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        weights = checkpoint.pop("state_dict")
        _check_fit(weights, get_model_state_dict(self._module), path)  # pyright: ignore[reportArgumentType]
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self._module, weights, options=options)
        for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", []), strict=False):
            named = _renamed(state, dict(enumerate(_names(self._module, optimizer))))
            set_optimizer_state_dict(self._module, optimizer, optim_state_dict=named, options=options)
        return checkpoint

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def _plain(optimizer: Any) -> Optimizer:
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _names(module: nn.Module, optimizer: Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in the order in which its own state dict numbers them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser's state dict with other names for its parameters; those that `names` lacks stay."""
    groups = [
        {**group, "params": [names.get(name, name) for name in group["params"]]} for group in state["param_groups"]
    ]
    return {"state": {names.get(name, name): value for name, value in state["state"].items()}, "param_groups": groups}


def _check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """torch would keep the model's own values for what a whole state dict lacks."""
    odd = sorted(found.keys() ^ expected.keys())
    odd += [name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape]
    if odd:
        raise UserError(
            f"the checkpoint {path} does not fit the model: {len(odd)} weights are missing, unknown or of another "
            f"shape, the first is `{odd[0]}`; name the config that it was trained with."
        )
