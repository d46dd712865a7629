"""Post-masking, the second stage of the two-stage masking: which tokens the denoiser may attend to."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PostMask(nn.Module):
    """Base class of the post-masking slot: choose or pool the tokens of N references.

    Subclasses implement `forward(tokens, mask) -> (tokens, attention_mask)` with `tokens` (N, g*g, C) and `mask`
    (N, S, S) float in {0, 1}; the result is `tokens` (N, T, C) with any T and `attention_mask` (N, T) bool, False = not
    attended to. At least one must be True in every row: diffusers' attention leaks every token of a row that is masked
    as a whole.
    """

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(tokens, mask)")


class NoPostMasking(PostMask):
    """Every token is attended to."""

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `PostMask`."""
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class CrossAttentionMask(PostMask):
    """Only foreground tokens are attended to; the paper's choice."""

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `PostMask`."""
        return tokens, foreground_tokens(mask, tokens.shape[1])


class PrototypePooling(PostMask):
    """Masked average pooling of the tokens into one prototype token a reference (the paper's first version)."""

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `PostMask`."""
        weight = foreground_tokens(mask, tokens.shape[1]).to(tokens.dtype)  # (N, L)
        prototype = torch.einsum("nl,nlc->nc", weight, tokens) / weight.sum(1, keepdim=True)
        return prototype[:, None], torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)


def foreground_tokens(mask: Tensor, token_count: int) -> Tensor:
    """The mask on the token grid, resized nearest and flattened in the order of the tokens.

    A thin object may fall between the samples of nearest resizing; a mask that loses all its foreground in this way
    gives the token that it covers best, so that no row is empty.

    Args:
        mask: (N, S, S) float in {0, 1}.
        token_count: g * g, the number of tokens of one reference.

    Returns:
        (N, g*g) bool with at least one True in every row.
    """
    grid = round(token_count**0.5)
    nearest = F.interpolate(mask[:, None], (grid, grid), mode="nearest").flatten(1) > 0.5  # (N, g*g)
    coverage = F.adaptive_avg_pool2d(mask[:, None], grid).flatten(1)
    best = F.one_hot(coverage.argmax(1), token_count).bool()
    return nearest | (best & ~nearest.any(1, keepdim=True))  # in operations that ONNX has for bool
