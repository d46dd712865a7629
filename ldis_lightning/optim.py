"""Learning rate schedules as components: factor of the learning rate as a function of the optimiser step."""

import math

from ldis_lightning.errors import UserError


class LearningRateSchedule:
    """Base class of the schedule slot. Subclasses implement `factor`."""

    def factor(self, step: int, total_steps: int) -> float:
        """Factor in [0, 1] of the optimiser's learning rate.

        Args:
            step: optimiser steps done, >= 0.
            total_steps: optimiser steps of the whole run; -1 where the run has no end.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement factor(step, total_steps)")


class WarmupConstant(LearningRateSchedule):
    """Linear from 0 over `warmup_steps`, then constant: the paper's schedule, with 10,000."""

    def __init__(self, warmup_steps: int = 10_000) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total_steps: int) -> float:
        """See `LearningRateSchedule`."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps))


class OneCycle(LearningRateSchedule):
    """Linear warm-up over a share of the run, then half a cosine down to 0.

    Args:
        warmup: share of the run, in [0, 1).
    """

    def __init__(self, warmup: float = 0.1) -> None:
        if not 0 <= warmup < 1:
            raise UserError(f"model.schedule.warmup: a share of the run in [0, 1), got {warmup}.")
        self.warmup = warmup

    def factor(self, step: int, total_steps: int) -> float:
        """See `LearningRateSchedule`."""
        if total_steps < 1:
            raise UserError("model.schedule: OneCycle needs an end of the run; set trainer.max_steps.")
        rise = max(1.0, self.warmup * total_steps)
        if step < rise:
            return min(1.0, (step + 1) / rise)  # `rise` need not be whole
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, total_steps - rise))))
