"""Pseudo-masks: a one-channel mask as a three-channel picture (METHOD section 2, eqs. 2-4)."""

import torch
from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.randomness import normal


class PseudoMask(nn.Module):
    """Base class of the output alignment slot, and the vanilla pseudo-mask M_v that all variants share.

    Background pixels are (high, low, (low + high) / 2), foreground pixels (low, high, (low + high) / 2): with the
    released code's values the background is red, the foreground green, and the third channel 0.

    Args:
        low, high: the values a < b, in [-1, 1].

    Subclasses change `encode` and `remove_image`; `logits` is the same for all.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if not -1 <= low < high <= 1:
            raise UserError(f"model.pseudo_mask: needs -1 <= low < high <= 1, got low={low}, high={high}.")
        self.low = low
        self.high = high

    def vanilla(self, mask: Tensor) -> Tensor:
        """M_v of eq. 2: mask (B, H, W), foreground where 1 -> (B, 3, H, W) in [low, high]."""
        foreground = mask == 1
        high, low = (torch.full(mask.shape, value, device=mask.device) for value in (self.high, self.low))
        return torch.stack(
            [torch.where(foreground, low, high), torch.where(foreground, high, low), (low + high) / 2], dim=1
        )

    def encode(self, mask: Tensor, image: Tensor, seed: Tensor) -> Tensor:
        """The picture of a mask.

        Args:
            mask: (B, H, W) uint8, foreground where 1 (255 counts as background here).
            image: (B, 3, H, W) in [-1, 1], the picture that the mask belongs to.
            seed: (B,) int64, the episodes' seeds, for variants that draw noise.

        Returns:
            (B, 3, H, W) in [-1, 1].
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode(mask, image, seed)")

    def remove_image(self, picture: Tensor, image: Tensor) -> Tensor:
        """Undo what `encode` mixed in, as far as decoding needs it: (B, 3, H, W), (B, 3, H, W) -> (B, 3, H, W)."""
        return picture

    def logits(self, picture: Tensor, image: Tensor) -> Tensor:
        """Channel 1 minus channel 0 of the cleaned picture: (B, 3, H, W) -> (B, H, W), foreground where > 0."""
        clean = self.remove_image(picture, image)
        return clean[:, 1] - clean[:, 0]


class Vanilla(PseudoMask):
    """M_v itself (eq. 2)."""

    def encode(self, mask: Tensor, image: Tensor, seed: Tensor) -> Tensor:
        """See `PseudoMask`."""
        return self.vanilla(mask)


class Augmented(PseudoMask):
    """M_a = (1 - gamma) M_v + gamma I_q (eq. 3); decoding subtracts gamma I_q first (eq. 4).

    Args:
        gamma: share of the image, in [0, 1). The released default for LDIS-n is 0.4.
    """

    def __init__(self, gamma: float = 0.4, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low, high)
        if not 0 <= gamma < 1:
            raise UserError(f"model.pseudo_mask.gamma: must be in [0, 1), got {gamma}; at 1 the mask would vanish.")
        self.gamma = gamma

    def encode(self, mask: Tensor, image: Tensor, seed: Tensor) -> Tensor:
        """See `PseudoMask`."""
        return (1 - self.gamma) * self.vanilla(mask) + self.gamma * image

    def remove_image(self, picture: Tensor, image: Tensor) -> Tensor:
        """See `PseudoMask`."""
        return picture - self.gamma * image


class Additive(PseudoMask):
    """The first version's variant: M_v + I_q / alpha, scaled to stay in [-1, 1].

    The sum lies in [low - 1/alpha, high + 1/alpha]; it is divided by 1 + 1/alpha, because the autoencoder knows
    pictures in [-1, 1] only. Decoding subtracts the image's part. (So it is `Augmented` with gamma = 1 / (1 + alpha).)

    Args:
        alpha: greater than 1.
    """

    def __init__(self, alpha: float = 2.0, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low, high)
        if alpha <= 1:
            raise UserError(f"model.pseudo_mask.alpha: must be greater than 1, got {alpha}.")
        self.alpha = alpha

    def encode(self, mask: Tensor, image: Tensor, seed: Tensor) -> Tensor:
        """See `PseudoMask`."""
        return (self.vanilla(mask) + image / self.alpha) / (1 + 1 / self.alpha)

    def remove_image(self, picture: Tensor, image: Tensor) -> Tensor:
        """See `PseudoMask`."""
        return picture * (1 + 1 / self.alpha) - image / self.alpha


class Perturbed(PseudoMask):
    """M_v blended with noise instead of the image, the control for "any extra information helps".

    `(1 - strength) M_v + strength n` with `n` standard normal clipped to [-1, 1]. Nobody knows the noise at decoding,
    so it stays in the picture. The sign of the logit is that of the mask wherever `(1 - strength) (high - low) >
    strength |n_1 - n_0|`, and so everywhere while `strength < (high - low) / (high - low + 2)`, which is 0.5 for the
    default values.

    Args:
        strength: share of the noise, in [0, 1).
    """

    def __init__(self, strength: float = 0.4, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(low, high)
        if not 0 <= strength < 1:
            raise UserError(f"model.pseudo_mask.strength: must be in [0, 1), got {strength}.")
        self.strength = strength

    def encode(self, mask: Tensor, image: Tensor, seed: Tensor) -> Tensor:
        """See `PseudoMask`."""
        noise = normal(seed, "pseudo_mask", tuple(image.shape[1:])).clamp(-1, 1)
        return (1 - self.strength) * self.vanilla(mask) + self.strength * noise
