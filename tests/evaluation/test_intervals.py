import math

import pytest

from ldis_lightning.evaluation.intervals import mean_interval


@pytest.mark.parametrize(
    ("confidence", "count", "quantile"),  # printed tables of Student's t, two-sided, count - 1 degrees of freedom
    [
        (0.95, 2, 12.706204736),
        (0.95, 3, 4.302652730),
        (0.95, 5, 2.776445105),
        (0.95, 31, 2.042272456),
        (0.99, 6, 4.032142984),
        (0.90, 10, 1.833112933),
    ],
)
def test_half_width_is_that_of_the_printed_tables(confidence: float, count: int, quantile: float) -> None:
    values = [float(k) for k in range(count)]
    deviation = math.sqrt(count * (count + 1) / 12)  # sample standard deviation of 0 .. count - 1
    mean, half_width = mean_interval(values, confidence)
    assert mean == (count - 1) / 2
    assert half_width == pytest.approx(quantile * deviation / math.sqrt(count), rel=1e-8)


def test_interval_of_three_seeds() -> None:
    mean, half_width = mean_interval([0.61, 0.63, 0.65])
    assert mean == pytest.approx(0.63)
    assert half_width == pytest.approx(4.302652730 * 0.02 / math.sqrt(3), rel=1e-8)


def test_interval_of_equal_values_is_a_point() -> None:
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_one_value_has_a_mean_but_no_interval() -> None:
    mean, half_width = mean_interval([0.4])
    assert mean == 0.4
    assert math.isnan(half_width)


@pytest.mark.parametrize("values", [[], [0.4, math.nan, 0.6]])
def test_nothing_or_a_failed_seed_gives_nan(values: list[float]) -> None:
    assert all(math.isnan(number) for number in mean_interval(values))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        mean_interval([0.1, 0.2], confidence)
