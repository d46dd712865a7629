"""What a file or folder of weights holds: a model's state, or that of a U-Net alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.sharded_files import REST, is_sharded, read_weights
from ldis_lightning.weights.reading import read_state

UNET_LAYER = "time_embedding.linear_1.weight"
"""Every U-Net of diffusers has it, under its own prefix in whatever holds it; no other model has."""
AVERAGED, RAW = "averaged", "raw"


@dataclass(frozen=True)
class Source:
    """Weights and what they belong to.

    Args:
        path: where they were read.
        state: name -> tensor.
        whole: names are those of an `InContextSegmenter`; else those of its U-Net.
        kind: what it is, in words.
        rest: what else lies in the checkpoint, e.g. the fingerprints of frozen parts.
        aside: name of a part that is not used -> its number of tensors.
    """

    path: Path
    state: Mapping[str, Tensor]
    whole: bool
    kind: str
    rest: Mapping[str, Any] = field(default_factory=dict)
    aside: Mapping[str, int] = field(default_factory=dict)

    def target(self, model: InContextSegmenter) -> nn.Module:
        """The module whose state this is."""
        return model if self.whole else model.unet

    @property
    def unet_prefix(self) -> str:
        """What stands before the U-Net's names."""
        return "unet." if self.whole else ""


def read_source(path: Path, weights: str | None = None) -> Source:
    """Read a checkpoint of ours (a file, or a sharded folder) or any file with a diffusers U-Net.

    Args:
        path: of it.
        weights: `AVERAGED` or `RAW`; None for the averaged ones where there are any.

    Raises:
        UserError: there is nothing of that kind, or it is damaged, or has no averaged weights and they are asked for.
    """
    if path.is_dir():
        return _read_folder(path, weights)
    if not path.is_file():
        raise UserError(f"`{path}` does not exist: name a checkpoint, a file or the folder of a sharded one.")
    content = read_state(path)
    if "state_dict" in content and "pytorch-lightning_version" in content:
        return _read_checkpoint(path, content, weights)
    _refuse_averaged(path, weights)
    return _read_unet(path, content)


def _read_folder(path: Path, weights: str | None) -> Source:
    if not is_sharded(path):
        raise UserError(f"`{path}` is a folder without .metadata, so not a sharded checkpoint: name a file in it.")
    _refuse_averaged(path, weights)
    state = read_weights(path)
    if not state:
        raise UserError(f"the sharded checkpoint {path} holds no model (no `state_dict`).")
    rest = read_state(path / REST) if (path / REST).is_file() else {}
    return Source(path, state, whole=True, kind="a sharded checkpoint", rest=rest)


def _read_checkpoint(path: Path, content: Mapping[str, Any], weights: str | None) -> Source:
    """A checkpoint of Lightning's. Where its `WeightAveraging` took part, `state_dict` holds the averages and
    `current_model_state` what they are averages of."""
    has_averages = "current_model_state" in content
    if not has_averages:
        _refuse_averaged(path, weights)
    part = "current_model_state" if has_averages and weights == RAW else "state_dict"
    kind = "a checkpoint" + (f", {AVERAGED if part == 'state_dict' else RAW} weights" if has_averages else "")
    rest = {key: value for key, value in content.items() if key not in ("state_dict", "current_model_state")}
    return Source(path, tensors_of(content[part]), whole=True, kind=kind, rest=rest)


def _refuse_averaged(path: Path, weights: str | None) -> None:
    if weights == AVERAGED:
        raise UserError(f"`{path}` holds no averaged weights: leave out `--weights averaged`.")


def _read_unet(path: Path, content: Mapping[str, Any]) -> Source:
    """A U-Net wherever it lies: in DeepSpeed's files below `module`, elsewhere perhaps below a prefix such as `unet.`.

    Raises:
        UserError: there is none, or more than one, or DeepSpeed (ZeRO-3) has kept its tensors in other files.
    """
    found = {
        (place, name.removesuffix(UNET_LAYER)): tensors
        for place, tensors in _mappings(content)
        for name in tensors
        if name.endswith(UNET_LAYER)
    }
    if not found:
        raise UserError(
            f"`{path}` holds no U-Net with diffusers' names (there is no {UNET_LAYER} in it) and is no checkpoint of "
            "`ldis fit`."
        )
    if len(found) > 1:
        places = ", ".join(f"`{place}{prefix}`" for place, prefix in found)
        raise UserError(f"`{path}` holds several U-Nets, below {places}: save the one that is meant by itself.")
    ((place, prefix), tensors) = next(iter(found.items()))
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if any(tensor.numel() == 0 for tensor in state.values()):
        raise UserError(
            f"`{path}` names the U-Net's tensors without their values, as DeepSpeed's ZeRO-3 does: gather them with "
            "DeepSpeed's zero_to_fp32.py and convert what it writes."
        )
    aside: dict[str, int] = {}
    for name in tensors:
        if not name.startswith(prefix):
            part = name.split(".")[0]
            aside[part] = aside.get(part, 0) + 1
    kind = f"a U-Net, below `{place}{prefix}`" if place + prefix else "a U-Net"
    return Source(path, state, whole=False, kind=kind, aside=aside)


def _mappings(content: Mapping[Any, Any], place: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a file, with the dotted keys that lead to it."""
    if tensors := tensors_of(content):
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and depth > 0:
            yield from _mappings(value, f"{place}{key}.", depth - 1)


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors among the values of a mapping, by their names."""
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
