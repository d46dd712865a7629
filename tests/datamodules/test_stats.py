"""Statistics of a data set: the numbers, the text and the picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_samples import jpg, png

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.stats import MOST_BARS, MOST_SIZES, as_text, draw, stats_of
from ldis_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    with ShardWriter(tmp_path / "set", "zoo", {1: "cat", 2: "dog", 9: "never seen"}) as writer:
        writer.add_image("a", jpg(), png((0, 1)))
        writer.add_clip("walk", [(jpg(), png((1, 2))), (jpg(), png((0, 255)))])
        writer.add_clip("run", [(jpg((6, 8)), png((2, 2), (6, 8)))])
    return tmp_path / "set"


def test_numbers(folder):
    stats = stats_of(ShardIndex.open(folder))
    total = 3 * 12 * 16 + 6 * 8
    assert [entry[:4] for entry in stats.classes] == [(1, "cat", 2, 192), (2, "dog", 2, 144), (9, "never seen", 0, 0)]
    assert [entry.share for entry in stats.classes] == pytest.approx([192 / total, 144 / total, 0])
    assert stats.sizes == [((12, 16), 3), ((6, 8), 1)]
    assert stats.clip_lengths.tolist() == [2, 1]
    assert stats.classes_per_frame.tolist() == [1, 2, 0, 1]


def test_the_command_prints_and_draws(folder, tmp_path, capsys):
    assert main(["stats", str(folder), "--out", str(tmp_path / "stats.png")]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["1", "cat", "2", "192", "30.77%"]
    assert lines[4] == ["none", "or", "ignored", "46.15%"]
    assert "classes a frame: 0 to 2, median 1; 1 frames show none" in text
    assert "picture sizes (frames): 16 x 12 (3), 8 x 6 (1)" in text
    assert "frames a clip: 1 to 2, median 1.5 in 2 clips" in text
    picture = np.asarray(Image.open(tmp_path / "stats.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(UserError, match=r"--out .*stats\.doc cannot be written"):
        main(["stats", str(folder), "--out", str(tmp_path / "stats.doc")])


def test_many_classes_and_sizes_are_cut_and_images_have_no_clips(tmp_path):
    with ShardWriter(tmp_path / "set", "many", {}) as writer:
        for number in range(MOST_BARS + 5):
            size = (8, 8 + number % (MOST_SIZES + 3))
            writer.add_image(f"i{number}", jpg(size), png((0, number + 1), size))
    stats = stats_of(ShardIndex.open(tmp_path / "set"))
    assert "and 3 others" in as_text(stats)
    assert "clip" not in as_text(stats)
    assert len(as_text(stats).splitlines()) == 1 + MOST_BARS + 5 + 3
    draw(stats, tmp_path / "stats.png")
    assert Image.open(tmp_path / "stats.png").height > 1000
