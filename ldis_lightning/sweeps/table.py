"""The table of a sweep: the metric's mean and interval over seeds at each point, and the difference to the baseline."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from ldis_lightning.evaluation.intervals import mean_interval
from ldis_lightning.sweeps.differences import Difference
from ldis_lightning.sweeps.finished import FinishedSweep
from ldis_lightning.sweeps.grid import Point

NOTHING = "-"


@dataclass(frozen=True)
class Row:
    """A point's line.

    Attributes:
        values: the metric of each finished seed, in the order of the seeds.
        mean: of `values`; NaN where there is none or one of them is NaN.
        half_width: of the 95% t-interval; NaN for fewer than two seeds.
        planned: how many seeds there are to be.
        is_best: the best mean of all points; never one that is NaN.
        is_baseline: the others are compared with it.
        difference: to the baseline; None for the baseline itself, and where there is no baseline.
    """

    point: Point
    values: Sequence[float]
    mean: float
    half_width: float
    planned: int
    is_best: bool = False
    is_baseline: bool = False
    difference: Difference | None = None

    @property
    def score(self) -> str:
        """`0.612 ± 0.021`."""
        return with_interval(self.mean, self.half_width)

    @property
    def seeds(self) -> str:
        """`3`, or `2 of 3`; and how many of them gave no number."""
        count, undefined = len(self.values), sum(map(math.isnan, self.values))
        text = str(count) if count == self.planned else f"{count} of {self.planned}"
        return f"{text}, {undefined} NaN" if undefined else text

    @property
    def change(self) -> str:
        """`+0.021 [+0.004, +0.037]`."""
        return "baseline" if self.is_baseline else difference_text(self.difference)


def rows(sweep: FinishedSweep, differences: Mapping[str, Difference]) -> list[Row]:
    """One row a point, in the sweep's order.

    A point some of whose seeds are missing shows the mean of those that there are, and takes part in the contest for
    the best; the column of the seeds says so.
    """
    values = [[run.metrics.get(sweep.metric, math.nan) for run in sweep.runs_of(point.slug)] for point in sweep.points]
    statistics = [mean_interval(own) for own in values]
    means = [mean for mean, _ in statistics if not math.isnan(mean)]
    best = (max if sweep.mode == "max" else min)(means, default=math.nan)
    return [
        Row(
            *(point, own, mean, half_width, len(sweep.seeds)),
            is_best=mean == best and len(means) > 1,
            is_baseline=point.slug == sweep.baseline,
            difference=differences.get(point.slug),
        )
        for point, own, (mean, half_width) in zip(sweep.points, values, statistics, strict=True)
    ]


def headings(sweep: FinishedSweep) -> list[str]:
    """The columns' names."""
    change = ["difference to baseline"] if sweep.baseline else []
    return [*sweep.headings, sweep.metric, *change, "seeds"]


def cells(sweep: FinishedSweep, row: Row) -> list[str]:
    """A row under `headings`."""
    labels = [row.point.labels.get(heading, NOTHING) for heading in sweep.headings]
    return [*labels, row.score, *([row.change] if sweep.baseline else []), row.seeds]


def rich_table(sweep: FinishedSweep, table: Sequence[Row]) -> Table:
    """The table for a terminal; the best row is bold."""
    shown = Table(title=escape(caption(sweep)), title_justify="left")
    for number, heading in enumerate(headings(sweep)):
        is_label = number < len(sweep.headings)
        justify = "left" if is_label else "right"
        shown.add_column(escape(heading), justify=justify, overflow="fold", no_wrap=not is_label)
    for row in table:
        shown.add_row(*map(escape, cells(sweep, row)), style="bold" if row.is_best else None)
    return shown


def markdown(sweep: FinishedSweep, table: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The table as Markdown; the best row's metric is bold."""
    names, width = headings(sweep), len(sweep.headings)
    lines = [_markdown_line(names), _markdown_line(["---"] * width + ["---:"] * (len(names) - width))]
    for row in table:
        texts = [_plain(cell) for cell in cells(sweep, row)]
        texts[width] = f"**{texts[width]}**" if row.is_best else texts[width]
        lines.append(f"| {' | '.join(texts)} |")
    said = "".join(f"\n- {_plain(note)}" for note in notes)
    return "\n".join(lines) + f"\n\n{_plain(caption(sweep))}.\n{said and said + chr(10)}"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text that stays inside its cell, and is no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def caption(sweep: FinishedSweep) -> str:
    """What the numbers are."""
    seeds = ", ".join(map(str, sweep.seeds))
    spread = f"mean ± half-width of the 95% t-interval over seeds {seeds}" if len(sweep.seeds) > 1 else f"seed {seeds}"
    better = "higher" if sweep.mode == "max" else "lower"
    paired = (
        "; differences with their 95% intervals, paired by seed and, where counted, by episode"
        if sweep.baseline
        else ""
    )
    return f"{sweep.metric} ({better} is better): {spread}{paired}"


def csv_text(sweep: FinishedSweep) -> str:
    """One line a finished run: its labels, its seed, and every metric that any run reported, or empty."""
    runs = [run for point in sweep.points for run in sweep.runs_of(point.slug)]
    names = sorted({name for run in runs for name in run.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.headings, "seed", *names])
    for run in runs:
        labels = [run.point.labels.get(heading, "") for heading in sweep.headings]
        writer.writerow([*labels, run.seed, *(run.metrics.get(name, "") for name in names)])
    return text.getvalue()


@dataclass(frozen=True)
class Controls:
    """The same score on the other evaluation sets of the runs: cells of text, a line a point."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def controls(sweep: FinishedSweep) -> Controls:
    """What the points score elsewhere, e.g. with swapped references; no columns where there are no other sets."""
    score = sweep.metric.rpartition("/")[2]
    names = sorted({name for run in sweep.runs.values() for name in run.metrics})
    others = [
        name
        for name in names
        if name.startswith("test/") and name.endswith(f"/{score}") and name != sweep.metric and name.count("/") == 2
    ]
    lines = []
    for point in sweep.points:
        runs = sweep.runs_of(point.slug)
        values = [[run.metrics[name] for run in runs if name in run.metrics] for name in others]
        lines.append([with_interval(*mean_interval(own)) for own in values])
    return Controls(others, lines)


def with_interval(mean: float, half_width: float) -> str:
    """`0.612 ± 0.021`; the mean alone where one seed gives no interval; `-` where there is nothing."""
    if math.isnan(mean):
        return NOTHING
    return number(mean) if math.isnan(half_width) else f"{number(mean)} ± {number(half_width)}"


def difference_text(difference: Difference | None) -> str:
    """`+0.021 [+0.004, +0.037]`, without the interval where there is none; `-` where there is nothing."""
    if difference is None or math.isnan(difference.mean):
        return NOTHING
    low, high = difference.interval
    interval = "" if math.isnan(low) else f" [{number(low, '+')}, {number(high, '+')}]"
    return number(difference.mean, "+") + interval


def number(value: float, sign: str = "") -> str:
    """Three decimals; four digits where that says too little or too much."""
    ordinary = value == 0 or 0.001 <= abs(value) < 1000 or (abs(value) < 0.001 and sign)
    return f"{value:{sign}.3f}" if ordinary else f"{value:{sign}.4g}"
