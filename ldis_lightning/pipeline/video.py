"""Frames of a video, one at a time: from a file, a folder of pictures, or anything that can be iterated over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldis_lightning.errors import UserError, first_line
from ldis_lightning.imaging.pictures import MAX_PIXELS
from ldis_lightning.pipeline.inputs import SUFFIXES, PictureLike, Pixels

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".gif")
FORMATS = "mov,matroska,avi,mpeg,mpegts,ogg,gif"
"""FFmpeg's names of the formats that are opened: none of those, like playlists, that make it open other files."""
USUAL_FPS = 25.0


class VideoFile:
    """The frames of a video file, decoded as they are asked for. It can be iterated over again.

    Args:
        path: of the file.

    Attributes:
        fps: frames a second, 25 where the file does not say.

    Raises:
        UserError: the file is missing or is no video; while iterating: it is damaged, or a frame has more than 2**26
            pixels.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"{path} does not exist." if not self.path.exists() else f"{path} is no file.")
        with self._open() as container:
            self.fps = float(self._stream(container).average_rate or USUAL_FPS)

    def __iter__(self) -> Iterator[Pixels]:
        """Frames (H, W, 3) uint8, upright."""
        import av

        decoded = 0
        try:
            with self._open() as container:
                for frame in container.decode(self._stream(container)):
                    yield self._pixels(frame)
                    decoded += 1
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"{self.path} does not decode after frame {decoded} ({first_line(error)}).") from error
        if not decoded:
            raise UserError(f"{self.path} holds no frame that decodes.")

    def _open(self) -> Any:
        import av

        try:
            return av.open(str(self.path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
        except (av.FFmpegError, ValueError, OSError) as error:
            raise UserError(f"{self.path} is no video that can be read ({first_line(error)}).") from error

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            raise UserError(f"{self.path} has no pictures, only sound.")
        stream = container.streams.video[0]
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "AUTO"
        return stream

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise UserError(f"{self.path} has frames of {width} x {height} pixels, more than {MAX_PIXELS}.")

    def _pixels(self, frame: Any) -> Pixels:
        self._check_size(frame.width, frame.height)  # it may differ from the header's
        turns = round(getattr(frame, "rotation", 0) / 90) % 4  # of a telephone that was held upright
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def frames_of(source: str | os.PathLike[str] | Iterable[PictureLike]) -> Iterable[PictureLike]:
    """The frames of a video.

    Args:
        source: a video file, a folder of pictures (in the order of their names, 2 before 10), or pictures.

    Raises:
        UserError: there is no such file, or no picture in the folder.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    path = Path(source).expanduser()
    return pictures_in(path) if path.is_dir() else VideoFile(source)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their names, numbers in them by value.

    Raises:
        UserError: there are none.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    return sorted(found, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `2` before `10`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts] + [(0, name)]
