"""The files that `ldis segment` writes: each whole or not there, under names of their own."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldis_lightning.callbacks.clips import label_image, named_apart, safe_name
from ldis_lightning.callbacks.movies import Mp4
from ldis_lightning.callbacks.overlay import Overlay, tinted
from ldis_lightning.checkpoint_files import FULL
from ldis_lightning.errors import UserError, printable
from ldis_lightning.files import write_atomically
from ldis_lightning.pipeline.results import Segmentation
from ldis_lightning.pipeline.video import VIDEO_SUFFIXES, VideoFile
from ldis_lightning.suggestions import some

RLE = "masks.json"
"""In the format of COCO's annotation files, which `pycocotools.coco.COCO` opens."""
FRAME = re.compile(r"\d{5,}(\..+)?\.png")
"""Names of a video's masks."""


class CannotWrite(UserError):
    """Nothing can be written, of this query or of any other."""


class OutFiles:
    """Writes the results of queries below a folder.

    Args:
        folder: made where it is missing.
        queries: all that will be written, pictures and videos.
        names: of the concepts; one empty name where there is one without.
        style: `binary`, `indexed` or `rle`.
        overlay: also write `<query>.overlay.jpg` and `<video>.overlay.mp4`.
    """

    def __init__(self, folder: Path, queries: Sequence[Path], names: Sequence[str], style: str, overlay: bool) -> None:
        self.folder, self.style, self.overlay = folder, style, overlay
        self.concepts = [name or "concept" for name in names]
        self.named = list(names) != [""]
        self._names = _file_names(queries)
        self._suffixes = _concept_suffixes(self.concepts) if style == "binary" and self.named else [""]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._counts = {"pictures": 0, "frames": 0, "videos": 0, "files": 0}

    def check(self, overwrite: bool, references: Sequence[Path] = ()) -> None:
        """Check that files can be written, and that nothing would be replaced, unless that is wanted.

        Args:
            overwrite: replace what is there.
            references: files beside the queries that are read: none of them is ever replaced.

        Raises:
            UserError: the folder is a file or cannot be written, or something is there.
        """
        with self._writing(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"--out {self.folder} is a file: name a folder.")
            there = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
            with tempfile.TemporaryFile(dir=there):
                pass
        planned = [path for query in self._names for path in self._planned(query)]
        planned += [self.folder / RLE] if self.style == "rle" else []
        taken = [path for path in planned if path.exists()]
        _check_spared([*self._names, *references], taken)
        if taken and not overwrite:
            shown = some(map(str, taken))
            raise UserError(f"{shown} would be replaced: add --overwrite, or choose another --out.")

    def _planned(self, query: Path) -> list[Path]:
        name, is_video = self._names[query], query.suffix.lower() in VIDEO_SUFFIXES
        overlay = self.folder / f"{name}.overlay.{'mp4' if is_video else 'jpg'}"
        masks = [self.folder / name] if is_video else [self.folder / f"{name}{s}.png" for s in self._suffixes]
        return [*(masks if self.style != "rle" else []), *([overlay] if self.overlay else [])]

    def write_picture(self, query: Path, result: Segmentation) -> None:
        """Write a picture's result.

        Raises:
            CannotWrite: the folder cannot be written.
        """
        name = self._names[query]
        self._write_masks(name, result, {"file_name": str(query)})
        if self.overlay:
            edge = max(round(min(result.labels.shape) / 200), 1)
            drawn = Image.fromarray(tinted(result.picture, result.labels, outline=edge))
            self._write(self.folder / f"{name}.overlay.jpg", partial(drawn.save, quality=90))
        self._counts["pictures"] += 1

    def write_video(self, query: Path, results: Iterable[Segmentation]) -> None:
        """Write a video's results as they come: a folder of masks, and a movie that appears when it is whole.

        Raises:
            CannotWrite: the folder cannot be written.
            UserError: the video does not decode to its end: the masks up to there stay.
        """
        name, movie, overlay = self._names[query], None, None
        fps = VideoFile(query).fps
        self._remove_frames(self.folder / name)
        try:
            for number, result in enumerate(results):
                image = {"file_name": str(query), "frame": number}
                self._write_masks(f"{name}/{number:05d}", result, image)
                if self.overlay:
                    if overlay is None or movie is None:
                        size = (result.picture.shape[0], result.picture.shape[1])
                        concepts = self.concepts if self.named else []
                        overlay = Overlay(printable(query.stem), concepts, size, Mp4.least, Mp4.most)
                        movie = self._movie(name, overlay.shape, fps)
                    with self._writing(movie.path):
                        movie.add(overlay.draw(result.picture, result.labels, number))
                self._counts["frames"] += 1
            if movie is not None:
                with self._writing(movie.path):
                    movie.finish()
                self._counts["files"] += 1
        except BaseException:
            if movie is not None:
                movie.discard()
            raise
        self._counts["videos"] += 1

    def finish(self) -> None:
        """Write what all queries share.

        Raises:
            CannotWrite: the folder cannot be written.
        """
        if self.style == "rle":
            categories = [{"id": number, "name": name} for number, name in enumerate(self.concepts, start=1)]
            content = {"images": self._images, "annotations": self._annotations, "categories": categories}
            text = printable(json.dumps(content, ensure_ascii=False))  # JSON has the same escapes
            self._write(self.folder / RLE, lambda path: path.write_text(text, encoding="utf-8"))

    def summary(self) -> str:
        """What was written, in a line."""
        counts = self._counts
        pictures = _counted(counts["pictures"], "picture") if counts["pictures"] else ""
        videos = f"{_counted(counts['videos'], 'whole video')} ({_counted(counts['frames'], 'frame')})"
        done = " and ".join(filter(None, [pictures, videos if counts["frames"] else ""]))
        found = f", concepts: {', '.join(self.concepts)}" if self.named else ""
        return f"{self.folder}: {_counted(counts['files'], 'file')} ({self.style}) of {done or 'nothing'}{found}"

    def _write_masks(self, name: str, result: Segmentation, image: dict[str, Any]) -> None:
        if self.style == "rle":
            self._keep_rle(result, image)
        elif self.style == "indexed":
            picture = label_image(result.labels, range(1, len(self.concepts) + 1))
            self._write(self.folder / f"{name}.png", picture.save)
        else:
            for number, suffix in enumerate(self._suffixes, start=1):
                mask = Image.fromarray((result.labels == number).astype(np.uint8) * 255)
                self._write(self.folder / f"{name}{suffix}.png", mask.save)

    def _keep_rle(self, result: Segmentation, image: dict[str, Any]) -> None:
        from pycocotools import mask as coco

        height, width = result.labels.shape
        self._images.append({"id": len(self._images) + 1, **image, "height": height, "width": width})
        for number in range(1, len(self.concepts) + 1):
            code: Any = coco.encode(np.asfortranarray(result.labels == number, np.uint8))
            area = int(coco.area(code))
            if area:
                self._annotations.append(
                    {
                        "id": len(self._annotations) + 1,
                        "image_id": len(self._images),
                        "category_id": number,
                        "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                        "area": area,
                        "bbox": coco.toBbox(code).tolist(),
                        "iscrowd": 0,
                    }
                )

    def _remove_frames(self, folder: Path) -> None:
        """Those of an earlier run: it may have been of a longer video."""
        with self._writing(folder):
            for path in folder.glob("*.png"):
                if FRAME.fullmatch(path.name):
                    path.unlink()

    def _movie(self, name: str, shape: tuple[int, int], fps: float) -> Mp4:
        path = self.folder / f"{name}.overlay.mp4"
        try:
            with self._writing(path):
                return Mp4(path, shape, min(max(fps, 0.1), 240))
        except CannotWrite:
            raise
        except UserError as error:  # it names an option that this command does not have
            raise CannotWrite("--overlay: PyAV has no encoder for an mp4 here: leave --overlay out.") from error

    def _write(self, path: Path, write: Any) -> None:
        with self._writing(path):
            write_atomically(path, write)
        self._counts["files"] += 1

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Inside, what keeps a file from being written is a `CannotWrite`, but for a full disk."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            raise CannotWrite(f"{path} cannot be written ({error.strerror or error}): choose another --out.") from error


def _check_spared(read: Sequence[Path], taken: Sequence[Path]) -> None:
    """Check that no file that is read would be replaced: a planned file may be one, a planned folder may hold one."""
    there = [path for path in read if path.exists()]
    files = {_identity(path): path for path in there}
    files |= {_identity(path.parent): path for path in there if FRAME.fullmatch(path.name)}
    for path in taken:
        if (spared := files.get(_identity(path))) is not None:
            raise UserError(f"{spared} is read and would be replaced: choose another --out.")


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _file_names(queries: Sequence[Path]) -> dict[Path, str]:
    """A name for each query's files: that of its file where no other has it, whatever the case, else with a hash."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for query in queries:
        name = safe_name(query.stem)
        if name.casefold() in taken:
            name = named_apart(name, str(query))
        taken.add(name.casefold())
        names[query] = name
    return names


def _concept_suffixes(names: Sequence[str]) -> list[str]:
    """`.cat` for each concept, no two alike."""
    suffixes: list[str] = []
    for name in names:
        safe = safe_name(name)
        taken = {suffix.casefold() for suffix in suffixes}
        suffixes.append(f".{named_apart(safe, name) if f'.{safe}'.casefold() in taken else safe}")
    return suffixes


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
