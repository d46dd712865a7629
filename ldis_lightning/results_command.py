"""`ldis results`: print result rows beside published ones."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ldis_lightning.command_line import Parser
from ldis_lightning.errors import UserError

DESCRIPTION = """Print the rows that `ldis test` wrote, grouped by benchmark (data set, protocol, number of references),
beside published ones. Scores are in percent with 95% intervals. What must not be compared is set apart: strict and
in-domain, controls, sets that were scored in part, rows whose episodes differ."""

RUNS = Path("runs")
FORMATS = ("table", "markdown", "csv")


def main(args: Sequence[str]) -> int:
    """Run `ldis results`.

    Raises:
        UserError: the command line is wrong, a path does not exist or holds no rows, or a row is damaged.
    """
    options = _parser().parse(args)
    from ldis_lightning.evaluation import comparison, tables
    from ldis_lightning.evaluation.rows import read_rows

    rows = read_rows(options.paths or ([RUNS] if RUNS.exists() else []))
    if not rows and not options.published:
        where = ", ".join(f"`{path}`" for path in options.paths or [RUNS])
        raise UserError(
            f"no result rows in {where}: `ldis test --config configs/benchmark.yaml --ckpt_path FILE` writes them, "
            "and `ldis results --published` prints the published ones alone"
        )
    write = {"table": tables.write_text, "markdown": tables.write_markdown, "csv": tables.write_csv}[options.format]
    groups = comparison.compare(rows, options.published)
    text = io.StringIO()
    write(groups, sys.stdout if options.out is None and sys.stdout.isatty() else text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text.getvalue(), encoding="utf-8")
        text = io.StringIO(f"{options.out}\n")
    _print(text.getvalue())
    return 0


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # what reads the pipe, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    parser = Parser("ldis results", DESCRIPTION)
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="results.jsonl, or a folder to search for them (runs)"
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="(default: table)")
    parser.add_argument(
        "--published",
        action=argparse.BooleanOptionalAction,
        help="all published rows, or none (default: those of the benchmarks that there are rows of)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to a file instead of the screen")
    return parser
