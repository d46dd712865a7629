"""Groups of comparable rows as tables: for a terminal, as Markdown and as CSV. Scores are in percent."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldis_lightning.evaluation.comparison import Group, Line, identity
from ldis_lightning.evaluation.published import SOURCES
from ldis_lightning.evaluation.rows import SCORE_NAMES, ResultRow

WIDTH = 100
"""Columns of a table where there is no terminal to fit."""
NOTHING = "-"
WARNING = "Rows with different letters were scored on different episodes: do not compare them."
TEXT_COLUMNS = ("domain", "method", "notes")

Numbers = Mapping[tuple[object, ...], int]
"""Number of a model by its `identity`."""


def write_text(groups: Sequence[Group], stream: TextIO) -> None:
    """A table a group, then what the numbers of our models and the marks of published sources stand for."""
    console = Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False)
    numbers = model_numbers(groups)
    with console.capture() as screen:
        for group in groups:
            console.print(f"[bold]{escape(title(group))}[/]  {escape(details(group))}\n", soft_wrap=True)
            console.print(_rich_table(group, numbers), "")
            if group.episodes:
                console.print(f"[yellow]{WARNING}[/]", _rich_list(group.episodes.items()), "", sep="\n")
        console.print(_rich_list(legend(groups, numbers)))
    stream.writelines(f"{line.rstrip()}\n" for line in screen.get().splitlines())


def write_markdown(groups: Sequence[Group], stream: TextIO) -> None:
    """The same as Markdown; our rows are bold."""
    numbers = model_numbers(groups)
    for group in groups:
        heads = headings(group)
        stream.write(f"### {title(group)}\n\n{details(group)}\n\n")
        for row in [heads, ["---" if head in TEXT_COLUMNS else "---:" for head in heads]]:
            stream.write(f"| {' | '.join(row)} |\n")
        for line in group.lines:
            cells = [cell.replace("|", "\\|") for cell in cells_of(line, group, numbers)]
            stream.write(f"| {' | '.join(f'**{c}**' if line.ours and c else c for c in cells)} |\n")
        if group.episodes:
            stream.write(f"\n{WARNING}\n\n")
            stream.writelines(f"- {letter}: {text}\n" for letter, text in group.episodes.items())
        stream.write("\n")
    stream.writelines(f"- {mark}: {text}\n" for mark, text in legend(groups, numbers))


CSV_COLUMNS: tuple[str, ...] = (
    "benchmark", "dataset", "protocol", "references", "measure", "domain", "comparable", "method", "published", "fold",
    "score", "low", "high", "episodes", "expected", "treatment", "set", "manifest", "checkpoint", "checkpoint_sha256",
    "model", "version", "commit", "time", "file", "notes",
)  # fmt: skip


def write_csv(groups: Sequence[Group], stream: TextIO) -> None:
    """One line a number: every row of ours and every published one, by fold where it has folds, and means over folds.

    `fold` is a number or `mean`, and empty where there are none; `comparable` is `no` for controls and sets that were
    scored in part; `published` is 1 or 0.
    """
    lines = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    lines.writeheader()
    for group in groups:
        shared = {
            **{"benchmark": group.title, "dataset": group.dataset, "protocol": group.protocol},
            **{"references": group.references, "measure": group.measure},
        }
        for line in group.lines:
            of_line = {
                "domain": line.domain,
                "comparable": "yes" if line.comparable else "no",
                "method": line.method,
                "published": int(not line.ours),
                "notes": "; ".join(line.notes),
            }
            lines.writerows({**shared, **of_line, **number} for number in _numbers_of(line))


# ---- What the formats share


def title(group: Group) -> str:
    """`COCO-20i, 5 references, mIoU in %`."""
    plural = "s" if group.references > 1 else ""
    return f"{group.title}, {group.references} reference{plural}, {group.measure} in %"


def details(group: Group) -> str:
    """`data set coco, protocol hsnet-coco, folds f0 to f3`."""
    words = [f"protocol {group.protocol}"] if group.has_ours else ["published rows alone"]
    if group.dataset not in ("", group.title):
        words.insert(0, f"data set {group.dataset}")
    if group.folds:
        words.append(f"folds f{group.folds[0]} to f{group.folds[-1]}")
    return ", ".join(words)


def headings(group: Group) -> list[str]:
    """The columns of a group's table."""
    folds = [f"f{fold}" for fold in group.folds]
    ours = ["95% interval", "episodes"] if group.has_ours else []
    return ["domain", "method", *folds, "mean" if folds else group.measure, *ours, "notes"]


def cells_of(line: Line, group: Group, numbers: Numbers) -> list[str]:
    """The cells of a line under `headings`."""
    models = sorted({numbers[identity(row)] for row in line.rows})
    details = f"({', '.join(line.details)})" if line.details else ""
    method = " ".join(filter(None, [line.method, _ranges(models), details]))
    folds = ["" if line.folds is None else percent(line.folds.get(fold, math.nan)) for fold in group.folds]
    scored = str(sum(row.episodes for row in line.rows)) if line.ours else ""
    ours = [interval_text(line.interval), scored] if group.has_ours else []
    stamp = line.domain if line.comparable else line.block
    return [stamp, method, *folds, percent(line.score), *ours, ", ".join(line.notes)]


def _ranges(numbers: Sequence[int]) -> str:
    """`#1`, `#1 #3`, `#1-4`."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"#{numbers[0]}-{numbers[-1]}"
    return " ".join(f"#{number}" for number in numbers)


def percent(score: float) -> str:
    """`68.4`, or a dash for what there is not."""
    return NOTHING if math.isnan(score) else f"{score:.1f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`[66.1, 70.9]`, or nothing."""
    return "" if interval is None or math.isnan(interval[0]) else f"[{percent(interval[0])}, {percent(interval[1])}]"


def model_numbers(groups: Sequence[Group]) -> Numbers:
    """1, 2, ... for our models, in the order in which they appear."""
    models = dict.fromkeys(identity(row) for group in groups for line in group.lines for row in line.rows)
    return {model: number for number, model in enumerate(models, start=1)}


def legend(groups: Sequence[Group], numbers: Numbers) -> Iterator[tuple[str, str]]:
    """What stands in a table in short, and what it stands for: models by number, sources by mark."""
    rows = {identity(row): row for group in groups for line in group.lines for row in line.rows}
    first_of: dict[str, int] = {}
    for model, number in numbers.items():
        row = rows[model]
        first = first_of.setdefault(row.model, number)
        yield (
            f"#{number}",
            f"{weights_text(row)}\n{row.model}" if first == number else f"as #{first}: {weights_text(row)}",
        )
    marks = {note for group in groups for line in group.lines if not line.ours for note in line.notes}
    for source in SOURCES:
        if source.mark in marks:
            yield source.mark, source.text


def weights_text(row: ResultRow) -> str:
    """Where the weights of a model are, and which code scored them when."""
    weights = row.checkpoint or "weights in memory"
    digest = f" sha256 {row.checkpoint_sha256[:12]}" if row.checkpoint_sha256 else ""
    commit, _, dirty = (row.code.get("commit") or "").partition(" ")
    code = " ".join(filter(None, ["code", row.code.get("version"), commit[:10], dirty]))
    folder = row.path.parent if row.path else "?"
    return f"{weights}{digest}, {folder}, {row.time[:16].replace('T', ' ')}, {code}"


def _rich_table(group: Group, numbers: Numbers) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in headings(group):
        is_text = head in TEXT_COLUMNS
        table.add_column(head, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    block = shown = None
    for line in group.lines:
        if block not in (None, line.block):
            table.add_section()
        stamp, *cells = map(escape, cells_of(line, group, numbers))
        table.add_row("" if stamp == shown else stamp, *cells, style="bold" if line.ours else None)
        block, shown = line.block, stamp
    return table


def _rich_list(entries: Iterable[tuple[str, str]]) -> Table:
    """Marks and what they stand for, in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for mark, text in entries:
        grid.add_row(f"[bold]{escape(mark)}[/]", escape(text))
    return grid


def _numbers_of(line: Line) -> Iterator[dict[str, object]]:
    """What the CSV says of each number of a line."""
    for row in line.rows:
        score, low, high = (100 * number for number in (row.value, *(row.interval or (math.nan, math.nan))))
        yield {
            **{name: getattr(row, name) for name in CSV_COLUMNS if hasattr(row, name)},
            **{"measure": SCORE_NAMES.get(row.measure, row.measure), "fold": row.fold},
            **{"score": _cell(score), "low": _cell(low), "high": _cell(high), "manifest": row.manifest_hash},
            **{"version": row.code.get("version"), "commit": row.code.get("commit"), "file": row.path},
        }
    if not line.ours:
        yield from ({"fold": fold, "score": score} for fold, score in (line.folds or {}).items())
    if (not line.ours or line.folds) and not math.isnan(line.score):
        low, high = map(_cell, line.interval or (math.nan, math.nan))
        yield {"fold": "mean" if line.folds else None, "score": _cell(line.score), "low": low, "high": high}


def _cell(number: float) -> float | None:
    """To a ten-thousandth of a percent; empty for NaN."""
    return None if math.isnan(number) else round(number, 4)
