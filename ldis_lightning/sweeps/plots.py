"""The plots of a report: the metric over each axis, the differences to the baseline, and learning curves."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldis_lightning.sweeps.curves import Curve
from ldis_lightning.sweeps.finished import FinishedSweep
from ldis_lightning.sweeps.svg import COLORS, FAINT, INK, LINE, PAGE, PIXEL, page_style, to_svg
from ldis_lightning.sweeps.table import Row

MARKERS = "osD^vPX*"
SIGNS = "●■◆▲▼✚✖★"
WIDTH = 800  # pixels
MOST_FACETS = 6
MOST_LABEL = 40  # characters
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)))  # the second half of the colours is dashed as well


@dataclass(frozen=True)
class Mark:
    """What a colour stands for: `color` is its number in the palette, None for the faint one."""

    color: int | None
    sign: str
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture for the page: an `<svg>` element, what its colours stand for, and a sentence about it."""

    title: str
    svg: str
    marks: Sequence[Mark] = ()
    note: str = ""


@dataclass
class _Panel:
    """Rows that share a frame, by the group that gives them their colour."""

    title: str
    groups: dict[str, list[Row]] = field(default_factory=dict)


# ---- The metric over an axis


def axis_plots(sweep: FinishedSweep, rows: Sequence[Row]) -> list[Plot]:
    """A plot for each heading under which the points differ, of the points that have results."""
    rows = [row for row in rows if not math.isnan(row.mean)]
    axes = [heading for heading in sweep.headings if len(_values(rows, heading)) > 1]
    return [_axis_plot(sweep, heading, axes, rows, number) for number, heading in enumerate(axes)]


def _values(rows: Sequence[Row], heading: str) -> list[str]:
    """The distinct labels under a heading, in the rows' order."""
    return list(dict.fromkeys(row.point.labels[heading] for row in rows if heading in row.point.labels))


def _axis_plot(sweep: FinishedSweep, heading: str, axes: Sequence[str], rows: Sequence[Row], number: int) -> Plot:
    rows = [row for row in rows if heading in row.point.labels]
    others = [axis for axis in axes if axis != heading and len(_values(rows, axis)) > 1]
    panels, note = _panels(rows, others)
    values = _values(rows, heading)
    numbers = _numbers(values)
    groups = list(dict.fromkeys(group for panel in panels for group in panel.groups))
    with page_style():
        if numbers is None:
            figure = _categories(sweep, heading, values, panels, groups)
        else:
            figure = _numeric(sweep, heading, dict(zip(values, numbers, strict=True)), panels, groups)
        svg = to_svg(figure, f"axis{number}")
    marks = [Mark(i, SIGNS[i], group) for i, group in enumerate(groups)] if len(groups) > 1 else []
    return Plot(heading, svg, marks, note)


def _panels(rows: Sequence[Row], others: Sequence[str]) -> tuple[list[_Panel], str]:
    """Frames and colours that tell the other axes' values apart, and what to say where there are too many."""
    for facet in (None, *sorted(others, key=lambda axis: len(_values(rows, axis)))):
        frames = [""] if facet is None else _values(rows, facet)
        rest = [axis for axis in others if axis != facet]
        panels = {frame: _Panel(f"{facet} = {_short(frame)}" if facet else "") for frame in frames}
        for row in rows:
            frame = row.point.labels.get(facet, "") if facet else ""
            text = ", ".join(_of(row, axis) for axis in rest if axis in row.point.labels)
            panels.setdefault(frame, _Panel(f"without {facet}")).groups.setdefault(text, []).append(row)
        if len({group for panel in panels.values() for group in panel.groups}) <= len(COLORS) and (
            len(panels) <= MOST_FACETS
        ):
            return list(panels.values()), ""
    many = f"Every point has one colour here: the other axes ({', '.join(others)}) take too many values to tell apart."
    return [_Panel("", {"": list(rows)})], many


def _of(row: Row, axis: str) -> str:
    """`lr = 3` says more than `3`; class names speak for themselves."""
    label = row.point.labels[axis]
    return f"{axis} = {_short(label)}" if _numbers([label]) or label in ("true", "false", "null") else _short(label)


def _numbers(labels: Sequence[str]) -> list[float] | None:
    """The labels as numbers, or None where one is none."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _is_geometric(numbers: Sequence[float]) -> bool:
    """Whether values such as 4, 8, 16 or 1e-4, 1e-3 are spread more evenly on a logarithmic scale."""
    ordered = sorted(set(numbers))
    if len(ordered) < 3 or ordered[0] <= 0:
        return False
    ratios = [b / a for a, b in itertools.pairwise(ordered)]
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    return max(ratios) / min(ratios) < max(gaps) / min(gaps) and ordered[-1] / ordered[0] > 3


def _numeric(
    sweep: FinishedSweep, heading: str, number_of: Mapping[str, float], panels: Sequence[_Panel], groups: Sequence[str]
) -> Any:
    """Values on their true scale from left to right, the metric upwards."""
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure, frames = _figure(lines, columns, 300 if lines == 1 else 240, sharey=True)
    numbers = list(number_of.values())
    geometric = _is_geometric(numbers)
    for frame, panel in zip(frames, panels, strict=False):
        if geometric:
            frame.set_xscale("log")
        _ticks(frame, numbers, geometric)
        frame.grid(axis="x", visible=False)
        for group, rows in panel.groups.items():
            color = groups.index(group)
            rows = sorted(rows, key=lambda row: number_of[row.point.labels[heading]])
            x = [_dodged(number_of[row.point.labels[heading]], color, len(groups), numbers, geometric) for row in rows]
            if len(set(x)) == len(x):  # else several points share a value, and a line would jump between them
                frame.plot(x, [row.mean for row in rows], color=COLORS[color], lw=1.2, alpha=0.5)
            for position, row in zip(x, rows, strict=True):
                _draw_row(frame, row, position, color, upright=True)
        frame.set_xlabel(heading + (" (logarithmic)" if geometric else ""))
        frame.set_ylim(*_limits(row for other in panels for rows in other.groups.values() for row in rows))
        frame.set_title(panel.title, loc="left")
        _baseline(frame, sweep, panels, upright=True)
    for frame in frames[len(panels) :]:
        frame.remove()
    for frame in frames[: len(panels) : columns]:
        frame.set_ylabel(sweep.metric)
    return figure


def _ticks(frame: Any, numbers: Sequence[float], geometric: bool) -> None:
    """A tick at every value, as far as they fit side by side; the rest keep matplotlib's."""
    from matplotlib.ticker import NullLocator

    low, high = min(numbers), max(numbers)
    place = math.log if geometric else float
    span = place(high) - place(low) or 1.0
    shown: list[float] = []
    for number in sorted(set(numbers)):
        if not shown or (place(number) - place(shown[-1])) / span > 0.07:
            shown.append(number)
    frame.set_xticks(shown, [f"{number:g}" for number in shown])
    frame.xaxis.set_minor_locator(NullLocator())


def _dodged(value: float, group: int, groups: int, numbers: Sequence[float], geometric: bool) -> float:
    """The value moved a little, so that the groups' intervals do not hide each other."""
    low, high = min(numbers), max(numbers)
    step = 0.012 * (group - (groups - 1) / 2)
    return value * (high / low) ** step if geometric else value + (high - low) * step


def _categories(
    sweep: FinishedSweep, heading: str, values: Sequence[str], panels: Sequence[_Panel], groups: Sequence[str]
) -> Any:
    """Values from top to bottom, as their names are long; the metric to the right."""
    height = max(40, 18 * len(groups) + 12)
    figure, frames = _figure(len(panels), 1, height * len(values) + 60, sharex=True)
    for frame, panel in zip(frames, panels, strict=True):
        frame.grid(axis="y", visible=False)
        for group, rows in panel.groups.items():
            color = groups.index(group)
            for row in rows:
                offset = 0.7 * ((color + 0.5) / len(groups) - 0.5) if len(groups) > 1 else 0.0
                _draw_row(frame, row, values.index(row.point.labels[heading]) + offset, color, upright=False)
        for line in range(1, len(values)):
            frame.axhline(line - 0.5, color=LINE, lw=0.7)
        frame.set_yticks(range(len(values)), [_short(value) for value in values])
        frame.tick_params(axis="y", length=0)
        frame.set_ylim(len(values) - 0.5, -0.5)
        frame.set_xlim(*_limits(row for other in panels for rows in other.groups.values() for row in rows))
        frame.set_title(panel.title, loc="left")
        _baseline(frame, sweep, panels, upright=False)
    frames[-1].set_xlabel(sweep.metric)
    return figure


def _draw_row(frame: Any, row: Row, position: float, color: int, upright: bool) -> None:
    """A point: its interval, its mean, and a faint dot a seed."""
    finite = [value for value in row.values if math.isfinite(value)]
    at = [position] * len(finite)
    seeds = (at, finite) if upright else (finite, at)
    if not math.isnan(row.half_width):
        ends = (row.mean - row.half_width, row.mean + row.half_width)
        span = ([position] * 2, ends) if upright else (ends, [position] * 2)
        frame.plot(*span, color=COLORS[color], lw=2.2, alpha=0.55, solid_capstyle="round")
    mean = (position, row.mean) if upright else (row.mean, position)
    frame.plot(*seeds, "o", ms=3.6, color=INK, alpha=0.45, mew=0)
    frame.plot(*mean, MARKERS[color], ms=8, color=COLORS[color], mec=PAGE, mew=1.2)


def _baseline(frame: Any, sweep: FinishedSweep, panels: Sequence[_Panel], upright: bool) -> None:
    rows = [row for panel in panels for rows in panel.groups.values() for row in rows if row.is_baseline]
    for row in rows:
        (frame.axhline if upright else frame.axvline)(row.mean, color=FAINT, lw=1, ls=(0, (2, 2)), zorder=0.5)


def _limits(rows: Any) -> tuple[float, float]:
    """Room for every seed, and for intervals as far as they leave the seeds legible."""
    rows = list(rows)
    values = [value for row in rows for value in (*row.values, row.mean) if math.isfinite(value)]
    ends = [row.mean + side * row.half_width for row in rows for side in (-1, 1) if math.isfinite(row.half_width)]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.1 or 0.1
    low, high = (max(min([low, *ends]), low - span / 2), min(max([high, *ends]), high + span / 2))
    return low - span * 0.06, high + span * 0.06


# ---- Differences


def difference_plot(sweep: FinishedSweep, rows: Sequence[Row]) -> Plot | None:
    """The difference of every point to the baseline with its interval; None where there is none."""
    shown = [row for row in rows if row.difference is not None and not math.isnan(row.difference.mean)]
    if not shown:
        return None
    with page_style():
        figure, (frame,) = _figure(1, 1, 26 * len(shown) + 70)
        frame.grid(axis="y", visible=False)
        frame.axvline(0, color=INK, lw=1)
        for position, row in enumerate(shown):
            difference = row.difference
            assert difference is not None
            color = COLORS[0] if difference.is_clear else FAINT
            frame.plot(difference.interval, [position] * 2, color=color, lw=2.2, alpha=0.8, solid_capstyle="round")
            frame.plot(
                difference.episodes_interval, [position] * 2, color=color, lw=9, alpha=0.3, solid_capstyle="butt"
            )
            frame.plot(difference.mean, position, "o", ms=7, color=color, mec=PAGE, mew=1.2)
        frame.set_yticks(range(len(shown)), [_short(name_of(row.point.labels)) for row in shown])
        frame.tick_params(axis="y", length=0)
        frame.set_ylim(len(shown) - 0.5, -0.5)
        frame.set_xlabel(f"difference in {sweep.metric}")
        svg = to_svg(figure, "difference")
    note = (
        "Thin line: the 95% interval for other seeds and other episodes. Thick: for other episodes and these very "
        "trainings. Grey where the thin line holds zero."
    )
    return Plot("Difference to the baseline", svg, (), note)


# ---- Learning curves


def curve_plot(tag: str, curves: Mapping[str, Curve], shown: Sequence[str], number: int) -> Plot:
    """A tag over the steps of training.

    Args:
        tag: of TensorBoard.
        curves: by what to call each.
        shown: the names that get a colour, at most as many as there are; the others are grey.
        number: of the plot on its page.
    """
    shown = [name for name in curves if name in shown][: len(COLORS)]
    hidden = [name for name in curves if name not in shown]
    with page_style():
        figure, (frame,) = _figure(1, 1, 300)
        for name in hidden:
            frame.plot(curves[name].step, curves[name].mean, color=FAINT, lw=0.8, alpha=0.5)
        for color, name in enumerate(shown):
            curve, dashes = curves[name], DASHES[color >= len(COLORS) // 2]
            marker = MARKERS[color] if len(curve.step) < 12 else ""
            if curve.seeds > 1:
                frame.fill_between(curve.step, curve.low, curve.high, color=COLORS[color], alpha=0.15, lw=0)
            frame.plot(curve.step, curve.mean, color=COLORS[color], lw=1.8, ls=dashes, marker=marker, ms=6, mec=PAGE)
        lowest, highest = min(c.low.min() for c in curves.values()), max(c.high.max() for c in curves.values())
        if "loss" in tag and lowest > 0 and highest / lowest > 10:
            frame.set_yscale("log")
            for which in ("major", "minor"):  # without matplotlib's formulas
                _plain_numbers(frame.yaxis, which, highest / lowest < 100)
        frame.set_xlabel("step")
        frame.set_ylabel(tag)
        svg = to_svg(figure, f"curve{number}")
    marks = [Mark(color, "━" if color < len(COLORS) // 2 else "╍", name) for color, name in enumerate(shown)]
    marks += [Mark(None, "─", f"{len(hidden)} more")] if hidden else []
    several = any(curve.seeds > 1 for curve in curves.values())
    return Plot(
        tag, svg, marks, "Mean over seeds; the band reaches from the lowest to the highest seed." if several else ""
    )


def _plain_numbers(axis: Any, which: str, is_short: bool) -> None:
    """Numbers on a logarithmic axis, `0.1` for a power; on minor ticks 2 and 5, where the axis is short."""

    def text(value: float, _: int) -> str:
        digit = round(value / 10 ** math.floor(math.log10(value) + 1e-9))
        return f"{value:g}" if which == "major" or (is_short and digit in (2, 5)) else ""

    getattr(axis, f"set_{which}_formatter")(text)


# ---- What they share


def name_of(labels: Mapping[str, str]) -> str:
    """A point's name from its labels alone: `AlphaChannel, CrossAttentionMask`, `strength = 0.4`."""
    return ", ".join(f"{h} = {v}" if _numbers([v]) or v in ("true", "false", "null") else v for h, v in labels.items())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_LABEL else f"{text[: MOST_LABEL - 1]}…"


def _figure(lines: int, columns: int, height: float, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure of `lines` x `columns` frames, `height` pixels each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * PIXEL, lines * height * PIXEL), layout="constrained")
    return figure, list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
