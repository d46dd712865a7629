"""Confidence intervals over seeds."""

import math
import statistics
from collections.abc import Sequence


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of independent runs and the half-width of its two-sided Student-t interval, t * s / sqrt(n).

    Args:
        values: one result a seed, e.g. the mIoU of each. A NaN makes both results NaN: failed seeds are not dropped.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        (mean, half_width). The half-width of one value is NaN, since it says nothing about spread; of none both are.

    Raises:
        ValueError: `confidence` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if not values or any(math.isnan(value) for value in values):
        return math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))  # P(|T| <= quantile) = confidence
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))
