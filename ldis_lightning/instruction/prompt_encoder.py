"""Prompt encoders: E_tau of eq. 1, from a reference and its alpha channel to a grid of tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.func import functional_call

from ldis_lightning.checkpoints import from_files
from ldis_lightning.errors import UserError, first_line
from ldis_lightning.instruction.pre_masks import Prompt
from ldis_lightning.latent.surgery import widen_input
from ldis_lightning.weights.loading import check_fit, on_meta
from ldis_lightning.weights.reading import read_state

KEY = "model.instruction.encoder"
PATCH_WEIGHT = "patch_embed.proj.weight"


class PromptEncoder(nn.Module):
    """Base class of the prompt encoder slot.

    Attributes:
        image_size: side S of the square input, in pixels.
        width: channels C of a token.

    Subclasses implement `forward(prompt) -> (N, g*g, C)`, row by row from the top left.
    """

    image_size: int
    width: int

    @property
    def stages(self) -> list[nn.Module]:
        """The modules that `torch.compile` is to compile."""
        return []

    def forward(self, prompt: Prompt) -> Tensor:
        """See the class."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(prompt) -> tokens")


class TimmPromptEncoder(PromptEncoder):
    """Any timm vision transformer (CLIP, SigLIP, DINO, EVA, ...) with a fourth input channel for the mask.

    Alpha-CLIP adds a second, one-channel patch convolution for the mask to the RGB one. That sum is one convolution
    over four channels, and this is how it is held here. The alpha channel's weights start at zero when the RGB weights
    are pretrained, so that the encoder starts as the one that was trained, and at random otherwise. Class and register
    tokens are dropped; tokens are taken after the last transformer layer, before pooling and any head, which are left
    out of the model. Width, token grid and the pictures' statistics are read from the model.

    On the meta device nothing is read: the architecture alone is built.

    Args:
        name: timm model name, e.g. `vit_large_patch14_clip_224.openai` or `vit_tiny_patch16_224`.
        pretrained: load timm's weights of that name.
        trainable: False freezes the encoder, as the paper does.
        final_norm: apply the transformer's last layer norm to the tokens.
        model_args: further arguments of `timm.create_model`, e.g. `img_size`, `patch_size`, `embed_dim`, `depth`.
        weights: a file in timm's own format with three input channels or four, instead of `pretrained`.
        standardise: pictures are given as the transformer's own training gave them, less their mean and divided by
            their deviation; False gives them in [-1, 1] as they are.

    Raises:
        UserError: timm has no such model or cannot get its weights, the file does not fit, or the model has no patch
            convolution or no square grid of tokens.
    """

    vit: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        pretrained: bool = False,
        trainable: bool = True,
        final_norm: bool = True,
        model_args: dict[str, Any] | None = None,
        weights: str | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise UserError(f"{KEY}: weights and pretrained: true name two sources of weights; keep one.")
        self.vit = _create_vit(name, pretrained and not on_meta(), model_args or {})
        self.image_size, self.grid, self.width = _token_grid(self.vit, name)
        patch = self.vit.patch_embed
        patch.proj = widen_input(patch.proj, 1, zero=pretrained)
        unused = _leave_out(self.vit, ("attn_pool", "fc_norm", *([] if final_norm else ["norm"])))
        if weights is not None and not on_meta():
            self._load(Path(weights).expanduser(), unused)
        statistics = resolve_model_data_config(self.vit) if standardise else {"mean": [0.5] * 3, "std": [0.5] * 3}
        # The input comes in [-1, 1]; timm's statistics are for [0, 1].
        self.register_buffer("mean", torch.tensor(statistics["mean"]).view(3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(statistics["std"]).view(3, 1, 1) * 2, persistent=False)
        self.trainable = trainable
        self.requires_grad_(trainable)
        if not trainable and (pretrained or weights is not None):
            from_files(self)

    def in_timm_format(self, state: dict[str, Any], where: str) -> dict[str, Any]:
        """The weights of a file under timm's names.

        Args:
            state: the file's content.
            where: how to name it in messages.
        """
        return next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)

    def _load(self, path: Path, unused: set[str]) -> None:
        """Load the transformer's weights; `unused` names what a file may have beyond them, heads aside."""
        where = f"{KEY}.weights: {path}"
        state = self.in_timm_format(read_state(path, f"{KEY}.weights"), where)
        state = {name: value for name, value in state.items() if name not in unused and not name.startswith("head")}
        rgb = state.get(PATCH_WEIGHT)
        if isinstance(rgb, Tensor) and rgb.ndim == 4 and rgb.shape[1] == 3:
            state[PATCH_WEIGHT] = torch.cat([rgb, torch.zeros_like(rgb[:, :1])], 1)  # (C, 4, p, p)
        check_fit({name: tensor.shape for name, tensor in self.vit.state_dict().items()}, state, where)
        self.vit.load_state_dict(state)

    def forward(self, prompt: Prompt) -> Tensor:
        """Prompt of N references at S x S -> tokens (N, g*g, C)."""
        image = (prompt.image - self.mean) / self.std
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            tokens = self.vit.forward_features(torch.cat([image, prompt.alpha], 1))  # (N, prefix + g*g, C)
        return tokens[:, -self.grid * self.grid :]  # (N, g*g, C)

    @property
    def stages(self) -> list[nn.Module]:
        """See `PromptEncoder`: the transformer's layers."""
        return list(self.vit.blocks)

    def train(self, mode: bool = True) -> "TimmPromptEncoder":
        """A frozen encoder stays in evaluation mode."""
        return super().train(mode and self.trainable)


def _create_vit(name: str, pretrained: bool, model_args: dict[str, Any]) -> Any:
    """timm's model of that name, checked for what a prompt encoder needs."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f" Some that it has: {', '.join(similar)}." if similar else ""
        raise UserError(f"{KEY}.name: timm has no model '{name}'.{hint}")
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args)
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"{KEY}: timm cannot load the pretrained weights of '{name}' ({first_line(error)}). Without a network, "
            f"bring a file of them here and name it by {KEY}.weights instead of pretrained: true."
        ) from error
    patch: Any = getattr(vit, "patch_embed", None)
    if not isinstance(getattr(patch, "proj", None), nn.Conv2d):
        raise UserError(f"{KEY}.name: '{name}' has no patch convolution; name a vision transformer.")
    grid = getattr(patch, "grid_size", None)
    if grid is not None and grid[0] != grid[1]:
        raise UserError(f"{KEY}: the token grid of '{name}' is {grid}, not square.")
    return vit


def _token_grid(vit: Any, name: str) -> tuple[int, int, int]:
    """Side of the input, side of the token grid, and channels of a token, by a forward pass of shapes alone."""
    size = (getattr(vit.patch_embed, "img_size", None) or vit.pretrained_cfg["input_size"][1:])[0]
    tensors = {**dict(vit.named_parameters()), **dict(vit.named_buffers())}
    shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
    stand_in = _Features(vit)
    picture = torch.zeros(1, 3, size, size, device="meta")
    tokens = functional_call(stand_in, {f"vit.{key}": tensor for key, tensor in shapes.items()}, (picture,))
    grid = size // vit.patch_embed.proj.stride[0]
    if tokens.ndim != 3 or tokens.shape[1] != grid * grid + getattr(vit, "num_prefix_tokens", 0):
        raise UserError(f"{KEY}.name: '{name}' gives {tuple(tokens.shape)[1:]}, not a token for each of its patches.")
    return size, grid, tokens.shape[2]


class _Features(nn.Module):
    """A transformer whose call is `forward_features`."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, picture: Tensor) -> Tensor:
        return self.vit.forward_features(picture)


def _leave_out(vit: Any, parts: Iterable[str]) -> set[str]:
    """Take out parts that the tokens do not pass: their parameters would get no gradient, which DDP does not accept.

    Returns:
        The names of their weights.
    """
    names = set()
    for part in parts:
        module = getattr(vit, part, None)
        if isinstance(module, nn.Module):
            names |= {f"{part}.{name}" for name in module.state_dict()}
            setattr(vit, part, nn.Identity())
    return names
