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
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ldis_lightning.archives import check_archive, check_pickle
from ldis_lightning.errors import UserError, first_line

REST = "meta.pt"  # Lightning's name for it
CHECKSUM = "crc32_of_metadata"  # the one file without a checksum inside

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
        _check_places(folder, _Reader(folder).read_metadata())
        dcp.load(state, storage_reader=_Reader(folder), planner=_Planner())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's state dict, whole, in this process alone.

    Raises:
        UserError: see `read_into`.
    """
    prefix = "state_dict."
    with _explained(folder):
        metadata = _Reader(folder).read_metadata()
        _check_places(folder, metadata)
        state = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in metadata.state_dict_metadata.items()
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
        check_archive(folder / REST)
        rest = torch.load(folder / REST, weights_only=True)
        rest.pop(CHECKSUM, None)
        return rest


def write(state: dict[str, Any], rest: dict[str, Any], folder: Path) -> None:
    """Write this rank's shards into a new folder, and on the first rank the rest. Every rank must call it.

    Raises:
        OSError: of any rank, on the rank itself; the others raise torch's CheckpointException.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=folder)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        with (folder / REST).open("wb") as file:
            torch.save({**rest, CHECKSUM: _checksum(folder)}, file)
            file.flush()
            os.fsync(file.fileno())
        sync(folder)


def is_metadata_intact(folder: Path) -> bool:
    """Whether `.metadata` has the checksum that `meta.pt` keeps of it.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError, ...: one of them is missing or none of ours.
    """
    rest = torch.load(folder / REST, weights_only=True)
    return rest.get(CHECKSUM) == _checksum(folder)


def _checksum(folder: Path) -> int:
    return zlib.crc32((folder / ".metadata").read_bytes())


def shards_of(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """For each file that `.metadata` names, where tensors lie in it: their first bytes and lengths.

    Raises:
        OSError, EOFError, pickle.UnpicklingError, AttributeError, ...: `.metadata` is none of ours.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for place in _Reader(folder).read_metadata().storage_data.values():
        places.setdefault(place.relative_path, []).append((place.offset, place.length))
    return places


def _check_places(folder: Path, metadata: Metadata) -> None:
    """Check that tensors lie inside the files of a folder and are no larger than these.

    Raises:
        ValueError: they are not; torch would read whatever file is named, without end.
    """
    sizes: dict[str, int] = {}
    for place in metadata.storage_data.values():
        file = folder / place.relative_path
        if file.parent != folder or file.is_symlink() or not file.is_file():
            raise ValueError(f"{place.relative_path} is missing, or no file in it")
        sizes[file.name] = file.stat().st_size
        if min(place.offset, place.length) < 0 or place.offset + place.length > sizes[file.name]:
            raise ValueError(f"{file.name} is cut short")
    tensors = [entry for entry in metadata.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata)]
    if sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors) > sum(sizes.values()):
        raise ValueError("its tensors are larger than its files")


def partial_name(path: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(partial: Path, path: Path) -> None:
    """Give a finished file or folder its name, and delete an older checkpoint of that name, whatever it consists of.

    A file takes the place of a file in one step. A folder cannot: until the new one is in its place, the older one lies
    beside it as `.NAME.previous`, and that is deleted only when there is a checkpoint of the name.
    """
    previous = path.with_name(f".{path.name}.previous")
    if path.is_dir() or (path.exists() and partial.is_dir()):
        delete(previous)
        os.replace(path, previous)
    os.replace(partial, path)
    sync(path.parent)
    delete(previous)


def sync(folder: Path) -> None:
    """Have the names in a folder written to the disk, on file systems that know how to."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


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
        data = (Path(self.path) / ".metadata").read_bytes()
        check_pickle(data)
        metadata = _Unpickler(io.BytesIO(data)).load()
        if not isinstance(metadata, Metadata):
            raise ValueError("`.metadata` holds something else")
        return metadata


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
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"the sharded checkpoint {folder} cannot be read: {first_line(error)}") from error
