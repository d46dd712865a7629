"""How K references become one answer: as one instruction, or as K answers that are put together."""

from torch import Tensor


class ReferenceFusion:
    """Base class of the slot: what is done with K references in evaluation. Training always concatenates tokens.

    Attributes:
        separate: every reference gives an answer of its own, and `merge` makes one of them; otherwise the tokens of
            all of them are one instruction and `merge` is not called.
    """

    separate = True

    def merge(self, logits: Tensor) -> Tensor:
        """K answers of an episode to one: (B, K, H, W) -> (B, H, W), foreground where > 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement merge(logits)")


class ConcatenatedTokens(ReferenceFusion):
    """The paper's way: the denoiser attends to the tokens of all references at once."""

    separate = False


class MeanLogits(ReferenceFusion):
    """The mean of the K answers' logits."""

    def merge(self, logits: Tensor) -> Tensor:
        """See `ReferenceFusion`."""
        return logits.mean(1)


class MajorityVote(ReferenceFusion):
    """A pixel is foreground where more than half of the K answers say so. Logits are the surplus of votes, in
    [-0.5, 0.5]."""

    def merge(self, logits: Tensor) -> Tensor:
        """See `ReferenceFusion`."""
        return (logits > 0).float().mean(1) - 0.5
