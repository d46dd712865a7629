"""The table: means, intervals, the best point, unfinished points."""

import csv
import math
from pathlib import Path

import pytest

from ldis_lightning.sweeps.grid import Sweep, expand
from ldis_lightning.sweeps.table import markdown, rich_table, rows, write_csv

SWEEP = Sweep(grid={"model.pre_mask": ["NoPreMasking", "AlphaChannel"], "lr": [1, 2]}, seeds=[0, 1, 2], metric="m")
POINTS = expand(SWEEP)
RESULTS = {
    (POINTS[0].slug, 0): {"m": 0.1, "other": 1.0},
    (POINTS[0].slug, 1): {"m": 0.2},
    (POINTS[0].slug, 2): {"m": 0.3},
    (POINTS[1].slug, 0): {"m": 0.5},
    (POINTS[2].slug, 0): {"m": math.nan},
}


def test_mean_and_t_interval() -> None:
    first = rows(SWEEP, POINTS, RESULTS)[0]
    assert first.mean == pytest.approx(0.2)
    assert first.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom
    assert first.cells == ["NoPreMasking", "1", "0.200 ± 0.248", "3"]


def test_unfinished_points_and_nan_are_shown_and_never_best() -> None:
    table = rows(SWEEP, POINTS, RESULTS)
    assert [row.cells[-2:] for row in table[1:]] == [["0.500", "1 of 3"], ["-", "1 of 3"], ["-", "0 of 3"]]
    assert [row.is_best for row in table] == [False, True, False, False]
    lowest = Sweep(grid=SWEEP.grid, seeds=SWEEP.seeds, metric="m", mode="min")
    assert [row.is_best for row in rows(lowest, POINTS, RESULTS)] == [True, False, False, False]


def test_markdown_marks_the_best_and_says_what_the_numbers_are() -> None:
    lines = markdown(SWEEP, rows(SWEEP, POINTS, RESULTS)).splitlines()
    assert lines[0] == "| pre_mask | lr | m | seeds |"
    assert lines[1] == "| --- | --- | ---: | ---: |"
    assert lines[3] == "| NoPreMasking | 2 | **0.500** | 1 of 3 |"
    assert lines[-1] == "m: mean ± half-width of the 95% t-interval over seeds 0, 1, 2."


def test_the_terminals_table_has_a_column_for_each_axis() -> None:
    table = rich_table(SWEEP, rows(SWEEP, POINTS, RESULTS))
    assert [column.header for column in table.columns] == ["pre_mask", "lr", "m", "seeds"]
    assert table.row_count == len(POINTS)


def test_csv_has_every_run_and_every_metric(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", SWEEP, POINTS, RESULTS)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(RESULTS)
    assert read[0] == {"pre_mask": "NoPreMasking", "lr": "1", "seed": "0", "m": "0.1", "other": "1.0"}
    assert read[1]["other"] == ""
