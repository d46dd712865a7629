"""The answer of a sweep: `results.csv`, `results.md` and the self-contained page `report.html`."""

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from ldis_lightning import __version__
from ldis_lightning.errors import UserError
from ldis_lightning.files import write_text_atomically
from ldis_lightning.suggestions import some
from ldis_lightning.sweeps import plots, table
from ldis_lightning.sweeps.curves import Curve, RunCurves, curve_tags, over_seeds, read_curves
from ldis_lightning.sweeps.differences import differences
from ldis_lightning.sweeps.finished import FinishedRun, FinishedSweep, Mode, read_sweep
from ldis_lightning.sweeps.hparams import write_hparams
from ldis_lightning.sweeps.pictures import query_grid

TEMPLATE = Path(__file__).with_name("report.html.jinja")
RERUN = re.compile(r"#.*Run it alone: (ldis .+)")
MOST_CONFIG = 40_000  # characters of the config that the page shows
Curves = Mapping[tuple[str, int], RunCurves]


@dataclass(frozen=True)
class Report:
    """What was written about a sweep.

    Attributes:
        sweep: what there is of it.
        rows: of the table.
        csv, markdown, html: the files.
        notes: what could not be read or compared, in sentences.
    """

    sweep: FinishedSweep
    rows: Sequence[table.Row]
    csv: Path
    markdown: Path
    html: Path
    notes: Sequence[str]

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """All files."""
        return self.csv, self.markdown, self.html

    def show(self, console: Console) -> None:
        """Print the table, what a reader of it has to know, and where the files are."""
        console.print(table.rich_table(self.sweep, self.rows))
        for text in [*self.notes, *self.paths]:
            console.print(str(text), highlight=False, markup=False, soft_wrap=True)


def write(out: Path, metric: str | None = None, mode: Mode | None = None, baseline: str | None = None) -> Report:
    """Write `results.csv`, `results.md` and `report.html` into a folder of finished runs, and TensorBoard's HParams.

    Each file is replaced as a whole, so that a reader never sees half of one.

    Args:
        out: the folder of a sweep, or any with finished runs in it.
        metric, mode, baseline: see `read_sweep`.

    Raises:
        UserError: see `read_sweep`; or the folder cannot be written to.
    """
    sweep = read_sweep(out, metric, mode, baseline)
    compared = differences(sweep)
    rows = table.rows(sweep, compared)
    curves = {key: read_curves(run.event_files) for key, run in sweep.runs.items() if run.is_finished}
    notes = _notes(sweep, rows, curves)
    report = Report(sweep, rows, out / "results.csv", out / "results.md", out / "report.html", notes)
    texts = [table.csv_text(sweep), table.markdown(sweep, rows, notes), page(report, curves)]
    try:
        for path, text in zip(report.paths, texts, strict=True):
            write_text_atomically(path, text)
        write_hparams(sweep, {key: list(own.scalars) for key, own in curves.items()})
    except PermissionError as error:
        raise UserError(f"cannot write `{error.filename}`: copy the folder to where you may write") from error
    return report


def _notes(sweep: FinishedSweep, rows: Sequence[table.Row], curves: Curves) -> list[str]:
    """Everything that a reader of the numbers has to know, each once."""
    notes = list(sweep.notes)
    alike: dict[str, list[str]] = {}
    for row in rows:
        undefined = [
            run.seed for run in sweep.runs_of(row.point.slug) if math.isnan(run.metrics.get(sweep.metric, math.nan))
        ]
        if undefined:
            seeds = ", ".join(map(str, undefined))
            notes.append(f"{row.point.slug}: {sweep.metric} is no number at seed {seeds}, so the point has no mean")
        if row.difference is not None and row.difference.note:
            alike.setdefault(row.difference.note, []).append(row.point.slug)
    notes += [f"Difference of {some(slugs, 4)}: {note}" for note, slugs in alike.items()]
    notes += [f"{slug}, seed {seed}: {own.problem}" for (slug, seed), own in curves.items() if own.problem]
    return list(dict.fromkeys(notes))


# ---- The page


def page(report: Report, curves: Curves) -> str:
    """`report.html`: one file that asks for nothing else. Every text in it is escaped by the template."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    sweep = report.sweep
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = Markup  # ours: matplotlib escapes the labels in it
    script = TEMPLATE.with_name("report.js").read_text(encoding="utf-8")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        sweep=sweep,
        facts=_facts(report, curves),
        best=next((row for row in report.rows if row.is_best), None),
        cells=[table.cells(sweep, row) for row in report.rows],
        headings=table.headings(sweep),
        caption=table.caption(sweep),
        sort_values=[_sort_values(sweep, row) for row in report.rows],
        axis_plots=plots.axis_plots(sweep, report.rows),
        difference_plot=plots.difference_plot(sweep, report.rows),
        curve_plots=_curve_plots(report, curves),
        controls=table.controls(sweep),
        grid=query_grid(sweep),
        name_of=lambda point: plots.name_of(point.labels),
        reruns=[(point, run, rerun(run)) for point in sweep.points for run in _any_run(sweep, point.slug)],
        config=_config(sweep),
        score_text=lambda score: "" if math.isnan(score) else f"{score:.2f}",
        style=Markup(TEMPLATE.with_name("report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(report: Report, curves: Curves) -> list[tuple[str, str]]:
    """What was run, as pairs of words."""
    sweep = report.sweep
    finished = [run for run in sweep.runs.values() if run.is_finished]
    codes = {}
    for facts in filter(None, (run.facts() for run in finished)):
        commit, _, dirty = (facts.code.get("commit") or "").partition(" ")
        words = [facts.code.get("version"), f"commit {commit[:10]}" if commit else "", dirty and f"({dirty})"]
        codes[" ".join(filter(None, words))] = True
    seconds = sum(own.seconds for own in curves.values())
    last = max((run.folder / "results.json").stat().st_mtime for run in finished)
    baseline = next((row for row in report.rows if row.is_baseline), None)
    count = f"{len(finished)} of {len(sweep.runs)}" if sweep.unfinished else str(len(finished))
    return [
        ("Metric", f"{sweep.metric}, {'higher' if sweep.mode == 'max' else 'lower'} is better"),
        ("Points", str(len(sweep.points))),
        ("Seeds", ", ".join(map(str, sweep.seeds))),
        ("Runs finished", count),
        ("Baseline", plots.name_of(baseline.point.labels) if baseline else "none"),
        ("Time running", _duration(seconds)),
        ("Last result", datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Code of the runs", "; ".join(codes) or "not recorded"),
        ("Report by", f"ldis_lightning {__version__}"),
    ]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else "under 1 min"
    )


def _sort_values(sweep: FinishedSweep, row: table.Row) -> list[str]:
    """What the columns of a row sort by: numbers as such, and what is missing last."""
    labels = [row.point.labels.get(heading, "") for heading in sweep.headings]
    change = "0" if row.is_baseline else _plain_number(row.difference.mean if row.difference else math.nan)
    return [*labels, _plain_number(row.mean), *([change] if sweep.baseline else []), str(len(row.values))]


def _plain_number(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _curve_plots(report: Report, curves: Curves) -> list[plots.Plot]:
    """A plot for each tag worth one; with many points the best ones and the baseline are in colour."""
    sweep = report.sweep
    if sweep.shared_training:
        return _shared_curve_plots(sweep)
    tags = curve_tags(sweep, sorted({tag for own in curves.values() for tag in own.scalars}))
    sign = -1 if sweep.mode == "max" else 1
    order = sorted(report.rows, key=lambda row: (not row.is_baseline, math.isnan(row.mean), sign * row.mean))
    names = {row.point.slug: _unique_name(report, row) for row in report.rows}
    shown = [names[row.point.slug] for row in order[: len(plots.COLORS)]]
    found = []
    for number, tag in enumerate(tags):
        by_name: dict[str, Curve] = {}
        for point in sweep.points:
            own = [curves[point.slug, run.seed].scalars.get(tag, {}) for run in sweep.runs_of(point.slug)]
            if (curve := over_seeds(own)) is not None:
                by_name[names[point.slug]] = curve
        if by_name and max(len(curve.step) for curve in by_name.values()) > 1:
            found.append(plots.curve_plot(tag, by_name, shown, number))
    return found


def _shared_curve_plots(sweep: FinishedSweep) -> list[plots.Plot]:
    """The curves of the trainings that the points share."""
    folders = [sweep.folder / "training" / f"seed-{seed}" for seed in sweep.seeds]
    runs = [read_curves(FinishedRun(sweep.points[0], 0, folder).event_files) for folder in folders]
    tags = curve_tags(sweep, sorted({tag for own in runs for tag in own.scalars}))
    found = []
    for number, tag in enumerate(tags):
        curve = over_seeds([own.scalars.get(tag, {}) for own in runs])
        if curve is not None and len(curve.step) > 1:
            name = "the training that all points share"
            found.append(plots.curve_plot(tag, {name: curve}, [name], number))
    return found


def _unique_name(report: Report, row: table.Row) -> str:
    """A point's name, or its slug where two points would have the same."""
    name = plots.name_of(row.point.labels)
    alike = [other for other in report.rows if plots.name_of(other.point.labels) == name]
    return name if len(alike) == 1 else row.point.slug


def _any_run(sweep: FinishedSweep, slug: str) -> list[FinishedRun]:
    """One run of a point, the first that has a config, to say how to repeat it."""
    runs = [sweep.runs[slug, seed] for seed in sweep.seeds if (slug, seed) in sweep.runs]
    return [run for run in runs if run.config is not None][:1]


def rerun(run: FinishedRun) -> str:
    """The command that repeats a run: the one that its config's first line names, else `ldis fit` of the config."""
    assert run.config is not None
    try:
        with run.config.open(encoding="utf-8") as file:
            found = RERUN.match(file.readline(4000).strip())
    except (OSError, ValueError):
        found = None
    return found[1] if found else f"ldis fit --config {shlex.quote(str(run.config))}"


def _config(sweep: FinishedSweep) -> tuple[str, str] | None:
    """The config of the first point that has one: its path and its text."""
    for run in sweep.runs.values():
        if run.config is not None:
            try:
                text = run.config.read_text(encoding="utf-8")
            except (OSError, ValueError):
                continue
            cut = "\n… (the rest is in the file)" if len(text) > MOST_CONFIG else ""
            return str(run.config), text[:MOST_CONFIG] + cut
    return None
