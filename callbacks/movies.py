"""Movies that are written as their frames arrive, so that a long clip needs no more memory than a short one."""

import contextlib
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from PIL import Image
from PIL.GifImagePlugin import getdata

from ldis_lightning.callbacks.overlay import COLORS
from ldis_lightning.callbacks.pixels import Pixels
from ldis_lightning.errors import UserError

BITS_PER_PIXEL = 0.4
"""Of encoders that take a bit rate. Labelled frames often lie far apart in time, so they share little."""


class Movie:
    """A movie file in the making. It appears under its name once it is whole, never before.

    Subclasses implement `add`, `_close` (write what is still due to `self.temporary`) and `_abandon` (let go of what is
    open), and set `ending`, `least` and `most`.

    Args:
        path: of the finished file. Its folder is made.
        shape: (H, W) of the frames, both even.
        fps: frames a second, above 0.

    Attributes:
        ending: of the file, with its dot.
        least, most: long sides, in pixels, between which pictures are shown in this format (see `Overlay`).
    """

    ending: str
    least: int
    most: int

    def __init__(self, path: Path, shape: tuple[int, int], fps: float) -> None:
        self.path = path
        self.shape = shape
        self.fps = fps
        self.temporary = path.with_name(f".{os.getpid()}-{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, frame: Pixels) -> None:
        """Append a frame (H, W, 3)."""
        raise NotImplementedError(f"{type(self).__name__} must implement add(frame)")

    def finish(self) -> None:
        """Complete the file and give it its name."""
        try:
            self._close()
            os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            self._abandon()
        finally:
            self.temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must implement _close()")

    def _abandon(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must implement _abandon()")


class Mp4(Movie):
    """H.264, or MPEG-4 part 2 where PyAV was built without H.264. Long sides of 384 to 1280 pixels.

    Raises:
        UserError: PyAV cannot be imported, or none of its encoders works.
    """

    ending, least, most = ".mp4", 384, 1280

    ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")

    def __init__(self, path: Path, shape: tuple[int, int], fps: float) -> None:
        super().__init__(path, shape, fps)
        self._av = _pyav()
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container, self._stream = self._open()
        self._frames = 0

    def add(self, frame: Pixels) -> None:
        """See `Movie`."""
        picture = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")  # as the stream is tagged
        picture.pts, picture.time_base = self._frames, 1 / self._rate
        self._frames += 1
        self._container.mux(self._stream.encode(picture))

    def _close(self) -> None:
        self._container.mux(self._stream.encode())  # frames that the encoder still holds
        self._container.close()

    def _abandon(self) -> None:
        with contextlib.suppress(self._av.FFmpegError, OSError):
            self._container.close()

    def _open(self) -> tuple[Any, Any]:
        """The container and the stream of the first encoder that works; a build may list some that do not."""
        for name in self.ENCODERS:
            container = self._av.open(str(self.temporary), "w", format="mp4", options={"movflags": "+faststart"})
            try:
                return container, self._add_stream(container, name)
            except (ValueError, self._av.FFmpegError):
                container.close()
                self.temporary.unlink(missing_ok=True)
        raise UserError(
            f"PyAV has no encoder for an mp4 here ({', '.join(self.ENCODERS)} were tried): set `movie: gif` or "
            "`movie: none` of PredictedMasks."
        )

    def _add_stream(self, container: Any, encoder: str) -> Any:
        options = {"crf": "20", "preset": "fast"} if encoder == "libx264" else {}
        stream = container.add_stream(encoder, rate=self._rate, options=options)
        stream.height, stream.width = self.shape
        stream.pix_fmt = "yuv420p"  # what every player shows
        stream.bit_rate = round(self.shape[0] * self.shape[1] * self.fps * BITS_PER_PIXEL)
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1  # BT.709, 16 .. 235
        context.open()
        return stream


class Gif(Movie):
    """A GIF by Pillow: long sides of 320 to 480 pixels, at most 300 frames.

    Of a longer clip every second frame is kept, or every fourth, and so on, each shown for longer. Every frame is
    compressed with colours of its own into an unnamed file, from which the kept ones are copied at the end.
    """

    ending, least, most = ".gif", 320, 480

    MOST_FRAMES = 300

    def __init__(self, path: Path, shape: tuple[int, int], fps: float) -> None:
        super().__init__(path, shape, fps)
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed by finish or discard)
        self._kept: list[tuple[int, int]] = []  # where each frame lies in the spool: its beginning and length
        self._stride = 1
        self._seen = 0

    def add(self, frame: Pixels) -> None:
        """See `Movie`."""
        if self._seen % self._stride == 0:
            if len(self._kept) == self.MOST_FRAMES:
                self._kept = self._kept[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._keep(frame)
        self._seen += 1

    def _keep(self, frame: Pixels) -> None:
        data = b"".join(getdata(_reduced(Image.fromarray(frame)), include_color_table=True))
        self._kept.append((self._spool.tell(), len(data)))
        self._spool.write(data)

    def _close(self) -> None:
        # An extension of 4 bytes before each frame: no flags, its duration in 1/100 s, no transparent colour.
        duration = max(round(100 * self._stride / self.fps), 2)  # viewers slow anything shorter down to 0.1 s
        control = b"!\xf9\x04\x00" + duration.to_bytes(2, "little") + b"\x00\x00"
        height, width = self.shape
        with self._spool, self.temporary.open("wb") as file:
            file.write(b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\x70\x00\x00")
            file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # repeat for ever
            for beginning, length in self._kept:
                self._spool.seek(beginning)
                file.write(control + self._spool.read(length))
            file.write(b";")

    def _abandon(self) -> None:
        self._spool.close()


def _reduced(picture: Image.Image) -> Image.Image:
    """RGB -> 256 colours, the concepts' own among them: a mask looks the same in every frame and in the legend."""
    exact = [value for color in COLORS for value in color]
    chosen = picture.quantize(256 - len(COLORS), Image.Quantize.FASTOCTREE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(chosen[: 3 * (256 - len(COLORS))] + exact)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"an mp4 needs PyAV, which cannot be imported ({error}): run `pip install av`, or set `movie: gif` or "
            "`movie: none` of PredictedMasks."
        ) from error
    return av
