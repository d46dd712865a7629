"""Pictures and masks in other forms than ours: what people's own data and FSS-1000 come in, and how they are turned."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import UNREADABLE, open_picture, write_label_map

JPEG = (".jpg", ".jpeg")
"""Endings of pictures that are stored byte for byte."""

FORMATS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".ppm": "PPM"}
"""Ending of other pictures -> the one format that such a file may have."""

QUALITY = 95  # of the JPEGs that are made
CONVERTED = f"originals that are no JPEG, packed as JPEG of quality {QUALITY}"

_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # in other modes PIL cuts values off at 255


def read_jpeg(path: Path) -> bytes:
    """The bytes of a JPEG as they are, or of another picture's conversion.

    Transparency is dropped, and of several pictures in a file the first is taken.

    Args:
        path: its ending is one of `JPEG` or `FORMATS`.

    Raises:
        UserError: it is damaged, of another format than its ending says, or has more than 8 bits a colour.
        OSError: it cannot be opened.
    """
    if path.suffix.lower() in JPEG:
        return path.read_bytes()
    kind = FORMATS[path.suffix.lower()]
    image = decode(path.read_bytes(), kind, str(path))
    if image.mode not in _EIGHT_BITS:
        raise UserError(f"{path} is a {kind} of {image.mode} colours: save it as RGB with 8 bits a colour.")
    stream = BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def read_marked(png: bytes, name: str) -> np.ndarray:
    """Where a mask is not black: a PNG of any colours and depth. Transparency does not count, and of a palette the
    index does.

    Returns:
        (H, W) bool.

    Raises:
        UserError: it is no PNG, damaged or too large.
    """
    image = decode(png, "PNG", name)
    values = np.asarray(image)  # (H, W) or (H, W, bands)
    bands = len(image.getbands()) - (image.mode in ("LA", "PA", "RGBA"))
    return np.not_equal(values, 0) if values.ndim == 2 else np.any(values[..., :bands], axis=-1)


def one_class(marked: np.ndarray, class_id: int) -> bytes:
    """A label map that shows one class, as PNG.

    Args:
        marked: (H, W) bool, where the class is.
        class_id: the class; the label map has 16 bits where it exceeds 255.
    """
    return write_label_map(marked * np.array(class_id, np.uint16 if class_id > IGNORE_INDEX else np.uint8))


def decode(data: bytes, kind: str, name: str) -> Image.Image:
    """Decode a picture of exactly one format, see `open_picture`.

    Args:
        data: the file.
        kind: name of the format, as PIL has it.
        name: what to call it in messages.

    Raises:
        UserError: it is damaged, of another format or too large.
    """
    image = open_picture(data, kind, name)
    try:
        image.load()
    except UNREADABLE as error:
        raise UserError(f"{name} cannot be read as {kind}: the file is damaged or of another kind.") from error
    return image
