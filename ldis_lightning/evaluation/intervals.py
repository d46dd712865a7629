"""Confidence intervals over seeds, without scipy."""

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
    """
    if not values or any(math.isnan(value) for value in values):
        return math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan
    standard_error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, student_t_quantile(confidence, len(values) - 1) * standard_error


def student_t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = confidence, for T of Student's distribution with `degrees` (>= 1) degrees of freedom.

    Bisection to the last bit over the angle atan(t / sqrt(degrees)), in which the probability is a finite sum.

    Raises:
        ValueError: `confidence` is not in (0, 1) or `degrees` is below 1.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"confidence must lie in (0, 1) and degrees be at least 1, got {confidence} and {degrees}")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _central_probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _central_probability(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) * tan(angle)) for an angle in [0, pi/2]: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = degrees % 2
    cosine = math.cos(angle)
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees, 2):  # cos^power, whose factor is the product of k / (k + 1) up to there
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
