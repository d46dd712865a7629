"""Packing a tree of labelled frames."""

from pathlib import Path

import numpy as np
import pytest
from shard_samples import jpg, labels, png, png_of, tree

from ldis_lightning.datamodules.packing.datasets.clips import Clips
from ldis_lightning.datamodules.packing.engine import Packed, pack
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import read_label_map


@pytest.fixture
def src(tmp_path) -> Path:
    return tree(tmp_path / "zoo", {"walk": 3, "run": 2, "swim": 2})


def pack_clips(src: Path, out: Path, name: str = "zoo", classes: dict[int, str] | None = None, **options) -> Packed:
    return pack(Clips(src, **options), out, name=name, classes=classes, workers=1)


def stored(index, row: int) -> tuple[bytes, bytes]:
    data = index.shard_paths[index.shard[row]].read_bytes()
    return tuple(data[offset : offset + size] for offset, size in (index.image_span[row], index.mask_span[row]))


def test_clips_hold_their_frames_in_order_byte_for_byte(src, tmp_path):
    index, skipped = pack_clips(src, tmp_path / "out", classes={2: "lion"})
    assert (index.name, index.kind, index.classes) == ("zoo", "clips", {1: "class 1", 2: "lion"})
    assert index.clip_names == ["run", "swim", "walk"]
    assert [index.key(row) for row in range(4, 7)] == ["walk.00000", "walk.00001", "walk.00002"]
    for frame, row in enumerate(range(4, 7)):
        image, mask = src / f"JPEGImages/walk/f{frame}.jpg", src / f"Annotations/walk/f{frame}.png"
        assert stored(index, row) == (image.read_bytes(), mask.read_bytes())
    assert not sum(skipped.values())


def test_every_frame_becomes_an_image(src, tmp_path):
    index, _ = pack_clips(src, tmp_path / "out", as_images=True, name="animals")
    assert (index.name, index.kind, len(index)) == ("animals", "images", 7)
    assert [index.key(row) for row in range(3)] == ["run/f0", "run/f1", "swim/f0"]
    assert stored(index, 6)[0] == (src / "JPEGImages/walk/f2.jpg").read_bytes()


def test_some_clips_for_training_and_others_for_testing(src, tmp_path):
    train, _ = pack_clips(src, tmp_path / "train", clips=["walk", "run"])
    test, _ = pack_clips(src, tmp_path / "test", clips=["swim"])
    assert (train.clip_names, test.clip_names) == (["run", "walk"], ["swim"])
    with pytest.raises(UserError, match=r"no clip `swin`; did you mean `swim`"):
        pack_clips(src, tmp_path / "typo", clips=["swin"])
    with pytest.raises(UserError, match="there are run, swim, walk"):
        pack_clips(src, tmp_path / "typo", clips=["?"])


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    src = tree(tmp_path / "src", {"c10": 1, "c9": 12})
    items = Clips(src).survey().items
    assert [item.key for item in items] == ["c9", "c10"]
    assert [frame.image.stem for frame in items[0].parts] == [f"f{number}" for number in range(12)]


def test_dots_in_names_become_underscores(tmp_path):
    src = tree(tmp_path / "src", {"clip.mp4": 1})
    (src / "JPEGImages/clip.mp4/f0.jpg").rename(src / "JPEGImages/clip.mp4/f.0.jpg")
    (src / "Annotations/clip.mp4/f0.png").rename(src / "Annotations/clip.mp4/f.0.png")
    assert pack_clips(src, tmp_path / "clips").index.clip_names == ["clip_mp4"]
    assert pack_clips(src, tmp_path / "images", as_images=True).index.key(0) == "clip_mp4/f_0"


def test_what_is_left_out_is_counted(src, tmp_path):
    (src / "JPEGImages/walk/Thumbs.db").touch()
    (src / "Annotations/walk/f99.png").touch()
    (src / "Annotations/run/f1.png").unlink()
    (src / "Annotations/swim/f0.png").unlink()
    (src / "Annotations/swim/f1.png").unlink()
    with pytest.raises(UserError, match=r"3 of its frames(.|\n)*f1\.jpg has no annotation(.|\n)*--skip_unlabelled"):
        pack_clips(src, tmp_path / "out")
    index, skipped = pack_clips(src, tmp_path / "out", skip_unlabelled=True)
    assert (index.clip_names, len(index)) == (["run", "walk"], 4)
    assert sorted(skipped.values()) == [1, 1, 3]


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_left(src, tmp_path):
    wrong = {
        "run/f0": png((0, 1), (6, 8)),
        "swim/f0": png_of(np.zeros((12, 16, 3), np.uint8)),
        "swim/f1": png_of(np.full((12, 16), 65535, np.uint16)),
        "walk/f0": b"",
    }
    for name, data in wrong.items():
        (src / "Annotations" / f"{name}.png").write_bytes(data)
    (src / "JPEGImages/walk/f1.jpg").write_bytes(png())
    with pytest.raises(UserError) as error:
        pack_clips(src, tmp_path / "a" / "out")
    message = str(error.value)
    assert all(f"{name}." in message for name in [*wrong, "walk/f1"])
    assert all(
        text in message for text in ("5 or more of its frames", "8 x 6", "16 x 12", "RGB", "65535", "read as JPEG")
    )
    assert not list((tmp_path / "a").iterdir())


def test_many_problems_are_cut_short(tmp_path):
    src = tree(tmp_path / "src", {"clip": 9})
    for path in (src / "Annotations/clip").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="and 4 more"):
        pack_clips(src, tmp_path / "out")


def test_cut_files_are_found_although_their_headers_are_whole(src, tmp_path):
    path = src / "JPEGImages/walk/f1.jpg"
    path.write_bytes(jpg((64, 64))[:-300])
    mask = src / "Annotations/run/f0.png"
    mask.write_bytes(mask.read_bytes()[:50])
    with pytest.raises(UserError, match=rf"{mask} is a damaged PNG(.|\n)*{path} is a damaged JPEG"):
        pack_clips(src, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_palette_masks_are_packed_as_they_are(src, tmp_path):
    mask = png_of(labels((0, 5)), palette=True)
    for path in src.glob("Annotations/*/*.png"):
        path.write_bytes(mask)
    index, _ = pack_clips(src, tmp_path / "out")
    assert index.classes == {5: "class 5"}
    assert stored(index, 0)[1] == mask


def test_masks_of_0_and_255_need_binary(tmp_path):
    src = tree(tmp_path / "src", {"clip": 2}, ids=(0, 255))
    with pytest.raises(UserError, match="--binary"):
        pack_clips(src, tmp_path / "out")
    index, _ = pack_clips(src, tmp_path / "out", binary=True, classes={1: "thing"})
    assert index.classes == {1: "thing"}
    assert np.array_equal(read_label_map(stored(index, 0)[1], "x"), labels((0, 1)))


def test_folders_that_are_no_tree(src, tmp_path):
    with pytest.raises(UserError, match="typo: there is no such folder"):
        pack_clips(tmp_path / "typo", tmp_path / "out")
    with pytest.raises(UserError, match="JPEGImages: there is no such folder"):
        pack_clips(src / "JPEGImages", tmp_path / "out")
    (src / "JPEGImages").rename(src / "480p")
    (src / "JPEGImages").mkdir()
    with pytest.raises(UserError, match="nothing to pack"):
        pack_clips(src, tmp_path / "out")
    (src / "480p").rename(src / "JPEGImages" / "480p")
    with pytest.raises(UserError, match="480p holds folders"):
        pack_clips(src, tmp_path / "out")


def test_two_files_for_one_frame(src, tmp_path):
    (src / "JPEGImages/run/f0.jpeg").write_bytes(jpg())
    with pytest.raises(UserError, match="same name"):
        pack_clips(src, tmp_path / "out")


def test_an_occupied_out_is_said_before_the_tree_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(UserError, match="notes"):
        pack_clips(tmp_path / "typo", tmp_path / "out")
