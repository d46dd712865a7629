"""The table of a sweep: mean and interval of the metric over seeds at each point; on the screen, CSV and Markdown."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ldis_lightning.evaluation.intervals import mean_interval
from ldis_lightning.sweeps.grid import Point, Sweep

Metrics = Mapping[str, float]
Results = Mapping[tuple[str, int], Metrics]
"""The metrics of every finished run, by the slug of its point and its seed."""


@dataclass(frozen=True)
class Row:
    """A point's line: `count` seeds of `planned` have finished; `half_width` is NaN for fewer than two."""

    point: Point
    mean: float
    half_width: float
    count: int
    planned: int
    is_best: bool

    @property
    def cells(self) -> list[str]:
        """The grid's values, the metric, the number of seeds."""
        count = str(self.count) if self.count == self.planned else f"{self.count} of {self.planned}"
        return [*self.point.labels.values(), with_interval(self.mean, self.half_width), count]


def rows(sweep: Sweep, points: Sequence[Point], results: Results) -> list[Row]:
    """One row a point, in the grid's order. The best mean is marked; a NaN or an unfinished point never is."""
    statistics = []
    for point in points:
        finished = [results[point.slug, seed] for seed in sweep.seeds if (point.slug, seed) in results]
        statistics.append((*mean_interval([metrics[sweep.metric] for metrics in finished]), len(finished)))
    means = [mean for mean, _, _ in statistics if not math.isnan(mean)]
    best = (max if sweep.mode == "max" else min)(means, default=math.nan)
    return [
        Row(point, mean, half_width, count, len(sweep.seeds), mean == best)
        for point, (mean, half_width, count) in zip(points, statistics, strict=True)
    ]


def with_interval(mean: float, half_width: float) -> str:
    """`0.612 ± 0.021`; the mean alone where one seed gives no interval; `-` where there is nothing."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(half_width) else f"{mean:.3f} ± {half_width:.3f}"


def headings(sweep: Sweep, table: Sequence[Row]) -> list[str]:
    """The columns' names."""
    return [*table[0].point.labels, sweep.metric, "seeds"]


def rich_table(sweep: Sweep, table: Sequence[Row]) -> Table:
    """The table for a terminal; the best row is bold."""
    shown = Table(title=caption(sweep), title_justify="left")
    names = headings(sweep, table)
    for number, name in enumerate(names):
        shown.add_column(name, justify="right" if number >= len(names) - 2 else "left")
    for row in table:
        shown.add_row(*row.cells, style="bold" if row.is_best else None)
    return shown


def markdown(sweep: Sweep, table: Sequence[Row]) -> str:
    """The table as Markdown; the best row's metric is bold."""
    names = headings(sweep, table)
    lines = [names, ["---"] * (len(names) - 2) + ["---:"] * 2]
    for row in table:
        *values, metric, count = row.cells
        lines.append([*values, f"**{metric}**" if row.is_best else metric, count])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{caption(sweep)}.\n"


def caption(sweep: Sweep) -> str:
    """What the numbers are."""
    spread = "mean ± half-width of the 95% t-interval" if len(sweep.seeds) > 1 else "value"
    return f"{sweep.metric}: {spread} over seeds {', '.join(map(str, sweep.seeds))}"


def write_csv(path: Path, sweep: Sweep, points: Sequence[Point], results: Results) -> None:
    """One line a finished run: the grid's values, the seed, and every metric that any run reported."""
    names = sorted({name for metrics in results.values() for name in metrics})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*points[0].labels, "seed", *names])
        for point in points:
            for seed in sweep.seeds:
                if (metrics := results.get((point.slug, seed))) is not None:
                    writer.writerow([*point.labels.values(), seed, *(metrics.get(name, "") for name in names)])
