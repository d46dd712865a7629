"""Learning curves from event files, and the plots as SVG."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from made_up_sweep import MadeUp, write_events
from torch.utils.tensorboard import SummaryWriter

from ldis_lightning.sweeps import plots
from ldis_lightning.sweeps.curves import MOST_STEPS, Curve, curve_tags, over_seeds, read_curves
from ldis_lightning.sweeps.differences import Difference
from ldis_lightning.sweeps.events import small_events
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep, read_sweep
from ldis_lightning.sweeps.grid import Point
from ldis_lightning.sweeps.table import rows


def test_a_resumed_run_is_one_curve_in_which_the_later_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "events.1", tmp_path / "events.2"
    write_events(first, {"loss": {10: 1.0, 20: 0.9, 30: 0.8, 35: 0.7}, "other": {35: 5.0}}, wall_time=1000)
    write_events(second, {"loss": {30: 0.5, 40: 0.4}}, wall_time=9000)
    curves = read_curves([first, second])
    assert curves.scalars["loss"] == pytest.approx({10: 1.0, 20: 0.9, 30: 0.5, 40: 0.4})
    assert curves.scalars["other"] == {35: 5.0}
    assert curves.seconds == 35 + 40 and not curves.problem  # the pause between the two was no running


def test_a_file_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "events.1"
    write_events(path, {"loss": {step: 1.0 for step in range(20)}})
    path.write_bytes(path.read_bytes()[:-10])
    assert 0 < len(read_curves([path]).scalars["loss"]) < 20


def test_pictures_are_skipped_and_a_wrong_byte_is_found(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("loss", 0.5, 1, new_style=False)
    writer.add_image("noise", np.random.default_rng(0).integers(0, 256, (3, 99, 99), np.uint8), 1)
    writer.add_scalar("loss", 0.25, 2, new_style=False)
    writer.close()
    (path,) = tmp_path.iterdir()
    assert read_curves([path]).scalars == {"loss": {1: 0.5, 2: 0.25}}
    assert sum(bool(event.summary.value) for event in small_events(path)) == 2
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the last value
    path.write_bytes(content)
    curves = read_curves([path])
    assert curves.scalars == {"loss": {1: 0.5}} and "is damaged (DamagedEvents)" in curves.problem


@pytest.mark.parametrize("content", [b"", b"\0" * 400, bytes(range(256)) * 4])
def test_a_damaged_file_is_a_gap(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.1"
    path.write_bytes(content)
    assert read_curves([path]).scalars == {}


def test_the_mean_over_seeds_takes_a_step_that_all_have_got_to() -> None:
    curve = over_seeds([{1: 1.0, 2: 2.0, 3: 3.0}, {1: 3.0, 3: 5.0}, {1: 2.0}])  # the third stopped after one step
    assert curve is not None
    assert curve.step.tolist() == [1, 3] and curve.mean.tolist() == [2, 4]
    assert curve.low.tolist() == [1, 3] and curve.high.tolist() == [3, 5]
    assert over_seeds([]) is None and over_seeds([{1: math.nan}]) is None


def test_long_curves_are_thinned() -> None:
    curve = over_seeds([{step: float(step) for step in range(10_000)}])
    assert curve is not None and len(curve.step) == MOST_STEPS
    assert (curve.mean == curve.step).all()


def sweep_of(points: list[Point], seeds: int = 2) -> FinishedSweep:
    folder = Path("x")
    runs = {
        (point.slug, seed): FinishedRun(point, seed, folder, metrics={"test/a/miou": 0.1 * number + 0.01 * seed})
        for number, point in enumerate(points)
        for seed in range(seeds)
    }
    return FinishedSweep(folder, points, list(range(seeds)), "test/a/miou", "max", None, runs)


def texts(svg: str) -> list[str]:
    """The texts of an SVG, which must be well-formed."""
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("}text")]


def grid(**axes: list[str]) -> list[Point]:
    points = [{}]
    for heading, values in axes.items():
        points = [{**point, heading: value} for point in points for value in values]
    return [Point(",".join(f"{h}={v}" for h, v in labels.items()), labels) for labels in points]


def test_a_plot_for_each_axis_that_varies() -> None:
    sweep = sweep_of(grid(mask=["None", "Alpha"], rank=["4", "8", "16"], same=["x"]))
    found = plots.axis_plots(sweep, rows(sweep, {}))
    assert [plot.title for plot in found] == ["mask", "rank"]
    assert {"None", "Alpha", "test/a/miou"} <= set(texts(found[0].svg))
    assert [mark.text for mark in found[0].marks] == ["rank = 4", "rank = 8", "rank = 16"]
    assert {"4", "8", "16", "rank (logarithmic)"} <= set(texts(found[1].svg))
    assert [mark.text for mark in found[1].marks] == ["None", "Alpha"]


def test_numbers_are_on_their_true_scale() -> None:
    sweep = sweep_of(grid(gamma=["0", "0.2", "0.8"]))
    (plot,) = plots.axis_plots(sweep, rows(sweep, {}))
    x = {}
    for node in ET.fromstring(plot.svg).iter():
        text = "".join(node.itertext()).strip()
        if node.tag.endswith("}text") and text in ("0", "0.2", "0.8") and node.get("x"):
            x.setdefault(text, float(node.get("x") or "nan"))
    assert (x["0.8"] - x["0"]) == pytest.approx(4 * (x["0.2"] - x["0"]), rel=0.02)
    assert not plot.marks and "gamma" in texts(plot.svg)


def test_three_axes_are_frames_and_colours() -> None:
    sweep = sweep_of(grid(a=["p", "q"], b=["1", "2", "4", "8"], c=["x", "y", "z"]))
    plot = plots.axis_plots(sweep, rows(sweep, {}))[0]
    assert len(plot.marks) == 4 and [text for text in texts(plot.svg) if text.startswith("c = ")] == [
        "c = x",
        "c = y",
        "c = z",
    ]


def test_too_many_to_tell_apart_is_said() -> None:
    many = [str(number) for number in range(9)]
    sweep = sweep_of(grid(a=["p", "q"], b=many, c=many))
    plot = plots.axis_plots(sweep, rows(sweep, {}))[0]
    assert not plot.marks and "too many values" in plot.note


def test_labels_are_text_and_never_markup_or_formulas() -> None:
    sweep = sweep_of(grid(mask=["$x^2$", "<script>alert(1)</script>", "a & b", "${", "#fe01d0"]))
    (plot,) = plots.axis_plots(sweep, rows(sweep, {}))
    assert {"$x^2$", "<script>alert(1)</script>", "a & b", "${", "#fe01d0"} <= set(texts(plot.svg))
    assert "<script" not in plot.svg


def test_colours_and_fonts_are_the_pages() -> None:
    sweep = sweep_of(grid(mask=["None", "Alpha"], rank=["4", "8"]))
    for plot in plots.axis_plots(sweep, rows(sweep, {})):
        assert "var(--c0)" in plot.svg and "var(--ink)" in plot.svg
        styles = re.findall(r'style="([^"]*)"', plot.svg)
        assert not [style for style in styles if re.search("#(?!000000|ffffff)[0-9a-f]{6}", style)]
        assert {style for style in styles if "font" in style and "font-family: var(--sans)" not in style} == set()
    ids = re.findall(r'\bid="([^"]*)"', "".join(p.svg for p in plots.axis_plots(sweep, rows(sweep, {}))))
    assert len(ids) == len(set(ids))  # the plots share a page


def test_points_without_results_are_left_out_of_plots() -> None:
    sweep = sweep_of(grid(mask=["None", "Alpha", "Late"]))
    runs = {key: run for key, run in sweep.runs.items() if key[0] != "mask=Late"}
    sweep = FinishedSweep(**{**vars(sweep), "runs": runs})
    (plot,) = plots.axis_plots(sweep, rows(sweep, {}))
    assert "Late" not in texts(plot.svg)


def test_the_plot_of_differences() -> None:
    sweep = FinishedSweep(**{**vars(sweep_of(grid(mask=["None", "Alpha", "Odd"]))), "baseline": "mask=None"})
    nan = (math.nan, math.nan)
    clear, none = Difference(0.1, (0.05, 0.2), (0.08, 0.12), (0,)), Difference(math.nan, nan, nan, ())
    plot = plots.difference_plot(sweep, rows(sweep, {"mask=Alpha": clear, "mask=Odd": none}))
    assert plot is not None and "Alpha" in texts(plot.svg) and "Odd" not in texts(plot.svg)
    assert plots.difference_plot(sweep, rows(sweep, {})) is None


def test_curves_beyond_the_palette_are_grey_and_counted() -> None:
    step = np.arange(20.0)
    curves = {f"point {number}": Curve(step, step + number, step, step + number, 2) for number in range(11)}
    plot = plots.curve_plot("train/loss", curves, list(curves), 0)
    assert [mark.text for mark in plot.marks][-1] == "3 more" and len(plot.marks) == 9
    assert plot.svg.count("var(--c7)") > 0 and "band" in plot.note


def test_a_loss_over_decades_has_plain_numbers_on_its_axis() -> None:
    step = np.arange(1.0, 20)
    plot = plots.curve_plot("train/loss", {"a": Curve(step, 10 / step**2, 10 / step**2, 10 / step**2, 1)}, ["a"], 0)
    assert {"0.1", "1"} <= set(texts(plot.svg)) and "mathdefault" not in plot.svg


def test_tags_worth_a_plot(tmp_path: Path) -> None:
    sweep = read_sweep(MadeUp({"a=1": 0.3}).write(tmp_path))
    assert curve_tags(sweep, ["epoch", "train/loss", "val/novel/miou", "val/seen/miou"]) == [
        "train/loss",
        "val/novel/miou",
    ]
    assert curve_tags(sweep, ["epoch", "train/other"]) == ["train/other"]
