"""The instruction: tau = F(E_tau(I_s, M_s)) of eq. 1, with two-stage masking."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldis_lightning.instruction.post_masks import PostMask
from ldis_lightning.instruction.pre_masks import PreMask
from ldis_lightning.instruction.prompt_encoder import PromptEncoder
from ldis_lightning.instruction.tokens import Instruction, repeated


class InstructionExtractor(nn.Module):
    """Pre-mask, encode, post-mask; the K references of an episode are concatenated along the token axis.

    Args:
        encoder: E_tau.
        pre_mask: how the mask enters the encoder's input.
        post_mask: which tokens the denoiser attends to.
    """

    def __init__(self, encoder: PromptEncoder, pre_mask: PreMask, post_mask: PostMask) -> None:
        super().__init__()
        self.encoder = encoder
        self.pre_mask = pre_mask
        self.post_mask = post_mask
        self._null: tuple[Any, Instruction] | None = None

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return self.encoder.width

    def forward(self, image: Tensor, mask: Tensor) -> Instruction:
        """Extract the instruction of B episodes.

        Args:
            image: (B, K, 3, h, w) float in [-1, 1].
            mask: (B, K, h, w) uint8; 1 the concept, everything else (0 and 255) is background.
        """
        batch, references = image.shape[:2]
        size = (self.encoder.image_size, self.encoder.image_size)
        image, mask = image.flatten(0, 1), (mask.flatten(0, 1) == 1).float()  # (B*K, ...)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
            mask = resize_masks(mask, size)
        prompt = self.pre_mask(image, mask)
        tokens, attention_mask = self.post_mask(self.encoder(prompt), prompt.mask)  # (B*K, T, C), (B*K, T)
        count = tokens.shape[1]
        return Instruction(
            tokens.reshape(batch, references * count, tokens.shape[2]),  # (B, K*T, C)
            attention_mask.reshape(batch, -1),
            torch.arange(count, device=tokens.device).repeat(batch, references),
        )

    def null(self, like: Instruction, keep_mask: bool) -> Instruction:
        """The instruction that says nothing: of an all-zero image with an all-one mask (METHOD section 3).

        Args:
            like: an instruction of B rows, as `forward` or `compact` makes them.
            keep_mask: every row is attended to through its own row's mask in `like`: for each of its tokens there is
                the null instruction's token of the same position. False: through no mask at all, T tokens a row.
        """
        null = self._null_row(like.tokens)
        if keep_mask:
            return like._replace(tokens=null.tokens[0][like.position])
        return repeated(null, len(like.tokens))

    def _null_row(self, like: Tensor) -> Instruction:
        """The null instruction as one row, on the device and of the type of tokens `like`.

        While the encoder is frozen it is made once, and again when a weight has changed.
        """
        weights = list(self.parameters())
        state = (like.device, like.dtype, sum(weight._version for weight in weights))
        if self._null is not None and self._null[0] == state:
            return self._null[1]
        size = self.encoder.image_size
        blank = torch.zeros(1, 1, 3, size, size, device=like.device)
        null = self(blank, torch.ones(1, 1, size, size, dtype=torch.uint8, device=like.device))
        self._null = None if any(weight.requires_grad for weight in weights) else (state, null)
        return null


def resize_masks(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks nearest: (N, h, w) in {0, 1} -> (N, *size).

    A mask that loses all its foreground in this way (a thin object) keeps every pixel that it touches instead;
    otherwise post-masking could not tell it from an empty one.
    """
    nearest = F.interpolate(mask[:, None], size, mode="nearest")[:, 0]
    touched = F.adaptive_max_pool2d(mask[:, None], size)[:, 0]
    return torch.where(nearest.flatten(1).any(1)[:, None, None], nearest, touched)
