"""Packs DAVIS 2016 and DAVIS 2017 as their owners distribute them, as clips.

DAVIS 2016 has one object a sequence, which becomes class 1; DAVIS 2017 has several, whose numbers are kept. Numbers of
frames and sequences are those of the owners' lists and papers (arXiv 1704.00675 for 2017).
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldis_lightning.datamodules.packing.datasets.clips import binary_map, natural
from ldis_lightning.datamodules.packing.engine import Item, Packer, Survey
from ldis_lightning.datamodules.packing.trees import check_present, find_root, read_lines, read_list
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import jpeg_size, read_label_map, write_label_map

SUMMARY = "DAVIS 2016 or 2017, sequences as clips"
TREES = {
    2016: """\
  SRC: DAVIS/{{JPEGImages/{0}/<sequence>/*.jpg, Annotations/{0}/<sequence>/*.png, ImageSets/{0}/{{train,val}}.txt}},
       from https://davischallenge.org/davis2016/code.html""",
    2017: """\
  SRC: DAVIS/{{JPEGImages/{0}/<sequence>/*.jpg, Annotations/{0}/<sequence>/*.png, ImageSets/2017/<split>.txt}},
       from https://davischallenge.org/davis2017/code.html""",
}
TOTALS = {  # (year, split) -> sequences, frames
    (2016, "train"): (30, 2079),
    (2016, "val"): (20, 1376),
    (2017, "train"): (60, 4209),
    (2017, "val"): (30, 1999),
    (2017, "test-dev"): (30, 2086),
    (2017, "test-challenge"): (30, 2180),
}
HIDDEN = ("test-dev", "test-challenge")  # the owners keep all annotations but those of the first frames


class Frame(NamedTuple):
    """A picture and its annotation, or None where the owners keep it."""

    image: Path
    mask: Path | None


class Davis(Packer):
    """DAVIS 2016 or 2017. JPEG bytes are copied as they are, and so are the annotations of 2017.

    Args:
        src: the folder `DAVIS`, or the one that holds it.
        year: 2016 or 2017.
        split: train or val; of 2017 also test-dev and test-challenge.
        resolution: name of the folder of pictures, such as 480p or Full-Resolution.
    """

    def __init__(self, src: str | Path, year: int, split: str, resolution: str = "480p") -> None:
        if (year, split) not in TOTALS:
            splits = ", ".join(name for known, name in TOTALS if known == year)
            raise UserError(f"DAVIS {year} has no split {split}: its splits are {splits}.")
        self.src, self.year, self.split, self.resolution = Path(src), year, split, resolution
        self.name = f"davis{year}-{split}"

    def survey(self) -> Survey:
        """List the frames of the split's sequences.

        Raises:
            UserError: a list, a picture or an annotation is missing.
        """
        tree = TREES[self.year].format(self.resolution)
        root = find_root(self.src, ("DAVIS", f"DAVIS-{self.year}"), f"JPEGImages/{self.resolution}", tree)
        clips = self._listed_frames(root, tree) if self.year == 2016 else self._frames_of_listed(root, tree)
        frames = [frame for clip in clips.values() for frame in clip]
        check_present((path for frame in frames for path in frame if path is not None), tree)
        sequences, published = TOTALS[self.year, self.split]
        totals = {"sequences": (len(clips), sequences), "frames": (len(frames), published)}
        hidden = sum(frame.mask is None for frame in frames)
        skipped = Counter({"annotations that the owners keep: nothing counts in these frames": hidden})
        items = [Item(clip, tuple(frames), is_clip=True, source=clip) for clip, frames in clips.items()]
        return Survey(items, self._classes(clips), skipped, totals)

    def read(self, part: Frame) -> tuple[bytes, bytes]:
        """The picture and its annotation, in which all is ignored where the owners keep it."""
        jpg = part.image.read_bytes()
        if part.mask is None:
            return jpg, write_label_map(np.full(jpeg_size(jpg, str(part.image)), IGNORE_INDEX, np.uint8))
        png = part.mask.read_bytes()
        return jpg, binary_map(png, part.mask) if self.year == 2016 else png

    def _listed_frames(self, root: Path, tree: str) -> dict[str, list[Frame]]:
        """Sequences of DAVIS 2016, whose lists name the picture and the annotation of every frame."""
        file = root / "ImageSets" / self.resolution / f"{self.split}.txt"
        if not file.is_file() and (root / "ImageSets" / "2016").is_dir():
            raise UserError(
                f"{root} is the tree of DAVIS 2017, whose annotations are not those of 2016. It should be\n{tree}"
            )
        clips: dict[str, list[Frame]] = {}
        for line in read_lines(file, tree):
            paths = [Path(word.lstrip("/")) for word in line.split()]
            expected = [("JPEGImages", self.resolution), ("Annotations", self.resolution)]
            if [path.parts[:2] for path in paths] != expected or any(len(path.parts) != 4 for path in paths):
                raise UserError(f"{file} holds {line!r}, which is no picture with its annotation: unpack it again.")
            clips.setdefault(paths[0].parts[2], []).append(Frame(root / paths[0], root / paths[1]))
        return clips

    def _frames_of_listed(self, root: Path, tree: str) -> dict[str, list[Frame]]:
        """Sequences of DAVIS 2017, whose lists name them alone."""
        clips: dict[str, list[Frame]] = {}
        for clip in read_list(root / "ImageSets" / "2017" / f"{self.split}.txt", tree):
            images = sorted(
                (root / "JPEGImages" / self.resolution / clip).glob("*.jpg"), key=lambda path: natural(path.name)
            )
            masks = root / "Annotations" / self.resolution / clip
            hidden = images[1:] if self.split in HIDDEN else []
            clips[clip] = [Frame(path, None if path in hidden else masks / f"{path.stem}.png") for path in images]
        missing = [clip for clip, frames in clips.items() if not frames]
        if missing:
            folder = root / "JPEGImages" / self.resolution
            raise UserError(f"{folder} holds no pictures of {', '.join(missing[:5])}. It should be\n{tree}")
        return clips

    def _classes(self, clips: dict[str, list[Frame]]) -> dict[int, str]:
        """Names of the objects, which the first frames show."""
        if self.year == 2016:
            return {1: "object"}
        firsts = [frames[0].mask for frames in clips.values()]
        highest = max(_highest(read_label_map(mask.read_bytes(), str(mask))) for mask in firsts if mask is not None)
        return {number: f"object {number}" for number in range(1, highest + 1)}


def _highest(labels: np.ndarray) -> int:
    return int(labels[labels != IGNORE_INDEX].max(initial=0))


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack davis` beside those of every packer."""
    trees = [f"DAVIS {year}\n{tree.format('480p')}" for year, tree in TREES.items()]
    parser.epilog = "\n".join(["what to download:", *trees])
    parser.add_argument("--year", type=int, choices=sorted(TREES), required=True, help="edition of DAVIS")
    splits = sorted({split for _, split in TOTALS})
    parser.add_argument("--split", choices=splits, required=True, help="the tests are of 2017 only")
    parser.add_argument(
        "--resolution", default="480p", metavar="FOLDER", help="folder below JPEGImages, e.g. 1080p (default: 480p)"
    )


def packer(args: Namespace) -> Davis:
    """The packer that the arguments of `ldis data pack davis` describe."""
    return Davis(args.src, args.year, args.split, args.resolution)
