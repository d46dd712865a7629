"""A JPEG that is decoded when its pixels are wanted, and no larger than they are wanted."""

from collections.abc import Callable

import numpy as np
import simplejpeg

from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures
from ldis_lightning.imaging.pictures import MAX_SCANS, frame_of, too_many_scans

DIVISORS = (1, 2, 4, 8)
"""A JPEG can be decoded at 1/d of its size. Libraries can do it at more sizes, of which only these are fast."""

_COLOURS = ("RGB", "YCbCr", "Gray")


class Jpeg:
    """The bytes of a JPEG of grey or RGB colours. What is damaged is an error and never a part of a picture.

    Args:
        data: the bytes. Only their headers are read here.
        size: (height, width) that it must have. Nothing larger is ever unpacked.
        error: makes an error of what is wrong.

    Raises:
        UserError: made by `error`: it is no such JPEG, or of another size.
    """

    def __init__(self, data: bytes, size: tuple[int, int], error: Callable[[str], UserError]) -> None:
        self._data, self._error = data, error
        self.shape = (*size, 3)
        """Of the whole picture: (H, W, 3)."""
        if size[0] * size[1] > pictures.MAX_PIXELS:
            raise error(f"its image has {size[1]} x {size[0]} pixels, more than {pictures.MAX_PIXELS}: scale it down.")
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data or b"\0")  # it does not look at the length
        except (ValueError, KeyError) as reason:
            raise error(f"its image cannot be read as JPEG ({_line(reason)}).") from reason
        if (height, width) != size:
            raise error(f"its image is {width} x {height} pixels, where the index says {size[1]} x {size[0]}.")
        if colours not in _COLOURS:
            raise error(f"its image is a JPEG of {colours} colours: convert it to RGB.")
        if too_many_scans(data, frame_of(data)):
            raise error(f"its image is a JPEG of more than {MAX_SCANS} scans: save it anew.")

    def decode(self, divisor: int = 1) -> np.ndarray:
        """The picture, or a smaller one made from fewer frequencies, which saves time.

        Args:
            divisor: one of `DIVISORS`. Pixel (y, x) covers `divisor` by `divisor` pixels of the whole picture.

        Returns:
            (ceil(H / divisor), ceil(W / divisor), 3) uint8 RGB.

        Raises:
            UserError: made by `error`: it is damaged.
        """
        if divisor > 1 and min(self.shape[:2]) < 16:  # below that, two fractions may give as many pixels
            return self.decode()[::divisor, ::divisor]
        height, width = (-(-length // divisor) for length in self.shape[:2])
        try:
            return simplejpeg.decode_jpeg(self._data, "RGB", min_height=height, min_width=width)
        except ValueError as reason:
            raise self._error(f"its image cannot be read as JPEG ({_line(reason)}).") from reason


def _line(reason: Exception) -> str:
    """What a library said, as part of a line."""
    return " ".join(str(reason).split()) or type(reason).__name__
