"""Pictures and masks of every kind that people have, and those that cannot be used."""

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from small_models import mask, one_step, picture

from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures
from ldis_lightning.imaging.pictures import write_label_map
from ldis_lightning.pipeline import inputs
from ldis_lightning.pipeline.inputs import read_labels, read_mask, read_picture

RGB = picture(12, 9)


def saved(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_the_same_picture_in_every_form(tmp_path: Path) -> None:
    chw = torch.from_numpy(RGB.copy()).permute(2, 0, 1)
    for form in [
        RGB,
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float64) / 255,
        np.dstack([RGB, np.full((12, 9), 7, np.uint8)]),
        Image.fromarray(RGB),
        Image.fromarray(RGB).convert("RGBA"),
        chw,
        chw.float() / 255,
        saved(tmp_path / "a.png", RGB),
        str(saved(tmp_path / "a.bmp", RGB)),
        saved(tmp_path / "a.webp", RGB, lossless=True),
    ]:
        found = read_picture(form)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, RGB)
    jpg = saved(tmp_path / "a.jpg", RGB, quality=95)
    np.testing.assert_array_equal(read_picture(jpg), np.asarray(Image.open(jpg)))
    saved(tmp_path / "odd.png", RGB, format="JPEG")  # what a file is says its content
    assert read_picture(tmp_path / "odd.png").shape == (12, 9, 3)


def test_grey_pictures_have_three_channels(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for form in [
        grey,
        grey[..., None],
        torch.from_numpy(grey.copy())[None],
        Image.fromarray(grey),
        tmp_path / "deep.png",
    ]:
        np.testing.assert_array_equal(read_picture(form), np.dstack([grey] * 3))
    assert read_picture(saved(tmp_path / "grey.jpg", grey)).shape == (12, 9, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[inputs.ORIENTATION] = orientation
    blocks = np.zeros((32, 48, 3), np.uint8)
    blocks[:16, :16], blocks[16:, 32:] = (255, 0, 0), (0, 0, 255)
    path = tmp_path / "turned"
    Image.fromarray(blocks).save(
        path, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {})
    )

    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
        of_image = read_picture(opened)
    found = read_picture(path)
    assert found.shape[:2] == ((48, 32) if orientation >= 5 else (32, 48))
    assert np.abs(found - expected).max() <= 3
    np.testing.assert_array_equal(of_image, expected)


def test_the_same_mask_in_every_form(tmp_path: Path) -> None:
    marked = mask(12, 9) > 0
    white = marked.astype(np.uint8) * 255
    soft = white.copy()
    soft[5, 3], soft[2, 3] = 140, 90
    ignored = marked.astype(np.uint8)
    ignored[-1] = 255
    transparent = np.dstack([np.full((12, 9, 3), 200, np.uint8), white])
    palette = Image.fromarray(marked.astype(np.uint8) * 3)
    palette.putpalette([0] * 768)
    for form in [
        marked,
        white,
        marked.astype(np.uint8),
        marked.astype(np.int64) * 7,
        marked.astype(np.float32),
        ignored,
        torch.from_numpy(marked),
        torch.from_numpy(white)[None],
        Image.fromarray(white),
        Image.fromarray(white).convert("1"),
        palette,
        transparent,
        np.dstack([white, white * 0, white * 0]),  # painted in red
        saved(tmp_path / "rgb.png", np.dstack([white] * 3)),
        saved(tmp_path / "rgba.png", transparent),
    ]:
        found = read_mask(form)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, marked.astype(np.uint8))
    edges = marked.astype(np.uint8)
    edges[5, 3], edges[2, 3] = 1, 0
    np.testing.assert_array_equal(read_mask(soft), edges)


def test_palettes_of_black_and_white(tmp_path: Path) -> None:
    marked = (mask(12, 9) > 0).astype(np.uint8)
    inverted = Image.fromarray(1 - marked)
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(tmp_path / "inverted.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "inverted.png"), marked)
    np.testing.assert_array_equal(read_labels(tmp_path / "inverted.png"), 1 - marked)


def test_pictures_of_floating_point_by_pillow() -> None:
    marked = (mask(12, 9) > 0).astype(np.float32)
    grey = np.dstack([(marked * 255).astype(np.uint8)] * 3)
    np.testing.assert_array_equal(read_picture(Image.fromarray(marked)), grey)
    np.testing.assert_array_equal(read_mask(Image.fromarray(marked)), marked.astype(np.uint8))
    for read in (read_picture, read_mask):
        with pytest.raises(UserError, match=r"from 0 to 255: floating point must be in \[0, 1\]"):
            read(Image.fromarray(marked * 255))


def test_a_picture_is_not_shared_with_its_source() -> None:
    source = RGB.copy()
    found = read_picture(source)
    source[:] = 0
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpegs_of_many_scans(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    Image.fromarray(RGB).convert(mode).save(path, progressive=True)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\xff\xda\0\x02" * 101 + data[-2:])
    for read in (read_picture, read_mask):
        with pytest.raises(UserError, match=r"scans\.jpg is a JPEG of more than 100 scans: save it anew"):
            read(path)


def test_label_maps(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(read_labels(saved(tmp_path / "l.png", labels)), labels)
    with pytest.raises(UserError, match=r"holds the values 1, 2, 3, 4, \.\.\.: the mask of one concept has one"):
        read_mask(labels)
    voc = np.zeros((20, 20), np.uint8)
    voc[2:9, 2:9], voc[10:18, 3:12], voc[9] = 5, 15, 255
    with pytest.raises(UserError, match="holds the values 5, 15, 255"):  # not grey with soft edges
        read_mask(voc)
    four_bits = bytearray(write_label_map(np.full((4, 2), 0x11, np.uint8)))  # two labels a byte
    four_bits[19], four_bits[24] = 4, 4  # width and bits
    four_bits[29:33] = zlib.crc32(four_bits[12:29]).to_bytes(4, "big")
    (tmp_path / "four.png").write_bytes(four_bits)
    with pytest.raises(UserError, match=r"four\.png is a 4-bit grey PNG"):
        read_labels(tmp_path / "four.png")
    with pytest.raises(UserError, match="float32 values: a label map holds whole numbers"):
        read_labels(labels.astype(np.float32) / 12)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "is a int: give a path, a PIL image"),
        (np.zeros((4, 4, 2), np.uint8), r"has the shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"has the shape \(0, 4, 3\)"),
        (torch.zeros(6, 5, 3), r"has the shape \(6, 5, 3\): \(H, W\) or \(3, H, W\)"),
        (np.full((4, 4, 3), np.nan, np.float32), "holds NaN"),
        (torch.full((3, 4, 4), -1.0), r"from -1 to -1: floating point must be in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int32), "holds int32 values"),
        (np.array([["a"]]), "holds <U1 values"),
        ("missing.png", r"^missing\.png does not exist"),
        ("a\0b.png", "cannot be read"),
    ],
)
def test_what_is_no_picture(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_picture(source)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture at all")
    with pytest.raises(UserError, match=r"text\.png is no picture: JPEG, PNG, WebP and BMP can be read"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(UserError, match="is a folder: name a picture in it"):
        read_picture(tmp_path)
    for kind in ("PNG", "JPEG", "WEBP"):
        data = BytesIO()
        Image.fromarray(picture(64, 64)).save(data, kind)
        (tmp_path / "cut").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
        with pytest.raises(UserError, match="cut"):
            read_picture(tmp_path / "cut")
    with pytest.raises(UserError, match=r"cut is damaged|cut cannot be read"):
        read_mask(tmp_path / "cut")


def test_pictures_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "large.png", RGB)
    jpg = saved(tmp_path / "large.jpg", RGB)
    for module in (pictures, inputs):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    for source in (path, jpg, RGB, Image.fromarray(RGB), torch.zeros(3, 12, 9)):
        with pytest.raises(UserError, match="9 x 12 pixels, more than 100"):
            read_picture(source)
    monkeypatch.setattr(inputs, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="has more than 0 MB"):
        read_picture(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RGB, np.zeros((12, 9), np.uint8)), "mask 1 has no foreground"),
        ((RGB, mask(12, 10)), "mask 1 is 10 x 12 pixels, but its image 9 x 12"),
        (([RGB, RGB], [mask(12, 9)]), "2 references and 1 masks"),
        (([], []), "0 references and 0 masks"),
        ((RGB,), "`masks` are missing"),
        ((7, mask(12, 9)), "a picture or a list of them is needed, got a int"),
        (({"cat": RGB},), r"concept `cat` needs \(references, masks\)"),
        (({3: (RGB, mask(12, 9))},), "a concept is named by a text, not by 3"),
        (({},), "1 to 254 concepts can be told apart, got 0"),
        (({"cat": (RGB, np.zeros((12, 9)))},), "mask 1 of cat has no foreground"),
        (({"cat": (RGB, mask(12, 9))}, mask(12, 9)), "a dict of concepts holds their masks"),
    ],
)
def test_references_that_cannot_be_used(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        one_step().encode(*arguments)


def test_labels_that_no_map_shows() -> None:
    with pytest.raises(UserError, match=r"no label map shows the label 9 \(dog\)"):
        one_step().encode(RGB, mask(12, 9) // 255, names={1: "cat", 9: "dog"})
