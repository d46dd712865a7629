"""Reading weights from files without running anything that they say."""

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldis_lightning.archives import check_archive, check_stream, is_archive
from ldis_lightning.errors import UserError, first_line

TENSOR_PARTS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{("torch", str(dtype).split(".")[1]): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}
"""All that `read_state` ever builds beside plain numbers, strings, lists and dicts."""


class Placeholder(dict):
    """Stands for an object of a class that is not loaded. It takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        """Any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        """An instance may be called like the function that it may stand for."""
        return self

    def __setstate__(self, state: Any) -> None:
        """What `pickle` hands over as the object's attributes is forgotten."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items are forgotten."""

    def append(self, item: Any) -> None:
        """Items are forgotten."""

    def extend(self, items: Any) -> None:
        """Items are forgotten."""


class _InertUnpickler(pickle.Unpickler):
    """Knows what tensors are made of; everything else becomes a `Placeholder`. It imports nothing."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """See `pickle.Unpickler`."""
        return TENSOR_PARTS.get((module_name, global_name), Placeholder)


INERT_PICKLE: Any = SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert_pickle")
"""What `torch.load` takes for the module `pickle`."""


def read_state(path: str | Path, key: str = "") -> dict[str, Any]:
    """Read a file of weights: safetensors by its ending, else what `torch.save` writes.

    Nothing in the file is executed: what torch does not load with `weights_only=True` (e.g. DeepSpeed's checkpoints
    hold config objects) is read again with every unknown class replaced by an inert `Placeholder`. Tensors are mapped
    from the file where possible: copy what is to outlive it.

    Args:
        path: the file.
        key: config key or flag that named it, for messages.

    Returns:
        The file's dict, nested as it was saved, with tensors on the CPU.

    Raises:
        UserError: the file is missing, truncated, or no such file.
    """
    path = Path(path)
    check_whole(path, key)
    state = _read_safetensors(path, key) if path.suffix == ".safetensors" else _read_torch(path, key)
    if not isinstance(state, dict):
        raise _refusal(path, key, f"holds a {type(state).__name__}, not a dict of weights")
    return state


def check_whole(path: Path, key: str = "") -> None:
    """Check, without reading the weights, that a file is all there.

    Raises:
        UserError: it is missing, or truncated, or something else than its ending says.
    """
    if not path.is_file():
        raise _refusal(path, key, "there is no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise _refusal(path, key, "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if path.suffix == ".safetensors":
        expected = _safetensors_size(path, key, size)
        if size != expected:
            raise _refusal(path, key, f"has {size} bytes, but the tensors that it lists need {expected}: {AGAIN}")
    elif start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _refusal(path, key, f"ends early, after {size} bytes: {AGAIN}")


AGAIN = "it is truncated or altered; get it again"


def _safetensors_size(path: Path, key: str, size: int) -> int:
    """Bytes that a safetensors file must have: 8, the header, and the end of its last tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise _refusal(path, key, f"has {size} bytes, less than a safetensors header announces: {AGAIN}")
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _refusal(path, key, f"has no safetensors header: {AGAIN}") from error


def _read_safetensors(path: Path, key: str) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise _refusal(path, key, f"safetensors cannot read it ({first_line(error)})") from error


def _read_torch(path: Path, key: str) -> Any:
    zipped = is_archive(path)
    if zipped and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise _refusal(path, key, "is a TorchScript program, not weights")
    try:
        check_archive(path) if zipped else check_stream(path)
    except ValueError as error:
        raise _refusal(path, key, f"torch cannot read it: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # The old format is a row of pickles, which are not worth a reader of their own.
        if not zipped:
            raise _refusal(
                path, key, "is no file of weights, or one of torch before 1.6 with more than weights"
            ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _refusal(path, key, f"torch cannot read it ({first_line(error)})") from error
    try:
        return torch.load(path, map_location="cpu", pickle_module=INERT_PICKLE, weights_only=False, mmap=True)
    except Exception as error:  # a hostile file may break the reader anywhere, and that must be all it does
        raise _refusal(path, key, f"torch cannot read it ({first_line(error)})") from error


def _refusal(path: Path, key: str, reason: str) -> UserError:
    return UserError(f"{key}: {path}: {reason}." if key else f"{path}: {reason}.")
