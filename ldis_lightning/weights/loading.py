"""Modules of diffusers from folders: exactly the weights that the architecture has, or an error that says which not."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import Tensor

from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import some
from ldis_lightning.weights.known import known_part
from ldis_lightning.weights.reading import read_state
from ldis_lightning.weights.resolve import CONFIG, resolve, weights_file

M = TypeVar("M", bound=ModelMixin)


def on_meta() -> bool:
    """Whether modules are being built on the meta device, with shapes and no weights: nothing is read then."""
    return torch.empty(0).is_meta


def architecture(source: str, subfolder: str | None, key: str) -> tuple[dict[str, Any], Path | None]:
    """The config of a part that `resolve` finds, and its folder.

    On the meta device no weights are looked for: the config is a local folder's own, or that of a published part, and
    the folder is None.

    Raises:
        UserError: as `resolve`; on the meta device, the architecture is not known without the files.
    """
    if not on_meta():
        folder = resolve(source, subfolder, key)
        return _read_config(folder / CONFIG, key), folder
    local = Path(source).expanduser() / (subfolder or "") / CONFIG
    if local.is_file():
        return _read_config(local, key), None
    part = known_part(source, subfolder)
    if part is None:
        raise UserError(f"{key}: the architecture of '{source}' is not known without its files; name a local folder.")
    return dict(part.architecture), None


def build(kinds: Mapping[str, type[M]], config: dict[str, Any], folder: Path | None, key: str) -> M:
    """A module of diffusers in float32 with the weights of a folder; without weights where the folder is None.

    Args:
        kinds: the classes that are accepted, by their names.
        config: as `architecture` gives it.
        folder: as `architecture` gives it.
        key: config key, for messages.

    Raises:
        UserError: it is none of `kinds`, or the weights are those of another architecture.
    """
    name = str(config.get("_class_name"))
    if name not in kinds:
        raise UserError(f"{key}: this is a {name}, but {' or '.join(kinds)} is needed.")
    kind: Any = kinds[name]
    if folder is None:
        return kind.from_config(config)
    path = weights_file(folder)
    assert path is not None  # `resolve` has looked
    state = _present_names(read_state(path, key))
    with torch.device("meta"):  # weights are about to come: do not draw any
        module = kind.from_config(config)
    check_fit({name: tensor.shape for name, tensor in module.state_dict().items()}, state, f"{key}: {path}")
    if any(buffer.is_meta for buffer in module.buffers()):  # some may be in no file
        module = kind.from_config(config)
    # Copies: the file may be overwritten while the module is in use.
    module.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}, assign=True)
    return module.eval()


def check_fit(wanted: Mapping[str, torch.Size], state: Mapping[str, Any], where: str) -> None:
    """Compare names and shapes of weights with those that a module wants.

    Raises:
        UserError: they differ; the message names the first of those that are missing, too many or of another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    complaints = [
        _list("misses", [name for name in wanted if name not in shapes]),
        _list("has too many:", [name for name in state if name not in wanted]),
        _list(
            "has other shapes:",
            [
                f"{name} {shapes[name]} instead of {tuple(shape)}"
                for name, shape in wanted.items()
                if name in shapes and shapes[name] != tuple(shape)
            ],
        ),
    ]
    if any(complaints):
        raise UserError(f"{where} does not fit the architecture: it {'; it '.join(filter(None, complaints))}.")


def _list(complaint: str, names: Sequence[str]) -> str:
    return f"{complaint} {some(names)}" if names else ""


def _read_config(path: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: cannot read {path}: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{key}: {path} is no config of diffusers.")
    return config


_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _present_names(state: dict[str, Any]) -> dict[str, Any]:
    """Weights under the names that diffusers uses today; Stable Diffusion 1.5's autoencoder is older than those."""

    def present(name: str) -> str:
        return re.sub(r"(?<=attentions\.\d\.)(query|key|value|proj_attn)(?=\.)", lambda m: _FORMER_NAMES[m[1]], name)

    return {present(name): tensor for name, tensor in state.items()}
