import math

import pytest

from ldis_lightning.evaluation.intervals import mean_interval, student_t_quantile


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),  # printed tables of Student's t, two-sided
    [
        (0.95, 1, 12.706204736),
        (0.95, 2, 4.302652730),
        (0.95, 3, 3.182446305),
        (0.95, 4, 2.776445105),
        (0.95, 7, 2.364624252),
        (0.95, 30, 2.042272456),
        (0.99, 5, 4.032142984),
        (0.99, 10, 3.169272673),
        (0.90, 9, 1.833112933),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(confidence: float, degrees: int, quantile: float) -> None:
    assert student_t_quantile(confidence, degrees) == pytest.approx(quantile, abs=2e-9)


def test_quantile_closed_forms() -> None:
    # One degree is the Cauchy distribution; two degrees have t = p * sqrt(2 / (1 - p^2)).
    for p in (0.05, 0.5, 0.9, 0.999):
        assert student_t_quantile(p, 1) == pytest.approx(math.tan(math.pi * p / 2), rel=1e-12)
        assert student_t_quantile(p, 2) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-12)


def test_many_degrees_approach_the_normal_distribution() -> None:
    assert student_t_quantile(0.95, 20_000) == pytest.approx(1.959963985, abs=2e-4)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_quantile_refuses_what_has_no_answer(confidence: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="confidence"):
        student_t_quantile(confidence, degrees)


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
