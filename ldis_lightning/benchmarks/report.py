"""Tables of what was raced: seconds, their ratio to the baseline's, memory, and on a known GPU its utilisation."""

from __future__ import annotations

import platform
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ldis_lightning.benchmarks.settings import Settings
from ldis_lightning.benchmarks.turns import Contender, Record, Unfit, Work, race


@dataclass(frozen=True)
class Row:
    """A contender beside the baseline that it ran by turns with.

    Attributes:
        label: name of the contender.
        baseline, ours: their records; None where one of them could not run.
        pictures: queries in one call of the work.
        note: why there are no records.
    """

    label: str
    baseline: Record | None = None
    ours: Record | None = None
    pictures: int = 1
    note: str = ""

    @property
    def speed(self) -> float | None:
        """How many times as fast ours is, by medians."""
        if self.baseline is None or self.ours is None:
            return None
        return statistics.median(self.baseline.seconds) / statistics.median(self.ours.seconds)

    @property
    def memory(self) -> float | None:
        """Our peak memory as a share of the baseline's; None where that is not known."""
        if self.baseline is None or self.ours is None or not self.baseline.memory:
            return None
        return self.ours.memory / self.baseline.memory


def raced(
    label: str,
    settings: Settings,
    builds: Sequence[Callable[[Settings], Work]],
    options: Namespace,
    warmup: int,
    pictures: int,
) -> Row:
    """Race the baseline and ours, which `builds` make in this order; a row without records where one cannot run.

    Args:
        options: those of `settings.parser`, as parsed.
        warmup: see `turns.race`.
        pictures: see `Row`.
    """
    contenders = [Contender(settings, build) for build in builds]
    try:
        return Row(label, *race(contenders, options.turns, warmup, options.alone), pictures=pictures)
    except Unfit as unfit:
        return Row(label, note=str(unfit))


def print_rows(title: str, settings: Settings, rows: Sequence[Row]) -> None:
    """Print a table: for each row a line of the baseline's and one of ours."""
    from rich.console import Console
    from rich.table import Table

    from ldis_lightning.benchmarks.flops import peak

    console = Console(width=None if Console().is_terminal else 120, highlight=False, soft_wrap=True)
    name = device_name(settings.device)
    most = peak(name) if settings.device == "cuda" and settings.precision == "bf16-mixed" else None
    console.print(f"{title}, scale {settings.scale}, {settings.precision}, {described(settings, name)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("seconds", "lowest to highest", "images/s", "speed", "MB", "memory", *(["MFU"] if most else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.baseline is None or row.ours is None:
            table.add_row(row.label, row.note)
            continue
        table.add_row("baseline", *_cells(row.baseline, row.pictures, settings.calls, 1.0, 1.0, most), style="dim")
        table.add_row(row.label, *_cells(row.ours, row.pictures, settings.calls, row.speed, row.memory, most))
    console.print(table)
    console.print("speed: times the baseline's, by medians; memory: of the baseline's, both at their highest")


def _cells(
    record: Record, pictures: int, calls: int, speed: float | None, memory: float | None, most: float | None
) -> list[str]:
    """Cells of a record; `most` operations a second can be done on the device."""
    each = [seconds / calls for seconds in record.seconds]
    median = statistics.median(each)
    cells = [
        f"{median:.4g}",
        f"{min(each):.4g} to {max(each):.4g}",
        f"{pictures / median:.3g}",
        f"{speed:.2f}",
        f"{record.memory / 1e6:.0f}",
        "-" if memory is None else f"{memory:.2f}",
    ]
    if most:
        cells.append("-" if record.flops is None else f"{record.flops / (median * calls * most):.1%}")
    return cells


def device_name(device: str) -> str:
    """What the device calls itself."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else platform.machine()


def described(settings: Settings, name: str) -> str:
    """The device and the versions that a figure depends on."""
    import torch

    threads = "" if settings.device == "cuda" else f" with {torch.get_num_threads()} threads"
    return f"{name}{threads}, torch {torch.__version__}{', ours compiled' if settings.compile else ''}"
