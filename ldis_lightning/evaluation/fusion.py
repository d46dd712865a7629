"""Several concepts in one picture: each is predicted alone, then one label a pixel is chosen (METHOD eq. 7)."""

import torch
from torch import Tensor

MAX_CONCEPTS = 254
"""A label map is uint8, with 0 for the background and 255 for ignored pixels."""


def fuse_concepts(logits: Tensor) -> Tensor:
    """The most probable label of each pixel (eq. 7).

    With p~_c = exp(logit_c) and 1 for the background, the arg max of p_c is the greatest logit where that is above 0,
    and the background elsewhere. Of equal ones the background wins, then the first concept.

    Args:
        logits: (F, C, H, W) of C concepts, at the size that is to be scored; concept c where > 0.

    Returns:
        (F, H, W) uint8: 0 background, c + 1 the concept c.

    Raises:
        ValueError: C is not in 1 .. 254.
    """
    if not 1 <= logits.shape[1] <= MAX_CONCEPTS:
        raise ValueError(f"a label map holds 1 to {MAX_CONCEPTS} concepts, got {logits.shape[1]}")
    best, concept = logits.max(1)  # (F, H, W); `max` gives the first of equal ones
    return torch.where(best > 0, concept + 1, 0).to(torch.uint8)


def concept_probabilities(logits: Tensor) -> Tensor:
    """p_c of eq. 7: p~_c / (1 + sum_i p~_i).

    Args:
        logits: (F, C, H, W).

    Returns:
        (F, C+1, H, W) float32 in [0, 1], summing to 1; channel 0 is the background.
    """
    logits = logits.float()
    background = torch.zeros_like(logits[:, :1])
    return torch.cat([background, logits], 1).softmax(1)  # exp(logit) is never formed: it would overflow
