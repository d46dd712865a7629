"""Pictures, masks and label maps as people have them: paths, PIL, numpy or torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.jpeg import Jpeg
from ldis_lightning.imaging.pictures import (
    MAX_PIXELS,
    MAX_SCANS,
    UNREADABLE,
    frame_of,
    open_picture,
    too_many_scans,
)

PictureLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor"
Pixels: TypeAlias = "NDArray[np.uint8]"

MOST_BYTES = 2**28
"""Of a picture's file."""
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"BM": "BMP"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Of the picture files that are looked for in folders. What a file is says its content."""
ORIENTATION = 0x0112  # of EXIF
BIT_DEPTH = 24  # where it is in a PNG
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SOFT = 128
"""Grey from which a pixel of a mask with soft edges is foreground."""


def name_of(source: object, otherwise: str) -> str:
    """What a message calls a picture: its path, or `otherwise`."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else otherwise


def read_picture(source: PictureLike, name: str = "the picture") -> Pixels:
    """Any picture as RGB.

    A camera's orientation (EXIF) is applied, as viewers do: the pixels stand upright, and masks fit what is seen.

    Args:
        source: path of a JPEG, PNG, WebP or BMP; a PIL image; numpy (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); torch
            (H, W), (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors are uint8, or floating point in [0, 1]. The
            fourth channel is opacity, and ignored.
        name: what to call it in messages.

    Returns:
        (H, W, 3) uint8, not shared with the source.

    Raises:
        UserError: it is no such picture, damaged, or has more than 2**26 pixels.
    """
    name = name_of(source, name)
    if isinstance(source, str | os.PathLike):
        return _rgb_of_file(_read_file(source, name), name)
    if isinstance(source, Image.Image):
        return _guarded(lambda: _rgb(ImageOps.exif_transpose(_bounded(source, name)), name), name)
    return _rgb_of_array(_array(source, name), name)


def read_mask(source: PictureLike, name: str = "the mask") -> Pixels:
    """The mask of one concept.

    Foreground is: in bool, True; in floating point, 0.5 and more; in whole numbers, the one value that there is beside
    0, or 1 where the only other one is 255 (ignored, and so background). Greys with soft edges up to 255 count from 128
    on. Of a picture with a palette the indices count, but where their colours are black and white alone, it is those.
    Of a picture with transparency, the opacity is the mask; of several channels, the brightest.

    Args:
        source: as in `read_picture`.
        name: what to call it in messages.

    Returns:
        (H, W) uint8 in {0, 1}, with a 1 somewhere.

    Raises:
        UserError: it is no mask, has several values (a label map), or no foreground.
    """
    name = name_of(source, name)
    values, palette = _values(source, name)
    foreground = _foreground(values, palette, name)
    if not foreground.any():
        raise UserError(f"{name} has no foreground: paint the concept in it (white, or 1) and leave the rest black.")
    return foreground.astype(np.uint8)


def read_labels(source: PictureLike, name: str = "the label map") -> NDArray[np.integer]:
    """A label map: (H, W) whole numbers, 0 none, 255 ignore. Arguments and errors as in `read_mask`."""
    name = name_of(source, name)
    values, _ = _values(source, name, labels=True)
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{name} holds {values.dtype} values: a label map holds whole numbers.")
    return values


def _foreground(values: NDArray[Any], palette: bool, name: str) -> NDArray[np.bool_]:
    if values.dtype == bool:
        return values
    if np.issubdtype(values.dtype, np.floating):
        return values >= 0.5
    present = [int(value) for value in np.unique(values) if value != 0]
    if len(present) <= 1:
        return values != 0
    if present == [1, IGNORE_INDEX]:
        return values == 1
    inside = int((values == IGNORE_INDEX).sum())
    if not palette and present[-1] == IGNORE_INDEX and 2 * inside > int((values != 0).sum()):  # edges are thin
        return values >= SOFT
    shown = ", ".join(map(str, present[:4])) + (", ..." if len(present) > 4 else "")
    raise UserError(
        f"{name} holds the values {shown}: the mask of one concept has one beside 0. Is it a label map of several "
        "concepts? Then name them (`names=` in Python, `--labels` of `ldis segment`)."
    )


# ---- Files


def _read_file(source: str | os.PathLike[str], name: str) -> bytes:
    path = Path(source).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except IsADirectoryError as error:
        raise UserError(f"{name} is a folder: name a picture in it.") from error
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist.") from error
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{name} has more than {MOST_BYTES // 2**20} MB: no picture that can be taken has as many.")
    return data


def _open(data: bytes, name: str) -> Image.Image:
    """Only its headers are read."""
    kind = next((kind for start, kind in STARTS.items() if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None:
        raise UserError(f"{name} is no picture: JPEG, PNG, WebP and BMP can be read, whatever the name ends in.")
    if kind == "JPEG" and too_many_scans(data, frame_of(data)):
        raise UserError(f"{name} is a JPEG of more than {MAX_SCANS} scans: save it anew.")
    return open_picture(data, kind, name)


def _rgb_of_file(data: bytes, name: str) -> Pixels:
    image = _open(data, name)
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return _guarded(lambda: _rgb(ImageOps.exif_transpose(image), name), name)

    def error(reason: str) -> UserError:
        return UserError(f"{name}: {reason}")

    # With the decoder of the data side: the same pixels, and what is cut short is an error and not grey.
    pixels = Jpeg(data, (image.height, image.width), error).decode()
    turn = UPRIGHT.get(_guarded(lambda: image.getexif().get(ORIENTATION, 1), name))
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _guarded(read: Callable[[], Any], name: str) -> Any:
    try:
        return read()
    except UNREADABLE as error:
        raise UserError(f"{name} is damaged ({' '.join(str(error).split()) or type(error).__name__}).") from error


def _bounded(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}: scale it down.")
    if image.width * image.height == 0:
        raise UserError(f"{name} is {image.width} x {image.height} pixels: it is empty.")
    return image


def _rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode == "F":  # Pillow would take [0, 1] for 0 .. 255
        return _rgb_of_array(_array(np.asarray(image), name), name)
    if image.mode.startswith("I"):  # 16 bits: Pillow would cut them off at 255
        grey = np.asarray(image)
        return np.repeat((grey.clip(0, 65535) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


# ---- Arrays


def _array(source: object, name: str) -> NDArray[Any]:
    """numpy, channels last; checked for its kind and range, not for its number of channels."""
    if isinstance(source, Tensor):
        array: Any = source.detach().to("cpu", torch.float32 if source.is_floating_point() else source.dtype).numpy()
        if array.ndim == 3:
            array = array.transpose(1, 2, 0)
    elif isinstance(source, np.ndarray):
        array = source
    else:
        raise UserError(
            f"{name} is a {type(source).__name__}: give a path, a PIL image, a numpy array (H, W, 3) or a torch tensor "
            "(3, H, W)."
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        layout = "(H, W) or (3, H, W)" if isinstance(source, Tensor) else "(H, W) or (H, W, 3)"
        raise UserError(f"{name} has the shape {tuple(source.shape)}: {layout} is needed.")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise UserError(f"{name} has {array.shape[1]} x {array.shape[0]} pixels, more than {MAX_PIXELS}.")
    if np.issubdtype(array.dtype, np.floating):
        _check_range(array, name)
    elif array.dtype != bool and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name} holds {array.dtype} values: uint8, or floating point in [0, 1], is needed.")
    return array


def _check_range(array: NDArray[Any], name: str) -> None:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UserError(f"{name} holds NaN or infinite values.")
    if low < 0 or high > 1:
        raise UserError(f"{name} has values from {low:.3g} to {high:.3g}: floating point must be in [0, 1].")


def _rgb_of_array(array: NDArray[Any], name: str) -> Pixels:
    if np.issubdtype(array.dtype, np.floating):
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name} holds {array.dtype} values: uint8, or floating point in [0, 1], is needed.")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return np.array(array[..., :3], order="C")  # a copy: readers of videos may fill one buffer again and again


def _values(source: PictureLike, name: str, labels: bool = False) -> tuple[NDArray[Any], bool]:
    """What a mask or a label map holds, (H, W), and whether the values are indices of a palette."""
    if isinstance(source, str | os.PathLike):
        data = _read_file(source, name)
        source = _open(data, name)
        if labels and source.format == "PNG" and source.mode == "L" and data[BIT_DEPTH] != 8:
            # Pillow stretches greys to 0 .. 255, so that label 1 would become 85 or 17.
            raise UserError(f"{name} is a {data[BIT_DEPTH]}-bit grey PNG: save it with 8 bits.")
    if isinstance(source, Image.Image):
        image = _guarded(lambda: ImageOps.exif_transpose(_bounded(source, name)), name)
        if not labels and image.mode == "P" and _guarded(lambda: _is_black_and_white(image), name):
            image = image.convert("L")
        return _guarded(lambda: _one_channel(_pixels_of_mask(image, name)), name), image.mode == "P"
    return _one_channel(_array(source, name)), False


def _is_black_and_white(image: Image.Image) -> bool:
    """Whether the colours that are used of a palette are black and white, in any order. All black is no such: then
    the palette says nothing, as where a writer left it empty."""
    colours, used = np.reshape(image.getpalette() or [], (-1, 3)), np.unique(np.asarray(image))
    return used[-1] < len(colours) and set(map(tuple, colours[used].tolist())) == {(0, 0, 0), (255, 255, 255)}


def _pixels_of_mask(image: Image.Image, name: str) -> NDArray[Any]:
    if image.mode == "F":
        return _array(np.asarray(image), name)
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if "A" in image.mode or "a" in image.mode else "RGB"))


def _one_channel(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W): the opacity where there is any transparency, else the greatest of the channels."""
    if array.ndim == 2:
        return array
    if array.shape[2] == 4 and (array[..., 3] != array[0, 0, 3]).any():
        return array[..., 3]
    return array[..., :3].max(axis=2)
