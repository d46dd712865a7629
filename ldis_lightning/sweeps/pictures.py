"""The same queries under every point: pictures for the report, from the tiles that tests leave in the runs' folders."""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldis_lightning.sweeps.episodes import read_episodes
from ldis_lightning.sweeps.finished import DAMAGE, FinishedRun, FinishedSweep
from ldis_lightning.sweeps.grid import Point

SIDE = 160
"""Pixels of a tile's longer side in the page."""
MOST_POINTS, MOST_QUERIES = 40, 8
MOST_PIXELS = 4096 * 4096
MOST_BYTES = 12_000_000
"""Of all pictures of a page, as JPEG."""


@dataclass(frozen=True)
class Tile:
    """A JPEG as a `data:` address, its size in pixels, and a number under it (NaN for none)."""

    source: str
    width: int
    height: int
    score: float = math.nan


@dataclass(frozen=True)
class Grid:
    """Q queries of a set under some points.

    Attributes:
        names: of the queries' concepts, (Q,).
        prompts: rows that all points share: caption, and (Q,) tiles.
        lines: (Q,) predictions by point; None where a tile is missing.
        seed: of the runs that predicted.
        notes: what was left out.
    """

    set: str
    seed: int
    names: Sequence[str]
    prompts: Sequence[tuple[str, Sequence[Tile | None]]]
    lines: Sequence[tuple[Point, Sequence[Tile | None]]]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Tiles:
    """What `tiles.json` of a run lists, and what identifies its queries."""

    folder: Path
    rows: Sequence[Any]
    queries: Sequence[str]


def query_grid(sweep: FinishedSweep) -> Grid | None:
    """The first queries of the metric's set (else of any set with tiles) under every point, each at the first seed that
    has them; None where there are no tiles."""
    name = _set_with_tiles(sweep)
    if name is None:
        return None
    runs = [(point, run, tiles) for point in sweep.points for run, tiles in [_first(sweep, point, name)]]
    found = [(point, run, tiles) for point, run, tiles in runs if run is not None and tiles is not None]
    if not found:
        return None
    _, first, model = found[0]
    notes = _left_out([point for point, _, tiles in runs if tiles is None], "left no pictures")
    other = [point for point, _, tiles in found if tiles.queries != model.queries]
    notes += _left_out(other, "was scored on other queries")
    same = [(point, run, tiles) for point, run, tiles in found if tiles.queries == model.queries]
    notes += _left_out([point for point, _, _ in same[MOST_POINTS:]], f"is beyond the first {MOST_POINTS}")
    if other_seeds := [run.name for _, run, _ in same[:MOST_POINTS] if run.seed != first.seed]:
        notes.append(f"Another seed than {first.seed}: {'; '.join(other_seeds)}.")
    budget = _Budget()
    rows = model.rows[:MOST_QUERIES]
    captions = [caption for caption in rows[0]["files"] if caption not in ("prediction", "predicted")]
    prompts = [(caption, [budget.tile(model, row, caption) for row in rows]) for caption in captions]
    lines = [
        (point, [budget.tile(tiles, row, "prediction") for row in tiles.rows[:MOST_QUERIES]])
        for point, _, tiles in same[:MOST_POINTS]
    ]
    notes += budget.notes
    return Grid(name, first.seed, [str(row.get("name", "")) for row in rows], prompts, lines, notes)


def _left_out(points: Sequence[Point], why: str) -> list[str]:
    return [f"Not shown, as it {why}: {'; '.join(point.slug for point in points)}."] if points else []


def _set_with_tiles(sweep: FinishedSweep) -> str | None:
    """The metric's set if any run has tiles of it, else the first set that has some."""
    runs = [run for run in sweep.runs.values() if run.is_finished]
    sets = sorted({path.parent.name for run in runs for path in run.folder.glob("tiles/*/tiles.json")})
    return sweep.metric_set if sweep.metric_set in sets else next(iter(sets), None)


def _first(sweep: FinishedSweep, point: Point, name: str) -> tuple[FinishedRun | None, _Tiles | None]:
    for run in sweep.runs_of(point.slug):
        if (tiles := _read_tiles(run, name)) is not None:
            return run, tiles
    return None, None


def _read_tiles(run: FinishedRun, name: str) -> _Tiles | None:
    folder = run.folder / "tiles" / name
    try:
        rows = json.loads((folder / "tiles.json").read_text(encoding="utf-8"))
        assert all(isinstance(row["files"], dict) and row["files"] for row in rows) and rows
    except (*DAMAGE, AssertionError, KeyError, TypeError):
        return None
    try:  # the queries' keys tell episodes apart where the concepts' names do not
        queries = read_episodes(run.folder / "episodes" / f"{name}.csv").queries[: len(rows)]
    except (OSError, ValueError):
        queries = []
    return _Tiles(folder, rows, [*queries, *(str(row.get("name")) for row in rows)])


class _Budget:
    """Reads tiles until the page's share of bytes is used up."""

    def __init__(self) -> None:
        self.left = MOST_BYTES
        self.missing = 0

    def tile(self, tiles: _Tiles, row: Any, caption: str) -> Tile | None:
        """A tile of a row; None where it is missing, damaged or beyond the budget."""
        name = row["files"].get(caption)
        if self.left <= 0 or not isinstance(name, str) or Path(name).name != name:
            self.missing += self.left <= 0
            return None
        try:
            data, width, height = small_jpeg(tiles.folder / name)
        except (OSError, ValueError, SyntaxError):
            return None
        self.left -= len(data)
        iou = row.get("iou") if caption == "prediction" else None
        score = float(iou) if isinstance(iou, int | float) else math.nan
        return Tile(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", width, height, score)

    @property
    def notes(self) -> list[str]:
        """What did not fit."""
        megabytes = MOST_BYTES // 1_000_000
        return [f"{self.missing} pictures are left out: the page holds {megabytes} MB of them."] if self.missing else []


def small_jpeg(path: Path) -> tuple[bytes, int, int]:
    """A JPEG made anew with at most SIDE pixels a side, its width and height. Nothing of the old file is copied.

    Raises:
        OSError, ValueError, SyntaxError: it is no picture, or one of more than MOST_PIXELS.
    """
    with Image.open(path, formats=["JPEG"]) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{path.name} has {picture.width} x {picture.height} pixels")
        small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88, optimize=True)
    return stream.getvalue(), small.width, small.height
