"""Statistics of a data set from its index alone: classes, picture sizes, clip lengths; as text and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 40  # as many classes are drawn
MOST_SIZES = 8  # as many picture sizes are listed and drawn
LEAST_BARS = 6  # room for as many, so that one is not huge

INK, FAINT, GRID = "#1c2026", "#707680", "#e4e7eb"
BLUE, GREEN, ORANGE = "#2f6f9f", "#009e73", "#d98a1f"


class ClassCount(NamedTuple):
    """How often a class occurs."""

    class_id: int
    name: str
    frames: int  # that show it
    pixels: int
    share: float  # of all pixels of the data set, in [0, 1]


class Stats(NamedTuple):
    """What a data set consists of."""

    name: str
    frames: int
    classes: list[ClassCount]  # by id
    sizes: list[tuple[tuple[int, int], int]]  # (height, width) -> frames, most frequent first
    clip_lengths: np.ndarray  # (clips,) int64
    classes_per_frame: np.ndarray  # (frames,) int64


def stats_of(index: ShardIndex) -> Stats:
    """Count what a data set consists of. Only its index is read."""
    total = max(1, int(index.size.prod(axis=1, dtype=np.int64).sum()))
    classes = []
    for class_id, name in sorted(index.classes.items()):
        pixels = int(index.pixels(class_id).sum())
        classes.append(ClassCount(class_id, name, len(index.rows_of_class(class_id)), pixels, pixels / total))
    sizes, counts = np.unique(index.size, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = [((int(h), int(w)), int(n)) for (h, w), n in zip(sizes[order], counts[order], strict=True)]
    clip = np.asarray(index.clip)
    lengths = np.bincount(clip[clip >= 0], minlength=index.clips)
    return Stats(index.name, len(index), classes, listed, lengths, index.classes_per_row())


def as_text(stats: Stats) -> str:
    """Statistics for people: a table of all classes, then sizes and clips."""
    width = max((len(entry.name) for entry in stats.classes), default=0)
    lines = [f"{'id':>5}  {'class':<{width}}  {'frames':>9}  {'pixels':>15}  {'share':>7}"]
    for entry in stats.classes:
        lines.append(
            f"{entry.class_id:>5}  {entry.name:<{width}}  {entry.frames:>9,}  {entry.pixels:>15,}  {entry.share:>7.2%}"
        )
    rest = 1 - sum(entry.share for entry in stats.classes)
    lines.append(f"{'':>5}  {'none or ignored':<{width}}  {'':>9}  {'':>15}  {max(rest, 0):>7.2%}")
    per_frame = stats.classes_per_frame
    lines.append(f"classes a frame: {_range(per_frame)}; {int((per_frame == 0).sum()):,} frames show none")
    shown = ", ".join(f"{w} x {h} ({count:,})" for (h, w), count in stats.sizes[:MOST_SIZES])
    more = f", and {len(stats.sizes) - MOST_SIZES:,} others" if len(stats.sizes) > MOST_SIZES else ""
    lines.append(f"picture sizes (frames): {shown}{more}")
    if len(stats.clip_lengths):
        lines.append(f"frames a clip: {_range(stats.clip_lengths)} in {len(stats.clip_lengths):,} clips")
    return "\n".join(lines)


def draw(stats: Stats, path: str | Path) -> None:
    """Draw the statistics into a picture, whose format is that of the ending of `path`.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sorted(stats.classes, key=lambda entry: (-entry.frames, entry.class_id))[:MOST_BARS]
    bars = 0.24 * max(len(shown), LEAST_BARS)  # inches
    figure = Figure(figsize=(11, bars + 4.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    grid = figure.add_gridspec(2, 1, height_ratios=[bars + 1.2, 3.2], hspace=0.02)
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    upper.suptitle(_title(stats), x=0.02, ha="left", color=INK, fontsize=13, fontweight="bold")
    _draw_classes(upper.subplots(1, 2, sharey=True), shown, stats)
    axes = lower.subplots(1, 3 if len(stats.clip_lengths) else 2)
    _draw_counts(axes[0], stats.classes_per_frame, "classes in a frame", "frames", GREEN)
    _draw_sizes(axes[1], stats)
    if len(stats.clip_lengths):
        _draw_counts(axes[2], stats.clip_lengths, "frames in a clip", "clips", ORANGE)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {path} cannot be written ({error}). Give a file such as stats.png.") from error


def _draw_classes(axes: "np.ndarray", shown: list[ClassCount], stats: Stats) -> None:
    """Two rows of bars under the names of the classes: frames that show it, and its share of all pixels."""
    places = np.arange(len(shown))
    frames, share = axes
    frames.set_yticks(places, [entry.name for entry in shown], color=INK)
    frames.set_ylim(max(len(shown), LEAST_BARS) - 0.4, -0.6)  # the first on top
    for ax, lengths, values, label in (
        (frames, [entry.frames for entry in shown], [f"{entry.frames:,}" for entry in shown], "frames that show it"),
        (share, [entry.share * 100 for entry in shown], [_percent(entry.share) for entry in shown], "% of all pixels"),
    ):
        bars = ax.barh(places, lengths, color=BLUE, height=0.72)
        ax.bar_label(bars, values, padding=3, fontsize=8, color=FAINT)
        _clean(ax, label, grid="x", whole=ax is frames)
        ax.margins(x=0.12)
    if hidden := len(stats.classes) - len(shown):
        share.set_title(f"and {hidden:,} classes in fewer frames", loc="right", fontsize=9, color=FAINT)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.01 else f"{100 * share:.2g}"


def _draw_counts(ax: "Axes", values: np.ndarray, label: str, of: str, color: str) -> None:
    """A histogram of whole numbers: a bar each where they are few, else bins."""
    low, high = int(values.min()), int(values.max())
    step = max(1, -(-(high - low + 1) // 30))
    edges = np.arange(low, high + step + 1, step) - 0.5
    ax.hist(values, bins=edges.tolist(), color=color, rwidth=0.9)
    ax.set_xlim(edges[0] - 0.2 * step, max(edges[-1], low + LEAST_BARS) + 0.2 * step)
    ax.set_ylabel(of, color=FAINT, fontsize=9)
    _clean(ax, label, grid="y")


def _draw_sizes(ax: "Axes", stats: Stats) -> None:
    """The most frequent sizes as bars."""
    shown = stats.sizes[:MOST_SIZES]
    hidden = sum(count for _, count in stats.sizes[MOST_SIZES:])
    names = [f"{width} x {height}" for (height, width), _ in shown] + ["others"] * bool(hidden)
    counts = [count for _, count in shown] + [hidden] * bool(hidden)
    bars = ax.barh(np.arange(len(counts)), counts, color=FAINT, height=0.72)
    ax.set_yticks(np.arange(len(counts)), names, color=INK)
    ax.set_ylim(MOST_SIZES + 0.6, -0.6)  # as high whatever their number
    ax.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=8, color=FAINT)
    ax.margins(x=0.18)
    _clean(ax, "frames by picture size", grid="x")


def _clean(ax: "Axes", label: str, grid: str, whole: bool = True) -> None:
    """The looks of all axes. Numbers along those with a grid, and along the lower ones, are whole if `whole`."""
    from matplotlib.ticker import MaxNLocator

    for axis in (ax.xaxis, ax.yaxis) if grid == "y" else (ax.xaxis,):
        axis.set_major_locator(MaxNLocator(6, integer=whole, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axis.set_major_formatter("{x:,.0f}" if whole else "{x:g}")
    ax.set_xlabel(label, color=FAINT, fontsize=9)
    ax.grid(axis=grid, color=GRID)  # pyright: ignore[reportArgumentType]
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    ax.spines[:].set_visible(False)


def _title(stats: Stats) -> str:
    clips = f" of {len(stats.clip_lengths):,} clips" if len(stats.clip_lengths) else ""
    return f"{stats.name}: {stats.frames:,} frames{clips}, {len(stats.classes):,} classes"


def _range(values: np.ndarray) -> str:
    low, middle, high = int(values.min()), float(np.median(values)), int(values.max())
    return str(low) if low == high else f"{low:,} to {high:,}, median {middle:,.4g}"
