"""`ldis report`: the table, plots and pictures of a folder of finished runs."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ldis_lightning.command_line import Parser

DESCRIPTION = """Write results.csv, results.md and report.html into a folder of finished runs, and print the table. The
folder is one of `ldis sweep`, or any with runs in it that have a results.json and a config.yaml, such as `runs`: then
the points are what the configs differ in."""


def main(args: Sequence[str]) -> int:
    """Run `ldis report`.

    Raises:
        UserError: the command line is wrong, or there is nothing to report: see `read_sweep`.
    """
    options = _parser().parse(args)
    from rich.console import Console

    from ldis_lightning.sweeps.report import write

    report = write(options.folder, options.metric, options.mode, options.baseline)
    console = Console()
    report.show(console)
    for run in report.sweep.unfinished:
        console.print(f"{run.name}: {run.problem}", highlight=False, markup=False, soft_wrap=True)
    if options.open:
        webbrowser.open(report.html.resolve().as_uri())
    return 0


def _parser() -> Parser:
    parser = Parser("ldis report", DESCRIPTION)
    parser.add_argument("folder", type=Path, metavar="DIR", help="of a sweep, or with finished runs in it")
    parser.add_argument("--metric", help="what to compare, e.g. test/novel/miou (default: the sweep's)")
    parser.add_argument("--mode", choices=["max", "min"], help="whether larger or smaller is better")
    parser.add_argument(
        "--baseline", metavar="POINT", help="compare the others with it: a point's name, or `heading=label` of one"
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    return parser
