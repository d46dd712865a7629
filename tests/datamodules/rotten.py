"""Damage to shards, for the tests of what notices it."""

from pathlib import Path

import numpy as np

from ldis_lightning.datamodules.index import ShardIndex


def member(index: ShardIndex, row: int, kind: str = "image") -> tuple[Path, int, int]:
    """Shard, first byte and length of a row's `image` or `mask`."""
    offset, length = getattr(index, f"{kind}_span")[row].tolist()
    return index.shard_paths[int(index.shard[row])], offset, length


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change some bytes of a file in place."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip(index: ShardIndex, row: int, kind: str = "image") -> None:
    """Invert a byte in the middle of a row's image or mask."""
    path, offset, length = member(index, row, kind)
    place = offset + length // 2
    overwrite(path, place, bytes([path.read_bytes()[place] ^ 0xFF]))


def ruin(index: ShardIndex, share: float, seed: int = 0) -> set[str]:
    """Flip a byte in the image or the mask of a share of the rows; returns their keys."""
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(index))[: round(share * len(index))].tolist()
    for row in rows:
        flip(index, row, generator.choice(["image", "mask"]))
    return {index.key(row) for row in rows}
