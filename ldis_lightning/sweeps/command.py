"""`ldis sweep`: run every point of a config's grid at every seed and print the table."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ldis_lightning.config_files import resolve_configs
from ldis_lightning.errors import UserError
from ldis_lightning.lightning_cli import parse_fit, quieten
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.sweeps import table
from ldis_lightning.sweeps.grid import Point, Sweep, expand
from ldis_lightning.sweeps.launchers import Launcher, Local, Outcome
from ldis_lightning.sweeps.progress import SweepProgress
from ldis_lightning.sweeps.runs import Run, plan_runs

DESCRIPTION = """Run every point of the `sweep:` block of a config at every seed, each as a plain `ldis fit` that scores
its weights at the end, and print the metric's mean and 95% interval. All points are checked before the first one runs.
Points that have results already are not run again. Every other option is one of `ldis fit` and changes the config of
all points, e.g. `--trainer.max_steps 10` or `--sweep.seeds '[0]'`."""


def main(args: Sequence[str]) -> int:
    """Run `ldis sweep`; the status is 1 if a run failed.

    Raises:
        UserError: the command line, the config or any point of its grid is wrong; then nothing has run.
    """
    options, fit_options = _parser().parse_known_args(args)
    quieten()
    _, configs = resolve_configs(fit_options)
    if not configs:
        raise UserError("`ldis sweep` needs `--config` and a config with a `sweep:` block")
    parser, base = parse_fit(fit_options)
    sweep = Sweep(**base.sweep.as_dict())
    points = expand(sweep)
    _check_metric(sweep, base.get("data.evaluation"))
    out = options.out or Path("runs/sweeps") / configs[0].stem
    runs = plan_runs(parser, base, sweep, points, out)
    pending = [run for run in runs if not run.is_done()]
    console = Console()
    _announce(console, runs, pending, out, options.dry_run)
    if options.dry_run:
        return 0
    failed = _run(pending, sweep, Local(options.jobs, options.threads_per_job), console)
    _finish(console, sweep, points, [run for run in runs if run not in failed], out)
    for run in failed:
        console.print(f"failed: {run.name}, see {run.job.log}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ldis sweep", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="folder for all runs and the table (default: runs/sweeps/CONFIG)")
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads_per_job", type=_positive, help="threads of each run (default: the cores shared out)")
    parser.add_argument("--dry_run", action="store_true", help="check every point and list the runs, but run nothing")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _check_metric(sweep: Sweep, evaluation: Any) -> None:
    """A metric of an evaluation set that the config does not have would be missed only after the first run."""
    stage, _, rest = sweep.metric.partition("/")
    name = rest.partition("/")[0]
    if stage == "test" and evaluation and name not in evaluation:
        known = ", ".join(evaluation)
        hint = did_you_mean(name, evaluation)
        raise UserError(f"sweep.metric: `{sweep.metric}` names no evaluation set of `data.evaluation` ({known}){hint}")


def _announce(console: Console, runs: Sequence[Run], pending: Sequence[Run], out: Path, list_all: bool) -> None:
    done = len(runs) - len(pending)
    console.print(f"{len(runs)} runs in {out}, {done} done already", highlight=False, markup=False, soft_wrap=True)
    for run in runs if list_all else ():
        state = "to do" if run in pending else "done"
        console.print(f"  {run.name}: {state}", highlight=False, markup=False, soft_wrap=True)


def _run(runs: Sequence[Run], sweep: Sweep, launcher: Launcher, console: Console) -> list[Run]:
    """Run what is pending; the runs that failed."""
    by_job = {run.job: run for run in runs}
    for run in runs:
        run.prepare()
    failed = []
    with SweepProgress(len(runs), console) as progress:
        outcomes = launcher.run(list(by_job), progress)
        try:
            for outcome in outcomes:
                run = by_job[outcome.job]
                succeeded = outcome.status == 0 and run.results.is_file()
                progress.ended_with(
                    outcome, _result(run, sweep, outcome) if succeeded else f"failed ({outcome.status})"
                )
                if not succeeded:
                    failed.append(run)
        finally:
            outcomes.close()
    return failed


def _result(run: Run, sweep: Sweep, outcome: Outcome) -> str:
    return f"{sweep.metric} = {run.metrics_with(sweep.metric)[sweep.metric]:.4f}"


def _finish(console: Console, sweep: Sweep, points: Sequence[Point], finished: Sequence[Run], out: Path) -> None:
    """Print the table and write it as CSV and Markdown."""
    if not finished:
        return
    results = {(run.point.slug, run.seed): run.metrics_with(sweep.metric) for run in finished}
    rows = table.rows(sweep, points, results)
    console.print(table.rich_table(sweep, rows))
    table.write_csv(out / "results.csv", sweep, points, results)
    (out / "results.md").write_text(table.markdown(sweep, rows), encoding="utf-8")
    console.print(f"{out / 'results.csv'}\n{out / 'results.md'}", highlight=False, markup=False, soft_wrap=True)
