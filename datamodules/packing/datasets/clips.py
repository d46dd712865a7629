"""Packs a tree of labelled frames, `JPEGImages/<clip>/<frame>.jpg` and `Annotations/<clip>/<frame>.png`.

DAVIS and many other video sets have this layout.
"""

import os
import re
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldis_lightning.datamodules.packing.engine import Item, Packer, Survey, refuse
from ldis_lightning.datamodules.packing.packer import sample_key
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import read_label_map, write_label_map
from ldis_lightning.suggestions import did_you_mean

SUMMARY = "a tree JPEGImages/<clip>/<frame>.jpg and Annotations/<clip>/<frame>.png, as DAVIS has it"


class Frame(NamedTuple):
    """A picture and its label map."""

    image: Path
    mask: Path


class Clips(Packer):
    """A tree of labelled frames. JPEG bytes are copied as they are.

    Args:
        src: the folder of `JPEGImages` and `Annotations`.
        as_images: pack every frame as an image of its own, `<clip>/<frame>`, instead of clips.
        clips: names of the clips to pack; by default all.
        binary: every label but 0 becomes class 1, for sets whose masks are 0 and 255. Masks are then encoded anew.
        skip_unlabelled: leave out frames without an annotation instead of refusing the tree.
    """

    def __init__(
        self,
        src: str | Path,
        as_images: bool = False,
        clips: Sequence[str] | None = None,
        binary: bool = False,
        skip_unlabelled: bool = False,
    ) -> None:
        self.src, self.as_images, self.clips = Path(src), as_images, clips
        self.binary, self.skip_unlabelled = binary, skip_unlabelled
        self.unlabelled_hint = "" if binary else " If 255 marks the thing to segment, use --binary."

    def survey(self) -> Survey:
        """Pair the frames of every clip with their annotations, by name alone."""
        clips, skipped = survey_tree(self.src, self.clips, self.skip_unlabelled)
        if not self.as_images:
            items = [Item(sample_key(clip), tuple(frames), is_clip=True, source=clip) for clip, frames in clips.items()]
        else:
            items = [
                Item(f"{sample_key(clip)}/{sample_key(frame.image.stem)}", (frame,), source=clip)
                for clip, frames in clips.items()
                for frame in frames
            ]
        return Survey(items, {}, skipped)

    def read(self, part: Frame) -> tuple[bytes, bytes]:
        """The files' bytes; with `binary` the label map is encoded anew."""
        jpg, png = part.image.read_bytes(), part.mask.read_bytes()
        return jpg, binary_map(png, part.mask) if self.binary else png


def binary_map(png: bytes, path: Path) -> bytes:
    """A label map in which every label but 0 is class 1."""
    return write_label_map((read_label_map(png, str(path)) != 0).astype(np.uint8))


def survey_tree(
    src: Path, clips: Sequence[str] | None = None, skip_unlabelled: bool = False
) -> tuple[dict[str, list[Frame]], Counter[str]]:
    """List the clips of a tree and pair their frames with annotations, by name alone.

    Returns:
        The frames of each clip in order, and how many files are left out, by reason.

    Raises:
        UserError: a folder or a clip is missing, or a frame has no annotation.
    """
    images, masks = src / "JPEGImages", src / "Annotations"
    for folder in (src, images, masks):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: there is no such folder. A tree to pack holds JPEGImages/<clip>/<frame>.jpg "
                "and Annotations/<clip>/<frame>.png."
            )
    found = sorted((entry.name for entry in os.scandir(images) if entry.is_dir()), key=natural)
    labelled, skipped, unlabelled = dict[str, list[Frame]](), Counter[str](), list[str]()
    for clip in _chosen(clips, found, images):
        frames, missing = pair_frames(images / clip, masks / clip, skipped)
        unlabelled += [f"{frame.image} has no annotation {frame.mask}" for frame in missing]
        if frames:
            labelled[clip] = frames
    skipped["frames without an annotation"] += len(unlabelled)
    if not skip_unlabelled:
        refuse(unlabelled, src, "\nUse --skip_unlabelled to leave such frames out.")
    if not labelled:
        raise UserError(f"{images} holds no <clip>/<frame>.jpg with an annotation, so there is nothing to pack.")
    return labelled, skipped


def pair_frames(images: Path, masks: Path, skipped: Counter[str]) -> tuple[list[Frame], list[Frame]]:
    """The frames of a clip's two folders in order: those that have an annotation, and those that have none.

    Raises:
        UserError: the folder holds folders, or two frames of one name.
    """
    files = sorted(os.listdir(images), key=natural)
    names = [name for name in files if name.lower().endswith((".jpg", ".jpeg"))]
    if not names and any((images / name).is_dir() for name in files):
        raise UserError(
            f"{images} holds folders where frames were expected: the layout is JPEGImages/<clip>/<frame>.jpg."
        )
    pictures = {os.path.splitext(name)[0]: name for name in names}
    if len(pictures) < len(names):
        raise UserError(f"{images} holds frames of the same name, .jpg and .jpeg: remove one of each.")
    annotations = set(os.listdir(masks)) if masks.is_dir() else set[str]()
    skipped["files in JPEGImages that are no .jpg"] += len(files) - len(names)
    skipped["annotations without an image"] += sum(os.path.splitext(name)[0] not in pictures for name in annotations)
    labelled, missing = list[Frame](), list[Frame]()
    for stem, name in pictures.items():
        (labelled if f"{stem}.png" in annotations else missing).append(Frame(images / name, masks / f"{stem}.png"))
    return labelled, missing


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts `frame_10` after `frame_9`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _chosen(clips: Sequence[str] | None, found: list[str], images: Path) -> list[str]:
    for clip in clips or ():
        if clip not in found:
            listed = f"; there are {', '.join(found[:12])}{', ...' if len(found) > 12 else ''}" if found else ""
            raise UserError(f"{images} holds no clip `{clip}`{did_you_mean(clip, found) or listed}")
    return found if clips is None else sorted(set(clips), key=natural)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `ldis data pack clips` beside those of every packer."""
    form = parser.add_argument("--as", dest="form", choices=("images", "clips"), default="clips")
    form.help = "pack whole clips, or every frame as an image of its own (default: clips)"
    parser.add_argument("--clips", nargs="+", metavar="CLIP", help="pack these clips only (default: all)")
    parser.add_argument("--binary", action="store_true", help="make every label but 0 class 1, for masks of 0 and 255")
    parser.add_argument(
        "--skip_unlabelled", action="store_true", help="leave out frames without an annotation instead of refusing"
    )


def packer(args: Namespace) -> Clips:
    """The packer that the arguments of `ldis data pack clips` describe."""
    return Clips(args.src, args.form == "images", args.clips, args.binary, args.skip_unlabelled)
