"""The instruction: tau = F(E_tau(I_s, M_s)) of eq. 1, with two-stage masking."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldis_lightning.instruction.post_masks import PostMask
from ldis_lightning.instruction.pre_masks import PreMask
from ldis_lightning.instruction.prompt_encoder import PromptEncoder
from ldis_lightning.instruction.tokens import Instruction


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
        size = self.encoder.image_size
        blank = like.tokens.new_zeros(1, 1, 3, size, size, dtype=torch.float32)
        null = self(blank, torch.ones(1, 1, size, size, dtype=torch.uint8, device=blank.device))  # 1 row
        if keep_mask:
            return like._replace(tokens=null.tokens[0][like.position])
        tokens, mask, position = (part.expand(len(like.tokens), *part.shape[1:]) for part in null)
        return Instruction(tokens, mask, position)


def resize_masks(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks nearest: (N, h, w) in {0, 1} -> (N, *size).

    A mask that loses all its foreground in this way (a thin object) keeps every pixel that it touches instead;
    otherwise post-masking could not tell it from an empty one.
    """
    nearest = F.interpolate(mask[:, None], size, mode="nearest")[:, 0]
    touched = F.adaptive_max_pool2d(mask[:, None], size)[:, 0]
    return torch.where(nearest.flatten(1).any(1)[:, None, None], nearest, touched)
