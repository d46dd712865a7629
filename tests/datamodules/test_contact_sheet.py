"""The contact sheet: it shows what the plan draws, at sizes that fit."""

import numpy as np
import pytest
from PIL import Image
from shard_samples import jpg, png, tree

from ldis_lightning.datamodules import contact_sheet as module
from ldis_lightning.datamodules.contact_sheet import MARK, TILE, contact_sheet
from ldis_lightning.datamodules.packing.datasets.clips import Clips
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.datamodules.pairing import FirstFrame
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.errors import UserError


@pytest.fixture
def clips(tmp_path):
    packer = Clips(tree(tmp_path / "src", {"walk": 4, "run": 3}))
    return pack(packer, tmp_path / "clips", name="src", workers=1).index.folder


def drawn(monkeypatch) -> list:
    """The episodes that are drawn from now on."""
    episodes = []
    draw = module._draw_row
    monkeypatch.setattr(
        module, "_draw_row", lambda index, reader, episode: episodes.append(episode) or draw(index, reader, episode)
    )
    return episodes


def test_a_sheet_has_a_row_an_episode_and_grows_with_references(clips, monkeypatch):
    episodes = drawn(monkeypatch)
    narrow, wide = contact_sheet(clips, 3), contact_sheet(clips, 3, references=2)
    assert [len(episode.references) for episode in episodes] == [1, 1, 1, 2, 2, 2]
    assert wide.width - narrow.width == 2 * (TILE + module.GAP)  # two columns of rows
    assert wide.height == narrow.height


def test_clips_are_prompted_by_their_own_frames_unless_told_otherwise(clips, monkeypatch):
    episodes = drawn(monkeypatch)
    contact_sheet(clips, 4)
    first_of_clip = {0: range(0, 3), 3: range(3, 7)}
    for episode in episodes:
        assert any({episode.query, *episode.references} <= set(rows) for rows in first_of_clip.values())
    episodes.clear()
    contact_sheet(clips, 4, pairing=FirstFrame())
    assert {episode.references[0] for episode in episodes} <= set(first_of_clip)


def test_classes_alternate_and_can_be_chosen(clips, monkeypatch):
    episodes = drawn(monkeypatch)
    contact_sheet(clips, 4)
    assert [episode.class_id for episode in episodes] == [1, 1, 2, 2]
    episodes.clear()
    contact_sheet(clips, 3, classes=[2])
    assert [episode.class_id for episode in episodes] == [2, 2, 2]
    with pytest.raises(UserError, match="no class 7; it has 1=class 1, 2=class 2"):
        contact_sheet(clips, classes=[7])


def test_the_same_seed_gives_the_same_sheet(clips):
    first, second, other = (contact_sheet(clips, 2, seed=seed).tobytes() for seed in (0, 0, 1))
    assert first == second != other


def test_the_outline_lies_around_the_class_and_nowhere_in_it():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 3
    tile = np.asarray(module._reference_tile(np.full((20, 20, 3), 50, np.uint8), mask, 3))
    assert tile.shape == (TILE, TILE, 3)
    inside = slice(TILE // 4, 3 * TILE // 4)
    assert (tile[inside, inside] == 50).all()
    assert (tile[TILE // 2, TILE // 4 - 2] == MARK).all()
    assert (tile[5, 5] > 150).all(), "the rest is faded"


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 1), (300, 301)])
def test_pictures_of_any_shape_fit_a_tile(tmp_path, size):
    with ShardWriter(
        tmp_path / "set", "a name that is far too long for a page " * 9, {1: "class name " * 40}
    ) as writer:
        for number in range(2):
            writer.add_image(f"{'key' * 60}{number}", jpg(size), png((1,), size))
    sheet = contact_sheet(tmp_path / "set")
    assert (sheet.width, sheet.height) < (6 * TILE, 4 * TILE)
    margins = np.asarray(sheet)
    assert (margins[:, -5:] == 255).all(), "nothing runs over the edge"


def test_text_keeps_its_end():
    font = module._font(14)
    assert module._shortened("short", font, 100) == "short"
    cut = module._shortened("a very long key that ends in 00017", font, 100)
    assert cut.startswith("...")
    assert cut.endswith("00017")
    assert font.getlength(cut) <= 100


def test_a_set_without_episodes_is_one_message(tmp_path):
    with ShardWriter(tmp_path / "set", "lonely", {}) as writer:
        writer.add_image("a", jpg(), png())
    with pytest.raises(UserError, match="set"):
        contact_sheet(tmp_path / "set")


def test_sheets_are_rgb(clips):
    assert isinstance(sheet := contact_sheet(clips, 1), Image.Image)
    assert sheet.mode == "RGB"
