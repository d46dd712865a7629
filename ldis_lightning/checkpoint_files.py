"""Checkpoint files that are whole or not there, and the check that tells the one from the other.

A checkpoint is written beside its place, as `.NAME.partial`, and takes its name when all of it is on the disk. Whatever
ends the process before, the checkpoint that had the name keeps it.
"""

import errno
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from torch import Tensor

from ldis_lightning.errors import UserError, first_line
from ldis_lightning.sharded_files import (
    REST,
    delete,
    is_metadata_intact,
    is_sharded,
    partial_name,
    put_in_place,
    shards_of,
)

FULL = (errno.ENOSPC, errno.EDQUOT)
MEGABYTE = 1e6
READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,  # of torch; of zipfile for an encrypted member
    NotImplementedError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
"""What reading bytes that are no checkpoint has been seen to raise."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints, but for how local files are written.

    Lightning makes a copy in memory and has fsspec write it to a temporary folder, from where it is moved: a copy that
    can be cut short where that is another file system. Here the checkpoint is streamed to a file beside its place.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; `path` has the former one, or none, until all of the new one is on the disk.

        Raises:
            UserError: the disk is full or refuses; the former checkpoint is intact.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_whole(checkpoint, Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is there."""
        if _is_local_file_protocol(path):
            delete(Path(path))
        else:
            super().remove_checkpoint(path)


def write_whole(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as one file.

    Raises:
        UserError: the disk is full or refuses; what `path` held is intact.
    """
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete(partial)  # of a run that was killed
        save_to_disk(checkpoint, partial)
        put_in_place(partial, path)
    except OSError as error:
        _forget(partial)
        raise cannot_write(path, error, size_of(checkpoint)) from error
    except BaseException:
        _forget(partial)
        raise


def save_to_disk(content: Any, path: Path, save: Callable[[Any, Any], object] = torch.save) -> None:
    """`torch.save` to a new file, of which all is on the disk when this returns.

    Raises:
        OSError: the disk is full or refuses. torch's writer would hide that behind an error of its own.
    """
    with path.open("wb") as file:
        kept = _ErrorKeeper(file)
        try:
            save(content, kept)
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:
            if kept.error is not None:
                raise kept.error from error
            raise


class _ErrorKeeper:
    """A file for torch to write to. It keeps the first error, behind which torch's writer fails with another one."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def cannot_write(path: Path, error: OSError, needed: int) -> UserError:
    """What to say where a checkpoint could not be written.

    Args:
        path: the checkpoint's.
        needed: about how many bytes it has.
    """
    intact = _checkpoint_before(path)
    before = f"the checkpoint before, {intact.name}, is intact" if intact else "there is no checkpoint before it"
    go_on = "go on with --ckpt_path last" if intact else "start again"
    is_full = error.errno in FULL or (error.errno == errno.EIO and needed > _free(path.parent))  # torch hides which
    if not is_full:
        reason = error.strerror or first_line(error)
        return UserError(f"the checkpoint {path} cannot be written ({reason}); {before}; mend that and {go_on}")
    missing = max(1, -int(-(needed - _free(path.parent)) // MEGABYTE))
    return UserError(f"the disk of {path} is full; {before}; free {missing} MB and {go_on}")


def disk_error(error: BaseException) -> OSError:
    """The error of the disk that is behind another one. That of sharded checkpoints holds those of all ranks."""
    failures = [failure for failure, _ in getattr(error, "failures", {}).values()]
    for candidate in (*_causes(error), *(cause for failure in failures for cause in _causes(failure))):
        if isinstance(candidate, OSError):
            return candidate
    return OSError(errno.EIO, first_line(next(iter(failures), error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _checkpoint_before(path: Path) -> Path | None:
    """What a run goes on from if `path` cannot be written: what lies there, else the newest beside it."""
    if path.exists():
        return path
    times = {other: modified(other) for other in checkpoints_in(path.parent)}
    found = [other for other, time in times.items() if time is not None]
    return max(found, key=lambda other: times[other] or 0, default=None)


def _free(folder: Path) -> int:
    try:
        state = os.statvfs(folder)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize


def _forget(partial: Path) -> None:
    """Delete what was written so far, if the disk lets us: another error is on its way to the user."""
    with suppress(OSError):
        delete(partial)


def size_of(content: Any) -> int:
    """Bytes of all tensors in nested dicts and lists, about what a file of them takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content))


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _tensors(part)


# ---- Looking for checkpoints


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints that lie in a folder, whole or not, in no order; none where there is no such folder.

    Among them is `.NAME.ckpt.previous`, the former folder of a sharded one, which a run that was killed just then has
    left. What is still `.partial` is no checkpoint.
    """
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.name.removesuffix(".previous").endswith(".ckpt")]


def modified(path: Path) -> int | None:
    """When a checkpoint was written, in nanoseconds; None if it has vanished."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


# ---- Whole or not


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if it is whole. Code in it is not run.

    Every byte of weights and states is read and compared with its checksum.

    Args:
        path: of a file, or of the folder of a sharded checkpoint.
    """
    try:
        if not path.is_dir():
            return _file_damage(path)
        if not is_sharded(path):
            return "it has no `.metadata`"
        return _file_damage(path / REST, holds="loops") or _shard_damage(path)
    except READ_ERRORS as error:
        return first_line(error)


def _file_damage(path: Path, holds: str = "state_dict") -> str | None:
    """The same of one file.

    Args:
        holds: a key that it must have.
    """
    if not path.is_file():
        return f"{path.name} is missing"
    with path.open("rb") as file:
        if reason := _zip_damage(file):
            return reason
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, dict) or holds not in content:
        return f"it has no `{holds}`"
    return None


def _zip_damage(file: Any) -> str | None:
    """torch writes zip archives of members that are stored as they are, each with a checksum."""
    if not zipfile.is_zipfile(file):
        return "it is cut short, or no checkpoint"
    with zipfile.ZipFile(file) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            return f"`{packed[0]}` in it is compressed, which torch does not do"
        broken = archive.testzip()
    return f"the checksum of `{broken}` in it is wrong" if broken else None


def _shard_damage(folder: Path) -> str | None:
    if not is_metadata_intact(folder):
        return "the checksum of `.metadata` is wrong"
    for name, places in shards_of(folder).items():
        file = folder / name
        if file.parent != folder or file.is_symlink() or not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < max(start + length for start, length in places):
            return f"{name} is cut short"
        with file.open("rb") as shard:
            for start, length in places:  # each tensor is a small archive of torch's
                shard.seek(start)
                if reason := _zip_damage(BytesIO(shard.read(length))):
                    return f"{name}: {reason}"
    return None


# ---- Setting aside


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint to `NAME.damaged`, in the place of an earlier one of that name; it may be gone."""
    damaged = path.with_name(f"{path.name}.damaged")
    with suppress(FileNotFoundError):
        delete(damaged)
        os.replace(path, damaged)


def remove_partials(folder: Path, seconds: float = 0) -> None:
    """Delete what killed processes have left half written in a folder.

    Args:
        seconds: nobody has written to it for so long. 0 where nobody else can.
    """
    for partial in folder.glob(".*.ckpt.partial"):
        with suppress(FileNotFoundError):
            if time.time() - _touched(partial) >= seconds:
                delete(partial)


def _touched(path: Path) -> float:
    """When a file, or any in a folder, was written to."""
    return max(part.stat().st_mtime for part in (path, *path.glob("*")))
