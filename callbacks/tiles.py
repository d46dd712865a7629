"""The squares of a preview as files of their own, to show one query under many models."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ldis_lightning.callbacks.clip_drawing import TILE, ClipPicture, clip_tiles
from ldis_lightning.callbacks.drawing import EpisodePicture, episode_tiles, tile_side
from ldis_lightning.files import write_atomically, write_text_atomically


def write_tiles(folder: Path, rows: Sequence[EpisodePicture | ClipPicture]) -> None:
    """Write each square of each row as `<row>-<caption>.jpg`, and what they show as `tiles.json`.

    Args:
        folder: replaced as far as its names are the same.
        rows: all `ClipPicture` or all `EpisodePicture`.

    `tiles.json` holds a list with, for each row, `name` (the concept, or the clip and its frame), `iou` (of this
    episode or frame at the size shown, null without a union) and `files` {caption: file name}.
    """
    listed = []
    for number, row in enumerate(rows):
        if isinstance(row, ClipPicture):
            name, iou, tiles = f"{row.clip}, frame {row.frame}", row.miou, clip_tiles(row, (TILE, TILE))
        else:
            name, iou, tiles = row.name, row.iou, episode_tiles(row, tile_side(max(row.query.shape[:2])))
        files = {caption: f"{number}-{caption.replace(' ', '-')}.jpg" for caption in tiles}
        for caption, tile in tiles.items():
            write_atomically(folder / files[caption], partial(tile.save, quality=90))
        listed.append({"name": name, "iou": None if math.isnan(iou) else iou, "files": files})
    text = json.dumps(listed, indent=1, ensure_ascii=False) + "\n"
    write_text_atomically(folder / "tiles.json", text)
