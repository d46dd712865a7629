"""A small data set, and ways to change what its index says."""

import json
from pathlib import Path

from shard_samples import jpg, png

from ldis_lightning.datamodules.shards import ShardWriter


def write_small(folder: Path) -> Path:
    """Four rows in two shards: an image, a clip of two frames, an image; a class that never occurs."""
    with ShardWriter(folder, "tiny", {1: "cat", 2: "dog", 9: "never seen"}, max_samples_per_shard=2) as writer:
        writer.add_image("a", jpg(), png((0, 1)))
        writer.add_clip("walk", [(jpg(), png((2, 3))), (jpg(), png((0, 255)))])
        writer.add_image("b", jpg((4, 8)), png((1, 1, 2, 1), (4, 8)))
    return folder


def header(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text())


def change(folder: Path, **values) -> None:
    (folder / "index.json").write_text(json.dumps(header(folder) | values))
