"""Alpha-CLIP (Sun et al., CVPR 2024), the paper's prompt encoder, from the checkpoint that its authors released."""

from pathlib import Path
from typing import Any

import torch

from ldis_lightning.errors import UserError
from ldis_lightning.instruction.prompt_encoder import KEY, PATCH_WEIGHT, TimmPromptEncoder
from ldis_lightning.weights.known import ALPHA_CLIP, ALPHA_CLIP_ZOO
from ldis_lightning.weights.loading import on_meta
from ldis_lightning.weights.resolve import check_known

NAMES = (
    ("transformer.resblocks.", "blocks."),
    (".attn.in_proj", ".attn.qkv"),  # `in_proj.weight`; `in_proj_weight` in plain CLIP
    (".attn.qkv_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
)
"""CLIP's names and timm's, replaced in this order."""


class AlphaCLIPPromptEncoder(TimmPromptEncoder):
    """The visual tower of Alpha-CLIP, without its last norm and its projection.

    timm has CLIP's transformer already; what Alpha-CLIP adds is its second patch convolution, `conv1_alpha`, which is
    the fourth input channel of the first here (see `TimmPromptEncoder`). Tokens are those of the last layer, and the
    class token is dropped: (N, 256, 1024) for ViT-L/14 at 224.

    Args:
        weights: the released file, e.g. `clip_l14_grit20m_fultune_2xe.pth`. Not read on the meta device.
        name: the timm model that the file fits: `vit_base_patch16_clip_quickgelu_224` for the files of ViT-B/16,
            `vit_large_patch14_clip_quickgelu_336` for those at 336.
        trainable: False freezes the encoder, as the paper does.
        standardise: give it pictures as CLIP was trained with them. The released code of LDIS does not: False.
        model_args: sizes other than the model's own, see `TimmPromptEncoder`. The released files have the model's own,
            and are then checked by their hash.

    Raises:
        UserError: there is no such file, it is altered, or it is no Alpha-CLIP of that architecture.
    """

    def __init__(
        self,
        weights: str,
        name: str = "vit_large_patch14_clip_quickgelu_224",
        trainable: bool = False,
        standardise: bool = True,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        if not on_meta():
            _check_file(Path(weights).expanduser(), as_released=not model_args)
        super().__init__(
            name,
            trainable=trainable,
            final_norm=False,
            model_args=model_args,
            weights=weights,
            standardise=standardise,
        )

    def in_timm_format(self, state: dict[str, Any], where: str) -> dict[str, Any]:
        """See `TimmPromptEncoder`."""
        for prefix in ("module.", "visual."):  # of a parallel model; of a whole CLIP
            if any(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if "conv1.weight" not in state or "conv1_alpha.weight" not in state:
            raise UserError(
                f"{where} is no checkpoint of Alpha-CLIP: it has no conv1 and conv1_alpha. "
                "For a transformer of timm's own use TimmPromptEncoder."
            )
        rgb, alpha = state["conv1.weight"], state["conv1_alpha.weight"]
        renamed = {_timm_name(name): value for name, value in state.items() if name not in NOT_TIMM}
        renamed[PATCH_WEIGHT] = torch.cat([rgb, alpha], 1)  # (C, 4, p, p)
        for name in ("cls_token", "pos_embed"):  # (C,) -> (1, 1, C); (L, C) -> (1, L, C)
            if name in renamed:
                renamed[name] = renamed[name].view(1, -1, rgb.shape[0])
        return renamed


NOT_TIMM = ("conv1.weight", "conv1_alpha.weight", "proj")
"""What is put together to one convolution, and the projection, which comes after the tokens."""


def _timm_name(name: str) -> str:
    for clip, timm in NAMES:
        name = name.replace(clip, timm)
    return name


def _check_file(path: Path, as_released: bool) -> None:
    """Check that the file is there and, where it has the name of a released one, that it is that one."""
    if not path.is_file():
        known = ALPHA_CLIP.get(path.name)
        expected = f" Expected: {known}." if known else ""
        raise UserError(
            f"{KEY}.weights: there is no file '{path}'. Alpha-CLIP's authors link to theirs in {ALPHA_CLIP_ZOO}; "
            f"the one that LDIS uses is clip_l14_grit20m_fultune_2xe.pth.{expected}"
        )
    if as_released and path.name in ALPHA_CLIP:
        check_known(path, ALPHA_CLIP[path.name], f"{KEY}.weights")
