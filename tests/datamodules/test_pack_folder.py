"""Packing people's own folders of pictures and masks."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from packed import SIZE, check_usable, stored, stored_labels, stripes, write_picture, write_png
from PIL import Image

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.packing.datasets.folder import FolderPacker
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.errors import UserError


def pair(folder: Path, names: tuple[str, ...], mask: np.ndarray) -> Path:
    """A folder of `images` and `masks`."""
    for name in names:
        write_picture(folder / "images" / name)
        write_png(folder / "masks" / f"{Path(name).stem}.png", mask)
    return folder


def keys(index) -> list[str]:
    return [index.key(row) for row in range(len(index))]


def test_label_maps_are_packed_as_they_are(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "b.jpeg", "c.d.jpg"), stripes(0, 1, 2, 255))
    index, skipped = pack(FolderPacker(src), tmp_path / "out", name="own", classes={2: "dog"}, workers=1)
    assert keys(index) == ["a", "b", "c_d"]
    assert index.classes == {1: "class 1", 2: "dog"}
    assert stored(index, "b") == ((src / "images/b.jpeg").read_bytes(), (src / "masks/b.png").read_bytes())
    assert not +skipped
    check_usable(tmp_path / "out")


def test_label_maps_of_16_bits(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "b.jpg"), stripes(0, 1).astype(np.uint16) * 700)
    index, _ = pack(FolderPacker(src), tmp_path / "out", name="own", workers=1)
    assert index.classes == {700: "class 700"}


def test_other_formats_become_jpeg(tmp_path):
    names = ("a.png", "b.bmp", "c.tif", "d.webp", "e.ppm", "f.JPG")
    src = pair(tmp_path / "src", names[:5], stripes(0, 1))
    (src / "images/f.JPG").write_bytes(write_picture(tmp_path / "f.jpg"))
    write_png(src / "masks/f.png", stripes(0, 1))
    index, skipped = pack(FolderPacker(src), tmp_path / "out", name="own", workers=1)
    assert keys(index) == ["a", "b", "c", "d", "e", "f"]
    assert +skipped == {"originals that are no JPEG, packed as JPEG of quality 95": 5}
    stream = BytesIO()
    Image.open(src / "images/b.bmp").save(stream, "JPEG", quality=95)
    assert stored(index, "b")[0] == stream.getvalue()


def colours() -> dict[str, Image.Image]:
    """The same mask in every form in which it may come."""
    mask = stripes(0, 1)
    blue = np.zeros((*SIZE, 3), np.uint8)
    blue[mask == 1] = (0, 0, 1)  # PIL's grey of it is black
    palette = Image.fromarray(mask)
    palette.putpalette([0, 0, 0] * 256)
    return {
        "white": Image.fromarray(mask * 255),
        "label": Image.fromarray(mask * 7),
        "bits": Image.fromarray(mask == 1),
        "rgb": Image.fromarray(blue),
        "rgba": Image.merge("RGBA", (*Image.fromarray(blue).split(), Image.new("L", (SIZE[1], SIZE[0]), 255))),
        "la": Image.merge("LA", (Image.fromarray(mask), Image.new("L", (SIZE[1], SIZE[0]), 255))),
        "wide": Image.fromarray(mask.astype(np.uint16) * 256),
        "palette": palette,
    }


@pytest.mark.parametrize("form", colours())
def test_binary_masks_of_any_colour(form, tmp_path):
    src = pair(tmp_path / "src", ("a.jpg",), stripes(0, 1))
    colours()[form].save(src / "masks/a.png")
    index, _ = pack(FolderPacker(src, binary=True), tmp_path / "out", name="own", workers=1)
    assert np.array_equal(stored_labels(index, "a"), stripes(0, 1))


def test_black_and_white_masks_need_binary(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "b.jpg"), stripes(0, 255))
    with pytest.raises(UserError, match="--binary"):
        pack(FolderPacker(src), tmp_path / "out", name="own", workers=1)
    pack(FolderPacker(src, binary=True), tmp_path / "out", name="own", workers=1)
    check_usable(tmp_path / "out")


def test_a_folder_for_each_class(tmp_path):
    src = tmp_path / "src"
    pair(src / "dog", ("1.jpg", "2.jpg"), stripes(0, 255))
    pair(src / "black cat", ("1.jpg", "2.jpg"), stripes(0, 3))
    (src / "notes").mkdir()
    index, _ = pack(FolderPacker(src), tmp_path / "out", name="own", workers=1)
    assert index.classes == {1: "black cat", 2: "dog"}
    assert keys(index) == ["black cat/1", "black cat/2", "dog/1", "dog/2"]
    assert np.array_equal(stored_labels(index, "black cat/1"), stripes(0, 1))
    assert np.array_equal(stored_labels(index, "dog/2"), stripes(0, 2))
    check_usable(tmp_path / "out")


def test_what_is_left_out_is_counted(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "b.jpg", "c.jpg"), stripes(0, 1))
    (src / "images/Thumbs.db").touch()
    (src / "masks/x.png").touch()
    (src / "masks/b.png").unlink()
    with pytest.raises(UserError, match=r"a file is missing:\n.*masks/b.png(.|\n)*--skip_unlabelled"):
        FolderPacker(src).survey()
    survey = FolderPacker(src, skip_unlabelled=True).survey()
    assert [item.key for item in survey.items] == ["a", "c"]
    assert +survey.skipped == {
        "files in images that are no pictures": 1,
        "files in masks without a picture": 1,
        "pictures without a mask": 1,
    }


def test_two_pictures_for_one_mask(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "a.png"), stripes(0, 1))
    with pytest.raises(UserError, match=r"a.jpg and a.png have the same name"):
        FolderPacker(src).survey()


def test_folders_that_are_laid_out_otherwise(tmp_path):
    with pytest.raises(UserError, match="typo is no folder"):
        FolderPacker(tmp_path / "typo").survey()
    (tmp_path / "src/images").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"src holds neither images and masks nor folders of them(.|\n)*SRC/CLASS/masks"
    ):
        FolderPacker(tmp_path / "src").survey()
    (tmp_path / "src/masks").mkdir()
    with pytest.raises(UserError, match="nothing to pack"):
        pack(FolderPacker(tmp_path / "src"), tmp_path / "out", name="own", workers=1)


def test_files_that_cannot_be_packed_are_named(tmp_path):
    src = pair(tmp_path / "src", ("a.jpg", "b.png", "c.tif", "d.jpg"), stripes(0, 1))
    (src / "images/b.png").write_bytes((src / "images/b.png").read_bytes()[:200])
    Image.new("CMYK", (SIZE[1], SIZE[0])).save(src / "images/c.tif")
    write_picture(src / "images/d.jpg", (8, 8))
    (src / "masks/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        pack(FolderPacker(src, binary=True), tmp_path / "out", name="own", workers=1)
    message = str(error.value)
    assert "masks/a.png cannot be read as PNG" in message
    assert "images/b.png cannot be read as PNG" in message
    assert "c.tif is a TIFF of CMYK colours" in message
    assert "d.png is 20 x 24 pixels, but its image 8 x 8" in message


def test_the_command(tmp_path, capsys):
    src = pair(tmp_path / "mine", ("a.jpg", "b.jpg"), stripes(0, 255))
    arguments = ["pack", "folder", str(src), "--out", str(tmp_path / "out"), "--binary", "--class_names", "1=cup"]
    assert main([*arguments, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "mine: 2 frames, 1 classes" in printed and "cup" in printed
    with pytest.raises(SystemExit):
        main(["pack", "folder", "--help"])
    assert "SRC/CLASS/masks" in capsys.readouterr().out
