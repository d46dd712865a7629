"""Sharded checkpoints as files: a folder in torch.distributed.checkpoint's format, as Lightning lays it out.

`.metadata` is a pickle that says which tensor lies where, `__RANK_0.distcp` hold the tensors, `meta.pt` everything that
is no weight or optimiser state. torch would run whatever code `.metadata` or an entry that is no tensor contains;
here it is not run but refused.
"""

import io
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ldis_lightning.errors import UserError, first_line

REST = "meta.pt"  # Lightning's name for it

ALLOWED = {
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # python 3.13
    ("pathlib._local", "WindowsPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.serialization", "_get_layout"),
}
"""Every class that a `.metadata` names, beside the dtypes of torch."""


def is_sharded(path: Path) -> bool:
    """Whether `path` is a folder with a sharded checkpoint."""
    return (path / ".metadata").is_file()


def read_into(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state`, which may be sharded over other ranks than those that wrote them, in place.

    Every rank of the process group must call it.

    Raises:
        UserError: the checkpoint is not whole, holds code, or does not fit `state`.
    """
    with _explained(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's state dict, whole, in this process alone.

    Raises:
        UserError: see `read_into`.
    """
    with _explained(folder):
        entries = _Reader(folder).read_metadata().state_dict_metadata
    prefix = "state_dict."
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    read_into(state, folder)
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def read_rest(folder: Path) -> dict[str, Any]:
    """What is no weight or optimiser state: epoch, loops, schedules, callbacks, data.

    Raises:
        UserError: it is missing or holds code.
    """
    with _explained(folder):
        return torch.load(folder / REST, weights_only=True)


def write(state: dict[str, Any], rest: dict[str, Any], folder: Path) -> None:
    """Write this rank's shards into a new folder, and on the first rank the rest. Every rank must call it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(rest, folder / REST)


def partial_name(folder: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return folder.with_name(f".{folder.name}.partial")


def put_in_place(partial: Path, folder: Path) -> None:
    """Give a finished folder its name. An older checkpoint of that name is deleted, whatever it consists of; until the
    new one is in its place, it lies beside it as `.NAME.previous`."""
    previous = folder.with_name(f".{folder.name}.previous")
    delete(previous)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(partial, folder)
    delete(previous)


def delete(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Unpickler(pickle.Unpickler):
    """Knows the few classes that describe where tensors lie, and nothing that does anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in ALLOWED:
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(found := getattr(torch, global_name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"`.metadata` names {module_name}.{global_name}, which no checkpoint of ours does")


class _Reader(dcp.FileSystemReader):
    """torch's, but for the pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            return _Unpickler(file).load()


class _Planner(dcp.DefaultLoadPlanner):
    """torch's, but entries that are no tensors are read as plain data."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what goes wrong in reading into one line. torch wraps the errors of ranks in one of its own."""
    try:
        yield
    except dcp.CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"the sharded checkpoint {folder} cannot be read: {first_line(reason)}") from error
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, RuntimeError, ValueError) as error:
        raise UserError(f"the sharded checkpoint {folder} cannot be read: {first_line(error)}") from error
