"""The table: means, intervals, differences, the best point, unfinished points, controls."""

import csv
import io
import math
from collections.abc import Mapping

import pytest
from rich.console import Console

from ldis_lightning.sweeps.differences import Difference
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep, Mode
from ldis_lightning.sweeps.grid import Point
from ldis_lightning.sweeps.table import controls, csv_text, difference_text, markdown, number, rich_table, rows

POINTS = [Point(f"mask={a},lr={b}", {"mask": a, "lr": str(b)}) for a in ("None", "Alpha") for b in (1, 2)]
METRICS = {
    (POINTS[0].slug, 0): {"test/a/m": 0.1, "test/b/m": 1.0, "other": 2.0},
    (POINTS[0].slug, 1): {"test/a/m": 0.2},
    (POINTS[0].slug, 2): {"test/a/m": 0.3, "test/b/m": 2.0},
    (POINTS[1].slug, 0): {"test/a/m": 0.5},
    (POINTS[2].slug, 0): {"test/a/m": math.nan},
}
DIFFERENCES = {POINTS[1].slug: Difference(0.3, (0.1, 0.5), (0.2, 0.4), (0,))}


def sweep(mode: Mode = "max", baseline: str | None = None, metrics: Mapping = METRICS) -> FinishedSweep:
    from pathlib import Path

    runs = {key: FinishedRun(_point(key[0]), key[1], Path("x"), metrics=own) for key, own in metrics.items()}
    for point in POINTS:
        for seed in (0, 1, 2):
            runs.setdefault((point.slug, seed), FinishedRun(point, seed, Path("x"), problem="not started"))
    return FinishedSweep(Path("x"), POINTS, [0, 1, 2], "test/a/m", mode, baseline, runs)


def _point(slug: str) -> Point:
    return next(point for point in POINTS if point.slug == slug)


def test_mean_and_t_interval() -> None:
    first = rows(sweep(), {})[0]
    assert first.mean == pytest.approx(0.2)
    assert first.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t of 2 degrees of freedom
    assert (first.score, first.seeds) == ("0.200 ± 0.248", "3")


def test_unfinished_points_and_nan_are_shown_and_never_best() -> None:
    table = rows(sweep(), {})
    shown = [(row.score, row.seeds) for row in table[1:]]
    assert shown == [("0.500", "1 of 3"), ("-", "1 of 3, 1 NaN"), ("-", "0 of 3")]
    assert [row.is_best for row in table] == [False, True, False, False]
    assert [row.is_best for row in rows(sweep("min"), {})] == [True, False, False, False]


def test_one_point_alone_is_not_the_best_of_anything() -> None:
    only = {key: own for key, own in METRICS.items() if key[0] == POINTS[0].slug}
    assert not any(row.is_best for row in rows(sweep(metrics=only), {}))


def test_differences_have_a_column_where_there_is_a_baseline() -> None:
    baseline = sweep(baseline=POINTS[0].slug)
    table = rows(baseline, DIFFERENCES)
    assert [row.change for row in table] == ["baseline", "+0.300 [+0.100, +0.500]", "-", "-"]
    lines = markdown(baseline, table, ["a note"]).splitlines()
    assert lines[0] == "| mask | lr | test/a/m | difference to baseline | seeds |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: |"
    assert lines[3] == "| None | 2 | **0.500** | +0.300 [+0.100, +0.500] | 1 of 3 |"
    assert lines[-1] == "- a note" and "test/a/m (higher is better)" in lines[-3]
    assert "difference" not in markdown(sweep(), table)


def test_markdown_cannot_be_broken_by_a_label() -> None:
    hostile = Point("p", {"mask": "a|b\nc <script>"})
    run = FinishedRun(hostile, 0, sweep().folder, metrics={"m": 1.0})
    own = FinishedSweep(sweep().folder, [hostile], [0], "m", "max", None, {("p", 0): run})
    assert markdown(own, rows(own, {})).splitlines()[2] == "| a\\|b c &lt;script> | 1.000 | 1 |"


def test_the_terminals_table_takes_labels_as_text() -> None:
    hostile = Point("p", {"mask": "[bold red]x[/]"})
    run = FinishedRun(hostile, 0, sweep().folder, metrics={"m": 1.0})
    own = FinishedSweep(sweep().folder, [hostile], [0], "m", "max", None, {("p", 0): run})
    console = Console(file=io.StringIO(), width=100)
    console.print(rich_table(own, rows(own, {})))
    assert "[bold red]x[/]" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    table = rich_table(sweep(), rows(sweep(), {}))
    assert [column.header for column in table.columns] == ["mask", "lr", "test/a/m", "seeds"]


def test_csv_has_every_run_and_every_metric() -> None:
    read = list(csv.DictReader(io.StringIO(csv_text(sweep()))))
    assert len(read) == len(METRICS)
    assert read[0] == {"mask": "None", "lr": "1", "seed": "0", "test/a/m": "0.1", "test/b/m": "1.0", "other": "2.0"}
    assert read[1]["other"] == "" and read[4]["test/a/m"] == "nan"


def test_controls_are_the_same_score_elsewhere() -> None:
    found = controls(sweep())
    assert found.headings == ["test/b/m"]
    assert [line[0].split()[0] for line in found.lines] == ["1.500", "-", "-", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (12.5, "12.500"), (0.0, "0.000"), (0.00012, "0.00012"), (123456.0, "1.235e+05")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_difference_without_an_interval() -> None:
    assert difference_text(Difference(-0.1, (math.nan, math.nan), (math.nan, math.nan), (0,))) == "-0.100"
    assert difference_text(None) == "-"
